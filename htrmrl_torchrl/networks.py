"""A whole agent from plain numbers, and back from a checkpoint.

`build_networks` takes flat JSON-compatible arguments, which a checkpoint stores beside the weights: nothing of a clone
(no YAML, no recipe) is needed to run a trained agent.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from tensordict.nn import TensorDictModuleBase, TensorDictSequential
from torchrl.data import Bounded
from torchrl.modules import ProbabilisticActor

from htrmrl_torchrl import keys
from htrmrl_torchrl.archive import refused_by_name
from htrmrl_torchrl.checkpoint import load_weights, read_component
from htrmrl_torchrl.data.strategies import WindowStrategy
from htrmrl_torchrl.modules.encoder import HierarchicalEncoder
from htrmrl_torchrl.modules.heads import CriticKind, Std, make_actor_critic
from htrmrl_torchrl.modules.inter import AttentionMode
from htrmrl_torchrl.modules.memory import EpisodicMemory
from htrmrl_torchrl.modules.transformer import Norm


class Networks(NamedTuple):
    """The parts of an agent; `policy` is memory, actor and critic in one, for collectors."""

    policy: TensorDictSequential
    actor: ProbabilisticActor
    critic: TensorDictModuleBase
    encoder: HierarchicalEncoder
    memory: EpisodicMemory
    action_spec: Bounded


def build_networks(
    *,
    observation_dim: int,
    action_low: Sequence[float],
    action_high: Sequence[float],
    window: int = 5,
    episodes: int = 10,
    d_model: int = 64,
    num_heads: int = 4,
    intra_layers: int = 2,
    inter_layers: int = 2,
    attention: AttentionMode = "causal",
    norm: Norm = "pre_ln",
    reward_scale: float = 1.0,
    strategy: str = "uniform",
    std: Std = "independent",
    init_std: float = 1.0,
    observe_token: bool = False,
    critic_kind: CriticKind = "shared",
    value_norm: bool = True,
    seed: int = 0,
) -> Networks:
    """Builds encoder, memory, actor and critic for observations ``[o]`` and bounded actions ``[a]``.

    Args:
        observation_dim: size o of an observation.
        action_low, action_high: bounds of each action dimension.
        window, episodes, d_model, num_heads, intra_layers, inter_layers, attention, norm, reward_scale: see
            `HierarchicalEncoder`.
        strategy: see `EpisodicMemory`.
        std, init_std, observe_token, critic_kind, value_norm: see `make_actor_critic`.
        seed: of the memory's random streams. Weights come from torch's global generator.

    Raises:
        ValueError: as the parts do.

    Example:
        >>> networks = build_networks(observation_dim=3, action_low=[-1.0], action_high=[1.0])
        >>> networks.encoder.token_dim
        6
    """
    sizes: dict[str, Any] = {
        "observation_dim": observation_dim,
        "action_dim": len(action_low),
        "window": window,
        "episodes": episodes,
        "d_model": d_model,
        "num_heads": num_heads,
        "intra_layers": intra_layers,
        "inter_layers": inter_layers,
        "attention": attention,
        "norm": norm,
        "reward_scale": reward_scale,
    }
    encoder = HierarchicalEncoder(**sizes)
    critic_encoder = None
    if critic_kind == "separate":
        critic_encoder = HierarchicalEncoder(
            **sizes, hidden_key="_critic_hidden", cache_key=(keys.CONTEXT, "critic_past_cache")
        )
    memory = EpisodicMemory(
        [encoder] if critic_encoder is None else [encoder, critic_encoder], strategy=strategy, seed=seed
    )
    action_spec = Bounded(torch.tensor(action_low), torch.tensor(action_high))
    policy, actor, critic = make_actor_critic(
        encoder=encoder,
        memory=memory,
        action_spec=action_spec,
        std=std,
        init_std=init_std,
        observe_token=observe_token,
        critic_kind=critic_kind,
        critic_encoder=critic_encoder,
        value_norm=value_norm,
    )
    return Networks(policy, actor, critic, encoder, memory, action_spec)


def acting_policy(
    networks: Networks, *, strategy: str | WindowStrategy | None = None, seed: int = 0
) -> TensorDictSequential:
    """A policy with a memory of its own and the weights of `networks`, for evaluation beside training.

    It writes ``action``, and touches neither the training memory nor its random streams.

    Args:
        networks: whose weights to use, not to copy.
        strategy: how windows are drawn; default: as in `networks`.
        seed: of the new memory's random streams.
    """
    memory = EpisodicMemory(networks.encoder, strategy=strategy or networks.memory.strategy, seed=seed)
    return TensorDictSequential(memory, networks.actor, selected_out_keys=[keys.ACTION])


def load_networks(path: str | Path) -> Networks:
    """The agent of a checkpoint, for example ``runs/toy_ppo_seed1/checkpoints/best-000000050688.torchrl``.

    Args:
        path: a checkpoint file of a training run.

    Raises:
        FileNotFoundError: if there is none at `path`.
        ValueError: if it is not a checkpoint of this package.
    """
    agent = read_component(path, "agent")
    with refused_by_name(path):
        networks = build_networks(**agent)
    load_weights(path, actor=networks.actor, critic=networks.critic)
    return networks
