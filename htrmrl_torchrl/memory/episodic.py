"""Episodic memory for rollouts: the experience of each environment, and the part of it that a decision sees.

The memory belongs to the acting policy. The collected batch does not contain the memory's content. It only records
which windows were drawn (two small integer keys, and the number of the running episode). From these the replay buffer
rebuilds the same contexts by index.
"""

import copy
import json
import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from tensordict import TensorDict, TensorDictBase
from tensordict.nn import TensorDictModuleBase
from tensordict.utils import NestedKey
from torch import Tensor

from htrmrl_torchrl import keys
from htrmrl_torchrl.encoders.contract import ContextEncoder
from htrmrl_torchrl.memory.contract import Seen, check_readers
from htrmrl_torchrl.memory.history import Ended, LaneHistories, check_counters, check_history, without_running
from htrmrl_torchrl.memory.past import Array, PastEpisodes, Scope, Window, check_scope
from htrmrl_torchrl.memory.processes import EPISODES_A_WORKER, handed_over, sent_to_worker, worker_number
from htrmrl_torchrl.memory.strategies import WindowStrategy, make_strategy
from htrmrl_torchrl.memory.windows import final_token, make_token
from htrmrl_torchrl.specs import MismatchError, check_step


@dataclass
class _LaneState:
    """State of the memory for N environments, with E-1 slots each. Returned tensors are replaced, never modified."""

    history: LaneHistories
    observation_dim: int
    streams: list[np.random.Generator]  # one per environment
    episode: Tensor  # [N, 1] running number of the current episode
    window_episode: Tensor  # [N, E-1]
    window_start: Tensor  # [N, E-1]
    past: TensorDict  # [N] past windows as in the context, and each encoder's cache
    encoded_with: Tensor | None = None  # the concatenated weights that encoded it


class EpisodicMemory(TensorDictModuleBase):
    """Remembers the episodes of each environment's trial and writes the context of the next decision.

    Put it first in a collector's policy. Each call must be the next step of all environments, in order. The memory
    appends the step's token, stores an episode when the next one begins (``is_init``), and forgets everything at
    ``trial_init``. The windows of an episode are drawn once at its start, from the environment's own random stream.

    With ``scope="lane"`` nothing is forgotten at ``trial_init``: the environment's `max_episodes` latest episodes stay
    visible, whatever their goal or task. (A trial that starts with a ``"final"`` of zeros follows no ended episode, so
    the running episode is dropped. This happens when a collector tries out its policy.)

    A copy (``copy.deepcopy``, ``pickle``, ``torch.save``) has the content of the original and will draw the same
    windows. In the worker processes of TorchRL's collectors a memory begins empty, because their environments are
    different. Each worker draws its own windows: environment n of worker w uses the stream of (`seed`, n, w).

    Args:
        encoder: the encoder, or all encoders (with a separate critic), that read the context. Each one that `remembers`
            encodes the past once per episode, and again after any change of its weights, also by another process.
            ``None`` keeps no cache; encoders then encode raw windows at every step, with the same result. Encoders are
            not submodules: the memory has no parameters and adds nothing to a state dict.
        window: number of tokens T in a window; default: the encoder's.
        episodes: number of windows E in a context; default: the encoder's.
        strategy: ``"recent"``, ``"uniform"``, ``"uniform_last"``, ``"best_return"``, ``"best_and_uniform"``,
            ``"diverse"``, ``"similar"`` or a callable, see `htrmrl_torchrl.memory.strategies`.
        dropout: probability that a drawn window is left out and its slot stays empty. For training, so that a policy
            does not rely on single windows; agents act with 0.
        scope: what is visible: ``"trial"``: the running trial; ``"lane"``: earlier trials too.
        max_episodes: number of ended episodes per environment that are remembered (the latest); ``None``: all of the
            trial. Required with ``scope="lane"``. The storage needs the same `scope` and `max_episodes`.
        seed: of the environments' random streams.

    Attributes:
        first_lane: number of its first environment, default 0. Set it in a process that plays a block of a run's
            environments; each then has the random stream that it would have in one process.

    Shapes:
        ``observation`` ``[*batch, o]`` and the trial keys (see `htrmrl_torchrl.keys`) -> ``"context"`` ``[*batch]``,
        ``("window", "episode")`` and ``("window", "start")`` ``[*batch, E-1]``, ``("window", "current")``
        ``[*batch, 1]``.

    Raises:
        ValueError: if neither an encoder nor sizes are given, the strategy or scope is unknown, or the strategy draws
            windows that do not exist or asks for embeddings without an encoder.
        MismatchError: (a ValueError) at the first call, if an entry is missing or has another shape or size.
        KeyError: if the environment does not provide the final step of an ended episode.

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
        encoder: ContextEncoder | Sequence[ContextEncoder] | None = None,
        *,
        window: int | None = None,
        episodes: int | None = None,
        strategy: str | WindowStrategy = "uniform",
        scope: Scope = "trial",
        max_episodes: int | None = None,
        dropout: float = 0.0,
        seed: int = 0,
    ) -> None:
        super().__init__()
        check_scope(scope, max_episodes)
        if not 0 <= dropout < 1:
            raise ValueError(f"dropout={dropout} must be at least 0 and below 1.")
        encoders = () if encoder is None else (encoder,) if isinstance(encoder, ContextEncoder) else tuple(encoder)
        if encoders:
            window = encoders[0].window if window is None else window
            episodes = encoders[0].episodes if episodes is None else episodes
        if window is None or episodes is None or window < 1 or episodes < 1:
            raise ValueError(f"window={window} and episodes={episodes} must be at least 1; give them or an encoder.")
        # A tuple hides the encoders from Module registration: their weights belong to the actor's state dict alone.
        self._encoders = tuple(e for e in encoders if e.remembers)
        # Listed once, because traversing the modules at every step costs as much as the attention. The tables are kept
        # instead of their tensors, because a move to another device replaces buffers.
        modules = [module for encoder in self._encoders for module in encoder.modules()]
        self._watched = tuple(table for m in modules for table in (m._parameters, m._buffers) if table)
        self.window, self.episodes = window, episodes
        self._embedder = encoders[:1]  # for strategies that need embeddings, even if the encoder remembers nothing
        self.strategy = make_strategy(strategy)
        self.scope, self.max_episodes = scope, max_episodes
        self.dropout, self.seed, self.first_lane = dropout, seed, 0
        self.in_keys: list[NestedKey] = [
            keys.OBSERVATION, keys.PREV_ACTION, keys.PREV_REWARD, keys.IS_INIT, keys.TRIAL_INIT,
            keys.FINAL_OBSERVATION, keys.FINAL_ACTION, keys.FINAL_REWARD,
        ]  # fmt: skip
        self.out_keys: list[NestedKey] = [keys.CONTEXT, keys.WINDOW_EPISODE, keys.WINDOW_START, keys.WINDOW_CURRENT]
        self._state: _LaneState | None = None
        self._restored: dict[str, Any] | None = None
        self._process = os.getpid()

    @property
    def remembers_trials(self) -> bool:
        """Whether a new trial still sees earlier ones."""
        return self.scope == "lane"

    def check_encoders(self, encoders: Sequence[ContextEncoder]) -> None:
        """Raises MismatchError for other window sizes, recurrent encoders, and a cache of other encoders."""
        check_readers(self, encoders, owned=(), recurrent=False)
        for encoder in encoders:
            if (self.window, self.episodes) != (encoder.window, encoder.episodes):
                raise MismatchError(
                    f"The memory has window={self.window} and episodes={self.episodes}, but the encoder was built for "
                    f"window={encoder.window} and episodes={encoder.episodes}; give both the same."
                )
        check_readers(self, encoders, owned=self._encoders, recurrent=False)

    @torch.no_grad()
    def forward(self, tensordict: TensorDictBase) -> TensorDictBase:
        if sent_to_worker(self._process):
            self.restart()
        batch = tensordict.batch_size
        flat = tensordict if len(batch) == 1 else tensordict.select(*self.in_keys, strict=False).reshape(-1)
        if self._state is None:
            check_step(flat, encoders=self._embedder)
        token = make_token(flat)  # [N, x]
        trial = flat.get(keys.TRIAL_INIT).squeeze(-1)
        state = self._state
        if state is None or len(state.history) != len(token):
            self._state = state = self._fresh_state(token, flat.get(keys.OBSERVATION).shape[-1])
            trial = torch.ones_like(trial)  # environments without history begin here
        elif not state.history.is_like(token):
            self._move(state, token)
        begins = (trial | flat.get(keys.IS_INIT).squeeze(-1)).nonzero().squeeze(-1)
        if len(begins):
            self._begin_episodes(state, flat, token, begins, trial)
        state.history.append(token)
        if self._encoders:
            self._follow_weights(state)
        seen = self.seen()
        # Copies, because a collector's reset writes zeros into these tensors.
        context = seen.past.copy().set(keys.CURRENT[1], seen.current).set(keys.CURRENT_MASK[1], seen.mask.clone())
        tensordict.set(keys.CONTEXT, context.reshape(batch))
        for key, value in self.noted().items():
            tensordict.set(key, value.clone().reshape(*batch, -1))
        return tensordict

    def advance(self, token: Tensor) -> None:
        """`forward` within episodes: takes the next ``token`` ``[N, x]`` of every environment. No environment may begin
        an episode; dtype, device and weights must be those of the last `forward`."""
        self._here.history.append(token)

    def seen(self) -> Seen:
        """Input of the present decision; read-only."""
        return Seen(*self._here.history.current(self.window), self._here.past)

    def noted(self) -> dict[NestedKey, Tensor]:
        """What the replay buffer needs to rebuild this input, ``[N, ...]``; read-only."""
        state = self._here
        return {
            keys.WINDOW_EPISODE: state.window_episode,
            keys.WINDOW_START: state.window_start,
            keys.WINDOW_CURRENT: state.episode,
        }

    @property
    def _here(self) -> _LaneState:
        assert self._state is not None, "`forward` comes first"
        return self._state

    def forget(self) -> None:
        """Forgets everything: the next call begins new trials everywhere, whatever its flags. Streams continue."""
        kept = self.checkpoint_state()
        kept.pop("history", None)
        self._restored, self._state = kept, None

    def snapshot(self) -> Any:
        """The present content, including running episodes, for `go_back`."""
        return copy.deepcopy(self._state)

    def go_back(self, snapshot: Any) -> None:
        """Returns to `snapshot`, which may be used again; the random streams continue."""
        streams = None if self._state is None else self._state.streams
        self._state = copy.deepcopy(snapshot)
        if self._state is not None and streams is not None:
            self._state.streams = streams

    def drop_running(self, lanes: Tensor | None = None) -> None:
        """Forgets the running episodes of `lanes` (numbers ``[n]``, default: all); they never count as ended."""
        if self._state is not None:
            self._state.history.drop_running(lanes)
        elif self._restored is not None and "history" in self._restored:
            ran = range(self._restored["lanes"]) if lanes is None else lanes.tolist()
            self._restored = self._restored | {"history": without_running(self._restored["history"], ran)}

    def restart(self) -> None:
        """Returns to the state after construction: forgets everything and restarts the random streams from the seed."""
        self._restored = self._state = None
        self._process = os.getpid()

    def checkpoint_state(self) -> dict[str, Any]:
        """Random streams and episode counters, exact at trial boundaries; with ``scope="lane"`` also the episodes,
        because new trials still see them."""
        if self._state is None:
            return dict(self._restored or {"lanes": 0})
        state = {
            "lanes": len(self._state.history),
            "episode": self._state.episode.flatten().tolist(),
            "streams": [json.dumps(rng.bit_generator.state) for rng in self._state.streams],
        }
        return state if self.scope == "trial" else state | {"history": self._state.history.checkpoint_state()}

    def load_checkpoint_state(self, state: dict[str, Any]) -> None:
        """Continues from `checkpoint_state`; the next step must begin a trial in every environment.

        Raises:
            ValueError: (or another error) for a state that `checkpoint_state` never returns.
        """
        check_counters(state)
        for stream in state.get("streams", ()):
            np.random.default_rng().bit_generator.state = json.loads(stream)
        if state["lanes"] and len(state["streams"]) != state["lanes"]:
            raise ValueError(f"The saved memory has {len(state['streams'])} streams for {state['lanes']} environments.")
        if "history" in state:
            check_history(state["history"], lanes=state["lanes"])
        self._restored, self._state = state, None

    def __getstate__(self) -> dict[str, Any]:
        handed = {"_state": handed_over(self._state), "_restored": handed_over(self._restored)}
        return {**super().__getstate__(), **handed}

    def _fresh_state(self, token: Tensor, observation_dim: int) -> _LaneState:
        n, slots = len(token), self.episodes - 1
        none = torch.full((n, slots), -1, dtype=torch.long, device=token.device)
        saved = self._restored if self._restored is not None and self._restored["lanes"] == n else None
        self._restored = None
        worker = worker_number() or 0
        streams = [np.random.default_rng([self.seed, self.first_lane + lane, worker]) for lane in range(n)]
        for rng, stream in zip(streams, saved["streams"] if saved else (), strict=False):
            rng.bit_generator.state = json.loads(stream)
        history = LaneHistories(token, scope=self.scope, max_episodes=self.max_episodes)
        if saved is not None and "history" in saved:
            history.load_checkpoint_state(saved["history"])
        return _LaneState(
            history=history,
            observation_dim=observation_dim,
            streams=streams,
            episode=torch.tensor(
                saved["episode"] if saved else [worker * EPISODES_A_WORKER - 1] * n, device=token.device
            ).unsqueeze(-1),
            window_episode=none,
            window_start=none,
            past=TensorDict(
                past=token.new_zeros(n, slots, self.window, token.shape[-1]),
                past_mask=torch.zeros(n, slots, self.window, dtype=torch.bool, device=token.device),
                past_id=none,
                slot_mask=none >= 0,
                batch_size=[n],
            ),
        )

    def _begin_episodes(
        self, state: _LaneState, flat: TensorDictBase, token: Tensor, lanes: Tensor, trial: Tensor
    ) -> None:
        if self.scope == "trial":
            ends = lanes[~trial[lanes]]
        else:
            running = state.history.running()[lanes] > 0
            nothing_ended = trial[lanes] & (final_token(flat)[lanes] == 0).all(-1)
            state.history.drop_running(lanes[nothing_ended])
            ends = lanes[running & ~nothing_ended]
        if len(ends):
            state.history.append(final_token(flat)[ends], ends)
        state.history.begin_episodes(lanes, new_trial=trial[lanes], counter=state.episode[lanes].squeeze(-1))
        state.episode = state.episode.index_add(0, lanes, torch.ones_like(lanes).unsqueeze(-1))
        if self.episodes > 1:
            self._draw_windows(state, token, lanes)
            self._encode(state, lanes)

    def _draw_windows(self, state: _LaneState, token: Tensor, lanes: Tensor) -> None:
        """Draws the past windows for the episodes that begin in ``lanes`` with ``token`` ``[N, x]``."""
        slots = self.episodes - 1
        episode, start, windows = [], [], []
        for lane in lanes.tolist():
            ended = state.history.ended(lane)
            past = self._past(state, lane, token[lane])
            drawn = sorted(self.strategy(past, slots=slots, window=self.window, rng=state.streams[lane]))
            _check_drawn(drawn, ended, slots)
            if self.dropout:
                kept = state.streams[lane].random(len(drawn)) >= self.dropout
                drawn = [shown for shown, keep in zip(drawn, kept, strict=True) if keep]
            empty = [-1] * (slots - len(drawn))
            episode.append(empty + [ended[e].counter for e, _ in drawn])
            start.append(empty + [int(s) for _, s in drawn])
            windows.append(state.history.windows(lane, drawn, slots=slots, window=self.window))
        window_episode, window_start = lanes.new_tensor(episode), lanes.new_tensor(start)  # [lanes, E-1]
        # From the episode's number instead of its rows in the history, because the next trial reuses the rows.
        past_id = (lanes.unsqueeze(-1) << 44) + (window_episode << 22) + window_start
        shown = {
            "past": torch.stack([tokens for tokens, _ in windows]),
            "past_mask": torch.stack([mask for _, mask in windows]),
            "past_id": torch.where(window_episode >= 0, past_id, -1),
            "slot_mask": window_episode >= 0,
        }
        state.window_episode = state.window_episode.index_copy(0, lanes, window_episode)
        state.window_start = state.window_start.index_copy(0, lanes, window_start)
        state.past = state.past.copy().update({k: state.past[k].index_copy(0, lanes, v) for k, v in shown.items()})

    def _past(self, state: _LaneState, lane: int, token: Tensor) -> PastEpisodes:
        """What the strategy may read when an episode begins in `lane` with ``token`` ``[x]``."""
        history = state.history

        def embed(windows: Sequence[Window]) -> Array:
            tokens, mask = history.windows(lane, list(windows), slots=len(windows), window=self.window)
            return _as_array(self._embedder[0].embed_windows(tokens, mask))

        def present() -> Array:
            rows = token.new_zeros(1, self.window, len(token))
            rows[0, -1] = token
            mask = torch.arange(self.window, device=token.device) == self.window - 1
            return _as_array(self._embedder[0].embed_windows(rows, mask.unsqueeze(0)))[0]

        return PastEpisodes(
            [length for _, _, length in history.ended(lane)],
            tokens=lambda episode: _as_array(history.tokens(lane, episode)),
            observation_dim=state.observation_dim,
            earlier=history.earlier(lane),
            embed=embed if self._embedder else None,
            present=present if self._embedder else None,
        )

    def _encode(self, state: _LaneState, lanes: Tensor) -> None:
        for encoder in self._encoders:
            rows = state.past[lanes]
            cache = encoder.encode_past(rows["past"], rows["past_mask"], rows["past_id"], rows["slot_mask"])
            key = str(encoder.own_key)
            old = state.past.get(key, None)
            old = cache.new_zeros(len(state.history), *cache.shape[1:]) if old is None else old
            state.past = state.past.copy().set(key, old.index_copy(0, lanes, cache))

    def _follow_weights(self, state: _LaneState) -> None:
        """Encodes the past of all environments again if the weights have changed.

        Weights are compared by value (under 1% of a step of 20 environments with the default model). Torch's
        ``_version`` misses changes through ``.data``, as in TorchRL's weight updates, and another process's to shared
        memory.
        """
        # Read before encoding: a collector's worker receives weights at any time, in another thread.
        weights = torch.cat([t.reshape(-1) for table in self._watched for t in table.values() if t is not None])
        known = state.encoded_with
        if known is None or known.dtype != weights.dtype or not torch.equal(known, weights):
            self._encode(state, torch.arange(len(state.history), device=weights.device))
            state.encoded_with = weights

    def _move(self, state: _LaneState, token: Tensor) -> None:
        """Moves the state to the dtype and device of ``token``, after a policy's ``.to()`` or ``.double()``."""
        state.history.move(token)
        state.episode, state.window_episode, state.window_start = (
            tensor.to(token.device) for tensor in (state.episode, state.window_episode, state.window_start)
        )
        raw = state.past.select("past", "past_mask", "past_id", "slot_mask")  # the cache is encoded again
        state.past = raw.apply(lambda t: t.to(token) if t.is_floating_point() else t.to(token.device))
        state.encoded_with = None


def _as_array(tensor: Tensor) -> Array:
    array: Array = tensor.cpu().numpy()
    array.flags.writeable = False  # strategies may only read
    return array


def _check_drawn(drawn: list[Window], ended: list[Ended], slots: int) -> None:
    if len(drawn) > slots:
        raise ValueError(f"The window strategy returned {len(drawn)} windows for {slots} slots.")
    for episode, start in drawn:
        if not (0 <= episode < len(ended) and 0 <= start < ended[episode].length):
            lengths = [length for _, _, length in ended]
            raise ValueError(
                f"The window strategy returned ({episode}, {start}), but the remembered episodes have {lengths} "
                "tokens; return pairs (index of an episode, index of its token)."
            )
