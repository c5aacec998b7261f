"""From what a user says, a run folder or a file or a pattern, to checkpoint files."""

import glob
from collections.abc import Sequence
from pathlib import Path

from omegaconf import DictConfig

from recipes._validate import UserError


def find_checkpoints(pattern: str | None) -> list[Path]:
    """The checkpoint files that the user means; of a run folder the best one on ``val``, else the newest."""
    if pattern is None:
        raise UserError("checkpoint is missing: give a run folder or a checkpoint file, checkpoint=runs/ml10_ppo_seed1")
    found = [Path(pattern)] if Path(pattern).exists() else sorted(map(Path, glob.glob(pattern)))
    if not found:
        raise UserError(f"checkpoint is '{pattern}' but nothing is there")
    return [_of_run(path) if path.is_dir() else path for path in found]


def run_folder_of(checkpoint: Path) -> Path:
    """The folder of the run that a checkpoint belongs to."""
    return checkpoint.parents[1] if checkpoint.parent.name == "checkpoints" else checkpoint.parent


def goals_of(config: DictConfig, checkpoints: Sequence[Path]) -> tuple[str, int]:
    """Benchmark and seed of its goals: as the user says, else those that the agents were trained on.

    Raises:
        UserError: if they were trained on goals of several seeds.
    """
    from htrmrl_torchrl.checkpoint import read_component  # late: torch takes a while

    trained = [read_component(path, "config")["env"] for path in checkpoints]
    benchmark = config.benchmark or trained[0]["name"]
    if config.benchmark_seed is not None:
        return benchmark, config.benchmark_seed
    seeds = sorted({env["benchmark_seed"] for env in trained if env["name"] == benchmark})
    if len(seeds) > 1:
        raise UserError(
            f"benchmark_seed is null but these agents were trained on goals of the seeds {seeds}: give one of them"
        )
    return benchmark, seeds[0] if seeds else 0


def trained_trial_lengths(checkpoints: Sequence[Path]) -> list[int]:
    """Episodes of a trial in the agents' training, each number once."""
    from htrmrl_torchrl.checkpoint import read_component  # late: torch takes a while

    return sorted({int(read_component(path, "config")["env"]["episodes_per_trial"]) for path in checkpoints})


def _of_run(run_dir: Path) -> Path:
    folder = run_dir / "checkpoints"
    for kind in ("best", "step"):
        if files := sorted(folder.glob(f"{kind}-*")):
            return files[-1]
    raise UserError(f"checkpoint is '{run_dir}', a folder without checkpoints/: give a run folder or a checkpoint file")
