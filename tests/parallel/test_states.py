"""The saved states of several processes joined are that of one, and each gets its own back."""

import pytest
import torch

from htrmrl_torchrl import keys, make_env
from htrmrl_torchrl.agent.noise import noise_of, sampling_of
from htrmrl_torchrl.envs import shares as env_shares
from htrmrl_torchrl.envs.shares import LaneShare
from htrmrl_torchrl.memory import shares as memory_shares
from tests.helpers import networks_for_toy

SHARES = [LaneShare(0, 2, 5), LaneShare(2, 1, 5), LaneShare(3, 2, 5)]
K, HORIZON = 3, 4


def played(share, *, trials=1, **choices):
    """An environment and a memory after so many trials of idle lanes, at the start of the next."""
    env = make_env("toy", num_envs=5, horizon=HORIZON, episodes_per_trial=K, seed=3, share=share)
    memory = networks_for_toy(strategy="uniform", **choices).memory
    memory.first_lane = 0 if share is None else share.first
    row = env.reset()
    for _ in range(trials * K * HORIZON):
        memory(row.copy())
        after = env.step(row.set(keys.ACTION, torch.ones(*env.batch_size, 2)))["next"]
        row = env.maybe_reset(after.exclude(keys.REWARD, keys.SUCCESS))
    return env, memory


def assert_equal(received, expected):
    if isinstance(expected, dict):
        assert received.keys() == expected.keys()
        for name, value in expected.items():
            assert_equal(received[name], value)
    elif isinstance(expected, torch.Tensor):
        assert torch.equal(received, expected)
    else:
        assert received == expected


@pytest.mark.parametrize("choices", [{}, {"scope": "lane", "max_episodes": 4}], ids=str)
def test_states_of_shares_join_to_that_of_all_and_split_again(choices):
    (env, memory), parts = played(None, **choices), [played(share, **choices) for share in SHARES]
    for whole, own, of in (
        (env, [part for part, _ in parts], env_shares),
        (memory, [part for _, part in parts], memory_shares),
    ):
        states = [part.checkpoint_state() for part in own]
        assert_equal(of.join_states(states), whole.checkpoint_state())
        for share, state in zip(SHARES, states, strict=True):
            assert_equal(of.share_of_state(whole.checkpoint_state(), share), state)
    assert len({str(part.checkpoint_state()) for _, part in parts}) == 3  # else anything could be joined


def test_what_has_not_begun_and_what_is_of_other_lanes():
    states = [make_env("toy", num_envs=5, share=share).checkpoint_state() for share in SHARES]
    whole = make_env("toy", num_envs=5).checkpoint_state()
    assert_equal(env_shares.join_states(states), whole)
    memory = networks_for_toy().memory.checkpoint_state()
    assert memory_shares.join_states([memory, memory]) == memory == memory_shares.share_of_state(memory, SHARES[1])
    with pytest.raises(ValueError, match=r"this run has 6"):
        env_shares.share_of_state(whole, LaneShare(0, 3, 6))


def test_an_environment_of_a_share_says_what_it_cannot_do():
    with pytest.raises(ValueError, match=r"share must be a block of the num_envs \(4\) environments"):
        make_env("toy", num_envs=4, share=SHARES[2])
    with pytest.raises(ValueError, match="takes no share"):
        make_env("tests.faulty:factory", num_envs=5, share=SHARES[0])
    env = make_env("toy", num_envs=5, share=SHARES[0])
    env.reset()
    with pytest.raises(RuntimeError, match="begin trials together"):
        env._deck.deal([1])


def test_noise_is_that_of_all_lanes_in_a_policy_too():
    networks = networks_for_toy()
    row = make_env("toy", num_envs=5).reset()
    torch.manual_seed(4)
    whole = networks.policy(row.copy())
    networks.memory.restart()
    torch.manual_seed(4)
    before = networks.actor.module[-1].distribution_class
    with sampling_of(SHARES[1], networks.policy):
        own = networks.policy(SHARES[1].of(row).copy())
    assert networks.actor.module[-1].distribution_class is before
    for key in (keys.ACTION, keys.LOG_PROB):
        torch.testing.assert_close(own[key], SHARES[1].of(whole[key]))
    assert noise_of(None) is torch.randn_like
