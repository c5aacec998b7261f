"""Bootstrap intervals against resampling distributions that are enumerated to the last draw."""

import itertools
from collections import Counter
from fractions import Fraction

import numpy as np
import pytest

from htrmrl_torchrl.evaluation.intervals import bootstrap_goals, bootstrap_runs


def enumerated(by_task):
    """The 95% percentile interval of the mean of means, from all equally likely resamples, by loops and fractions."""
    means = []
    for goals in by_task:
        resamples = itertools.product([Fraction(goal) for goal in goals], repeat=len(goals))
        means.append(Counter(sum(resample) / len(goals) for resample in resamples))
    weights = Counter()
    for combination in itertools.product(*means):
        weight = 1
        for task, mean in enumerate(combination):
            weight *= means[task][mean]
        weights[sum(combination) / len(by_task)] += weight
    total, below, interval = sum(weights.values()), 0, {}
    for value in sorted(weights):
        below += weights[value]
        for level in (0.025, 0.975):
            # Monte Carlo finds the same quantile only where no atom ends near the level: 0.006 is four of its sigmas.
            assert abs(below / total - level) > 0.006, "choose samples whose quantiles are not on a verge"
            if below / total > level:
                interval.setdefault(level, float(value))
    return interval[0.025], interval[0.975]


@pytest.mark.parametrize(
    "by_task",
    [
        [[0, 1], [0, 1]],
        [[0, 1], [0, 1], [0, 1]],
        [[0, 0, 1], [0, 1, 1]],
        [[0, 1, 1, 0], [1, 1]],
        [[0.25, 0.5, 1], [0.5, 0.75, 1]],
        [[0, 0, 0, 0, 1]],
        [[1, 1], [0, 0]],
    ],
)
def test_intervals_over_goals_are_those_of_the_enumerated_resamples(by_task):
    received = bootstrap_goals([np.array(goals, dtype=float) for goals in by_task])
    assert received == pytest.approx(enumerated(by_task), rel=0, abs=1e-10)


def test_two_by_two_on_paper():
    """Each task's mean is 0, 1/2, 1 with odds 1:2:1, so both are 0 in one resample of 16: more than 2.5%."""
    assert bootstrap_goals([np.array([0.0, 1.0])] * 2) == (0.0, 1.0)


def test_three_by_two_on_paper():
    """All six draws are 0 in one resample of 64, less than 2.5%; at most one is 1 in seven of 64, more than that."""
    assert bootstrap_goals([np.array([0.0, 1.0])] * 3) == pytest.approx((1 / 6, 5 / 6), rel=0, abs=1e-10)


def test_tasks_weigh_equally_whatever_their_number_of_goals():
    few, many = np.ones(2), np.array([0.0] * 8)
    assert bootstrap_goals([few, many]) == (0.5, 0.5)  # pooled over goals it would be around 0.2


def test_goals_are_drawn_within_their_task():
    """Negative control: drawn from all goals alike, 1 of 8 to 7 of 8 would be plausible, since P(X = 0) = 1/256."""
    solved, unsolved = np.ones(4), np.zeros(4)
    assert bootstrap_goals([solved, unsolved]) == (0.5, 0.5)
    assert bootstrap_goals([np.concatenate([solved, unsolved])]) == (0.125, 0.875)
    mixed = [np.array([1.0, 1.0, 1.0, 0.0]), np.array([0.0, 0.0, 0.0, 1.0])]
    low, high = bootstrap_goals(mixed)
    wide_low, wide_high = bootstrap_goals([np.concatenate(mixed)])
    assert wide_low < low < 0.5 < high < wide_high


@pytest.mark.parametrize("by_task", [[[1.0]], [[0.0, 1.0], [1.0]], [[0.0, 1.0], []]])
def test_one_goal_of_a_task_has_no_interval(by_task):
    assert bootstrap_goals([np.array(goals) for goals in by_task]) is None


def test_equal_outcomes_have_an_interval_without_width():
    assert bootstrap_goals([np.ones(2), np.ones(3)]) == (1.0, 1.0)
    assert bootstrap_runs([0.25, 0.25, 0.25]) == (0.25, 0.25)


@pytest.mark.parametrize("scores", [[0.5, 0.75], [0.25, 0.5, 1.0], [0.0, 0.0, 0.0, 1.0]])
def test_intervals_over_runs_are_those_of_the_enumerated_resamples(scores):
    assert bootstrap_runs(scores) == pytest.approx(enumerated([scores]), rel=0, abs=1e-10)


@pytest.mark.parametrize("scores", [[], [0.5]])
def test_one_run_has_no_interval(scores):
    assert bootstrap_runs(scores) is None


def test_the_same_numbers_give_the_same_interval_and_leave_numpys_stream_alone():
    by_task = [np.random.default_rng(1).random(5), np.random.default_rng(2).random(5)]
    np.random.seed(3)
    before = np.random.get_state()[1].copy()
    first = bootstrap_goals(by_task)
    assert bootstrap_goals(by_task) == first
    assert (np.random.get_state()[1] == before).all()
