"""What the figures show is what the reports say."""

from dataclasses import replace

import numpy as np
import pytest

from htrmrl_torchrl.evaluation import PROTOCOLS, ProtocolMismatchError, plot_adaptation, plot_tasks
from tests.evaluation.reports import NAN, believable, hand_made, two_runs

TASKS = ["door-close-v3", "drawer-open-v3", "lever-pull-v3"]


def legend(axes):
    (drawn,) = axes.figure.legends
    return [text.get_text() for text in drawn.get_texts()]


def segments(axes):
    """The intervals that are drawn: x, low and high."""
    drawn = [path.vertices for collection in axes.collections for path in collection.get_paths()]
    return [(low[0], low[1], high[1]) for low, high in drawn]


def test_each_line_is_the_success_by_episode_of_a_report():
    reports = {"HTrMRL": believable(TASKS, seed=1), "TrMRL": believable(TASKS, seed=2)}
    (axes,) = plot_adaptation(reports).axes
    *curves, adaptation_ends = axes.lines
    for line, report in zip(curves, reports.values(), strict=True):
        assert line.get_xdata().tolist() == list(range(1, 12))
        assert list(line.get_ydata()) == report.success_by_episode()
    assert set(adaptation_ends.get_xdata()) == {10.5}
    assert legend(axes) == ["HTrMRL", "TrMRL"]
    assert "ML10 test, strict" in axes.get_title() and "4 goals per task" in axes.get_title()
    assert (axes.get_xlabel(), axes.get_ylabel()) == ("episode of the trial", "success rate")


def test_without_adaptation_nothing_marks_its_end():
    (axes,) = plot_adaptation({"x": hand_made([[[1, 0], [1, 1]]])}).axes
    assert len(axes.lines) == 1


def test_each_bar_is_the_success_of_a_task_and_the_last_the_headline():
    reports = {"HTrMRL": believable(TASKS, seed=1), "TrMRL": believable(TASKS, seed=2), "idle": believable(TASKS)}
    (axes,) = plot_tasks(reports).axes
    labels = [label.get_text() for label in axes.get_xticklabels()]
    assert labels == [*TASKS, "all tasks"]
    assert len(axes.containers) == 3
    for bars, report in zip(axes.containers, reports.values(), strict=True):
        assert [bar.get_height() for bar in bars] == [*report.task_success().values(), report.success_rate]
    assert legend(axes) == ["HTrMRL", "TrMRL", "idle"]
    assert [set(line.get_xdata()) for line in axes.lines] == [{2.5}]  # between the tasks and their mean
    for position in range(4):  # side by side around their tick, none over another
        group = [bars[position] for bars in axes.containers]
        edges = [edge for bar in group for edge in (bar.get_x(), bar.get_x() + bar.get_width())]
        assert edges == sorted(edges) and position - 0.5 < edges[0] and edges[-1] < position + 0.5


def test_each_vertical_line_is_the_interval_of_its_bar():
    report = believable(TASKS, seed=1)
    (axes,) = plot_tasks({"HTrMRL": report}).axes
    intervals = [*(report.task_interval(name) for name in TASKS), report.interval()]
    expected = [(x, *interval) for x, interval in enumerate(intervals)]
    assert np.allclose(segments(axes), expected, rtol=0, atol=1e-10)


def test_bars_without_an_interval_have_no_vertical_line():
    (axes,) = plot_tasks({"x": two_runs()}).axes
    expected = [(0, *two_runs().task_interval("alpha"))]  # beta has one goal
    assert np.allclose(segments(axes), expected, rtol=0, atol=1e-10)


@pytest.mark.parametrize("plot", [plot_adaptation, plot_tasks])
def test_reports_made_in_different_ways_are_not_drawn_together(plot):
    other = replace(two_runs(), protocol=two_runs().protocol.changed(evaluation_actions="sampled"))
    with pytest.raises(ProtocolMismatchError, match="differ in protocol"):
        plot({"mean": two_runs(), "sampled": other})


def test_the_official_evaluator_knows_no_episodes_and_its_bars_say_biased():
    nothing = [[[NAN], [NAN]]]
    report = hand_made([[[0.5], [1.0]]], returns=nothing, steps=nothing, protocol=PROTOCOLS["metaworld"])
    with pytest.raises(ValueError, match="protocol metaworld reports no success by episode"):
        plot_adaptation({"x": report})
    (axes,) = plot_tasks({"x": report}).axes
    assert "biased" in axes.get_title()


@pytest.mark.parametrize("plot", [plot_adaptation, plot_tasks])
def test_the_legend_covers_nothing(plot):
    figure = plot({"HTrMRL": believable(TASKS, seed=1), "TrMRL": believable(TASKS, seed=2)})
    figure.draw_without_rendering()
    assert figure.legends[0].get_window_extent().y0 >= figure.axes[0].title.get_window_extent().y1


@pytest.mark.parametrize("plot", [plot_adaptation, plot_tasks])
def test_figures_are_files(plot, tmp_path):
    plot({"HTrMRL": believable(TASKS)}).savefig(tmp_path / "figure.png")
    assert (tmp_path / "figure.png").read_bytes().startswith(b"\x89PNG")
