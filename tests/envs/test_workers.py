"""Real worker processes: same trajectories, quick and clear failures, nothing left behind."""

import os
import signal
import subprocess
import sys
import textwrap
import time
from multiprocessing.connection import wait

import numpy as np
import pytest
import torch

from htrmrl_torchrl.envs import make_env
from htrmrl_torchrl.envs.toy import ToyLanes
from htrmrl_torchrl.envs.workers import WorkerLanes
from htrmrl_torchrl.faults import WorkerFault
from tests.faulty import build_endlessly, build_fragile, build_never, build_restless, build_toy
from tests.recipes.runs import DEADLINE, cpu_seconds, state_of, wait_for


def is_running(pid):
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


def workers(builder=build_toy, num_lanes=5, num_workers=2, **timeouts):
    return WorkerLanes(
        builder,
        num_lanes=num_lanes,
        num_workers=num_workers,
        obs_dim=ToyLanes.obs_dim,
        action_low=ToyLanes.action_low,
        action_high=ToyLanes.action_high,
        **timeouts,
    )


def reset_all(lanes):
    everyone = np.arange(lanes.num_lanes)
    return lanes.reset(everyone, np.zeros_like(everyone), everyone % 4)


def push(lanes, x):
    action = np.full((lanes.num_lanes, 2), 0.5, np.float32)
    action[-1, 0] = x
    return lanes.step(action)


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
    with pytest.raises(ValueError, match=r"Environment 3 is in a worker process.*num_workers=0"):
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
    # It is the death that is noticed: no answer for a while would be another sentence.
    with pytest.raises(
        RuntimeError, match=rf"environment-worker-0 \(pid {victim.pid}, environments 0 to 1\).*exit code -9"
    ):
        env.step(row)
    assert not is_running(other.pid)  # the others are ended too
    with pytest.raises(RuntimeError, match="closed"):
        env.step(row)
    env.close()


def test_a_stopped_worker_is_noticed_killed_and_replaced_by_a_reset_of_all_lanes():
    lanes = workers()
    first = reset_all(lanes)
    moved = push(lanes, 0.25)[0]
    hung, other = lanes.processes
    os.kill(hung.pid, signal.SIGSTOP)
    usual, lanes.timeout = lanes.timeout, 1.0  # for the step that hangs alone: others may take long on a busy machine
    start = time.monotonic()
    with pytest.raises(
        WorkerFault, match=rf"worker-0 \(pid {hung.pid}, environments 0 to 2\) did not answer within 1 s"
    ):
        push(lanes, 0.25)
    assert time.monotonic() - start >= 1
    lanes.timeout = usual
    assert not is_running(hung.pid) and not is_running(other.pid)

    for nothing_runs in (lambda: push(lanes, 0.25), lambda: lanes.reset(*np.zeros((3, 2), np.int64))):
        with pytest.raises(RuntimeError, match="reset all environments to start new ones"):
            nothing_runs()
    assert lanes.restarts == 0
    np.testing.assert_array_equal(reset_all(lanes), first)
    np.testing.assert_array_equal(push(lanes, 0.25)[0], moved)
    assert lanes.restarts == 1
    pids = [process.pid for process in lanes.processes]
    assert len(pids) == 2 and not {hung.pid, other.pid} & set(pids)
    lanes.close()
    assert not any(is_running(pid) for pid in pids)
    with pytest.raises(RuntimeError, match="build the environment again"):
        reset_all(lanes)


@pytest.mark.slow
def test_a_step_that_never_ends_ends_the_workers_and_counts_go_on_in_new_ones(monkeypatch):
    lanes = workers(build_restless, num_lanes=2)
    reset_all(lanes)
    push(lanes, 0.0)
    pids = [process.pid for process in lanes.processes]
    usual, lanes.timeout = lanes.timeout, 1.0
    with monkeypatch.context() as patch, pytest.raises(WorkerFault, match=r"worker-1.*did not answer within 1 s"):
        # The first worker's answer comes, however busy the machine is; then the limit counts.
        patch.setattr(
            "htrmrl_torchrl.envs.workers.wait",
            lambda waiting, seconds: wait(waiting, None if len(waiting) > 1 else seconds),
        )
        push(lanes, -3.0)
    lanes.timeout = usual
    assert not any(is_running(pid) for pid in pids)
    reset_all(lanes)
    push(lanes, 0.0)
    # Two a step: the first worker has done all three steps, the second not the one that never ended.
    assert lanes.divergences == 2 * 3 + 2 * 2
    lanes.close()


@pytest.mark.slow
def test_building_that_never_ends_has_a_larger_limit():
    start = time.monotonic()
    with pytest.raises(WorkerFault, match=r"worker-0.*did not answer within 2 s"):
        workers(build_endlessly, num_workers=1, timeout=0.2, build_timeout=2.0)
    assert time.monotonic() - start >= 2


@pytest.mark.slow
def test_the_time_in_which_the_main_process_is_stopped_does_not_count():
    """As after Ctrl-Z: both sleep for longer than the limit, and the main process wakes first."""
    limit = 8.0
    script = textwrap.dedent(
        f"""
        from tests.envs.test_workers import build_toy, push, reset_all, workers
        if __name__ == "__main__":
            lanes = workers(build_toy, num_lanes=1, num_workers=1)
            reset_all(lanes)
            lanes.timeout = {limit}
            print(lanes.processes[0].pid, flush=True)
            input()
            print("asking", flush=True)
            push(lanes, 0.0)
            print("answered", flush=True)
        """
    )
    main = python(script)
    worker = int(main.stdout.readline())
    os.kill(worker, signal.SIGSTOP)
    wait_for(lambda: state_of(worker) == "T", main, "the worker to stop")
    main.stdin.write("\n")
    main.stdin.flush()
    assert main.stdout.readline() == "asking\n"
    wait_for(lambda: state_of(main.pid) == "S", main, "the main process to wait for the answer")
    os.kill(main.pid, signal.SIGSTOP)
    wait_for(lambda: state_of(main.pid) == "T", what="the main process to stop")
    stopped = time.monotonic()
    wait_for(lambda: time.monotonic() - stopped > limit, what="the limit to pass")
    os.kill(main.pid, signal.SIGCONT)
    wait_for(lambda: state_of(main.pid) == "S", main, "the main process to wait again")
    os.kill(worker, signal.SIGCONT)
    assert main.communicate(timeout=DEADLINE) == ("answered\n", None)
    assert main.returncode == 0


def test_a_call_that_was_interrupted_leaves_no_answer_for_the_next_one(monkeypatch):
    """Ctrl-C in a notebook, between question and answer."""
    lanes = workers(num_workers=1)
    reset_all(lanes)
    expected = [push(lanes, 0.0)[0] for _ in range(3)]
    reset_all(lanes)
    push(lanes, 0.0)

    def interrupted(*_):
        raise KeyboardInterrupt

    for call in (lambda: push(lanes, 0.0), lambda: reset_all(lanes)):  # the second one while new workers are built
        with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
            patch.setattr("htrmrl_torchrl.envs.workers.wait", interrupted)
            call()
        assert not lanes.processes
        with pytest.raises(RuntimeError, match="reset all environments"):
            push(lanes, 0.0)
    reset_all(lanes)
    for observation in expected:
        assert np.array_equal(push(lanes, 0.0)[0], observation)
    lanes.close()


def test_an_exception_in_a_worker_arrives_with_its_traceback():
    lanes = workers(build_fragile, num_workers=1)
    lanes.reset(np.arange(5), np.zeros(5, np.int64), np.zeros(5, np.int64))
    action = np.ones((5, 2), np.float32)
    action[4] = -1
    with pytest.raises(
        RuntimeError, match=r"(?s)worker-0 \(.*environments 0 to 4\).*Traceback.*the simulator exploded"
    ):
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


def python(script):
    return subprocess.Popen(
        [sys.executable, "-c", script],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
    )


@pytest.mark.parametrize("busy", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_workers_leave_when_their_parent_is_killed(busy):
    """Waiting for the next message, or in the middle of a step that never ends."""
    script = textwrap.dedent(
        f"""
        from tests.envs.test_workers import build_restless, push, reset_all, workers
        if __name__ == "__main__":
            lanes = workers(build_restless, num_lanes=2, num_workers=2)
            reset_all(lanes)
            print(*(process.pid for process in lanes.processes), flush=True)
            push(lanes, -3.0) if {busy} else input()
        """
    )
    parent = python(script)
    pids = [int(pid) for pid in parent.stdout.readline().split()]
    assert len(pids) == 2 and all(is_running(pid) for pid in pids)
    if busy:
        # It is in its loop: no step takes so long.
        wait_for(lambda: cpu_seconds(pids[1]) > 0.5 + cpu_seconds(pids[0]), parent, "the endless step")
    parent.kill()
    # The workers hold the other end of this pipe: reading to its end, without the timeout, means that they are gone.
    assert parent.communicate(timeout=DEADLINE) == ("", None)


@pytest.mark.parametrize("num_workers", [0, 6, -1])
def test_the_number_of_workers_is_checked(num_workers):
    with pytest.raises(ValueError, match=f"received {num_workers}"):
        workers(num_workers=num_workers)
