"""Build an agent's networks from flat JSON-compatible arguments, or load them from a checkpoint, which stores both."""

from collections.abc import Callable, Collection, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
from tensordict.nn import TensorDictModuleBase, TensorDictSequential
from torchrl.data import Bounded
from torchrl.modules import ProbabilisticActor

from htrmrl_torchrl import keys
from htrmrl_torchrl.agent.heads import make_actor_critic
from htrmrl_torchrl.agent.registry import (
    build_encoder,
    build_memory,
    check_settings,
    find_kind,
    is_of,
    known_settings,
    read_by,
)
from htrmrl_torchrl.checkpoints.archive import refused_by_name
from htrmrl_torchrl.checkpoints.checkpoint import read_saved
from htrmrl_torchrl.dotted import check_trusted
from htrmrl_torchrl.encoders.contract import ContextEncoder
from htrmrl_torchrl.memory.contract import Memory
from htrmrl_torchrl.memory.past import Scope
from htrmrl_torchrl.memory.strategies import WindowStrategy
from htrmrl_torchrl.specs import MismatchError

_OF_TRAINING = ("config", "progress", "versions")


class Networks(NamedTuple):
    """The parts of an agent; `policy` is memory, actor and critic in one, for collectors."""

    policy: TensorDictSequential
    actor: ProbabilisticActor
    critic: TensorDictModuleBase
    encoder: ContextEncoder
    memory: Memory
    action_spec: Bounded
    make_memory: Callable[..., Memory]  # (encoders, **changed): the same settings except the changed ones
    # JSON: "agent", the arguments of `build_networks`; of a loaded agent also what its checkpoint says of the training,
    # "config", "progress" and "versions".
    description: dict[str, Any]


def build_networks(
    *,
    observation_dim: int,
    action_low: Sequence[float],
    action_high: Sequence[float],
    encoder_kind: str = "htrmrl",
    **settings: Any,
) -> Networks:
    """Builds encoder, memory, actor and critic for observations ``[o]`` and bounded actions ``[a]``.

    Args:
        observation_dim: size o of an observation.
        action_low, action_high: bounds of each action dimension.
        encoder_kind: ``"htrmrl"``: a `HierarchicalEncoder`; ``"trmrl"``: the same on the running episode's newest
            window only (one episode, no inter-episode layers); ``"rl2"``: a `RecurrentEncoder`; ``"mlp"``: a
            `MemorylessEncoder`; or your own by its path ``package.module:name``, see `htrmrl_torchrl.agent.registry`.
        settings: arguments of the encoder (for instance ``window``, ``episodes``, ``d_model``), of the memory
            (``strategy``, ``scope``, ``max_episodes``, ``seed``; see `EpisodicMemory`) and of `make_actor_critic`
            (``std``, ``critic_kind``, ``value_norm``, ...). Their docstrings give meanings, defaults and errors.
            Settings of other encoder kinds are ignored, unknown ones are a TypeError. Weights come from torch's global
            generator.

    Example:
        >>> networks = build_networks(observation_dim=3, action_low=[-1.0], action_high=[1.0], window=4)
        >>> networks.encoder.token_dim
        6
    """
    kind = find_kind(encoder_kind)
    check_settings(kind, settings)
    make_encoder = partial(
        build_encoder, kind, settings=settings, observation_dim=observation_dim, action_dim=len(action_low)
    )
    encoders = [make_encoder()]
    if settings.get("critic_kind") == "separate":
        encoders.append(make_encoder(of_critic=True))
        encoders[1].tokens = encoders[0].tokens  # shared: one adapts for both
    make_memory = partial(build_memory, kind.memory, settings)
    memory = make_memory(encoders)
    if len(action_low) != len(action_high):
        raise MismatchError(
            f"action_low has {len(action_low)} bounds and action_high {len(action_high)}; give one of each for every "
            "action dimension."
        )
    floats = torch.get_default_dtype()
    low, high = (torch.tensor(bound, dtype=floats, device="cpu") for bound in (action_low, action_high))
    action_spec = Bounded(low, high, device="cpu")
    policy, actor, critic = make_actor_critic(
        **read_by(make_actor_critic, settings),
        encoder=encoders[0],
        memory=memory,
        action_spec=action_spec,
        critic_encoder=encoders[1] if len(encoders) > 1 else None,
    )
    arguments = {
        "observation_dim": observation_dim,
        "action_low": [float(bound) for bound in action_low],
        "action_high": [float(bound) for bound in action_high],
        "encoder_kind": encoder_kind,
        **settings,
    }
    return Networks(policy, actor, critic, encoders[0], memory, action_spec, make_memory, {"agent": arguments})


def acting_policy(
    networks: Networks,
    *,
    strategy: str | WindowStrategy | None = None,
    scope: Scope = "trial",
    seed: int = 0,
) -> TensorDictSequential:
    """A policy with its own memory and the weights of `networks`; training's memory and random streams are unchanged.

    Args:
        networks: whose weights to use, not to copy.
        strategy: how windows are drawn; default: as in `networks`.
        scope: ``"trial"`` by default, however `networks` were trained, so that no trial sees another goal's trial. With
            ``"lane"`` a trial's context depends on earlier trials of its environment, and on their number.
            ValueError without `max_episodes`, or with an encoder that reads no earlier episodes.
        seed: of the new memory's random streams.
    """
    changed = {} if strategy is None else {"strategy": strategy}
    memory = networks.make_memory([networks.encoder], scope=scope, seed=seed, dropout=0.0, **changed)
    return TensorDictSequential(memory, networks.actor, selected_out_keys=[keys.ACTION])


def load_networks(path: str | Path, *, trust: Collection[str] = ()) -> Networks:
    """The agent of a checkpoint, for example ``runs/toy_ppo_seed1/checkpoints/best-000000050688.torchrl``, or of a
    folder that `HTrMRLAgent.save_pretrained` wrote.

    ``trust`` lists the dotted paths of your own encoders and strategies that may be imported; default none. Raises
    FileNotFoundError if there is none at `path`, ValueError if it is not a checkpoint of this package or names code
    that is not trusted.
    """
    states = read_saved(path, ["agent", "actor", "critic"], optional=_OF_TRAINING)
    weights = {name: states[name] for name in ("actor", "critic")}
    named = states["agent"] if isinstance(states["agent"], dict) else {}
    check_trusted(path, [named.get("encoder_kind"), named.get("strategy")], trust)
    with refused_by_name(path), torch.random.fork_rng(devices=[]):  # the weights drawn here are overwritten
        agent = _checked_arguments(states["agent"], weights)
        with torch.device("meta"):  # shapes only: nothing larger than the file is allocated
            _check_shapes(build_networks(**agent), weights)
        networks = build_networks(**agent)
        networks.actor.load_state_dict(weights["actor"])
        networks.critic.load_state_dict(weights["critic"])
    return networks._replace(description={name: state for name, state in states.items() if name not in weights})


def _checked_arguments(agent: Any, weights: dict[str, Any]) -> dict[str, Any]:
    """Arguments of `build_networks`, with checked types, and no more layers than there are tensors."""
    if not isinstance(agent, dict) or not all(isinstance(state, dict) for state in weights.values()):
        raise ValueError("agent, actor and critic must be dictionaries")
    kind = find_kind(agent.get("encoder_kind", "htrmrl"))
    hints: dict[str, Any] = {"observation_dim": int, "action_low": Sequence[float], "action_high": Sequence[float]}
    hints |= {name: parameter.annotation for name, parameter in known_settings(kind).items()}
    most = sum(map(len, weights.values()))
    for name, value in agent.items():
        if name == "encoder_kind":
            continue
        if name not in hints:
            raise ValueError(f"build_networks has no argument {name!r}")
        if not is_of(hints[name], value):
            raise ValueError(f"{name}={value!r} is not of {hints[name]}")
        if name.endswith("_layers") and value > most:
            raise ValueError(f"{name}={value} where the file holds {most} tensors")
    return agent


def _check_shapes(networks: Networks, weights: dict[str, Any]) -> None:
    """Raise ValueError if the weights do not fit the networks that the same file describes."""
    for part, held in weights.items():
        expected = {name: list(tensor.shape) for name, tensor in getattr(networks, part).state_dict().items()}
        found = {name: list(value.shape) if isinstance(value, torch.Tensor) else value for name, value in held.items()}
        for name in (*expected, *found):
            if expected.get(name) != found.get(name):
                raise ValueError(
                    f"{part}'s {name} has shape {found.get(name, 'none')} in the file and "
                    f"{expected.get(name, 'none')} by the agent's arguments"
                )
