"""Agents: the heads on an encoder, all networks from plain numbers, and the gym-style agent for other loops."""

from typing import TYPE_CHECKING

from htrmrl_torchrl._lazy import lazy_names
from htrmrl_torchrl.envs.opengl import check_import

if TYPE_CHECKING:
    from htrmrl_torchrl.agent.agent import HTrMRLAgent
    from htrmrl_torchrl.agent.heads import make_actor_critic
    from htrmrl_torchrl.agent.metaworld import MetaWorldAgent
    from htrmrl_torchrl.agent.networks import Networks, acting_policy, build_networks, load_networks

__all__ = [
    "HTrMRLAgent",
    "MetaWorldAgent",
    "Networks",
    "acting_policy",
    "build_networks",
    "load_networks",
    "make_actor_critic",
]

__getattr__ = lazy_names(__name__, __file__, before=check_import)
