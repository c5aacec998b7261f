"""Lanes spread over worker processes.

The main process holds deck, random streams and trial bookkeeping; workers hold simulators. So trajectories don't depend
on the number of workers. Arrays travel through shared memory, and nothing is pickled at a step.

    lanes   0 1 2 3 4 5 6        num_lanes = 7, num_workers = 2
    worker  0 0 0 0 1 1 1

A worker that raises, dies or gives no answer in time ends all of them with a :class:`WorkerFault`; the next reset of
all lanes starts new ones.
"""

import os
import pickle
import signal
import time
import traceback
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from multiprocessing import get_context, parent_process
from multiprocessing.connection import Connection, wait
from multiprocessing.sharedctypes import RawArray
from threading import Thread
from typing import Any, NoReturn

import numpy as np
import numpy.typing as npt

from htrmrl_torchrl.envs.lanes import BoolArray, FloatArray, IntArray, LaneBuilder, Picture
from htrmrl_torchrl.faults import WorkerFault

_THREAD_VARIABLES = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")
WORKER_TIMEOUT = 60.0  # a step of 20 lanes takes some milliseconds
BUILD_TIMEOUT = 600.0  # building 20 simulators takes seconds, on a busy machine perhaps a minute
_JOIN_SECONDS = 5.0
_SLICE_SECONDS = 1.0
_TYPES: dict[str, Any] = {"success": np.int8, "divergences": np.int64}  # the other arrays are float32
_STEP = _DONE = b""  # any other message to a worker is a pickled reset, any other from a worker is its traceback


class WorkerLanes:
    """``num_lanes`` lanes in ``num_workers`` spawned processes, each with a block of neighbouring lanes.

    Workers ignore Ctrl-C (the main process decides), and exit when the main process closes them or dies. Scripts that
    build this at module level need the usual ``if __name__ == "__main__":`` guard.

    Args:
        builder: builds the lanes of one worker; called in the worker as ``builder(num_lanes)``.
        num_lanes: N.
        num_workers: from 1 to N.
        obs_dim: length of one observation.
        action_low, action_high: action bounds [a].
        timeout: seconds within which a step must be answered, else the worker is killed. Time in which this process
            itself was stopped (Ctrl-Z) does not count.
        build_timeout: the same for starting and resetting, which build simulators; by default ten minutes, or ten times
            ``timeout`` if that is longer.

    Attributes:
        processes: the running workers.
        restarts: how often new workers took the place of failed ones.
        divergences: how often the simulators diverged so far, see :class:`Lanes`.

    Raises:
        ValueError: if ``num_workers`` is not from 1 to ``num_lanes``.
        WorkerFault: from the call in which a worker raises (with its traceback), dies (with its exit code) or hangs;
            all are then ended, within seconds.
    """

    def __init__(
        self,
        builder: LaneBuilder,
        *,
        num_lanes: int,
        num_workers: int,
        obs_dim: int,
        action_low: FloatArray,
        action_high: FloatArray,
        timeout: float = WORKER_TIMEOUT,
        build_timeout: float | None = None,
    ) -> None:
        if not 1 <= num_workers <= num_lanes:
            raise ValueError(
                f"num_workers must be from 1 to the number of lanes ({num_lanes}), received {num_workers}."
            )
        self.num_lanes, self.obs_dim = num_lanes, obs_dim
        self.action_low, self.action_high = action_low, action_high
        self.timeout = timeout
        self.build_timeout = max(BUILD_TIMEOUT, 10 * timeout) if build_timeout is None else build_timeout
        self.restarts, self._closed = 0, False
        self._builder, self._context = builder, get_context("spawn")
        shapes = {"action": (num_lanes, len(action_low)), "observation": (num_lanes, obs_dim), "reward": (num_lanes,)}
        self._buffers = {name: RawArray("f", int(np.prod(shape))) for name, shape in shapes.items()}
        self._buffers |= {"success": RawArray("b", num_lanes), "divergences": RawArray("q", num_lanes)}
        self._arrays = _as_arrays(self._buffers, num_lanes)
        self._blocks = np.array_split(np.arange(num_lanes), num_workers)
        self._connections: list[Connection] = []
        self.processes: list[Any] = []
        self._start()

    @property
    def divergences(self) -> int:
        return int(self._arrays["divergences"].sum())

    def reset(self, lanes: IntArray, tasks: IntArray, goals: IntArray, draws: IntArray | None = None) -> FloatArray:
        """Start an episode of ``(tasks[i], goals[i])`` on lane ``lanes[i]``; returns ``[len(lanes), obs_dim]``.

        After a fault a reset of all lanes starts new workers.
        """
        if not self._connections and not self._closed and len(lanes) == self.num_lanes:
            self.restarts += 1
            self._start()
        messages = {}
        for worker, block in enumerate(self._blocks):
            mine = (lanes >= block[0]) & (lanes <= block[-1])
            if mine.any():
                drawn = None if draws is None else draws[mine]
                messages[worker] = pickle.dumps((lanes[mine] - block[0], tasks[mine], goals[mine], drawn))
        self._ask(messages, self.build_timeout)
        return self._arrays["observation"][lanes]

    def step(self, actions: FloatArray) -> tuple[FloatArray, FloatArray, BoolArray]:
        """Step all lanes with ``actions`` [N, a]."""
        self._arrays["action"][:] = actions
        self._ask(dict.fromkeys(range(len(self._blocks)), _STEP), self.timeout)
        arrays = self._arrays
        return arrays["observation"].copy(), arrays["reward"].copy(), arrays["success"].astype(np.bool_)

    def render(self, lane: int, *, size: int) -> Picture:
        """Not supported: pictures stay in the process that draws them.

        Raises:
            ValueError: always.
        """
        raise ValueError(f"Lane {lane} lives in a worker process and cannot be drawn; build it with num_workers=0.")

    def close(self) -> None:
        """End the workers and wait for them; calling it twice is harmless."""
        self._closed = True
        self._stop()

    def _start(self) -> None:
        with self._unbroken(), _single_threaded_children(), _deaf_to_interrupts():
            for index, block in enumerate(self._blocks):
                ours, theirs = self._context.Pipe()
                arguments = (theirs, self._builder, self._buffers, self.num_lanes, int(block[0]), len(block))
                process = self._context.Process(
                    target=_work, args=arguments, daemon=True, name=f"environment-worker-{index}"
                )
                process.start()
                theirs.close()  # so that only the worker holds its end, and its death is seen here
                self._connections.append(ours)
                self.processes.append(process)
        with self._unbroken():
            self._receive(range(len(self._blocks)), self.build_timeout)

    def _stop(self) -> None:
        for connection in self._connections:
            connection.close()  # the worker reads end-of-file and leaves
        deadline = time.monotonic() + _JOIN_SECONDS
        for process in self.processes:
            process.join(max(0.0, deadline - time.monotonic()))
            if process.is_alive():
                process.kill()  # ends stopped processes and endless loops too
                process.join()
        self._connections, self.processes = [], []

    def _ask(self, messages: dict[int, bytes], seconds: float) -> None:
        """Send each worker its message and wait for all answers."""
        with self._unbroken():
            for worker, message in messages.items():
                self._send(worker, message)
            self._receive(messages, seconds)

    @contextmanager
    def _unbroken(self) -> Iterator[None]:
        """Ends the workers if anything breaks in, such as Ctrl-C in a notebook.

        Answers that nobody read would be taken for those to the next call.
        """
        try:
            yield
        except BaseException:
            self._stop()
            raise

    def _send(self, worker: int, message: bytes) -> None:
        if not self._connections:
            mend = "build the environment again" if self._closed else "reset all lanes to start new ones"
            raise RuntimeError(f"The environment workers are closed; {mend}.")
        try:
            self._connections[worker].send_bytes(message)
        except (BrokenPipeError, ConnectionResetError):
            self._fail(worker)

    def _receive(self, workers: Iterable[int], seconds: float) -> None:
        """Wait until each of these workers has answered, for ``seconds`` at most."""
        waiting = {self._connections[worker]: worker for worker in workers}
        left = seconds
        while waiting:
            # In slices: whoever was stopped himself for an hour finds one slice gone when he wakes, not an hour.
            answered: list[Any] = wait(list(waiting), min(left, _SLICE_SECONDS))
            if not answered:
                left -= _SLICE_SECONDS
                if left <= 0:
                    self._fail(min(waiting.values()), hung_for=seconds)
            for connection in answered:
                worker = waiting.pop(connection)
                try:
                    answer = connection.recv_bytes()
                except (EOFError, ConnectionResetError):  # what a death leaves
                    self._fail(worker)
                if answer != _DONE:
                    self._fail(worker, error=answer.decode())

    def _fail(self, worker: int, *, error: str | None = None, hung_for: float | None = None) -> NoReturn:
        process, block = self.processes[worker], self._blocks[worker]
        where = f"{process.name} (pid {process.pid}, lanes {block[0]} to {block[-1]})"
        if hung_for is not None:
            process.kill()
            message = f"{where} did not answer within {hung_for:g} s and was killed; worker_timeout decides."
        elif error is not None:
            message = f"{where} raised:\n{error}"
        else:
            process.join(_JOIN_SECONDS)
            message = f"{where} died with exit code {process.exitcode}; its last words, if any, are on stderr."
        self._stop()
        raise WorkerFault(message)


def _work(
    connection: Connection, builder: LaneBuilder, buffers: dict[str, Any], num_lanes: int, first: int, count: int
) -> None:
    """What a worker does: obey until the main process hangs up; tell when done, or the traceback of what went wrong."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    Thread(target=_leave_with_parent, daemon=True).start()
    arrays = {name: array[first : first + count] for name, array in _as_arrays(buffers, num_lanes).items()}
    before = int(arrays["divergences"][0])  # of workers that were here earlier
    try:
        lanes = builder(count)
        connection.send_bytes(_DONE)
        while True:
            message = connection.recv_bytes()
            if message == _STEP:
                arrays["observation"][:], arrays["reward"][:], arrays["success"][:] = lanes.step(arrays["action"])
                arrays["divergences"][0] = before + lanes.divergences
            else:
                addressed, *start = pickle.loads(message)
                arrays["observation"][addressed] = lanes.reset(addressed, *start)
            connection.send_bytes(_DONE)
    except (EOFError, BrokenPipeError, ConnectionResetError):
        return  # closed, or the main process is gone
    except Exception:
        with suppress(BrokenPipeError, ConnectionResetError):  # nobody is left to tell
            connection.send_bytes(traceback.format_exc().encode())


def _leave_with_parent() -> None:
    """End this process when the main one dies, even in the middle of a step that never ends."""
    parent = parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)


def _as_arrays(buffers: dict[str, Any], num_lanes: int) -> dict[str, npt.NDArray[Any]]:
    arrays: dict[str, npt.NDArray[Any]] = {}
    for name, buffer in buffers.items():
        flat = np.frombuffer(buffer, dtype=_TYPES.get(name, np.float32))
        arrays[name] = flat.reshape(num_lanes, -1) if name in ("action", "observation") else flat
    return arrays


@contextmanager
def _single_threaded_children() -> Iterator[None]:
    """Numeric libraries read these once at import, so they must be set before the child starts."""
    before = {name: os.environ.get(name) for name in _THREAD_VARIABLES}
    os.environ.update(dict.fromkeys(_THREAD_VARIABLES, "1"))
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


@contextmanager
def _deaf_to_interrupts() -> Iterator[None]:
    """Children inherit that SIGINT is blocked, so a Ctrl-C in the seconds of their imports does not reach them either.

    It reaches this process, which the terminal sends one too, right afterwards. (Windows blocks no signals.)
    """
    if not hasattr(signal, "pthread_sigmask"):
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
