"""Curves are read as they were logged, and the figure is drawn."""

from pathlib import Path

import numpy as np
import pytest
from matplotlib import image
from matplotlib import pyplot as plt
from matplotlib.axes import Axes

from htrmrl_torchrl.runs.loggers import RunLogger
from recipes import plot


@pytest.fixture
def run_dirs(tmp_path: Path) -> list[Path]:
    """Three runs whose success rises linearly, the last one shorter, and whose later episodes succeed more."""
    folders = [tmp_path / f"run_seed{seed}" for seed in range(3)]
    for seed, folder in enumerate(folders):
        with RunLogger(folder) as logger:
            for frames in range(0, 100_001 - 20_000 * (seed == 2), 10_000):
                logger.log({"train/success": frames / 200_000 + 0.1 * seed}, frames=frames)
                logger.log({"eval/val_success": frames / 400_000}, frames=frames)
                logger.log({f"train/success_by_episode/{k}": frames / 1e6 + k / 20 for k in range(12)}, frames=frames)
    return folders


def test_adaptation_curve_is_the_last_one_in_numeric_order(run_dirs: list[Path]) -> None:
    episodes, success = plot.adaptation_curve(plot.read_metrics(run_dirs[0]), "train")
    np.testing.assert_array_equal(episodes, np.arange(1, 13))  # 10 comes after 9, not after 1
    np.testing.assert_allclose(success, 0.1 + np.arange(12) / 20)


def test_adaptation_over_the_last_frames_is_their_mean(run_dirs: list[Path]) -> None:
    _, success = plot.adaptation_curve(plot.read_metrics(run_dirs[0]), "train", last_frames=30_000)
    np.testing.assert_allclose(success, np.mean([0.1, 0.09, 0.08]) + np.arange(12) / 20)


def test_a_smooth_curve_has_the_mean_of_the_last_frames_at_every_point(run_dirs: list[Path]) -> None:
    ((frames, success),) = lines(drawn(run_dirs[:1], "--metric", "train/success", "--smooth", "30000"))
    assert frames == list(range(0, 100_001, 10_000))
    # Success is frames / 200,000, three points of it are 30,000 frames; the first two points have fewer before them.
    np.testing.assert_allclose(success, [0, 0.025, *(0.05 * (k - 1) for k in range(2, 11))])
    with pytest.raises(ValueError, match="--smooth is 0 but must be at least 1"):
        drawn(run_dirs[:1], "--smooth", "0")


def test_mean_ends_with_the_shortest_run_and_interpolates() -> None:
    curves = [(np.array([0, 10, 20]), np.array([0.0, 1.0, 2.0])), (np.array([5, 15]), np.array([4.0, 2.0]))]
    grid, mean, low, high = plot.mean_and_range(curves)
    np.testing.assert_array_equal(grid, [5, 10, 15])
    np.testing.assert_allclose(mean, [2.25, 2.0, 1.75])
    np.testing.assert_allclose(low, [0.5, 1.0, 1.5])
    np.testing.assert_allclose(high, [4.0, 3.0, 2.0])


def drawn(run_dirs: list[Path], *arguments: str) -> Axes:
    figure = plot.draw_figure(plot.parse([*map(str, run_dirs), *arguments, "--out", "unused.png"]))
    (axes,) = figure.axes
    plt.close(figure)
    return axes


def lines(axes: Axes) -> list[list[list[float]]]:
    return [[np.asarray(line.get_xdata()).tolist(), np.asarray(line.get_ydata()).tolist()] for line in axes.lines]


def legend(axes: Axes) -> list[str]:
    shown = axes.get_legend()
    assert shown is not None
    return [text.get_text() for text in shown.get_texts()]


def test_each_run_is_a_line_and_their_mean_another_in_a_band(run_dirs: list[Path]) -> None:
    axes = drawn(run_dirs, "--metric", "train/success", "--label", "ours")
    curves = [plot.learning_curve(plot.read_metrics(run_dir), "train/success") for run_dir in run_dirs]
    grid, mean, low, high = plot.mean_and_range(curves)
    assert lines(axes) == [[x.tolist(), y.tolist()] for x, y in (*curves, (grid, mean))]
    (band,) = (path.vertices for path in axes.collections[0].get_paths())
    assert {(x, y) for x, y in band.tolist()} == {*zip(grid, low, strict=True), *zip(grid, high, strict=True)}
    assert legend(axes) == ["ours, mean of 3 runs"] and axes.get_xlabel() == "frames"
    assert axes.get_ylabel() == "success rate" and axes.get_ylim() == (-0.02, 1.02)


def test_several_metrics_of_several_groups_are_told_apart(run_dirs: list[Path]) -> None:
    arguments = ["--metric", "train/success", "eval/val_success", "--label", "a", "--compare", "b", str(run_dirs[1])]
    axes = drawn(run_dirs[:1], *arguments)
    assert legend(axes) == ["a, train/success", "a, eval/val_success", "b, train/success", "b, eval/val_success"]
    looks = [(line.get_color(), line.get_linestyle()) for line in axes.lines]
    assert looks == [("C0", "-"), ("C0", "--"), ("C1", "-"), ("C1", "--")]


def test_by_episode_over_the_last_frames(run_dirs: list[Path]) -> None:
    axes = drawn(run_dirs[:1], "--by-episode", "train", "--last", "30000")
    ((episodes, success),) = lines(axes)
    assert episodes == list(range(1, 13)) and axes.get_xlabel() == "episode of the trial"
    np.testing.assert_allclose(success, np.mean([0.1, 0.09, 0.08]) + np.arange(12) / 20)


def test_a_figure_is_written(run_dirs: list[Path], tmp_path: Path) -> None:
    out = tmp_path / "figures" / "curve.png"
    plot.main([*map(str, run_dirs), "--out", str(out)])
    assert image.imread(out).shape[:2] == (600, 960)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--metric", "train/sucess"], "no metric 'train/sucess'; there are"),
        (["--by-episode", "eval/test"], "no metric eval/test_success_by_episode/<k>"),
        (["--compare", "flat"], "--compare flat names no run"),
    ],
)
def test_unknown_metrics_are_named(
    run_dirs: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], message: str
) -> None:
    out = tmp_path / "curve.png"
    with pytest.raises(SystemExit, match="2"):
        plot.main([*map(str, run_dirs), *arguments, "--out", str(out)])
    assert message in capsys.readouterr().err
    assert not out.exists()


def test_where_there_is_no_success_the_adaptation_curve_is_of_returns(tmp_path: Path) -> None:
    with RunLogger(tmp_path) as logger:
        logger.log(
            {"train/return": 3.0, "train/return_by_episode/0": 1.0, "train/return_by_episode/1": 5.0}, frames=100
        )
    episodes, returns = plot.adaptation_curve(plot.read_metrics(tmp_path), "train")
    assert episodes.tolist() == [1, 2] and returns.tolist() == [1.0, 5.0]


def test_every_group_is_drawn_whatever_its_label(run_dirs: list[Path]) -> None:
    compare = [argument for label in ("", "a", "a", "_b") for argument in ("--compare", label, str(run_dirs[1]))]
    axes = drawn(run_dirs[:1], *compare)
    assert len(axes.lines) == 5 and len({line.get_color() for line in axes.lines}) == 5
    assert legend(axes) == ["(1)", "(2)", "a (1)", "a (2)", " _b"]


def test_runs_without_a_common_frame_are_drawn_and_their_missing_mean_is_said(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for at in (1, 2):
        with RunLogger(tmp_path / str(at)) as logger:
            logger.log({"train/success": 0.5}, frames=at)
    axes = drawn([tmp_path / "1", tmp_path / "2"], "--label", "ours")
    assert len(axes.lines) == 2 and legend(axes) == ["ours, 2 runs"]
    assert "no mean of 'ours': its 2 runs have no frames in common" in capsys.readouterr().err


def test_a_row_that_is_still_being_written_is_left_out(run_dirs: list[Path]) -> None:
    before = plot.read_metrics(run_dirs[0])
    with (run_dirs[0] / "metrics.csv").open("a") as file:
        file.write("110000,train/succ")
    assert plot.read_metrics(run_dirs[0]).keys() == before.keys()


@pytest.mark.parametrize("suffix", ["svg", "pdf", "PNG", "jpg"])
def test_known_formats_and_texts_that_look_like_formulas(run_dirs: list[Path], tmp_path: Path, suffix: str) -> None:
    out = tmp_path / f"curve.{suffix}"
    plot.main([str(run_dirs[0]), "--title", r"$\alpha$ and $5", "--label", "$", "--out", str(out)])
    assert out.stat().st_size > 1000 and not list(tmp_path.glob(".*"))
