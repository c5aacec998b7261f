"""The memory of recurrent encoders: their state, carried through each lane's trial.

::

    trial      x0 x1 x2 | x0 x1 x2 | x0 ..         tokens; an episode's first one takes the last action and reward along
    state   0  h0 h1 h2   h3 h4 h5   h6 ..         carried across episodes, zero again when the next trial begins
"""

import copy
import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from tensordict import TensorDict, TensorDictBase
from tensordict.nn import TensorDictModuleBase
from tensordict.utils import NestedKey
from torch import Tensor

from htrmrl_torchrl import keys
from htrmrl_torchrl.encoders.contract import ContextEncoder
from htrmrl_torchrl.encoders.recurrent import RecurrentEncoder
from htrmrl_torchrl.memory.contract import Seen, check_readers
from htrmrl_torchrl.memory.history import check_counters
from htrmrl_torchrl.memory.processes import EPISODES_A_WORKER, handed_over, sent_to_worker, worker_number
from htrmrl_torchrl.memory.windows import carry_over, final_token, make_token
from htrmrl_torchrl.specs import check_step


@dataclass
class _LaneState:
    """What the memory holds of N lanes. What is handed out is replaced, never written into."""

    episode: Tensor  # [N, 1] running counter of the episode being played
    states: TensorDict  # [N] by name, [N, D]
    token: Tensor  # [N, x] the newest
    begins: Tensor  # [N, 1] whether the states began anew with it


class RecurrentMemory(TensorDictModuleBase):
    """Carries the state of recurrent encoders through each lane's trial and writes the context of the next decision.

    The counterpart of `EpisodicMemory` for `RecurrentEncoder`: put it first in the policy of a collector. Each call
    must be the next step of every lane, in order. The state is carried across episodes and is zero again at
    ``trial_init``. An episode's last action and reward, which no step of its own shows, come with the first step of the
    next one, as in RL2.

    A copy (``copy.deepcopy``, ``pickle``, ``torch.save``) goes on from the states of the original. In the worker
    processes of TorchRL's collectors a memory begins empty instead, for their lanes are others.

    Args:
        encoder: the encoder, or all encoders (a separate critic), each with a ``state_key`` of its own. They are used,
            not owned.

    Shapes:
        ``observation`` ``[*batch, o]`` and the trial keys (see `htrmrl_torchrl.keys`) -> ``"context"`` ``[*batch]``;
        ``("recurrent", state_key)`` ``[*batch, D]``, the state after the step, and ``("recurrent", "begins")``
        ``[*batch, 1]``, for the replay buffer; window keys without windows.

    Raises:
        ValueError: if two encoders have the same ``state_key``.
        MismatchError: (a ValueError) from the first call, if an entry is missing or has another shape or size.
        KeyError: if the environment does not give an ended episode's final step.

    Example:
        >>> from torchrl.envs import GymEnv, TransformedEnv
        >>> from htrmrl_torchrl import TrialTransform
        >>> env = TransformedEnv(GymEnv("Pendulum-v1"), TrialTransform(episodes_per_trial=2))
        >>> memory = RecurrentMemory(RecurrentEncoder(observation_dim=3, action_dim=1, d_model=8))
        >>> memory(env.reset())["recurrent", "state"].shape
        torch.Size([8])
    """

    def __init__(self, encoder: RecurrentEncoder | Sequence[RecurrentEncoder]) -> None:
        super().__init__()
        # A tuple hides the encoders from Module registration: their weights belong to the actor's state dict alone.
        self._encoders = (encoder,) if isinstance(encoder, RecurrentEncoder) else tuple(encoder)
        names = [e.state_key for e in self._encoders]
        if len(set(names)) < len(names):
            raise ValueError(f"Encoders share a state_key, {names}; each needs one of its own.")
        self.in_keys: list[NestedKey] = [
            keys.OBSERVATION, keys.PREV_ACTION, keys.PREV_REWARD, keys.IS_INIT, keys.TRIAL_INIT,
            keys.FINAL_OBSERVATION, keys.FINAL_ACTION, keys.FINAL_REWARD,
        ]  # fmt: skip
        self.out_keys: list[NestedKey] = [
            keys.CONTEXT, keys.WINDOW_EPISODE, keys.WINDOW_START, keys.WINDOW_CURRENT, keys.RECURRENT_BEGINS,
            *((keys.RECURRENT, name) for name in names),
        ]  # fmt: skip
        self._state: _LaneState | None = None
        self._restored: dict[str, Any] | None = None
        self._process = os.getpid()

    @property
    def remembers_trials(self) -> bool:
        """Never: the state is zero at a trial's start."""
        return False

    def check_encoders(self, encoders: Sequence[ContextEncoder]) -> None:
        """Raises MismatchError for others than those whose states it carries."""
        check_readers(self, encoders, owned=self._encoders, recurrent=True)

    @torch.no_grad()
    def forward(self, tensordict: TensorDictBase) -> TensorDictBase:
        if sent_to_worker(self._process):
            self.restart()
        batch = tensordict.batch_size
        flat = tensordict if len(batch) == 1 else tensordict.select(*self.in_keys, strict=False).reshape(-1)
        if self._state is None:
            check_step(flat, encoders=self._encoders)
        token, first = make_token(flat), flat.get(keys.IS_INIT)  # [N, x], [N, 1]
        begins = flat.get(keys.TRIAL_INIT)
        lanes = self._state
        if lanes is None or len(lanes.episode) != len(token):
            self._state = lanes = self._fresh_state(token)
            begins = torch.ones_like(begins)  # nothing is known of lanes that appear: they begin here
        elif any(x.dtype != token.dtype or x.device != token.device for x in lanes.states.values()):
            # After a policy's `.to()` or `.double()`.
            lanes.episode, lanes.states = lanes.episode.to(token.device), lanes.states.apply(lambda x: x.to(token))
        goes_on = first & ~begins
        if goes_on.any():
            entering = carry_over(token, final_token(flat), action_dim=self._encoders[0].action_dim)
            token = torch.where(goes_on, entering, token)
        before = lanes.states.apply(lambda state: state.masked_fill(begins, 0))
        self._run(lanes, token, before, begins)
        lanes.episode = lanes.episode + (first | begins)
        context = TensorDict(
            current=token.unsqueeze(-2),
            current_mask=torch.ones_like(begins),
            before=before,
            after=lanes.states,
            starts=torch.ones_like(begins),
            batch_size=[len(token)],
        )
        tensordict.set(keys.CONTEXT, context.reshape(batch))
        for key, value in self.noted().items():
            # Copies, for a collector's reset writes zeros into what it was handed.
            tensordict.set(key, value.clone().reshape(*batch, value.shape[-1]))
        return tensordict

    def advance(self, token: Tensor) -> None:
        """`forward` for the steps between: takes the next ``token`` ``[N, x]`` of every lane, none of which begins an
        episode, of the type and device of the last `forward`."""
        lanes = self._here
        self._run(lanes, token, lanes.states, torch.zeros_like(lanes.begins))

    def seen(self) -> Seen:
        """What the present decision sees; nobody writes into it."""
        lanes = self._here
        return Seen(lanes.token.unsqueeze(-2), torch.ones_like(lanes.begins), lanes.states)

    def noted(self) -> dict[NestedKey, Tensor]:
        """What the replay buffer needs to rebuild it, ``[N, ...]``; nobody writes into it."""
        lanes = self._here
        none = torch.empty(len(lanes.token), 0, dtype=torch.long, device=lanes.token.device)
        noted: dict[NestedKey, Tensor] = {
            keys.WINDOW_EPISODE: none, keys.WINDOW_START: none, keys.WINDOW_CURRENT: lanes.episode,
            keys.RECURRENT_BEGINS: lanes.begins,
        }  # fmt: skip
        return noted | {(keys.RECURRENT, name): state for name, state in lanes.states.items()}

    def _run(self, lanes: _LaneState, token: Tensor, before: TensorDict, begins: Tensor) -> None:
        """One ``token`` ``[N, x]`` more, from the states `before` it."""
        after = {encoder.state_key: encoder.step(token, before.get(encoder.state_key)) for encoder in self._encoders}
        lanes.token, lanes.begins, lanes.states = token, begins, TensorDict(after, batch_size=before.batch_size)

    @property
    def _here(self) -> _LaneState:
        assert self._state is not None, "`forward` comes first"
        return self._state

    def drop_running(self, lanes: Tensor | None = None) -> None:
        """Nothing: no episode is kept, and the state is zero again when the next trial begins."""

    def forget(self) -> None:
        """Drops all lanes: the next call begins new trials everywhere, whatever its flags."""
        self._restored, self._state = self.checkpoint_state(), None

    def snapshot(self) -> Any:
        """The states of all lanes as they are now, for `go_back`."""
        return copy.deepcopy(self._state)

    def go_back(self, snapshot: Any) -> None:
        """Forgets what was lived since `snapshot`, which may be used again."""
        self._state = copy.deepcopy(snapshot)

    def restart(self) -> None:
        """Back to how it was built."""
        self._restored = self._state = None
        self._process = os.getpid()

    def checkpoint_state(self) -> dict[str, Any]:
        """Episode counters, exact at trial boundaries (states are not kept: they are zero where a trial begins)."""
        if self._state is None:
            return self._restored or {"lanes": 0}
        return {"lanes": len(self._state.episode), "episode": self._state.episode.flatten().tolist()}

    def load_checkpoint_state(self, state: dict[str, Any]) -> None:
        """Continues the counters of `checkpoint_state`; the next step must begin a trial in every lane.

        Raises:
            ValueError: (or another error) for what `checkpoint_state` never returns.
        """
        check_counters(state)
        self._restored, self._state = state, None

    def __getstate__(self) -> dict[str, Any]:
        handed = {"_state": handed_over(self._state), "_restored": handed_over(self._restored)}
        return {**super().__getstate__(), **handed}

    def _fresh_state(self, token: Tensor) -> _LaneState:
        n = len(token)
        saved = self._restored if self._restored is not None and self._restored["lanes"] == n else None
        self._restored = None
        before = (worker_number() or 0) * EPISODES_A_WORKER - 1
        return _LaneState(
            episode=torch.tensor(saved["episode"] if saved else [before] * n, device=token.device).unsqueeze(-1),
            states=TensorDict({e.state_key: token.new_zeros(n, e.d_model) for e in self._encoders}, batch_size=[n]),
            token=token,
            begins=torch.ones(n, 1, dtype=torch.bool, device=token.device),
        )
