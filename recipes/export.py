"""Write an agent as one small file: ``python recipes/export.py checkpoint=RUN_OR_CHECKPOINT out=agent.torchrl``."""

from pathlib import Path

from omegaconf import DictConfig

from htrmrl_torchrl.faults import UserError
from htrmrl_torchrl.runs.signals import ending_at_once
from recipes.configuration.compose import run_recipe
from recipes.configuration.find import check_checkpoints, one_checkpoint
from recipes.configuration.paths import check_file, kind_of, writing
from recipes.configuration.rules import check_values


def check(config: DictConfig, defaults: DictConfig) -> None:
    """Raise UserError for the first fault that shows before a checkpoint is read."""
    check_values(config, defaults)


def run(config: DictConfig) -> None:
    """Write the agent of a checkpoint to a file of its own; everything that plays or evaluates reads it."""
    from htrmrl_torchrl.checkpoints.checkpoint import export_agent, read_component  # late: torch takes a while

    path = one_checkpoint(config.checkpoint)
    if config.out is None:
        raise UserError("out is missing: give the file to write, out=agent.torchrl")
    out = Path(config.out)
    check_file("out", out)
    check_checkpoints([path])
    _check_replaceable(out, path)
    try:
        with writing(str(out)):
            export_agent(path, out)
    except ValueError as error:  # what is in the checkpoint
        raise UserError(str(error)) from error
    frames = read_component(out, "progress")["frames"]
    print(f"{out}: {out.stat().st_size / 1e6:.1f} MB, the agent of {path} after {frames:,} frames")


def _check_replaceable(out: Path, checkpoint: Path) -> None:
    """Raise UserError if a run would lose a checkpoint: an agent alone is nothing to go on from."""
    from htrmrl_torchrl.checkpoints.archive import check_archive

    if kind_of("out", out) is None:
        return
    if out.samefile(checkpoint):  # links of both kinds too
        raise UserError(f"out is '{out}', which is the checkpoint itself: give another file")
    try:
        held = check_archive(out)
    except (ValueError, OSError):  # some other file
        return
    if "optimizer" in held:
        raise UserError(f"out is '{out}', a checkpoint that a run goes on from: give another file")


if __name__ == "__main__":
    with ending_at_once():
        run_recipe(run, config_name="export", check=check)
