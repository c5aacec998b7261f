"""Command line of the recipes: compose the Hydra configuration, check it as a whole, run.

    python recipes/ml10_ppo.py encoder.window=8 env.name=ML1:push-v3     overrides in Hydra's grammar
    python recipes/ml10_ppo.py seed=2 --cfg                              show the resolved configuration and stop
    python recipes/ml10_ppo.py --config-dir mine encoder=my_encoder      mine/encoder/my_encoder.yaml as well

Hydra's compose API replaces ``@hydra.main``: all checks precede building, an error is one sentence, and Hydra changes
no working directory and sets up no logging. Sweeps: ``recipes/ablate.py``, or `recipes.configuration.sweep`.
"""

import os
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from hydra import compose, initialize_config_dir
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf, open_dict
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError

from htrmrl_torchrl.envs.opengl import check_import
from htrmrl_torchrl.extras import require
from htrmrl_torchrl.faults import UserError
from htrmrl_torchrl.runs.console import unfailing_output
from recipes.configuration.help import usage
from recipes.configuration.paths import PATHS, expanded, in_hydras_words, literally, quoted
from recipes.configuration.rules import check_choice, check_keys, flatten, validate

# Waiting threads of torch spin, by default for milliseconds. On shared cores the other thread may not be running, which
# makes an update many times slower. Set before torch is imported, which reads it.
os.environ.setdefault("GOMP_SPINCOUNT", "2000")

Check = Callable[[DictConfig, DictConfig], None]
CONFIG_DIR = Path(__file__).resolve().parents[2] / "configs"

# What parsers raise for unreadable text (too deep, too long a number); for use around parsers only.
UNREADABLE = (HydraException, OmegaConfBaseException, YAMLError, RecursionError, ValueError, OverflowError)

__all__ = ["CONFIG_DIR", "UNREADABLE", "UserError", "load_config", "parse_override", "refusing", "run_recipe"]


def run_recipe(
    main: Callable[[DictConfig], object],
    *,
    config_name: str,
    check: Check = validate,
    arguments: Sequence[str] | None = None,
    config_dir: Path | None = None,
) -> None:
    """Run ``main`` with ``configs/<config_name>.yaml`` and the overrides on the command line.

    ``main`` receives a read-only, resolved, checked configuration. A :class:`UserError` ends the process with one
    sentence on stderr and its exit code (2 by default); every other exception keeps its traceback.

    Args:
        main: the recipe.
        config_name: name of its file, without the ending.
        check: raises :class:`UserError` for a configuration, given the shipped one; by default for a training recipe.
        arguments: overrides and options; by default those of the process.
        config_dir: a folder with the user's own YAML files, unless ``--config-dir`` gives one.
    """
    with refusing():
        options, overrides = _read_arguments(sys.argv[1:] if arguments is None else arguments)
        if (folder := options.get("--config-dir")) is not None:
            config_dir = Path(folder)
            if not folder or not config_dir.is_dir():
                raise UserError(f"--config-dir is '{folder}' but must be a folder with YAML files")
        if "--help" in options:
            config, _ = _composed(config_name, (), None, config_dir)
            groups = {str(key): _files_of(str(key), config_dir) for key in config}
            print(usage((main.__doc__ or "").strip(), config, groups, config_name=config_name, folder=CONFIG_DIR))
            return
        try:
            check_import()  # an unusable MUJOCO_GL would fail at the first import of the library
        except RuntimeError as error:
            raise UserError(str(error)) from error
        config = load_config(config_name, overrides, check, config_dir=config_dir)
        if "--cfg" in options:
            print(OmegaConf.to_yaml(config, resolve=True).rstrip())
            return
        require("cli", "tqdm", "matplotlib")
        main(config)


def _read_arguments(arguments: Sequence[str]) -> tuple[dict[str, str], list[str]]:
    options, overrides = dict[str, str](), list[str]()
    rest = iter(arguments)
    for argument in rest:
        name, equals, value = argument.partition("=")
        if not argument.startswith("-"):
            overrides.append(argument)
        elif name == "--config-dir":
            options[name] = value if equals else next(rest, "")
        elif argument in ("-h", "--help", "--cfg"):
            options["--help" if argument == "-h" else argument] = ""
        else:
            raise UserError(
                f"unknown option {argument}: known are --help, --cfg, --config-dir <folder> and overrides written "
                "key=value"
            )
    return options, overrides


@contextmanager
def refusing() -> Iterator[None]:
    """Within the block a :class:`UserError` ends the process with its sentence on stderr and its exit code."""
    with unfailing_output():
        try:
            yield
        except UserError as error:
            print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
            sys.exit(error.exit_code)


def load_config(
    config_name: str, overrides: Sequence[str] = (), check: Check = validate, *, config_dir: Path | None = None
) -> DictConfig:
    """Compose, check, resolve and freeze a configuration. Raises UserError for the first error.

    Args:
        config_name: name of a file in ``configs``, without the ending, or of a training configuration in `config_dir`.
        overrides: ``key=value`` in Hydra's grammar; keys can be changed, not added or removed. ``encoder=<file>``
            replaces the keys of a group by those of ``encoder/<file>.yaml``.
        check, config_dir: see `run_recipe`.
    """
    overrides = [in_hydras_words(override) for override in overrides]
    chosen = _chosen_files(overrides, config_dir)
    own = config_dir is not None and (config_dir / f"{config_name}.yaml").is_file()
    folder = config_dir if own else CONFIG_DIR
    with _refused(config_name):
        defaults, groups = _composed(config_name, chosen.values(), folder, config_dir)
        if own:  # the user's own file may have all keys of a training configuration
            defaults, _ = _composed("base", groups, CONFIG_DIR, config_dir)
    check_keys((key for key in _keys(overrides) if key not in chosen), defaults)
    with _refused(config_name):
        whole, _ = _composed(config_name, overrides, folder, config_dir)
        config = _frozen(OmegaConf.to_container(whole, resolve=True))
    if missing := flatten(defaults).keys() - flatten(config).keys():
        raise UserError(
            f"{config_name}.yaml has no {min(missing)}: begin it with 'defaults: [base, _self_]', which gives every key"
        )
    check(config, defaults)
    return config


@contextmanager
def _refused(name: str) -> Iterator[None]:
    """Turns errors of Hydra and OmegaConf about unreadable files and overrides into a UserError."""
    try:
        yield
    except YAMLError as error:
        raise UserError(f"{name}.yaml cannot be read: {error}") from error
    except UNREADABLE as error:
        raise UserError(next(iter(str(error).splitlines()), type(error).__name__)) from error


def _composed(
    name: str, overrides: Iterable[str], folder: Path | None, other: Path | None
) -> tuple[DictConfig, list[str]]:
    """A file in `folder`, which may build on files in ``configs`` and in the `other` folder, and the group files
    chosen.
    """
    folder = folder or CONFIG_DIR
    search = ",".join(quoted(f"file://{path.absolute()}") for path in (CONFIG_DIR, other) if path not in (folder, None))
    with initialize_config_dir(version_base="1.3", config_dir=str(folder.absolute())):
        config = compose(name, overrides=[f"hydra.searchpath=[{search}]", *overrides], return_hydra_config=True)
    choices = config.hydra.runtime.choices.items()
    with open_dict(config):
        del config["hydra"]
    return config, [f"{group}={file}" for group, file in choices if not group.startswith("hydra/")]


def _frozen(resolved: Any) -> DictConfig:
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


def _chosen_files(overrides: Sequence[str], config_dir: Path | None) -> dict[str, str]:
    """The overrides that choose a group's file, by group. Raises UserError for missing files."""
    chosen = {}
    for override in overrides:
        group, _, name = override.partition("=")
        if group.isidentifier() and (files := _files_of(group, config_dir)):
            check_choice(group, name, files)
            chosen[group] = override
    return chosen


def _files_of(group: str, config_dir: Path | None) -> list[str]:
    """File names of a group of keys; empty if the key is not a group."""
    folders = [CONFIG_DIR] if config_dir is None else [CONFIG_DIR, config_dir]
    return sorted({path.stem for folder in folders for path in (folder / group).glob("*.yaml")})


def _keys(overrides: Sequence[str]) -> list[str]:
    """Keys that the overrides set. Raises UserError for anything but plain ``key=value``."""
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
    """Hydra's reading of an override. Raises :class:`UserError` if it cannot be read."""
    try:
        return OverridesParser.create().parse_override(override)
    except UNREADABLE:
        shown = repr(override) if len(override) <= 200 else f"{override[:200]!r}... ({len(override)} characters)"
        raise UserError(
            f"cannot read {shown}: overrides are written key=value, and a value with brackets, commas or "
            """spaces is quoted for Hydra too, as in 'env.name="custom:[reach-v3]/[push-v3]"'"""
        ) from None
