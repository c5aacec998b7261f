"""Tables of ML10."""

import csv
import json
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt

from htrmrl_torchrl.evaluation import EvaluationReport
from htrmrl_torchrl.evaluation.intervals import DIFFERENCES, interval_over_goals
from results.tables.cells import Array, cell, cells, markdown, scored, table, values

# Folders of results/ml10/: one for each training seed.
HTRMRL = ("htrmrl_grow_seed1", "htrmrl_grow_seed2", "htrmrl_grow_seed3")
METHODS = {
    "HTrMRL": HTRMRL,
    "HTrMRL, settings of the baselines": ("htrmrl_shallow_seed1",),
    "TrMRL": ("trmrl_seed1",),
    "RL2": ("rl2_20m_seed1",),
}
RUNS = {
    **{f"HTrMRL, seed {seed}": run for seed, run in enumerate(HTRMRL, 1)},
    **{f"{name}, seed 1": runs[0] for name, runs in METHODS.items() if name != "HTrMRL"},
}
PLAYED = {  # column: split, protocol, goals per task
    "train, `strict`": ("train", "strict", 5),
    "train, `garage`": ("train", "garage", 2),
    "test, `strict`": ("test", "strict", 10),
    "test, `sampled`": ("test", "garage", 10),  # the same trials as `sampled`, see its definition
    "test, `garage`": ("test", "garage", 2),
}


def ml10(
    results: Path, runs: Sequence[str], split: str, protocol: str, goals: int, adaptation: int = 10
) -> EvaluationReport:
    """One report of several training seeds."""
    pattern = f"evaluations/ML10_{split}_{protocol}_{goals}goals_{adaptation}+*episodes_seed0_????????????.json"
    paths = [path for run in runs for path in (results / "ml10" / run).glob(pattern)]
    if len(paths) != len(runs):
        raise ValueError(f"{len(runs)} runs have {len(paths)} files {pattern}.")
    return EvaluationReport.merge([EvaluationReport.load(path) for path in paths])


def short(names: Iterable[str]) -> list[str]:
    """Names of tasks for a table's header."""
    return [name.removesuffix("-v3").replace("-topdown", "") for name in names]


def paired(task: npt.NDArray[np.int64], these: Array, those: Array) -> str:
    """Success ``[1, goals, episodes]`` minus that of others on the same goals, with a 95% interval over goals."""
    goals = (these.mean(-1) - those.mean(-1))[0]
    by_task = [goals[task == index] for index in np.unique(task)]
    return cell(float(np.mean([values.mean() for values in by_task])), interval_over_goals(by_task, scale=DIFFERENCES))


@table
def headline(results: Path) -> str:
    """ML10: each method by protocol, mean over seeds, 95% intervals over goals."""
    rows = []
    for name in ("HTrMRL", "TrMRL", "RL2"):
        runs = METHODS[name]
        played = [scored(ml10(results, runs, *which)) for which in PLAYED.values()]
        rows.append([name, str(len(runs)), *played])
    paper = ["HTrMRL in the paper", "", "", "> 0.80", "", "", "0.35"]
    return markdown(["", "seeds", *PLAYED], [*rows, paper])


@table
def ml10_seeds(results: Path) -> str:
    """ML10: each training seed by protocol, 95% intervals over goals; the mean with 95% intervals over seeds."""
    rows = [[name, *(scored(ml10(results, [run], *which)) for which in PLAYED.values())] for name, run in RUNS.items()]
    merged = [ml10(results, HTRMRL, *which) for which in PLAYED.values()]
    over_seeds = [cell(report.success_rate, report.interval(over="runs")) for report in merged]
    rows.insert(len(HTRMRL), ["HTrMRL, mean, interval over seeds", *over_seeds])
    return markdown(["", *PLAYED], rows)


@table
def ml10_train_tasks(results: Path) -> str:
    """ML10: success on training tasks under strict, five goals each."""
    reports = {name: ml10(results, [run], *PLAYED["train, `strict`"]) for name, run in RUNS.items()}
    rows = [[name, *cells(report.task_success().values())] for name, report in reports.items()]
    return markdown(["", *short(reports["TrMRL, seed 1"].tasks)], rows)


@table
def ml10_test_tasks(results: Path) -> str:
    """ML10: success on test tasks by protocol and memory, ten goals each."""
    rows = []
    for name, run in RUNS.items():
        strict = ml10(results, [run], *PLAYED["test, `strict`"])
        sampled = ml10(results, [run], *PLAYED["test, `sampled`"])
        empty = ml10(results, [run], "test", "garage", 10, adaptation=0)
        remembered = strict.success[0, :, 1:10].mean(-1)
        rows += [
            [name, "`strict`", *cells(strict.task_success().values())],
            ["", "`sampled`", *cells(sampled.task_success().values())],
            ["", "episodes 2 to 10", *cells(remembered[strict.task == task].mean() for task in range(5))],
            ["", "without memory", *cells(empty.task_success().values())],
        ]
    return markdown(["", "", *short(strict.tasks)], rows)


@table
def ml10_memory(results: Path) -> str:
    """ML10, test tasks: sampled actions without memory and in episodes 2 to 10 of a trial, difference by goal."""
    rows = []
    for name, run in RUNS.items():
        strict = ml10(results, [run], *PLAYED["test, `strict`"])
        empty = ml10(results, [run], "test", "garage", 10, adaptation=0)
        remembered = strict.success[..., 1:10]
        gain = paired(strict.task, remembered, empty.success)
        rows.append([name, scored(empty), cell(remembered.mean()), gain])
    return markdown(["", "without memory", "episodes 2 to 10", "difference"], rows)


@table
def ml10_actions(results: Path) -> str:
    """ML10, test tasks: the mean action and sampled actions after the same adaptation, difference by goal."""
    rows = []
    for name, run in RUNS.items():
        strict = ml10(results, [run], *PLAYED["test, `strict`"])
        sampled = ml10(results, [run], *PLAYED["test, `sampled`"])
        difference = paired(strict.task, strict.success[..., 10:], sampled.success[..., 10:])
        rows.append([name, cell(strict.success_rate), cell(sampled.success_rate), difference])
    return markdown(["", "`strict` (mean action)", "`sampled`", "difference"], rows)


Rows = dict[str, list[dict[str, str]]]  # of runs.csv, by run


def read_runs(results: Path) -> Rows:
    """Rows of runs.csv, which are means over 100,000 frames, by run."""
    rows: Rows = {}
    with (results / "ml10" / "runs.csv").open(encoding="utf-8") as file:
        for row in csv.DictReader(file):
            rows.setdefault(row["run"], []).append(row)
    return rows


def training(rows: Rows, run: str, columns: Sequence[str], *, above: int, upto: int) -> list[str]:
    """Means over frames of columns of a run."""
    chosen = [row for row in rows[run] if above < int(row["frames"]) <= upto]
    return cells(float(np.mean([float(row[column]) for row in chosen])) for column in columns)


@table
def ml10_runs(results: Path) -> str:
    """ML10: the training runs; speed is the median over committed rows, beside another run."""
    rows = []
    for name, run in RUNS.items():
        summary = json.loads((results / "ml10" / run / "summary.json").read_text(encoding="utf-8"))
        speeds = values(results / "ml10" / run, "time/frames_per_second")
        frames, commits = summary["progress"]["frames"], summary["progress"]["commits"]
        rows.append([name, f"{frames:,}", f"{np.median(speeds):,.0f}", ", ".join(f"`{c}`" for c in commits)])
    return markdown(["", "frames", "frames/s", "commits"], rows)


@table
def ml10_training(results: Path) -> str:
    """ML10: success of training episodes, mean over a million frames."""
    runs = read_runs(results)
    ends = [million * 10**6 for million in (1, 2, 3, 4, 6, 8, 10, 12, 14, 16, 18, 20)]
    rows = [
        [name, *(training(runs, run, ["train/success"], above=end - 10**6, upto=end)[0] for end in ends)]
        for name, run in RUNS.items()
    ]
    return markdown(["up to frame", *(f"{end // 10**6}M" for end in ends)], rows)


@table
def ml10_training_tasks(results: Path) -> str:
    """ML10: success of training episodes by task and in the first and last episode, last million frames."""
    tasks = EvaluationReport.load(results / "ml10" / HTRMRL[0] / "evaluations" / "val_000004000000.json").tasks
    runs = read_runs(results)
    columns = ["first_episode", "last_episode", *(f"train/success/{task}" for task in tasks)]
    rows = [[name, *training(runs, run, columns, above=19_000_000, upto=20_000_000)] for name, run in RUNS.items()]
    return markdown(["", "episode 1", "episode 5", *short(tasks)], rows)


@table
def ml10_val(results: Path) -> str:
    """ML10: success on val while training, under strict, two goals per task."""
    rows = []
    for name, run in RUNS.items():
        paths = sorted((results / "ml10" / run / "evaluations").glob("val_*.json"))
        rows.append([name, *cells(EvaluationReport.load(path).success_rate for path in paths)])
    return markdown(["frames", "4M", "8M", "12M", "16M", "20M"], rows)


@table
def ml10_adaptation(results: Path) -> str:
    """ML10, test tasks: success by episode of the trial, sampled actions."""
    reports = {name: ml10(results, [run], *PLAYED["test, `strict`"]) for name, run in RUNS.items()}
    rows = [[name, *cells(report.success_by_episode()[:10])] for name, report in reports.items()]
    return markdown(["", "episode 1", *map(str, range(2, 11))], rows)


@table
def ml10_nearest(results: Path) -> str:
    """ML10: the two training tasks that a test task's context vectors lie nearest to, by share of the vectors."""
    runs = json.loads((results / "ml10" / "nearest_tasks.json").read_text(encoding="utf-8"))["runs"]

    def nearest(shares: dict[str, float]) -> str:
        best = sorted(shares, key=lambda task: shares[task], reverse=True)[:2]
        return ", ".join(f"{name} {cell(shares[task])}" for task, name in zip(best, short(best), strict=True))

    rows = [[f"HTrMRL, seed {seed}", *map(nearest, run["nearest"].values())] for seed, run in enumerate(runs, 1)]
    return markdown(["", *short(runs[0]["nearest"])], rows)


@table
def ml10_history(results: Path) -> str:
    """ML10, test tasks that are sometimes solved: episodes 2 to 10, by what the trial had shown so far."""

    def share(now: np.ndarray, chosen: np.ndarray) -> str:
        return f"{now[chosen].mean():.2f} ({chosen.sum()})" if chosen.any() else "none"

    rows = []
    for name, run in RUNS.items():
        report = ml10(results, [run], *PLAYED["test, `strict`"])
        for task, label in enumerate(short(report.tasks)):
            success = report.success[0][report.task == task, :10] > 0
            before, now = success[:, :-1], success[:, 1:]
            if success.mean() < 0.02:
                continue
            failed = ~np.maximum.accumulate(success, 1)[:, :-1]
            first = share(success[:, 0], np.full(len(success), True))
            rows.append([name, label, first, *(share(now, chosen) for chosen in (before, ~before, failed))])
    return markdown(["", "", "first episode", "after a success", "after a failure", "no success so far"], rows)


@table
def ml10_stages(results: Path) -> str:
    """ML10, test tasks: how far the episode with the mean action came, by Meta-World's own measures."""
    rows = []
    for name, run in list(RUNS.items())[: len(HTRMRL)]:
        (path,) = (results / "ml10" / run / "evaluations").glob("ML10_test_strict_*_stages.json")
        for task, stages in json.loads(path.read_text(encoding="utf-8")).items():
            measured = cells(stages.values())
            if task == "door-close-v3":  # its near and grasped say nothing, see `StageReport`
                measured[:2] = "", ""
            rows.append([name, *short([task]), *measured])
    return markdown(["", "", "near", "grasped", "in place", "success"], rows)
