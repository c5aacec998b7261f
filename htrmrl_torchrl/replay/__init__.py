"""Replay: every frame is stored once, and minibatches gather their contexts by index."""
