"""Several processes that train one agent: each plays a share of the lanes and learns a share of every minibatch."""
