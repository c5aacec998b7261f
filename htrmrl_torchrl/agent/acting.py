"""Runs a policy of `make_actor_critic` step by step on plain tensors, without the overhead of TensorDict modules.

A TensorDict policy can be used anywhere and read any keys, which costs time at every step. A loop that always runs the
same policy has this cost only at an episode's first step, where the memory reads the trial keys::

    step     0      1      2      3   |  4      5     ...
    input    row    token  token  token  row    token ...

Results and random numbers equal those of the policy, bit for bit.
"""

from typing import Any, NamedTuple, Self

import torch
from tensordict import TensorDictBase
from tensordict.nn import TensorDictModule, TensorDictSequential
from torch import Tensor, nn
from torch.nn import functional as F
from torchrl.modules import ProbabilisticActor, ValueOperator

from htrmrl_torchrl.agent.heads import NewestToken, ValueHead, _GaussianHead, _IndependentStd
from htrmrl_torchrl.agent.mlp import FiLM
from htrmrl_torchrl.agent.noise import Noise
from htrmrl_torchrl.encoders.acting import encoder_step
from htrmrl_torchrl.encoders.contract import ContextEncoder
from htrmrl_torchrl.memory.episodic import EpisodicMemory
from htrmrl_torchrl.memory.recurrent import RecurrentMemory


class Decision(NamedTuple):
    """Output of a policy for one step of N environments."""

    action: Tensor  # [N, a]
    loc: Tensor  # [N, a]
    scale: Tensor  # [N, a], or [a] if it is the same in all environments
    value: Tensor | None  # [N, 1], if there is a critic


class Acting:
    """Runs a policy step by step; `of` builds it.

    Call `prepare` before the first step and after any change of weights. Forward pre-hooks of the actor's encoder are
    called before each step.

    Attributes:
        memory: the policy's memory.

    Example:
        >>> from htrmrl_torchrl import make_env
        >>> from htrmrl_torchrl.agent.networks import build_networks
        >>> networks = build_networks(observation_dim=3, action_low=[-1.0] * 2, action_high=[1.0] * 2)
        >>> acting = Acting.of(networks.policy)
        >>> acting.prepare()
        >>> acting.step(make_env("toy", num_envs=4).reset()).action.shape
        torch.Size([4, 2])
    """

    def __init__(self, actor: list[Any], critic: list[Any], memory: EpisodicMemory | RecurrentMemory) -> None:
        self.memory = memory
        self._encoder, *_, self._head = actor
        self._observes_token = len(actor) == 3
        self._value: ValueHead | None = critic[-1] if critic else None
        self._reads: Any = critic[0] if len(critic) == 2 else None  # instead of the actor's vector

    @classmethod
    def of(cls, policy: Any) -> Self | None:
        """For ``policy``; ``None`` unless it is as `make_actor_critic` builds it, without forward hooks."""
        parts = list(policy.module) if type(policy) is TensorDictSequential else []
        if not 2 <= len(parts) <= 3 or type(parts[0]) not in (EpisodicMemory, RecurrentMemory):
            return None
        actor = list(parts[1].module) if type(parts[1]) is ProbabilisticActor else [None]
        actor, critic = _parts_of(actor[0]), _parts_of(parts[2]) if len(parts) == 3 else []
        kinds = [type(part) for part in actor[1:]], [type(part) for part in critic[-1:]]
        known = kinds[0] in ([_GaussianHead], [NewestToken, _GaussianHead]) and kinds[1] in ([], [ValueHead])
        encoders = [actor[0], *(part for part in critic[:-1] if type(part) is not NewestToken)]
        if not known or len(critic) > 2 or any(encoder_step(encoder) is None for encoder in encoders):
            return None
        return cls(actor, critic, parts[0]) if _is_as_built(policy, but=actor[0]) else None

    @torch.no_grad()
    def prepare(self) -> None:
        """Computes what depends on the weights only."""
        self._step: Any = encoder_step(self._encoder)
        self._shift, self._factor = self._encoder.tokens.affine()
        self._mlp: Any = self._head.mlp if isinstance(self._head.mlp, FiLM) else _Plain(self._head.mlp)
        spread = self._head.scale
        same_for_all = isinstance(spread, _IndependentStd)
        self._scale = spread(torch.zeros_like(spread.state_independent_scale))[1] if same_for_all else None
        if self._value is not None:
            self._value_mlp, self._norm = _Plain(self._value.mlp), self._value.affine()
            self._own: Any = encoder_step(self._reads) if isinstance(self._reads, ContextEncoder) else None

    @torch.no_grad()
    def step(
        self,
        row: TensorDictBase | None,
        token: Tensor | None = None,
        *,
        deterministic: bool = False,
        noise: Noise = torch.randn_like,
    ) -> Decision:
        """The next step of all environments.

        Args:
            row: input of the policy ``[N]``, at the first step and where an episode begins; not modified.
            token: input at all other steps ``[N, x]``, see `make_token`.
            deterministic: the mean action instead of a sampled one.
            noise: of sampled actions, see `noise_of`.
        """
        for hook in self._encoder._forward_pre_hooks.values():
            hook(self._encoder, ())
        if row is None:
            assert token is not None
            self.memory.advance(token)
        else:
            self.memory(row.copy())
        seen = self.memory.seen()
        hidden = self._step(*seen)
        newest = (seen.current[:, -1] - self._shift) * self._factor if self._observes_token else None
        loc = self._mlp(hidden if newest is None else torch.cat([hidden, newest], -1))
        scale = self._scale
        if scale is None:
            loc, scale = self._head.scale(loc)
        action = loc if deterministic else loc + noise(loc) * scale
        if self._value is None:
            return Decision(action, loc, scale, None)
        if self._own is not None:
            hidden = self._own(*seen)
        elif self._reads is not None:
            hidden = (seen.current[:, -1] - self._shift) * self._factor
        value = self._value_mlp(hidden)
        return Decision(action, loc, scale, value if self._norm is None else value * self._norm[1] + self._norm[0])


class _Plain:
    """An MLP of tanh layers, as the heads build it."""

    def __init__(self, mlp: nn.Module) -> None:
        *self.hidden, self.last = [(m.weight, m.bias) for m in mlp.modules() if isinstance(m, nn.Linear)]

    def __call__(self, x: Tensor) -> Tensor:
        for layer in self.hidden:
            x = torch.tanh(F.linear(x, *layer))
        return F.linear(x, *self.last)


def _parts_of(module: Any) -> list[Any]:
    """The modules of an actor's or a critic's head in order, without their TensorDict wrappers."""
    if type(module) is TensorDictSequential:
        return [part for inner in module.module for part in _parts_of(inner)]
    return [module.module] if type(module) in (TensorDictModule, ValueOperator) else [module]


def _is_as_built(policy: nn.Module, *, but: nn.Module) -> bool:
    """Whether no module has hooks or a replaced forward pass; the encoder ``but`` may have forward pre-hooks."""
    return not any(
        module._forward_hooks or "forward" in vars(module) or (module._forward_pre_hooks and module is not but)
        for module in policy.modules()
    )
