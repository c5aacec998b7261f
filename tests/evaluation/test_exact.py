"""Machines that add in other orders play the same trials; in float32, as a control, they don't."""

import copy
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

from htrmrl_torchrl import HTrMRLAgent, evaluate, keys, make_env
from htrmrl_torchrl.agent.networks import acting_policy, build_networks, load_networks
from htrmrl_torchrl.evaluation import ExactPolicy, goal_grid, play_trials
from htrmrl_torchrl.evaluation.exact import GRID
from tests.copies import WAYS
from tests.evaluation.test_trials import networks_for_toy
from tests.helpers import rules

REACH = Path(__file__).resolve().parents[2] / "results" / "baselines_ml1" / "htrmrl_seed1.torchrl"
TRIAL = {"split": "test", "goals_per_task": 2, "adaptation_episodes": 1, "horizon": 50}


def added_in_another_order(networks):
    """The same function: the hidden units of the actor's head change places."""
    twin = copy.deepcopy(networks)
    first, second = [module for module in twin.actor.modules() if isinstance(module, nn.Linear)][-3:-1]
    order = torch.randperm(len(first.weight), generator=torch.Generator().manual_seed(0))
    first.weight.data, first.bias.data = first.weight.data[order], first.bias.data[order]
    second.weight.data = second.weight.data[:, order]
    return twin


def rounded_otherwise(policy):
    """As on another machine: each layer's output and each action is one unit in its last place nearer to zero."""

    def one_place(_module, _inputs, output):
        return torch.nextafter(output, torch.zeros_like(output))

    def in_its_action(_module, _inputs, output):
        return output.set(keys.ACTION, torch.nextafter(output[keys.ACTION], torch.zeros_like(output[keys.ACTION])))

    for module in policy.modules():
        if isinstance(module, nn.Linear):
            module.register_forward_hook(one_place)
    policy.register_forward_hook(in_its_action)
    return policy


def executed_actions(policy):
    """``[steps, goals, actions]`` of the same trials."""
    actions = []
    policy.register_forward_hook(lambda _module, _inputs, output: actions.append(output[keys.ACTION].clone()))
    pairs = goal_grid(num_tasks=1, goals_per_task=TRIAL["goals_per_task"])
    episodes = TRIAL["adaptation_episodes"] + 1
    env = make_env("ML1:reach-v3", split="test", num_envs=2, pairs=pairs, episodes_per_trial=episodes, horizon=50)
    play_trials(policy, env, rules(TRIAL["adaptation_episodes"]))
    return torch.stack(actions)


def test_another_order_of_addition_makes_no_other_trial():
    networks = load_networks(REACH)
    expected = evaluate(networks, "ML1:reach-v3", **TRIAL).returns.tolist()
    assert evaluate(added_in_another_order(networks), "ML1:reach-v3", **TRIAL).returns.tolist() == expected
    # Whether float32 shows another order depends on the processor; so the control puts the difference in itself.
    other = ExactPolicy(rounded_otherwise(acting_policy(copy.deepcopy(networks))))
    assert evaluate(other, "ML1:reach-v3", **TRIAL).returns.tolist() == expected


def test_without_the_grid_another_rounding_makes_other_trials():
    """The control: the same difference, in the last places of float32."""
    networks = load_networks(REACH)

    def both(wrap):
        policies = (acting_policy(copy.deepcopy(networks)), rounded_otherwise(acting_policy(copy.deepcopy(networks))))
        return [executed_actions(wrap(policy)) for policy in policies]

    single, other = both(wrap=lambda policy: policy)
    assert not torch.equal(single[0], other[0])  # from the first step on
    exact, other = both(wrap=ExactPolicy)
    assert torch.equal(exact, other)


PLAY = """
import json, sys, torch
from htrmrl_torchrl import evaluate
path, trial = sys.argv[1], json.loads(sys.argv[2])
returns = evaluate(path, "ML1:reach-v3", **trial).returns.tolist()
json.dump([returns, torch.backends.cpu.get_cpu_capability(), torch.get_num_threads()], sys.stdout)
"""


def test_an_older_processor_plays_the_same_trials():
    """Torch and its linear algebra without vector instructions of the last fifteen years, and with two threads."""
    older = {"ATEN_CPU_CAPABILITY": "default", "MKL_ENABLE_INSTRUCTIONS": "SSE4_2"} | dict.fromkeys(
        ("OMP_NUM_THREADS", "MKL_NUM_THREADS"), "2"
    )
    done = subprocess.run(
        [sys.executable, "-c", PLAY, str(REACH), json.dumps(TRIAL)],
        capture_output=True,
        text=True,
        timeout=300,
        env={**os.environ, **older},
    )
    assert done.returncode == 0, done.stderr
    returns, capability, threads = json.loads(done.stdout)
    assert (capability, threads) == ("DEFAULT", 2)  # the settings were obeyed
    assert returns == evaluate(REACH, "ML1:reach-v3", **TRIAL).returns.tolist()


@pytest.mark.parametrize(
    "settings",
    [{}, {"encoder_kind": "trmrl"}, {"encoder_kind": "rl2"}, {"encoder_kind": "mlp"}, {"attention": "full"},
     {"std": "dependent", "observe_token": True}, {"observe_token": True, "film": True}, {"strategy": "similar"}],
    ids=str,
)  # fmt: skip
def test_it_is_the_policy_but_for_the_last_digits_and_the_grid(settings):
    networks = build_networks(observation_dim=3, action_low=[-1.0] * 2, action_high=[1.0] * 2, d_model=8, **settings)
    exact, policy = ExactPolicy(acting_policy(copy.deepcopy(networks))), acting_policy(networks)
    env = make_env("toy", num_envs=4, episodes_per_trial=3)
    now, seen = env.reset(), []
    for _ in range(3 * 6):
        torch.manual_seed(0)
        expected = policy(now.clone())[keys.ACTION]
        torch.manual_seed(0)
        action = exact(now.clone())[keys.ACTION]
        assert action.dtype == torch.float32 and torch.equal(action / GRID, (action / GRID).round())
        seen.append((action, expected))
        _, now = env.step_and_maybe_reset(now.set(keys.ACTION, action))
    rounded, raw = (torch.stack(side) for side in zip(*seen, strict=True))
    # Both draw the same uniform numbers, and float32's last places are far below half a step of the grid.
    assert (rounded - raw).abs().max() <= GRID


def test_what_is_trained_stays_in_single_precision():
    networks = networks_for_toy(scope="trial")
    before = {name: value.clone() for name, value in networks.policy.state_dict().items()}
    for agent in (networks, HTrMRLAgent(networks)):
        evaluate(agent, "toy", adaptation_episodes=1)
    after = networks.policy.state_dict()
    assert all(after[name].dtype == value.dtype and torch.equal(after[name], value) for name, value in before.items())


def test_its_memory_is_restarted_as_that_of_the_policy():
    policy, returns = ExactPolicy(acting_policy(networks_for_toy(scope="trial"))), []
    for _ in range(2):
        env = make_env("toy", num_envs=4, episodes_per_trial=4)
        returns.append(play_trials(policy, env, rules(3))["return"])
    assert torch.equal(*returns)


@pytest.mark.parametrize("way", WAYS)
def test_a_copy_goes_on_as_the_original_would(way):
    exact, env = ExactPolicy(acting_policy(networks_for_toy(scope="trial"))), make_env("toy", num_envs=2)
    now = env.reset()
    for _ in range(8):
        _, now = env.step_and_maybe_reset(exact(now))
    copied, fresh = WAYS[way](exact), ExactPolicy(acting_policy(networks_for_toy(scope="trial")))
    actions = []
    for policy in (exact, copied, fresh):
        torch.manual_seed(0)
        actions.append(torch.stack([policy(now.clone())[keys.ACTION] for _ in range(3)]))
    assert torch.equal(actions[0], actions[1]) and not torch.equal(actions[0], actions[2])
