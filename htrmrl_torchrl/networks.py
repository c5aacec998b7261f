"""Names that version 0.1 kept here; they are now in `htrmrl_torchrl.agent`."""

from htrmrl_torchrl.agent import acting_policy, build_networks, load_networks

__all__ = ["acting_policy", "build_networks", "load_networks"]
