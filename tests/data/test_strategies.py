"""Window strategies against brute force and known frequencies."""

import random
from collections import Counter

import numpy as np
import pytest

from htrmrl_torchrl.data.strategies import Recent, Uniform, make_strategy


def all_windows(lengths, window):
    """Every (episode, start); an episode shorter than the window has one window, its whole."""
    return [(e, s) for e, n in enumerate(lengths) for s in range(n) if s == 0 or s + window <= n]


@pytest.mark.parametrize("seed", range(5))
def test_recent_is_the_last_window_of_the_latest_episodes(seed):
    rng = random.Random(seed)
    lengths = [rng.randint(2, 7) for _ in range(rng.randint(0, 6))]
    slots, window = rng.randint(1, 4), rng.randint(1, 8)
    expected = []
    for episode in reversed(range(len(lengths))):
        if len(expected) < slots:
            expected.append(max(w for w in all_windows(lengths, window) if w[0] == episode))
    assert sorted(Recent()(lengths, slots=slots, window=window, rng=np.random.default_rng(0))) == sorted(expected)


def test_uniform_is_uniform_over_episode_and_start():
    """N draws of one of n pairs: each count is binomial, so 5 sigma are 5 sqrt(N / n (1 - 1 / n))."""
    lengths, window, draws = [6, 2, 9], 3, 20_000
    pairs = all_windows(lengths, window)
    assert len(pairs) == 4 + 1 + 7
    counts = Counter(Uniform()(lengths, slots=draws, window=window, rng=np.random.default_rng(0)))
    assert set(counts) == set(pairs)
    n = len(pairs)
    bound = 5 * (draws / n * (1 - 1 / n)) ** 0.5
    assert all(abs(counts[pair] - draws / n) < bound for pair in pairs)
    # The bound is sharp enough to see draws that are uniform over episodes first, then over starts.
    assert abs(draws / 3 - draws / n) > bound


def test_uniform_draws_are_independent():
    """Two slots are the same window in one case of n."""
    lengths, window, tries = [4], 2, 4_000
    rng = np.random.default_rng(1)
    same = sum(len(set(Uniform()(lengths, slots=2, window=window, rng=rng))) == 1 for _ in range(tries))
    n = len(all_windows(lengths, window))
    assert abs(same - tries / n) < 5 * (tries / n * (1 - 1 / n)) ** 0.5


def test_without_an_episode_nothing_is_drawn_from_the_stream():
    rng, untouched = np.random.default_rng(3), np.random.default_rng(3)
    assert Uniform()([], slots=4, window=2, rng=rng) == []
    assert rng.random() == untouched.random()


def test_names():
    assert isinstance(make_strategy("recent"), Recent)
    own = Uniform()
    assert make_strategy(own) is own
    with pytest.raises(ValueError, match=r"'recnt' is unknown.*recent, uniform"):
        make_strategy("recnt")
