"""Hydra stops here: composing and checking a configuration, and building the library's arguments from it."""
