"""What a run folder says about its run: where it stopped, with which settings, and how it ended."""

import csv
import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from htrmrl_torchrl.checkpoint import latest_checkpoint, read_component
from htrmrl_torchrl.versions import versions
from recipes._validate import UserError, flatten


def checkpoint_to_resume(config: DictConfig, run_dir: Path) -> Path | None:
    """Where the run goes on from; refuses to continue a run with other settings."""
    if config.resume == "never":
        return None
    path = latest_checkpoint(run_dir / "checkpoints") if config.resume == "auto" else Path(config.resume)
    if path is None:
        return None
    workers = ("env.num_workers", "env.worker_timeout", "env.restart_workers")
    free = ("total_frames", "resume", "run_dir", *workers, "faults.", "checkpoint.", "eval.")
    try:
        before = flatten(OmegaConf.create(read_component(path, "config")))
    except (FileNotFoundError, ValueError) as error:
        raise UserError(str(error)) from error
    for key, value in flatten(config).items():
        if before.get(key) != value and not key.startswith(free):
            raise UserError(
                f"{path} is of a run with {key}={before.get(key)} and this one has {key}={value}: a run goes on with "
                "its own settings, so choose another run_dir"
            )
    return path


def plain(config: Any) -> dict[str, Any]:
    """A configuration or a part of it as a plain dictionary."""
    container: Any = OmegaConf.to_container(config, resolve=True)
    return container


def commit_of_code() -> str:
    """The state of the code, for the record."""
    if shutil.which("git") is None:
        return "unknown"
    command = ["git", "describe", "--always", "--dirty"]
    answer = subprocess.run(command, cwd=Path(__file__).parent, capture_output=True, text=True)
    return answer.stdout.strip() or "unknown"


def write_summary(run_dir: Path, config: DictConfig, progress: dict[str, Any], metrics: dict[str, float]) -> None:
    """Leaves command, versions, settings and last metrics in ``summary.json``."""
    summary = {
        "command": " ".join(["python", *sys.argv]),
        "versions": versions(),
        "config": plain(config),
        "progress": progress,
        "metrics": metrics,
    }
    (run_dir / "summary.json").write_text(json.dumps(summary, indent=2))


def complete_summary(run_dir: Path, config: DictConfig, progress: dict[str, Any]) -> None:
    """Writes the summary of a run that was killed after its last checkpoint and before it, from ``metrics.csv``."""
    if (run_dir / "summary.json").exists():
        return
    with (run_dir / "metrics.csv").open(newline="") as file:
        rows = [row for row in csv.DictReader(file) if int(row["frames"]) == progress["frames"]]
    write_summary(run_dir, config, progress, {row["metric"]: float(row["value"]) for row in rows})


def print_results(run_dir: Path, metrics: dict[str, float]) -> None:
    """The last metrics in a few lines on the terminal."""
    print(f"\nfinished, everything is in {run_dir}")
    for source, meaning in (
        ("train/", "training, last batch"),
        ("eval/val_", "held-out goals"),
        ("eval/test_", "test"),
    ):
        name = "success" if f"{source}success" in metrics else "return"  # for benchmarks that define no success
        if f"{source}{name}" not in metrics:
            continue
        prefix = f"{source}{name}_by_episode/"
        curve = {int(metric.removeprefix(prefix)): x for metric, x in metrics.items() if metric.startswith(prefix)}
        by_episode = " ".join(f"{curve[k]:.2f}" for k in sorted(curve))
        print(f"{name} {metrics[f'{source}{name}']:.2f} on {meaning + ',':21} by episode {by_episode}")
    print(f"curves: tensorboard --logdir {run_dir.parent}")
