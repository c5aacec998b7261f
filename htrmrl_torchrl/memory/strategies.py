"""Window strategies: which windows of earlier episodes an episode gets to see, drawn once at its start.

A strategy is called with what the lane remembers (`PastEpisodes`), the number of slots, the window length and the
lane's own random stream. It returns pairs (episode index, first token); order does not matter, the caller sorts them.
Fewer pairs than slots leave slots empty. Your own strategy is any such callable, or a class that makes one without
arguments; ``package.module:name`` names it.

================  ======================================================  ==================================
name              what it shows                                           cost, at each episode's start
================  ======================================================  ==================================
``recent``        the last window of the latest episodes, one each        none
``uniform``       independent draws over all windows                      none
``uniform_last``  the last windows of independently drawn episodes        none
``best_return``   the best moment of the episodes of highest return       a sum over the remembered rewards
``diverse``       all episodes alike, and in each the states least alike  slots * candidates distances
``similar``       what looks most like the present                        embedding of the candidate windows
================  ======================================================  ==================================
"""

from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np

from htrmrl_torchrl.dotted import is_dotted_path, resolve
from htrmrl_torchrl.memory.past import Array, PastEpisodes, Window


class WindowStrategy(Protocol):
    """Draws windows of remembered episodes.

    One that never shows two windows of an episode has the attribute ``one_per_episode = True``: then the recipes refuse
    more slots than training fills, which longer trials would fill.
    """

    def __call__(self, past: PastEpisodes, *, slots: int, window: int, rng: np.random.Generator) -> list[Window]: ...


class Recent:
    """The last window of the latest episodes, one each: what happened at the end, and how it was rewarded.

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
    """Independent uniform draws over all windows (episode, start), as soon as there is an episode.

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
    """The last window of each of `slots` episodes, drawn independently and uniformly, as soon as there is an episode.

    An episode may fill several slots. So every slot is filled from a trial's second episode on, and in each later one
    any earlier episode may be missing, the first included: a policy learns to read what was found out from whichever
    episode is shown. It meets the same kind of context in trials longer than those of training, where `Recent` drops
    the exploring first episode that all its training contexts hold, if E is the number of episodes in a trial.

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
    """The episodes of highest return, one window each: the one that ends with the episode's largest reward.

    That is the moment worth repeating: with a reward at success, the steps that led to it. Where one of the episode's
    first T - 1 tokens tells it, the window is the first T tokens and ends after it. Among equal returns or rewards the
    latest counts, so that an episode whose rewards are all equal shows its end; one whose last reward alone is lower
    does not. Returns are compared as they are: with ``scope="lane"`` the episodes of an easy earlier task may take all
    slots.

    Example:
        >>> rewards = {0: [0, 9, 0, 0], 1: [0, 0, 0, 0], 2: [0, 0, 0, 5]}
        >>> tokens = lambda episode: np.array([[0, 0, r, 0] for r in [0, *rewards[episode]]])
        >>> past = PastEpisodes([5, 5, 5], tokens=tokens, observation_dim=1)
        >>> BestReturn()(past, slots=2, window=2, rng=np.random.default_rng(0))
        [(0, 1), (2, 3)]
        >>> BestReturn()(past, slots=1, window=4, rng=np.random.default_rng(0))  # told by token 2 of 0, 1, 2, 3
        [(0, 0)]
    """

    one_per_episode = True

    def __call__(self, past: PastEpisodes, *, slots: int, window: int, rng: np.random.Generator) -> list[Window]:
        ranked = sorted(range(len(past)), key=lambda episode: (past.returns[episode], episode), reverse=True)
        windows = []
        for episode in ranked[:slots]:
            rewards = past.rewards(episode)
            newest = len(rewards) - int(np.argmax(rewards[::-1]))  # the token that tells the largest one
            windows.append((episode, max(0, newest - window + 1)))
        return windows


class Diverse:
    """Spread over episodes, and within them over states.

    Slots are dealt to the episodes as evenly as possible (to evenly spaced ones, back from the latest, where there are
    more episodes than slots). Each takes the window whose newest observation is farthest from all taken before
    (farthest-point sampling, Gonzalez 1985; each dimension in units of its standard deviation over the candidates), the
    first one the last window of the latest episode. An episode with fewer windows than slots leaves slots empty.

    Args:
        candidates: most windows that are compared; beyond, every n-th one of each episode.

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
    """The windows whose embeddings look most like the present (largest cosine), by the encoder as it is at that time.

    Of an episode that begins, the current window holds one token, which tells where it starts but not what was found
    out. So the present is both the current window and the last window of the trial's episode before, and a window is as
    similar as to the more similar of the two. The last window itself, with its deciding last reward, is thus always
    seen. At a trial's first episode (``scope="lane"``) nothing of it was lived yet and the current window alone counts.
    Candidates are windows that do not overlap, counted back from each episode's end: neighbours look alike and would
    show the same moment in all slots. Among equals the latest counts.

    Args:
        candidates: most windows that are embedded (or one for each episode, where that is more); beyond, every n-th one
            of each episode. They are encoded without gradient at each episode's start, a few hundred windows for an
            episode that encodes one at every step.
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

    Where these are more than `at_most` in all, steps are multiples of `step` large enough, but each episode keeps its
    last window.

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
    "diverse": Diverse,
    "similar": Similar,
}


def find_strategy(name: str) -> Any:
    """The class (or function) of a name of `STRATEGIES` or of a dotted path, see `htrmrl_torchrl.dotted`.

    Raises:
        ValueError: if there is none.
    """
    if name in STRATEGIES:
        return STRATEGIES[name]
    if not is_dotted_path(name):
        raise ValueError(
            f"Window strategy {name!r} is unknown; the known ones are {', '.join(STRATEGIES)}, and a path "
            "package.module:name names your own."
        )
    if not callable(found := resolve(name)):
        raise ValueError(f"{name!r} is {type(found).__name__}, which is no window strategy: they are called.")
    return found


def make_strategy(strategy: str | WindowStrategy) -> WindowStrategy:
    """The strategy of that name, or the callable itself. Raises as `find_strategy` does."""
    found = find_strategy(strategy) if isinstance(strategy, str) else strategy
    return found() if isinstance(found, type) else found
