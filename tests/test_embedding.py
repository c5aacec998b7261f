"""What users hand to the embedding layer works with every encoder, or is refused in one sentence that names the fix."""

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium.spaces import Box, Discrete
from tensordict import TensorDict
from tensordict.nn import TensorDictSequential
from torchrl.collectors import Collector
from torchrl.envs import ActionScaling, SerialEnv, TransformedEnv

from htrmrl_torchrl import (
    EpisodicMemory,
    EpisodicReplayBuffer,
    EpisodicStorage,
    HierarchicalEncoder,
    HTrMRLAgent,
    MemorylessEncoder,
    NormalizedClipPPOLoss,
    RecurrentEncoder,
    RecurrentMemory,
    TrialGAE,
    TrialTransform,
    final_values,
    keys,
    make_actor_critic,
)
from htrmrl_torchrl.agent.networks import build_networks
from htrmrl_torchrl.specs import MismatchError
from tests.inputs import REFUSED, SAID, WORKS, Noted, Row, noted, scaled, then

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


@pytest.mark.parametrize("kind", [ENCODERS[0], *(pytest.param(kind, marks=pytest.mark.slow) for kind in ENCODERS[1:])])
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


def made_by(env, encoder, memory):
    return make_actor_critic(encoder=encoder, memory=memory, action_spec=env.action_spec)[0]


@pytest.mark.parametrize("kind", ENCODERS)
def test_a_forgotten_trial_transform_is_named(kind):
    env = noted()()
    with pytest.raises(MismatchError) as refused:
        made_by(env, *parts(env, kind))(env.reset())
    assert str(refused.value) == (
        "The environment gives no 'prev_action', 'prev_reward', 'is_init', 'trial_init': append a TrialTransform, "
        "TransformedEnv(env, TrialTransform(episodes_per_trial=...))."
    )


@pytest.mark.parametrize("kind", ENCODERS)
def test_an_encoder_of_other_sizes_is_named(kind):
    env = Row(noted()).in_trials()
    policy = made_by(env, *parts(Row(noted(Box(-1, 1, (3,)))).in_trials(), kind))
    by_size = "'observation' has size 2 and the encoder was built for 3; build it with observation_dim=2."
    by_token = (
        "Tokens have size 5 and the encoder was built for observation_dim=3 and action_dim=1, for 6; build it with the "
        "sizes of the environment's observation and action."
    )
    with pytest.raises(MismatchError) as refused:
        policy(env.reset())
    assert str(refused.value) == (by_token if kind == "mlp" else by_size)


@pytest.mark.parametrize("kind", ENCODERS)
def test_batches_of_one_frame_are_learned_from(kind):
    """Also where it ends no episode; there is nothing to compare its advantage with."""
    played, seen = learn(Row(noted()).in_trials(), kind, frames=1, batches=4)
    assert [batch.batch_size for batch in played] == [(1,)] * 4
    assert all(value.isfinite().all() for losses in seen for value in losses.values())
    assert all(losses["loss_objective"] == 0 and losses["loss_critic"] > 0 for losses in seen)


@pytest.mark.parametrize("kind", ENCODERS)
def test_several_batch_axes_are_refused_by_name(kind):
    row = Row(lambda: SerialEnv(2, lambda: SerialEnv(3, noted())))
    with pytest.raises(MismatchError) as refused:
        learn(row.in_trials(), kind)
    assert str(refused.value) == (
        "A batch must be [N, T], one row per environment, or [T]; received [2, 3, 2]; use batch.flatten(0, 1)."
    )
    with pytest.raises(MismatchError, match=r"received \[2, 3, 2\]; use batch.flatten\(0, 1\)"):
        TrialGAE()(TensorDict(batch_size=[2, 3, 2]))


@pytest.mark.parametrize("kind", ENCODERS)
def test_what_the_environment_cannot_see_the_buffer_sees(kind):
    """A transform behind lanes that are in trials already."""
    lanes = SerialEnv(2, Row(noted()).in_trials)
    with pytest.raises(MismatchError, match="put TrialTransform last, behind all that change them"):
        learn(TransformedEnv(lanes, scaled()), kind)
    learn(lanes, kind)  # the control


def test_a_token_keeps_fractions_beside_whole_numbers():
    row = Row(noted(Box(4, 7, (2,), np.uint8), reward=lambda action: 0.9))
    env = row.in_trials()
    step = env.step(env.reset().set(keys.ACTION, torch.tensor([0.7])))["next"]
    token = EpisodicMemory(window=1, episodes=1)(step)[keys.CURRENT]
    whole = step[keys.OBSERVATION].tolist()
    assert torch.equal(token, torch.tensor([[*whole, 0.7, 0.9, 0.0]]))


def test_of_one_hot_actions_the_executed_one_is_remembered():
    """An actor of the user's own may write scores."""
    env = Row(noted(Box(-1, 1, (2,)), Discrete(3))).in_trials()
    step = env.step(env.reset().set(keys.ACTION, torch.tensor([0.2, -1.0, 0.7])))
    assert env.base_env.executed == 2
    assert step["next", keys.PREV_ACTION].tolist() == [0.0, 0.0, 1.0]


def test_scaled_actions_are_remembered_as_the_spec_says():
    env = then(noted(Box(-1, 1, (2,)), Box(-4, 4, (1,))), lambda: ActionScaling(loc=0.0, scale=4.0))()
    env = TransformedEnv(env, TrialTransform(episodes_per_trial=2))
    step = env.step(env.reset().set(keys.ACTION, torch.tensor([0.5])))
    assert env.base_env.executed == 2.0 and step["next", keys.PREV_ACTION].item() == 0.5


@pytest.mark.parametrize(
    ("encoder", "memory", "message"),
    [
        ("rl2", "mlp", "RecurrentEncoder cannot read the context of a EpisodicMemory"),
        ("htrmrl", "rl2", "HierarchicalEncoder cannot read the context of a RecurrentMemory"),
        ("htrmrl", "mlp", "window=1 and episodes=1, but the encoder was built for window=2 and episodes=3"),
        ("htrmrl", "htrmrl", "built with another encoder than the actor or critic"),
        ("rl2", "rl2", "built with another encoder than the actor or critic"),
    ],
)
def test_the_memory_of_another_encoder_is_refused(encoder, memory, message):
    env = Row(noted()).in_trials()
    with pytest.raises(MismatchError, match=message):
        made_by(env, parts(env, encoder)[0], parts(env, memory)[1])


def test_an_agent_refuses_a_single_environment_that_resets_in_the_next_step():
    agent = HTrMRLAgent(build_networks(observation_dim=2, action_low=[-1], action_high=[1], d_model=8))
    agent.check_env(Noted())
    with pytest.raises(ValueError, match="a single environment without the wrapper Autoreset"):
        agent.check_env(gym.wrappers.TimeLimit(gym.wrappers.Autoreset(Noted()), 5))


@pytest.mark.parametrize(
    ("low", "high", "message"),
    [
        ([-1.0], [1.0, 1.0], "action_low has 1 bounds and action_high 2"),
        ([float("nan")], [1.0], r"bounds from \[nan\] to \[1.0\]"),
        ([1.0], [-1.0], r"bounds from \[1.0\] to \[-1.0\]"),
    ],
)
def test_networks_of_no_bounds_are_refused(low, high, message):
    with pytest.raises(MismatchError, match=message):
        build_networks(observation_dim=2, action_low=low, action_high=high)
