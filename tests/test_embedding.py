"""What users hand to the embedding layer works with every encoder, or is refused in one sentence that names the fix."""

import pytest
import torch
from tensordict.nn import TensorDictSequential
from torchrl.collectors import Collector

from htrmrl_torchrl import (
    EpisodicMemory,
    EpisodicReplayBuffer,
    EpisodicStorage,
    HierarchicalEncoder,
    MemorylessEncoder,
    NormalizedClipPPOLoss,
    RecurrentEncoder,
    RecurrentMemory,
    TrialGAE,
    final_values,
    keys,
    make_actor_critic,
)
from htrmrl_torchrl.specs import MismatchError
from tests.inputs import REFUSED, SAID, WORKS

ENCODERS = ("htrmrl", "rl2", "mlp")
FRAMES = 12


def parts(env, kind):
    """Encoder and memory for an environment, as the README says."""
    sizes = {
        "observation_dim": env.observation_spec[keys.OBSERVATION].shape[-1],
        "action_dim": env.action_spec.shape[-1],
        "d_model": 8,
    }
    if kind == "rl2":
        encoder = RecurrentEncoder(**sizes, mlp_layers=1)
        return encoder, RecurrentMemory(encoder)
    if kind == "mlp":
        return MemorylessEncoder(**sizes), EpisodicMemory(window=1, episodes=1)
    encoder = HierarchicalEncoder(**sizes, window=2, episodes=3, num_heads=2, intra_layers=1, inter_layers=1)
    return encoder, EpisodicMemory(encoder)


def learn(env, kind, *, frames=FRAMES, batches=2):
    """A whole loop with one optimizer step a batch; returns the batches, and the losses before each step."""
    encoder, memory = parts(env, kind)
    policy, actor, critic = make_actor_critic(encoder=encoder, memory=memory, action_spec=env.action_spec)
    collector = Collector(
        env, policy, frames_per_batch=frames, total_frames=batches * frames, auto_register_policy_transforms=False
    )
    storage = EpisodicStorage(4 * frames, window=encoder.window, episodes=encoder.episodes)
    buffer = EpisodicReplayBuffer(storage=storage, batch_size=frames)
    gae, loss = TrialGAE(advantage_norm="batch"), NormalizedClipPPOLoss(actor, critic)
    optimizer = torch.optim.Adam(loss.parameters(), lr=1e-2)
    played, seen = [], []
    for batch in collector:
        buffer.empty()
        rows = buffer.extend(batch)
        buffer.assign(rows, gae(batch, final_values=final_values(buffer, rows, TensorDictSequential(encoder, critic))))
        (minibatch,) = buffer
        losses = loss(minibatch)
        optimizer.zero_grad()
        (losses["loss_objective"] + losses["loss_critic"]).backward()
        optimizer.step()
        encoder.tokens.adapt(batch[keys.OBSERVATION])
        played.append(batch)
        seen.append(losses)
    return played, seen


@pytest.mark.parametrize("kind", ENCODERS)
@pytest.mark.parametrize("name", WORKS)
def test_it_works(name, kind):
    env = WORKS[name].in_trials()
    played, seen = learn(env, kind)
    for batch, losses in zip(played, seen, strict=True):
        assert abs(losses["mean_ratio"].item() - 1) <= 1e-5
        assert all(value.isfinite().all() for value in losses.values())
        # What is remembered is what was executed, and within the action spec.
        spec = env.action_spec
        executed = batch[keys.ACTION].to(torch.float32)
        if hasattr(spec.space, "low"):
            executed = executed.clamp(spec.space.low.unsqueeze(-2), spec.space.high.unsqueeze(-2)).to(torch.float32)
        assert torch.equal(batch["next", keys.PREV_ACTION], executed)


def test_all_inputs_are_a_table():
    assert len(WORKS) + len(REFUSED) >= 40


@pytest.mark.parametrize("kind", ENCODERS)
@pytest.mark.parametrize("name", REFUSED)
def test_it_is_refused(name, kind):
    with pytest.raises(MismatchError) as refused:
        learn(REFUSED[name].in_trials(), kind)
    assert str(refused.value) == SAID[name]
