"""Checkpoint files: archives of tensors and JSON that are written whole, sealed, and checked before they are read."""
