"""Encoders for single steps against the modules that they are made of, bit for bit."""

import pytest
import torch
from tensordict import TensorDict

from htrmrl_torchrl import HierarchicalEncoder, keys
from htrmrl_torchrl.encoders.acting import encoder_step
from htrmrl_torchrl.encoders.contract import ContextEncoder

SIZES = [
    {}, {"attention": "full"}, {"norm": "tfixup"}, {"inter_layers": 0}, {"intra_layers": 1}, {"episodes": 1},
    {"window": 1}, {"intra_layers": 3, "inter_layers": 1, "d_model": 32, "num_heads": 2},
    {"d_model": 24, "num_heads": 3},
]  # fmt: skip
N = 7


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("sizes", SIZES, ids=str)
@torch.no_grad()
def test_steps_give_the_vectors_of_the_forward_pass(sizes, dtype):
    encoder = HierarchicalEncoder(observation_dim=5, action_dim=2, **sizes).to(dtype)
    for parameter in encoder.parameters():  # no zeros and ones, with which much would be equal
        parameter += 0.1 * torch.randn_like(parameter)
    encoder.tokens.adapt(3 * torch.randn(50, 5, dtype=dtype) + 1)
    window, slots = encoder.window, encoder.episodes - 1
    step = encoder_step(encoder)
    for filled in (0.0, 0.5, 1.0):  # no earlier episode yet, some, all slots
        past = TensorDict(
            past=torch.randn(N, slots, window, 9, dtype=dtype),
            past_mask=torch.rand(N, slots, window) > 0.3,
            past_id=torch.arange(N * slots).view(N, slots),
            slot_mask=torch.rand(N, slots) < filled,
            batch_size=[N],
        )
        if encoder.remembers:
            cache = encoder.encode_past(*(past[name] for name in ("past", "past_mask", "past_id", "slot_mask")))
            past.set(encoder.cache_key[1:], cache)
        whole = torch.ones(N, window, dtype=torch.bool)
        for mask in (torch.arange(window) >= torch.randint(window, (N, 1)), whole, whole):
            current = torch.randn(N, window, 9, dtype=dtype) * mask.unsqueeze(-1)
            context = past.copy().set("current", current).set("current_mask", mask)
            expected = encoder(TensorDict(context=context, batch_size=[N]))[keys.HIDDEN]
            assert torch.equal(step(current, mask, past), expected)


def test_a_step_is_taken_with_the_weights_that_it_was_made_of():
    encoder = HierarchicalEncoder(observation_dim=5, action_dim=2, episodes=1, inter_layers=0)
    arguments = torch.randn(N, 5, 9), torch.ones(N, 5, dtype=torch.bool), TensorDict(batch_size=[N])
    before = encoder_step(encoder)(*arguments)
    encoder.tokens.adapt(torch.randn(50, 5) + 1)
    assert not torch.equal(encoder_step(encoder)(*arguments), before)


def test_an_encoder_of_ones_own_has_no_such_steps():
    class Own(HierarchicalEncoder):
        pass

    assert encoder_step(Own(observation_dim=5, action_dim=2)) is None
    assert encoder_step(ContextEncoder(observation_dim=5, action_dim=2)) is None
