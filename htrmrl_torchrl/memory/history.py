"""Tokens that are remembered: one growing row of a table per environment.

::

    env 0     x0 x1 x2 x3 | x0 x1 x2 x3 | x0 x1 .       two ended episodes of three steps; the third is running
    env 1     x0 x1 .                                   a new trial: the row is used from its start again

With ``scope="lane"`` a new trial keeps earlier episodes; tokens of forgotten episodes are removed.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from htrmrl_torchrl.memory.past import Scope, Window
from htrmrl_torchrl.memory.windows import window_at

_FIRST_CAPACITY = 512


class Ended(NamedTuple):
    """An ended episode: its running number in its environment, its first row in the table, and its number of tokens."""

    counter: int
    first: int
    length: int


class LaneHistories:
    """Tokens of the remembered and the running episodes of N environments.

    Args:
        token: ``[N, x]``, defines sizes, dtype and device.
        scope: ``"trial"``: a new trial forgets earlier episodes; ``"lane"``: it keeps them.
        max_episodes: number of ended episodes per environment that are remembered (the latest); ``None``: all.
    """

    def __init__(self, token: Tensor, *, scope: Scope = "trial", max_episodes: int | None = None) -> None:
        self.scope, self.max_episodes = scope, max_episodes
        self._lanes = torch.arange(len(token), device=token.device)
        self._table = token.new_zeros(len(token), _FIRST_CAPACITY, token.shape[-1])
        self._count = torch.zeros_like(self._lanes)  # used rows
        self._first = torch.zeros_like(self._lanes)  # where the running episode begins
        self._room = _FIRST_CAPACITY  # lower bound of unused rows per environment
        self._running = 0  # lower bound of tokens in a running episode
        self._base: tuple[int, Tensor] | None = None  # capacity, and each environment's first row
        self._whole: tuple[Tensor, Tensor] | None = None  # rows [T] and mask [N, T] of windows without padding
        self._ended: list[list[Ended]] = [[] for _ in token]  # oldest first
        self._earlier = [0] * len(token)  # how many of these belong to earlier trials

    def __len__(self) -> int:
        return len(self._lanes)

    def is_like(self, token: Tensor) -> bool:
        """Whether ``token`` ``[N, x]`` has the dtype and device of the stored tokens."""
        return token.dtype == self._table.dtype and token.device == self._table.device

    def move(self, token: Tensor) -> None:
        """Moves the stored tokens to the dtype and device of ``token``."""
        self._table, self._base, self._whole = self._table.to(token), None, None
        self._lanes, self._count, self._first = (
            index.to(token.device) for index in (self._lanes, self._count, self._first)
        )

    def append(self, token: Tensor, lanes: Tensor | None = None) -> None:
        """Appends a token ``[lanes, x]`` to each of the `lanes` (default: all)."""
        if not self._room:
            if int(self._count.max()) >= self._table.shape[1]:
                self._make_room()
            self._room = self._table.shape[1] - int(self._count.max())
        self._room -= 1
        if lanes is not None:
            self._table[lanes, self._count[lanes]] = token
            self._count[lanes] += 1
            return
        self._table.flatten(0, 1).index_copy_(0, self._first_rows() + self._count, token)
        self._count += 1
        self._running += 1

    def begin_episodes(self, lanes: Tensor, *, new_trial: Tensor, counter: Tensor) -> None:
        """Ends the running episodes of `lanes`, numbered `counter`, or forgets all if `new_trial` does; all ``[n]``."""
        self._running = 0
        for lane, trial, number in zip(lanes.tolist(), new_trial.tolist(), counter.tolist(), strict=True):
            ended = self._ended[lane]
            if trial and self.scope == "trial":
                ended.clear()
                self._count[lane] = 0
                continue
            first = int(self._first[lane])
            if length := int(self._count[lane]) - first:
                ended.append(Ended(number, first, length))
            self._earlier[lane] = len(ended) if trial else self._earlier[lane]
            # By number instead of count, because the storage knows by number what may still be drawn.
            while self.max_episodes is not None and ended and ended[0].counter <= number - self.max_episodes:
                ended.pop(0)
                self._earlier[lane] = max(0, self._earlier[lane] - 1)
        self._first[lanes] = self._count[lanes]

    def drop_running(self, lanes: Tensor | None = None) -> None:
        """Forgets the running episodes of `lanes` ``[n]`` (default: all); ended episodes stay."""
        lanes = self._lanes if lanes is None else lanes
        self._count[lanes] = self._first[lanes]
        self._running = 0

    def running(self) -> Tensor:
        """Number of tokens in the running episodes, ``[N]``; 0 if none has begun."""
        return self._count - self._first

    def ended(self, lane: int) -> list[Ended]:
        """The environment's remembered episodes, oldest first."""
        return self._ended[lane]

    def earlier(self, lane: int) -> int:
        """How many of these belong to earlier trials."""
        return self._earlier[lane]

    def tokens(self, lane: int, episode: int) -> Tensor:
        """Tokens ``[n, x]`` of a remembered episode, by its index in `ended`."""
        _, first, length = self._ended[lane][episode]
        return self._table[lane, first : first + length]

    def current(self, window: int) -> tuple[Tensor, Tensor]:
        """The newest ``window`` tokens of the running episodes, ``[N, T, x]``, and their mask ``[N, T]``.

        The mask may be returned again, so it must not be modified.
        """
        row = self._first_rows()
        if self._running < window:
            return window_at(self._table.flatten(0, 1), row + self._count - 1, row + self._first, window)
        if self._whole is None or len(self._whole[0]) != window:
            mask = torch.ones(len(self), window, dtype=torch.bool, device=row.device)
            self._whole = torch.arange(-window, 0, device=row.device), mask
        rows = (row + self._count).unsqueeze(-1) + self._whole[0]  # [N, T]
        return self._table.flatten(0, 1).index_select(0, rows.flatten()).view(*rows.shape, -1), self._whole[1]

    def _first_rows(self) -> Tensor:
        """Each environment's first row in the flat table ``[N]``."""
        capacity = self._table.shape[1]
        if self._base is None or self._base[0] != capacity:
            self._base = capacity, self._lanes * capacity
        return self._base[1]

    def windows(self, lane: int, drawn: list[Window], *, slots: int, window: int) -> tuple[Tensor, Tensor]:
        """Tokens ``[slots, T, x]`` and mask ``[slots, T]`` of right-aligned windows (index in `ended`, first token)."""
        first, newest = [0] * (slots - len(drawn)), [-1] * (slots - len(drawn))
        for episode, start in drawn:
            _, begin, length = self._ended[lane][episode]
            first.append(begin + start)
            newest.append(begin + min(start + window, length) - 1)
        return window_at(self._table[lane], self._lanes.new_tensor(newest), self._lanes.new_tensor(first), window)

    def _make_room(self) -> None:
        """Moves remembered tokens to the start of their rows; doubles the table if a row is then over half full."""
        for lane, ended in enumerate(self._ended):
            oldest = ended[0].first if ended else int(self._first[lane])
            if oldest:
                kept = int(self._count[lane]) - oldest
                self._table[lane, :kept] = self._table[lane, oldest : oldest + kept].clone()
                self._ended[lane] = [Ended(counter, first - oldest, length) for counter, first, length in ended]
                self._first[lane] -= oldest
                self._count[lane] = kept
        if 2 * int(self._count.max()) > self._table.shape[1]:
            self._table = torch.cat([self._table, torch.zeros_like(self._table)], 1)

    def checkpoint_state(self) -> dict[str, Any]:
        """Remembered tokens ``[rows, x]`` by environment, with numbers and lengths of episodes."""
        rows = []
        for lane, ended in enumerate(self._ended):
            rows += [self.tokens(lane, episode) for episode in range(len(ended))]
            rows.append(self._table[lane, int(self._first[lane]) : int(self._count[lane])])
        return {
            "tokens": torch.cat(rows).cpu(),
            "ended": [[[counter, length] for counter, _, length in ended] for ended in self._ended],
            "running": self.running().tolist(),
        }

    def load_checkpoint_state(self, state: dict[str, Any]) -> None:
        """Restores what `checkpoint_state` returned, for the same number of environments."""
        tokens, begin = state["tokens"].to(self._table.device), 0
        self._room = self._running = 0
        for lane, (ended, running) in enumerate(zip(state["ended"], state["running"], strict=True)):
            for counter, length in ended:
                self._ended[lane].append(Ended(counter, int(self._count[lane]), length))
                self._count[lane] += length
            self._first[lane] = self._count[lane]
            self._count[lane] += running
        self._earlier = [len(ended) for ended in self._ended]
        while self._table.shape[1] < int(self._count.max()):
            self._table = torch.cat([self._table, torch.zeros_like(self._table)], 1)
        for lane, count in enumerate(self._count.tolist()):
            self._table[lane, :count] = tokens[begin : begin + count]
            begin += count


def without_running(state: dict[str, Any], lanes: Sequence[int]) -> dict[str, Any]:
    """The result of `LaneHistories.checkpoint_state`, without the running episodes of `lanes`."""
    kept, begin = [], 0
    running = [0 if lane in lanes else length for lane, length in enumerate(state["running"])]
    for ended, ran, runs in zip(state["ended"], state["running"], running, strict=True):
        length = sum(length for _, length in ended)
        kept.append(state["tokens"][begin : begin + length + runs])
        begin += length + ran
    return {"tokens": torch.cat(kept), "ended": state["ended"], "running": running}


def check_counters(state: dict[str, Any]) -> None:
    """Raises ValueError unless a saved memory has one episode counter per environment, or no environments."""
    lanes = state["lanes"]
    counted = state["episode"] if lanes else []
    if type(lanes) is not int or len(counted) != lanes or not all(type(n) is int and n >= -1 for n in counted):
        raise ValueError(f"The saved memory has the episode counters {counted!r} for {lanes!r} environments.")


def check_history(state: dict[str, Any], *, lanes: int) -> None:
    """Raises ValueError unless the saved tokens match the saved episodes of this number of environments."""
    lengths = [length for ended in state["ended"] for _, length in ended] + list(state["running"])
    fits = len(state["ended"]) == len(state["running"]) == lanes
    if not (fits and all(type(n) is int and n >= 0 for n in lengths) and sum(lengths) == len(state["tokens"])):
        raise ValueError(f"The saved {len(state['tokens'])} tokens do not match the episodes of {lanes} environments.")
