"""Window strategies: which windows of earlier episodes are visible in an episode, drawn once at its start.

A strategy receives the past of an environment (`PastEpisodes`), the number of slots, the window length and the
environment's own random stream. It returns pairs (episode index, first token) in any order; the caller sorts them.
Fewer pairs than slots leave slots empty. Your own strategy is a callable with this signature, or a class that can be
built without arguments; ``package.module:name`` names it.

================  ======================================================  ==================================
name              windows                                                 cost at each episode's start
================  ======================================================  ==================================
``recent``        the last window of each of the latest episodes          none
``uniform``       independent draws over all windows                      none
``uniform_last``  last windows of independently drawn episodes            none
``best_return``   the largest reward in the episodes of highest return    a sum over the remembered rewards
``diverse``       spread over episodes, and within each over states       slots * candidates distances
``similar``       the windows most similar to the present                 embedding of the candidate windows
================  ======================================================  ==================================
"""

from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np

from htrmrl_torchrl.dotted import is_dotted_path, resolve
from htrmrl_torchrl.memory.past import Array, PastEpisodes, Window


class WindowStrategy(Protocol):
    """Draws windows of remembered episodes.

    A strategy that never returns two windows of the same episode has the attribute ``one_per_episode = True``. The
    recipes then refuse more slots than training fills, because longer trials would fill them.
    """

    def __call__(self, past: PastEpisodes, *, slots: int, window: int, rng: np.random.Generator) -> list[Window]: ...


class Recent:
    """The last window of each of the latest episodes: how the episode ended, and how it was rewarded.

    Example:
        >>> past = PastEpisodes([6, 6, 6], tokens=lambda episode: np.zeros((6, 4)), observation_dim=1)
        >>> Recent()(past, slots=2, window=4, rng=np.random.default_rng(0))
        [(1, 2), (2, 2)]
    """

    one_per_episode = True

    def __call__(self, past: PastEpisodes, *, slots: int, window: int, rng: np.random.Generator) -> list[Window]:
        latest = range(max(0, len(past) - slots), len(past))
        return [(episode, max(0, past.lengths[episode] - window)) for episode in latest]


class Uniform:
    """Independent uniform draws over all windows (episode, start) of ended episodes.

    Example:
        >>> past = PastEpisodes([6], tokens=lambda episode: np.zeros((6, 4)), observation_dim=1)
        >>> len(Uniform()(past, slots=3, window=4, rng=np.random.default_rng(0)))
        3
    """

    def __call__(self, past: PastEpisodes, *, slots: int, window: int, rng: np.random.Generator) -> list[Window]:
        if not past.lengths:
            return []
        ends = np.cumsum([max(1, length - window + 1) for length in past.lengths])
        draws = rng.integers(ends[-1], size=slots)
        episodes = np.searchsorted(ends, draws, side="right")
        begins = np.concatenate([[0], ends[:-1]])
        return [(int(e), int(d - begins[e])) for e, d in zip(episodes, draws, strict=True)]


class UniformLast:
    """The last windows of `slots` ended episodes, drawn independently and uniformly.

    An episode may fill several slots. So all slots are filled from a trial's second episode on, and any earlier episode
    may be missing, including the first. The policy learns to read its findings from whichever episode is visible.
    Contexts keep their distribution in trials longer than those of training. With `Recent` and E equal to the trial's
    number of episodes they do not: every training context has the exploring first episode, and longer trials drop it.

    Example:
        >>> past = PastEpisodes([6, 6, 9], tokens=lambda episode: np.zeros((6, 4)), observation_dim=1)
        >>> UniformLast()(past, slots=3, window=4, rng=np.random.default_rng(0))
        [(2, 5), (1, 2), (1, 2)]
    """

    def __call__(self, past: PastEpisodes, *, slots: int, window: int, rng: np.random.Generator) -> list[Window]:
        if not past.lengths:
            return []
        drawn = rng.integers(len(past), size=slots)
        return [(int(episode), max(0, past.lengths[episode] - window)) for episode in drawn]


class BestReturn:
    """The episodes of highest return, one window each: the window that ends with the episode's largest reward.

    If success is rewarded, this window shows the steps that led to it. If one of the episode's first T - 1 tokens
    contains the largest reward, the window is the first T tokens and ends after it. Of equal returns or rewards the
    latest counts. So an episode of equal rewards shows its end, but not if only its last reward is lower. Returns are
    not scaled: with ``scope="lane"`` the episodes of an easy earlier task may fill all slots.

    Example:
        >>> rewards = {0: [0, 9, 0, 0], 1: [0, 0, 0, 0], 2: [0, 0, 0, 5]}
        >>> tokens = lambda episode: np.array([[0, 0, r, 0] for r in [0, *rewards[episode]]])
        >>> past = PastEpisodes([5, 5, 5], tokens=tokens, observation_dim=1)
        >>> BestReturn()(past, slots=2, window=2, rng=np.random.default_rng(0))
        [(0, 1), (2, 3)]
        >>> BestReturn()(past, slots=1, window=4, rng=np.random.default_rng(0))  # in token 2 of 0, 1, 2, 3
        [(0, 0)]
    """

    one_per_episode = True

    def __call__(self, past: PastEpisodes, *, slots: int, window: int, rng: np.random.Generator) -> list[Window]:
        ranked = sorted(range(len(past)), key=lambda episode: (past.returns[episode], episode), reverse=True)
        windows = []
        for episode in ranked[:slots]:
            rewards = past.rewards(episode)
            newest = len(rewards) - int(np.argmax(rewards[::-1]))  # the token with the largest reward
            windows.append((episode, max(0, newest - window + 1)))
        return windows


class BestAndUniform:
    """`BestReturn` in the first half of the slots (rounded up) and `UniformLast` in the others.

    Example:
        >>> rewards = {0: [0, 9, 0, 0], 1: [0, 0, 0, 0], 2: [0, 0, 0, 5]}
        >>> tokens = lambda episode: np.array([[0, 0, r, 0] for r in [0, *rewards[episode]]])
        >>> past = PastEpisodes([5, 5, 5], tokens=tokens, observation_dim=1)
        >>> BestAndUniform()(past, slots=3, window=2, rng=np.random.default_rng(0))
        [(0, 1), (2, 3), (2, 3)]
    """

    def __call__(self, past: PastEpisodes, *, slots: int, window: int, rng: np.random.Generator) -> list[Window]:
        best = (slots + 1) // 2
        shown = BestReturn()(past, slots=best, window=window, rng=rng)
        return shown + UniformLast()(past, slots=slots - best, window=window, rng=rng)


class Diverse:
    """Windows spread over episodes, and within each episode over states.

    Slots are distributed over the episodes as evenly as possible. If there are more episodes than slots, evenly spaced
    ones get a slot, counted back from the latest. The first slot takes the last window of the latest episode. Each
    further slot takes the window whose newest observation is farthest from all taken before (farthest-point sampling,
    Gonzalez 1985; each dimension in units of its standard deviation over the candidates). An episode with fewer windows
    than slots leaves slots empty.

    Args:
        candidates: largest number of windows that are compared; if there are more, every n-th one of each episode.

    Example:
        >>> tokens = lambda episode: np.array([[o, 0, 0, 0] for o in [1.0, 1.1, 9.0, 1.2]])
        >>> past = PastEpisodes([4], tokens=tokens, observation_dim=1)
        >>> Diverse()(past, slots=2, window=1, rng=np.random.default_rng(0))
        [(0, 3), (0, 2)]
    """

    def __init__(self, *, candidates: int = 256) -> None:
        self.candidates = candidates

    def __call__(self, past: PastEpisodes, *, slots: int, window: int, rng: np.random.Generator) -> list[Window]:
        if not past.lengths:
            return []
        windows = candidate_windows(past.lengths, window=window, step=1, at_most=self.candidates)
        episodes = np.array([episode for episode, _ in windows])
        newest = [min(start + window, past.lengths[episode]) - 1 for episode, start in windows]
        observations = [past.observations(episode) for episode in range(len(past))]
        states = np.array([observations[e][t] for e, t in zip(episodes, newest, strict=True)], dtype=np.float64)
        spread = states.std(0)
        states /= np.where(spread > 0, spread, 1)
        nearest = np.full(len(windows), np.inf)  # distance to the nearest taken state; -1 where taken
        taken = []
        for slot in range(slots):
            of_episode = (episodes == len(past) - 1 - slot * len(past) // slots).nonzero()[0][::-1]  # latest first
            best = of_episode[np.argmax(nearest[of_episode])]
            if nearest[best] >= 0:
                taken.append(windows[best])
                nearest = np.minimum(nearest, np.linalg.norm(states - states[best], axis=1))
                nearest[best] = -1
        return taken


class Similar:
    """The windows with embeddings most similar to the present (largest cosine), with the encoder's current weights.

    When an episode begins, the current window holds one token. It shows where the episode starts, but not what was
    found out. So the present is both the current window and the last window of the trial's previous episode, and a
    window's similarity is the larger of the two. The previous episode's last window, with its decisive last reward, is
    thus always chosen. In a trial's first episode (``scope="lane"``) only the current window counts. Candidates do not
    overlap and are counted back from each episode's end, because neighbouring windows are similar and would show the
    same moment in all slots. Of equally similar windows the latest counts.

    Args:
        candidates: largest number of windows that are embedded (or one per episode, if that is more). If there are
            more, every n-th one of each episode counts. They are encoded without gradient at each episode's start,
            which can be a few hundred windows in addition to one per step.
    """

    def __init__(self, *, candidates: int = 256) -> None:
        self.candidates = candidates

    def __call__(self, past: PastEpisodes, *, slots: int, window: int, rng: np.random.Generator) -> list[Window]:
        if not past.lengths:
            return []
        windows = candidate_windows(past.lengths, window=window, step=window, at_most=self.candidates)
        embedded = _unit(past.embed(windows))  # [n, D]
        similarity = embedded @ _unit(past.present)
        if len(past) > past.earlier:  # the last candidate is the last window of the episode before
            similarity = np.maximum(similarity, embedded @ embedded[-1])
        ranked = sorted(range(len(windows)), key=lambda index: (similarity[index], index), reverse=True)
        return [windows[index] for index in ranked[:slots]]


def candidate_windows(lengths: Sequence[int], *, window: int, step: int, at_most: int) -> list[Window]:
    """Every `step`-th window of each episode, counted back from its last one, oldest first.

    If these are more than `at_most` in total, the step becomes the smallest sufficient multiple of `step`, but each
    episode keeps its last window.

    Example:
        >>> candidate_windows([6, 3], window=2, step=2, at_most=10)
        [(0, 0), (0, 2), (0, 4), (1, 1)]
        >>> candidate_windows([6, 3], window=2, step=2, at_most=3)
        [(0, 0), (0, 4), (1, 1)]
    """
    last = [max(0, length - window) for length in lengths]
    stride = step
    while sum(start // stride + 1 for start in last) > max(at_most, len(lengths)):
        stride += step
    return [(episode, start) for episode, end in enumerate(last) for start in range(end % stride, end + 1, stride)]


def _unit(vectors: Array) -> Array:
    vectors = np.asarray(vectors, dtype=np.float64)
    return vectors / np.maximum(np.linalg.norm(vectors, axis=-1, keepdims=True), 1e-12)


STRATEGIES: dict[str, type[WindowStrategy]] = {
    "recent": Recent,
    "uniform": Uniform,
    "uniform_last": UniformLast,
    "best_return": BestReturn,
    "best_and_uniform": BestAndUniform,
    "diverse": Diverse,
    "similar": Similar,
}


def find_strategy(name: str) -> Any:
    """The class (or function) for a name of `STRATEGIES` or a dotted path, see `htrmrl_torchrl.dotted`.

    Raises:
        ValueError: if it does not exist or is not callable.
    """
    if name in STRATEGIES:
        return STRATEGIES[name]
    if not is_dotted_path(name):
        raise ValueError(
            f"Window strategy {name!r} is unknown; choose one of {', '.join(STRATEGIES)}, or give the path "
            "of your own, package.module:name."
        )
    if not callable(found := resolve(name)):
        raise ValueError(f"{name!r} is of type {type(found).__name__}, but a window strategy must be callable.")
    return found


def make_strategy(strategy: str | WindowStrategy) -> WindowStrategy:
    """The strategy with this name, or the callable itself.

    Raises:
        ValueError: as `find_strategy` does, or if a class needs arguments; then give an instance of it.
    """
    found = find_strategy(strategy) if isinstance(strategy, str) else strategy
    try:
        return found() if isinstance(found, type) else found
    except TypeError as error:
        raise ValueError(f"{strategy!r} cannot be built without arguments ({error}); give them defaults.") from error
