"""Start of a training recipe: signals are handled first, slow imports follow."""

import sys
from typing import TYPE_CHECKING

from htrmrl_torchrl.runs.signals import command_to_continue, ending_at_once

if TYPE_CHECKING:
    from omegaconf import DictConfig


def start_training(config_name: str) -> None:
    """Run the recipe of ``configs/<config_name>.yaml`` with the overrides on the command line; several with ``-m``."""
    # Before the first iteration a signal loses nothing: the run's state is on disk.
    with ending_at_once(sentence=_stopped, status=0):
        from recipes.configuration.compose import run_recipe
        from recipes.configuration.sweep import MULTIRUN, sweep

        if MULTIRUN & {*sys.argv[1:]}:
            sweep(_train, config_name=config_name)
            return
        run_recipe(_train, config_name=config_name)


def start_training_of_file() -> None:
    """Run the configuration whose YAML file is the first argument; it may build on the shipped ones by their names."""
    with ending_at_once(sentence=_stopped, status=0):
        from recipes.configuration.compose import refusing, run_recipe
        from recipes.configuration.paths import own_configuration

        if sys.argv[1:] in (["--help"], ["-h"]):
            print("usage: python recipes/train.py my_ml10.yaml [key=value ...]; my_ml10.yaml --help lists its keys")
            return
        with refusing():
            file = own_configuration(sys.argv[1:])
        run_recipe(_train, config_name=file.stem, config_dir=file.parent, arguments=sys.argv[2:])


def _stopped() -> str:
    return f"stopped; nothing is lost, continue with\n    {command_to_continue()}"


def _train(config: "DictConfig") -> None:
    """One training run in ``run_dir``; continues where a run there has stopped."""
    from recipes.ppo import train

    train(config)
