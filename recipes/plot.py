"""Learning curves and adaptation curves of one or more runs, from their ``metrics.csv``.

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

import matplotlib
import numpy as np

matplotlib.use("Agg")
from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import EngFormatter, MaxNLocator

LINES = ("-", "--", ":", "-.")
Curve = tuple[np.ndarray, np.ndarray]  # x and y, both [points]


def read_metrics(run_dir: Path) -> dict[str, Curve]:
    """Read a run's ``metrics.csv`` into curves over frames; the last value logged at the same frames counts."""
    path = run_dir / "metrics.csv"
    if not path.is_file():
        raise ValueError(f"{path} does not exist: give folders of runs")
    points: dict[str, dict[int, float]] = {}
    with path.open(newline="") as file:
        for row in csv.DictReader(file):
            points.setdefault(row["metric"], {})[int(row["frames"])] = float(row["value"])
    return {name: (np.array(list(curve)), np.array(list(curve.values()))) for name, curve in points.items()}


def learning_curve(metrics: dict[str, Curve], name: str, *, smooth_frames: int = 1) -> Curve:
    """Frames and values of one metric, each the mean of the values logged in so many frames up to there."""
    if name not in metrics:
        raise ValueError(f"no metric {name!r}; there are {', '.join(sorted(metrics))}")
    if smooth_frames < 1:
        raise ValueError(f"--smooth is {smooth_frames} but must be at least 1 frame")
    x, y = metrics[name]
    return x, np.array([y[(x > end - smooth_frames) & (x <= end)].mean() for end in x])


def adaptation_curve(metrics: dict[str, Curve], source: str, *, last_frames: int = 1) -> Curve:
    """Episode numbers, from 1, and the mean success (or return, where there is none) logged in the last frames."""
    prefix = f"{'train/' if source == 'train' else source + '_'}{measure(metrics)}_by_episode/"
    last = {
        int(name.removeprefix(prefix)): y[x > x[-1] - last_frames].mean()
        for name, (x, y) in metrics.items()
        if name.startswith(prefix)
    }
    if not last:
        raise ValueError(f"no metric {prefix}<k>; there are {', '.join(sorted(metrics))}")
    order = sorted(last)
    return np.array(order) + 1, np.array([last[k] for k in order])


def measure(metrics: dict[str, Curve]) -> str:
    """``success``, or ``return`` if the run's benchmark defines no success."""
    return "success" if any("success" in name for name in metrics) else "return"


def mean_and_range(curves: Sequence[Curve]) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Mean, lowest and highest value over runs where all of them have points, interpolated between points."""
    start, end = max(x[0] for x, _ in curves), min(x[-1] for x, _ in curves)
    grid = np.unique(np.concatenate([x for x, _ in curves]))
    grid = grid[(grid >= start) & (grid <= end)]
    values = np.stack([np.interp(grid, x, y) for x, y in curves])  # [runs, points]
    return grid, values.mean(0), values.min(0), values.max(0)


def draw(
    axes: Axes, curves: Sequence[Curve], *, label: str, color: str, marker: str = "", linestyle: str = "-"
) -> None:
    """Draw the runs of one metric: each thin, their mean thick, the range as a band."""
    if len(curves) == 1:
        axes.plot(*curves[0], color=color, marker=marker, linestyle=linestyle, label=label)
        return
    for curve in curves:
        axes.plot(*curve, color=color, linewidth=0.8, alpha=0.4, linestyle=linestyle)
    grid, mean, low, high = mean_and_range(curves)
    axes.fill_between(grid, low, high, color=color, alpha=0.15, linewidth=0)
    label = f"{label}, mean of {len(curves)} runs"
    axes.plot(grid, mean, color=color, linewidth=2, marker=marker, linestyle=linestyle, label=label)


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run_dirs", nargs="+", type=Path, metavar="RUN_DIR")
    parser.add_argument("--metric", nargs="+", default=["train/success"], help="one or more metrics over frames")
    parser.add_argument("--smooth", type=int, default=1, metavar="FRAMES", help="of --metric: mean over the last")
    parser.add_argument(
        "--by-episode",
        nargs="+",
        metavar="SOURCE",
        help="success (or return) by episode instead: train, eval/val, eval/test",
    )
    parser.add_argument("--last", type=int, default=1, metavar="FRAMES", help="of --by-episode: mean over these")
    parser.add_argument("--label", default="", help="what the runs are")
    parser.add_argument(
        "--compare", nargs="+", action="append", default=[], metavar=("LABEL", "RUN_DIR"), help="another group of runs"
    )
    parser.add_argument("--out", type=Path, required=True, help="PNG (or PDF, SVG) to write")
    parser.add_argument("--title", default="")
    return parser.parse_args(argv)


def _not_empty(groups: dict[str, list[Path]]) -> dict[str, list[Path]]:
    for label, run_dirs in groups.items():
        if not run_dirs:
            raise ValueError(f"--compare {label} names no run: give a label and then folders of runs")
    return groups


def draw_figure(args: argparse.Namespace) -> Figure:
    """The figure that the command line asks for. Raises ValueError where a run does not have what is to be drawn."""
    names = args.by_episode or args.metric
    read = (
        partial(adaptation_curve, last_frames=args.last)
        if args.by_episode
        else partial(learning_curve, smooth_frames=args.smooth)
    )
    groups = {args.label: args.run_dirs} | {label: [Path(run) for run in runs] for label, *runs in args.compare}
    curves = {
        (label, name): [read(read_metrics(run_dir), name) for run_dir in run_dirs]
        for label, run_dirs in _not_empty(groups).items()
        for name in names
    }
    figure, axes = plt.subplots(figsize=(6.4, 4.0), layout="constrained")
    for (label, name), drawn in curves.items():
        group, metric = list(groups).index(label), names.index(name)
        if len(groups) == 1:
            style = {"color": f"C{metric}", "linestyle": "-"}
        else:
            style = {"color": f"C{group}", "linestyle": LINES[metric % len(LINES)]}
        shown = ", ".join(filter(None, (label, name if len(names) > 1 or not label else "")))
        draw(axes, drawn, label=shown, marker="o" if args.by_episode else "", **style)
    if args.by_episode:
        axes.set(xlabel="episode of the trial", ylabel="return")
        if measure(read_metrics(args.run_dirs[0])) == "success":
            axes.set(ylabel="success rate", ylim=(-0.02, 1.02))
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    else:
        axes.set(xlabel="frames", ylabel=names[0] if len(names) == 1 else "value")
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
    args = parse(argv)
    try:
        figure = draw_figure(args)
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
    args.out.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(args.out, dpi=150)
    plt.close(figure)


if __name__ == "__main__":
    main()
