"""PPO: advantages over trials, the loss, normalisers, the update, and training metrics."""
