"""Loss terms and gradients of a minibatch, in one process or in several that share it out.

::

    segments     0 1 2 3 4 5 6        three ranks: a block each; the mean over frames is a weighted sum of their means
    rank         0 0 1 1 2 2 2
"""

import torch
from tensordict import TensorDict, TensorDictBase
from torch import Tensor

from htrmrl_torchrl import keys
from htrmrl_torchrl.faults import Left, NonFiniteError
from htrmrl_torchrl.parallel.ranks import Ranks
from htrmrl_torchrl.ppo.checks import check_losses
from htrmrl_torchrl.ppo.objectives import NormalizedClipPPOLoss

# Means over frames.
_TERMS = ("loss_objective", "loss_critic", "loss_entropy", "kl_approx", "clip_fraction", "entropy", "mean_ratio")


def differentiate(loss: NormalizedClipPPOLoss, minibatch: TensorDictBase, *, weight: float = 1.0) -> TensorDictBase:
    """The loss terms; adds the gradient of their sum, times ``weight``, to the parameters'.

    Raises:
        NonFiniteError: if a term is not finite.
    """
    losses: TensorDictBase = loss(minibatch)
    check_losses(losses, minibatch, loss)
    total = losses["loss_objective"] + losses["loss_entropy"] + losses["loss_critic"]
    (total if weight == 1.0 else total * weight).backward()
    return losses


def differentiate_share(loss: NormalizedClipPPOLoss, minibatch: TensorDictBase, ranks: Ranks) -> TensorDictBase:
    """As `differentiate`, of which each rank computes its share; terms and gradients are those of the whole.

    ``minibatch`` is the same in all ranks, ``[segments, S]`` or ``[frames]``, and gradients were ``None``.

    Raises:
        NonFiniteError: in all ranks, if a term is not finite in one.
        Left: in all ranks, if one was asked to stop.
    """
    share = share_of(minibatch, rank=ranks.rank, size=ranks.size)
    weight = share.batch_size.numel() / minibatch.numel()  # `numel` of an empty tensordict is 1
    parameters = [parameter for parameter in loss.parameters() if parameter.requires_grad]
    terms, fault = parameters[0].new_zeros(len(_TERMS)), None
    if weight:
        try:
            losses = differentiate(loss, share, weight=weight)
            terms = torch.stack([losses[name].detach() * weight for name in _TERMS])
        except NonFiniteError as error:
            fault = error
    flags = terms.new_tensor([ranks.requested(), fault is not None, *(p.grad is not None for p in parameters)])
    parts = [terms, flags, *(torch.zeros_like(p) if p.grad is None else p.grad for p in parameters)]
    total = torch.cat([part.flatten() for part in parts]).cpu()
    ranks.add(total)
    terms, flags, *gradients = total.to(terms.device).split([part.numel() for part in parts])
    if flags[0]:
        raise Left
    if flags[1]:
        raise NonFiniteError(next(told for told in ranks.gather(fault and str(fault)) if told))
    for parameter, gradient, found in zip(parameters, gradients, flags[2:], strict=True):
        parameter.grad = gradient.view_as(parameter) if found else None
    return TensorDict(dict(zip(_TERMS, terms, strict=True)))


def share_of(minibatch: TensorDictBase, *, rank: int, size: int) -> TensorDictBase:
    """A block of the segments of a minibatch ``[segments, S]``, or of its frames ``[frames]``; perhaps an empty one."""
    first, end = (_cut(minibatch, len(minibatch) * part // size) for part in (rank, rank + 1))
    return minibatch[first:end]


def _cut(minibatch: TensorDictBase, row: int) -> int:
    """The first row from ``row`` on that does not need the recurrent state of the one before."""
    starts: Tensor | None = minibatch.get(keys.SEQUENCE_START, None)
    if minibatch.ndim > 1 or starts is None:
        return row
    following = starts[row:].flatten().nonzero()
    return row + int(following[0]) if len(following) else len(minibatch)
