"""Hydra's own multirun of a training recipe, with any launcher that is installed.

    python recipes/toy_ppo.py -m seed=1,2 encoder.window=3,5 run_dir='runs/toy_${encoder.window}_${seed}'
    python recipes/toy_ppo.py -m seed=range(1,5) hydra/launcher=joblib

Each job is the run that its overrides make of the recipe, in a run_dir of its own: the same command continues it.
``recipes/ablate.py`` makes a table of a sweep as well.
"""

import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import hydra
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig

from htrmrl_torchrl.faults import UserError
from recipes.configuration.cells import Cell, expand
from recipes.configuration.compose import CONFIG_DIR, load_config, refusing
from recipes.configuration.paths import in_hydras_words

MULTIRUN = {"-m", "--multirun"}


def sweep(train: Callable[[DictConfig], object], *, config_name: str) -> None:
    """Hands the command line to Hydra; every job's configuration is checked before the first one begins."""
    given = [in_hydras_words(argument) for argument in sys.argv[1:] if argument not in MULTIRUN]
    with refusing():
        _check([argument for argument in given if not argument.startswith("hydra")], config_name)

    def job(_: DictConfig) -> None:
        with refusing():
            GlobalHydra.instance().clear()  # Hydra composes one configuration at a time, and `load_config` its own
            config = load_config(config_name, HydraConfig.get().overrides.task)
            train(config)
            if Cell({}, [], Path(config.run_dir), config.total_frames).summary() is None:
                sys.exit(0)  # a signal that stopped a run stops the jobs after it as well

    sys.argv = [sys.argv[0], "--multirun", *given]
    hydra.main(version_base="1.3", config_path=str(CONFIG_DIR), config_name=config_name)(job)()


def _check(overrides: Sequence[str], config_name: str) -> None:
    taken: set[str] = set()
    for values in expand(overrides)[1]:
        run_dir = load_config(config_name, [f"{key}={value}" for key, value in values.items()]).run_dir
        if run_dir in taken:
            raise UserError(f"two jobs have run_dir={run_dir}: name it by what differs, run_dir='runs/x_${{key}}'")
        taken.add(run_dir)
