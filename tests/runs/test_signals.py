"""Runs that stop, in any way and at any stage: the last boundary is kept, nothing else is left, and all goes on."""

import os
import random
import re
import resource
import shlex
import shutil
import signal
import subprocess
import time

import pytest

from htrmrl_torchrl.runs.signals import NUMBERS, Interrupts
from tests.recipes.runs import (
    FRAMES,
    assert_nobody_left,
    assert_one_curve,
    curve,
    family,
    frames_on_disk,
    metrics,
    obey_permissions,
    read_process,
    run,
    shared_memory,
    start,
    state_of,
    wait_for,
    wait_for_the_stopped,
    wait_for_work,
    workers,
)

LONG = "total_frames=1_000_000"
LONG_ITERATION = ["env.num_envs=16", "env.horizon=400", "loss.minibatch_frames=6000"]  # of 25,600 frames
TOTAL = 8 * FRAMES
# From the signal to the end: one or two where the cores are free. A worker that hangs would be waited for for 60.
SECONDS = 50.0


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory):
    """The metrics of a run that nothing stopped."""
    run_dir = tmp_path_factory.mktemp("whole") / "run"
    run(run_dir, f"total_frames={TOTAL}")
    return metrics(run_dir)


def stop(process, number, *, everyone=False):
    """Sends a signal; returns what was said on stderr, and how long the process took to end."""
    begun = time.monotonic()
    (os.killpg if everyone else os.kill)(process.pid, number)
    _, errors = process.communicate(timeout=300)
    return errors, time.monotonic() - begun


def written_command(errors):
    """The command to continue that the run has printed: the last line of stderr."""
    return shlex.split(errors.rstrip().splitlines()[-1])


def iterated(run_dir, times=1):
    return lambda: frames_on_disk(run_dir) >= times * FRAMES


@pytest.mark.parametrize(
    ("number", "everyone"),
    [
        (signal.SIGINT, True),
        pytest.param(signal.SIGINT, False, marks=pytest.mark.slow),
        pytest.param(signal.SIGTERM, True, marks=pytest.mark.slow),
        pytest.param(signal.SIGTERM, False, marks=pytest.mark.slow),
        pytest.param(signal.SIGHUP, True, marks=pytest.mark.slow),
        pytest.param(signal.SIGUSR1, True, marks=pytest.mark.slow),
        pytest.param(signal.SIGUSR1, False, marks=pytest.mark.slow),
    ],
)
def test_a_signal_leaves_the_boundary_and_the_command_to_continue(number, everyone, uninterrupted, tmp_path):
    """As `kill` sends it, to the process, and as a terminal or a scheduler does, to its workers too."""
    run_dir = tmp_path / "a run"  # something to quote for Hydra and for the shell
    process = start(f"'{run_dir}'", LONG, "env.num_workers=2", "checkpoint.every_frames=1_000_000")
    wait_for(lambda: "train/return" in _read(run_dir / "metrics.csv"), process, "the first iteration")
    assert len(family(process)) >= 3
    mapped = shared_memory(process)
    errors, seconds = stop(process, number, everyone=everyone)
    assert process.returncode == 0, errors
    assert seconds < SECONDS and "Traceback" not in errors
    assert_nobody_left(process, mapped)
    assert not (run_dir / ".lock").exists() and not (run_dir / "checkpoints" / ".stage").exists()
    kept = frames_on_disk(run_dir)
    assert kept > 0 and kept % FRAMES == 0
    again = [*written_command(errors), f"total_frames={max(TOTAL, kept)}", "env.num_workers=0"]
    done = subprocess.run(again, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert f"at {kept:,} of" in done.stdout
    assert [row for row in metrics(run_dir) if row[0] < TOTAL] == [row for row in uninterrupted if row[0] < TOTAL]
    assert_one_curve(run_dir, max(TOTAL, kept))


def _read(path):
    return path.read_text() if path.exists() else ""


@pytest.mark.slow
def test_before_the_first_iteration_has_ended(uninterrupted, tmp_path):
    """The boundary at 0 frames is one as well."""
    long = ["env.num_envs=64", "env.horizon=400", "loss.minibatch_frames=96"]  # an iteration of 100,000 frames
    process = start(tmp_path / "run", LONG, *long)
    wait_for((tmp_path / "run" / "metrics.csv").exists, process, "the end of the start")
    wait_for_work(process, [process.pid], 1.0)  # of an iteration that takes many times as long
    errors, seconds = stop(process, signal.SIGINT)
    assert process.returncode == 0 and seconds < SECONDS, errors
    assert "where the iteration began is kept" in errors
    assert [path.stem for path in (tmp_path / "run" / "checkpoints").iterdir()] == ["step-000000000000"]
    process = start(tmp_path / "tiny", LONG)
    wait_for((tmp_path / "tiny" / "metrics.csv").exists, process, "the end of the start")
    stop(process, signal.SIGTERM)
    assert frames_on_disk(tmp_path / "tiny") < TOTAL
    run(tmp_path / "tiny", f"total_frames={TOTAL}")
    assert metrics(tmp_path / "tiny") == uninterrupted


@pytest.mark.parametrize(
    ("moment", "number"),
    [
        ("python", signal.SIGHUP),
        ("imports", signal.SIGINT),
        pytest.param("imports", signal.SIGUSR1, marks=pytest.mark.slow),
        pytest.param("workers", signal.SIGINT, marks=pytest.mark.slow),
        pytest.param("workers", signal.SIGUSR1, marks=pytest.mark.slow),
    ],
)
def test_while_it_is_still_starting(moment, number, tmp_path):
    process = start(tmp_path / "run", LONG, "env.num_workers=2", "resume=auto")
    if moment == "imports":  # torch is among the last
        wait_for(lambda: "libtorch" in _maps(process.pid), process, "torch")
    elif moment == "workers":
        wait_for(lambda: len(family(process)) >= 3, process, "workers")
    else:
        wait_for(lambda: _handles_signals(process.pid), process, "the handler")
    errors, seconds = stop(process, number, everyone=True)
    assert process.returncode == 0, errors
    assert seconds < SECONDS
    assert re.fullmatch(r"stopped; nothing is lost, continue with\n    .+ \S*toy_ppo\.py .+\n", errors), errors
    assert written_command(errors)[-1] == "resume=auto"  # what it asks for has not happened yet
    assert written_command(errors)[2] == f"run_dir={tmp_path / 'run'}"
    wait_for(lambda: not family(process), what="the end of all its processes")


def _maps(pid):
    return read_process(pid, "maps")


def _handles_signals(pid):
    """Whether a process has handlers for all signals that ask it to stop."""
    caught = re.search(r"SigCgt:\s*(\w+)", read_process(pid, "status"))
    wanted = sum(1 << number - 1 for number in NUMBERS)
    return caught is not None and int(caught[1], 16) & wanted == wanted


@pytest.mark.slow
@pytest.mark.parametrize("first", [signal.SIGINT, signal.SIGTERM])
def test_a_second_ctrl_c_ends_it_at_once(first, tmp_path):
    """Also where the first could not be obeyed, because a worker hangs (here: is stopped)."""
    process, _ = start_and_stop_a_worker(tmp_path / "run")
    mapped = shared_memory(process)
    os.kill(process.pid, first)
    wait_for(lambda: not _pending(process.pid, first), process, "the first signal's handler")
    errors, seconds = stop(process, signal.SIGINT)
    assert process.returncode == 130, errors
    assert seconds < SECONDS and "stopped at once\n" in errors and "Traceback" not in errors
    assert_nobody_left(process, mapped)
    process = start(tmp_path / "run", LONG, *LONG_ITERATION)  # its lock locks nothing
    assert process.stdout.readline().startswith(f"continuing {tmp_path / 'run'} at 0 of")
    process.kill()
    process.communicate(timeout=300)


def start_and_stop_a_worker(run_dir):
    """A run whose collection waits for a stopped worker, and that worker."""
    process = start(run_dir, LONG, *LONG_ITERATION, "env.num_workers=2")
    wait_for((run_dir / "metrics.csv").exists, process, "the end of the start")
    one, other = workers(process)
    wait_for_work(process, [one, other], 0.1)  # an iteration takes many times as long
    os.kill(one, signal.SIGSTOP)
    wait_for_the_stopped(process, one)
    return process, one


def test_what_was_started_to_ignore_a_signal_ignores_it():
    """`nohup` ignores SIGHUP, a shell's background SIGINT."""
    before = {number: signal.signal(number, signal.SIG_IGN) for number in NUMBERS}
    try:
        signal.signal(signal.SIGUSR1, signal.SIG_DFL)
        interrupts = Interrupts()
        interrupts.hold()
        for number in set(NUMBERS) - {signal.SIGUSR1}:
            os.kill(os.getpid(), number)
        assert not interrupts.requested
        os.kill(os.getpid(), signal.SIGUSR1)
        assert interrupts.requested  # on the main thread a handler has run when `kill` returns
        interrupts.release()
        assert signal.getsignal(signal.SIGUSR1) is signal.SIG_DFL
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGUSR2, signal.SIGQUIT])
def test_other_signals_end_it_as_a_kill_does(number, tmp_path):
    run_dir = tmp_path / "run"
    process = start(run_dir, LONG, preexec=no_core)
    wait_for(iterated(run_dir), process, "an iteration")
    stop(process, number)
    assert process.returncode == -number
    wait_for(lambda: not family(process), what="the end of all its processes")
    kept = frames_on_disk(run_dir)
    run(run_dir, f"total_frames={kept + FRAMES}")
    assert_one_curve(run_dir, kept + FRAMES)


def no_core():
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))


@pytest.mark.slow
def test_a_paused_run_goes_on(uninterrupted, tmp_path):
    """Ctrl-Z and `fg`, here longer than a worker may take to answer."""
    run_dir = tmp_path / "run"
    process = start(run_dir, f"total_frames={TOTAL}", "env.num_workers=2", "env.worker_timeout=2")
    wait_for(iterated(run_dir), process, "an iteration")
    os.killpg(process.pid, signal.SIGTSTP)
    os.killpg(process.pid, signal.SIGSTOP)  # orphaned groups ignore the first, which a terminal sends
    stopped = time.monotonic()
    wait_for(lambda: time.monotonic() - stopped > 3, what="the timeout to pass")
    os.killpg(process.pid, signal.SIGCONT)
    _, errors = process.communicate(timeout=120)
    assert process.returncode == 0, errors
    assert metrics(run_dir) == uninterrupted


def _pending(pid, number):
    pending = re.findall(r"(?:SigPnd|ShdPnd):\s*(\w+)", read_process(pid, "status"))
    return any(int(mask, 16) & (1 << number - 1) for mask in pending)


@pytest.mark.slow
def test_a_second_sigterm_is_no_second_wish(tmp_path):
    """`timeout` sends one to the process and one to its group."""
    process, one = start_and_stop_a_worker(tmp_path / "run")  # so that the first is not obeyed before the second
    for _ in range(2):
        os.kill(process.pid, signal.SIGTERM)
        wait_for(lambda: not _pending(process.pid, signal.SIGTERM), process, "the signal's handler")
    os.kill(one, signal.SIGCONT)
    _, errors = process.communicate(timeout=300)
    assert process.returncode == 0 and "is kept in" in errors


@pytest.mark.slow
def test_in_an_evaluation(tmp_path):
    """Which plays 4 goals for 1,000,000 episodes each here, unless it is left."""
    endless = [f"eval.every_frames={2 * FRAMES}", "eval.adaptation_episodes=1_000_000", "env.num_workers=2"]
    process = start(tmp_path / "run", LONG, *endless)
    wait_for(lambda: len(workers(process)) == 4, process, "workers of the evaluation beside those of the training")
    mapped = shared_memory(process)
    errors, seconds = stop(process, signal.SIGINT)
    assert process.returncode == 0 and seconds < SECONDS, errors
    assert frames_on_disk(tmp_path / "run") == FRAMES
    assert {at for at, _, _ in metrics(tmp_path / "run")} == {FRAMES}
    assert_nobody_left(process, mapped)


@pytest.mark.slow
def test_an_evaluation_whose_worker_is_killed_is_repeated(tmp_path):
    endless = [f"eval.every_frames={2 * FRAMES}", "eval.adaptation_episodes=1_000_000", "env.num_workers=2"]
    process = start(tmp_path / "run", LONG, *endless, "env.restart_workers=true")
    wait_for(lambda: len(workers(process)) == 2, process, "the workers of the training")
    training = set(workers(process))
    wait_for(lambda: len(workers(process)) == 4, process, "those of the evaluation")
    evaluating = set(workers(process)) - training
    os.kill(max(evaluating), signal.SIGKILL)
    wait_for(lambda: len(set(workers(process)) - training - evaluating) == 2, process, "new ones")
    errors, _ = stop(process, signal.SIGINT)
    assert process.returncode == 0 and errors.count("fault while evaluating, it is repeated: ") == 1, errors


@pytest.mark.slow
@pytest.mark.parametrize("end", ["normal", "refused", "killed"])
def test_other_ends_leave_nobody_either(end, tmp_path):
    run_dir, total = tmp_path / "run", LONG if end == "killed" else f"total_frames={2 * FRAMES}"
    if end == "refused":
        run(run_dir, total)
        process = start(run_dir, "optim.lr=0.5", "env.num_workers=2")  # other settings than the run's
        _, errors = process.communicate(timeout=300)
        assert process.returncode == 2 and errors.count("\n") == 1
        wait_for(lambda: not family(process), what="the end of all its processes")
        return
    process = start(run_dir, total, "env.num_workers=2")
    wait_for(iterated(run_dir), process, "an iteration")
    mapped = shared_memory(process)
    if end == "killed":
        process.kill()
    process.communicate(timeout=300)
    assert process.returncode == (-signal.SIGKILL if end == "killed" else 0)
    assert_nobody_left(process, mapped)


@pytest.mark.slow
def test_a_collection_of_the_real_simulator_is_left_within_seconds(tmp_path):
    """ML10's iteration takes minutes; the signal comes in its middle."""
    run_dir = tmp_path / "run"
    process = start(
        run_dir,
        "total_frames=1_000_000",
        "env.num_envs=20",
        "env.horizon=500",
        "env.episodes_per_trial=10",
        "loss.minibatch_frames=4000",
        recipe="ml10_ppo",
    )
    wait_for((run_dir / "metrics.csv").exists, process, "the end of the start")
    one, other = workers(process)
    wait_for_work(process, [one, other], 0.5)
    mapped = shared_memory(process)
    errors, seconds = stop(process, signal.SIGINT, everyone=True)
    assert process.returncode == 0 and "is kept in" in errors, errors
    assert seconds < SECONDS
    assert frames_on_disk(run_dir) == 0 and len(list((run_dir / "checkpoints").iterdir())) == 1
    assert_nobody_left(process, mapped)


# ------------------------------------------------------------------------------------------------------------- killed


def kill_once(run_dir, how, rng):
    """Starts or continues the run and kills it."""
    before = frames_on_disk(run_dir)
    process = start(run_dir, LONG)
    if how == "any time":  # the start included
        wait_for_work(process, [process.pid], rng.uniform(0, 8))
    else:
        goal = before + FRAMES * rng.randrange(1, 4)
        wait_for(lambda: frames_on_disk(run_dir) >= goal, process, "an iteration")
        if how == "in a save":
            wait_for(lambda: stopped_in_a_save(process, run_dir), process, "a save")
        else:
            wait_for_work(process, [process.pid], rng.uniform(0, 0.3))
    process.kill()
    process.communicate(timeout=300)
    logged = metrics(run_dir) if (run_dir / "metrics.csv").exists() else []
    kept = frames_on_disk(run_dir)
    assert kept >= before
    assert max((at for at, _, _ in logged), default=0) - kept <= FRAMES  # what is lost
    assert how != "in a save" or (run_dir / "checkpoints" / ".stage").exists()  # there is something to sweep


def stopped_in_a_save(process, run_dir):
    return (run_dir / "checkpoints" / ".stage").exists() and _stopped(process, run_dir, in_a_save=True)


def stopped_between_saves(process, run_dir):
    return _stopped(process, run_dir, in_a_save=False)


def _stopped(process, run_dir, *, in_a_save):
    """Stops the process; where that is not the moment that is wanted, it goes on."""
    os.kill(process.pid, signal.SIGSTOP)
    wait_for(lambda: state_of(process.pid) == "T", what="the process to stop")
    if (run_dir / "checkpoints" / ".stage").exists() == in_a_save:
        return True
    os.kill(process.pid, signal.SIGCONT)
    return False


@pytest.mark.slow
@pytest.mark.parametrize("kills", [3, 30])
def test_kills_at_any_moment(kills, tmp_path):
    run_dir, rng = tmp_path / "run", random.Random(kills)
    for how in ["any time", "in an iteration", "in a save"] * (kills // 3):
        kill_once(run_dir, how, rng)
    kept = frames_on_disk(run_dir)
    total = kept + 3 * FRAMES
    done = run(run_dir, f"total_frames={total}")
    assert f"continuing {run_dir} at {kept:,} of" in done.stdout
    assert "damaged" not in done.stderr
    assert not list((run_dir / "checkpoints").glob(".*"))
    assert_one_curve(run_dir, total)
    run(tmp_path / "whole", f"total_frames={total}")
    assert metrics(run_dir) == metrics(tmp_path / "whole")
    assert curve(run_dir) == curve(tmp_path / "whole")


# ------------------------------------------------------------------------------------------------------------- damaged


@pytest.mark.slow
def test_damaged_checkpoints_are_named_and_passed_over(uninterrupted, tmp_path):
    run_dir = tmp_path / "run"
    run(run_dir, f"total_frames={4 * FRAMES}")
    older, newest = sorted((run_dir / "checkpoints").glob("step-*"))
    with newest.open("r+b") as file:
        file.seek(newest.stat().st_size // 2)
        byte = file.read(1)
        file.seek(-1, os.SEEK_CUR)
        file.write(bytes([byte[0] ^ 16]))
    refused = run(run_dir, f"resume={newest}", code=2).stderr
    assert refused.startswith(
        f"error: {newest} is not a checkpoint of this package, or damaged (its checksum is wrong)"
    )
    assert refused.count("\n") == 1
    done = run(run_dir, f"total_frames={TOTAL}")
    assert f"{newest} is damaged (its checksum is wrong)" in done.stderr and f"using {older}\n" in done.stderr
    # The evaluation at the end of the first part is the one thing that the other run does not have.
    assert [row for row in metrics(run_dir) if row[0] < TOTAL] == [row for row in uninterrupted if row[0] < TOTAL]
    for path in (run_dir / "checkpoints").glob("step-*"):
        path.write_bytes(b"")
    assert "has no whole checkpoint" in run(run_dir, code=2).stderr
    assert metrics(run_dir)  # nothing was started over


@pytest.mark.slow
def test_going_back_to_an_older_checkpoint(uninterrupted, tmp_path):
    run_dir = tmp_path / "run"
    run(run_dir, f"total_frames={4 * FRAMES}", "checkpoint.keep=9")
    checkpoint = run_dir / "checkpoints" / f"step-{FRAMES:012d}.torchrl"
    process = start(run_dir, LONG, f"resume={checkpoint}", "checkpoint.every_frames=1_000_000")
    # The curve goes back after the checkpoints.
    wait_for(lambda: max(at for at, _, _ in metrics(run_dir)) < 4 * FRAMES, process, "the other future's end")
    errors, _ = stop(process, signal.SIGINT)
    assert process.returncode == 0 and "resume=" not in errors  # or the next start would go back again
    kept = frames_on_disk(run_dir)
    total = max(TOTAL, kept + FRAMES)
    run(run_dir, f"total_frames={total}")
    assert_one_curve(run_dir, total)
    assert [row for row in metrics(run_dir) if row[0] < TOTAL] == [row for row in uninterrupted if row[0] < TOTAL]


# ------------------------------------------------------------------------------------------------- moved and read-only


@pytest.mark.parametrize("replaced", [False, pytest.param(True, marks=pytest.mark.slow)])
@pytest.mark.slow
def test_a_folder_that_is_moved_away_is_said_and_not_made_anew(replaced, tmp_path):
    run_dir, moved = tmp_path / "run", tmp_path / "moved"
    process = start(run_dir, LONG, f"eval.every_frames={2 * FRAMES}")
    wait_for(iterated(run_dir), process, "an iteration")
    wait_for(lambda: stopped_between_saves(process, run_dir), process, "a moment between two saves")
    run_dir.rename(moved)
    if replaced:
        shutil.copytree(moved, run_dir)
        (run_dir / ".lock").write_text("of another run")
        before = sorted(run_dir.rglob("*"))
    os.kill(process.pid, signal.SIGCONT)
    said = ""
    for line in process.stderr:
        said += line
        if "warning: the checkpoint could not be written" in line and (replaced or "evaluations" in said):
            break
    errors, _ = stop(process, signal.SIGTERM)
    assert process.returncode == 1, errors
    assert "(its folder was moved" in said and "Traceback" not in said + errors
    assert "error: the checkpoint could not be written (its folder was moved" in errors
    if replaced:
        left = [path for path in sorted(run_dir.rglob("*")) if "evaluations" not in path.parts]
        assert left == [path for path in before if "evaluations" not in path.parts]
    else:
        assert not run_dir.exists()
    assert frames_on_disk(moved) >= FRAMES


@pytest.mark.slow
def test_a_folder_that_becomes_read_only_is_said(tmp_path):
    run_dir = tmp_path / "run"
    process = start(run_dir, LONG, preexec=obey_permissions)
    wait_for(iterated(run_dir), process, "an iteration")
    for folder in (run_dir, run_dir / "checkpoints"):
        folder.chmod(0o555)
    said = ""
    for line in process.stderr:
        said += line
        if "warning: the checkpoint could not be written (Permission denied)" in line:
            break
    errors, _ = stop(process, signal.SIGTERM)
    assert process.returncode == 1 and "Traceback" not in said + errors, errors
    assert "error: the checkpoint could not be written (Permission denied); older ones are as they were" in errors
    for folder in (run_dir, run_dir / "checkpoints"):
        folder.chmod(0o755)
    kept = frames_on_disk(run_dir)
    run(run_dir, f"total_frames={kept + FRAMES}")
    assert_one_curve(run_dir, kept + FRAMES)
