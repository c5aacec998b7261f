"""Recordings by hand, whose numbers are worked out on paper."""

import torch

from htrmrl_torchrl.encoders.contract import Inside
from htrmrl_torchrl.inspection.recording import Recording


def hand_made(*, success, slot_episode, attention, task=None, goal=None, hidden=None):
    """One look an episode, one layer, one head: ``attention[trial][episode][slot]``, the present last."""
    success = torch.tensor(success, dtype=torch.bool)
    attention = torch.tensor(attention)[:, :, None, None, None]  # [N, K, 1, 1, 1, E]
    trials, episodes = success.shape
    return Recording(
        task=torch.tensor(task or [0] * trials),
        goal=torch.tensor(goal or list(range(trials))),
        steps=torch.tensor([0]),
        tokens=torch.zeros(trials, episodes, 2, 5),
        success=success,
        returns=success.float(),
        first_success=(~success).long(),
        hidden=torch.zeros(trials, episodes, 1, 2) if hidden is None else torch.tensor(hidden),
        slot_episode=torch.tensor(slot_episode),
        slot_start=torch.zeros_like(torch.tensor(slot_episode)),
        embedding=None,
        past_embedding=None,
        window_attention=None,
        slot_attention=attention,
        last=Inside(hidden=torch.zeros(trials, 2)),
    )


def two_trials():
    """The first succeeds in its second episode and in the third, the second never does."""
    return hand_made(
        success=[[0, 1, 1], [0, 0, 0]],
        slot_episode=[[[-1, -1], [-1, 0], [0, 1]], [[-1, -1], [0, 0], [0, 1]]],
        attention=[
            [[0.0, 0.0, 1.0], [0.0, 0.75, 0.25], [0.125, 0.5, 0.375]],
            [[0.0, 0.0, 1.0], [0.25, 0.25, 0.5], [0.5, 0.25, 0.25]],
        ],
    )
