"""Window strategies against brute force and known frequencies."""

import itertools
import math
import random
import statistics
from collections import Counter

import numpy as np
import pytest

from htrmrl_torchrl.memory.past import PastEpisodes
from htrmrl_torchrl.memory.strategies import (
    STRATEGIES,
    BestReturn,
    Diverse,
    Recent,
    Similar,
    Uniform,
    UniformLast,
    candidate_windows,
    make_strategy,
)
from tests.helpers import OBSERVATION, past_of, record

RNG = np.random.default_rng(0)


@pytest.fixture(autouse=True)
def every_test_draws_from_the_beginning():
    RNG.bit_generator.state = np.random.default_rng(0).bit_generator.state


def all_windows(lengths, window):
    """Every (episode, start); an episode shorter than the window has one window, its whole."""
    return [(e, s) for e, n in enumerate(lengths) for s in range(n) if s == 0 or s + window <= n]


def unread(lengths):
    """Episodes of which only the lengths may be looked at."""

    def forbidden(*_):
        raise AssertionError("this strategy is to look at lengths only")

    return PastEpisodes(lengths, tokens=forbidden, observation_dim=2, embed=forbidden, present=forbidden)


def some_episodes(seed, count=None):
    """Random episodes as the loops of the reference know them."""
    rng = random.Random(seed)
    lengths = [rng.randint(1, 7) for _ in range(count or rng.randint(1, 7))]
    return record([[lengths]], window=1, episodes=1, seed=seed).trials[0][0]


@pytest.mark.parametrize("seed", range(5))
def test_recent_is_the_last_window_of_the_latest_episodes(seed):
    rng = random.Random(seed)
    lengths = [rng.randint(2, 7) for _ in range(rng.randint(0, 6))]
    slots, window = rng.randint(1, 4), rng.randint(1, 8)
    expected = []
    for episode in reversed(range(len(lengths))):
        if len(expected) < slots:
            expected.append(max(w for w in all_windows(lengths, window) if w[0] == episode))
    assert sorted(Recent()(unread(lengths), slots=slots, window=window, rng=RNG)) == sorted(expected)


def test_uniform_is_uniform_over_episode_and_start():
    """N draws of one of n pairs: each count is binomial, so 5 sigma are 5 sqrt(N / n (1 - 1 / n))."""
    lengths, window, draws = [6, 2, 9], 3, 20_000
    pairs = all_windows(lengths, window)
    assert len(pairs) == 4 + 1 + 7
    counts = Counter(Uniform()(unread(lengths), slots=draws, window=window, rng=np.random.default_rng(0)))
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
    same = sum(len(set(Uniform()(unread(lengths), slots=2, window=window, rng=rng))) == 1 for _ in range(tries))
    n = len(all_windows(lengths, window))
    assert abs(same - tries / n) < 5 * (tries / n * (1 - 1 / n)) ** 0.5


@pytest.mark.parametrize("slots", [1, 3, 20_000])
def test_uniform_last_fills_every_slot_with_the_last_window_of_an_episode(slots):
    """Also where slots outnumber episodes and where an episode is shorter than the window."""
    lengths, window = [6, 2, 9, 3], 3
    last = {e: max(s for episode, s in all_windows(lengths, window) if episode == e) for e in range(len(lengths))}
    received = UniformLast()(unread(lengths), slots=slots, window=window, rng=np.random.default_rng(slots))
    assert len(received) == slots
    for episode, start in received:
        assert start == last[episode]


def test_uniform_last_draws_episodes_alike_and_independently():
    """Triples of episodes are equally likely, whatever the episodes' lengths: 5 sigma of a binomial count each."""
    lengths, slots, tries = [6, 2, 9], 3, 8_000
    rng = np.random.default_rng(2)
    counts = Counter(
        tuple(e for e, _ in UniformLast()(unread(lengths), slots=slots, window=3, rng=rng)) for _ in range(tries)
    )
    triples = list(itertools.product(range(3), repeat=slots))
    assert set(counts) == set(triples)
    n = len(triples)
    bound = 5 * (tries / n * (1 - 1 / n)) ** 0.5
    assert all(abs(counts[triple] - tries / n) < bound for triple in triples)
    # Sharp enough to see draws in proportion to the number of windows (4, 1 and 7), and draws without replacement.
    assert abs(tries * (4 * 1 * 7) / 12**3 - tries / n) > bound < tries / n


def test_with_uniform_last_training_misses_any_episode_and_with_recent_none():
    """What is lost in a longer trial, the first episode, is missing in training already, if E is not below K."""
    slots, episodes, tries = 3, 3, 4_000
    rng = np.random.default_rng(4)

    def missing(strategy):
        """How often each of the earlier episodes is not shown in the trial's last one."""
        shown = [{e for e, _ in strategy(unread([7] * episodes), slots=slots, window=3, rng=rng)} for _ in range(tries)]
        return [sum(episode not in of_one for of_one in shown) for episode in range(episodes)]

    share = (1 - 1 / episodes) ** slots
    assert all(abs(n - share * tries) < 5 * (tries * share * (1 - share)) ** 0.5 for n in missing(UniformLast()))
    assert missing(Recent()) == [0, 0, 0]


def test_without_an_episode_nothing_is_drawn_from_the_stream():
    rng, untouched = np.random.default_rng(3), np.random.default_rng(3)
    assert all(kind()(unread([]), slots=4, window=2, rng=rng) == [] for kind in STRATEGIES.values())
    assert rng.random() == untouched.random()


# ------------------------------------------------------------------------------------------------- best_return


@pytest.mark.parametrize("seed", range(8))
def test_best_return_is_the_best_moment_of_the_best_episodes(seed):
    episodes = some_episodes(seed)
    slots, window = random.Random(seed).randint(1, 4), random.Random(seed).randint(1, 5)
    expected = []
    for _, e in sorted(((sum(episode.rewards), e) for e, episode in enumerate(episodes)), reverse=True)[:slots]:
        rewards, n = episodes[e].rewards, len(episodes[e].tokens)
        told_by = rewards.index(max(rewards)) + 1
        # Of all windows that hold the token which tells the largest reward, the earliest: it ends with that token, or
        # is the episode's first window.
        expected.append(min(s for x, s in all_windows([n], window) if s <= told_by < s + window and x == 0))
        expected[-1] = (e, expected[-1])
    received = BestReturn()(past_of(episodes), slots=slots, window=window, rng=RNG)
    assert received == expected


@pytest.mark.parametrize(
    ("rewards", "window", "shown"),
    [
        ([0, 0, 0, 7], 3, [2, 3, 4]),  # ends with the token that tells the largest reward
        ([0, 7, 0, 0], 2, [1, 2]),
        ([0, 7, 0, 0], 3, [0, 1, 2]),  # T tokens before it there just are
        ([7, 0, 0, 0], 3, [0, 1, 2]),  # there are not: the first T tokens, which end after it
        ([0, 7, 0, 0], 5, [0, 1, 2, 3, 4]),
        ([0, 7, 0, 0], 9, [0, 1, 2, 3, 4]),  # shorter than a window: its whole
        ([-1, -1, -1, -1], 2, [3, 4]),  # all equal: its end
        ([0, 0, 0, -1], 2, [2, 3]),  # a lower last reward, negative or not, is left out
        ([-2, -1, -3, -4], 2, [1, 2]),
    ],
)
def test_which_tokens_best_return_shows_of_an_episode(rewards, window, shown):
    """Token t + 1 tells the reward of step t."""
    tokens = np.array([[0, 0, r, 0] for r in [0, *rewards]], dtype=np.float32)
    past = PastEpisodes([len(tokens)], tokens=lambda episode: tokens, observation_dim=1)
    ((episode, start),) = BestReturn()(past, slots=2, window=window, rng=RNG)
    assert episode == 0 and list(range(len(tokens)))[start : start + window] == shown


def test_among_equals_best_return_takes_the_latest():
    past = PastEpisodes([4] * 4, tokens=lambda episode: np.zeros((4, 5)), observation_dim=2)
    assert BestReturn()(past, slots=2, window=2, rng=RNG) == [(3, 2), (2, 2)]


# ----------------------------------------------------------------------------------------------------- diverse


def farthest_points(episodes, slots, window):
    """Diverse as plain loops over all windows."""
    lengths = [len(episode.tokens) for episode in episodes]
    windows = all_windows(lengths, window)

    def state(of):
        e, s = of
        return episodes[e].observations[min(s + window, lengths[e]) - 1]

    spread = [statistics.pstdev(state(w)[i] for w in windows) or 1.0 for i in range(OBSERVATION)]

    def distance(a, b):
        return math.dist(*([x / scale for x, scale in zip(state(of), spread, strict=True)] for of in (a, b)))

    taken = []
    for slot in range(slots):
        e = len(episodes) - 1 - slot * len(episodes) // slots
        left = [of for of in windows if of[0] == e and of not in taken]
        if left:
            taken.append(max(left, key=lambda of: (min([distance(of, o) for o in taken], default=0), of)))
    return taken


@pytest.mark.parametrize("seed", range(8))
@pytest.mark.parametrize("slots", [1, 3, 9])
def test_diverse_takes_the_farthest_states_of_each_episode_in_turn(seed, slots):
    episodes = some_episodes(seed)
    window = 1 + seed % 4
    received = Diverse()(past_of(episodes), slots=slots, window=window, rng=RNG)
    assert received == farthest_points(episodes, slots, window)
    assert len(set(received)) == len(received)


@pytest.mark.parametrize(("count", "slots"), [(1, 3), (3, 3), (2, 5), (7, 3)])
def test_diverse_is_spread_over_episodes(count, slots):
    episodes = record([[[9] * count]], window=1, episodes=1).trials[0][0]
    shares = Counter(e for e, _ in Diverse()(past_of(episodes), slots=slots, window=2, rng=RNG))
    assert len(shares) == min(count, slots) and sum(shares.values()) == slots
    assert max(shares.values()) - min(shares.values()) <= 1
    gaps = [b - a for a, b in itertools.pairwise(sorted(shares))]
    assert not gaps or max(gaps) - min(gaps) <= 1


def test_diverse_covers_states_better_than_chance():
    """What it is for: no state of an episode is far from one that is shown."""
    (episode,) = record([[[60]]], window=1, episodes=1).trials[0][0]

    def radius(windows):
        shown = [episode.observations[s] for _, s in windows]
        return max(min(math.dist(o, x) for x in shown) for o in episode.observations)

    rng = np.random.default_rng(0)
    chance = [radius(Uniform()(past_of([episode]), slots=8, window=1, rng=rng)) for _ in range(50)]
    assert radius(Diverse()(past_of([episode]), slots=8, window=1, rng=RNG)) < min(chance)


# ----------------------------------------------------------------------------------------------------- similar


def embedding_of(episodes, window):
    """A made-up embedding: of a window the tokens' weighted sum, newest first."""

    def embed(windows):
        rows = [episodes[e].tokens[s : s + window][::-1] for e, s in windows]
        return np.array([np.sum([np.array(x) / (i + 1) for i, x in enumerate(row)], 0) for row in rows])

    return embed


def nearest(episodes, slots, window, earlier, present):
    """Similar as plain loops over candidates."""
    embed = embedding_of(episodes, window)
    candidates = []
    for e, episode in enumerate(episodes):
        start = max(0, len(episode.tokens) - window)
        while start >= 0:
            candidates.append((e, start))
            start -= window

    def cosine(of, query):
        x = embed([of])[0].tolist()
        return sum(a * b for a, b in zip(x, query, strict=True)) / (math.hypot(*x) * math.hypot(*query))

    queries = [list(present)]
    if len(episodes) > earlier:
        queries.append(embed([(len(episodes) - 1, max(0, len(episodes[-1].tokens) - window))])[0].tolist())
    return sorted(candidates, key=lambda of: max(cosine(of, query) for query in queries))[-slots:]


@pytest.mark.parametrize("seed", range(8))
@pytest.mark.parametrize("of_trial", [True, False])
def test_similar_is_nearest_to_the_present(seed, of_trial):
    episodes = some_episodes(seed)
    slots, window = 1 + seed % 4, 1 + seed % 3
    present = np.random.default_rng(seed).normal(size=len(episodes[0].tokens[0]))
    earlier = 0 if of_trial else len(episodes)
    past = past_of(
        episodes, earlier=earlier, embed=embedding_of(episodes, window), present=lambda: present
    )  # fmt: skip
    received = Similar()(past, slots=slots, window=window, rng=RNG)
    assert received[::-1] == nearest(episodes, slots, window, earlier, present)
    last = (len(episodes) - 1, max(0, len(episodes[-1].tokens) - window))
    assert not of_trial or last in received  # what the last reward told is always seen


def test_among_equals_similar_takes_the_latest():
    past = PastEpisodes(
        [4] * 3, tokens=None, observation_dim=2, earlier=3,
        embed=lambda windows: np.ones((len(windows), 2)), present=lambda: np.ones(2),
    )  # fmt: skip
    assert Similar()(past, slots=2, window=3, rng=RNG) == [(2, 1), (1, 1)]


def test_the_number_of_embedded_windows_is_bounded():
    counts = []

    def embed(windows):
        counts.append(len(windows))
        return np.ones((len(windows), 2))

    past = PastEpisodes([501] * 10, tokens=None, observation_dim=2, embed=embed, present=lambda: np.ones(2))
    Similar()(past, slots=9, window=5, rng=RNG)
    Similar(candidates=4)(past, slots=9, window=5, rng=RNG)
    assert 128 < counts[0] <= 256 and counts[1] == 10


# -------------------------------------------------------------------------------------------------- candidates


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("at_most", [1, 7, 10_000])
def test_candidates_are_every_nth_window_from_the_last_one_back(seed, at_most):
    rng = random.Random(seed)
    lengths = [rng.randint(2, 30) for _ in range(rng.randint(1, 5))]
    window, step = rng.randint(1, 6), rng.randint(1, 4)
    windows = all_windows(lengths, window)
    received = candidate_windows(lengths, window=window, step=step, at_most=at_most)
    assert len(received) <= max(at_most, len(lengths))

    def every(stride):
        last = dict(windows)
        return [(e, s) for e, s in windows if (last[e] - s) % stride == 0]

    fitting = [every(n * step) for n in range(1, 40) if len(every(n * step)) <= max(at_most, len(lengths))]
    assert received == fitting[0]


def test_names():
    assert isinstance(make_strategy("recent"), Recent)
    own = Uniform()
    assert make_strategy(own) is own
    with pytest.raises(
        ValueError,
        match=r"'recnt' is unknown.* recent, uniform, uniform_last, best_return, best_and_uniform, diverse, "
        r"similar, or give the path",
    ):
        make_strategy("recnt")
