"""Checks a recipe's whole configuration before anything is built; the first error gives one sentence. Types come from
the shipped defaults (an integer is accepted for a float, null only where the default is null), words from the library's
signatures and registries. Here are ranges (`RANGES`); `relations.py` has relations between keys.
"""

import difflib
import inspect
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from omegaconf import DictConfig, OmegaConf

from htrmrl_torchrl.dotted import is_dotted_path
from htrmrl_torchrl.evaluation.protocols import PROTOCOLS
from htrmrl_torchrl.faults import UserError
from htrmrl_torchrl.memory.strategies import STRATEGIES, make_strategy
from recipes.configuration.relations import Relation, relations
from recipes.configuration.sizes import fits_memory, training_needs


@dataclass(frozen=True)
class Rule:
    """Allowed values; ``kind`` is the type if the shipped default is null (null stays allowed)."""

    allowed: str
    test: Callable[[Any], bool]
    kind: type = float


def at_least(least: int) -> Rule:
    """A number of at least ``least``."""
    return Rule(f"at least {least}", lambda value: value >= least, int)


def one_of(*choices: str) -> Rule:
    """One of these words."""
    return Rule(" or ".join(choices), lambda value: value in choices, str)


POSITIVE = Rule("greater than 0", lambda value: value > 0)
NOT_EMPTY = Rule("not empty", lambda value: bool(value.strip()), str)

# By the last name of a key, in all recipes and for the user's own encoders.
RANGES: dict[str, Rule] = {
    **dict.fromkeys((
        "name", "device", "run_dir", "resume", "checkpoint", "benchmark", "out", "report", "metric",
    ), NOT_EMPTY),
    **dict.fromkeys((
        "total_frames", "every_frames", "minibatch_frames", "segment_frames", "frames_per_batch", "num_envs",
        "episodes_per_trial", "shortest_trial", "horizon", "window", "episodes", "d_model", "num_heads",
        "intra_layers", "mlp_layers", "max_episodes", "epochs", "grow_to", "grow_over", "goals_per_task",
        "trials_per_goal", "evaluation_episodes", "looks", "max_in_a_row", "keep", "jobs", "rounds",
        "recipe_lanes", "every", "workers",
    ), at_least(1)),
    **dict.fromkeys(
        ("num_workers", "inter_layers", "benchmark_seed", "adaptation_episodes", "entropy_coeff", "goal"), at_least(0)
    ),
    **dict.fromkeys((
        "reward_scale", "init_std", "min_std", "target_kl", "clip_epsilon", "critic_coeff", "max_grad_norm", "lr",
    ), POSITIVE),
    "seed": Rule("from 0 to 2**63 - 1", lambda value: 0 <= value < 2**63, int),
    # A worker needs at least 0.1 s on a busy machine; the kernel counts milliseconds in 31 bits.
    "worker_timeout": Rule("from 0.1 to 1_000_000 seconds", lambda value: 0.1 <= value <= 1_000_000),
    "gamma": Rule("greater than 0 and at most 1", lambda value: 0 < value <= 1),
    "gae_lambda": Rule("between 0 and 1", lambda value: 0 <= value <= 1),
    "dropout": Rule("at least 0 and below 1", lambda value: 0 <= value < 1),
    "schedule": one_of("constant", "linear"),
    "threads": Rule("from 0 to 1024", lambda value: 0 <= value <= 1024, int),
    "size": at_least(128),
    "logger": Rule("a list of names", lambda value: all(type(name) is str for name in value), list),
    "tasks": Rule("a list of names", lambda value: bool(value) and all(type(name) is str for name in value), list),
    "disguises": Rule("a list of names", lambda value: all(type(name) is str for name in value), list),
    "trust": Rule("a list of paths package.module:name", lambda value: all(map(is_dotted_path, value)), list),
}  # fmt: skip

# Keys and prefixes that a continued run may change: none changes what is learned (another device draws other noise).
FREE = (
    "total_frames", "resume", "run_dir", "logger", "device", "workers", "env.num_workers",
    "env.worker_timeout", "env.restart_workers", "faults.", "checkpoint.", "eval.every_frames", "eval.memory_gain",
)  # fmt: skip

MISSING = "???"  # OmegaConf's missing value
KINDS = {bool: "true or false", int: "an integer", float: "a number", str: "a string", list: "a list, as in [1,2]"}


def flatten(config: DictConfig | dict[str, Any]) -> dict[str, Any]:
    """Dotted keys to values, e.g. ``{"seed": 1, "env.name": "ML10", ...}``; only a DictConfig is resolved."""

    def walk(node: dict[str, Any], prefix: str) -> Iterator[tuple[str, Any]]:
        for name, value in node.items():
            if isinstance(value, dict):
                yield from walk(value, f"{prefix}{name}.")
            else:
                yield prefix + name, value

    container: Any = config if isinstance(config, dict) else OmegaConf.to_container(config, resolve=True)
    return dict(walk(container, ""))


def check_keys(asked: Iterable[str], defaults: DictConfig) -> None:
    """Raise :class:`UserError` for the first ``asked`` key that is not in the shipped configuration."""
    known = list(flatten(defaults))
    for key in asked:
        if key in known:
            continue
        members = [name for name in known if name.startswith(f"{key}.")]
        if members:
            raise UserError(f"{key} is a group of keys and cannot be set as a whole; its keys are {', '.join(members)}")
        leaf = key.rsplit(".", 1)[-1]  # the right name in the wrong group is near, too
        near = [name for name in known if name.rsplit(".", 1)[-1] == leaf]
        near += [name for name in difflib.get_close_matches(key, known, n=3, cutoff=0.5) if name not in near]
        nearest = f"the nearest known keys are {', '.join(near)}" if near else "--cfg shows all known keys"
        raise UserError(f"unknown key {key!r}; {nearest}")


def check_choice(group: str, name: str, files: Sequence[str]) -> None:
    """Raise :class:`UserError` unless the group of keys has the chosen file."""
    if name not in files:
        raise UserError(
            f"{group} is {name!r} but must be {', '.join(files[:-1])} or {files[-1]}; single keys of the group are "
            f"written {group}.<key>=value"
        )


def validate(config: DictConfig, defaults: DictConfig) -> None:
    """Check the composed configuration of a training recipe. Raises UserError for the first error."""
    check_values(config, defaults)
    if config.encoder.kind != defaults.encoder.kind and not is_dotted_path(config.encoder.kind):
        raise UserError(
            f"encoder.kind is {config.encoder.kind!r} but must be {defaults.encoder.kind!r} with these keys: choose "
            f"another encoder as a whole, encoder={config.encoder.kind}"
        )
    check_words(config, {"eval.protocol": [name for name, of in PROTOCOLS.items() if not of.biased]})
    _check_strategy(config.memory.strategy)
    check_relations(relations(config))
    check_device(config.device)
    _check_loggers(config.logger)
    _check_signatures(config)
    check_relations([fits_memory(training_needs(config), device=config.device)])
    from recipes.configuration.paths import check_run_folder  # late: it imports this module

    check_run_folder(config.run_dir, config.resume)
    _check_environment(config)


def check_relations(relations: Iterable[Relation]) -> None:
    """Raise :class:`UserError` for the first relation that doesn't hold."""
    for holds, fault in relations:
        if not holds:
            raise UserError(fault)


def check_values(config: DictConfig, defaults: DictConfig, rules: Mapping[str, Rule] | None = None) -> None:
    """Raise UserError for a value of unknown key, wrong type, or out of range (``rules`` by whole key come first)."""
    values, shipped = flatten(config), flatten(defaults)
    check_keys(values, defaults)
    for key, value in values.items():
        if value == MISSING:
            raise UserError(f"{key} is {MISSING}, which stands for a missing value: give one, {key}=<value>")
        _check_value(key, value, shipped[key], (rules or {}).get(key) or RANGES.get(key.rpartition(".")[2]))


def check_words(config: DictConfig, words: Mapping[str, Iterable[str]]) -> None:
    """Raise :class:`UserError` for a key whose value is neither one of its ``words`` nor null."""
    for key, known in words.items():
        if (value := OmegaConf.select(config, key)) is not None and value not in known:
            raise UserError(f"{key} is {value!r} but must be {' or '.join(known)}")


def _check_strategy(name: str) -> None:
    if not is_dotted_path(name) and name not in STRATEGIES:
        raise UserError(f"memory.strategy is {name!r} but must be {' or '.join(STRATEGIES)}, or package.module:name")
    try:
        make_strategy(name)
    except ValueError as error:
        raise UserError(f"memory.strategy is {name}: {error}") from error


def _check_loggers(names: Sequence[str]) -> None:
    from htrmrl_torchrl.runs.loggers import check_loggers  # late: torch takes a while

    try:
        check_loggers(names)
    except ValueError as error:
        raise UserError(f"logger is [{','.join(names)}]: {error}") from error


def _check_signatures(config: DictConfig) -> None:
    """Checks values against the library's signatures, and tries to build an encoder of the user's own."""
    import torch  # late: the checks above need no torch

    from htrmrl_torchrl import TrialGAE, make_env
    from htrmrl_torchrl.agent.networks import build_networks
    from htrmrl_torchrl.agent.registry import check_settings, choices_of, find_kind, is_of, settings_of
    from recipes.configuration.parts import network_settings

    settings = network_settings(config)
    try:
        kind = find_kind(settings["encoder_kind"])
        check_settings(kind, {name: value for name, value in settings.items() if name != "encoder_kind"})
    except (TypeError, ValueError) as error:
        raise UserError(f"encoder.kind is {config.encoder.kind}: {error}") from error
    said = {**settings_of(kind), **inspect.signature(TrialGAE).parameters}
    said["backend"] = inspect.signature(make_env).parameters["backend"]
    for key, value in flatten(config).items():
        group, _, name = key.rpartition(".")
        parameter = said.get(name) or said.get(f"{group}_{name}")
        if parameter is not None and not is_of(parameter.annotation, value):
            allowed = " or ".join(choices_of(parameter.annotation)) or f"of {parameter.annotation}"
            raise UserError(f"{key} is {value!r} but must be {allowed}")
    if is_dotted_path(config.encoder.kind):
        try:
            with torch.device("meta"):  # shapes without numbers
                build_networks(observation_dim=1, action_low=[-1.0], action_high=[1.0], **settings)
        except ValueError as error:
            raise UserError(f"encoder.kind is {config.encoder.kind}: {error}") from error


def _check_value(key: str, value: Any, default: Any, rule: Rule | None) -> None:
    kind = type(default) if default is not None else rule.kind if rule else None
    if kind is None or (value is None and default is None):
        return
    if not (type(value) is kind or (kind is float and type(value) is int)):
        allowed = KINDS[kind] + (" or null" if default is None else "")
        shown = "null" if value is None else f"{value!r}"
        hint = f": write {int(value)}" if kind is int and isinstance(value, float) and value.is_integer() else ""
        raise UserError(f"{key} is {shown} but must be {allowed}{hint}")
    if isinstance(value, float) and not math.isfinite(value):
        raise UserError(f"{key} is {value} but must be finite")
    if rule and not rule.test(value):
        raise UserError(f"{key} is {value!r} but must be {rule.allowed}")


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
    from htrmrl_torchrl.envs.benchmarks import check_benchmark_seed, find_benchmark, is_factory
    from htrmrl_torchrl.envs.disguise import check_kinds
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
        if config.workers > 1:
            raise UserError(f"workers is {config.workers} but must be 1 with a factory, which is {env.name}")
        if config.loss.reward_norm:
            raise UserError(
                f"loss.reward_norm is True but must be false with a factory, whose tasks are unknown: {env.name}"
            )
        for key, default in (("disguises", []), ("shortest_trial", None)):
            if env[key] != default:
                raise UserError(f"env.{key} is {env[key]} but must be {default} with a factory, which is {env.name}")
        return
    try:
        check_kinds(env.disguises, find_benchmark(env.name).layout)
    except ValueError as error:
        raise UserError(f"env.disguises is {env.disguises}: {error}") from error
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
