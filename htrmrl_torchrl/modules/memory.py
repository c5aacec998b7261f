"""The rollout side of memory: what each lane has lived through in its trial, and what it sees of it now.

The memory belongs to the acting policy. It is inference state, not experience: nothing of it enters the collected batch
but which windows were drawn (two small integer keys, and the number of the running episode), from which the replay
buffer rebuilds the same contexts by index.
"""

import json
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from tensordict import TensorDict, TensorDictBase
from tensordict.nn import TensorDictModuleBase
from tensordict.utils import NestedKey
from torch import Tensor

from htrmrl_torchrl import keys
from htrmrl_torchrl.data.strategies import WindowStrategy, make_strategy
from htrmrl_torchrl.data.windows import final_token, make_token, window_at
from htrmrl_torchrl.modules.encoder import HierarchicalEncoder

_FIRST_CAPACITY = 512
# What `EpisodicMemory._allocate` makes.
_LANE_STATE = {
    "_all", "_table", "_count", "_first", "_row0", "_ended", "_window_episode", "_window_start", "_past", "_episode",
    "_streams", "_watched", "_version",
}  # fmt: skip


class EpisodicMemory(TensorDictModuleBase):
    """Remembers the episodes of each lane's trial and writes the context of the next decision.

    Put it first in the policy of a collector. Each call must be the next step of every lane, in order: the memory
    appends the step's token, moves an episode into memory when the next one begins (``is_init``), forgets everything at
    ``trial_init``, and draws the windows of an episode once at its start from the lane's own random stream.

    Args:
        encoder: the encoder, or all encoders (a separate critic), that read the context. The past is encoded with each
            of them once per episode, and again when their weights have changed in place. ``None`` keeps no cache; the
            encoders then encode raw windows at every step, to the same result. They are used, not owned: the memory has
            no parameters and adds nothing to a state dict.
        window: tokens T of a window; default: the encoder's.
        episodes: windows E of a context; default: the encoder's.
        strategy: ``"recent"``, ``"uniform"`` or a callable, see `htrmrl_torchrl.data.strategies`.
        seed: of the lanes' random streams.

    Shapes:
        ``observation`` ``[*batch, o]`` and the trial keys (see `htrmrl_torchrl.keys`) -> ``"context"`` ``[*batch]``,
        ``("window", "episode")`` and ``("window", "start")`` ``[*batch, E-1]``, ``("window", "current")``
        ``[*batch, 1]``.

    Raises:
        ValueError: if neither an encoder nor sizes are given, or the strategy is unknown.
        KeyError: if the environment does not give an ended episode's final step.

    Example:
        >>> from torchrl.envs import GymEnv, TransformedEnv
        >>> from htrmrl_torchrl import TrialTransform
        >>> env = TransformedEnv(GymEnv("Pendulum-v1"), TrialTransform(episodes_per_trial=2))
        >>> memory = EpisodicMemory(window=4, episodes=3)
        >>> memory(env.reset())["context", "current"].shape
        torch.Size([4, 6])
    """

    def __init__(
        self,
        encoder: HierarchicalEncoder | Sequence[HierarchicalEncoder] | None = None,
        *,
        window: int | None = None,
        episodes: int | None = None,
        strategy: str | WindowStrategy = "uniform",
        seed: int = 0,
    ) -> None:
        super().__init__()
        encoders = () if encoder is None else (encoder,) if isinstance(encoder, HierarchicalEncoder) else tuple(encoder)
        if encoders:
            window = encoders[0].window if window is None else window
            episodes = encoders[0].episodes if episodes is None else episodes
        if window is None or episodes is None or window < 1 or episodes < 1:
            raise ValueError(f"window={window} and episodes={episodes} must be at least 1; give them or an encoder.")
        # A tuple hides the encoders from Module registration: their weights belong to the actor's state dict alone.
        self._encoders = tuple(e for e in encoders if e.remembers)
        self.window, self.episodes = window, episodes
        self.strategy = make_strategy(strategy)
        self.seed = seed
        self.in_keys: list[NestedKey] = [
            keys.OBSERVATION, keys.PREV_ACTION, keys.PREV_REWARD, keys.IS_INIT, keys.TRIAL_INIT,
            keys.FINAL_OBSERVATION, keys.FINAL_ACTION, keys.FINAL_REWARD,
        ]  # fmt: skip
        self.out_keys: list[NestedKey] = [keys.CONTEXT, keys.WINDOW_EPISODE, keys.WINDOW_START, keys.WINDOW_CURRENT]
        self._lanes = 0

    @torch.no_grad()
    def forward(self, tensordict: TensorDictBase) -> TensorDictBase:
        batch = tensordict.batch_size
        flat = tensordict if len(batch) == 1 else tensordict.select(*self.in_keys, strict=False).reshape(-1)
        token = make_token(flat)  # [N, x]
        trial = flat.get(keys.TRIAL_INIT).squeeze(-1)
        if self._lanes != len(token):
            self._allocate(token)
            trial = torch.ones_like(trial)  # nothing is known of lanes that appear: they begin here
        begins = (trial | flat.get(keys.IS_INIT).squeeze(-1)).nonzero().squeeze(-1)
        if len(begins):
            self._begin_episodes(flat, begins, trial)
        elif self._encoders and self._weights_version() != self._version:
            self.refresh()
        self._append(self._all, token)
        newest = self._row0 + self._count - 1
        current, mask = window_at(self._table.flatten(0, 1), newest, self._row0 + self._first, self.window)
        context = self._past.copy().update({keys.CURRENT[1]: current, keys.CURRENT_MASK[1]: mask})
        tensordict.set(keys.CONTEXT, context.reshape(batch))
        tensordict.set(keys.WINDOW_EPISODE, self._window_episode.reshape(*batch, -1))
        tensordict.set(keys.WINDOW_START, self._window_start.reshape(*batch, -1))
        return tensordict.set(keys.WINDOW_CURRENT, self._episode.reshape(*batch, 1))

    def refresh(self) -> None:
        """Encodes the remembered windows anew. In-place weight updates of this process are noticed without it; call it
        (for example in a collector's pre-collect hook) where weights arrive in another way."""
        if self._lanes:
            self._encode(self._all)
            self._version = self._weights_version()

    def forget(self) -> None:
        """Drops all lanes: the next call begins new trials everywhere, whatever its flags. Random streams go on."""
        self._restored = self.checkpoint_state()
        self._lanes = 0

    def restart(self) -> None:
        """Back to how it was built: drops all lanes, and their random streams begin again from the seed."""
        self._restored, self._lanes = None, 0

    def checkpoint_state(self) -> dict[str, Any]:
        """Random streams and episode counters, exact at trial boundaries (episodes themselves are not kept)."""
        if not self._lanes:
            return self._restored or {"lanes": 0}
        return {
            "lanes": self._lanes,
            "episode": self._episode.flatten().tolist(),
            "streams": [json.dumps(rng.bit_generator.state) for rng in self._streams],
        }

    def load_checkpoint_state(self, state: dict[str, Any]) -> None:
        """Continues the streams and counters of `checkpoint_state`; the next step must begin a trial in every lane."""
        self._restored, self._lanes = state, 0

    def __getstate__(self) -> dict[str, Any]:
        # Copies (workers, deep copies) start with an empty memory: state is tied to the lanes it was made for.
        state = {key: value for key, value in super().__getstate__().items() if key not in _LANE_STATE}
        return {**state, "_lanes": 0, "_restored": None}

    # ------------------------------------------------------------------------------------------------ per-lane state

    _restored: dict[str, Any] | None = None

    def _allocate(self, token: Tensor) -> None:
        """Fresh state for ``len(token)`` lanes. Axes: N lanes, E-1 slots, T tokens of a window, x of a token."""
        n, slots, device = len(token), self.episodes - 1, token.device
        self._lanes = n
        self._all = torch.arange(n, device=device)
        self._table = token.new_zeros(n, _FIRST_CAPACITY, token.shape[-1])  # the trial's tokens, lane by lane
        self._count = torch.zeros(n, dtype=torch.long, device=device)  # tokens in a lane's row of the table
        self._first = torch.zeros(n, dtype=torch.long, device=device)  # first token of the running episode
        self._row0 = self._all * _FIRST_CAPACITY
        self._ended: list[list[tuple[int, int]]] = [[] for _ in range(n)]  # (first token, tokens) of ended episodes
        self._window_episode = torch.full((n, slots), -1, dtype=torch.long, device=device)
        self._window_start = torch.full((n, slots), -1, dtype=torch.long, device=device)
        self._past = TensorDict(
            past=token.new_zeros(n, slots, self.window, token.shape[-1]),
            past_mask=torch.zeros(n, slots, self.window, dtype=torch.bool, device=device),
            past_id=torch.full((n, slots), -1, dtype=torch.long, device=device),
            slot_mask=torch.zeros(n, slots, dtype=torch.bool, device=device),
            batch_size=[n],
        )
        state = self._restored if self._restored is not None and self._restored["lanes"] == n else None
        self._restored = None
        episode = state["episode"] if state else [-1] * n
        self._episode = torch.tensor(episode, dtype=torch.long, device=device).unsqueeze(-1)
        self._streams = [np.random.default_rng([self.seed, lane]) for lane in range(n)]
        for rng, stream in zip(self._streams, state["streams"] if state else (), strict=False):
            rng.bit_generator.state = json.loads(stream)
        # Listed once: walking the modules at every step would cost as much as the attention.
        self._watched = [parameter for encoder in self._encoders for parameter in encoder.parameters()]
        self._version = -1

    def _append(self, lanes: Tensor, token: Tensor) -> None:
        capacity = self._table.shape[1]
        if int(self._count.max()) >= capacity:
            self._table = torch.cat([self._table, torch.zeros_like(self._table)], 1)
            self._row0 = self._all * self._table.shape[1]
        self._table[lanes, self._count[lanes]] = token
        self._count[lanes] += 1

    def _begin_episodes(self, flat: TensorDictBase, lanes: Tensor, trial: Tensor) -> None:
        goes_on = lanes[~trial[lanes]]
        if len(goes_on):
            self._append(goes_on, final_token(flat)[goes_on])
        for lane in lanes.tolist():
            if trial[lane]:
                self._ended[lane].clear()
                self._count[lane] = 0
            else:
                first = int(self._first[lane])
                self._ended[lane].append((first, int(self._count[lane]) - first))
        self._first[lanes] = self._count[lanes]
        # Out of place, as all that is handed out: tensordicts of earlier steps must keep what they showed.
        self._episode = self._episode.index_add(0, lanes, torch.ones_like(lanes).unsqueeze(-1))
        if self.episodes > 1:
            self._draw_windows(lanes)

    def _draw_windows(self, lanes: Tensor) -> None:
        slots = self.episodes - 1
        episode, start = np.full((len(lanes), slots), -1), np.full((len(lanes), slots), -1)
        first, newest = np.zeros((len(lanes), slots), int), np.full((len(lanes), slots), -1)
        for i, lane in enumerate(lanes.tolist()):
            ended = self._ended[lane]
            lengths = [length for _, length in ended]
            drawn = sorted(self.strategy(lengths, slots=slots, window=self.window, rng=self._streams[lane]))
            oldest = int(self._episode[lane]) - len(ended)
            for slot, (e, s) in enumerate(drawn, start=slots - len(drawn)):  # right-aligned
                episode[i, slot], start[i, slot] = oldest + e, s
                first[i, slot] = ended[e][0] + s
                newest[i, slot] = ended[e][0] + min(s + self.window, lengths[e]) - 1
        device = self._table.device
        row0 = self._row0[lanes].unsqueeze(-1)
        first_row, newest_row = (torch.from_numpy(x).to(device) + row0 for x in (first, newest))
        past, past_mask = window_at(self._table.flatten(0, 1), newest_row, first_row, self.window)
        self._window_episode = self._window_episode.index_copy(0, lanes, torch.from_numpy(episode).to(device))
        self._window_start = self._window_start.index_copy(0, lanes, torch.from_numpy(start).to(device))
        window_episode, window_start = self._window_episode[lanes], self._window_start[lanes]
        slot_mask = window_episode >= 0
        # Unique to the lane's episode, not to its row in the table, which the next trial uses again.
        past_id = (lanes.unsqueeze(-1) << 44) + (window_episode << 22) + window_start
        drawn_now = TensorDict(
            past=past,
            past_mask=past_mask,
            past_id=torch.where(slot_mask, past_id, -1),
            slot_mask=slot_mask,
            batch_size=[len(lanes)],
        )
        self._past = self._past.copy().update({k: self._past[k].index_copy(0, lanes, v) for k, v in drawn_now.items()})
        if self._encoders and self._weights_version() != self._version:
            self.refresh()
        else:
            self._encode(lanes)

    def _encode(self, lanes: Tensor) -> None:
        for encoder in self._encoders:
            rows = self._past[lanes]
            cache = encoder.encode_past(rows["past"], rows["past_mask"], rows["past_id"], rows["slot_mask"])
            key = encoder.cache_key[1:]
            old = self._past.get(key, None)
            old = cache.new_zeros(self._lanes, *cache.shape[1:]) if old is None else old
            self._past = self._past.copy().set(key, old.index_copy(0, lanes, cache))

    def _weights_version(self) -> int:
        return sum(parameter._version for parameter in self._watched)
