"""Intervals cover what they promise, by simulation; the resampled percentile interval that they replace does not."""

import math
import statistics

import numpy as np
import pytest
from scipy.stats import binom, bootstrap, t

from htrmrl_torchrl.evaluation.intervals import DIFFERENCES, SHARES, interval_over_goals, interval_over_runs

# ----------------------------------------------------------------------------------------------------------- coverage

RATES = {
    "nearly 0": lambda tasks: np.full(tasks, 0.02),
    "low": lambda tasks: np.full(tasks, 0.1),
    "half": lambda tasks: np.full(tasks, 0.5),
    "high": lambda tasks: np.full(tasks, 0.9),
    "nearly 1": lambda tasks: np.full(tasks, 0.98),
    "one high, the others 0": lambda tasks: np.eye(1, tasks)[0] * 0.9,
    "one half, the others 1": lambda tasks: 1 - np.eye(1, tasks)[0] * 0.5,
    "either high or low": lambda tasks: np.where(np.arange(tasks) % 2, 0.1, 0.9),
    "from 0 to 1": lambda tasks: np.linspace(0.0, 1.0, tasks),
}


def drawn(rates, *, goals, episodes, trials, seed=0):
    """``[trials, tasks, goals]`` success. With several episodes each goal has a rate of its own, around its task's."""
    rng = np.random.default_rng(seed)
    shape = (trials, len(rates), goals)
    by_goal = np.broadcast_to(rates[:, None], shape)
    if episodes > 1:
        by_goal = np.where(
            (by_goal > 0) & (by_goal < 1), rng.beta(4 * by_goal + 1e-9, 4 * (1 - by_goal) + 1e-9), by_goal
        )
    return rng.binomial(episodes, by_goal) / episodes


def covered(samples, truth, interval):
    """How many of the samples' intervals hold the truth; equal samples are looked at once."""
    ordered = np.sort(samples, axis=-1)
    ordered = np.array([sample[np.lexsort(sample.T)] for sample in ordered])  # neither order says anything
    distinct, counts = np.unique(ordered, axis=0, return_counts=True)
    hits = 0
    for sample, count in zip(distinct, counts, strict=True):
        low, high = interval(list(sample))
        hits += int(count) * (low - 1e-9 <= truth <= high + 1e-9)
    return hits


@pytest.mark.parametrize("episodes", [1, 10])
@pytest.mark.parametrize("tasks,goals", [(1, 2), (1, 5), (5, 2), (5, 10), (10, 5)])
@pytest.mark.parametrize("trials", [150, pytest.param(2_000, marks=pytest.mark.slow)])
def test_intervals_over_goals_cover_95_percent_with_few_goals_and_near_0_and_1(tasks, goals, episodes, trials):
    """At least 93% in truth, or such a count comes up once in a million."""
    for name, rates in RATES.items():
        samples = drawn(rates(tasks), goals=goals, episodes=episodes, trials=trials)
        hits = covered(samples, rates(tasks).mean(), lambda sample: interval_over_goals(sample, scale=SHARES))
        assert hits >= binom.ppf(1e-6, trials, 0.93), f"{name}: {hits} of {trials}"


@pytest.mark.parametrize("tasks,goals", [(1, 5), (5, 2), (5, 10)])
def test_intervals_of_a_difference_cover_95_percent(tasks, goals):
    trials = 400
    for name in ("nearly 0", "half", "one high, the others 0"):
        first = drawn(RATES[name](tasks), goals=goals, episodes=1, trials=trials)
        better = np.maximum(first, drawn(np.full(tasks, 0.1), goals=goals, episodes=1, trials=trials, seed=1))
        truth = (0.1 * (1 - RATES[name](tasks))).mean()
        hits = covered(better - first, truth, lambda sample: interval_over_goals(sample, scale=DIFFERENCES))
        assert hits >= binom.ppf(1e-6, trials, 0.93), f"{name}: {hits} of {trials}"


@pytest.mark.parametrize("runs", [2, 3, 5])
def test_intervals_over_runs_cover_95_percent(runs):
    trials = 2_000
    scores = np.random.default_rng(0).normal(0.4, 0.1, (trials, runs))
    hits = sum(low <= 0.4 <= high for low, high in map(interval_over_runs, scores))
    assert binom.ppf(1e-6, trials, 0.95) <= hits <= binom.ppf(1 - 1e-6, trials, 0.95)


@pytest.mark.parametrize("tasks,goals,name", [(10, 2, "half"), (1, 4, "high"), (5, 2, "one high, the others 0")])
def test_negative_control_resampled_percentiles_do_not(tasks, goals, name):
    def percentiles(by_task):
        def mean_of_means(*resampled, axis):
            return np.mean([np.mean(sample, axis=axis) for sample in resampled], axis=0)

        options = {"n_resamples": 499, "method": "percentile", "vectorized": True, "rng": np.random.default_rng(0)}
        return bootstrap(by_task, mean_of_means, **options).confidence_interval

    trials = 300
    samples = drawn(RATES[name](tasks), goals=goals, episodes=1, trials=trials)
    hits = covered(samples, RATES[name](tasks).mean(), percentiles)
    assert hits < binom.ppf(1e-6, trials, 0.93), f"{hits} of {trials}"


# ------------------------------------------------------------------------------------------------------------ by hand


def test_one_task_of_equal_goals_has_agresti_and_coulls_center():
    """Five of five and two at each end: 7 of 9; squares 7 * (2/9)^2 + 2 * (7/9)^2 = 14/9 over 8 * 9."""
    low, high = interval_over_goals([np.ones(5)], scale=SHARES)
    assert low == pytest.approx(7 / 9 - t.ppf(0.975, 8) * math.sqrt(14 / 9 / 72), rel=0, abs=1e-10) and high == 1.0


def test_two_equal_tasks_have_agresti_and_caffos_center():
    """One at each end for each of two tasks: 3 of 4 and 1 of 4; squares are 3/4 each, over 3 * 4."""
    low, high = interval_over_goals([np.ones(2), np.zeros(2)], scale=SHARES)
    reach = t.ppf(0.975, 6) * math.sqrt(2 * 0.75 / 12) / 2
    assert (low, high) == pytest.approx((0.5 - reach, 0.5 + reach), rel=0, abs=1e-10)


def test_pseudo_goals_stand_where_the_variance_is():
    """One task of ten varies: the center moves by what two at each end move it alone, or nearly so."""
    by_task = [np.array([1.0] * 45 + [0.0] * 5), *[np.zeros(50)] * 9]
    low, high = interval_over_goals(by_task, scale=SHARES)
    alone = interval_over_goals(by_task[:1], scale=SHARES)
    assert (low + high) / 2 == pytest.approx(sum(alone) / 20, abs=0.003)
    assert (high - low) * 10 == pytest.approx(alone[1] - alone[0], rel=0.15)


def test_without_ends_it_is_welch_and_satterthwaites():
    by_task = [[15.0, 35.0, 10.0], [100.0, 104.0]]
    parts = [statistics.variance(goals) / len(goals) for goals in by_task]
    freedom = sum(parts) ** 2 / (parts[0] ** 2 / 2 + parts[1] ** 2 / 1)
    reach = t.ppf(0.975, freedom) * math.sqrt(sum(parts)) / 2
    received = interval_over_goals([np.array(goals) for goals in by_task], scale=None)
    assert received == pytest.approx((61 - reach, 61 + reach), rel=1e-10)


def test_over_runs_it_is_students():
    reach = t.ppf(0.975, 2) * statistics.stdev([0.2, 0.5, 0.8]) / math.sqrt(3)
    assert interval_over_runs([0.2, 0.5, 0.8]) == pytest.approx((0.5 - reach, 0.5 + reach), rel=1e-10)
    assert interval_over_runs([0.2, 0.5, 0.8], scale=SHARES) == (0.0, 1.0)


def test_tasks_weigh_equally_whatever_their_number_of_goals():
    low, high = interval_over_goals([np.ones(4), np.zeros(400)], scale=SHARES)
    assert 0.1 < low < 0.5 < high < 0.6  # pooled over goals it would be around 0.01


def test_goals_are_compared_within_their_task():
    """Negative control: the same goals, but as of one task, could have been nearly all or hardly any."""
    solved, unsolved = np.ones(8), np.zeros(8)
    low, high = interval_over_goals([solved, unsolved], scale=SHARES)
    wide_low, wide_high = interval_over_goals([np.concatenate([solved, unsolved])], scale=SHARES)
    assert wide_low < low < 0.5 < high < wide_high


def test_every_interval_has_a_width_and_holds_what_was_measured():
    rng = np.random.default_rng(0)
    for _ in range(300):
        tasks, episodes, rate = rng.integers(1, 11), rng.integers(1, 11), rng.choice([0.0, 0.05, 0.5, 1.0])
        by_task = [rng.binomial(episodes, rate, rng.integers(2, 60)) / episodes for _ in range(tasks)]
        low, high = interval_over_goals(by_task, scale=SHARES)
        assert 0 <= low < high <= 1 and low <= np.mean([goals.mean() for goals in by_task]) <= high
        low, high = interval_over_goals([2 * goals - 1 for goals in by_task], scale=DIFFERENCES)
        assert -1 <= low < high <= 1 and low <= np.mean([2 * goals.mean() - 1 for goals in by_task]) <= high


# --------------------------------------------------------------------------------------------------------------- none


@pytest.mark.parametrize("scale", [SHARES, DIFFERENCES, None])
@pytest.mark.parametrize("by_task", [[[1.0]], [[0.0, 1.0], [1.0]], [[0.0, 1.0], []]])
def test_one_goal_of_a_task_has_no_interval(by_task, scale):
    assert interval_over_goals([np.array(goals) for goals in by_task], scale=scale) is None


@pytest.mark.parametrize("scores", [[], [0.5], [0.25, 0.25, 0.25]])
def test_one_run_or_equal_ones_have_no_interval(scores):
    assert interval_over_runs(scores) is None


def test_equal_returns_have_no_interval():
    assert interval_over_goals([np.full(3, 15.0), np.full(2, 7.0)], scale=None) is None
