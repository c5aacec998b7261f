"""Cells of an ablation: planning, finished ones, and their results in a table. A cell is one run of a training recipe,
with one value per axis and one seed. Its folder is named by its values, so the same command finds it again.
"""

import itertools
import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

from hydra.core.override_parser.types import ChoiceSweep, Glob, Override, RangeSweep

from htrmrl_torchrl.faults import UserError
from htrmrl_torchrl.runs.console import reason, say
from recipes.configuration.compose import UNREADABLE, load_config, parse_override
from recipes.configuration.paths import in_hydras_words, path_override, safe_name

MOST_CELLS = 10_000


@dataclass(frozen=True)
class Cell:
    """One run: its values on the axes ``{key: value as written}``, all its overrides and its folder."""

    values: dict[str, str]
    overrides: list[str]
    run_dir: Path
    total_frames: int

    def summary(self) -> dict[str, Any] | None:
        """The run's summary; None if it has to continue, or if the summary is damaged and must be written again."""
        from recipes.configuration.run_folder import read_summary  # late: torch takes a while

        try:
            summary = read_summary(self.run_dir)
        except ValueError:
            return None
        return None if summary is None or summary["progress"]["frames"] < self.total_frames else summary


def expand(overrides: Sequence[str]) -> tuple[list[str], list[dict[str, str]]]:
    """The axes (keys with several values) and all combinations ``{key: value}``, as Hydra's ``--multirun`` reads them.

    Raises UserError for an override that cannot be read, or an endless sweep.

    Example:
        >>> expand(["a=1,2", "b=x", "seed=range(1,3)"])[0]
        ['a', 'seed']
    """
    parsed = [parse_override(override) for override in overrides]
    _check_sweeps(parsed)
    try:
        values = {override.get_key_element(): _values(override) for override in parsed}
    except UNREADABLE as error:
        raise UserError(next(iter(str(error).splitlines()), type(error).__name__)) from error
    cells = [dict(zip(values, combination, strict=True)) for combination in itertools.product(*values.values())]
    return [key for key, several in values.items() if len({*several}) > 1], cells


def _values(override: Override) -> list[str]:
    if not override.is_sweep_override():
        return [override.get_value_element_as_str()]
    if not override.is_discrete_sweep():
        raise UserError(f"{override.input_line!r} is no list of values: write {override.key_or_group}=a,b")
    return [*override.sweep_string_iterator()]


def _check_sweeps(overrides: Sequence[Override]) -> None:
    """Raise UserError if a key is given twice, or for more than `MOST_CELLS` combinations."""
    cells, first = 1, dict[str, Override]()
    for override in overrides:
        if (other := first.setdefault(override.key_or_group, override)) is not override:
            raise UserError(f"{other.input_line!r} and {override.input_line!r} set the same key: give it once")
    for override in overrides:
        cells *= _number_of_values(override)
        if cells > MOST_CELLS:
            raise UserError(f"these overrides span more than {MOST_CELLS:,} cells: sweep fewer values")


def _number_of_values(override: Override) -> int:
    """The number of values without making them: a range may be endless."""
    sweep = override.value()
    if isinstance(sweep, Glob):
        raise UserError(f"{override.input_line!r} is a pattern of files: write the values, {override.key_or_group}=a,b")
    if not isinstance(sweep, RangeSweep):
        return len(sweep.list) if isinstance(sweep, ChoiceSweep) else 1
    start, stop, step = sweep.start, sweep.stop, sweep.step
    if start is None or stop is None or not step or not math.isfinite(span := (stop - start) / step) or span <= 0:
        raise UserError(f"{override.input_line!r} has no values: write a range(start,stop,step) that ends")
    return math.ceil(span)


def plan(recipe: str, overrides: Sequence[str], out: Path) -> tuple[list[str], list[Cell]]:
    """Axes (without the seed) and cells. Raises UserError for the first cell that cannot run, or whose folder holds a
    run with other settings.
    """
    from recipes.configuration.run_folder import check_same_run  # late: torch takes a while

    axes, combinations = expand([in_hydras_words(override) for override in overrides])
    if "run_dir" in combinations[0]:
        raise UserError("run_dir is each cell's own: give out=<folder> instead")
    if "resume" in combinations[0]:
        raise UserError("resume is set by the sweep: finished cells are skipped, stopped ones continue; leave it out")
    cells = []
    for values in combinations:
        swept = {key: values[key] for key in axes if key != "seed"}
        run_dir = out / _folder_name(swept) / f"seed={values.get('seed', '')}"
        pairs = [*(f"{key}={value}" for key, value in values.items()), path_override("run_dir", run_dir)]
        try:
            config = load_config(recipe, pairs)
        except UserError as error:
            shown = " ".join(f"{key}={values[key]}" for key in axes)
            raise UserError(f"the cell {shown or run_dir}: {error}") from error
        check_same_run(config, run_dir)
        cells.append(Cell(swept, pairs, run_dir, config.total_frames))
    return [key for key in axes if key != "seed"], cells


def _folder_name(values: dict[str, str]) -> str:
    return safe_name(",".join(f"{key}={value}" for key, value in values.items()) or "all")


@dataclass(frozen=True)
class Row:
    """Runs that differ in their seed only: the metric of each, and mean speed and time."""

    values: dict[str, str]
    scores: list[float]
    frames_per_second: float
    seconds: float

    @property
    def mean(self) -> float:
        return sum(self.scores) / len(self.scores)

    @property
    def interval(self) -> tuple[float, float] | None:
        from htrmrl_torchrl.evaluation.intervals import interval_over_runs  # late: scipy takes a while

        return interval_over_runs(self.scores)


def tabulate(cells: Sequence[Cell], metric: str) -> list[Row]:
    """One row for each combination of the axes, in the order of the sweep, from the finished cells. Speed and seconds
    are of collection and update, mean over seeds. Raises UserError if a finished cell lacks the metric.
    """
    groups: dict[str, list[tuple[Cell, dict[str, Any]]]] = {}
    for cell in cells:
        if (summary := cell.summary()) is not None:
            groups.setdefault(json.dumps(cell.values), []).append((cell, summary))
    rows = []
    for members in groups.values():
        scores, speeds, durations = [], [], []
        for cell, summary in members:
            if metric not in summary["metrics"]:
                raise UserError(
                    f"metric is {metric} but the runs have none of that name; they have "
                    f"{', '.join(sorted(summary['metrics']))}"
                )
            seconds = _seconds(cell.run_dir / "metrics.csv")
            scores.append(float(summary["metrics"][metric]))
            durations.append(seconds)
            speeds.append(summary["progress"]["frames"] / seconds)
        count = len(members)
        rows.append(Row(members[0][0].values, scores, sum(speeds) / count, sum(durations) / count))
    return rows


def rank(cells: Sequence[Cell], metric: str) -> list[Row]:
    """The arms, highest first, if ``env.name`` sweeps folds of one benchmark: one row for each combination of the other
    axes. A seed's score is the mean over folds, and counts once all its folds are finished.
    """
    folds = {cell.values.get("env.name", "") for cell in cells}
    benchmarks = {fold.partition(":fold=")[0] for fold in folds}
    if len(folds) < 2 or len(benchmarks) > 1 or not all(":fold=" in fold for fold in folds):
        return []
    arms: dict[str, dict[str, list[Cell]]] = {}
    for cell in cells:
        arm = json.dumps({key: value for key, value in cell.values.items() if key != "env.name"})
        arms.setdefault(arm, {}).setdefault(cell.run_dir.name, []).append(cell)
    rows = []
    for arm, seeds in arms.items():
        whole = [runs for of in seeds.values() if len(runs := tabulate(of, metric)) == len(folds)]
        if whole:
            every = [run for runs in whole for run in runs]
            scores = [fmean(run.mean for run in runs) for runs in whole]
            speed, seconds = (fmean(getattr(run, name) for run in every) for name in ("frames_per_second", "seconds"))
            rows.append(Row(json.loads(arm), scores, speed, seconds))
    return sorted(rows, key=lambda row: -row.mean)


def _seconds(path: Path) -> float:
    """Time of collection and update from the readable rows; NaN if there are none."""
    from htrmrl_torchrl.runs.loggers import read_rows  # late: torch takes a while

    try:
        rows, damaged = read_rows(path)
    except OSError as error:
        say(f"warning: {path} cannot be read ({reason(error)}); the speed of this run is unknown")
        return math.nan
    if damaged:
        say(f"warning: {path} has {damaged} damaged rows; the speed of this run leaves them out")
    return sum(value for (_, name, value), _ in rows if name in ("time/collect", "time/update")) or math.nan
