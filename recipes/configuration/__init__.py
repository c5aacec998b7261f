"""Where Hydra stops: composing and checking a configuration, and building from it what the library takes."""
