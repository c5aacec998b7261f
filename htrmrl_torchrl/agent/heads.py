"""Actor and critic on top of an encoder, and the policy that a collector runs."""

import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, Literal

import torch
from tensordict import TensorDictBase
from tensordict.nn import TensorDictModule, TensorDictModuleBase, TensorDictSequential
from tensordict.utils import NestedKey
from torch import Tensor, nn
from torchrl.data import TensorSpec
from torchrl.modules import (
    IndependentNormal,
    PopArtValueNorm,
    ProbabilisticActor,
    ValueOperator,
)

from htrmrl_torchrl import keys
from htrmrl_torchrl.agent.mlp import FiLM, linears_of, make_mlp
from htrmrl_torchrl.encoders.contract import ContextEncoder
from htrmrl_torchrl.encoders.tokens import TokenNormalizer
from htrmrl_torchrl.envs.lanes import check_choice
from htrmrl_torchrl.memory.contract import Memory
from htrmrl_torchrl.specs import MismatchError, check_action

Std = Literal["independent", "dependent"]
CriticKind = Literal["shared", "separate", "single_step"]


class NewestToken(TensorDictModuleBase):
    """Copies the newest token ``[*batch, x]``, as the encoder reads it, to an input key of a head."""

    def __init__(self, out_key: NestedKey, *, tokens: TokenNormalizer) -> None:
        super().__init__()
        self.tokens = tokens
        self.in_keys: list[NestedKey] = [keys.CONTEXT]
        self.out_keys: list[NestedKey] = [out_key]

    def forward(self, tensordict: TensorDictBase) -> TensorDictBase:
        return tensordict.set(self.out_keys[0], self.tokens(tensordict.get(keys.CURRENT)[..., -1, :]))


class ValueHead(nn.Module):
    """MLP that predicts values in units of the return, with an optional frozen affine map that keeps its outputs near
    1.

    With ``normalize=True`` the network predicts normalised values. Mean and scale change only in `adapt`, which adjusts
    the last layer so that predictions stay the same (PopArt, van Hasselt et al. 2016).

    Shapes: any number of inputs, concatenated along the last axis ``[*batch, D]`` -> ``[*batch, 1]``.
    """

    def __init__(self, *, in_features: int, hidden: Sequence[int], normalize: bool) -> None:
        super().__init__()
        self.mlp = make_mlp(in_features, 1, hidden, gain=1.0)
        # Returns change as the agent learns, so the statistics average over about ten calls of `adapt`.
        self.norm = PopArtValueNorm(shape=1, beta=0.9) if normalize else None
        if self.norm is not None:
            # Identity (mean 0, variance 1) until the first `adapt`, with almost no weight afterwards.
            self.norm.running_mean_sq.fill_(1e-3)
            self.norm.debiasing_term.fill_(1e-3)

    def forward(self, *inputs: Tensor) -> Tensor:
        value = self.mlp(torch.cat(inputs, -1))
        return value if self.norm is None else self.norm.denormalize(value)

    def affine(self) -> tuple[Tensor, Tensor] | None:
        """Mean and scale of the affine map, constant until the next `adapt`; ``None`` if there is no map."""
        return None if self.norm is None else (self.norm._running_stats()[0], self.norm.scale())

    @property
    def scale(self) -> Tensor | float:
        """Units of the return per unit of the network's output."""
        return 1.0 if self.norm is None else self.norm.scale()

    @torch.no_grad()
    def adapt(self, value_target: Tensor) -> None:
        """Moves mean and scale towards those of ``value_target`` ``[*batch, 1]``; predictions stay the same."""
        if self.norm is None:
            return
        zero, last = torch.zeros_like(self.norm.running_mean), self.mlp[-1]
        mean, scale = self.norm.denormalize(zero), self.norm.scale()
        self.norm.update(value_target)
        new_mean, new_scale = self.norm.denormalize(zero), self.norm.scale()
        last.weight.mul_(scale / new_scale)
        last.bias.mul_(scale).add_(mean - new_mean).div_(new_scale)


def make_actor_critic(
    *,
    encoder: ContextEncoder,
    memory: Memory,
    action_spec: TensorSpec,
    hidden: Sequence[int] = (64, 64),
    std: Std = "independent",
    init_std: float = 1.0,
    min_std: float = 1e-4,
    observe_token: bool = False,
    film: bool = False,
    critic_kind: CriticKind = "shared",
    critic_encoder: ContextEncoder | None = None,
    value_norm: bool = True,
) -> tuple[TensorDictSequential, ProbabilisticActor, TensorDictModuleBase]:
    """Builds policy, actor and critic around an encoder and its memory.

    Args:
        encoder: the actor's encoder.
        memory: writes the context during rollouts and must support these encoders (`Memory.check_encoders`): an
            `EpisodicMemory`, which caches the past if it was built with the same encoder (and the critic's); or, for a
            `RecurrentEncoder`, a `RecurrentMemory` built with it (and the critic's).
        action_spec: of the environment; a continuous action ``[a]``, bounded or not, of one environment or of all.
            Actions are not squashed: the environment clips them, and the unclipped action is stored with its log-prob.
        hidden: channels of the tanh layers of both heads.
        std: ``"independent"``: one learned std per action dimension; ``"dependent"``: a function of the context.
        init_std: initial std. Smaller values explore less; it is not scaled by the action range.
        min_std: lower bound of the std. An independent std is shared by all tasks and falls if most of them favour it;
            the bound keeps exploration for the others. At the bound it rises again if the loss favours it. A training
            loop calls `keep_std_at_floor` after each optimizer step, so that the learned value never stays below.
        observe_token: the actor's head also reads the newest token directly.
        film: the context vector scales and shifts the hidden layers of the actor's head instead of entering it, see
            `FiLM`; only with ``observe_token``.
        critic_kind: ``"shared"``: reads the actor's context vector. ``"separate"``: has its own `critic_encoder`, at
            twice the cost. ``"single_step"``: an MLP on the newest token (TrMRL).
        critic_encoder: only for ``"separate"``; needs its own ``hidden_key`` and ``cache_key`` or ``state_key``.
        value_norm: the critic learns normalised values, see `ValueHead`.

    Returns:
        ``policy``, for collectors: memory, actor and critic; writes ``action``, ``action_log_prob``, ``state_value``
        and the memory's keys for the replay buffer. ``actor`` and ``critic``, for losses: they read ``"context"`` (a
        shared critic reads the actor's ``"_hidden"``).

    Raises:
        ValueError: for unknown kinds, and for a critic encoder that is missing, not used, or shares the actor's keys.
        MismatchError: (a ValueError) for discrete actions, actions that are no vectors or not of the encoder's size,
            and a memory built with another encoder.

    Example:
        >>> from torchrl.data import Bounded
        >>> from htrmrl_torchrl import EpisodicMemory, HierarchicalEncoder
        >>> encoder = HierarchicalEncoder(observation_dim=3, action_dim=1)
        >>> policy, actor, critic = make_actor_critic(
        ...     encoder=encoder, memory=EpisodicMemory(encoder), action_spec=Bounded(-1, 1, (1,)))
    """
    _check_kinds(
        std=std,
        init_std=init_std,
        min_std=min_std,
        critic_kind=critic_kind,
        encoder=encoder,
        critic_encoder=critic_encoder,
    )
    if film and not observe_token:
        raise ValueError("film=True needs observe_token=True, for its head reads the newest token.")
    memory.check_encoders([encoder] if critic_encoder is None else [encoder, critic_encoder])
    check_action(action_spec, lanes=action_spec.shape[:-1])
    action_dim = action_spec.shape[-1]
    if encoder.action_dim != action_dim:
        raise MismatchError(
            f"The encoder expects actions of size {encoder.action_dim}, but the action spec has {action_dim}; build it "
            f"with action_dim={action_dim}."
        )
    modules: list[TensorDictModuleBase] = [encoder]
    head_keys: list[NestedKey] = [keys.HIDDEN]
    if observe_token:
        modules.append(NewestToken(keys.ACTOR_TOKEN, tokens=encoder.tokens))
        head_keys.append(keys.ACTOR_TOKEN)
    inputs = encoder.d_model + (encoder.token_dim if observe_token else 0)
    mlp = partial(FiLM, context_dim=encoder.d_model) if film else make_mlp
    head = _gaussian_head(mlp, inputs, action_dim, hidden, std=std, init_std=init_std, min_std=min_std)
    modules.append(TensorDictModule(head, in_keys=head_keys, out_keys=[keys.LOC, keys.SCALE]))
    actor = ProbabilisticActor(
        TensorDictSequential(*modules),
        in_keys={"loc": keys.LOC, "scale": keys.SCALE},
        out_keys=[keys.ACTION],
        distribution_class=IndependentNormal,
        return_log_prob=True,
    )
    critic = _make_critic(critic_kind, encoder, critic_encoder, hidden, value_norm)
    policy = TensorDictSequential(
        memory,
        actor,
        critic,
        # All keys of the memory except the context, which is rebuilt from them.
        selected_out_keys=[keys.ACTION, keys.LOG_PROB, keys.STATE_VALUE, *memory.out_keys[1:]],
    )
    return policy, actor, critic


def value_head(critic: TensorDictModuleBase) -> ValueHead:
    """The `ValueHead` inside a critic made by `make_actor_critic`."""
    return next(module for module in critic.modules() if isinstance(module, ValueHead))


def _make_critic(
    kind: CriticKind,
    encoder: ContextEncoder,
    critic_encoder: ContextEncoder | None,
    hidden: Sequence[int],
    value_norm: bool,
) -> TensorDictModuleBase:
    in_features = {"shared": encoder.d_model, "single_step": encoder.token_dim}.get(kind)
    if kind == "separate":
        assert critic_encoder is not None
        in_features = critic_encoder.d_model
    assert in_features is not None
    head = ValueHead(in_features=in_features, hidden=hidden, normalize=value_norm)
    if kind == "shared":
        return ValueOperator(head, in_keys=[keys.HIDDEN])
    reads: TensorDictModuleBase | None = critic_encoder
    if reads is None:
        reads = NewestToken(keys.CRITIC_TOKEN, tokens=encoder.tokens)
    return TensorDictSequential(reads, ValueOperator(head, in_keys=reads.out_keys))


def keep_std_at_floor(actor: TensorDictModuleBase) -> None:
    """Sets learned std below `min_std` to it, after an optimizer step, for an actor of `make_actor_critic`.

    The std of the actions does not change. Does nothing for ``std="dependent"``, which has no such parameter.
    """
    for module in actor.modules():
        if isinstance(module, _IndependentStd):
            module.keep_at_floor()


class _Floor(torch.autograd.Function):
    """``max(std, floor)``. Below the floor, a gradient is kept only if descending it raises the std."""

    @staticmethod
    def forward(ctx: Any, std: Tensor, floor: float) -> Tensor:
        ctx.save_for_backward(std)
        ctx.floor = floor
        return std.clamp_min(floor)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        (std,), (gradient,) = ctx.saved_tensors, gradients
        return gradient.masked_fill((std < ctx.floor) & (gradient > 0), 0.0), None


class _IndependentStd(nn.Module):
    """Mean ``[*batch, a]`` -> mean and one learned std per action dimension ``[*batch, a]``."""

    def __init__(self, action_dim: int, *, log_std: float, scale_lb: float) -> None:
        super().__init__()
        self.scale_lb = scale_lb
        self.state_independent_scale = nn.Parameter(torch.full((action_dim,), log_std))

    def forward(self, loc: Tensor) -> tuple[Tensor, Tensor]:
        return loc, _floored(self.state_independent_scale.expand_as(loc).exp(), self.scale_lb)

    @torch.no_grad()
    def keep_at_floor(self) -> None:
        log_std = self.state_independent_scale
        log_std.clamp_min_(math.log(self.scale_lb))


class _DependentStd(nn.Module):
    """Mean and log-std ``[*batch, 2a]`` -> mean and std ``[*batch, a]``."""

    def __init__(self, *, scale_lb: float) -> None:
        super().__init__()
        self.scale_lb = scale_lb

    def forward(self, outputs: Tensor) -> tuple[Tensor, Tensor]:
        loc, log_std = outputs.chunk(2, -1)
        return loc, _floored(log_std.exp(), self.scale_lb)


def _floored(std: Tensor, floor: float) -> Tensor:
    floored: Tensor = _Floor.apply(std, floor)
    return floored


class _GaussianHead(nn.Module):
    def __init__(self, mlp: nn.Module, scale: _IndependentStd | _DependentStd) -> None:
        super().__init__()
        self.mlp, self.scale = mlp, scale

    def forward(self, *inputs: Tensor) -> tuple[Tensor, Tensor]:
        loc, scale = self.scale(self.mlp(torch.cat(inputs, -1)))
        return loc, scale


def _gaussian_head(
    mlp: Callable[..., nn.Module],
    in_features: int,
    action_dim: int,
    hidden: Sequence[int],
    *,
    std: Std,
    init_std: float,
    min_std: float,
) -> nn.Module:
    log_std = float(torch.tensor(init_std, device="cpu").log())
    if std == "independent":
        scale = _IndependentStd(action_dim, log_std=log_std, scale_lb=min_std)
        return _GaussianHead(mlp(in_features, action_dim, hidden, gain=0.01), scale)
    network = mlp(in_features, 2 * action_dim, hidden, gain=0.01)
    nn.init.constant_(linears_of(network)[-1].bias[action_dim:], log_std)
    return _GaussianHead(network, _DependentStd(scale_lb=min_std))


def _check_kinds(
    *,
    std: str,
    init_std: float,
    min_std: float,
    critic_kind: str,
    encoder: ContextEncoder,
    critic_encoder: ContextEncoder | None,
) -> None:
    check_choice(Std, std=std)
    check_choice(CriticKind, critic_kind=critic_kind)
    if init_std <= 0:
        raise ValueError(f"init_std={init_std} must be positive.")
    if not 0 < min_std <= init_std:
        raise ValueError(f"min_std={min_std} must be positive and at most init_std={init_std}.")
    if (critic_kind == "separate") != (critic_encoder is not None):
        raise ValueError(
            f"critic_kind={critic_kind!r} and critic_encoder={type(critic_encoder).__name__} do not match: "
            "'separate' needs a critic_encoder, and other kinds take none."
        )
    if critic_encoder is not None and (
        critic_encoder.out_keys == encoder.out_keys or critic_encoder.own_key == encoder.own_key is not None
    ):
        raise ValueError(
            "Actor and critic encoders share hidden_key, cache_key or state_key; give the critic encoder its own keys."
        )
