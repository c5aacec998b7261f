"""How a run is kept: its folder, lock, signals, faults, loggers and what it says on the terminal."""
