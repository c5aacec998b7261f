"""Whole training runs of several ranks, real processes: repeated, continued with other numbers, stopped, killed."""

import os
import random
import signal
import socket
import subprocess
import sys

import pytest
import torch

from htrmrl_torchrl.checkpoints.archive import read_states
from tests.parallel.test_update import assert_alike
from tests.recipes.runs import (
    FRAMES,
    ROOT,
    TINY,
    assert_one_curve,
    family,
    frames_on_disk,
    metrics,
    python_path,
    read_process,
    run,
    shared_memory,
    start,
    wait_for,
    wait_for_work,
    workers,
)

TWO = ["workers=2", "env.num_workers=0"]
LONG = "total_frames=1_000_000"


def states_at(run_dir, frames):
    """What a checkpoint holds of the run; not its settings and versions."""
    states = read_states(run_dir / "checkpoints" / f"step-{frames:012d}.torchrl")
    kept = {name: states[name] for name in ("actor", "critic", "optimizer", "rewards", "memory", "env")}
    return kept | {"rng": states["rng"]["torch_cpu"]}  # the others begin anywhere, and nothing is drawn from them


@pytest.fixture(scope="module")
def two(tmp_path_factory):
    """A run of two ranks, of four iterations, of which all checkpoints are kept."""
    run_dir = tmp_path_factory.mktemp("two") / "run"
    run(run_dir, *TWO, f"total_frames={4 * FRAMES}", "checkpoint.keep=9")
    return run_dir


def test_the_same_run_twice_and_continued_bit_for_bit(two, tmp_path):
    for iterations in (2, 4):
        run(tmp_path / "run", *TWO, f"total_frames={iterations * FRAMES}")
    assert_one_curve(tmp_path / "run", 4 * FRAMES)
    evaluated = {at for at, name, _ in metrics(tmp_path / "run") if name.startswith("eval/")}
    assert evaluated == {2 * FRAMES, 4 * FRAMES}
    end = [row for row in metrics(two) if row[0] == 4 * FRAMES and not row[1].startswith(("eval/", "forgetting/"))]
    assert set(end) <= {*metrics(tmp_path / "run")} and len(end) > 20
    a, b = states_at(two, 4 * FRAMES), states_at(tmp_path / "run", 4 * FRAMES)
    assert_equal(a, b)


def assert_equal(a, b):
    if isinstance(a, torch.Tensor):
        assert torch.equal(a, b)
    elif isinstance(a, dict):
        assert a.keys() == b.keys()
        for name in a:
            assert_equal(a[name], b[name])
    elif isinstance(a, list | tuple):
        assert len(a) == len(b)
        for pair in zip(a, b, strict=True):
            assert_equal(*pair)
    else:
        assert a == b


def test_a_checkpoint_of_two_ranks_is_that_of_one_and_continues_with_any(two, tmp_path):
    run(tmp_path / "one", "env.num_workers=0", f"total_frames={2 * FRAMES}", "checkpoint.keep=9")
    # Adam's second moments are tiny, and their roots divide: weights of two updates agree to 1e-4.
    ours, theirs = states_at(two, 2 * FRAMES), states_at(tmp_path / "one", 2 * FRAMES)
    for name in ("memory", "rng", "env"):
        assert_alike(ours[name], theirs[name])
    # From two to one and from one to two: what follows is what two ranks did all the while, but for rounding.
    expected = by_metric(two, 3 * FRAMES)
    resumed = two / "checkpoints" / f"step-{2 * FRAMES:012d}.torchrl"
    run(tmp_path / "to_one", f"resume={resumed}", "env.num_workers=0", f"total_frames={3 * FRAMES}")
    run(tmp_path / "one", *TWO, f"total_frames={3 * FRAMES}")
    for name in ("to_one", "one"):
        received = by_metric(tmp_path / name, 3 * FRAMES)
        assert {m for m in expected if not m.startswith(("eval/", "forgetting/"))} <= received.keys()
        for metric in ("train/return", "train/success", "loss/objective", "loss/critic", "ppo/kl", "ppo/entropy"):
            assert received[metric] == pytest.approx(expected[metric], rel=1e-3, abs=1e-4), (name, metric)
        assert_alike(states_at(tmp_path / name, 3 * FRAMES)["env"]["deck"], states_at(two, 3 * FRAMES)["env"]["deck"])


def by_metric(run_dir, frames):
    return {name: float(value) for at, name, value in metrics(run_dir) if at == frames}


def begun(run_dir, *overrides, iterations=1):
    """A run that has done so many iterations."""
    process = start(run_dir, LONG, "env.num_workers=0", *overrides)
    wait_for(lambda: frames_on_disk(run_dir) >= iterations * FRAMES, process, "an iteration")
    return process


def ended(process):
    _, errors = process.communicate(timeout=300)
    return errors


@pytest.mark.parametrize(
    ("number", "everyone"),
    [(signal.SIGTERM, False), pytest.param(signal.SIGINT, True, marks=pytest.mark.slow)],
)
def test_a_signal_leaves_the_boundary(number, everyone, tmp_path):
    """Sent to the first rank, as `kill` does, and to all, as a terminal does."""
    process = begun(tmp_path / "run", "workers=3", "checkpoint.every_frames=192")
    assert len(workers(process)) == 2
    mapped = shared_memory(process)
    (os.killpg if everyone else os.kill)(process.pid, number)
    errors = ended(process)
    assert process.returncode == 0, errors
    assert errors.count("stopped; where the iteration began is kept") == 1 and "Traceback" not in errors
    wait_for(lambda: not family(process), what="the end of all its processes")
    assert not mapped & {entry.inode() for entry in os.scandir("/dev/shm")}
    kept = frames_on_disk(tmp_path / "run")
    run(tmp_path / "run", "workers=2", "env.num_workers=0", f"total_frames={kept + FRAMES}")
    assert_one_curve(tmp_path / "run", kept + FRAMES)


@pytest.mark.slow
def test_a_signal_to_another_rank_ends_all_alike(tmp_path):
    process = begun(tmp_path / "run", "workers=2")
    os.kill(workers(process)[0], signal.SIGTERM)
    errors = ended(process)
    assert process.returncode == 0 and "stopped; where the iteration began is kept" in errors, errors
    wait_for(lambda: not family(process), what="the end of all its processes")


def test_the_death_of_a_rank_ends_the_run_with_its_number(tmp_path):
    process = begun(tmp_path / "run", "workers=2")
    os.kill(workers(process)[0], signal.SIGKILL)
    errors = ended(process)
    assert process.returncode == 1 and "Traceback" not in errors, errors
    # Behind it multiprocessing's resource tracker says that it has removed the dead rank's semaphores.
    assert "error: rank 1 of 2 died with exit code -9" in errors.splitlines()
    assert "failed; where the iteration began is kept" in errors
    wait_for(lambda: not family(process), what="the end of all its processes")
    kept = frames_on_disk(tmp_path / "run")
    run(tmp_path / "run", *TWO, f"total_frames={kept + FRAMES}")
    assert_one_curve(tmp_path / "run", kept + FRAMES)


@pytest.mark.slow
def test_a_rank_that_hangs_ends_the_run_with_its_number(tmp_path):
    process = begun(tmp_path / "run", "workers=2", "env.worker_timeout=2")
    os.kill(workers(process)[0], signal.SIGSTOP)
    errors = ended(process)
    assert process.returncode == 1, errors
    assert "error: rank 1 of 2 did not answer within 20 s" in errors.splitlines()
    wait_for(lambda: not family(process), what="the end of all its processes")


@pytest.mark.slow
def test_the_death_of_the_first_rank_leaves_nobody(tmp_path):
    process = begun(tmp_path / "run", "workers=3")
    os.kill(workers(process)[0], signal.SIGSTOP)  # not even one that hangs
    process.kill()
    process.wait()
    wait_for(lambda: not family(process), what="the end of all its processes")
    kept = frames_on_disk(tmp_path / "run")
    run(tmp_path / "run", *TWO, f"total_frames={kept + FRAMES}")
    assert_one_curve(tmp_path / "run", kept + FRAMES)


@pytest.mark.slow
def test_thirty_kills_of_any_rank_lose_nothing(tmp_path):
    rng, run_dir, kept, mapped = random.Random(0), tmp_path / "run", 0, set()
    for _ in range(30):
        process = start(run_dir, LONG, "workers=2", "env.num_workers=0")
        wait_for(lambda: frames_on_disk(run_dir) > kept, process, "an iteration")  # noqa: B023
        victim = rng.choice([process.pid, *workers(process)])
        mapped |= shared_memory(process)
        wait_for_work(process, [process.pid], rng.random() * 0.2)
        os.kill(victim, signal.SIGKILL)
        ended(process)
        assert process.returncode == (-9 if victim == process.pid else 1)
        wait_for(lambda: not family(process), what="the end of all its processes")  # noqa: B023
        assert frames_on_disk(run_dir) >= kept
        kept = frames_on_disk(run_dir)
    run(run_dir, *TWO, f"total_frames={kept + FRAMES}")
    assert_one_curve(run_dir, kept + FRAMES)
    assert mapped and not mapped & {entry.inode() for entry in os.scandir("/dev/shm")}


@pytest.mark.slow
def test_two_nodes_of_torchrun(two, tmp_path):
    """On loopback, of one rank each: the run of two ranks that one process starts, bit for bit."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    nodes = [torchrun(node, port, tmp_path / "run") for node in range(2)]
    said = [node.communicate(timeout=300) for node in nodes]
    assert [node.returncode for node in nodes] == [0, 0], said
    assert metrics(tmp_path / "run") == metrics(two)
    assert "finished" in said[0][0] and not said[1][0]


@pytest.mark.slow
def test_a_rank_of_torchrun_that_dies_ends_the_other(tmp_path):
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    first, other = (torchrun(node, port, tmp_path / "run", LONG) for node in range(2))
    wait_for(lambda: frames_on_disk(tmp_path / "run") >= FRAMES, first, "an iteration")
    (rank,) = read_process(other.pid, f"task/{other.pid}/children").split()
    os.kill(int(rank), signal.SIGKILL)
    _, errors = first.communicate(timeout=300)
    assert first.returncode == 1 and "error: rank 1 of 2 has ended" in errors, errors
    other.communicate(timeout=300)
    assert other.returncode == 1
    kept = frames_on_disk(tmp_path / "run")
    run(tmp_path / "run", *TWO, f"total_frames={kept + FRAMES}")
    assert_one_curve(tmp_path / "run", kept + FRAMES)


def torchrun(node, port, run_dir, *overrides):
    """One of two nodes."""
    launcher = [
        sys.executable, "-m", "torch.distributed.run", "--nnodes", "2", "--node-rank", str(node), "--nproc-per-node",
        "1", "--master-addr", "127.0.0.1", "--master-port", str(port),
    ]  # fmt: skip
    settings = [f"run_dir={run_dir}", *TINY, "env.num_workers=0", f"total_frames={4 * FRAMES}", "checkpoint.keep=9"]
    return subprocess.Popen(
        [*launcher, str(ROOT / "recipes" / "toy_ppo.py"), *settings, *overrides],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        env={**os.environ, "OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo"},
    )


def test_a_fault_in_one_rank_is_one_of_all(tmp_path, monkeypatch):
    """The batch is dropped everywhere, and the ranks' random streams stay together, else the run would end."""
    monkeypatch.setenv("PYTHONPATH", python_path(ROOT))
    done = run(
        tmp_path / "run", *TWO, "env.name=tests.faulty:NAN_IN_RANK_1", f"total_frames={3 * FRAMES}",
        "eval.goals_per_task=1",
    )  # fmt: skip
    said = [line for line in done.stderr.splitlines() if line.startswith("fault while")]
    assert said == [
        "fault while collecting, all environments begin new trials: in rank 1, by its own count of environments: "
        "observation is not finite in environment 3 (nan)"
    ]
    faults = [value for _, name, value in metrics(tmp_path / "run") if name == "faults/collecting"]
    assert [float(value) for value in faults] == [0, 1, 1]
    assert_one_curve(tmp_path / "run", 3 * FRAMES)
