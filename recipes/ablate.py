"""Sweep keys of a training recipe over several seeds: ``python recipes/ablate.py recipe=toy_ppo encoder.window=1,3,5``.

Every combination is a run in its own process and folder. All configurations are checked before the first run starts.
Finished runs are skipped and stopped ones continue, so the same command can be repeated and extended. A failing run
does not stop the others. Writes one table and, for each axis, one figure; with folds of a benchmark a ranking too.
"""

import csv
import io
import shlex
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from htrmrl_torchrl.runs.console import reason, say
from htrmrl_torchrl.runs.lock import holder
from htrmrl_torchrl.runs.signals import Interrupts, end_with_parent, ending_at_once
from recipes.configuration.cells import Cell, Row, plan, rank, tabulate
from recipes.configuration.compose import CONFIG_DIR, run_recipe
from recipes.configuration.paths import check_folder, writing
from recipes.configuration.rules import Rule, check_values, one_of

OWN = ("recipe", "seeds", "axis", "metric", "out", "jobs")
AXES = (
    "window", "episodes", "strategy", "scope", "memory_size", "depth", "heads", "attention", "norm", "folds", "tasks",
)  # fmt: skip
RECIPES = sorted(path.stem for path in Path(__file__).parent.glob("*_ppo.py"))
RULES: dict[str, Rule] = {
    "recipe": one_of(*RECIPES),
    "seeds": Rule(
        "a list of numbers of at least 0", lambda value: bool(value) and all(type(x) is int and x >= 0 for x in value)
    ),
    "axis": one_of(*AXES),
    **{f"axes.{name}": Rule("a list of overrides", lambda value: bool(value)) for name in AXES},
}


def check(config: DictConfig, defaults: DictConfig) -> None:
    """Raise UserError for the first error in the ablation's own keys."""
    check_values(config, defaults, RULES)
    check_folder("out", Path(config.out))


def ablate(config: DictConfig, overrides: Sequence[str]) -> None:
    """Run the unfinished cells that ``overrides`` of the recipe span, then compare all."""
    asked = [*(config.axes[config.axis] if config.axis else ()), *overrides]
    if not any(override.startswith("seed=") for override in asked):
        asked.append(f"seed={','.join(map(str, config.seeds))}")
    if config.metric.endswith("_memory_gain") and not any(o.startswith("eval.memory_gain=") for o in asked):
        asked.append("eval.memory_gain=true")
    from htrmrl_torchrl.media import write_figure  # late: it takes a while

    out = Path(config.out)
    axes, cells = plan(config.recipe, asked, out)
    todo = [cell for cell in cells if cell.summary() is None]
    print(f"{len(cells)} cells, {len(cells) - len(todo)} finished; axes: {', '.join(axes) or 'none'}; in {out}")
    tabulate(cells, config.metric)  # fails before new runs if the finished ones lack the metric
    with writing(str(out)):
        out.mkdir(parents=True, exist_ok=True)
        OmegaConf.save({**{key: config[key] for key in OWN}, "overrides": asked}, out / "ablation.yaml")
    stopped = _run_all(config.recipe, todo, config.jobs)
    unfinished = [cell for cell in cells if cell.summary() is None]
    rows = tabulate(cells, config.metric)
    if rows:
        print(f"\n{_shown(rows, axes, config.metric)}\n", flush=True)  # even if no file can be written
        ranking, arms = rank(cells, config.metric), [axis for axis in axes if axis != "env.name"]
        if ranking:
            print(f"mean over folds:\n{_shown(ranking, arms, config.metric)}\n", flush=True)
        with writing(f"table and figures in {out}"):
            write_table(rows, axes, config.metric, out / "table.csv")
            if ranking:
                write_table(ranking, arms, config.metric, out / "ranking.csv")
            for axis in axes:
                write_figure(figure(rows, axis, config.metric), out / f"{axis}.png")
        print(f"table and figures are in {out}")
    for cell in unfinished:
        say(f"not finished: {cell.run_dir} (its output: {cell.run_dir / 'log.txt'})")
    if stopped:
        say(_stopped())
    elif unfinished:
        say(f"{len(unfinished)} of {len(cells)} cells did not finish; the same command tries again")
        sys.exit(1)


def _run_all(recipe: str, cells: Sequence[Cell], jobs: int) -> bool:
    """Runs the cells, `jobs` at a time; True if the user stopped it. No run outlives this process."""
    waiting, running = list(cells), dict[subprocess.Popen[bytes], Cell]()
    interrupts = Interrupts()
    interrupts.hold()
    try:
        while (waiting or running) and not interrupts.requested:
            while waiting and len(running) < jobs and not interrupts.requested:
                cell = waiting.pop(0)
                print(f"{len(cells) - len(waiting)}/{len(cells)} {cell.run_dir}", flush=True)
                if (process := _start(recipe, cell)) is not None:
                    running[process] = cell
            for process in [process for process in running if process.poll() is not None]:
                cell = running.pop(process)
                if cell.summary() is None:
                    say(f"did not finish: {cell.run_dir}, exit code {process.returncode}")
            time.sleep(0.2)
        return bool(waiting or running)
    finally:
        for process in running:
            process.terminate()  # ends at the beginning of its iteration, as any run does
        for process in running:
            process.wait()
        interrupts.release()


def _start(recipe: str, cell: Cell) -> "subprocess.Popen[bytes] | None":
    """Starts a cell; None if it is running already or its folder cannot be written."""
    if (other := holder(cell.run_dir)) is not None:
        say(f"runs already, as {other}, and is left alone: {cell.run_dir}")
        return None
    command = [sys.executable, "-m", "htrmrl_torchrl.cli", "run", recipe, *cell.overrides]
    try:
        cell.run_dir.mkdir(parents=True, exist_ok=True)
        with (cell.run_dir / "log.txt").open("a") as log:
            log.write(f"{shlex.join(['python', *command[1:]])}\n")
            log.flush()
            # Its own session: it gets Ctrl-C only once, through this process.
            return subprocess.Popen(
                command,
                stdout=log,
                stderr=log,
                stdin=subprocess.DEVNULL,
                start_new_session=True,
                preexec_fn=end_with_parent(),
            )
    except OSError as error:
        say(f"cannot be started: {cell.run_dir} ({reason(error)})")
        return None


def write_table(rows: Sequence[Row], axes: Sequence[str], metric: str, path: Path) -> None:
    """One line per combination: mean and 95% interval over seeds, and the cost of a run."""
    from htrmrl_torchrl.checkpoints.files import write_whole

    file = io.StringIO(newline="")
    writer = csv.writer(file)
    writer.writerow([*axes, "seeds", metric, "low", "high", "frames_per_second", "seconds"])
    for row in rows:
        low, high = row.interval or ("", "")
        line = [len(row.scores), row.mean, low, high, row.frames_per_second, row.seconds]
        writer.writerow([*(row.values[axis] for axis in axes), *line])
    write_whole(path, file.getvalue())


def _shown(rows: Sequence[Row], axes: Sequence[str], metric: str) -> str:
    lines = [[*axes, "seeds", metric, "95% over seeds", "frames/s", "seconds"]]
    for row in rows:
        interval = "" if row.interval is None else f"{row.interval[0]:.3f} to {row.interval[1]:.3f}"
        cost = [f"{row.frames_per_second:.0f}", f"{row.seconds:.0f}"]
        lines.append([*(row.values[axis] for axis in axes), f"{len(row.scores)}", f"{row.mean:.3f}", interval, *cost])
    widths = [max(len(line[column]) for line in lines) for column in range(len(lines[0]))]
    return "\n".join("  ".join(text.ljust(width) for text, width in zip(line, widths, strict=True)) for line in lines)


def figure(rows: Sequence[Row], axis: str, metric: str) -> Any:
    """The metric and the speed along one axis, one line for each combination of the other axes."""
    from matplotlib.figure import Figure

    from htrmrl_torchrl.media import as_written

    shown = list(dict.fromkeys(row.values[axis] for row in rows))
    where = {value: index for index, value in enumerate(shown)}  # evenly spaced, words and numbers alike
    lines: dict[str, list[Row]] = {}
    for row in rows:
        others = ", ".join(f"{key}={value}" for key, value in row.values.items() if key != axis)
        lines.setdefault(others, []).append(row)
    figure = Figure(figsize=(9.0, 4.0), layout="constrained")
    scores, speed = figure.subplots(1, 2, width_ratios=[3, 2])
    for index, (label, members) in enumerate(lines.items()):
        offset = 0.0 if len(lines) == 1 else 0.16 * (index / (len(lines) - 1) - 0.5)  # intervals beside each other
        x = [where[row.values[axis]] + offset for row in members]
        color = f"C{index}"
        scores.plot(x, [row.mean for row in members], color=color, marker="o", label=as_written(label))
        for at, row in zip(x, members, strict=True):
            scores.plot([at] * len(row.scores), row.scores, color=color, marker=".", linestyle="", alpha=0.4)
            if row.interval is not None:
                scores.vlines(at, *row.interval, color=color, linewidth=2, alpha=0.6)
        speed.plot(x, [row.frames_per_second for row in members], color=color, marker="o")
    counts = sorted({len(row.scores) for row in rows})
    seeds = f"{counts[0]} seeds" if len(counts) == 1 else f"{counts[0]} to {counts[-1]} seeds"
    scores.set_ylabel(as_written(f"{metric}, {seeds}, 95%"))
    if "success" in metric:
        scores.set_ylim(-0.02, 1.02)
    speed.set(ylabel="frames/s, collection and update")
    speed.set_ylim(bottom=0)
    for axes in (scores, speed):
        axes.set_xticks(
            range(len(shown)), [as_written(value if len(value) < 20 else f"{value[:17]}...") for value in shown]
        )
        axes.set_xlabel(as_written(axis))
        axes.grid(alpha=0.3, axis="y")
        axes.spines[["top", "right"]].set_visible(False)
    if len(lines) > 1:
        figure.legend(loc="outside upper right", ncols=3, frameon=False)
    return figure


def main() -> None:
    """Read the command line: the ablation's own keys, and those of the recipe."""
    known = OmegaConf.load(CONFIG_DIR / "ablate.yaml")
    own = [a for a in sys.argv[1:] if a.startswith("-") or a.split("=", 1)[0].split(".", 1)[0] in known]
    overrides = [argument for argument in sys.argv[1:] if argument not in own]
    sys.argv = [sys.argv[0], *own]

    def run(config: DictConfig) -> None:
        """Sweep a recipe over seeds: all keys but those below are the recipe's, those with several values the axes."""
        ablate(config, overrides)

    with ending_at_once(sentence=_stopped, status=0):  # while there is no cell to stop
        run_recipe(run, config_name="ablate", check=check)


def _stopped() -> str:
    return "stopped; the same command continues"


if __name__ == "__main__":
    main()
