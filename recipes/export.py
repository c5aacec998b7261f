"""A trained agent as one small file: ``python recipes/export.py checkpoint=RUN_OR_CHECKPOINT out=agent.torchrl``."""

from dataclasses import replace
from pathlib import Path

from omegaconf import DictConfig

from recipes._cli import run_recipe
from recipes._find import find_checkpoints
from recipes._validate import NOT_EMPTY, UserError, check_values

RULES = {"checkpoint": replace(NOT_EMPTY, kind=str), "out": replace(NOT_EMPTY, kind=str)}


def check(config: DictConfig, defaults: DictConfig) -> None:
    """Raise UserError for the first fault that shows before a checkpoint is read."""
    check_values(config, defaults, RULES)


def run(config: DictConfig) -> None:
    """Write the agent of a checkpoint to a file of its own; everything that plays or evaluates reads it."""
    from htrmrl_torchrl.checkpoint import export_agent, read_component  # late: torch takes a while

    paths = find_checkpoints(config.checkpoint)
    if config.out is None:
        raise UserError("out is missing: give the file to write, out=agent.torchrl")
    if len(paths) > 1:
        raise UserError(f"checkpoint is '{config.checkpoint}', which is {len(paths)} of them: an agent is of one")
    if Path(config.out).is_dir():
        raise UserError(f"out is '{config.out}', a folder: give the file to write, out={config.out}/agent.torchrl")
    try:
        out = export_agent(paths[0], config.out)
    except (ValueError, OSError) as error:
        raise UserError(str(error)) from error
    frames = read_component(out, "progress")["frames"]
    print(f"{out}: {out.stat().st_size / 1e6:.1f} MB, the agent of {paths[0]} after {frames:,} frames")


if __name__ == "__main__":
    run_recipe(run, config_name="export", check=check)
