"""Where attention goes, as numbers: spread by head, by past episode, and before and after the first success."""

from dataclasses import dataclass

import torch
from torch import Tensor

from htrmrl_torchrl.inspection.recording import Recording

KINDS = ("present", "successful episodes", "failed episodes")  # of what a slot shows


def entropy(attention: Tensor) -> Tensor:
    """Entropy in nats of rows ``[..., L]``: 0 where all is at one place, log(L) where all places are alike."""
    return -(attention * attention.clamp_min(1e-12).log()).sum(-1)


def relative_entropy(attention: Tensor, held: Tensor) -> Tensor:
    """How evenly heads look around: 1 at all places alike, 0 at one alone.

    Args:
        attention: ``[n, layers, H, L]``, rows that sum to one over ``held``.
        held: ``[n, L]``, the places that there are. Rows with a single place, which leave no choice, do not count.

    Returns:
        ``[layers, H]``, entropy over log(places), mean over rows; not a number where no row has a choice.

    Example:
        >>> attention = torch.tensor([[0.5, 0.5, 0.0], [1.0, 0.0, 0.0]]).view(2, 1, 1, 3)
        >>> relative_entropy(attention, torch.tensor([[True, True, False], [True, True, False]])).tolist()
        [[0.5]]
    """
    places = held.sum(-1)
    attention, places = attention[places > 1], places[places > 1]
    return (entropy(attention) / places.log().view(-1, 1, 1)).mean(0)  # of [n, layers, H]


def slot_entropy(recording: Recording) -> Tensor | None:
    """`relative_entropy` of the upper level, ``[L2, H]``."""
    attention = recording.slot_attention
    if attention is None:
        return None
    held = recording.slot_mask.unsqueeze(2).expand(-1, -1, attention.shape[2], -1)
    return relative_entropy(attention.flatten(0, 2), held.flatten(0, 2))


def window_entropy(recording: Recording) -> Tensor | None:
    """`relative_entropy` of the lower level, ``[L1, H]``."""
    attention = recording.window_attention
    if attention is None:
        return None
    held = recording.window_mask.expand(*attention.shape[:2], -1, -1)
    return relative_entropy(attention.flatten(0, 2), held.flatten(0, 2))


def present_attention(recording: Recording) -> Tensor:
    """``[N, K, S, E]``: how the present attends over slots in the last layer of the upper level, mean over heads."""
    if recording.slot_attention is None:
        raise ValueError("This encoder has no upper level, so nothing attends over windows.")
    return recording.slot_attention[:, :, :, -1].mean(3)


def attention_by_episode(recording: Recording) -> Tensor:
    """Attention of each decision on each episode of its trial: ``[N, K, S, K + 1]``, the present in the last column."""
    attention = present_attention(recording)
    trials, episodes, looks, _ = attention.shape
    shown = recording.slot_episode.masked_fill(recording.slot_episode < 0, episodes)  # empty slots have attention 0
    shown = torch.cat([shown, torch.full_like(shown[..., :1], episodes)], -1)  # [N, K, E]
    out = attention.new_zeros(trials, episodes, looks, episodes + 1)
    return out.scatter_add_(-1, shown.unsqueeze(2).expand(-1, -1, looks, -1), attention)


@dataclass(frozen=True, kw_only=True)
class AroundSuccess:
    """Attention by what is looked at, in trials that ever succeed, aligned at the first successful episode.

    Args:
        offset: ``[R]``, episodes since the first successful one; negative before it, 0 in it.
        attention: ``[R, 3]``, share of attention on each of `KINDS`, mean over trials and decisions.
        uniform: ``[R, 3]``, what it would be if all windows were looked at alike: their share of the slots in use.
        trials: ``[R]``, how many trials have such an episode.
    """

    offset: Tensor
    attention: Tensor
    uniform: Tensor
    trials: Tensor


def around_first_success(recording: Recording) -> AroundSuccess | None:
    """Which windows are looked at before and after the first success; ``None`` if no trial has one."""
    won = recording.success.any(1)
    if not won.any():
        return None
    attention = present_attention(recording)[won].mean(2)  # [n, K, E]
    shown, held = recording.slot_episode[won], recording.slot_mask[won]
    success = recording.success[won]
    episodes = success.shape[1]
    past = shown >= 0
    successful = success.unsqueeze(1).expand(-1, episodes, -1).gather(2, shown.clamp_min(0)) & past
    kinds = torch.stack([torch.zeros_like(past), successful, past & ~successful], -1)  # [n, K, E-1, 3]
    present = torch.tensor([True, False, False]).expand_as(kinds[:, :, :1])
    kinds = torch.cat([kinds, present], 2).to(attention.dtype)
    share = torch.einsum("nke,nkec->nkc", attention, kinds)  # [n, K, 3]
    uniform = kinds.sum(2) / held.sum(-1, keepdim=True)
    offset = torch.arange(episodes) - success.int().argmax(1, keepdim=True)  # [n, K]
    offsets = offset.unique()
    rows = [offset == value for value in offsets]
    return AroundSuccess(
        offset=offsets,
        attention=torch.stack([share[row].mean(0) for row in rows]),
        uniform=torch.stack([uniform[row].mean(0) for row in rows]),
        trials=torch.stack([row.sum() for row in rows]),
    )


def success_preference(recording: Recording) -> float:
    """Mean attention on a window of a successful episode over that on one of a failed one.

    Over decisions whose memory holds both; not a number where there is no such decision.
    """
    attention = present_attention(recording).mean(2)[..., :-1]  # [N, K, E-1]
    shown = recording.slot_episode
    success = recording.success.unsqueeze(1).expand(-1, shown.shape[1], -1).gather(2, shown.clamp_min(0))
    successful, failed = success & (shown >= 0), ~success & (shown >= 0)
    both = successful.any(-1) & failed.any(-1)
    if not both.any():
        return float("nan")

    def mean(kind: Tensor) -> float:
        return float(((attention * kind).sum(-1) / kind.sum(-1).clamp_min(1))[both].mean())

    return mean(successful) / mean(failed)
