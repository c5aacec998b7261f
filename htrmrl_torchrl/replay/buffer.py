"""Replay buffer and sampler: minibatches of segments, balanced over tasks, with contexts gathered by index."""

from typing import Any

import torch
from tensordict import TensorDictBase
from torch import Tensor
from torchrl.data import TensorDictReplayBuffer
from torchrl.data.replay_buffers.sample_units import SampleUnit
from torchrl.data.replay_buffers.samplers import Sampler
from torchrl.data.replay_buffers.storages import Storage

from htrmrl_torchrl import keys
from htrmrl_torchrl.replay.storage import EpisodicStorage


class SegmentSampler(Sampler):
    """Draws each segment of S = ``segment_frames`` frames once an epoch, spreading every task over the minibatches.

    Within a task the order is uniformly random. Tasks are interleaved by the relative rank of their segments, so any
    run of consecutive segments holds each task in proportion to its frames::

        task a   a1        a2        a3        a4            (rank + random offset) / number of segments
        task b        b1                  b2
        order    a1   b1   a2        a3   b2   a4
    """

    def __init__(self, *, segment_frames: int) -> None:
        super().__init__()
        if segment_frames < 1:
            raise ValueError(f"segment_frames={segment_frames} must be at least 1.")
        self.segment_frames = segment_frames
        self._empty()

    def _empty(self) -> None:
        self._first = self._frames = torch.empty(0, dtype=torch.long)
        self._cursor = 0
        self._ran_out = False

    @property
    def ran_out(self) -> bool:
        """Whether the last sample ended an epoch."""
        return self._ran_out

    @ran_out.setter
    def ran_out(self, value: bool) -> None:
        self._ran_out = value

    def sample(self, storage: Storage, batch_size: int) -> tuple[Tensor, dict[str, Any]]:
        """First frames of the next ``batch_size // segment_frames`` segments, their lengths in ``info``."""
        if batch_size % self.segment_frames:
            raise ValueError(
                f"A minibatch of {batch_size} frames is not a whole number of segments of {self.segment_frames} frames."
            )
        if self._cursor >= len(self._first):
            self._plan(storage)
        chosen = slice(self._cursor, self._cursor + batch_size // self.segment_frames)
        self._cursor = chosen.stop
        self._ran_out = self._cursor >= len(self._first)
        return self._first[chosen], {"segment_length": self._frames[chosen]}

    def _plan(self, storage: Storage) -> None:
        assert isinstance(storage, EpisodicStorage)
        first, frames = storage.segments(self.segment_frames)
        stored = storage.get(slice(0, len(storage)))
        task = stored[keys.TASK].squeeze(-1)[first] if keys.TASK in stored.keys() else torch.zeros_like(first)
        shuffled = torch.randperm(len(first), device=first.device)
        by_task = shuffled[task[shuffled].argsort(stable=True)]
        _, group, size = task[by_task].unique_consecutive(return_inverse=True, return_counts=True)
        rank = torch.arange(len(first), device=first.device) - (size.cumsum(0) - size)[group]
        position = (rank + torch.rand(len(first), device=first.device)) / size[group]
        order = by_task[position.argsort()]
        self._first, self._frames, self._cursor = first[order], frames[order], 0

    def state_dict(self) -> dict[str, Any]:
        return {}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Nothing to load: a plan never outlasts an update."""

    def dumps(self, path: Any) -> None:
        """Nothing to save."""

    def loads(self, path: Any) -> None:
        """Nothing to load."""


class _Segments(SampleUnit):
    """Expands a segment's first frame into all its frames, ``[n * S]``."""

    def expand(self, index: Any, info: dict[str, Any], storage: Storage) -> tuple[Any, dict[str, Any]]:
        length = info.pop("segment_length")
        offset = torch.arange(int(length.sum()), device=index.device)
        offset = offset - (length.cumsum(0) - length).repeat_interleave(length)
        info = {**info, "segments": None if bool((length != length[:1]).any()) else len(length), "starts": offset == 0}
        return index.repeat_interleave(length) + offset, info


class EpisodicReplayBuffer(TensorDictReplayBuffer):
    """TensorDict replay buffer whose samples carry the context of each decision.

    On-policy use: ``empty()``, ``extend(batch)``, then one iteration per epoch. Samples of equally long segments are
    ``[n, S]``, others flat ``[frames]``. They hold the batch's entries except raw observations, which are in the tokens
    of ``"context"`` (see `htrmrl_torchrl.keys`).

    Args:
        storage: an `EpisodicStorage`; ValueError for others.
        batch_size: frames of a minibatch, a multiple of `segment_frames` (else ValueError).
        segment_frames: consecutive frames S of one episode that stay together. Larger segments share more of the past's
            encoding, but make a minibatch of fewer, more correlated pieces. With a recurrent encoder a segment may span
            episodes of one trial, and gradients go back S frames.
    """

    def __init__(self, *, storage: EpisodicStorage, batch_size: int, segment_frames: int = 1) -> None:
        if not isinstance(storage, EpisodicStorage):
            raise ValueError(f"An EpisodicReplayBuffer needs an EpisodicStorage; received {type(storage).__name__}.")
        if batch_size < 1 or segment_frames < 1 or batch_size % segment_frames:
            raise ValueError(f"batch_size={batch_size} must be a positive multiple of segment_frames={segment_frames}.")
        super().__init__(
            storage=storage,
            sampler=SegmentSampler(segment_frames=segment_frames),
            sample_unit=_Segments(),
            batch_size=batch_size,
        )

    def extend(self, tensordicts: TensorDictBase, *, update_priority: bool | None = None) -> Tensor:
        """Adds a collected batch ``[N, T]`` (or ``[T]``); returns the storage row of each frame."""
        if tensordicts.ndim == 1:  # an environment without batch axis
            return self.extend(tensordicts.unsqueeze(0), update_priority=update_priority).squeeze(0)
        rows = self._storage.merge(tensordicts)
        super().empty()
        super().extend(rows, update_priority=update_priority)
        # Rows are sorted by environment; the new frames of each come last.
        held = len(rows) - tensordicts.numel()
        if not held:
            return torch.arange(len(rows), device=rows.device).view(tensordicts.shape)
        end = torch.bincount(rows[keys.LANE], minlength=len(tensordicts)).cumsum(0)
        return end.unsqueeze(-1) + torch.arange(-tensordicts.shape[1], 0, device=rows.device)

    def assign(self, frames: Tensor, columns: TensorDictBase) -> None:
        """Writes columns ``[*shape]`` computed after `extend` at its rows ``[*shape]``."""
        self._storage.assign(frames, columns)

    def empty(self, empty_write_count: bool = True) -> None:
        """Removes all frames from training; those of unfinished trials stay readable as context."""
        self._storage.retire()
        super().empty(empty_write_count)

    def _sample(self, batch_size: int) -> tuple[Any, dict[str, Any]]:
        data, info = super()._sample(batch_size)
        segments, starts = info.pop("segments"), info.pop("starts")
        index = info["index"]
        if segments is not None:
            index, starts, data = index.view(segments, -1), starts.view(segments, -1), data.reshape(segments, -1)
        info["index"] = index
        context = self._storage.contexts(index, starts)
        return data.set(keys.CONTEXT, context), info
