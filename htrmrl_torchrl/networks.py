"""Where `htrmrl_torchrl.agent` keeps these names; for code that was written for version 0.1."""

from htrmrl_torchrl.agent import acting_policy, build_networks, load_networks

__all__ = ["acting_policy", "build_networks", "load_networks"]
