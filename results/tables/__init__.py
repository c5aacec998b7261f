"""Result tables of README.md and docs/results/, made from the files of results/: ``python -m results.tables``."""
