"""Evaluation counts right: agents that solve a known share of the goals get exactly that share, on the real simulator.

Which pairs Meta-World's experts solve, and an idle agent does not, is checked first, on Meta-World's own classes.
"""

import metaworld
import numpy as np
import pytest
from metaworld.policies import ENV_POLICY_MAP

from htrmrl_torchrl import evaluate
from htrmrl_torchrl.envs.benchmarks import draw_goals
from tests.experts import Experts, official_simulator

HORIZON = 120
DELAY = 30  # steps that an expert waits, for each goal before its own: early and late successes mixed


def step_of_success(task, rand_vec, horizon, *, idle):
    """When the expert (or nobody) solves it on Meta-World's own class, counted from 1; 0 for never."""
    simulator = official_simulator(task, rand_vec, partially_observable=False)
    observation, _ = simulator.reset()
    policy = ENV_POLICY_MAP[task]()
    for step in range(1, horizon + 1):
        action = np.zeros(4) if idle else np.clip(policy.get_action(observation), -1, 1)
        observation, _, _, _, info = simulator.step(action.astype(np.float32))
        if info["success"] > 0:
            return step
    return 0


@pytest.fixture(scope="module")
def experts():
    return Experts("ML10", "test", goals_per_task=2)


def test_experts_solve_what_idling_does_not(experts):
    for task, (name, goals) in enumerate(zip(experts.names, draw_goals("ML10", "test", 0), strict=True)):
        for goal in range(2):
            assert step_of_success(name, goals[goal], HORIZON - DELAY * goal, idle=False) > 0, (task, goal)
            assert step_of_success(name, goals[goal], HORIZON, idle=True) == 0


def test_strict_counts_every_pair_once_whatever_the_lanes(experts):
    def solves(task, goal, episode):
        return (task + goal) % 3 == 0 if episode == 1 else (task + goal) % 3 == 1

    reports = [
        evaluate(
            experts.policy(solves, delay=DELAY),
            "ML10",
            goals_per_task=2,
            adaptation_episodes=1,
            horizon=HORIZON,
            num_envs=lanes,
        )
        for lanes in (10, 3)  # all at once, and rounds of which the last is not full
    ]
    first = reports[0]
    pairs = [(t, g) for t in range(5) for g in (0, 1)]
    assert list(zip(first.task.tolist(), first.goal.tolist(), strict=True)) == pairs
    assert first.success.tolist() == [[[float(solves(t, g, k)) for k in (0, 1)] for t, g in pairs]]
    assert first.success_rate == pytest.approx(3 / 10, rel=1e-15)  # (0, 0), (2, 1) and (3, 0)
    assert first.task_success() == dict(zip(first.tasks, [0.5, 0.0, 0.5, 0.5, 0.0], strict=True))
    late = np.nanmin(first.steps_to_success[0, first.goal == 1])
    assert late > DELAY > 0 and np.nanmin(first.steps_to_success[0, first.goal == 0]) >= 1
    for other in reports[1:]:
        assert np.array_equal(other.success, first.success) and np.array_equal(other.returns, first.returns)
        assert np.array_equal(other.steps_to_success, first.steps_to_success, equal_nan=True)


class OneInFour:
    """A ``MetaLearningAgent`` that solves the first goal of every task and no other."""

    def __init__(self, experts, goals_per_task, order):
        self.experts, self.goals_per_task = experts, goals_per_task
        self.order = [experts.names.index(name) for name in order]  # Meta-World's order of tasks

    def init(self): ...

    def adapt(self): ...

    def step(self, timestep): ...

    def reset(self, env_mask): ...

    def adapt_action(self, observations):
        return np.zeros((len(observations), 4)), {}

    def eval_action(self, observations):
        actions = np.zeros((len(observations), 4))
        for lane in range(0, len(observations), self.goals_per_task):
            task = self.order[lane // self.goals_per_task]
            actions[lane] = self.experts.action(task, 0, observations[lane])
        return actions


def both_protocols(benchmark, order, **numbers):
    experts = Experts(benchmark, "test", goals_per_task=4)
    last = numbers["adaptation_episodes"]
    policy = experts.policy(lambda task, goal, episode: goal == 0 and episode >= last)
    strict = evaluate(policy, benchmark, goals_per_task=4, **numbers)
    official = evaluate(OneInFour(experts, 4, order), benchmark, protocol="metaworld", goals_per_task=4, **numbers)
    return strict, official


def test_the_official_evaluator_turns_one_in_four_into_all():
    strict, official = both_protocols(
        "ML1:drawer-open-v3", ["drawer-open-v3"], adaptation_episodes=1, evaluation_episodes=1, horizon=120
    )
    assert strict.success_rate == 0.25 and strict.task_steps_to_success()["drawer-open-v3"] < 120
    assert official.success_rate == 1.0 and official.protocol.biased
    assert "BIASED" in str(official) and "BIASED" not in str(strict)


@pytest.mark.slow
def test_the_official_evaluator_turns_one_in_four_into_all_on_ml10():
    order = list(metaworld.env_dict.ML10_V3["test"])
    strict, official = both_protocols("ML10", order, adaptation_episodes=1, evaluation_episodes=3, horizon=500)
    assert strict.success_rate == 0.25
    assert official.success_rate == 1.0
