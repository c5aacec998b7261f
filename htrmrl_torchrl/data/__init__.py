"""From collected frames to training minibatches: windows, strategies, storage, replay."""
