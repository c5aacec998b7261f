"""The memoryless encoder sees the present observation and nothing else."""

import pytest
import torch
from tensordict import TensorDict
from torch import nn

from htrmrl_torchrl import MemorylessEncoder, keys
from tests.helpers import assert_same, differ


def make_encoder(**choices):
    torch.manual_seed(0)
    return MemorylessEncoder(observation_dim=3, action_dim=2, d_model=8, **choices)


def hidden_of(encoder, current):
    return encoder(TensorDict(context=TensorDict(current=current, batch_size=[4]), batch_size=[4]))[keys.HIDDEN]


@torch.no_grad()
def test_it_is_an_mlp_on_the_observation():
    encoder, current = make_encoder(mlp_layers=2), torch.randn(4, 1, 7)
    first, second = (module for module in encoder.mlp if isinstance(module, nn.Linear))
    expected = second(first(current[:, 0, :3]).clamp(min=0)).clamp(min=0)
    assert_same(hidden_of(encoder, current), expected)


@torch.no_grad()
def test_previous_action_and_reward_and_the_first_step_are_not_read():
    encoder, current = make_encoder(), torch.randn(4, 1, 7)
    hidden = hidden_of(encoder, current.clone())
    for column in range(7):
        other = current.clone()
        other[..., column] += 1
        assert differ(hidden_of(encoder, other), hidden) == (column < 3)


def test_wrong_sizes():
    with pytest.raises(ValueError, match="mlp_layers=0 is too small"):
        make_encoder(mlp_layers=0)
    with pytest.raises(ValueError, match="observation_dim=0 is too small"):
        MemorylessEncoder(observation_dim=0, action_dim=1)
