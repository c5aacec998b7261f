"""Success by episode in toy trials three times as long as those of training, on 400 environments, 100 for each goal.

    python results/trial_length/long_trials.py RUN_FOLDER_OR_CHECKPOINT...

Run folders are those of recipes/toy_ppo.py; of each the last checkpoint is played: with sampled actions throughout
(mean of three evaluation seeds), and, for every k, with sampled actions in the first k - 1 episodes and the mean action
in the k-th. Then, with the mean action, in contexts that are not the agent's own: the fourth episode, which training
has too, shown the second and third alone; the twelfth, shown the first and the two before it. Writes long_trials.json
beside this file, and docs/results/figures/toy_long_trials.png.
"""

import json
import shlex
import sys
from pathlib import Path

import torch
from matplotlib.figure import Figure

from htrmrl_torchrl import make_env
from htrmrl_torchrl.agent import acting_policy, load_networks
from htrmrl_torchrl.checkpoints.checkpoint import read_component
from htrmrl_torchrl.checkpoints.versions import versions
from htrmrl_torchrl.evaluation import PROTOCOLS, play_trials

EPISODES, ENVIRONMENTS, SEEDS = 12, 400, (0, 1, 2)


def without_first(past, *, slots, window, rng):
    """The last windows of the second and third episode, in the fourth; in others those of all."""
    shown = (1, 2) if len(past) == 3 else range(len(past))
    return [(episode, max(0, past.lengths[episode] - window)) for episode in shown]


def with_first(past, *, slots, window, rng):
    """The last windows of the first episode and of the latest two."""
    shown = sorted({0, *range(max(0, len(past) - 2), len(past))}) if len(past) else []
    return [(episode, max(0, past.lengths[episode] - window)) for episode in shown]


def success(checkpoint, *, episodes, mean_action, seed, strategy=None):
    """In each episode, the share of the environments that succeed; ``mean_action`` is for the last one alone."""
    pairs = [(0, index % 4) for index in range(ENVIRONMENTS)]
    env = make_env("toy", split="test", num_envs=ENVIRONMENTS, episodes_per_trial=episodes, pairs=pairs)
    policy = acting_policy(load_networks(checkpoint), seed=seed, strategy=strategy)
    protocol = PROTOCOLS["strict"].changed(
        adaptation_episodes=episodes - 1, evaluation_actions="mean" if mean_action else "sampled", goals_per_task=100
    )
    outcomes = play_trials(policy, env, protocol, seed=seed)
    return outcomes["success"].double().mean(0)


def of_run(run):
    """What a run is and how its last checkpoint does."""
    checkpoint = run if run.is_file() else max((run / "checkpoints").glob("step-*.torchrl"))
    config, progress = read_component(checkpoint, "config"), read_component(checkpoint, "progress")
    sampled = [success(checkpoint, episodes=EPISODES, mean_action=False, seed=seed) for seed in SEEDS]
    mean = [success(checkpoint, episodes=k, mean_action=True, seed=7)[-1].item() for k in range(1, EPISODES + 1)]
    contexts = {"4, shown 2 and 3": (4, without_first), "12, shown 1, 10 and 11": (12, with_first)}
    other = {
        name: success(checkpoint, episodes=k, mean_action=True, seed=7, strategy=strategy)[-1].item()
        for name, (k, strategy) in contexts.items()
    }
    return {
        "run": run.stem, "strategy": config["memory"]["strategy"], "seed": config["seed"],
        "frames": progress["frames"], "commits": progress["commits"],
        "sampled": [round(x, 4) for x in torch.stack(sampled).mean(0).tolist()], "mean_action": mean,
        "mean_action_in_other_contexts": other,
    }  # fmt: skip


def figure(runs):
    """Sampled actions and the mean action side by side; a thin line for each seed, a thick one for their mean."""
    drawing = Figure(figsize=(9, 3.6), layout="constrained")
    for axes, kind in zip(drawing.subplots(1, 2, sharey=True), ("sampled", "mean_action"), strict=True):
        for number, strategy in enumerate(dict.fromkeys(run["strategy"] for run in runs)):
            curves = torch.tensor([run[kind] for run in runs if run["strategy"] == strategy])
            at = range(1, EPISODES + 1)
            axes.plot(at, curves.T, color=f"C{number}", linewidth=0.7, alpha=0.5)
            label = f"{strategy}, mean of {len(curves)} seeds"
            axes.plot(at, curves.mean(0), color=f"C{number}", marker="o", label=label)
        axes.axvline(4.5, color="0.5", linestyle=":", linewidth=1)
        title = {"sampled": "sampled actions", "mean_action": "mean action in this episode alone"}[kind]
        axes.set(xlabel="episode of the trial (trained on 4)", title=title, ylim=(0, 1.02), xticks=range(1, 13))
    axes.legend(loc="lower right")
    drawing.axes[0].set_ylabel("success rate")
    return drawing


def main():
    """Plays, prints and leaves the files."""
    torch.set_num_threads(1)
    runs = []
    for folder in map(Path, sys.argv[1:]):
        runs.append(of_run(folder))
        for kind in ("sampled", "mean_action"):
            print(f"{folder.name:20} {kind:12}", " ".join(f"{x:.2f}" for x in runs[-1][kind]))
        print(f"{folder.name:20} {runs[-1]['mean_action_in_other_contexts']}", flush=True)
    if not runs:
        sys.exit(__doc__)
    for strategy in dict.fromkeys(run["strategy"] for run in runs):
        for kind in ("sampled", "mean_action"):
            mean = torch.tensor([run[kind] for run in runs if run["strategy"] == strategy]).mean(0)
            print(f"{strategy + ', mean':20} {kind:12}", " ".join(f"{x:.2f}" for x in mean.tolist()))
    here = Path(__file__).resolve().parent
    content = {"command": shlex.join(["python", *sys.argv]), "versions": versions(), "runs": runs}
    (here / "long_trials.json").write_text(json.dumps(content, indent=1) + "\n")
    figure(runs).savefig(here.parents[1] / "docs" / "results" / "figures" / "toy_long_trials.png", dpi=120)


if __name__ == "__main__":
    main()
