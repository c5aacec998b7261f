"""Figures of evaluation reports: success (or return, where a benchmark has no success) by episode, and by task."""

from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np

from htrmrl_torchrl.evaluation.report import EvaluationReport
from htrmrl_torchrl.extras import require

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


def plot_adaptation(reports: Mapping[str, EvaluationReport]) -> "Figure":
    """Success (or return) by episode of the trial, one line per report by label; a dotted line ends adaptation. Raises
    ProtocolMismatchError unless all are comparable, and ValueError for ``metaworld``, which reports no episodes.
    """
    first = _comparable(reports)
    if first.success.shape[-1] != first.protocol.episodes:
        raise ValueError(f"The protocol {first.protocol.name} reports no success by episode.")
    figure, axes = _axes()
    from matplotlib.ticker import MaxNLocator

    for label, report in reports.items():
        curve = report.success_by_episode() if first.has_success else report.return_by_episode()
        axes.plot(np.arange(1, len(curve) + 1), curve, marker="o", label=label)
    if first.protocol.adaptation_episodes:
        axes.axvline(first.protocol.adaptation_episodes + 0.5, color="0.5", linestyle=":", linewidth=1)
    axes.set(xlabel="episode of the trial", ylabel="return", title=_title(first))
    if first.has_success:
        axes.set(ylabel="success rate", ylim=(-0.02, 1.02))
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    figure.legend(loc="outside upper right", ncols=3, frameon=False)
    return figure


def plot_tasks(reports: Mapping[str, EvaluationReport]) -> "Figure":
    """Success (or return) by task, one bar per report by label, with 95% intervals over goals. Raises
    ProtocolMismatchError unless all are comparable.
    """
    first = _comparable(reports)
    names = [*first.task_success(), "all tasks"]
    figure, axes = _axes(width=max(6.4, 0.45 * len(names) + 2))
    thick = 0.8 / len(reports)
    for index, (label, report) in enumerate(reports.items()):
        by_task = report.task_success() if first.has_success else report.task_returns()
        scores = [*by_task.values(), report.headline]
        intervals = [*(report.task_interval(name) for name in names[:-1]), report.interval()]
        where = np.arange(len(names)) + (index - (len(reports) - 1) / 2) * thick
        axes.bar(where, scores, width=0.9 * thick, label=label)
        for x, interval in zip(where, intervals, strict=True):
            if interval is not None:
                axes.vlines(x, *interval, color="0.2", linewidth=1)
    axes.axvline(len(names) - 1.5, color="0.5", linestyle=":", linewidth=1)
    axes.set_xticks(range(len(names)), names, rotation=35, ha="right", rotation_mode="anchor")
    axes.set(xlim=(-0.6, len(names) - 0.4), ylabel="return, 95% over goals", title=_title(first))
    if first.has_success:
        axes.set(ylabel="success rate, 95% over goals", ylim=(0, 1.02))
    figure.legend(loc="outside upper right", ncols=3, frameon=False)
    return figure


def _comparable(reports: Mapping[str, EvaluationReport]) -> EvaluationReport:
    first, *others = reports.values()
    for other in others:
        first.check_comparable(other)
    return first


def _axes(width: float = 6.4) -> tuple["Figure", "Axes"]:
    require("plots", "matplotlib")
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, 4.0), layout="constrained")
    axes = figure.subplots()
    axes.grid(alpha=0.3, axis="y")
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    return figure, axes


def _title(report: EvaluationReport) -> str:
    protocol = report.protocol
    biased = ", biased" if protocol.biased else ""
    return f"{report.benchmark} {report.split}, {protocol.name}{biased}, {protocol.goals_per_task} goals per task"
