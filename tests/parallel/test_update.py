"""Several ranks play what one process plays, and their first update is its: batches, losses, gradients."""

import numpy as np
import pytest
import torch

from htrmrl_torchrl import evaluate
from htrmrl_torchrl.agent.networks import build_networks
from htrmrl_torchrl.ppo.gradients import differentiate, differentiate_share
from htrmrl_torchrl.ppo.update import Learner, update
from recipes.configuration.compose import load_config
from recipes.configuration.environment import training_environment
from recipes.configuration.parts import (
    advantages,
    agent_arguments,
    collector_of,
    ppo_loss,
    replay_buffer,
    reward_normalizer,
)
from recipes.configuration.together import joined
from tests.helpers import assert_same, networks_for_toy
from tests.parallel.processes import in_ranks

TINY = ["env.num_envs=6", "loss.minibatch_frames=66", "loss.bootstrap=true", "loss.reward_norm=true"]
# 6 lanes * 4 episodes * 6 steps; minibatches of 66 frames of 144, so that the last is smaller.
CASES = {
    "htrmrl": [],
    "segments of several lengths": ["loss.segment_frames=4", "loss.minibatch_frames=64"],
    "recurrent": ["encoder=rl2", "encoder.d_model=8", "loss.segment_frames=11", "critic.kind=separate"],
    "memoryless, std of the context": ["encoder=mlp", "policy.std=dependent", "loss.entropy_coeff=0.01"],
    "across trials": ["memory.scope=lane", "memory.max_episodes=6", "memory.strategy=uniform"],
    "not lean": ["critic.kind=single_step"],
}


class Run:
    """What a recipe builds, up to the first batches and updates."""

    def __init__(self, overrides, ranks):
        config = load_config("toy_ppo", [*TINY, *overrides])
        torch.manual_seed(config.seed)
        share = ranks.share(config.env.num_envs)
        env = training_environment(config, share)
        self.networks = networks = build_networks(**agent_arguments(config, env))
        self.loss = ppo_loss(config, networks)
        self.env, self.memory = joined(env, networks, ranks, lanes=config.env.num_envs)
        self.buffer = replay_buffer(config, networks)
        self.learner = Learner(
            networks=networks, loss=self.loss, optimizer=torch.optim.Adam(self.loss.parameters(), lr=1e-3),
            advantages=advantages(config), buffer=self.buffer, rewards=reward_normalizer(config), epochs=2,
            target_kl=None, max_grad_norm=1.0, normalize_observations=True, ranks=ranks,
        )  # fmt: skip
        self.collector = collector_of(config, env, networks, share)
        self.batches = self.collector.iterator()

    def gradients(self):
        return {name: p.grad for name, p in self.loss.named_parameters() if p.grad is not None}


def play_and_learn(cases, ranks):
    """By case: two batches, metrics of their updates, a minibatch's losses and gradients, states, random numbers."""
    return {case: _play_and_learn(CASES[case], case == "not lean", ranks) for case in cases}


def _play_and_learn(overrides, hooked, ranks):
    run = Run(overrides, ranks)
    if hooked:  # whoever looks on makes it TorchRL's own rollout
        run.networks.actor.register_forward_hook(lambda *_: None)
    batches, metrics, first = [], [], None
    for _ in range(2):
        batches.append(ranks.join(next(run.batches)).clone())
        run.buffer.empty()
        frames = run.buffer.extend(batches[-1])
        metrics.append(update(run.learner, batches[-1], frames, learning_rate=1e-3).metrics)
        run.collector.update_policy_weights_()
        if first is None:
            minibatch = next(iter(run.buffer))
            first = _terms(run, minibatch, ranks), run.gradients()
    states = run.env.checkpoint_state(), run.memory.checkpoint_state()
    run.collector.shutdown()
    return batches, metrics, first, states, torch.rand(3)


def _terms(run, minibatch, ranks):
    run.learner.optimizer.zero_grad(set_to_none=True)
    if ranks.size == 1:
        return differentiate(run.loss, minibatch)
    return differentiate_share(run.loss, minibatch, ranks)


def assert_alike(received, expected):
    """Integers, flags and strings are equal, floats to 1e-5 of max(1, |x|)."""
    assert type(received) is type(expected)
    if isinstance(expected, torch.Tensor):
        assert received.dtype == expected.dtype
        if expected.is_floating_point():
            assert_same(received, expected)
        else:
            assert torch.equal(received, expected)
    elif isinstance(expected, dict):
        assert received.keys() == expected.keys()
        for name, value in expected.items():
            assert_alike(received[name], value)
    elif isinstance(expected, list | tuple):
        assert len(received) == len(expected)
        for pair in zip(received, expected, strict=True):
            assert_alike(*pair)
    elif isinstance(expected, float):
        assert received == pytest.approx(expected, rel=1e-5, abs=1e-5)
    else:
        assert received == expected


def evaluated(ranks):
    """A report of two rounds of trials on three environments, with both kinds of actions and the gain from memory."""
    networks = networks_for_toy(strategy="uniform")
    return evaluate(
        networks, "toy", split="val", goals_per_task=4, adaptation_episodes=2, num_envs=3, memory_gain=True, ranks=ranks
    )


def all_of_it(ranks):
    return play_and_learn([*CASES], ranks), evaluated(ranks)


@pytest.fixture(scope="module")
def alone():
    return in_ranks(1, all_of_it)


def assert_exactly(received, expected):
    assert received.keys() == expected.keys()
    for name, value in expected.items():
        assert np.array_equal(received[name], value, equal_nan=isinstance(value, np.ndarray)), name


@pytest.mark.parametrize("size", [2, pytest.param(4, marks=pytest.mark.slow)])
def test_ranks_play_and_learn_as_one_process(size, alone):
    together, report = in_ranks(size, all_of_it)
    assert_exactly(vars(report), vars(alone[1]))
    for case, (batches, metrics, first, states, drawn) in alone[0].items():
        others = together[case]
        assert torch.equal(others[4], drawn), case
        for batch, other in zip(batches, others[0], strict=True):
            names = {name for name in batch.keys(True, True) if name != ("collector", "traj_ids")}
            assert names | {("collector", "traj_ids")} == {*other.keys(True, True)} | {("collector", "traj_ids")}
            for name in names:
                assert_alike(other[name], batch[name])
        for (losses, gradients), (other_losses, other_gradients) in [(first, others[2])]:
            assert gradients.keys() == other_gradients.keys() and gradients
            for name, term in other_losses.items():
                assert_alike(term, losses[name].detach())
            for name, gradient in gradients.items():
                assert_same(other_gradients[name], gradient)
        assert_alike(others[1], metrics)
        assert_alike(others[3], states)
