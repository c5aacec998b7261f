"""What tables are made of: cells, and numbers of a run's metrics."""

import csv
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

import numpy as np

from htrmrl_torchrl.evaluation import EvaluationReport
from htrmrl_torchrl.evaluation.intervals import Interval

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


def curve(run: Path, metric: str, *, above: int, upto: int | None = None) -> float:
    """Mean of a metric's committed rows with more than ``above`` and at most ``upto`` frames."""
    with (run / "metrics.csv").open(encoding="utf-8") as file:
        rows = [(int(row["frames"]), float(row["value"])) for row in csv.DictReader(file) if row["metric"] == metric]
    return float(np.mean([value for frames, value in rows if above < frames <= (upto or rows[-1][0])]))
