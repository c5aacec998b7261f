"""Finds checkpoints from a run folder, the folder of an agent, a file or a pattern. An existing path is taken as it is;
only a missing one is read as a pattern.
"""

import glob
from collections.abc import Sequence
from pathlib import Path

from omegaconf import DictConfig

from htrmrl_torchrl.dotted import check_trusted
from htrmrl_torchrl.faults import UserError
from recipes.configuration.paths import kind_of, names_in


def find_checkpoints(pattern: str | None) -> list[Path]:
    """Checkpoint files and folders of agents; of a run folder the best checkpoint on ``val``, else the newest."""
    if pattern is None:
        raise UserError("checkpoint is missing: give a run folder or a checkpoint file, checkpoint=runs/ml10_ppo_seed1")
    found = [Path(pattern)] if kind_of("checkpoint", pattern) else sorted(map(Path, glob.glob(pattern)))
    if not found:
        raise UserError(f"checkpoint is '{pattern}' but nothing is there")
    return [_of_run(path) if path.is_dir() else _file(path) for path in found]


def one_checkpoint(pattern: str | None) -> Path:
    """The one of `find_checkpoints`; UserError if the pattern matches several."""
    paths = find_checkpoints(pattern)
    if len(paths) > 1:
        raise UserError(f"checkpoint is '{pattern}', which are {len(paths)} checkpoints: give one of them")
    return paths[0]


def check_checkpoints(paths: Sequence[Path]) -> None:
    """Raise UserError for the first one that cannot be read or is no checkpoint."""
    from htrmrl_torchrl.checkpoints.checkpoint import check_saved  # late: torch takes a while

    for path in paths:
        try:
            check_saved(path)
        except OSError as error:
            raise UserError(f"{path} cannot be read: {error.strerror}") from error
        except ValueError as error:
            raise UserError(str(error)) from error


def run_folder_of(checkpoint: Path) -> Path:
    """The run folder of a checkpoint; the folder of an agent itself."""
    if checkpoint.is_dir():
        return checkpoint
    return checkpoint.parents[1] if checkpoint.parent.name == "checkpoints" else checkpoint.parent


def goals_of(config: DictConfig, checkpoints: Sequence[Path]) -> tuple[str, int]:
    """Benchmark and seed of its goals: as configured, else as in training. Raises UserError if the agents were trained
    on goals of several seeds, or on an environment that is not trusted.
    """
    from htrmrl_torchrl.checkpoints.checkpoint import read_environment  # late: torch takes a while

    trained = [read_environment(path) for path in checkpoints]
    if config.benchmark is None:
        try:
            check_trusted(checkpoints[0], [trained[0].name], config.trust)
        except ValueError as error:
            raise UserError(f"{error} Or evaluate on a built-in benchmark, benchmark=NAME.") from error
    benchmark = config.benchmark or trained[0].name
    if config.benchmark_seed is not None:
        return benchmark, config.benchmark_seed
    seeds = sorted({env.benchmark_seed for env in trained if env.name == benchmark})
    if len(seeds) > 1:
        raise UserError(
            f"benchmark_seed is null but these agents were trained on goals of the seeds {seeds}: give one of them"
        )
    return benchmark, seeds[0] if seeds else 0


def trained_trial_lengths(checkpoints: Sequence[Path]) -> list[int]:
    """Episodes per trial in the agents' training, each number once."""
    from htrmrl_torchrl.checkpoints.checkpoint import read_environment  # late: torch takes a while

    return sorted({read_environment(path).episodes_per_trial for path in checkpoints})


def _file(path: Path) -> Path:
    """Refuses devices and pipes: reading them might never end."""
    if (kind := kind_of("checkpoint", path)) != "file":
        raise UserError(
            f"checkpoint is '{path}', a {kind or 'link to nowhere'}: give a run folder or a checkpoint file"
        )
    return path


def _of_run(run_dir: Path) -> Path:
    from htrmrl_torchrl.checkpoints.checkpoint import checkpoints_of  # late: torch takes a while
    from htrmrl_torchrl.checkpoints.folder import is_agent_folder

    if is_agent_folder(run_dir):
        return run_dir
    folder = run_dir / "checkpoints"
    if kind_of("checkpoint", folder) == "folder":
        names_in("checkpoint", folder)  # raises UserError if it cannot be read
        for kind in ("best", "step"):
            if files := checkpoints_of(folder, kind):
                return files[-1]
    raise UserError(f"checkpoint is '{run_dir}', a folder without checkpoints/: give a run folder or a checkpoint file")
