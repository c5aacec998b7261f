"""Running statistics are those of all observations, whatever the batches; only observations and rewards are touched."""

import pytest
import torch

from htrmrl_torchrl.agent.networks import build_networks
from htrmrl_torchrl.encoders.tokens import SMALLEST_STD, TokenNormalizer
from tests.helpers import assert_same, differ


def observations(count=1000):
    torch.manual_seed(0)
    return torch.randn(count, 3, dtype=torch.float64) * torch.tensor([0.2, 1.0, 30.0]) + torch.tensor([0.0, 5.0, -80.0])


def normalizer(reward_scale=0.1):
    return TokenNormalizer(observation_dim=3, action_dim=2, reward_scale=reward_scale).double()


@pytest.mark.parametrize("sizes", [[1000], [1, 999], [500, 500], [3, 17, 480, 500]])
def test_statistics_are_those_of_all_that_was_seen(sizes):
    tokens = normalizer()
    for part in observations().split(sizes):
        tokens.adapt(part)
    assert_same(tokens.mean, observations().mean(0), 1e-10)
    assert_same(tokens.std, observations().std(0, correction=0), 1e-10)
    assert tokens.count == 1000


def test_shapes_before_the_last_axis_do_not_matter():
    flat, shaped = normalizer(), normalizer()
    flat.adapt(observations())
    shaped.adapt(observations().view(10, 20, 5, 3))
    assert_same(shaped.mean, flat.mean, 1e-12)
    assert_same(shaped.variance, flat.variance, 1e-12)


def test_nothing_is_changed_before_the_first_call_but_the_reward():
    token = torch.randn(7, 7, dtype=torch.float64)
    expected = token.clone()
    expected[:, -2] *= 0.25
    assert torch.equal(normalizer(reward_scale=0.25)(token), expected)


def test_action_reward_and_flag_are_left_alone_afterwards():
    tokens = normalizer()
    token = torch.randn(7, 7, dtype=torch.float64)
    before = tokens(token)
    tokens.adapt(observations())
    assert torch.equal(tokens(token)[:, 3:], before[:, 3:])
    assert differ(tokens(token)[:, :3], before[:, :3])
    seen = torch.cat([observations(), torch.zeros(1000, 4)], 1)
    assert_same(tokens(seen)[:, :3].mean(0), torch.zeros(3), 1e-10)
    assert_same(tokens(seen)[:, :3].std(0, correction=0), torch.ones(3), 1e-10)


def test_what_hardly_varies_is_not_blown_up_and_what_rests_is_only_shifted():
    tokens = TokenNormalizer(observation_dim=3, action_dim=2, reward_scale=1.0)
    seen = torch.stack([torch.full((100,), 0.7), torch.linspace(-1, 1, 100) * SMALLEST_STD / 10, torch.zeros(100)], 1)
    tokens.adapt(seen)
    assert_same(tokens.std, torch.tensor([1.0, SMALLEST_STD, 1.0]))
    assert_same(tokens.mean, torch.tensor([0.7, 0.0, 0.0]))


def test_statistics_are_saved_and_the_reward_scale_is_not():
    tokens, other = normalizer(), normalizer(reward_scale=0.5)
    tokens.adapt(observations())
    other.load_state_dict(tokens.state_dict())
    assert torch.equal(other.mean, tokens.mean) and torch.equal(other.variance, tokens.variance)
    assert other.count == 1000 and other.rest[-2] == 0.5


@pytest.mark.parametrize("kind", ["htrmrl", "trmrl", "rl2", "mlp"])
def test_actor_and_critic_share_what_adapts(kind):
    networks = build_networks(
        observation_dim=3, action_low=[-1.0], action_high=[1.0], encoder_kind=kind, critic_kind="separate"
    )
    networks.encoder.tokens.adapt(observations().float())
    found = {id(module) for part in networks[:3] for module in part.modules() if isinstance(module, TokenNormalizer)}
    assert found == {id(networks.encoder.tokens)}
