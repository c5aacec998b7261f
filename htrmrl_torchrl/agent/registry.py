"""Kinds of encoders: how the encoder of each is built, the critic's too, and which memory writes its contexts.

A kind is a name of `ENCODERS`, or a dotted path to your own: an encoder class (see
`htrmrl_torchrl.encoders.contract.ContextEncoder`), or an `EncoderKind` where it wants another memory than
`EpisodicMemory`. What can be set is what the signatures say: an argument of the encoder, of its memory or of
`make_actor_critic` is an argument of `build_networks`, and a key in a recipe's YAML. Nothing else has to know it.
"""

import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from inspect import Parameter
from types import NoneType, UnionType
from typing import Any, Literal, Union, get_args, get_origin

import torch

from htrmrl_torchrl import keys
from htrmrl_torchrl.agent.heads import make_actor_critic
from htrmrl_torchrl.dotted import is_dotted_path, resolve
from htrmrl_torchrl.encoders.contract import ContextEncoder
from htrmrl_torchrl.encoders.hierarchical import HierarchicalEncoder
from htrmrl_torchrl.encoders.mlp import MemorylessEncoder
from htrmrl_torchrl.encoders.recurrent import RecurrentEncoder
from htrmrl_torchrl.memory.contract import Memory
from htrmrl_torchrl.memory.episodic import EpisodicMemory
from htrmrl_torchrl.memory.recurrent import RecurrentMemory


@dataclass(frozen=True)
class EncoderKind:
    """How the networks of one kind are built.

    Args:
        encoder: makes an encoder from keyword arguments: ``observation_dim``, ``action_dim`` and whatever settings it
            has. The encoder of a separate critic gets those of `CRITIC_KEYS` that it takes, too.
        memory: called with a list of encoders, and with those of ``strategy``, ``scope``, ``max_episodes`` and ``seed``
            (or further settings of its own) that it takes.
    """

    encoder: Callable[..., ContextEncoder]
    memory: Callable[..., Memory] = EpisodicMemory


ENCODERS = {
    "htrmrl": EncoderKind(HierarchicalEncoder),
    "trmrl": EncoderKind(partial(HierarchicalEncoder, episodes=1, inter_layers=0)),  # the running episode alone
    "rl2": EncoderKind(RecurrentEncoder, RecurrentMemory),
    "mlp": EncoderKind(MemorylessEncoder),
}
# Where the encoder of a separate critic writes and reads, apart from the actor's.
CRITIC_KEYS = {"hidden_key": keys.CRITIC_HIDDEN, "cache_key": keys.CRITIC_CACHE, "state_key": keys.CRITIC_STATE}
# What the parts are given that is no setting: other parts, and what follows from the environment or the encoder.
_GIVEN = {"encoder", "memory", "critic_encoder", "action_spec", "hidden", "action_dim", "observation_dim", *CRITIC_KEYS}


def find_kind(name: str) -> EncoderKind:
    """The kind of a name of `ENCODERS`, or of a dotted path, which is imported.

    Raises:
        ValueError: if there is none.
    """
    if name in ENCODERS:
        return ENCODERS[name]
    if not is_dotted_path(name):
        raise ValueError(
            f"encoder_kind={name!r} is unknown; choose one of {', '.join(ENCODERS)}, or your own by its path, "
            "package.module:name."
        )
    found = resolve(name)
    kind = found if isinstance(found, EncoderKind) else EncoderKind(found)
    if not callable(kind.encoder) or (isinstance(kind.encoder, type) and not issubclass(kind.encoder, ContextEncoder)):
        raise ValueError(f"{name!r} is neither a ContextEncoder nor an EncoderKind, see htrmrl_torchrl.agent.registry.")
    return kind


def settings_of(kind: EncoderKind) -> dict[str, Parameter]:
    """What `build_networks` can be told of a kind, by name: the signatures of encoder, memory and heads."""
    memory = {name: of for name, of in parameters(kind.memory).items() if name not in ("window", "episodes")}
    found = parameters(make_actor_critic) | memory | parameters(kind.encoder)
    return {name: parameter for name, parameter in found.items() if name not in _GIVEN}


def known_settings(kind: EncoderKind) -> dict[str, Parameter]:
    """Those of a kind and, not read by it, those of the shipped ones."""
    return {name: value for one in (*ENCODERS.values(), kind) for name, value in settings_of(one).items()}


def check_settings(kind: EncoderKind, settings: Mapping[str, Any]) -> None:
    """Raise TypeError for a setting that nothing knows."""
    known = known_settings(kind)
    if unknown := [name for name in settings if name not in known]:
        raise TypeError(f"{unknown[0]!r} is no setting of the networks; they have {', '.join(sorted(known))}.")


def build_encoder(
    kind: EncoderKind, *, settings: Mapping[str, Any], of_critic: bool = False, **sizes: int
) -> ContextEncoder:
    """The actor's encoder, or that of a separate critic."""
    values = {**settings, **sizes, **(CRITIC_KEYS if of_critic else {})}
    encoder = kind.encoder(**read_by(kind.encoder, values))
    if not isinstance(encoder, ContextEncoder):
        raise ValueError(f"{kind.encoder!r} made {type(encoder).__name__}, which is no ContextEncoder.")
    return encoder


def build_memory(
    memory: Callable[..., Memory], settings: Mapping[str, Any], encoders: Sequence[ContextEncoder], **changed: Any
) -> Memory:
    """An empty memory for these encoders, whose windows and episodes it takes.

    Raises:
        ValueError: for another scope than ``"trial"`` where no earlier episode is seen.
    """
    asked = {**settings, **changed}
    values = {name: value for name, value in read_by(memory, asked).items() if name not in ("window", "episodes")}
    scope = asked.get("scope", "trial")
    if scope != "trial" and (encoders[0].episodes == 1 or "scope" not in values):
        raise ValueError(f"scope={scope!r} must be 'trial' with an encoder that sees no windows of earlier episodes.")
    return memory(encoders, **values)


def read_by(builder: Callable[..., Any], values: Mapping[str, Any]) -> dict[str, Any]:
    """Those of the values that the builder takes."""
    known = parameters(builder)
    return {name: value for name, value in values.items() if name in known}


def parameters(builder: Callable[..., Any]) -> dict[str, Parameter]:
    """Arguments of a builder by name; a class that passes ``**others`` on to its parents has theirs as well."""
    if isinstance(builder, partial):
        return {name: of for name, of in parameters(builder.func).items() if name not in builder.keywords}
    of_class = [vars(c)["__init__"] for c in getattr(builder, "__mro__", ()) if "__init__" in vars(c)]
    found: dict[str, Parameter] = {}
    for function in of_class or [builder]:
        own = inspect.signature(function, eval_str=True).parameters
        found = {**own, **found}
        if not any(parameter.kind is Parameter.VAR_KEYWORD for parameter in own.values()):
            break
    named = (Parameter.KEYWORD_ONLY, Parameter.POSITIONAL_OR_KEYWORD)
    return {name: parameter for name, parameter in found.items() if parameter.kind in named and name != "self"}


def is_of(hint: Any, value: Any) -> bool:
    """Whether a value from JSON or YAML is of an annotation's type; numbers must be such that torch can take them."""
    if hint in (Any, Parameter.empty):
        return True
    if get_origin(hint) is Literal:
        return type(value) in (str, int, bool) and value in get_args(hint)
    if get_origin(hint) in (UnionType, Union):
        return any(is_of(option, value) for option in get_args(hint))
    if get_origin(hint) in (Sequence, list, tuple):
        return type(value) is list and all(type(entry) in (int, float) and entry == entry for entry in value)
    if hint is float:
        return type(value) in (int, float) and abs(value) <= torch.finfo().max
    return type(value) is hint and (hint is not int or abs(value) < 2**63)


def choices_of(hint: Any) -> tuple[Any, ...]:
    """The words of a ``Literal``, also within a union; none of other annotations."""
    if get_origin(hint) is Literal:
        return get_args(hint)
    return tuple(c for option in get_args(hint) if option is not NoneType for c in choices_of(option))
