"""Reports by hand, whose numbers are worked out on paper."""

import numpy as np

from htrmrl_torchrl.evaluation import EvaluationReport, Protocol

NAN = float("nan")


def hand_made(
    success, *, returns=None, steps=None, task=None, tasks=("alpha", "beta"), adaptation_episodes=0, **others
):
    """A report of ``success[run][pair][episode]``; each pair is a task of its own unless `task` says otherwise."""
    success = np.array(success, dtype=float)
    runs, pairs, episodes = success.shape
    task = np.array(range(pairs) if task is None else task)
    goal = np.array([int((task[:row] == task[row]).sum()) for row in range(pairs)])
    protocol = Protocol(
        name="strict",
        adaptation_episodes=adaptation_episodes,
        evaluation_episodes=episodes - adaptation_episodes,
        evaluation_actions="mean",
        goals_per_task=int(goal.max()) + 1,
    )
    fields = {
        "benchmark": "ML10",
        "split": "test",
        "benchmark_seed": 0,
        "protocol": protocol,
        "horizon": 500,
        "tasks": list(tasks),
        "task": task,
        "goal": goal,
        "success": success,
        "returns": np.zeros_like(success) if returns is None else np.array(returns, dtype=float),
        "steps_to_success": np.where(success > 0, 1.0, NAN) if steps is None else np.array(steps, dtype=float),
        "runs": [{"seed": 0} for _ in range(runs)],
        "versions": {"python": "3.11.9"},
        "command": "python recipes/evaluate.py checkpoint=runs/x",
    }
    return EvaluationReport(**(fields | others))


def two_runs(**others):
    """Two runs; three goals of alpha and one of beta; one episode to adapt and two that count."""
    success = [
        [[0, 1, 1], [0, 0, 1], [1, 0, 0], [0, 1, 0]],
        [[1, 1, 1], [0, 0, 0], [0, 1, 0], [1, 1, 1]],
    ]
    steps = [
        [[NAN, 4, 6], [NAN, NAN, 10], [1, NAN, NAN], [NAN, 7, NAN]],
        [[2, 8, 5], [NAN, NAN, NAN], [NAN, 3, NAN], [9, 1, 2]],
    ]
    returns = [[[10 * run + pair + 100 * episode for episode in range(3)] for pair in range(4)] for run in range(2)]
    return hand_made(
        success, steps=steps, returns=returns, task=[0, 0, 0, 1], adaptation_episodes=1, **others
    )  # fmt: skip


def believable(tasks, *, seed=0, goals=4, episodes=11, runs=1, **others):
    """A report as a trained agent might give it, to look at."""
    rng = np.random.default_rng(seed)
    task = np.repeat(np.arange(len(tasks)), goals)
    level = rng.beta(0.5, 0.5, len(tasks))[task]
    learnt = level[None, :, None] * (1 - 0.7 * np.exp(-np.arange(episodes) / 2))
    success = rng.random((runs, len(task), episodes)) < learnt
    return hand_made(success, task=task, tasks=tasks, adaptation_episodes=episodes - 1, **others)
