"""Several processes that train one agent: each acts in a share of the environments and learns from a share of every minibatch."""
