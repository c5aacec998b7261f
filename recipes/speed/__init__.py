"""The measurements of `benchmark`, stage by stage."""
