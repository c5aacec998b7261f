"""What tables are made of: cells, and numbers of a run's metrics."""

import csv
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt

from htrmrl_torchrl.evaluation import EvaluationReport
from htrmrl_torchrl.evaluation.intervals import Interval

Array = npt.NDArray[np.float64]
Table = Callable[[Path], str]  # from the folder of results to Markdown
TABLES: dict[str, Table] = {}


def table(function: Table) -> Table:
    """Registers a table under its function's name."""
    TABLES[function.__name__] = function
    return function


def markdown(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table in Markdown."""
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def cell(mean: float, interval: Interval | None = None) -> str:
    """A mean, and its interval if there is one."""
    return f"{mean:z.2f}" if interval is None else f"{mean:z.2f} ({interval[0]:z.2f} to {interval[1]:z.2f})"


def cells(values: Iterable[float]) -> list[str]:
    """A cell for each value."""
    return [cell(value) for value in values]


def with_range(seeds: Sequence[float]) -> str:
    """Mean of seeds, with the lowest and the highest."""
    return f"{np.mean(seeds):.2f} ({min(seeds):.2f}-{max(seeds):.2f})"


def scored(report: EvaluationReport) -> str:
    """Success with its 95% interval over goals."""
    return cell(report.success_rate, report.interval())


def logged(run: Path, metric: str) -> list[tuple[int, float]]:
    """Frames and values of a metric in the committed rows of a run."""
    with (run / "metrics.csv").open(encoding="utf-8") as file:
        return [(int(row["frames"]), float(row["value"])) for row in csv.DictReader(file) if row["metric"] == metric]


def values(run: Path, metric: str) -> Array:
    """Values of a metric in the committed rows of a run."""
    return np.array([value for _, value in logged(run, metric)])


def curve(run: Path, metric: str, *, above: int) -> float:
    """Mean of a metric's committed rows with more than ``above`` frames."""
    return float(np.mean([value for frames, value in logged(run, metric) if frames > above]))
