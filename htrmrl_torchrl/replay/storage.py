"""Episodic storage: every frame once, a table of episodes, and contexts gathered by index.

::

    frames    env 0: a a a | b b b || env 1: c c | d d d ...          one row per step: action, log-prob, advantage, ...
    tokens    x0 x1 x2 x3 | x0 x1 x2 x3 || x0 x1 x2 | x0 x1 x2 x3 ... one row more per episode: its final token
    episodes  a, b, c, d, ...                                         environment, running counter, first frame, frames

Frame f of the i-th episode has token row f + i, because each episode has one token more than frames. Memory is
O(frames), independent of window length and slots.
"""

from typing import Any

import torch
from tensordict import TensorDict, TensorDictBase
from torch import Tensor
from torchrl.data import LazyTensorStorage

from htrmrl_torchrl import keys
from htrmrl_torchrl.memory.past import Scope, check_scope
from htrmrl_torchrl.memory.windows import carry_over, final_token, make_token, window_at
from htrmrl_torchrl.specs import MismatchError

# In the token table, or needed during the rollout only.
_NOT_STORED = (keys.OBSERVATION, keys.PREV_ACTION, keys.PREV_REWARD, keys.FINAL_OBSERVATION[0], keys.CONTEXT, "next")
_TRAINABLE, _TOKEN, _NEXT_TOKEN = "trainable", "_token", "_next_token"


class EpisodicStorage(LazyTensorStorage):
    """On-policy storage of whole episodes; windows and contexts are rebuilt by index.

    `EpisodicReplayBuffer.extend` fills it with collected batches ``[N, T]``, one row per environment. An environment's
    frames stay together in time order, also over several batches. If a batch cuts a trial, its frames stay as context
    after `EpisodicReplayBuffer.empty` until the trial ends; they are not trained on again. With ``scope="lane"`` the
    `max_episodes` latest episodes of each environment stay too.

    Args:
        max_size: maximal number of frames, context included. More are a ValueError; nothing is overwritten.
        window: tokens T of a window.
        episodes: windows E of a context.
        scope, max_episodes: those of the `EpisodicMemory` that draws the windows.

    Raises:
        ValueError: for sizes below 1, an unknown scope, and a context whose episodes are not stored.
        MismatchError: (a ValueError) for a batch with missing entries, other axes, or other episode ends than in
            memory.
    """

    def __init__(
        self, max_size: int, *, window: int, episodes: int, scope: Scope = "trial", max_episodes: int | None = None
    ) -> None:
        if window < 1 or episodes < 1:
            raise ValueError(f"window={window} and episodes={episodes} must be at least 1.")
        check_scope(scope, max_episodes)
        super().__init__(max_size, device="auto")  # that of the first batch
        self.window, self.episodes = window, episodes
        self.scope, self.max_episodes = scope, max_episodes
        self._context_only: TensorDictBase | None = None
        self._clear_index()

    def merge(self, batch: TensorDictBase) -> TensorDictBase:
        """All frames to hold, ``[frames]`` sorted by environment: those already held, then ``batch`` ``[N, T]``."""
        self._check(batch)
        after: TensorDictBase = batch.get("next")
        lane = torch.arange(len(batch), device=batch.device).view(-1, 1).expand(batch.shape)
        rows = batch.exclude(*_NOT_STORED).update(
            {
                keys.LANE: lane,
                _TRAINABLE: torch.ones_like(lane, dtype=torch.bool),
                _TOKEN: make_token(batch),
                _NEXT_TOKEN: make_token(after),
            }
        )
        rows = rows.reshape(-1)
        earlier = [held for held in (self._continuing(batch), self._rows()) if held is not None]
        if earlier:
            rows = TensorDict.cat([*(_with_columns_of(rows, held) for held in earlier), rows])
            rows = rows[rows[keys.LANE].argsort(stable=True)]
        if len(rows) > self.max_size:
            kept = "unfinished trials" if self.scope == "trial" else "remembered episodes"
            raise ValueError(
                f"{len(rows)} frames (context of {kept} included) do not fit into max_size={self.max_size}. "
                "Call empty() before each new batch, or make max_size larger."
            )
        return rows

    def set(self, cursor: Any, data: TensorDictBase, *, set_cursor: bool = True) -> None:
        """Writes the frames that `merge` returned, from row 0; called by the buffer's writer."""
        self._index(data)
        self._context_only = None
        super().set(cursor, data.exclude(_TOKEN, _NEXT_TOKEN), set_cursor=set_cursor)
        # Columns assigned to an earlier batch do not apply to this one.
        for key in set(self._storage.keys(True, True)) - set(data.keys(True, True)):
            del self._storage[key]

    def assign(self, frames: Tensor, columns: TensorDictBase) -> None:
        """Writes further columns ``[*shape]`` (for example advantages) at the rows ``frames`` ``[*shape]``."""
        for key, value in columns.items(True, True):
            if key not in self._storage.keys(True, True):
                self._storage.set(key, value.new_zeros(self.max_size, *value.shape[frames.ndim :]))
            self._storage.get(key)[frames] = value

    def retire(self) -> None:
        """Turns all frames into context, which is dropped as soon as no later frame can see it."""
        rows = self._rows()
        if rows is not None:
            self._context_only = rows.set(_TRAINABLE, torch.zeros_like(rows[_TRAINABLE]))

    def _empty(self) -> None:
        super()._empty()
        self._clear_index()

    def _check(self, batch: TensorDictBase) -> None:
        if batch.ndim != 2:
            raise MismatchError(
                f"A batch must be [N, T], one row per environment, or [T]; received {list(batch.batch_size)}; use "
                f"batch.flatten(0, {batch.ndim - 2})."
            )
        present = batch.keys(True, True)
        missing = [key for key in (keys.IS_INIT, keys.TRIAL_INIT, keys.WINDOW_CURRENT) if key not in present]
        if missing:
            raise MismatchError(
                f"The batch lacks {missing}; collect it with a policy that begins with an EpisodicMemory or a "
                "RecurrentMemory, in an environment with trial flags (make_env, or any one with a TrialTransform)."
            )
        read = [("next", key) for key in (keys.OBSERVATION, keys.PREV_ACTION, keys.PREV_REWARD, keys.IS_INIT)]
        missing = [key for key in read if key not in present]
        if missing:
            raise MismatchError(
                f"The batch lacks {missing}, the result of an episode's last step; build the collector with "
                "compact_obs=False and keep them."
            )
        self._check_ends(batch)

    def _check_ends(self, batch: TensorDictBase) -> None:
        """Refuses a batch whose final tokens differ from those that the memory received."""
        follows = (batch[keys.IS_INIT] & ~batch[keys.TRIAL_INIT])[:, 1:].squeeze(-1)
        if keys.FINAL_OBSERVATION not in batch.keys(True, True) or not bool(follows.any()):
            return
        told, stored = final_token(batch[:, 1:][follows]), make_token(batch["next"][:, :-1][follows])
        if not torch.equal(told[:, :-1], stored[:, :-1]):
            raise MismatchError(
                "The final tokens in the batch differ from those that the memory read: a transform after "
                "TrialTransform changes observations or actions; put TrialTransform last, behind all that change them."
            )

    def _rows(self) -> TensorDictBase | None:
        if not len(self):
            return None
        token = torch.arange(len(self), device=self.tokens.device) + self.episode_of_frame
        # The next row holds a frame's successor: the episode's next token, or its final one.
        held = {_TOKEN: self.tokens[token], _NEXT_TOKEN: self.tokens[token + 1]}
        return self._storage[: len(self)].clone().update(held)

    def _continuing(self, batch: TensorDictBase) -> TensorDictBase | None:
        if self._context_only is None:
            return None
        # Frames of a loaded checkpoint are on the CPU.
        rows = self._lately(self._context_only.to(batch[keys.TRIAL_INIT].device), batch[keys.WINDOW_CURRENT][:, 0, 0])
        if self.scope == "lane":
            return rows
        goes_on = ~batch[keys.TRIAL_INIT][:, 0, 0]
        trial = rows[keys.TRIAL_INIT].squeeze(-1).cumsum(0)  # rows are sorted by environment, so this counts trials
        last = torch.zeros(len(goes_on), dtype=trial.dtype, device=trial.device)
        last = last.scatter_reduce(0, rows[keys.LANE], trial, "amax", include_self=False)
        return rows[(trial == last[rows[keys.LANE]]) & goes_on[rows[keys.LANE]]]

    def _lately(self, rows: TensorDictBase, counter: Tensor) -> TensorDictBase:
        """Frames of the `max_episodes` latest episodes before the episode counters ``[N]``."""
        if self.max_episodes is None:
            return rows
        return rows[rows[keys.WINDOW_CURRENT].squeeze(-1) >= counter[rows[keys.LANE]] - self.max_episodes]

    def _clear_index(self) -> None:
        self.tokens = torch.empty(0)
        self.table = TensorDict(batch_size=[0])
        self.episode_of_frame = torch.empty(0, dtype=torch.long)

    def _index(self, rows: TensorDictBase) -> None:
        """Builds the token table ``[frames + episodes, x]`` and the table of episodes."""
        lane, token = rows[keys.LANE], rows[_TOKEN]
        frame = torch.arange(len(rows), device=lane.device)
        begins = rows[keys.IS_INIT].squeeze(-1)
        counter = rows[keys.WINDOW_CURRENT].squeeze(-1)
        follows = torch.where(lane[1:] == lane[:-1], counter[1:] - counter[:-1] == begins[1:].long(), begins[1:])
        if not (bool(begins[0]) and bool(follows.all())):
            raise ValueError(
                "Frames are missing: an environment begins inside an episode, or skips some. Extend with every "
                "batch, in the order of collection, from a reset on; batches of several workers, one after the other "
                "(MultiAsyncCollector), must hold whole trials."
            )
        self.episode_of_frame = begins.cumsum(0) - 1
        first = frame[begins]  # [episodes]
        last = torch.cat([first[1:], first.new_tensor([len(rows)])]) - 1
        order = torch.arange(len(first), device=lane.device)
        self.tokens = token.new_empty(len(token) + len(first), token.shape[-1])
        self.tokens[frame + self.episode_of_frame] = token
        self.tokens[last + order + 1] = rows[_NEXT_TOKEN][last]
        counter = counter[first]
        trainable = torch.zeros_like(first).index_add(0, self.episode_of_frame, rows[_TRAINABLE].long())
        self.table = TensorDict(
            lane=lane[first],
            counter=counter,
            first_frame=first,
            first_token=first + order,
            frames=last - first + 1,
            trainable=trainable,
            batch_size=[len(first)],
        )
        # Episodes are sorted by environment and their counters are consecutive: row = counter + offset[lane].
        self._offset = torch.zeros(int(lane.max()) + 1, dtype=torch.long, device=lane.device)
        self._offset[lane[first]] = order - counter

    def checkpoint_state(self) -> dict[str, Tensor]:
        """Context that the next batch may read, if it begins with new trials in all environments.

        Empty with ``scope="trial"``; else ``tokens`` ``[frames + episodes, x]`` and, ``[episodes]``, ``lane``,
        ``counter``, ``frames`` and ``trial_init``.
        """
        rows = self._rows()
        if rows is None:
            rows = self._context_only
        if rows is None or self.scope == "trial":
            return {}
        numbers = rows[keys.WINDOW_CURRENT].squeeze(-1)
        last = numbers.new_zeros(int(rows[keys.LANE].max()) + 1).scatter_reduce(0, rows[keys.LANE], numbers, "amax")
        rows = self._lately(rows, last + 1)
        begins = rows[keys.IS_INIT].squeeze(-1)
        frame, episode = torch.arange(len(rows), device=begins.device), begins.cumsum(0) - 1
        tokens = rows[_TOKEN].new_empty(len(rows) + int(begins.sum()), rows[_TOKEN].shape[-1])
        tokens[frame + episode + 1] = rows[_NEXT_TOKEN]
        tokens[frame + episode] = rows[_TOKEN]
        state = {
            "tokens": tokens,
            "lane": rows[keys.LANE][begins],
            "counter": rows[keys.WINDOW_CURRENT].squeeze(-1)[begins],
            "frames": torch.bincount(episode),
            "trial_init": rows[keys.TRIAL_INIT].squeeze(-1)[begins],
        }
        return {name: value.cpu() for name, value in state.items()}

    def load_checkpoint_state(self, state: dict[str, Tensor]) -> None:
        """Restores `checkpoint_state` as context only."""
        self._context_only = None
        if not state:
            return
        frames = state["frames"]
        episode = torch.arange(len(frames)).repeat_interleave(frames)
        frame = torch.arange(len(episode))
        begins = torch.cat([torch.ones(1, dtype=torch.bool), episode[1:] != episode[:-1]])
        columns = {
            keys.LANE: state["lane"][episode],
            _TRAINABLE: torch.zeros_like(begins),
            _TOKEN: state["tokens"][frame + episode],
            _NEXT_TOKEN: state["tokens"][frame + episode + 1],
            keys.IS_INIT: begins.unsqueeze(-1),
            keys.TRIAL_INIT: (begins & state["trial_init"][episode]).unsqueeze(-1),
            keys.WINDOW_CURRENT: state["counter"][episode].unsqueeze(-1),
        }
        self._context_only = TensorDict(columns, batch_size=[len(frame)])

    def segments(self, length: int) -> tuple[Tensor, Tensor]:
        """Runs of at most ``length`` consecutive trainable frames of an episode (of a trial with a recurrent state).

        Returns their first frames ``[n]`` and lengths ``[n]``; only an episode's (or trial's) last run may be shorter.
        """
        if length < 1:
            raise ValueError(f"A segment of {length} frames is empty; it must be at least 1.")
        path = torch.arange(len(self.table), device=self.tokens.device)
        if self._is_recurrent:  # gradients may pass from episode to episode
            begins = self._storage.get(keys.RECURRENT_BEGINS)[self.table["first_frame"], 0]
            begins = begins[1:] | (self.table["lane"][1:] != self.table["lane"][:-1])
            path[1:] = begins.cumsum(0)
        zeros = torch.zeros(int(path[-1]) + 1, dtype=torch.long, device=path.device)
        trainable = zeros.index_add(0, path, self.table["trainable"])
        # A path begins with its context-only frames; the trainable ones are at its end.
        end = zeros.scatter_reduce(0, path, self.table["first_frame"] + self.table["frames"], "amax")
        runs = (trainable + length - 1) // length
        path = torch.arange(len(runs), device=runs.device).repeat_interleave(runs)
        nth = torch.arange(len(path), device=runs.device) - (runs.cumsum(0) - runs)[path]
        return (end - trainable)[path] + nth * length, (trainable[path] - nth * length).clamp(max=length)

    def contexts(self, frames: Tensor, starts: Tensor | None = None) -> TensorDictBase:
        """The contexts of the decisions at storage rows ``frames`` ``[*shape]``, a tensordict ``[*shape]``.

        If each row of ``frames`` ``[n, S]`` is inside one episode, the past is expanded along S without a copy.
        ``starts`` ``[*shape]`` marks where a segment starts from its stored recurrent state; default: where frames are
        not consecutive.
        """
        token = frames + self.episode_of_frame[frames]
        context = self._gather(frames, token)
        return context.update(self._states_before(frames, token, starts)) if self._is_recurrent else context

    def final_contexts(self) -> tuple[TensorDictBase, Tensor]:
        """Contexts after the last step of each episode with trainable frames, and the rows of those steps."""
        table = self.table[self.table["trainable"] > 0]
        last = table["first_frame"] + table["frames"] - 1
        context = self._gather(last, last + self.episode_of_frame[last] + 1)
        if self._is_recurrent:
            context.set(keys.STATE_BEFORE[1], self._states_after(last))
        return context, last

    @property
    def _is_recurrent(self) -> bool:
        return keys.RECURRENT in self._storage.keys()

    def _states_after(self, frames: Tensor) -> TensorDictBase:
        return self._storage.get(keys.RECURRENT).exclude(keys.RECURRENT_BEGINS[1])[frames]

    def _states_before(self, frames: Tensor, token: Tensor, starts: Tensor | None) -> TensorDict:
        """What a recurrent context adds: the state before each frame and the token read there."""
        begins = self._storage.get(keys.RECURRENT_BEGINS)[frames]  # [*shape, 1]
        before = (frames - 1).clamp(min=0)
        lane = self._storage.get(keys.LANE)
        if not bool((begins.squeeze(-1) | ((frames > 0) & (lane[before] == lane[frames]))).all()):
            raise ValueError(
                "A recurrent state comes from a frame that is not in the storage. Batches must be extended in the "
                "order they were collected, and a trial's first batch may not be skipped."
            )
        if starts is None:
            starts = torch.ones_like(frames, dtype=torch.bool)
            starts[..., 1:] = frames[..., 1:] != frames[..., :-1] + 1
        action_dim = self._storage.get(keys.ACTION).shape[-1]
        # The row before an episode's first token holds the previous episode's final token.
        entering = carry_over(self.tokens[token], self.tokens[token - 1], action_dim=action_dim)
        goes_on = self._storage.get(keys.IS_INIT)[frames] & ~begins
        return TensorDict(
            current=torch.where(goes_on, entering, self.tokens[token]).unsqueeze(-2),
            before=self._states_after(before).apply(lambda state: state.masked_fill(begins, 0)),
            starts=starts.unsqueeze(-1) | begins,
            batch_size=frames.shape,
        )

    def _gather(self, frames: Tensor, newest: Tensor) -> TensorDictBase:
        episode = self.episode_of_frame[frames]
        current, mask = window_at(self.tokens, newest, self.table["first_token"][episode], self.window)
        context = TensorDict(current=current, current_mask=mask, batch_size=frames.shape)
        if frames.ndim == 2 and bool((episode == episode[:, :1]).all()):
            past = self._gather_past(frames[:, 0], episode[:, 0]).unsqueeze(1).expand(frames.shape)
        else:
            past = self._gather_past(frames, episode)
        return context.update(past)

    def _gather_past(self, frames: Tensor, episode: Tensor) -> TensorDictBase:
        drawn = self._storage.get(keys.WINDOW_EPISODE)[frames]  # [*shape, E-1]
        start = self._storage.get(keys.WINDOW_START)[frames]
        slot_mask = drawn >= 0
        row = drawn + self._offset[self.table["lane"][episode]].unsqueeze(-1)
        row = torch.where(slot_mask, row, 0)
        known = (row >= 0) & (row < len(self.table))
        counter, lane = (self.table[name][row * known] for name in ("counter", "lane"))
        # The row before an environment's first is another one's and may have the same counter.
        known &= (counter == drawn) & (lane == self.table["lane"][episode].unsqueeze(-1))
        if not bool((known | ~slot_mask).all()):
            raise ValueError(
                "A context refers to an episode that is not in the storage. Batches must be extended in the order they "
                "were collected, and a trial's first batch may not be skipped."
            )
        first = self.table["first_token"][row] + start
        tokens = self.table["frames"][row] + 1
        newest = first + torch.clamp(tokens - start, max=self.window) - 1
        newest = torch.where(slot_mask, newest, first - 1)  # an empty slot is an empty window
        past, past_mask = window_at(self.tokens, newest, first, self.window)
        return TensorDict(
            past=past,
            past_mask=past_mask,
            past_id=torch.where(slot_mask, first, -1),
            slot_mask=slot_mask,
            batch_size=frames.shape,
        )


def _with_columns_of(rows: TensorDictBase, held: TensorDictBase) -> TensorDictBase:
    """``held`` with exactly the columns of ``rows``; missing ones (in frames from a checkpoint) are zero."""
    columns = {
        key: held.get(key, None) if key in held.keys(True, True) else value.new_zeros(len(held), *value.shape[1:])
        for key, value in rows.items(True, True)
    }
    return TensorDict(columns, batch_size=held.batch_size, device=rows.device)
