"""Training runs as real processes: start them, stop them, and look at what is left of them."""

import csv
import ctypes
import io
import json
import os
import re
import signal
import subprocess
import sys
import time
from contextlib import redirect_stdout
from pathlib import Path
from unittest.mock import patch

import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from htrmrl_torchrl.checkpoints.checkpoint import read_component
from htrmrl_torchrl.runs.signals import NUMBERS
from recipes import ppo
from recipes.configuration.compose import run_recipe
from tests.checkpoints.test_archive import forged

ROOT = Path(__file__).resolve().parents[2]
# 8 lanes * 4 episodes * 6 steps = 192 frames an iteration; every boundary on disk, one evaluation at the end
FRAMES = 192
TINY = [
    "env.num_envs=8",
    "loss.minibatch_frames=96",
    "eval.every_frames=1_000_000",
    f"checkpoint.every_frames={FRAMES}",
]
DEADLINE = 300.0  # seconds for what takes a few on a machine with nothing else to do; only a fault waits for so long


def python_path(*folders):
    """These before whatever the interpreter that runs the tests was given."""
    return os.pathsep.join([*map(str, folders), *filter(None, [os.environ.get("PYTHONPATH")])])


def command(run_dir, *overrides, recipe="toy_ppo"):
    return [sys.executable, str(ROOT / "recipes" / f"{recipe}.py"), f"run_dir={run_dir}", *TINY, *overrides]


def run(run_dir, *overrides, code=0, **options):
    """Runs to the end."""
    done = subprocess.run(
        command(run_dir, *overrides, **options), capture_output=True, text=True, timeout=300, stdin=subprocess.DEVNULL
    )
    assert done.returncode == code, done.stderr
    assert_no_warning_of_ours(done.stderr)
    return done


def train_here(run_dir, *overrides, recipe="toy_ppo"):
    """Trains to the end in this process, where everything is imported already; returns what was printed."""
    arguments = [str(ROOT / "recipes" / f"{recipe}.py"), f"run_dir={run_dir}", *overrides]
    threads = torch.get_num_threads()
    try:
        with patch.object(sys, "argv", arguments), redirect_stdout(io.StringIO()) as said:
            run_recipe(ppo.train, config_name=recipe)
    finally:
        torch.set_num_threads(threads)  # of which the recipe leaves one
    return said.getvalue()


def here(monkeypatch, capsys, recipe, *, config_name):
    """Returns what runs a recipe's module in this process and returns what it printed, and its exit code."""

    def start(*arguments):
        monkeypatch.setattr(sys, "argv", [str(ROOT / "recipes" / f"{config_name}.py"), *arguments])
        code = 0
        try:
            run_recipe(recipe.run, config_name=config_name, check=recipe.check)
        except SystemExit as ended:
            code = ended.code
        return (*capsys.readouterr(), code)

    return start


def named_otherwise(checkpoint, target, name):
    """A sealed copy of a checkpoint that says another name of its environment."""
    config = read_component(checkpoint, "config")
    config["env"]["name"] = name
    return forged(checkpoint, target, files={"components/0002-config/value.json": json.dumps(config)})


def leaves_a_mark(folder, monkeypatch):
    """Returns the dotted path of a factory in a new module, and the file that importing it creates."""
    mark = folder / "imported"
    (folder / "marking_module.py").write_text(f"open({str(mark)!r}, 'w').close()\ndef factory(): ...\n")
    monkeypatch.syspath_prepend(folder)
    monkeypatch.delitem(sys.modules, "marking_module", raising=False)
    return "marking_module:factory", mark


def assert_no_warning_of_ours(said):
    """In a process of its own pytest's filters say nothing."""
    assert not re.search(r"(htrmrl_torchrl|recipes)/\S+\.py:\d+: \w*Warning", said), said


def start(run_dir, *overrides, preexec=None, **options):
    """Starts in a process group of its own, as a terminal would."""

    def prepare():
        hear_all_signals()
        if preexec is not None:
            preexec()

    process = subprocess.Popen(
        command(run_dir, *overrides, **options),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        preexec_fn=prepare,
        env={**os.environ, "PYTHONUNBUFFERED": "1"},
    )
    _started.append(process)
    return process


_started: list[subprocess.Popen[str]] = []


def end_started():
    """Kills what `start` has started: a test that fails leaves nothing running (`tests/conftest.py`)."""
    while _started:
        process = _started.pop()
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
            process.communicate()


def hear_all_signals():
    """In a child: some are ignored where the tests themselves run in a shell's background, or under `nohup`."""
    for number in (*NUMBERS, signal.SIGQUIT):
        signal.signal(number, signal.SIG_DFL)


def obey_permissions():
    """In a child before it becomes another program: root without the right to read and write everything."""
    for override in (1, 2):  # CAP_DAC_OVERRIDE, CAP_DAC_READ_SEARCH; 24 is PR_CAPBSET_DROP
        ctypes.CDLL(None).prctl(24, override)


def wait_for(condition, process=None, what="the condition"):
    """Looks again and again until it holds; a process that ends meanwhile is a fault."""
    deadline = time.monotonic() + DEADLINE
    while not (result := condition()):
        if process is not None and process.poll() is not None:
            raise AssertionError(f"ended with {process.returncode} before {what}: {process.stderr.read()}")
        if time.monotonic() > deadline:
            if process is not None:
                process.kill()
            raise AssertionError(f"waited {DEADLINE:.0f} s for {what}")
        time.sleep(0.002)
    return result


def frames_on_disk(run_dir):
    """Of the newest periodic checkpoint, 0 if there is none."""
    names = [path.stem for path in (run_dir / "checkpoints").glob("step-*.torchrl")]
    return max((int(name.removeprefix("step-")) for name in names), default=0)


def metrics(run_dir):
    """Everything in metrics.csv but timings and what the process took, in order and as written."""
    with (run_dir / "metrics.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    rows = [row for row in rows if not row["metric"].startswith(("time/", "process/"))]
    return [(int(row["frames"]), row["metric"], row["value"]) for row in rows]


def curve(run_dir, name="train/return"):
    """What TensorBoard shows of a metric."""
    events = EventAccumulator(str(run_dir / "tensorboard"), size_guidance={"scalars": 0}).Reload()
    return [(event.step, event.value) for event in events.Scalars(name)]


def assert_one_curve(run_dir, frames):
    """Each iteration once and in order, in both files."""
    expected = list(range(FRAMES, frames + 1, FRAMES))
    assert [at for at, name, _ in metrics(run_dir) if name == "train/return"] == expected
    assert [step for step, _ in curve(run_dir)] == expected


def family(process):
    """The processes of a session that `start` began, by their numbers."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                state, _, _, session = (entry / "stat").read_text().rpartition(")")[2].split()[:4]
            except (FileNotFoundError, ProcessLookupError):
                continue
            if int(session) == process.pid and state != "Z":
                found.append(int(entry.name))
    return found


def workers(process):
    """Those of a session's processes that multiprocessing has spawned."""
    return [pid for pid in family(process) if "spawn_main" in read_process(pid, "cmdline")]


def state_of(pid):
    """R where a process runs, S where it waits, T where it is stopped, Z where it has ended; empty if it is gone."""
    return read_process(pid, "stat").rpartition(")")[2].strip()[:1]


def read_process(pid, name):
    """A file of a process in /proc, empty if it is gone."""
    try:
        return Path(f"/proc/{pid}/{name}").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return ""


def cpu_seconds(pid):
    """What a process has worked so far: moments in these do not depend on how busy the machine is."""
    fields = read_process(pid, "stat").rpartition(")")[2].split()
    return sum(map(int, fields[11:13])) / os.sysconf("SC_CLK_TCK")


def wait_for_work(process, pids, seconds):
    """Until each of these processes has worked so much longer."""
    goals = {pid: cpu_seconds(pid) + seconds for pid in pids}
    wait_for(lambda: all(cpu_seconds(pid) >= goal for pid, goal in goals.items()), process, f"{seconds} s of work")


def wait_for_the_stopped(process, stopped):
    """Until a collection cannot go on because one of its workers is stopped (SIGSTOP)."""
    others = [pid for pid in workers(process) if pid != stopped]

    def nothing_goes_on():
        before = _switches(process.pid)
        asleep = state_of(process.pid) == "S" and all(state_of(pid) == "S" for pid in others)
        return asleep and state_of(process.pid) == "S" and _switches(process.pid) == before  # it slept all the while

    wait_for(lambda: state_of(stopped) == "T", process, "the worker to stop")
    wait_for(nothing_goes_on, process, "the collection to wait for the stopped worker")


def _switches(pid):
    return re.findall(r"ctxt_switches:\s*(\d+)", read_process(pid, "status"))


def shared_memory(process):
    """The inodes in /dev/shm that a session's processes have mapped: names say nothing of whose they are."""
    inodes = set()
    for pid in family(process):
        try:
            lines = Path(f"/proc/{pid}/maps").read_text().splitlines()
        except (FileNotFoundError, ProcessLookupError):
            continue
        inodes |= {int(line.split()[4]) for line in lines if "/dev/shm/" in line}
    return inodes


def assert_nobody_left(process, mapped):
    """No process of its session, and no name for the shared memory that it had."""
    wait_for(lambda: not family(process), what="the end of all its processes")
    assert mapped, "there was no shared memory to leave behind"
    assert not mapped & {entry.inode() for entry in os.scandir("/dev/shm")}
