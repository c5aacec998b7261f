"""Faults that a run survives by a reset of all environments or a skipped update. Workers import this: no torch."""

from collections.abc import Iterable
from math import isfinite
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor


class Fault(Exception):
    """The current trials cannot continue; after a full ``reset()`` of the environment new ones can start."""


class WorkerFault(Fault, RuntimeError):
    """An environment worker raised, died or hung; a full reset starts new workers."""


class NonFiniteError(Fault, ValueError):
    """A tensor holds NaN or infinity; the message names the tensor and the environments."""


def check_finite(tensors: Iterable[tuple[Any, "Tensor"]], *, axis: str = "environment") -> None:
    """Raise `NonFiniteError` for the first non-finite tensor, with its name, rows (at most ten) and a value of each.

    Args:
        tensors: pairs of name (or tensordict key) and tensor ``[N, ...]`` or ``[]``; integers and flags are skipped.
        axis: what the first axis counts.

    Example:
        >>> import torch
        >>> check_finite([("reward", torch.tensor([[0.0], [float("nan")]]))])
        Traceback (most recent call last):
        htrmrl_torchrl.faults.NonFiniteError: reward is not finite in environment 1 (nan)
    """
    for key, tensor in tensors:
        if not tensor.is_floating_point():
            continue
        if isfinite(tensor.detach().sum()):  # faster than checking each value; an overflowing sum is checked below
            continue
        finite = tensor.isfinite()
        if finite.all():
            continue
        name = "/".join(key) if isinstance(key, tuple) else str(key)
        if not tensor.ndim:
            raise NonFiniteError(f"{name} is not finite ({tensor.item()})")
        rows, bad = tensor.reshape(len(tensor), -1), ~finite.reshape(len(tensor), -1)
        lanes = bad.any(-1).nonzero().flatten().tolist()
        shown = [f"{lane} ({rows[lane][bad[lane]][0].item()})" for lane in lanes[:10]]
        more = f" and {len(lanes) - 10} more" if len(lanes) > 10 else ""
        raise NonFiniteError(f"{name} is not finite in {axis}{'s' * (len(lanes) > 1)} {', '.join(shown)}{more}")


class Left(BaseException):
    """Raised where training may stop after a signal. Not an Exception, so that no library handles it."""


class UserError(ValueError):
    """A mistake in the user's input: shown as one sentence, without a traceback."""

    exit_code = 2
