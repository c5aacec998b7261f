"""What an update learns from: every frame stored once, and minibatches whose contexts are gathered by index."""
