"""The past of an environment when an episode begins: what a window strategy may read, and how long it is kept.

::

    scope="trial"    a a | b b b >            episodes of the running trial; a new trial forgets them
    scope="lane"     a a | b b b || c > d d   earlier trials (other goals, perhaps other tasks) stay visible
"""

from collections.abc import Callable, Sequence
from functools import cached_property
from typing import Any, Literal, get_args

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]
Window = tuple[int, int]  # (index among the remembered episodes, first token)
Scope = Literal["trial", "lane"]
SCOPES: tuple[str, ...] = get_args(Scope)


def check_scope(scope: str, max_episodes: int | None) -> None:
    """Raises ValueError for an unknown `scope`, or a `max_episodes` that is invalid or missing."""
    if scope not in SCOPES:
        raise ValueError(f"Memory scope {scope!r} is unknown; choose one of {', '.join(SCOPES)}.")
    if max_episodes is not None and max_episodes < 1:
        raise ValueError(f"max_episodes={max_episodes} must be at least 1, or None for all episodes of the trial.")
    if scope == "lane" and max_episodes is None:
        raise ValueError("scope='lane' remembers across trials without limit; give max_episodes, the number to keep.")


class PastEpisodes:
    """Read-only view of an environment's remembered episodes, oldest first; everything is computed on demand.

    Args:
        lengths: number of tokens of each episode, including the final one: an episode of H steps has H + 1.
        tokens: function from an episode's index to its tokens ``[n, x]``, n its length: [observation, previous action,
            previous reward (raw), first].
        observation_dim: size o of the observation in a token.
        earlier: how many of them belong to earlier trials (the first ones); 0 with ``scope="trial"``.
        embed: function from windows to embeddings ``[n, D]``.
        present: function that returns the embedding ``[D]`` of the current window of the episode that begins. This
            window holds only the episode's first token.

    Example:
        >>> episode = np.array([[0.1, 0, 0, 1], [0.2, 1, 5, 0], [0.3, 1, -2, 0]])  # o = 1, a = 1, two steps
        >>> past = PastEpisodes([3], tokens=lambda index: episode, observation_dim=1)
        >>> past.observations(0).flatten().tolist(), past.rewards(0).tolist(), past.returns.tolist()
        ([0.1, 0.2, 0.3], [5.0, -2.0], [3.0])
    """

    def __init__(
        self,
        lengths: Sequence[int],
        *,
        tokens: Callable[[int], Array],
        observation_dim: int,
        earlier: int = 0,
        embed: Callable[[Sequence[Window]], Array] | None = None,
        present: Callable[[], Array] | None = None,
    ) -> None:
        self.lengths, self.earlier = lengths, earlier
        self._tokens, self._observation_dim = tokens, observation_dim
        self._embed, self._present = embed, present

    def __len__(self) -> int:
        return len(self.lengths)

    def tokens(self, episode: int) -> Array:
        """``[n, x]``."""
        return self._tokens(episode)

    def observations(self, episode: int) -> Array:
        """``[n, o]``."""
        return self._tokens(episode)[:, : self._observation_dim]

    def rewards(self, episode: int) -> Array:
        """Raw rewards of the episode's steps, ``[n - 1]``; token t + 1 contains reward t."""
        return self._tokens(episode)[1:, -2]

    @cached_property
    def returns(self) -> Array:
        """Undiscounted sum of raw rewards of each episode, ``[episodes]``."""
        return np.array([self.rewards(episode).sum(dtype=np.float64) for episode in range(len(self))])

    def embed(self, windows: Sequence[Window]) -> Array:
        """Embeddings ``[n, D]`` of windows, with the encoder's current weights."""
        if self._embed is None:
            raise ValueError(_NO_ENCODER)
        return self._embed(windows)

    @cached_property
    def present(self) -> Array:
        """Embedding ``[D]`` of the window that ends with the first token of the episode that begins."""
        if self._present is None:
            raise ValueError(_NO_ENCODER)
        return self._present()


_NO_ENCODER = (
    "This window strategy needs embeddings, but the memory has no encoder; build it with one: "
    "EpisodicMemory(encoder, ...)."
)
