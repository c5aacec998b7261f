"""The parts of `look_inside`."""
