"""The memory of recurrent encoders: their states, carried through each environment's trial.

::

    trial      x0 x1 x2 | x0 x1 x2 | x0 ..         tokens; an episode's first one holds the last action and reward too
    state   0  h0 h1 h2   h3 h4 h5   h6 ..         carried across episodes, zero at the start of the next trial
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
    """State of the memory for N environments. Returned tensors are replaced, never modified."""

    episode: Tensor  # [N, 1] running number of the current episode
    states: TensorDict  # [N] by name, [N, D]
    token: Tensor  # [N, x] the newest token
    begins: Tensor  # [N, 1] whether the states started from zero at it


class RecurrentMemory(TensorDictModuleBase):
    """Carries the states of recurrent encoders through each environment's trial and writes the next decision's context.

    The counterpart of `EpisodicMemory` for `RecurrentEncoder`. Put it first in a collector's policy. Each call must be
    the next step of all environments, in order. The state is carried across episodes and is zero again at
    ``trial_init``. As in RL2, the last action and reward of an episode come with the first token of the next one.

    A copy (``copy.deepcopy``, ``pickle``, ``torch.save``) continues from the states of the original. In the worker
    processes of TorchRL's collectors a memory begins empty, because their environments are different.

    Args:
        encoder: the encoder, or all encoders (with a separate critic), each with its own ``state_key``. They are not
            submodules.

    Shapes:
        ``observation`` ``[*batch, o]`` and the trial keys (see `htrmrl_torchrl.keys`) -> ``"context"`` ``[*batch]``;
        ``("recurrent", state_key)`` ``[*batch, D]``, the state after the step, and ``("recurrent", "begins")``
        ``[*batch, 1]``, for the replay buffer; and empty window keys.

    Raises:
        ValueError: if two encoders have the same ``state_key``.
        MismatchError: (a ValueError) at the first call, if an entry is missing or has another shape or size.
        KeyError: if the environment does not provide the final step of an ended episode.

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
            raise ValueError(f"Encoders share a state_key: {names}; give each encoder its own.")
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
        """Always False: the state is zero at a trial's start."""
        return False

    def check_encoders(self, encoders: Sequence[ContextEncoder]) -> None:
        """Raises MismatchError unless these are the encoders whose states it carries."""
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
            begins = torch.ones_like(begins)  # environments without history begin here
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
            # Copies, because a collector's reset writes zeros into these tensors.
            tensordict.set(key, value.clone().reshape(*batch, value.shape[-1]))
        return tensordict

    def advance(self, token: Tensor) -> None:
        """`forward` within episodes: takes the next ``token`` ``[N, x]`` of every environment. No environment may begin
        an episode; dtype and device must be those of the last `forward`."""
        lanes = self._here
        self._run(lanes, token, lanes.states, torch.zeros_like(lanes.begins))

    def seen(self) -> Seen:
        """Input of the present decision; read-only."""
        lanes = self._here
        return Seen(lanes.token.unsqueeze(-2), torch.ones_like(lanes.begins), lanes.states)

    def noted(self) -> dict[NestedKey, Tensor]:
        """What the replay buffer needs to rebuild this input, ``[N, ...]``; read-only."""
        lanes = self._here
        none = torch.empty(len(lanes.token), 0, dtype=torch.long, device=lanes.token.device)
        noted: dict[NestedKey, Tensor] = {
            keys.WINDOW_EPISODE: none, keys.WINDOW_START: none, keys.WINDOW_CURRENT: lanes.episode,
            keys.RECURRENT_BEGINS: lanes.begins,
        }  # fmt: skip
        return noted | {(keys.RECURRENT, name): state for name, state in lanes.states.items()}

    def _run(self, lanes: _LaneState, token: Tensor, before: TensorDict, begins: Tensor) -> None:
        """Runs the encoders on one ``token`` ``[N, x]``, from the states `before` it."""
        after = {encoder.state_key: encoder.step(token, before.get(encoder.state_key)) for encoder in self._encoders}
        lanes.token, lanes.begins, lanes.states = token, begins, TensorDict(after, batch_size=before.batch_size)

    @property
    def _here(self) -> _LaneState:
        assert self._state is not None, "`forward` comes first"
        return self._state

    def drop_running(self, lanes: Tensor | None = None) -> None:
        """Does nothing: no episode is kept, and the state is zero at the start of the next trial."""

    def forget(self) -> None:
        """Forgets everything: the next call begins new trials everywhere, whatever its flags."""
        self._restored, self._state = self.checkpoint_state(), None

    def snapshot(self) -> Any:
        """The present states of all environments, for `go_back`."""
        return copy.deepcopy(self._state)

    def go_back(self, snapshot: Any) -> None:
        """Returns to `snapshot`, which may be used again."""
        self._state = copy.deepcopy(snapshot)

    def restart(self) -> None:
        """Returns to the state after construction."""
        self._restored = self._state = None
        self._process = os.getpid()

    def checkpoint_state(self) -> dict[str, Any]:
        """Episode counters, exact at trial boundaries. States are not saved, because they are zero there."""
        if self._state is None:
            return self._restored or {"lanes": 0}
        return {"lanes": len(self._state.episode), "episode": self._state.episode.flatten().tolist()}

    def load_checkpoint_state(self, state: dict[str, Any]) -> None:
        """Continues from `checkpoint_state`; the next step must begin a trial in every environment.

        Raises:
            ValueError: (or another error) for a state that `checkpoint_state` never returns.
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
