"""Tokens and windows: gathered by index from a flat table of tokens.

An episode of H steps has H + 1 consecutive rows of the table; the last row is the result of its last step. A window is
T consecutive tokens of one episode, right-aligned; rows before the episode's first are padding::

    table rows      7  8  9 | 10 11 12 13 | 14 ...         episode B owns rows 10..13
    window at 11, T = 4:
                    -  -  10 11                            values (padding is zero)
                    0  0  1  1                             mask
"""

import torch
from tensordict import TensorDictBase
from torch import Tensor

from htrmrl_torchrl import keys


def make_token(tensordict: TensorDictBase) -> Tensor:
    """x_t = [o_t, a_{t-1}, r_{t-1}, first_t] of each batch element, ``[*batch, o + a + 2]``; the reward is raw.

    Its dtype is the previous action's (float32 from a `TrialTransform`); observations may be float64 or integers.
    """
    action = tensordict.get(keys.PREV_ACTION)
    return torch.cat(
        [
            tensordict.get(keys.OBSERVATION).to(action.dtype),
            action,
            tensordict.get(keys.PREV_REWARD).to(action.dtype),
            tensordict.get(keys.IS_INIT).to(action.dtype),
        ],
        -1,
    )


def final_token(tensordict: TensorDictBase) -> Tensor:
    """x_H of the previous episode, ``[*batch, o + a + 2]``, from the ``"final"`` keys of the next one."""
    observation, action, reward = (
        tensordict.get(key, None) for key in (keys.FINAL_OBSERVATION, keys.FINAL_ACTION, keys.FINAL_REWARD)
    )
    if observation is None or action is None or reward is None:
        raise KeyError(
            f"The environment has no {keys.FINAL_OBSERVATION}, {keys.FINAL_ACTION} and {keys.FINAL_REWARD}, so the "
            "memory would miss an episode's last reward; append a TrialTransform to it."
        )
    return token_after(observation, action, reward)


def token_after(observation: Tensor, action: Tensor, reward: Tensor) -> Tensor:
    """The token after a step, with first_t = 0: observation ``[*batch, o]``, executed action ``[*batch, a]`` and reward
    ``[*batch, 1]`` -> ``[*batch, o + a + 2]``."""
    reward = reward.to(action.dtype)
    return torch.cat([observation.to(action.dtype), action, reward, 0 * reward], -1)


def carry_over(token: Tensor, final: Tensor, *, action_dim: int) -> Tensor:
    """First token ``[*batch, x]`` of a trial's next episode for a recurrent network (RL2): observation and flag of its
    first ``token``, with the last action and reward from the ``final`` token of the previous episode."""
    observation_dim = token.shape[-1] - action_dim - 2
    return torch.cat([token[..., :observation_dim], final[..., observation_dim:-1], token[..., -1:]], -1)


def window_at(table: Tensor, newest: Tensor, first: Tensor, length: int) -> tuple[Tensor, Tensor]:
    """Windows that end at row `newest` and reach back at most to row `first`.

    Args:
        table: ``[rows, x]``.
        newest, first: ``[*shape]`` row numbers; ``newest < first`` gives an empty window.
        length: T.

    Returns:
        tokens ``[*shape, T, x]``, zero where padded, and mask ``[*shape, T]``.
    """
    rows = newest.unsqueeze(-1) + torch.arange(1 - length, 1, device=table.device)  # [*shape, T]
    mask = rows >= first.unsqueeze(-1)
    rows = torch.where(mask, rows, 0)
    tokens = table.index_select(0, rows.flatten()).view(*rows.shape, table.shape[-1])
    return tokens * mask.unsqueeze(-1), mask
