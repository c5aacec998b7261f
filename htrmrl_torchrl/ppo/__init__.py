"""The learning algorithm: advantages over trials, the loss, normalisers, the update, and the metrics of learning."""
