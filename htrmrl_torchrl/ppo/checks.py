"""Finiteness checks of an update, made before any weight changes."""

import torch
from tensordict import TensorDictBase
from torch import Tensor, nn

from htrmrl_torchrl import keys
from htrmrl_torchrl.faults import NonFiniteError, check_finite
from htrmrl_torchrl.ppo.objectives import NormalizedClipPPOLoss


def check_targets(targets: TensorDictBase) -> None:
    """Raise :class:`NonFiniteError` unless targets and their squares (for the value normaliser) are finite."""
    check_finite(targets.items())
    check_finite((f"square of {name}", target.square()) for name, target in targets.items())


def check_losses(losses: TensorDictBase, minibatch: TensorDictBase, loss: NormalizedClipPPOLoss) -> None:
    """Raise :class:`NonFiniteError`, naming the term and the environments at fault, unless all terms are finite."""
    try:
        check_finite(losses.items())
    except NonFiniteError as fault:
        raise NonFiniteError(f"{fault}{_lanes_to_blame(minibatch, loss)}") from None


def clip_gradients(module: nn.Module, max_norm: float) -> Tensor:
    """``torch.nn.utils.clip_grad_norm_`` that raises instead of spreading a gradient that is not finite.

    Returns the norm before clipping. Raises NonFiniteError with the gradient's name, before any gradient is changed.
    """
    norm = torch.nn.utils.get_total_norm([p.grad for p in module.parameters() if p.grad is not None])
    if not norm.isfinite():
        named = [(f"gradient of {name}", p.grad) for name, p in module.named_parameters() if p.grad is not None]
        check_finite(named, axis="row")
        raise NonFiniteError(f"norm of the gradients is not finite ({norm.item()})")
    torch.nn.utils.clip_grads_with_norm_(module.parameters(), max_norm, norm)
    return norm


@torch.no_grad()
def _lanes_to_blame(minibatch: TensorDictBase, loss: NormalizedClipPPOLoss) -> str:
    """Environments whose frames have no finite ratio or value; empty if only a sum over frames overflows."""
    seen = minibatch.copy()
    log_prob = loss.actor_network.get_dist(seen).log_prob(minibatch[keys.ACTION])
    value = loss.critic_network(seen)[keys.STATE_VALUE].squeeze(-1)
    finite = (log_prob - minibatch[keys.LOG_PROB]).exp().isfinite() & value.isfinite()
    lanes = minibatch[keys.LANE][~finite].unique().tolist()
    return f", from environments {', '.join(map(str, lanes))}" if lanes else ""
