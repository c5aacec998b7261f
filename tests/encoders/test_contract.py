"""What every encoder promises (`htrmrl_torchrl.encoders.contract`), ours and any other one; wrong ones fail.

Put your own through `check_contract`, with the memory that its kind has (`htrmrl_torchrl.agent.registry`).
"""

import copy
from functools import partial

import pytest
import torch
from tensordict import TensorDict
from torch import nn

from htrmrl_torchrl import EpisodicMemory, EpisodicReplayBuffer, EpisodicStorage, RecurrentMemory, keys
from htrmrl_torchrl.agent.registry import ENCODERS, EncoderKind, build_encoder, build_memory
from htrmrl_torchrl.encoders.contract import ContextEncoder
from tests.helpers import ACTION, OBSERVATION, as_batch, assert_same, record, steps

SETTINGS = {"window": 3, "episodes": 3, "d_model": 8, "strategy": "recent"}
WRITTEN = (keys.WINDOW_EPISODE, keys.WINDOW_START, keys.WINDOW_CURRENT, keys.RECURRENT)


def hidden_of(encoder, context):
    """``[*batch, D]``."""
    out = encoder(TensorDict(context=context, batch_size=context.batch_size))
    return out[encoder.out_keys[0]]


@torch.no_grad()
def check_contract(kind):
    """Raises AssertionError unless the encoders of an `EncoderKind` keep their promises."""
    make = partial(build_encoder, kind, settings=SETTINGS, observation_dim=OBSERVATION, action_dim=ACTION)
    torch.manual_seed(0)
    encoder = make().double()
    memory = build_memory(kind.memory, SETTINGS, [encoder])
    memory.check_encoders([encoder])
    batch = as_batch(record([[[3, 4, 2]], [[2, 3, 4]], [[4, 2, 3]]], window=3, episodes=3), dtype=torch.float64)
    lived = torch.stack([memory(step) for step in steps(batch)], 1)  # [N, T]
    contexts = lived[keys.CONTEXT]

    # One vector for each decision, which depends on its context alone.
    acted = torch.stack([hidden_of(encoder, contexts[:, t]) for t in range(9)], 1)
    assert acted.shape == (3, 9, encoder.d_model) and acted.isfinite().all()
    for t in (8, 0, 4):
        assert torch.equal(hidden_of(encoder, contexts[:, t]), acted[:, t]), "it remembers calls"
        assert_same(hidden_of(encoder, contexts[1:2, t]), acted[1:2, t], 1e-10)  # of any company
    assert (acted[:, 1:] - acted[:, :-1]).abs().max() > 1e-6, "it sees nothing"

    # What the storage hands out in updates gives the same vector as what the memory has written.
    batch.update(lived.select(*WRITTEN, strict=False))
    batch.set("number", torch.arange(27).view(3, 9, 1))
    for frames in (1, 2, 3):
        storage = EpisodicStorage(100, window=encoder.window, episodes=encoder.episodes)
        buffer = EpisodicReplayBuffer(storage=storage, batch_size=27 // frames * frames, segment_frames=frames)
        buffer.extend(batch)
        minibatch = next(iter(buffer))
        again = hidden_of(encoder, minibatch[keys.CONTEXT]).flatten(0, -2)
        assert_same(again, acted.flatten(0, 1)[minibatch["number"].flatten()], 1e-10)

    # Padding says nothing: tokens beyond a window's mask, and windows in empty slots.
    changed = contexts[:, :4].clone()
    for tokens, mask in (("current", "current_mask"), ("past", "past_mask")):
        if tokens in changed.keys() and mask in changed.keys() and not encoder.recurrent:
            held = changed[mask] & (changed["slot_mask"].unsqueeze(-1) if tokens == "past" else True)
            changed[tokens] = torch.where(held.unsqueeze(-1), changed[tokens], 7.0)
    for t in range(4):
        assert_same(hidden_of(encoder, changed[:, t]), acted[:, t], 1e-10)

    # A copy is the same; all that learns is reached by gradients, and moves what comes out.
    assert torch.equal(hidden_of(copy.deepcopy(encoder), contexts[:, 5]), acted[:, 5])
    with torch.enable_grad():
        hidden_of(encoder, contexts[:, 5].exclude("after")).square().sum().backward()
    assert any(p.grad is not None and p.grad.abs().sum() > 0 for p in encoder.parameters()), "nothing learns"

    # A separate critic's writes elsewhere.
    critic = make(of_critic=True)
    assert critic.out_keys == [keys.CRITIC_HIDDEN] and (encoder.own_key is None or critic.own_key != encoder.own_key)


class Newest(ContextEncoder):
    """A right one, to be spoiled."""

    def __init__(self, *, depth: int = 1, **others) -> None:
        super().__init__(**others)
        self.linear = nn.Linear(self.token_dim, self.d_model)
        self.calls = 0

    def forward(self, tensordict):
        return tensordict.set(self.out_keys[0], self.encode(tensordict.get(keys.CONTEXT)))

    def encode(self, context):
        return self.linear(self.tokens(context.get("current")[..., -1, :]))


class SeesOthers(Newest):
    def encode(self, context):
        out = super().encode(context)
        return out + out.mean(0, keepdim=True)


class SeesPadding(Newest):
    def encode(self, context):
        return self.linear(self.tokens(context.get("current")).mean(-2))


class SeesEmptySlots(Newest):
    def encode(self, context):
        return super().encode(context) + self.linear(context.get("past")[..., -1, :].mean(-2))


class Remembers(Newest):
    def encode(self, context):
        self.calls += 1
        return super().encode(context) * self.calls


class SeesNames(Newest):
    """What windows are called, which are running numbers of the rollout."""

    def encode(self, context):
        return super().encode(context) + context.get("past_id").sum(-1, keepdim=True).double()


class SeesNothing(Newest):
    def encode(self, context):
        return torch.ones_like(super().encode(context))


class LearnsNothing(Newest):
    def encode(self, context):
        return super().encode(context).detach().requires_grad_()


class WritesElsewhere(Newest):
    def __init__(self, *, hidden_key: str = keys.HIDDEN, **others) -> None:
        super().__init__(**others)


class OneAxis(Newest):
    def encode(self, context):
        return super().encode(context).reshape(-1, self.d_model)


WRONG = (
    SeesOthers, SeesPadding, SeesEmptySlots, Remembers, SeesNames, SeesNothing, LearnsNothing, WritesElsewhere,
)  # fmt: skip


@pytest.mark.parametrize("kind", [*ENCODERS.values(), EncoderKind(Newest)], ids=[*ENCODERS, "another"])
def test_encoders_keep_it(kind):
    check_contract(kind)


@pytest.mark.parametrize("wrong", WRONG)
def test_a_wrong_one_fails(wrong):
    with pytest.raises(AssertionError):
        check_contract(EncoderKind(wrong))


def test_a_flattened_batch_fails():
    with pytest.raises((AssertionError, RuntimeError)):  # tensordict refuses it first
        check_contract(EncoderKind(OneAxis))


def test_the_memory_is_the_kinds():
    assert {name: kind.memory for name, kind in ENCODERS.items()} == {
        name: RecurrentMemory if name == "rl2" else EpisodicMemory for name in ENCODERS
    }
