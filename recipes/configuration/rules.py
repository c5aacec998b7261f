"""Checks a recipe's whole configuration before anything is built; the first fault ends in one clear sentence.

A value must have the type of the shipped default (an integer will do for a float, null only where the default is null),
keep its own rule (``RULES``) and fit the others (`_relations`). The library checks values again where it uses them.
"""

import difflib
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from omegaconf import DictConfig, OmegaConf

from htrmrl_torchrl.faults import UserError
from recipes.configuration.relations import Relation, relations
from recipes.configuration.sizes import fits_memory, training_needs


@dataclass(frozen=True)
class Rule:
    """What is allowed for one key; ``kind`` is its type where the shipped default is null (and null stays allowed)."""

    allowed: str
    test: Callable[[Any], bool]
    kind: type | None = None


def at_least(least: int, *, kind: type | None = None) -> Rule:
    """A number of at least ``least``."""
    return Rule(f"at least {least}", lambda value: value >= least, kind)


def one_of(*choices: str, kind: type | None = None) -> Rule:
    """One of these words."""
    return Rule(" or ".join(choices), lambda value: value in choices, kind)


POSITIVE = Rule("greater than 0", lambda value: value > 0)
NOT_EMPTY = Rule("not empty", lambda value: bool(value.strip()))
SEED = Rule("from 0 to 2**63 - 1", lambda value: 0 <= value < 2**63)
# No worker answers within less on a busy machine, and the kernel counts milliseconds in 31 bits.
TIMEOUT = Rule("from 0.1 to 1_000_000 seconds", lambda value: 0.1 <= value <= 1_000_000)

RULES: dict[str, Rule] = {
    "seed": SEED,
    "device": NOT_EMPTY,
    "total_frames": at_least(1),
    "run_dir": NOT_EMPTY,
    "resume": NOT_EMPTY,
    "env.name": NOT_EMPTY,
    "env.num_envs": at_least(1),
    "env.num_workers": at_least(0),
    "env.worker_timeout": TIMEOUT,
    "env.backend": one_of("fast", "official"),
    "env.episodes_per_trial": at_least(1),
    "env.horizon": at_least(1),
    "env.reward_scale": POSITIVE,
    "env.benchmark_seed": at_least(0),
    "encoder.kind": one_of("htrmrl", "trmrl", "rl2", "mlp"),
    "encoder.window": at_least(1),
    "encoder.episodes": at_least(1),
    "encoder.d_model": at_least(1),
    "encoder.num_heads": at_least(1),
    "encoder.intra_layers": at_least(1),
    "encoder.inter_layers": at_least(0),
    "encoder.mlp_layers": at_least(1),
    "encoder.attention": one_of("causal", "full"),
    "encoder.norm": one_of("pre_ln", "tfixup"),
    # Written out: the library is imported after these checks, for that takes time and can fail (MUJOCO_GL).
    "memory.strategy": one_of("recent", "uniform", "uniform_last", "best_return", "diverse", "similar"),
    "memory.scope": one_of("trial", "lane"),
    "memory.max_episodes": at_least(1, kind=int),
    "policy.std": one_of("independent", "dependent"),
    "policy.init_std": POSITIVE,
    "policy.min_std": POSITIVE,
    "critic.kind": one_of("shared", "separate", "single_step"),
    "loss.epochs": at_least(1),
    "loss.target_kl": Rule("greater than 0", lambda value: value > 0, float),
    "loss.minibatch_frames": at_least(1),
    "loss.segment_frames": at_least(1),
    "loss.clip_epsilon": POSITIVE,
    "loss.gamma": Rule("greater than 0 and at most 1", lambda value: 0 < value <= 1),
    "loss.gae_lambda": Rule("between 0 and 1", lambda value: 0 <= value <= 1),
    "loss.entropy_coeff": at_least(0),
    "loss.critic_coeff": POSITIVE,
    "loss.max_grad_norm": POSITIVE,
    "loss.credit": one_of("episode", "trial"),
    "loss.advantage_norm": one_of("batch", "task", "none"),
    "optim.lr": POSITIVE,
    "optim.schedule": one_of("constant", "linear"),
    "optim.target_kl": Rule("greater than 0", lambda value: value > 0, float),
    "collector.frames_per_batch": at_least(1, kind=int),
    "collector.grow_to": at_least(1),
    "collector.grow_over": at_least(1),
    "eval.every_frames": at_least(1),
    "eval.goals_per_task": at_least(1),
    "eval.protocol": one_of("strict", "garage"),
    "eval.adaptation_episodes": at_least(0, kind=int),
    "eval.horizon": at_least(1, kind=int),
    "faults.max_in_a_row": at_least(1),
    "checkpoint.every_frames": at_least(1),
    "checkpoint.keep": at_least(1),
}

# Keys, and beginnings of keys, that a run may change when it goes on: none changes what is learned (another device only
# draws other noise).
FREE = (
    "total_frames", "resume", "run_dir", "device", "env.num_workers", "env.worker_timeout", "env.restart_workers",
    "faults.", "checkpoint.", "eval.every_frames",
)  # fmt: skip

MISSING = "???"  # OmegaConf's
KINDS = {bool: "true or false", int: "an integer", float: "a number", str: "a string", list: "a list, as in [1,2]"}


def flatten(config: DictConfig | dict[str, Any]) -> dict[str, Any]:
    """Dotted keys to values, e.g. ``{"seed": 1, "env.name": "ML10", ...}``; only a configuration's are resolved."""

    def walk(node: dict[str, Any], prefix: str) -> Iterator[tuple[str, Any]]:
        for name, value in node.items():
            if isinstance(value, dict):
                yield from walk(value, f"{prefix}{name}.")
            else:
                yield prefix + name, value

    container: Any = config if isinstance(config, dict) else OmegaConf.to_container(config, resolve=True)
    return dict(walk(container, ""))


def check_keys(asked: Iterable[str], defaults: DictConfig) -> None:
    """Raise :class:`UserError` for the first of the ``asked`` keys that the shipped configuration doesn't have."""
    known = list(flatten(defaults))
    for key in asked:
        if key in known:
            continue
        members = [name for name in known if name.startswith(f"{key}.")]
        if members:
            raise UserError(f"{key} is a group of keys and cannot be set as a whole; its keys are {', '.join(members)}")
        leaf = key.rsplit(".", 1)[-1]  # the right name in the wrong group is near as well
        near = [name for name in known if name.rsplit(".", 1)[-1] == leaf]
        near += [name for name in difflib.get_close_matches(key, known, n=3, cutoff=0.5) if name not in near]
        nearest = f"the nearest known keys are {', '.join(near)}" if near else "--cfg shows all known keys"
        raise UserError(f"unknown key {key!r}; {nearest}")


def check_choice(group: str, name: str, files: Sequence[str]) -> None:
    """Raise :class:`UserError` unless ``files`` of a group of keys has the chosen one."""
    if name not in files:
        raise UserError(
            f"{group} is {name!r} but must be {', '.join(files[:-1])} or {files[-1]}; single keys of the group are "
            f"written {group}.<key>=value"
        )


def validate(config: DictConfig, defaults: DictConfig) -> None:
    """Check the composed configuration of a training recipe against the shipped one.

    Raises:
        UserError: for the first fault: what was received, what is allowed.
    """
    check_values(config, defaults, RULES)
    if config.encoder.kind != defaults.encoder.kind:
        raise UserError(
            f"encoder.kind is {config.encoder.kind!r} but must be {defaults.encoder.kind!r} with these keys: choose "
            f"another encoder as a whole, encoder={config.encoder.kind}"
        )
    check_relations(relations(config))
    check_device(config.device)
    check_relations([fits_memory(training_needs(config), device=config.device)])
    from recipes.configuration.paths import check_run_folder  # late: it imports this module

    check_run_folder(config.run_dir, config.resume)
    _check_environment(config)


def check_relations(relations: Iterable[Relation]) -> None:
    """Raise :class:`UserError` for the first one that doesn't hold."""
    for holds, fault in relations:
        if not holds:
            raise UserError(fault)


def check_values(config: DictConfig, defaults: DictConfig, rules: Mapping[str, Rule]) -> None:
    """Check each value by itself: known key, type of the shipped default, its rule. Raises :class:`UserError`."""
    values, shipped = flatten(config), flatten(defaults)
    check_keys(values, defaults)
    for key, value in values.items():
        if value == MISSING:
            raise UserError(f"{key} is {MISSING}, which stands for a missing value: give one, {key}=<value>")
        _check_value(key, value, shipped[key], rules.get(key))


def _check_value(key: str, value: Any, default: Any, rule: Rule | None) -> None:
    kind = type(default) if default is not None else rule.kind if rule else None
    if kind is None or (value is None and default is None):
        return
    if not (type(value) is kind or (kind is float and type(value) is int)):
        allowed = KINDS[kind] + (" or null" if default is None else "")
        shown = "null" if value is None else f"{value!r}"
        raise UserError(f"{key} is {shown} but must be {allowed}{_whole_number_hint(value, kind)}")
    if isinstance(value, float) and not math.isfinite(value):
        raise UserError(f"{key} is {value} but must be finite")
    if rule and not rule.test(value):
        raise UserError(f"{key} is {value!r} but must be {rule.allowed}")


def _whole_number_hint(value: Any, kind: type) -> str:
    return f": write {int(value)}" if kind is int and isinstance(value, float) and value.is_integer() else ""


def check_device(name: str) -> None:
    """Raise :class:`UserError` unless torch has this device."""
    import torch  # late: environment workers import this module, and need no torch

    try:
        device = torch.device(name)
    except RuntimeError:
        raise UserError(f"device is {name!r} but must be cpu, cuda or cuda:<n>") from None
    if device.type not in ("cpu", "cuda"):
        raise UserError(f"device is {name!r} but must be cpu, cuda or cuda:<n>")
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise UserError(f"device is {name!r} but {torch.cuda.device_count()} CUDA devices are available")


def _check_environment(config: DictConfig) -> None:
    # late: these imports take seconds, the checks above none
    from htrmrl_torchrl.envs import check_name, num_goals, task_names
    from htrmrl_torchrl.envs.benchmarks import check_benchmark_seed, is_factory
    from htrmrl_torchrl.envs.factory import check_factory, resolve_horizon

    env, goals_per_task = config.env, config.eval.goals_per_task
    try:
        check_name(env.name)
        check_benchmark_seed(env.benchmark_seed)
    except ValueError as error:
        raise UserError(f"env.name={env.name}, env.benchmark_seed={env.benchmark_seed}: {error}") from error
    if is_factory(env.name):
        try:
            check_factory(env.name)
        except ValueError as error:
            raise UserError(f"env.name is {env.name}: {error}") from error
        if env.num_workers:
            raise UserError(f"env.num_workers is {env.num_workers} but must be 0 with a factory, which is {env.name}")
        if config.loss.reward_norm:
            raise UserError(
                f"loss.reward_norm is True but must be false with a factory, whose tasks nobody knows: {env.name}"
            )
        return
    try:
        task_names(env.name, "test")  # evaluated during training
    except ValueError as error:
        raise UserError(f"env.name is {env.name}: {error}") from error
    for key, horizon in (("env.horizon", env.horizon), ("eval.horizon", config.eval.horizon)):
        try:
            resolve_horizon(env.name, horizon)
        except ValueError as error:
            raise UserError(f"{key} is {horizon}: {error}") from error
    if goals_per_task > num_goals(env.name):
        raise UserError(
            f"eval.goals_per_task is {goals_per_task} but must be at most {num_goals(env.name)}, the goals that "
            f"{env.name} has for each task"
        )
