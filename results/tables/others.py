"""Tables of ML1, the toy and speed."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from htrmrl_torchrl.evaluation import EvaluationReport
from htrmrl_torchrl.evaluation.intervals import DIFFERENCES, interval_over_goals
from results.tables.cells import cell, cells, curve, markdown, scored, table, values, with_range

ML1 = {
    "HTrMRL": "htrmrl",
    "RL2": "rl2",
    "RL2, observations normalised": "rl2_normalised",
    "TrMRL": "trmrl",
    "MLP": "mlp",
}


def ml1(results: Path, method: str, split: str) -> EvaluationReport:
    """One report of three training seeds, 50 goals."""
    return EvaluationReport.load(results / "baselines_ml1" / "evaluations" / f"{method}_{split}.json")


@table
def ml1_methods(results: Path) -> str:
    """ML1 reach-v3: success on 50 held-out goals by episode of the trial, mean of three seeds."""
    rows = []
    for name, method in ML1.items():
        for split in ("val", "test"):
            report = ml1(results, method, split)
            episodes = report.success_by_episode()
            seeds = report.success[..., 5:10].mean((1, 2))
            shown = [*cells(episodes[k] for k in (0, 1, 4, 9)), with_range(seeds), scored(report)]
            rows.append([name if split == "val" else "", f"`{split}`", *shown])
    return markdown(["", "split", "episode 1", "2", "5", "10", "6 to 10 (seeds)", "`strict`"], rows)


@table
def ml1_training(results: Path) -> str:
    """ML1 reach-v3: training success by episode, last 200,000 frames, mean of three seeds (lowest to highest)."""
    rows = []
    for name, method in ML1.items():
        runs = [results / "baselines_ml1" / f"{method}_seed{seed}" for seed in (1, 2, 3)]
        metrics = [f"train/success_by_episode/{k}" for k in (0, 1, 4, 9)]
        rows.append([name, *(with_range([curve(run, m, above=500_000) for run in runs]) for m in metrics)])
    return markdown(["", "episode 1", "2", "5", "10"], rows)


@table
def ml1_differences(results: Path) -> str:
    """ML1 reach-v3: HTrMRL minus the others, paired by goal, over the 100 goals of both splits."""

    def goals(method: str, episodes: slice) -> np.ndarray:
        return np.concatenate([ml1(results, method, s).success[..., episodes].mean((0, 2)) for s in ("val", "test")])

    rows = []
    for name, method in list(ML1.items())[1:]:
        differences = [goals("htrmrl", at) - goals(method, at) for at in (slice(0, 1), slice(5, 10), slice(10, 11))]
        rows.append([name, *(cell(d.mean(), interval_over_goals([d], scale=DIFFERENCES)) for d in differences)])
    return markdown(["HTrMRL minus", "episode 1", "episodes 6 to 10", "mean action"], rows)


@table
def ml1_speed(results: Path) -> str:
    """ML1 reach-v3: frames per second of collection and update, median over iterations, lowest and highest seed."""
    rows = []
    for name, method in ML1.items():
        speeds = []
        for seed in (1, 2, 3):
            run = results / "baselines_ml1" / f"{method}_seed{seed}"
            collect, update = (values(run, f"time/{stage}") for stage in ("collect", "update"))
            speeds.append(float(np.median(20_000 / (collect + update))))  # each iteration has 20,000 frames
        rows.append([name, f"{min(speeds):,.0f} to {max(speeds):,.0f}"])
    return markdown(["", "frames/s"], rows)


@table
def ml1_inside(results: Path) -> str:
    """ML1 reach-v3: attention, and how well context vectors tell goals apart, of a trained and an untrained agent."""
    content = json.loads((results / "baselines_ml1" / "inside" / "inspection.json").read_text(encoding="utf-8"))
    rows = []
    for split in ("train", "test"):
        for kind in ("trained", "untrained"):
            attention = content["attention"][split][kind]
            later = content["separation"][split]["first decision"][kind][1:]
            purity = [episode["purity"] for episode in later]
            entropy = cell(attention["relative entropy over windows, mean over heads"])
            ratio = attention.get(
                "attention on a successful window over that on a failed one"
            )  # none if none succeeded
            nearest = f"{min(purity):.2f} to {max(purity):.2f}"
            row = [f"{kind}, `{split}`", entropy, "" if ratio is None else cell(ratio), nearest]
            rows.append([*row, cell(later[0]["chance"])])
    header = ["", "relative entropy over windows", "attention, success / failure", "same goal nearest", "chance"]
    return markdown(header, rows)


# --------------------------------------------------------------------------------------------------------------- toy


@table
def toy(results: Path) -> str:
    """Toy: training success by episode, last 20,000 frames, mean of five seeds (lowest to highest)."""
    groups = {
        "HTrMRL, 300,000 frames": [results / "trial_length" / f"uniform_last_seed{seed}" for seed in range(1, 6)],
        "current window only, 200,000 frames": [results / "quickstart" / f"masked_seed{seed}" for seed in range(1, 6)],
    }
    starts = {"HTrMRL, 300,000 frames": 280_000, "current window only, 200,000 frames": 180_000}
    return markdown(
        ["", "episode 1", "2", "3", "4"], [[name, *_toy(runs, starts[name])] for name, runs in groups.items()]
    )


@table
def toy_baselines(results: Path) -> str:
    """Toy: training success by episode, last 20,000 of 200,000 frames, mean of three seeds (lowest to highest)."""
    names = {"HTrMRL": "htrmrl", "RL2": "rl2", "TrMRL": "trmrl", "MLP": "mlp"}
    runs = {name: [results / "baselines_toy" / f"{run}_seed{s}" for s in (1, 2, 3)] for name, run in names.items()}
    return markdown(
        ["", "episode 1", "2", "3", "4"], [[name, *_toy(folders, 180_000)] for name, folders in runs.items()]
    )


def _toy(runs: Sequence[Path], above: int) -> list[str]:
    return [with_range([curve(run, f"train/success_by_episode/{k}", above=above) for run in runs]) for k in range(4)]


@table
def toy_long_trials(results: Path) -> str:
    """Toy: success in trials of 12 episodes after training on 4, mean of seeds."""
    runs = json.loads((results / "trial_length" / "long_trials.json").read_text(encoding="utf-8"))["runs"]
    episodes = (1, 2, 3, 4, 5, 6, 8, 10, 12)
    rows = []
    for strategy in ("uniform_last", "recent"):
        for actions, label in (("sampled", "sampled"), ("mean_action", "mean action in that episode")):
            curves = np.array([run[actions] for run in runs if run["strategy"] == strategy])
            name = f"`{strategy}`, {len(curves)} seeds"
            rows.append([name, label, *cells(curves.mean(0)[k - 1] for k in episodes)])
            rows.append(["", "lowest seed", *cells(curves.min(0)[k - 1] for k in episodes)])
    return markdown(["", "actions", *map(str, episodes)], rows)


@table
def toy_contexts(results: Path) -> str:
    """Toy: success with the mean action in the agent's own context and in another one, by run."""
    runs = json.loads((results / "trial_length" / "long_trials.json").read_text(encoding="utf-8"))["runs"]
    rows = []
    for run in runs:
        other = run["mean_action_in_other_contexts"].values()
        shown = [run["mean_action"][3], run["mean_action"][11], *other]
        rows.append([f"`{run['strategy']}`, seed {run['seed']}", *cells(shown[k] for k in (0, 2, 1, 3))])
    header = ["", "episode 4", "shown 2 and 3 only", "episode 12", "shown 1, 10 and 11"]
    return markdown(header, rows)


# ------------------------------------------------------------------------------------------------------------- speed


def _benchmark(results: Path, part: str) -> list[dict[str, Any]]:
    return json.loads((results / "benchmark" / "benchmark.json").read_text(encoding="utf-8"))[part]


@table
def speed_environments(results: Path) -> str:
    """Environment steps per second, ML10, random actions."""
    rows = [
        [
            row["environment"],
            f"{row['steps/s']:,.0f}",
            f"{row['x sync']:.1f}",
            f"{row['x async']:.1f}",
            f"{row['of physics']:.2f}",
        ]
        for row in _benchmark(results, "environment")
    ]
    return markdown(["", "steps/s", "x sync", "x async", "x physics alone, 1 process"], rows)


@table
def speed_updates(results: Path) -> str:
    """PPO update: frames and epochs per second, forward to optimizer step."""
    rows = [[r["update"], f"{r['frame-epochs/s']:,.0f}", f"{r['x dense']:.0f}"] for r in _benchmark(results, "update")]
    return markdown(["", "frames x epochs / s", "x dense"], rows)


@table
def speed_collection(results: Path) -> str:
    """Collection with two workers: frames per second."""
    rows = [
        [r["collection"], f"{r['frames/s']:,.0f}", f"{r['x official']:.1f}"] for r in _benchmark(results, "collection")
    ]
    return markdown(
        ["", "frames/s", "x 20 environments, official"],
        [[row[0].replace("lanes", "environments"), *row[1:]] for row in rows],
    )


@table
def speed_recipe(results: Path) -> str:
    """recipes/ml10_ppo.py, second iteration."""
    rows = [
        [
            row["recipe"].replace("lanes", "environments"),
            f"{row['frames/s']:,.0f}",
            f"{row['collect s']:.0f} s",
            f"{row['update s']:.0f} s",
            f"{row['evaluation share']:.0%}",
            f"{row['peak GiB']:.1f} GiB",
        ]
        for row in _benchmark(results, "recipe")
    ]
    return markdown(["", "frames/s", "collect", "update", "evaluation, share of a run", "memory"], rows)


@table
def speed_processes(results: Path) -> str:
    """ML10's defaults: medians of the iterations of one process and two, before lean acting and since."""
    rows = []
    for of in json.loads((results / "benchmark" / "processes.json").read_text())["settings"]:
        collect, update = np.median(of["collect"]), np.median(of["update"])
        name = "before lean acting" if of["commit"] == "bc46aa9" else "since"
        rate = f"{20_000 / (collect + update):,.0f}"
        rows.append([f"{name} ({of['commit']})", f"`{of['overrides']}`", f"{collect:.2f}", f"{update:.2f}", rate])
    return markdown(["code", "setting", "collecting, s", "updating, s", "frames/s"], rows)
