"""Real worker processes: same trajectories, quick and clear failures, nothing left behind."""

import os
import signal
import subprocess
import sys
import textwrap
import time

import numpy as np
import pytest
import torch

from htrmrl_torchrl.envs import make_env
from htrmrl_torchrl.envs.toy import ToyLanes
from htrmrl_torchrl.envs.workers import WorkerLanes


def is_running(pid):
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


class FragileLanes(ToyLanes):
    """Raises in the step whose first action is negative, in the worker that holds that lane."""

    def step(self, actions):
        if (actions[:, 0] < 0).any():
            raise ArithmeticError("the simulator exploded")
        return super().step(actions)


def build_toy(num_lanes):
    return ToyLanes(num_lanes=num_lanes, horizon=6)


def build_fragile(num_lanes):
    return FragileLanes(num_lanes=num_lanes, horizon=6)


def build_never(num_lanes):
    raise OSError("no assets here")


def workers(builder=build_toy, num_lanes=5, num_workers=2):
    return WorkerLanes(
        builder,
        num_lanes=num_lanes,
        num_workers=num_workers,
        obs_dim=ToyLanes.obs_dim,
        action_low=ToyLanes.action_low,
        action_high=ToyLanes.action_high,
    )


def trajectories(name, num_workers, steps, **kwargs):
    env = make_env(name, num_workers=num_workers, seed=4, episodes_per_trial=2, **kwargs)
    torch.manual_seed(0)
    rows = env.rollout(steps, break_when_any_done=False)
    env.close()
    return rows


def assert_same(a, b):
    for key in a.keys(True, True):
        assert torch.equal(a[key], b[key]), key


@pytest.fixture(scope="module")
def pool():
    """Healthy workers that several tests share: starting a process takes seconds."""
    lanes = workers()
    yield lanes
    lanes.close()


@pytest.mark.slow
def test_toy_trajectories_do_not_depend_on_the_number_of_workers():
    alone = trajectories("toy", 0, 40, num_envs=5)
    assert_same(alone, trajectories("toy", 3, 40, num_envs=5))


def test_metaworld_trajectories_do_not_depend_on_the_number_of_workers():
    """Three lanes of two tasks change simulators between trials; seven steps an episode, three trials and a bit."""
    name = "custom:[reach,drawer-close]/[push]"
    alone, one, two = (trajectories(name, number, 45, num_envs=3, horizon=7) for number in (0, 1, 2))
    assert_same(alone, one)
    assert_same(alone, two)
    assert len(alone["task"].unique()) == 2


def test_another_seed_gives_other_trajectories():
    goals = [make_env("toy", num_envs=8, seed=seed).rollout(1)["goal"].flatten().tolist() for seed in (0, 0, 1)]
    assert goals[0] == goals[1] != goals[2]


def test_setting_the_seed_repeats_the_trajectories():
    env = make_env("toy", num_envs=8, seed=0, episodes_per_trial=1)
    first = env.rollout(24, break_when_any_done=False)["goal"]
    assert not torch.equal(env.rollout(24, break_when_any_done=False)["goal"], first)
    env.set_seed(0)
    assert torch.equal(env.rollout(24, break_when_any_done=False)["goal"], first)


def test_lanes_of_workers_cannot_be_drawn(pool):
    with pytest.raises(ValueError, match=r"Lane 3 lives in a worker process.*num_workers=0"):
        pool.render(3, size=64)


def test_resets_reach_the_right_lanes_across_workers(pool):
    ours, theirs = pool, build_toy(5)
    everyone, zeros = np.arange(5), np.zeros(5, dtype=np.int64)
    for lanes in (ours, theirs):
        lanes.reset(everyone, zeros, np.array([0, 1, 2, 3, 0]))
        lanes.step(np.full((5, 2), 0.5, np.float32))
    some = np.array([1, 3, 4])
    np.testing.assert_array_equal(ours.reset(some, zeros[:3], some % 4), theirs.reset(some, zeros[:3], some % 4))
    for _ in range(6):
        for a, b in zip(*(lanes.step(np.full((5, 2), 0.5, np.float32)) for lanes in (ours, theirs)), strict=True):
            np.testing.assert_array_equal(a, b)
            assert a.dtype == b.dtype


def test_results_belong_to_the_caller(pool):
    lanes = pool
    first = lanes.reset(np.arange(5), np.zeros(5, np.int64), np.zeros(5, np.int64))
    kept = first.copy()
    stepped = lanes.step(np.ones((5, 2), np.float32))
    copies = [array.copy() for array in stepped]
    lanes.step(np.ones((5, 2), np.float32))
    np.testing.assert_array_equal(first, kept)
    for array, copy in zip(stepped, copies, strict=True):
        np.testing.assert_array_equal(array, copy)


def test_a_killed_worker_ends_the_run_by_name():
    env = make_env("toy", num_envs=4, num_workers=2)
    row = env.rand_action(env.reset())
    victim, other = env._lanes.processes
    os.kill(victim.pid, signal.SIGKILL)
    start = time.monotonic()
    with pytest.raises(RuntimeError, match=rf"environment-worker-0 \(pid {victim.pid}, lanes 0 to 1\).*exit code -9"):
        env.step(row)
    assert time.monotonic() - start < 4
    assert not is_running(other.pid)  # the others are ended too
    with pytest.raises(RuntimeError, match="closed"):
        env.step(row)
    env.close()


def test_an_exception_in_a_worker_arrives_with_its_traceback():
    lanes = workers(build_fragile, num_workers=1)
    lanes.reset(np.arange(5), np.zeros(5, np.int64), np.zeros(5, np.int64))
    action = np.ones((5, 2), np.float32)
    action[4] = -1
    with pytest.raises(RuntimeError, match=r"(?s)worker-0 \(.*lanes 0 to 4\).*Traceback.*the simulator exploded"):
        lanes.step(action)


def test_a_worker_that_cannot_build_says_why():
    with pytest.raises(RuntimeError, match=r"(?s)worker-0.*Traceback.*no assets here"):
        workers(build_never, num_workers=1)


def test_closing_leaves_no_process_and_the_parents_environment_as_it_was(monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    monkeypatch.delenv("MKL_NUM_THREADS", raising=False)
    lanes = workers(num_workers=1)
    assert os.environ["OMP_NUM_THREADS"] == "3" and "MKL_NUM_THREADS" not in os.environ
    (process,) = lanes.processes
    assert is_running(process.pid)
    lanes.close()
    assert not is_running(process.pid)
    lanes.close()


def test_workers_ignore_ctrl_c(pool):
    for process in pool.processes:
        os.kill(process.pid, signal.SIGINT)
    pool.reset(np.arange(5), np.zeros(5, np.int64), np.zeros(5, np.int64))
    for _ in range(100):
        pool.step(np.ones((5, 2), np.float32))


def test_workers_leave_when_their_parent_is_killed():
    script = textwrap.dedent(
        """
        from htrmrl_torchrl.envs import make_env
        if __name__ == "__main__":
            env = make_env("toy", num_envs=2, num_workers=2)
            print(*(process.pid for process in env._lanes.processes), flush=True)
            input()
        """
    )
    parent = subprocess.Popen(
        [sys.executable, "-c", script],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
    )
    pids = [int(pid) for pid in parent.stdout.readline().split()]
    assert len(pids) == 2 and all(is_running(pid) for pid in pids)
    parent.kill()
    # The workers hold the other end of this pipe: reading to its end, without the timeout, means that they are gone.
    assert parent.communicate(timeout=20) == ("", None)


@pytest.mark.parametrize("num_workers", [0, 6, -1])
def test_the_number_of_workers_is_checked(num_workers):
    with pytest.raises(ValueError, match=f"received {num_workers}"):
        workers(num_workers=num_workers)
