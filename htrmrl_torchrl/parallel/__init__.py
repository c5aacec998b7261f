"""Several processes that train one agent: each has a share of the environments and of every minibatch."""
