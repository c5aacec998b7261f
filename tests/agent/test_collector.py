"""The lean rollout against TorchRL's own: the same batches, bit for bit, and whatever comes after them."""

import pytest
import torch
from torchrl.collectors import Collector
from torchrl.envs import GymEnv, TransformedEnv
from torchrl.envs.utils import ExplorationType

from htrmrl_torchrl import TrialTransform, keys, make_env
from htrmrl_torchrl.agent.acting import Acting
from htrmrl_torchrl.agent.collector import TrialCollector
from htrmrl_torchrl.agent.networks import build_networks
from htrmrl_torchrl.envs.trial import TrialEnv
from htrmrl_torchrl.faults import NonFiniteError
from htrmrl_torchrl.inspection.hook import watch

K, H = 3, 6
CASES = {
    "htrmrl": {},
    "trmrl": {"encoder_kind": "trmrl"},
    "rl2": {"encoder_kind": "rl2"},
    "mlp": {"encoder_kind": "mlp"},
    "full": {"attention": "full", "norm": "tfixup"},
    "one episode": {"episodes": 1},
    "odd heads": {"d_model": 24, "num_heads": 3, "intra_layers": 3, "inter_layers": 1},
    "separate": {"critic_kind": "separate", "value_norm": True},
    "separate rl2": {"encoder_kind": "rl2", "critic_kind": "separate"},
    "single step": {"critic_kind": "single_step", "observe_token": True},
    "dependent": {"std": "dependent"},
    "film": {"observe_token": True, "film": True},
    "dropout": {"dropout": 0.5},
    "lane": {"scope": "lane", "max_episodes": 5},
    **{
        strategy: {"strategy": strategy} for strategy in ("recent", "uniform_last", "best_return", "diverse", "similar")
    },
}


def collector_of(kind, case=None, *, frames=K * H, workers=0, **settings):
    torch.manual_seed(0)
    env = make_env("toy", num_envs=4, horizon=H, episodes_per_trial=K, seed=3, num_workers=workers)
    networks = build_networks(observation_dim=3, action_low=[-1.0] * 2, action_high=[1.0] * 2, seed=1, **(case or {}))
    settings = {"policy_device": "cpu", "env_device": "cpu", "storing_device": "cpu"} | settings
    collector = kind(
        env, networks.policy, frames_per_batch=4 * frames, auto_register_policy_transforms=False, **settings
    )
    return collector, networks


def disturb(networks, batch):
    """What an update does to what acts."""
    with torch.no_grad():
        for parameter in networks.policy.parameters():
            parameter += 0.01 * torch.randn_like(parameter)
        networks.encoder.tokens.adapt(batch[keys.OBSERVATION])


def assert_equal(received, expected):
    assert received.batch_size == expected.batch_size
    assert received.names == expected.names and received.device == expected.device
    assert set(map(str, received.keys(True, True))) == set(map(str, expected.keys(True, True)))
    for key, value in expected.items(True, True):
        assert received[key].dtype == value.dtype and torch.equal(received[key], value), key


def play(kind, case, batches=3, **settings):
    """Batches with weight updates between, what the environment shows then, what is remembered, and random numbers."""
    collector, networks = collector_of(kind, case, **settings)
    played = []
    for _, batch in zip(range(batches), collector.iterator(), strict=False):
        played.append(batch)
        disturb(networks, batch)
    shown = collector._carrier.select(*collector.env.observation_spec.keys(), "done", "collector", strict=False)
    remembered = networks.memory.checkpoint_state()
    collector.shutdown()
    return [*played, shown], remembered, torch.get_rng_state()


@pytest.mark.parametrize("frames", [K * H, 10])  # whole trials; trials that batches cut
@pytest.mark.parametrize("case", CASES)
def test_batches_are_those_of_torchrl(case, frames):
    received, expected = (play(kind, CASES[case], frames=frames) for kind in (TrialCollector, Collector))
    for one, other in zip(received[0], expected[0], strict=True):
        assert_equal(one, other)
    assert str(received[1]) == str(expected[1])
    assert torch.equal(received[2], expected[2])


@pytest.mark.parametrize(
    "settings",
    [
        {"workers": 2},
        {"exploration_type": ExplorationType.DETERMINISTIC},
        {"track_traj_ids": False},
        {"policy_device": None, "env_device": None, "storing_device": None},
    ],
    ids=str,
)
def test_so_they_are_with_other_settings(settings):
    received, expected = (play(kind, {}, frames=10, **settings) for kind in (TrialCollector, Collector))
    for one, other in zip(received[0], expected[0], strict=True):
        assert_equal(one, other)


def steps_through_tensordicts(monkeypatch, collector):
    """How many of a batch's steps go through the environment's `step`."""
    steps, plain = [], TrialEnv._step

    def counted(self, tensordict):
        steps.append(1)
        return plain(self, tensordict)

    monkeypatch.setattr(TrialEnv, "_step", counted)
    next(collector.iterator())
    return len(steps)


def test_a_lean_rollout_makes_no_step_through_tensordicts(monkeypatch):
    collector, networks = collector_of(TrialCollector)
    assert steps_through_tensordicts(monkeypatch, collector) == 0
    networks.policy.module[2].register_forward_hook(lambda *_: None)  # somebody looks on, if only at the critic
    assert steps_through_tensordicts(monkeypatch, collector) == K * H


def test_whoever_looks_on_sees_every_step():
    lean, networks = collector_of(TrialCollector)
    with watch(networks.encoder) as seen:
        batch = next(lean.iterator())
    assert len(seen) == K * H
    assert_equal(batch, next(collector_of(TrialCollector)[0].iterator()))


def test_an_environment_or_encoder_of_ones_own_is_played_as_torchrl_does():
    env = TransformedEnv(GymEnv("Pendulum-v1"), TrialTransform(episodes_per_trial=2))
    networks = build_networks(observation_dim=3, action_low=[-2.0], action_high=[2.0])
    collector = TrialCollector(env, networks.policy, frames_per_batch=20, auto_register_policy_transforms=False)
    assert next(collector.iterator()).shape == (20,)
    assert Acting.of(networks.policy) is not None
    assert Acting.of(networks.actor) is None  # without a memory
    networks.encoder.__class__ = type("Own", (type(networks.encoder),), {})
    assert Acting.of(networks.policy) is None
    collector.shutdown()


class Left(BaseException):
    pass


def test_an_interrupted_rollout_leaves_at_once_and_goes_on_from_there():
    """The signal handler's hook: nothing is lost or lived twice."""
    collector, networks = collector_of(TrialCollector)
    whole, _ = collector_of(TrialCollector, frames=2 * K * H)
    torch.manual_seed(1)
    expected = next(whole.iterator())
    calls = []

    def leave(*_):
        calls.append(1)
        if len(calls) == 8:
            raise Left

    networks.encoder.register_forward_pre_hook(leave)
    torch.manual_seed(1)
    with pytest.raises(Left):
        next(collector.iterator())
    assert len(calls) == 8  # seven steps were played
    received = next(collector.iterator())
    for key in (keys.OBSERVATION, keys.ACTION, keys.LOG_PROB, keys.STATE_VALUE, keys.EPISODE, keys.WINDOW_CURRENT):
        assert torch.equal(received[key], expected[key][:, 7 : 7 + K * H]), key


def test_a_fault_names_its_lane_and_the_next_batch_is_of_new_trials():
    collector, networks = collector_of(TrialCollector)
    step, calls = collector.env._lanes.step, []

    def spoilt(actions):
        observation, reward, success = step(actions)
        calls.append(1)
        if len(calls) == 8:
            observation[2, 1] = float("nan")
        return observation, reward, success

    collector.env._lanes.step = spoilt
    with pytest.raises(NonFiniteError, match=r"^observation is not finite in environment 2 \(nan\)"):
        next(collector.iterator())
    assert len(calls) == 8
    collector.reset()
    networks.memory.forget()
    batch = next(collector.iterator())
    assert batch[keys.TRIAL_INIT][:, 0].all() and batch[keys.OBSERVATION].isfinite().all()


def test_actions_that_are_not_finite_reach_no_simulator():
    collector, networks = collector_of(TrialCollector)
    stepped, step = [], collector.env._lanes.step
    collector.env._lanes.step = lambda actions: stepped.append(1) or step(actions)
    with torch.no_grad():
        next(module for module in networks.actor.modules() if isinstance(module, torch.nn.Linear)).weight[:] = torch.inf
    with pytest.raises(NonFiniteError, match=r"^action is not finite in environments 0 .*, 3 "):
        next(collector.iterator())
    assert not stepped
