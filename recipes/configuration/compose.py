"""Command line of the recipes: compose the Hydra configuration, check all of it, run.

    python recipes/ml10_ppo.py encoder.window=8 env.name=ML1:push-v3     overrides in Hydra's grammar
    python recipes/ml10_ppo.py seed=2 --cfg                              show the resolved configuration and stop

Paths are read as they are written, see `_paths`.

Hydra's compose API is used instead of ``@hydra.main``: the configuration is checked as a whole before anything is
built, a fault is one sentence instead of a pruned traceback, and no working directory, ``outputs/`` folder or logging
is set up behind the recipe's back. Sweeps: ``recipes/ablate.py``, or Hydra's own (`recipes.configuration.sweep`).
"""

import os
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from hydra import compose, initialize_config_dir
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from htrmrl_torchrl.envs.opengl import check_import
from htrmrl_torchrl.faults import UserError
from htrmrl_torchrl.runs.console import unfailing_output
from recipes.configuration.paths import PATHS, expanded, in_hydras_words, literally
from recipes.configuration.rules import check_choice, check_keys, validate

# Threads of torch that wait for each other spin, by default for milliseconds. Where cores are shared with workers or
# other programs, the one waited for may not be running, and an update becomes many times slower. Read when torch is
# imported, which is after this.
os.environ.setdefault("GOMP_SPINCOUNT", "2000")

Check = Callable[[DictConfig, DictConfig], None]
CONFIG_DIR = Path(__file__).resolve().parents[2] / "configs"

# What a parser raises for text that it cannot read: too deep, too long a number. Around parsers alone.
UNREADABLE = (HydraException, OmegaConfBaseException, RecursionError, ValueError, OverflowError)

__all__ = ["CONFIG_DIR", "UNREADABLE", "UserError", "load_config", "parse_override", "refusing", "run_recipe"]


def run_recipe(main: Callable[[DictConfig], object], *, config_name: str, check: Check = validate) -> None:
    """Run ``main`` with ``configs/<config_name>.yaml`` and the overrides on the command line.

    ``main`` receives a read-only, resolved configuration that has been checked. A :class:`UserError`, from the checks
    or from ``main``, ends the process with one sentence on stderr and its exit code (2; other ends have their own);
    every other exception keeps its traceback.

    Args:
        main: the recipe.
        config_name: name of its file in ``configs``, without the ending.
        check: raises :class:`UserError` for the first fault of a configuration, given the shipped one; by default that
            of a training recipe.
    """
    options = {argument for argument in sys.argv[1:] if argument.startswith("-")}
    overrides = [argument for argument in sys.argv[1:] if not argument.startswith("-")]
    with refusing():
        if options & {"-h", "--help"}:
            print(_help(main, config_name))
            return
        if unknown := options - {"--cfg"}:
            raise UserError(
                f"unknown option {sorted(unknown)[0]}: known are --help, --cfg and overrides written key=value"
            )
        _check_rendering()
        config = load_config(config_name, overrides, check)
        if "--cfg" in options:
            print(OmegaConf.to_yaml(config, resolve=True).rstrip())
            return
        main(config)


@contextmanager
def refusing() -> Iterator[None]:
    """Meanwhile a :class:`UserError` ends the process with its sentence on stderr and its exit code."""
    with unfailing_output():
        try:
            yield
        except UserError as error:
            print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
            sys.exit(error.exit_code)


def _check_rendering() -> None:
    """An unusable ``MUJOCO_GL`` is a fault of the user's as well, and shows in the first import of the library."""
    try:
        check_import()
    except RuntimeError as error:
        raise UserError(str(error)) from error


def load_config(config_name: str, overrides: Sequence[str] = (), check: Check = validate) -> DictConfig:
    """Compose, check, resolve and freeze a configuration.

    Args:
        config_name: name of a file in ``configs``, without the ending.
        overrides: ``key=value`` in Hydra's grammar; keys can be changed, not added or removed. ``encoder=<file>``
            replaces the keys of a group by those of ``configs/encoder/<file>.yaml``.
        check: see `run_recipe`.

    Raises:
        UserError: for the first fault: what was received, what is allowed.
    """
    overrides = [in_hydras_words(override) for override in overrides]
    with initialize_config_dir(version_base="1.3", config_dir=str(CONFIG_DIR)):
        chosen = _chosen_files(overrides, compose(config_name))
        defaults = compose(config_name, overrides=list(chosen.values()))
        check_keys((key for key in _keys(overrides) if key not in chosen), defaults)
        try:
            resolved = OmegaConf.to_container(compose(config_name, overrides=overrides), resolve=True)
        except UNREADABLE as error:
            raise UserError(_first_line(error)) from error
    config = _frozen(resolved)
    check(config, defaults)
    return config


def _frozen(resolved: Any) -> DictConfig:
    """What was resolved as a configuration whose values are what they say, and whose paths begin at home."""

    def literal(value: Any) -> Any:
        if isinstance(value, dict):
            return {key: literal(entry) for key, entry in value.items()}
        if isinstance(value, list):
            return [literal(entry) for entry in value]
        return literally(value) if isinstance(value, str) else value

    for key in PATHS:
        if isinstance(path := resolved.get(key), str):
            resolved[key] = expanded(key, path)
    config: DictConfig = OmegaConf.create(literal(resolved))
    OmegaConf.set_struct(config, True)
    OmegaConf.set_readonly(config, True)
    return config


def _first_line(error: Exception) -> str:
    return next(iter(str(error).splitlines()), type(error).__name__)


def _chosen_files(overrides: Sequence[str], defaults: DictConfig) -> dict[str, str]:
    """The overrides that choose a group's file, by group, after refusing files that are not there."""
    chosen = {}
    for override in overrides:
        group, _, name = override.partition("=")
        if group in _groups(defaults):
            check_choice(group, name, _files_of(group))
            chosen[group] = override
    return chosen


def _groups(defaults: DictConfig) -> list[str]:
    return [str(key) for key in defaults if (CONFIG_DIR / str(key)).is_dir()]


def _files_of(group: str) -> list[str]:
    return sorted(path.stem for path in (CONFIG_DIR / group).glob("*.yaml"))


def _keys(overrides: Sequence[str]) -> list[str]:
    """Keys that the overrides set, after refusing what is no plain ``key=value``."""
    keys = []
    for override in overrides:
        parsed = parse_override(override)
        if parsed.is_add() or parsed.is_force_add() or parsed.is_delete() or parsed.package:
            raise UserError(f"{override!r}: keys can be changed but not added or removed, write key=value")
        if parsed.is_sweep_override():
            raise UserError(
                f"{override!r} asks for a sweep: start the recipe once for each value, a training recipe with -m, or "
                "recipes/ablate.py"
            )
        keys.append(parsed.key_or_group)
    return keys


def parse_override(override: str) -> Override:
    """An override in Hydra's reading. Raises :class:`UserError` for what is none."""
    try:
        return OverridesParser.create().parse_override(override)
    except UNREADABLE:
        shown = repr(override) if len(override) <= 200 else f"{override[:200]!r}... ({len(override)} characters)"
        raise UserError(
            f"cannot read {shown}: overrides are written key=value, and a value with brackets, commas or "
            """spaces is quoted for Hydra too, as in 'env.name="custom:[reach-v3]/[push-v3]"'"""
        ) from None


def _help(main: Callable[[DictConfig], object], config_name: str) -> str:
    with initialize_config_dir(version_base="1.3", config_dir=str(CONFIG_DIR)):
        config = compose(config_name)
    choices = "".join(
        f"{group}=<{'|'.join(_files_of(group))}> replaces that group of keys.\n" for group in _groups(config)
    )
    return (
        f"usage: python {sys.argv[0]} [--help] [--cfg] [key=value ...]\n\n"
        f"{(main.__doc__ or '').strip()}\n\n"
        f"{choices}"
        f"--cfg shows the resolved configuration and stops. Keys and defaults (the files in {CONFIG_DIR} explain each):"
        f"\n\n{OmegaConf.to_yaml(config)}"
    )
