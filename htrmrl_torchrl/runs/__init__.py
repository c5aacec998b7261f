"""Run-keeping: checkpoints, lock, signals, faults, loggers and terminal output."""
