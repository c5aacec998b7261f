"""For each ML10 test task, the training tasks whose context vectors lie nearest to its own.

    python results/ml10/nearest_tasks.py results/ml10/htrmrl_grow_20m_seed*.torchrl

An agent plays four goals of every training and test task, five episodes of 200 steps with sampled actions, and every
eighth context vector (the encoder's output) is kept. Each vector of a test task belongs to the training task of the
nearest vector (Euclidean distance). Writes the shares to nearest_tasks.json beside this file.
"""

import json
import shlex
import sys
from pathlib import Path

import torch

from htrmrl_torchrl import make_env
from htrmrl_torchrl.agent import load_networks
from htrmrl_torchrl.checkpoints.versions import versions
from htrmrl_torchrl.envs import task_names
from htrmrl_torchrl.inspection.recording import record_trials

GOALS, EPISODES, HORIZON, EVERY = 4, 5, 200, 8


def recorded(networks, split):
    """Tasks ``[trials]`` and context vectors ``[trials, vectors, D]`` of one trial on each goal."""
    pairs = [(task, goal) for task in range(len(task_names("ML10", split))) for goal in range(GOALS)]
    env = make_env("ML10", split=split, num_envs=len(pairs), episodes_per_trial=EPISODES, horizon=HORIZON, pairs=pairs)
    seen = record_trials(networks, env, trials=len(pairs), every=EVERY)
    env.close()
    return seen.task, seen.hidden.flatten(1, 2)


def nearest_tasks(checkpoint):
    """``{test task: {training task: share of the test task's vectors}}``."""
    networks = load_networks(checkpoint)
    (known_task, known), (new_task, new) = (recorded(networks, split) for split in ("train", "test"))
    owner, training = known_task.repeat_interleave(known.shape[1]), task_names("ML10", "train")
    shares = {}
    for task, name in enumerate(task_names("ML10", "test")):
        nearest = owner[torch.cdist(new[new_task == task].flatten(0, 1), known.flatten(0, 1)).argmin(1)]
        counts = torch.bincount(nearest, minlength=len(training)) / len(nearest)
        shares[name] = dict(zip(training, counts.tolist(), strict=True))
    return shares


def main():
    """Plays, prints and writes."""
    torch.set_num_threads(1)
    runs = []
    for path in sys.argv[1:]:
        runs.append({"checkpoint": path, "nearest": nearest_tasks(path)})
        print(path, json.dumps(runs[-1]["nearest"], indent=1), flush=True)
    if not runs:
        sys.exit(__doc__)
    content = {"command": shlex.join(["python", *sys.argv]), "versions": versions(), "runs": runs}
    Path(__file__).with_suffix(".json").write_text(json.dumps(content, indent=1) + "\n")


if __name__ == "__main__":
    main()
