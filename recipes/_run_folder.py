"""What a run folder says about its run: where it stopped, with which settings, and how it ended."""

import csv
import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from htrmrl_torchrl.checkpoint import RunCheckpoints, latest_checkpoint, read_component, set_aside
from htrmrl_torchrl.evaluation.protocols import named_protocol
from htrmrl_torchrl.files import write_whole
from htrmrl_torchrl.loggers import RunLogger
from htrmrl_torchrl.versions import versions
from recipes._cli import load_config
from recipes._environment import adaptation_episodes
from recipes._relations import longer_trials
from recipes._say import say
from recipes._signals import command_to_continue
from recipes._validate import FREE, UserError, flatten


def checkpoint_to_resume(config: DictConfig, run_dir: Path) -> Path | None:
    """Where the run goes on from; refuses to continue a run with other settings, and passes over damaged files."""
    if config.resume == "never":
        return None
    if config.resume != "auto":
        _check_settings(config, Path(config.resume))
        return Path(config.resume)
    path, damaged = latest_checkpoint(run_dir / "checkpoints")
    if path is None and damaged:
        broken, why = next(iter(damaged.items()))
        raise UserError(
            f"run_dir '{run_dir}' has no whole checkpoint to go on from, {broken} is damaged ({why}): choose another "
            "run_dir, or remove this one"
        )
    if path is not None:
        _check_settings(config, path)
        for broken, why in damaged.items():
            say(f"warning: {broken} is damaged ({why}) and now called {set_aside(broken).name}; using {path.name}")
    return path


def _check_settings(config: DictConfig, path: Path) -> None:
    try:
        own = flatten(OmegaConf.create(read_component(path, "config")))
    except (OSError, ValueError) as error:
        raise UserError(str(error)) from error
    before = flatten(load_config("base")) | own  # a key that is younger than the run: base.yaml has what was before it
    # The encoder's kind first: it changes other keys as well.
    for key, value in sorted(flatten(config).items(), key=lambda item: item[0] != "encoder.kind"):
        if before.get(key) != value and not key.startswith(FREE):
            raise UserError(
                f"{path} is of a run with {key}={before.get(key)} and this one has {key}={value}: a run goes on with "
                "its own settings, so choose another run_dir"
            )


def open_records(run_dir: Path, config: DictConfig, *, frames: int) -> RunLogger:
    """Leaves the settings in ``config.yaml`` and opens the metrics; what is beyond ``frames`` is dropped."""
    text = OmegaConf.to_yaml(config, resolve=True)
    try:
        _drop_beyond(run_dir, frames)
        (run_dir / "checkpoints").mkdir(exist_ok=True)
        write_whole(run_dir / "config.yaml", text)
        logger = RunLogger(run_dir, resume_from_frames=frames if (run_dir / "metrics.csv").exists() else None)
        logger.log_text("config", f"```yaml\n{text}```")
    except OSError as error:
        raise UserError(
            f"run_dir is '{run_dir}' but {error.filename or 'it'} cannot be written: {error.strerror}"
        ) from error
    return logger


def _drop_beyond(run_dir: Path, frames: int) -> None:
    """Removes the summary of another end than this one, and the training's evaluations that will be played again."""
    for report in (run_dir / "evaluations").glob("*_*.json"):
        split, _, at = report.stem.partition("_")
        if split in ("val", "test") and at.isdigit() and int(at) > frames:
            report.unlink()
    if _frames_of_summary(run_dir) not in (None, frames):
        (run_dir / "summary.json").unlink()


def _frames_of_summary(run_dir: Path) -> int | None:
    path = run_dir / "summary.json"
    return int(json.loads(path.read_text())["progress"]["frames"]) if path.exists() else None


def leave_boundary(checkpoints: RunCheckpoints, *, asked: bool) -> None:
    """Saves where the iteration began that could not end; if the user has asked to stop, says how to go on.

    Raises:
        SystemExit: with code 1, if the user has asked and it could not be saved.
    """
    try:
        saved = checkpoints.save()
    except OSError as error:
        say(f"error: the checkpoint could not be written ({error.strerror or error}); older ones are as they were")
        if asked:
            raise SystemExit(1) from None
    else:
        say(f"{'stopped' if asked else 'failed'}; where the iteration began is kept in {saved}, continue with")
        say(f"    {command_to_continue()}")


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
    write_whole(run_dir / "summary.json", json.dumps(summary, indent=2))


def complete_summary(run_dir: Path, config: DictConfig, progress: dict[str, Any]) -> None:
    """Writes the summary of a run that was killed after its last checkpoint and before it, from ``metrics.csv``."""
    if _frames_of_summary(run_dir) == progress["frames"]:
        return
    with (run_dir / "metrics.csv").open(newline="") as file:
        rows = [row for row in csv.DictReader(file) if int(row["frames"]) == progress["frames"]]
    write_summary(run_dir, config, progress, {row["metric"]: float(row["value"]) for row in rows})


def print_results(run_dir: Path, config: DictConfig, metrics: dict[str, float]) -> None:
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
    if any(metric.startswith("eval/") for metric in metrics):
        protocol = named_protocol(config.eval.protocol).changed(adaptation_episodes=adaptation_episodes(config))
        for note in longer_trials(protocol.trial_length, trained=[config.env.episodes_per_trial]):
            print(note)
    print(f"curves: tensorboard --logdir {run_dir.parent}")
