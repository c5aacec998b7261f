"""The state of a run folder: where the run stopped, with which settings, and how it ended. `where_to_start` only
checks; `take_over` then changes the folder, checkpoints before metrics, so that the run can continue after an
interruption in between.
"""

import json
import os
import re
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError

from htrmrl_torchrl.checkpoints.checkpoint import latest_checkpoint, read_component
from htrmrl_torchrl.checkpoints.files import set_aside, write_whole
from htrmrl_torchrl.checkpoints.versions import versions
from htrmrl_torchrl.evaluation.protocols import named_protocol
from htrmrl_torchrl.faults import UserError
from htrmrl_torchrl.runs.checkpoint import RunCheckpoints
from htrmrl_torchrl.runs.console import best_effort, command_line, reason, say
from htrmrl_torchrl.runs.loggers import RunLogger, read_rows
from htrmrl_torchrl.runs.progress import Progress
from htrmrl_torchrl.runs.signals import command_to_continue, gone_back
from htrmrl_torchrl.runs.trackers import RECORDS
from recipes.configuration.compose import CONFIG_DIR, load_config
from recipes.configuration.environment import adaptation_episodes
from recipes.configuration.relations import longer_trials
from recipes.configuration.rules import FREE, flatten

_REPORT = re.compile(r"(?:val|test)_([0-9]+)\.json")  # report of an evaluation beside training
_STAGE = re.compile(r"\..+\.stage")  # left by a process killed while replacing a file


class UnsavedEnd(UserError):
    """The end of a completed run could not be saved: one sentence and exit code 1."""

    exit_code = 1


@dataclass(frozen=True)
class Start:
    """Where a run begins: at a checkpoint or at frame 0; ``damaged`` are newer checkpoints with the reason for each."""

    checkpoint: Path | None
    damaged: dict[Path, str] = field(default_factory=dict)
    follows: bool = False  # the checkpoint is the newest of the folder


def where_to_start(config: DictConfig, run_dir: Path) -> Start:
    """Where the run continues or begins; changes nothing. Raises UserError for a run with other settings, and for
    results without a checkpoint to continue from.
    """
    if config.resume == "never":
        return Start(None)
    if config.resume != "auto":
        _check_settings(config, Path(config.resume))
        check_same_run(config, run_dir)
        return Start(Path(config.resume))
    try:
        path, damaged = latest_checkpoint(run_dir / "checkpoints")
        results = _results(run_dir)
    except OSError as error:
        raise UserError(
            f"run_dir is '{run_dir}' but {error.filename} cannot be read ({reason(error)}), so its progress is "
            "unknown: make it readable (mounted, with permission), or choose another run_dir"
        ) from error
    if path is not None:
        _check_settings(config, path)
        return Start(path, damaged, follows=True)
    if damaged:
        broken, why = next(iter(damaged.items()))
        raise UserError(
            f"run_dir '{run_dir}' has no whole checkpoint to continue from, {broken} is damaged ({why}): choose "
            "another run_dir, or remove this one"
        )
    if results:
        best = sorted((run_dir / "checkpoints").glob("best-*.torchrl"))
        resume = f"continue from the best one with resume={best[-1]}, " if best else ""
        raise UserError(
            f"run_dir '{run_dir}' holds results of a run ({', '.join(results)}) but no checkpoints/step-* to continue "
            f"from: put its checkpoints back, {resume}choose another run_dir, or remove this one"
        )
    return Start(None)


def _results(run_dir: Path) -> list[str]:
    """Files that a new run would delete or mix with its own."""
    names = _entries(run_dir)
    found = [name for name in ("summary.json",) if name in names]
    if "metrics.csv" in names and not _is_without_rows(run_dir / "metrics.csv"):
        found.append("metrics.csv")
    found += ["evaluations"] if any(map(_REPORT.fullmatch, _entries(run_dir / "evaluations"))) else []
    saved = [name for name in _entries(run_dir / "checkpoints") if name.endswith(".torchrl")]
    return found + [f"checkpoints/{name}" for name in sorted(saved)]


def _is_without_rows(path: Path) -> bool:
    try:
        with path.open("rb") as file:
            return len(file.read(100).splitlines()) <= 1
    except OSError:  # unreadable is not empty
        return False


def _entries(folder: Path) -> list[str]:
    """Names in a folder; empty if missing. Raises OSError if it cannot be read, or is a dead link."""
    try:
        return os.listdir(folder)
    except FileNotFoundError:
        if folder.is_symlink():
            raise
        return []


def _check_settings(config: DictConfig, path: Path) -> None:
    try:
        own = flatten(read_component(path, "config"))
    except (OSError, ValueError) as error:
        raise UserError(str(error)) from error
    before = flatten(load_config("base")) | own  # base.yaml has the old value of a newer key
    # The encoder's kind first: it changes other keys as well.
    for key, value in sorted(flatten(config).items(), key=lambda item: item[0] != "encoder.kind"):
        if before.get(key) != value and not key.startswith(FREE):
            raise UserError(
                f"{path} is of a run with {key}={before.get(key)} and this one has {key}={value}: a run continues with "
                "its own settings, so choose another run_dir"
            )


def check_same_run(config: DictConfig, run_dir: Path) -> None:
    """Raise `UserError` if ``config.yaml`` of a run folder has other settings; a damaged file is only warned of."""
    path = run_dir / "config.yaml"
    try:
        text = path.read_text(encoding="utf-8")
        if "${" in text:  # our files have values only; references are not resolved
            raise ValueError("it has references")
        before = flatten(DictConfig(OmegaConf.create(text)))
    except FileNotFoundError:
        return
    except (OSError, ValueError, YAMLError, OmegaConfBaseException, RecursionError) as error:
        say(f"warning: {path} cannot be read ({type(error).__name__}) and is written again")
        return
    for key, value in flatten(config).items():
        if key in before and before[key] != value and not key.startswith(FREE):
            raise UserError(
                f"{run_dir} holds a run with {key}={before[key]} and this one has {key}={value}: choose another "
                "folder, or remove that one"
            )


def take_over(
    run_dir: Path, config: DictConfig, checkpoints: RunCheckpoints, start: Start, *, frames: int
) -> RunLogger:
    """Prepares the folder for a run at ``frames``, the marked state, and opens its metrics. A new run writes its first
    checkpoint. Anything beyond ``frames`` is dropped; damaged files are renamed. Raises UserError if something cannot
    be written; the run can still continue from its old state.
    """
    text = OmegaConf.to_yaml(config, resolve=True)
    with _refused(run_dir):
        for path, why in start.damaged.items():
            say(f"warning: {path} is damaged ({why}) and now called {set_aside(path).name}; using {start.checkpoint}")
        (run_dir / "checkpoints").mkdir(exist_ok=True)
        if not start.follows:
            checkpoints.rewind()
        gone_back()
        for folder in (run_dir, run_dir / "evaluations"):
            for name in filter(_STAGE.fullmatch, _entries(folder)):
                (folder / name).unlink()
        _drop_beyond(run_dir, frames)
        _set_aside_unreadable(run_dir / "metrics.csv")
        write_whole(run_dir / "config.yaml", text)
        continues = any(os.path.lexists(run_dir / name) for name in ("metrics.csv", "tensorboard"))
        logger = RunLogger(
            run_dir,
            resume_from_frames=frames if continues else None,
            loggers=config.logger,
            config=flatten(config),
        )
        if logger.damaged is not None:
            say(
                f"warning: {logger.csv_path} has rows that cannot be read, which are left out; as it was it is now "
                f"called {logger.damaged.name}"
            )
        logger.log_text("config", f"```yaml\n{text}```")
    return logger


@contextmanager
def _refused(run_dir: Path) -> Iterator[None]:
    """Turns an OSError in the folder into a UserError, and removes empty folders."""
    try:
        yield
    except OSError as error:
        with suppress(OSError):
            (run_dir / "checkpoints").rmdir()
        raise UserError(
            f"run_dir is '{run_dir}' but {error.filename or 'its checkpoint'} cannot be written: {reason(error)}"
        ) from error


def remove_records(run_dir: Path) -> None:
    """Removes the files of `take_over` after a run that never began."""
    for name in ("checkpoints", "tensorboard"):
        shutil.rmtree(run_dir / name, ignore_errors=True)
    for name in ("config.yaml", "metrics.csv", RECORDS):
        (run_dir / name).unlink(missing_ok=True)


def _drop_beyond(run_dir: Path, frames: int) -> None:
    """Removes a summary of other frames than these, and later evaluations of the training."""
    reports = run_dir / "evaluations"
    for name in _entries(reports):
        if (match := _REPORT.fullmatch(name)) and int(match[1]) > frames:
            (reports / name).unlink()
    try:
        summary = read_summary(run_dir)
    except ValueError as error:
        aside = set_aside(run_dir / "summary.json").name
        say(f"warning: {error} and now called {aside}; the run writes a new one at its end")
    else:
        if summary is not None and summary["progress"]["frames"] != frames:
            (run_dir / "summary.json").unlink()


def _set_aside_unreadable(path: Path) -> None:
    """Renames an existing file that cannot be read: a dead link, a folder, no permission."""
    try:
        with path.open("rb") as file:
            file.read(1)
    except OSError as error:
        if os.path.lexists(path):
            say(f"warning: {path} cannot be read ({reason(error)}) and is now called {set_aside(path).name}")


def read_summary(run_dir: Path) -> dict[str, Any] | None:
    """The run's ``summary.json``, None if missing. Raises ValueError for a damaged one."""
    path = run_dir / "summary.json"
    try:
        summary: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        whole = type(summary["progress"]["frames"]) is int
        summary["metrics"] = {name: float(value) for name, value in summary["metrics"].items()}
    except FileNotFoundError:
        if not path.is_symlink():
            return None
        raise ValueError(f"{path} is damaged (a link to nothing)") from None
    except OSError as error:
        raise ValueError(f"{path} is damaged (cannot be read: {reason(error)})") from error
    except (ValueError, LookupError, TypeError, AttributeError, RecursionError):
        whole = False
    if not whole:
        raise ValueError(f"{path} is damaged (not a run's summary)")
    return summary


def leave_boundary(checkpoints: RunCheckpoints, *, asked: bool) -> None:
    """Saves the state at the beginning of an unfinished iteration, and prints how to continue. Raises SystemExit with
    code 1 if the user asked to stop and it could not be saved.
    """
    try:
        saved = checkpoints.save()
    except OSError as error:
        say(f"error: the checkpoint could not be written ({reason(error)}); older ones are as they were")
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
    """The version of the code: the commit of a clone, or the version of an installed package."""
    # A git repository around an installed package does not describe it.
    if shutil.which("git") is None or not (CONFIG_DIR.parent / ".git").exists():
        return version("htrmrl_torchrl")
    command = ["git", "describe", "--always", "--dirty"]
    return subprocess.run(command, cwd=CONFIG_DIR, capture_output=True, text=True).stdout.strip() or "unknown"


def write_summary(run_dir: Path, config: DictConfig, progress: Progress, metrics: dict[str, float]) -> None:
    """Writes command, versions, settings and last metrics to ``summary.json``."""
    summary = {
        "command": command_line(),
        "versions": versions(),
        "config": plain(config),
        "progress": asdict(progress),
        "metrics": metrics,
    }
    write_whole(run_dir / "summary.json", json.dumps(summary, indent=2))


def complete_summary(run_dir: Path, config: DictConfig, progress: Progress) -> None:
    """Writes a missing summary of a completed run, from ``metrics.csv``."""
    if read_summary(run_dir) is not None:  # of this end, or `take_over` had removed it
        return
    rows, _ = read_rows(run_dir / "metrics.csv")
    metrics = {name: value for (frames, name, value), _ in rows if frames == progress.frames}
    with best_effort("the summary"):
        write_summary(run_dir, config, progress, metrics)


def finish(
    run_dir: Path, config: DictConfig, checkpoints: RunCheckpoints, progress: Progress, metrics: dict[str, float]
) -> None:
    """Saves the end of a run, writes its summary and prints it; UnsavedEnd if the end cannot be saved."""
    try:
        checkpoints.save()
    except OSError as error:
        raise UnsavedEnd(
            f"the run has played its {progress.frames:,} frames but its last checkpoint could not be written "
            f"({reason(error)}): once it can be, the same command continues from the newest one in {run_dir}"
        ) from error
    with best_effort("the summary"):
        write_summary(run_dir, config, progress, metrics)
    print_results(run_dir, config, metrics)


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
    if "tensorboard" in config.logger:
        print(f"curves: tensorboard --logdir {run_dir.parent}")
