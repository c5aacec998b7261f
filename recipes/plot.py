"""Draw learning curves and adaptation curves of one or more runs: reads their ``metrics.csv``.

    python recipes/plot.py runs/toy_ppo_seed* --metric train/success --out curve.png
    python recipes/plot.py runs/ml10_ppo_seed1 --metric eval/val_success eval/test_success --out curve.png
    python recipes/plot.py runs/ml10_ppo_seed* --smooth 500000 --out curve.png
    python recipes/plot.py runs/toy_ppo_seed* --by-episode train --last 20000 --out adaptation.png
    python recipes/plot.py runs/htrmrl_seed* --label HTrMRL --compare RL2 runs/rl2_seed* --out comparison.png

Each run is a thin line, the mean over runs a thick one with a band from the lowest to the highest run. Runs are
compared where all of them have points: their mean ends where the shortest run ends. Colours are groups of runs, line
styles are metrics.
"""

import argparse
import csv
import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import NoReturn

import numpy as np

from htrmrl_torchrl.extras import require
from recipes.configuration.compose import refusing

with refusing():
    require("plots", "matplotlib")

import matplotlib

matplotlib.use("Agg")
from matplotlib import cbook
from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.backend_bases import FigureCanvasBase
from matplotlib.figure import Figure
from matplotlib.mathtext import MathTextParser
from matplotlib.ticker import EngFormatter, MaxNLocator

from htrmrl_torchrl.faults import UserError
from htrmrl_torchrl.media import as_written, drawable, write_figure
from htrmrl_torchrl.runs.signals import ending_at_once
from recipes.configuration.paths import check_file, expanded, kind_of, writing

PICTURES = sorted({*FigureCanvasBase.get_supported_filetypes()} - {"pgf"})  # which would need LaTeX
LINES = ("-", "--", ":", "-.")
MOST_FRAMES = 2**62
Curve = tuple[np.ndarray, np.ndarray]  # x and y, both [points]


def read_metrics(run_dir: Path) -> dict[str, Curve]:
    """Curves over frames from a run's ``metrics.csv``; the last value logged at the same frames counts. An incomplete
    last row is left out: the run may still be writing. Raises UserError for a missing or damaged file.
    """
    path = run_dir / "metrics.csv"
    kind = kind_of("RUN_DIR", path)
    if kind != "file":
        raise UserError(f"{path} {'does not exist' if kind is None else f'is a {kind}'}: give folders of runs")
    try:
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise UserError(f"{path} is damaged: its byte {error.start} is no UTF-8") from error
    points: dict[str, dict[int, float]] = {}
    rows = csv.DictReader(text[: text.rfind("\n") + 1].splitlines(keepends=True))
    try:
        for row in rows:
            frames, value = int(row["frames"]), float(row["value"])
            if not 0 <= frames < 2**63:
                raise ValueError("frames out of range")
            points.setdefault(row["metric"], {})[frames] = value
    except (csv.Error, KeyError, TypeError, ValueError) as error:
        raise UserError(f"{path} is damaged: line {rows.line_num} is no row of frames,metric,value") from error
    return {name: (np.array(list(curve)), np.array(list(curve.values()))) for name, curve in points.items()}


def learning_curve(metrics: dict[str, Curve], name: str, *, smooth_frames: int = 1) -> Curve:
    """Frames and values of one metric, each the mean of the values logged in the last ``smooth_frames``."""
    if name not in metrics:
        raise UserError(f"no metric {name!r}; there are {_known(metrics)}")
    if smooth_frames < 1:
        raise UserError(f"--smooth is {smooth_frames} but must be at least 1 frame")
    x, y = metrics[name]
    smooth_frames = min(smooth_frames, MOST_FRAMES)
    return x, np.array([y[(x > end - smooth_frames) & (x <= end)].mean() for end in x])


def adaptation_curve(metrics: dict[str, Curve], source: str, *, last_frames: int = 1) -> Curve:
    """Episode numbers from 1, and mean success (or return, without success) logged in the last frames."""
    if last_frames < 1:
        raise UserError(f"--last is {last_frames} but must be at least 1 frame")
    last_frames = min(last_frames, MOST_FRAMES)
    prefix = f"{'train/' if source == 'train' else source + '_'}{measure(metrics)}_by_episode/"
    last = {
        int(name.removeprefix(prefix)): y[x > x[-1] - last_frames].mean()
        for name, (x, y) in metrics.items()
        if name.startswith(prefix) and name.removeprefix(prefix).isdecimal()
    }
    if not last:
        raise UserError(f"no metric {prefix}<k>; there are {_known(metrics)}")
    order = sorted(last)
    return np.array(order) + 1, np.array([last[k] for k in order])


def _known(metrics: dict[str, Curve]) -> str:
    return ", ".join(sorted(metrics)) or "none"


def measure(metrics: dict[str, Curve]) -> str:
    """``success``, or ``return`` if the run's benchmark defines no success."""
    return "success" if any("success" in name for name in metrics) else "return"


def mean_and_range(curves: Sequence[Curve]) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Frames, mean, lowest and highest value over runs where all have points, interpolated between points."""
    start, end = max(x[0] for x, _ in curves), min(x[-1] for x, _ in curves)
    grid = np.unique(np.concatenate([x for x, _ in curves]))
    grid = grid[(grid >= start) & (grid <= end)]
    values = np.stack([np.interp(grid, x, y) for x, y in curves])  # [runs, points]
    return grid, values.mean(0), values.min(0), values.max(0)


def draw(
    axes: Axes, curves: Sequence[Curve], *, label: str, color: str, marker: str = "", linestyle: str = "-"
) -> None:
    """Draw the runs of one metric: each thin, their mean over common frames thick, the range as a band."""
    if len(curves) == 1:
        axes.plot(*curves[0], color=color, marker=marker, linestyle=linestyle, label=label)
        return
    for curve in curves:
        (thin,) = axes.plot(*curve, color=color, linewidth=0.8, alpha=0.4, linestyle=linestyle)
    grid, mean, low, high = mean_and_range(curves)
    if not len(grid):
        thin.set_label(f"{label}, {len(curves)} runs")
        print(f"no mean of {label!r}: its {len(curves)} runs have no frames in common", file=sys.stderr)
        return
    axes.fill_between(grid, low, high, color=color, alpha=0.15, linewidth=0)
    label = f"{label}, mean of {len(curves)} runs"
    axes.plot(grid, mean, color=color, linewidth=2, marker=marker, linestyle=linestyle, label=label)


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise UserError(f"{message}; --help shows how it is used")


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    """Read the command line."""
    parser = _Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run_dirs", nargs="+", metavar="RUN_DIR")
    parser.add_argument("--metric", nargs="+", default=["train/success"], help="one or more metrics over frames")
    parser.add_argument("--smooth", type=int, default=1, metavar="FRAMES", help="of --metric: mean over the last")
    by_episode = "success (or return) by episode instead: train, eval/val, eval/test"
    parser.add_argument("--by-episode", nargs="+", metavar="SOURCE", help=by_episode)
    parser.add_argument("--last", type=int, default=1, metavar="FRAMES", help="of --by-episode: mean over these")
    parser.add_argument("--label", default="", help="what the runs are")
    parser.add_argument(
        "--compare", nargs="+", action="append", default=[], metavar=("LABEL", "RUN_DIR"), help="another group of runs"
    )
    parser.add_argument("--out", required=True, help="PNG (or PDF, SVG) to write")
    parser.add_argument("--title", default="")
    args = parser.parse_args(argv)
    args.run_dirs = [Path(expanded("RUN_DIR", run)) for run in args.run_dirs]
    args.out = Path(expanded("--out", args.out))
    args.title, args.label = drawable(args.title), drawable(args.label)
    return args


def check(args: argparse.Namespace) -> None:
    """Raise UserError for an output or a text that cannot be drawn, before any run is read."""
    suffix = args.out.suffix.removeprefix(".").lower()
    if suffix not in PICTURES:
        raise UserError(f"--out is '{args.out}' but its name must end in .{', .'.join(PICTURES)}")
    check_file("--out", args.out)
    for option, text in (("--title", args.title), *(("a label", label) for label, _ in groups_of(args))):
        try:
            if cbook.is_math_text(text):
                MathTextParser("path").parse(text)
        except ValueError as error:
            raise UserError(
                rf"{option} is {text!r}, which is no TeX to Matplotlib: write \$ for a dollar sign"
            ) from error


def groups_of(args: argparse.Namespace) -> list[tuple[str, list[Path]]]:
    """Label and runs of every group, in the order of the command line; equal labels are numbered."""
    groups = [(args.label, args.run_dirs)]
    for label, *runs in args.compare:
        if not runs:
            raise UserError(f"--compare {label} names no run: give a label and then folders of runs")
        groups.append((drawable(label), [Path(expanded("RUN_DIR", run)) for run in runs]))
    labels = [label for label, _ in groups]
    return [
        (label if labels.count(label) == 1 else f"{label} ({labels[: index + 1].count(label)})".strip(), runs)
        for index, (label, runs) in enumerate(groups)
    ]


def draw_figure(args: argparse.Namespace) -> Figure:
    """The figure that the command line asks for. Raises UserError if a run lacks the data."""
    names = list(dict.fromkeys(args.by_episode or args.metric))
    read = (
        partial(adaptation_curve, last_frames=args.last)
        if args.by_episode
        else partial(learning_curve, smooth_frames=args.smooth)
    )
    groups = groups_of(args)
    curves = [
        (group, name, [read(read_metrics(run_dir), name) for run_dir in run_dirs])
        for group, (_, run_dirs) in enumerate(groups)
        for name in names
    ]
    figure, axes = plt.subplots(figsize=(6.4, 4.0), layout="constrained")
    for group, name, drawn in curves:
        label, metric = groups[group][0], names.index(name)
        if len(groups) == 1:
            style = {"color": f"C{metric}", "linestyle": "-"}
        else:
            style = {"color": f"C{group}", "linestyle": LINES[metric % len(LINES)]}
        shown = ", ".join(filter(None, (label, as_written(name) if len(names) > 1 or not label else "")))
        shown = f" {shown}" if shown.startswith("_") else shown  # Matplotlib's legend leaves such labels out
        draw(axes, drawn, label=shown, marker="o" if args.by_episode else "", **style)
    if args.by_episode:
        axes.set(xlabel="episode of the trial", ylabel="return")
        if measure(read_metrics(args.run_dirs[0])) == "success":
            axes.set(ylabel="success rate", ylim=(-0.02, 1.02))
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    else:
        axes.set(xlabel="frames", ylabel=as_written(names[0]) if len(names) == 1 else "value")
        axes.xaxis.set_major_formatter(EngFormatter(sep=""))
        if all("success" in name for name in names):
            axes.set(ylabel="success rate", ylim=(-0.02, 1.02))
    axes.set_title(args.title)
    axes.grid(alpha=0.3)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False)
    return figure


def main(argv: Sequence[str] | None = None) -> None:
    """Write the figure that the command line asks for."""
    with refusing():
        args = parse(argv)
        check(args)
        figure = draw_figure(args)
        with writing(str(args.out)):
            write_figure(figure, args.out)
        plt.close(figure)


if __name__ == "__main__":
    with ending_at_once():
        main()
