"""Training scripts and tools. They import the library, never the reverse (``tests/test_layout.py`` checks it)."""
