"""RL2 (Duan et al. 2016): a GRU over a whole trial, and the state that its memory keeps.

::

    trial      x0 x1 x2 | x0 x1 x2 | x0 ..         tokens; an episode's first one holds the last action and reward too
    state   0  h0 h1 h2   h3 h4 h5   h6 ..         carried across episodes, zero at the start of the next trial
    segments      [------------]  [------ ..       the update unrolls S frames from the rollout's stored state

Back-propagation is truncated: no gradient passes a segment's start. The state there is the rollout's ("stored state",
Kapturowski et al. 2019, R2D2): exact before the first optimizer step of an update, slightly stale afterwards.
"""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from tensordict import TensorDict, TensorDictBase
from tensordict.utils import NestedKey
from torch import Tensor, nn
from torchrl.modules import GRUModule, set_recurrent_mode

from htrmrl_torchrl import keys
from htrmrl_torchrl.encoders.contract import ContextEncoder, check_sizes
from htrmrl_torchrl.encoders.mlp import feature_mlp


class RecurrentEncoder(ContextEncoder):
    """MLP and GRU over a trial: TensorDict module from ``"context"`` to ``"_hidden"``, which is the GRU's state.

    In rollouts `RecurrentMemory` runs it and stores the state after the newest token. In updates the last axis of the
    batch is time: sequences start from the given states where ``starts`` is True. The memory keeps the state, so a
    collector must not add primers for it (``auto_register_policy_transforms=False``).

    Args:
        observation_dim: size o of an observation.
        action_dim: size a of an action. A token is [observation, previous action, previous reward, first], o + a + 2.
        d_model: channels D of the MLP's layers and of the state. The rollout stores D floats per frame.
        mlp_layers: layers before the GRU, each with a tanh.
        reward_scale: factor on the previous reward inside the token.
        hidden_key: output key of the vector.
        state_key: name of the state; a separate critic encoder needs its own.

    Shapes:
        ``("context", "current")`` ``[*batch, 1, x]`` with ``("context", "before", state_key)`` ``[*batch, D]`` and
        ``("context", "starts")`` ``[*batch, 1]`` (default True: each element by itself), or ``("context", "after",
        state_key)`` ``[*batch, D]`` -> ``_hidden`` ``[*batch, D]``.

    Raises:
        ValueError: for sizes below 1.

    Example:
        >>> import torch
        >>> from tensordict import TensorDict
        >>> encoder = RecurrentEncoder(observation_dim=3, action_dim=1, d_model=8)
        >>> starts = torch.tensor([[True], [False], [False], [True], [False]]).expand(2, 5, 1)
        >>> context = TensorDict(current=torch.randn(2, 5, 1, 6), before={"state": torch.zeros(2, 5, 8)}, starts=starts,
        ...     batch_size=[2, 5])
        >>> encoder(TensorDict(context=context, batch_size=[2, 5]))["_hidden"].shape
        torch.Size([2, 5, 8])
    """

    recurrent = True

    def __init__(
        self,
        *,
        observation_dim: int,
        action_dim: int,
        d_model: int = 256,
        mlp_layers: int = 2,
        reward_scale: float = 1.0,
        hidden_key: NestedKey = keys.HIDDEN,
        state_key: str = "state",
    ) -> None:
        check_sizes(mlp_layers=mlp_layers)
        super().__init__(
            observation_dim=observation_dim,
            action_dim=action_dim,
            d_model=d_model,
            reward_scale=reward_scale,
            hidden_key=hidden_key,
        )
        self.state_key = state_key
        self.mlp = feature_mlp(self.token_dim, d_model, mlp_layers, nn.Tanh)
        self.gru = GRUModule(
            input_size=d_model,
            hidden_size=d_model,
            in_keys=["features", "state"],
            out_keys=["hidden", ("next", "state")],
        )
        for name, parameter in self.gru.named_parameters():
            for gate in parameter.data.chunk(3):  # three gates are stacked in one tensor
                if "bias" in name:
                    nn.init.zeros_(gate)
                else:
                    (nn.init.orthogonal_ if "hh" in name else nn.init.xavier_uniform_)(gate)

    @property
    def own_key(self) -> str | None:
        return self.state_key

    def forward(self, tensordict: TensorDictBase) -> TensorDictBase:
        context = tensordict.get(keys.CONTEXT)
        hidden = context.get((keys.STATE_AFTER[1], self.state_key), None)
        if hidden is None:
            starts = context.get(keys.SEQUENCE_START[1], None)
            state = context.get((keys.STATE_BEFORE[1], self.state_key))
            if starts is None:
                starts = torch.ones_like(state[..., :1], dtype=torch.bool)
            hidden = self._run(context.get(keys.CURRENT[1])[..., -1, :], state, starts)
        return tensordict.set(self.out_keys[0], hidden)

    def step(self, token: Tensor, state: Tensor) -> Tensor:
        """The state ``[N, D]`` after one more ``token`` ``[N, x]``."""
        features = self._features(token, state)
        with _full_precision(token):
            hidden: Tensor = self.gru.gru(features.unsqueeze(1), state.unsqueeze(0))[0][:, 0]
        return hidden

    def _features(self, token: Tensor, state: Tensor) -> Tensor:
        if token.shape[-1] != self.token_dim:
            raise ValueError(f"The context's tokens have size {token.shape[-1]}; the encoder needs {self.token_dim}.")
        features: Tensor = self.mlp(self.tokens(token)).to(state.dtype)
        return features

    def _run(self, token: Tensor, state: Tensor, starts: Tensor) -> Tensor:
        """States ``[*batch, D]`` of whole sequences along the last axis of the batch."""
        features = self._features(token, state)
        # is_init is torchrl's key for a start from the given state.
        sequence = TensorDict(features=features, state=state.unsqueeze(-2), is_init=starts, batch_size=token.shape[:-1])
        with set_recurrent_mode(True), _full_precision(token):
            hidden: Tensor = self.gru(sequence).get("hidden")
        return hidden


@contextmanager
def _full_precision(token: Tensor) -> Iterator[None]:
    """On a GPU, cuDNN's default TF32 makes states of single steps and of whole sequences differ in the fifth digit."""
    with (
        torch.autocast(token.device.type, enabled=False),
        torch.backends.cudnn.flags(enabled=True, allow_tf32=False),
    ):
        yield
