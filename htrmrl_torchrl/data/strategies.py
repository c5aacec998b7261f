"""Window strategies: which windows of earlier episodes an episode gets to see, drawn once at its start.

A strategy is called with the number of tokens of each remembered episode (oldest first), the number of slots, the
window length and the lane's own random stream. It returns pairs (episode index, first token); order does not matter,
the caller sorts them. Fewer pairs than slots leave slots empty. Your own strategy is any such callable.
"""

from collections.abc import Sequence
from typing import Protocol

import numpy as np

Window = tuple[int, int]


class WindowStrategy(Protocol):
    """Draws windows of earlier episodes."""

    def __call__(
        self, lengths: Sequence[int], *, slots: int, window: int, rng: np.random.Generator
    ) -> list[Window]: ...


class Recent:
    """The last window of the latest episodes, one each: what happened at the end, and how it was rewarded.

    Example:
        >>> Recent()([6, 6, 6], slots=2, window=4, rng=np.random.default_rng(0))
        [(1, 2), (2, 2)]
    """

    def __call__(self, lengths: Sequence[int], *, slots: int, window: int, rng: np.random.Generator) -> list[Window]:
        latest = range(max(0, len(lengths) - slots), len(lengths))
        return [(episode, max(0, lengths[episode] - window)) for episode in latest]


class Uniform:
    """Independent uniform draws over all windows (episode, start), as soon as there is an episode.

    Example:
        >>> len(Uniform()([6], slots=3, window=4, rng=np.random.default_rng(0)))
        3
        >>> Uniform()([], slots=3, window=4, rng=np.random.default_rng(0))
        []
    """

    def __call__(self, lengths: Sequence[int], *, slots: int, window: int, rng: np.random.Generator) -> list[Window]:
        if not lengths:
            return []
        ends = np.cumsum([max(1, length - window + 1) for length in lengths])
        draws = rng.integers(ends[-1], size=slots)
        episodes = np.searchsorted(ends, draws, side="right")
        begins = np.concatenate([[0], ends[:-1]])
        return [(int(e), int(d - begins[e])) for e, d in zip(episodes, draws, strict=True)]


STRATEGIES: dict[str, type[WindowStrategy]] = {"recent": Recent, "uniform": Uniform}


def make_strategy(strategy: str | WindowStrategy) -> WindowStrategy:
    """The strategy of that name, or the callable itself.

    Raises:
        ValueError: if the name is unknown.
    """
    if not isinstance(strategy, str):
        return strategy
    if strategy not in STRATEGIES:
        raise ValueError(
            f"Window strategy {strategy!r} is unknown; the known ones are {', '.join(sorted(STRATEGIES))}."
        )
    return STRATEGIES[strategy]()
