"""TrialTransform on environments of others; its table is in test_trial.py."""

import pytest
import torch
from torchrl.collectors import Collector
from torchrl.data import Composite, Unbounded
from torchrl.envs import GymEnv, ParallelEnv, RenameTransform, SerialEnv, TransformedEnv, check_env_specs

from htrmrl_torchrl.envs import TrialTransform
from tests.helpers import Walk


def pendulum():
    return GymEnv("Pendulum-v1")


def trial_pendulum():
    return TransformedEnv(pendulum(), TrialTransform(episodes_per_trial=3))


@pytest.mark.parametrize(
    "build",
    [
        trial_pendulum,
        lambda: TransformedEnv(SerialEnv(2, pendulum), TrialTransform(episodes_per_trial=3)),
        lambda: SerialEnv(2, trial_pendulum),
        lambda: TransformedEnv(GymEnv("CartPole-v1"), TrialTransform(episodes_per_trial=3)),
    ],
)
def test_specs_are_exact(build):
    check_env_specs(build())


@pytest.mark.slow
@pytest.mark.parametrize("inside", [True, False])
def test_specs_are_exact_in_parallel(inside):
    if inside:
        env = ParallelEnv(2, trial_pendulum, mp_start_method="fork")
    else:
        env = TransformedEnv(ParallelEnv(2, pendulum, mp_start_method="fork"), TrialTransform(episodes_per_trial=3))
    try:
        check_env_specs(env)
    finally:
        env.close(raise_if_closed=False)


def test_a_collector_sees_pendulum_trials():
    """Pendulum is truncated after 200 steps: 3 episodes a trial, 2 trials in 1,200 frames, through a real collector."""
    collector = Collector(trial_pendulum(), None, frames_per_batch=1200, total_frames=1200)
    (batch,) = list(collector)
    starts = batch["is_init"].flatten().nonzero().flatten().tolist()
    assert starts == [0, 200, 400, 600, 800, 1000]
    assert batch["trial_init"].flatten().nonzero().flatten().tolist() == [0, 600]
    assert batch["episode"].flatten()[starts].tolist() == [0, 1, 2, 0, 1, 2]
    ends = batch["next"][torch.tensor(starts[1:]) - 1]
    torch.testing.assert_close(batch["final", "observation"][starts[1:]], ends["observation"], rtol=0, atol=0)
    torch.testing.assert_close(batch["final", "reward"][starts[1:]], ends["reward"], rtol=0, atol=0)
    assert not batch["final", "observation"][0].any()


def test_the_environment_gets_the_clipped_action_and_the_root_keeps_the_other():
    env, plain = trial_pendulum(), pendulum()
    env.set_seed(0)
    plain.set_seed(0)
    row, expected = env.reset(), plain.reset()
    row["action"], expected["action"] = torch.tensor([7.0]), torch.tensor([2.0])
    row, expected = env.step(row), plain.step(expected)
    assert row["action"].item() == 7.0 and row["next", "prev_action"].item() == 2.0
    assert torch.equal(row["next", "observation"], expected["next", "observation"])


def test_a_step_of_some_lanes_is_refused():
    """It would overwrite the last step of the others."""
    env = TransformedEnv(
        SerialEnv(2, [lambda: Walk([2], 0.0), lambda: Walk([4], 0.0)]), TrialTransform(episodes_per_trial=3)
    )
    with pytest.raises(RuntimeError, match="break_when_any_done=False"):
        env.rollout(6, break_when_any_done=False, break_when_all_done=True)


def test_it_follows_its_environment_to_another_device():
    env = trial_pendulum()
    assert env.observation_spec.device is None or env.observation_spec.device.type == "cpu"
    env.to("meta")
    assert env.transform.counter.observation.device.type == "meta"
    assert env.transform.counter.episode.dtype == torch.int64


def test_an_environment_without_observation_is_told_the_mend():
    def stateful():
        return TransformedEnv(pendulum(), RenameTransform(in_keys=["observation"], out_keys=["state"]))

    with pytest.raises(ValueError, match=r"'observation'.*'state'.*RenameTransform"):
        TransformedEnv(stateful(), TrialTransform(episodes_per_trial=3)).reset()
    renamed = TransformedEnv(stateful(), RenameTransform(in_keys=["state"], out_keys=["observation"]))
    check_env_specs(TransformedEnv(renamed, TrialTransform(episodes_per_trial=3)))


def test_a_categorical_action_is_told_the_mend():
    env = TransformedEnv(GymEnv("CartPole-v1", categorical_action_encoding=True), TrialTransform(episodes_per_trial=3))
    with pytest.raises(ValueError, match="one-hot"):
        env.reset()


def test_an_environment_with_trials_is_refused():
    env = TransformedEnv(trial_pendulum(), TrialTransform(episodes_per_trial=3))
    with pytest.raises(ValueError, match=r"episode.*remove one of the two"):
        env.observation_spec  # noqa: B018


def test_outside_an_environment_it_says_where_it_belongs():
    with pytest.raises(RuntimeError, match="needs an environment"):
        TrialTransform(episodes_per_trial=3).transform_observation_spec(Composite(observation=Unbounded(1)))
