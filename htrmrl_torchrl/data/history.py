"""What each lane has lived through in its running trial: one growing table of tokens per lane.

::

    lane 0    x0 x1 x2 x3 | x0 x1 x2 x3 | x0 x1 .       two ended episodes of three steps, the third is running
    lane 1    x0 x1 .                                   a trial has just begun: the row is used from its start again
"""

import torch
from torch import Tensor

from htrmrl_torchrl.data.windows import window_at

_FIRST_CAPACITY = 512


class LaneHistories:
    """Tokens of the running trial of N lanes.

    Args:
        token: ``[N, x]``, for its sizes, type and device.
    """

    def __init__(self, token: Tensor) -> None:
        self._lanes = torch.arange(len(token), device=token.device)
        self._table = token.new_zeros(len(token), _FIRST_CAPACITY, token.shape[-1])
        self._count = torch.zeros_like(self._lanes)  # tokens of the trial
        self._first = torch.zeros_like(self._lanes)  # where the running episode begins
        self._ended: list[list[tuple[int, int]]] = [[] for _ in token]  # (first token, tokens) of ended episodes

    def __len__(self) -> int:
        return len(self._lanes)

    def append(self, token: Tensor, lanes: Tensor | None = None) -> None:
        """Adds one token ``[lanes, x]`` to each of the lanes (all by default)."""
        lanes = self._lanes if lanes is None else lanes
        if int(self._count.max()) >= self._table.shape[1]:
            self._table = torch.cat([self._table, torch.zeros_like(self._table)], 1)
        self._table[lanes, self._count[lanes]] = token
        self._count[lanes] += 1

    def begin_episodes(self, lanes: Tensor, new_trial: Tensor) -> None:
        """Ends the running episode of ``lanes``, or forgets the lane where ``new_trial`` (same length) is True."""
        for lane, forget in zip(lanes.tolist(), new_trial.tolist(), strict=True):
            if forget:
                self._ended[lane].clear()
                self._count[lane] = 0
            else:
                first = int(self._first[lane])
                self._ended[lane].append((first, int(self._count[lane]) - first))
        self._first[lanes] = self._count[lanes]

    def lengths(self, lane: int) -> list[int]:
        """Tokens of each ended episode of the lane's trial, oldest first."""
        return [length for _, length in self._ended[lane]]

    def current(self, window: int) -> tuple[Tensor, Tensor]:
        """The newest ``window`` tokens of the running episodes, ``[N, T, x]``, and their mask ``[N, T]``."""
        row = self._lanes * self._table.shape[1]
        return window_at(self._table.flatten(0, 1), row + self._count - 1, row + self._first, window)

    def windows(self, lane: int, drawn: list[tuple[int, int]], *, slots: int, window: int) -> tuple[Tensor, Tensor]:
        """Windows (index among the ended episodes, first token), right-aligned into ``slots``.

        Returns:
            tokens ``[slots, T, x]`` and mask ``[slots, T]``; slots without a window are masked.
        """
        first, newest = [0] * (slots - len(drawn)), [-1] * (slots - len(drawn))
        for episode, start in drawn:
            begin, length = self._ended[lane][episode]
            first.append(begin + start)
            newest.append(begin + min(start + window, length) - 1)
        return window_at(self._table[lane], self._lanes.new_tensor(newest), self._lanes.new_tensor(first), window)
