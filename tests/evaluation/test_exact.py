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
from htrmrl_torchrl.evaluation import ExactPolicy, play_trials
from htrmrl_torchrl.evaluation.exact import GRID
from htrmrl_torchrl.networks import acting_policy, build_networks, load_networks
from tests.copies import WAYS
from tests.evaluation.test_trials import networks_for_toy

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


def test_another_order_of_addition_makes_no_other_trial():
    networks = load_networks(REACH)
    exact, single = [], []
    for of in (networks, added_in_another_order(networks)):
        exact.append(evaluate(of, "ML1:reach-v3", **TRIAL))
        single.append(evaluate(acting_policy(of), "ML1:reach-v3", **TRIAL))  # a policy is played as it is
    assert exact[0].returns.tolist() == exact[1].returns.tolist()
    assert single[0].returns.tolist() != single[1].returns.tolist()


PLAY = """
import json, sys
from htrmrl_torchrl import evaluate
from htrmrl_torchrl.networks import acting_policy, load_networks
path, trial = sys.argv[1], json.loads(sys.argv[2])
reports = [evaluate(agent, "ML1:reach-v3", **trial) for agent in (path, acting_policy(load_networks(path)))]
json.dump([report.returns.tolist() for report in reports], sys.stdout)
"""


def played_in_a_process(**environment):
    done = subprocess.run(
        [sys.executable, "-c", PLAY, str(REACH), json.dumps(TRIAL)],
        capture_output=True,
        text=True,
        timeout=300,
        env={**os.environ, **environment},
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.mark.skipif(torch.backends.cpu.get_cpu_capability() == "DEFAULT", reason="this processor is an old one already")
def test_an_older_processor_plays_the_same_trials():
    """Torch and its linear algebra without vector instructions of the last fifteen years, and with two threads."""
    exact, single = played_in_a_process()
    older = {"ATEN_CPU_CAPABILITY": "default", "MKL_ENABLE_INSTRUCTIONS": "SSE4_2", "OMP_NUM_THREADS": "2"}
    exact_of_older, single_of_older = played_in_a_process(**older)
    assert exact_of_older == exact
    assert single_of_older != single


@pytest.mark.parametrize(
    "settings",
    [{}, {"encoder_kind": "trmrl"}, {"encoder_kind": "rl2"}, {"encoder_kind": "mlp"}, {"attention": "full"},
     {"std": "dependent", "observe_token": True}, {"strategy": "similar"}],
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
        returns.append(play_trials(policy, env, adaptation_episodes=3)["return"])
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
