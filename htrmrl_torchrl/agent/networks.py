"""A whole agent from plain numbers, and back from a checkpoint.

`build_networks` takes flat JSON-compatible arguments, which a checkpoint stores beside the weights: nothing of a clone
(no YAML, no recipe) is needed to run a trained agent.
"""

from collections.abc import Sequence
from pathlib import Path
from types import UnionType
from typing import Any, Literal, NamedTuple, get_args, get_origin, get_type_hints

import torch
from tensordict.nn import TensorDictModuleBase, TensorDictSequential
from torchrl.data import Bounded
from torchrl.modules import ProbabilisticActor

from htrmrl_torchrl import keys
from htrmrl_torchrl.agent.heads import CriticKind, Std, make_actor_critic
from htrmrl_torchrl.checkpoints.archive import read_states, refused_by_name
from htrmrl_torchrl.encoders.contract import ContextEncoder
from htrmrl_torchrl.encoders.hierarchical import HierarchicalEncoder
from htrmrl_torchrl.encoders.inter import AttentionMode
from htrmrl_torchrl.encoders.mlp import MemorylessEncoder
from htrmrl_torchrl.encoders.recurrent import RecurrentEncoder
from htrmrl_torchrl.encoders.transformer import Norm
from htrmrl_torchrl.memory.contract import Memory
from htrmrl_torchrl.memory.episodic import EpisodicMemory
from htrmrl_torchrl.memory.past import Scope
from htrmrl_torchrl.memory.recurrent import RecurrentMemory
from htrmrl_torchrl.memory.strategies import WindowStrategy
from htrmrl_torchrl.specs import MismatchError

EncoderKind = Literal["htrmrl", "trmrl", "rl2", "mlp"]
# What each kind reads of the arguments of `build_networks`, beside those that all encoders have.
_READ_BY: dict[EncoderKind, tuple[str, ...]] = {
    "htrmrl": ("window", "episodes", "num_heads", "intra_layers", "inter_layers", "attention", "norm"),
    "trmrl": ("window", "num_heads", "intra_layers", "norm"),
    "rl2": ("mlp_layers",),
    "mlp": ("mlp_layers",),
}
ENCODER_KINDS = tuple(_READ_BY)


class Networks(NamedTuple):
    """The parts of an agent; `policy` is memory, actor and critic in one, for collectors."""

    policy: TensorDictSequential
    actor: ProbabilisticActor
    critic: TensorDictModuleBase
    encoder: ContextEncoder
    memory: Memory
    action_spec: Bounded


def build_networks(
    *,
    observation_dim: int,
    action_low: Sequence[float],
    action_high: Sequence[float],
    encoder_kind: EncoderKind = "htrmrl",
    window: int = 5,
    episodes: int = 10,
    d_model: int = 64,
    num_heads: int = 4,
    intra_layers: int = 2,
    inter_layers: int = 2,
    mlp_layers: int = 2,
    attention: AttentionMode = "causal",
    norm: Norm = "pre_ln",
    reward_scale: float = 1.0,
    strategy: str = "uniform",
    scope: Scope = "trial",
    max_episodes: int | None = None,
    std: Std = "independent",
    init_std: float = 1.0,
    min_std: float = 1e-4,
    observe_token: bool = False,
    critic_kind: CriticKind = "shared",
    value_norm: bool = True,
    seed: int = 0,
) -> Networks:
    """Builds encoder, memory, actor and critic for observations ``[o]`` and bounded actions ``[a]``.

    Args:
        observation_dim: size o of an observation.
        action_low, action_high: bounds of each action dimension.
        encoder_kind: ``"htrmrl"``: a `HierarchicalEncoder`; ``"trmrl"``: one of the running episode's newest window
            alone (one episode, no inter-episode layers); ``"rl2"``: a `RecurrentEncoder`; ``"mlp"``: a
            `MemorylessEncoder`. An argument below that the kind has no use for is not read.
        d_model, reward_scale: of any encoder.
        window, episodes, num_heads, intra_layers, inter_layers, attention, norm: see `HierarchicalEncoder`.
        mlp_layers: see `RecurrentEncoder` and `MemorylessEncoder`.
        strategy, scope, max_episodes: see `EpisodicMemory`.
        std, init_std, min_std, observe_token, critic_kind, value_norm: see `make_actor_critic`.
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
        "mlp_layers": mlp_layers,
        "attention": attention,
        "norm": norm,
        "reward_scale": reward_scale,
    }
    encoder = _make_encoder(encoder_kind, sizes)
    critic_encoder = _make_encoder(encoder_kind, sizes, of_critic=True) if critic_kind == "separate" else None
    encoders = [encoder]
    if critic_encoder is not None:
        critic_encoder.tokens = encoder.tokens  # one adapts for both
        encoders.append(critic_encoder)
    memory = _make_memory(encoders, strategy=strategy, scope=scope, max_episodes=max_episodes, seed=seed)
    if len(action_low) != len(action_high):
        raise MismatchError(
            f"action_low has {len(action_low)} bounds and action_high {len(action_high)}; give one of each for every "
            "action dimension."
        )
    floats = torch.get_default_dtype()
    low, high = (torch.tensor(bound, dtype=floats, device="cpu") for bound in (action_low, action_high))
    action_spec = Bounded(low, high, device="cpu")
    policy, actor, critic = make_actor_critic(
        encoder=encoder,
        memory=memory,
        action_spec=action_spec,
        std=std,
        init_std=init_std,
        min_std=min_std,
        observe_token=observe_token,
        critic_kind=critic_kind,
        critic_encoder=critic_encoder,
        value_norm=value_norm,
    )
    return Networks(policy, actor, critic, encoder, memory, action_spec)


def acting_policy(
    networks: Networks,
    *,
    strategy: str | WindowStrategy | None = None,
    scope: Scope = "trial",
    seed: int = 0,
) -> TensorDictSequential:
    """A policy with a memory of its own and the weights of `networks`, for evaluation beside training.

    It writes ``action``, and touches neither the training memory nor its random streams.

    Args:
        networks: whose weights to use, not to copy.
        strategy: how windows are drawn; default: as in `networks`.
        scope: ``"trial"``, however `networks` were trained: a trial is judged by what it finds out itself, and never
            sees the trial of another goal. ``"lane"`` must be asked for, and needs networks with `max_episodes`; what
            a trial sees then depends on which trials its lane played before, and so on the number of lanes.
        seed: of the new memory's random streams.

    Raises:
        ValueError: for ``"lane"`` without `max_episodes`, or with an encoder that sees no windows.
    """
    max_episodes = None
    if isinstance(networks.memory, EpisodicMemory):
        strategy, max_episodes = strategy or networks.memory.strategy, networks.memory.max_episodes
    memory = _make_memory(
        [networks.encoder], strategy=strategy or "uniform", scope=scope, max_episodes=max_episodes, seed=seed
    )
    return TensorDictSequential(memory, networks.actor, selected_out_keys=[keys.ACTION])


def load_networks(path: str | Path) -> Networks:
    """The agent of a checkpoint, for example ``runs/toy_ppo_seed1/checkpoints/best-000000050688.torchrl``.

    Args:
        path: a checkpoint file of a training run.

    Raises:
        FileNotFoundError: if there is none at `path`.
        ValueError: if it is not a checkpoint of this package.
    """
    states = read_states(path, ["agent", "actor", "critic"])
    weights = {name: states[name] for name in ("actor", "critic")}
    with refused_by_name(path), torch.random.fork_rng(devices=[]):  # weights that are drawn here are overwritten
        agent = _checked_arguments(states["agent"], weights)
        with torch.device("meta"):  # shapes without numbers: nothing is allocated that the file does not hold
            _check_shapes(build_networks(**agent), weights)
        networks = build_networks(**agent)
        networks.actor.load_state_dict(weights["actor"])
        networks.critic.load_state_dict(weights["critic"])
    return networks


def _checked_arguments(agent: Any, weights: dict[str, Any]) -> dict[str, Any]:
    """Arguments of `build_networks` that have the types it asks for; no more layers than there are tensors."""
    if not isinstance(agent, dict) or not all(isinstance(state, dict) for state in weights.values()):
        raise ValueError("agent, actor and critic must be names with values")
    hints = get_type_hints(build_networks)
    for name, value in agent.items():
        if name not in hints or name == "return":
            raise ValueError(f"build_networks has no argument {name!r}")
        if not _is_of(hints[name], value):
            raise ValueError(f"{name}={value!r} is not of {hints[name]}")
    most = sum(map(len, weights.values()))
    for name in ("intra_layers", "inter_layers", "mlp_layers"):
        if agent.get(name, 0) > most:
            raise ValueError(f"{name}={agent[name]} where the file holds {most} tensors")
    return agent


def _is_of(hint: Any, value: Any) -> bool:
    """Whether a value from JSON is of an argument's type; numbers must be such that torch can take them."""
    if get_origin(hint) is Literal:
        return type(value) is str and value in get_args(hint)
    if get_origin(hint) is UnionType:
        return any(_is_of(option, value) for option in get_args(hint))
    if get_origin(hint) is Sequence:
        return type(value) is list and all(type(entry) in (int, float) and entry == entry for entry in value)
    if hint is float:
        return type(value) in (int, float) and abs(value) <= torch.finfo().max
    return type(value) is hint and (hint is not int or abs(value) < 2**63)


def _check_shapes(networks: Networks, weights: dict[str, Any]) -> None:
    """Refuses weights of other networks than the arguments in the same file describe."""
    for part, held in weights.items():
        expected = {name: list(tensor.shape) for name, tensor in getattr(networks, part).state_dict().items()}
        found = {name: list(value.shape) if isinstance(value, torch.Tensor) else value for name, value in held.items()}
        for name in (*expected, *found):
            if expected.get(name) != found.get(name):
                raise ValueError(
                    f"{part}'s {name} is of {found.get(name, 'no shape')} in the file and of "
                    f"{expected.get(name, 'no shape')} by the agent's arguments"
                )


def _make_encoder(kind: EncoderKind, sizes: dict[str, Any], *, of_critic: bool = False) -> ContextEncoder:
    if kind not in ENCODER_KINDS:
        raise ValueError(f"encoder_kind={kind!r} is unknown; choose one of {', '.join(ENCODER_KINDS)}.")
    names = ("observation_dim", "action_dim", "d_model", "reward_scale", *_READ_BY[kind])
    arguments: dict[str, Any] = {name: sizes[name] for name in names}
    if of_critic:
        arguments["hidden_key"] = keys.CRITIC_HIDDEN
    if kind == "rl2":
        return RecurrentEncoder(**arguments, state_key=keys.CRITIC_STATE if of_critic else "state")
    if kind == "mlp":
        return MemorylessEncoder(**arguments)
    if kind == "trmrl":
        arguments |= {"episodes": 1, "inter_layers": 0}
    return HierarchicalEncoder(**arguments, cache_key=keys.CRITIC_CACHE if of_critic else keys.PAST_CACHE)


def _make_memory(
    encoders: Sequence[ContextEncoder],
    *,
    strategy: str | WindowStrategy,
    scope: Scope,
    max_episodes: int | None,
    seed: int,
) -> Memory:
    if scope != "trial" and not isinstance(encoders[0], HierarchicalEncoder):
        raise ValueError(f"scope={scope!r} must be 'trial' with an encoder that sees no windows of earlier episodes.")
    if recurrent := [encoder for encoder in encoders if isinstance(encoder, RecurrentEncoder)]:
        return RecurrentMemory(recurrent)
    if hierarchical := [encoder for encoder in encoders if isinstance(encoder, HierarchicalEncoder)]:
        return EpisodicMemory(hierarchical, strategy=strategy, scope=scope, max_episodes=max_episodes, seed=seed)
    return EpisodicMemory(window=encoders[0].window, episodes=encoders[0].episodes, seed=seed)  # draws nothing
