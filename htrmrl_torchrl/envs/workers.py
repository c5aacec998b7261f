"""Environments in worker processes.

The main process holds deck, random streams and trial bookkeeping; workers hold simulators. So trajectories do not
depend on the number of workers. Arrays are in shared memory, and steps pickle nothing.

    environment  0 1 2 3 4 5 6        num_lanes = 7, num_workers = 2
    worker       0 0 0 0 1 1 1

If a worker raises, dies or does not answer in time, all workers end with a :class:`WorkerFault`. The next reset of all
environments starts new ones.
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
WORKER_TIMEOUT = 60.0  # a step of 20 environments takes some milliseconds
BUILD_TIMEOUT = 600.0  # building 20 simulators takes seconds, on a busy machine perhaps a minute
_JOIN_SECONDS = 5.0
_SLICE_SECONDS = 1.0
_TYPES: dict[str, Any] = {"success": np.int8, "divergences": np.int64}  # the other arrays are float32
_STEP = _DONE = b""  # other messages to a worker are pickled resets, other messages from it are tracebacks


class WorkerLanes:
    """``num_lanes`` environments in ``num_workers`` spawned processes, each with a block of consecutive environments.

    Workers ignore Ctrl-C, which the main process handles. They exit when the main process closes them or dies. Scripts
    that build this at module level need the usual ``if __name__ == "__main__":`` guard.

    Args:
        builder: builds the simulators of one worker; called in the worker as ``builder(num_lanes)``.
        num_lanes: N.
        num_workers: from 1 to N.
        obs_dim: length of one observation.
        action_low, action_high: action bounds [a].
        timeout: seconds within which a step must be answered; otherwise the worker is killed. Time in which this
            process itself was stopped (Ctrl-Z) does not count.
        build_timeout: the same for starting and resetting, which build simulators; default: ten minutes, or ten times
            ``timeout`` if that is longer.

    Attributes:
        processes: the running workers.
        restarts: how often failed workers have been replaced.
        divergences: how often simulators have diverged so far, see :class:`Lanes`.

    Raises:
        ValueError: if ``num_workers`` is not from 1 to ``num_lanes``.
        WorkerFault: if a worker raises (with its traceback), dies (with its exit code) or hangs during a call; all
            workers are then ended, within seconds.
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
                f"num_workers must be from 1 to the number of environments ({num_lanes}), received {num_workers}."
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
        """Starts an episode of ``(tasks[i], goals[i])`` in environment ``lanes[i]``; returns ``[len(lanes), obs_dim]``.

        After a fault, a reset of all environments starts new workers.
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
        """Steps all environments with ``actions`` [N, a]."""
        self._arrays["action"][:] = actions
        self._ask(dict.fromkeys(range(len(self._blocks)), _STEP), self.timeout)
        arrays = self._arrays
        return arrays["observation"].copy(), arrays["reward"].copy(), arrays["success"].astype(np.bool_)

    def render(self, lane: int, *, size: int) -> Picture:
        """Not supported in worker processes.

        Raises:
            ValueError: always.
        """
        raise ValueError(f"Environment {lane} is in a worker process and cannot be drawn; use num_workers=0.")

    def close(self) -> None:
        """Ends the workers and waits for them; may be called twice."""
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
                theirs.close()  # only the worker keeps its end open, so its death is detected here
                self._connections.append(ours)
                self.processes.append(process)
        with self._unbroken():
            self._receive(range(len(self._blocks)), self.build_timeout)

    def _stop(self) -> None:
        for connection in self._connections:
            connection.close()  # the worker reads end-of-file and exits
        deadline = time.monotonic() + _JOIN_SECONDS
        for process in self.processes:
            process.join(max(0.0, deadline - time.monotonic()))
            if process.is_alive():
                process.kill()  # ends stopped processes and endless loops too
                process.join()
        self._connections, self.processes = [], []

    def _ask(self, messages: dict[int, bytes], seconds: float) -> None:
        """Sends each worker its message and waits for all answers."""
        with self._unbroken():
            for worker, message in messages.items():
                self._send(worker, message)
            self._receive(messages, seconds)

    @contextmanager
    def _unbroken(self) -> Iterator[None]:
        """Ends the workers after any exception, such as Ctrl-C in a notebook.

        Otherwise unread answers would be taken for answers to the next call.
        """
        try:
            yield
        except BaseException:
            self._stop()
            raise

    def _send(self, worker: int, message: bytes) -> None:
        if not self._connections:
            mend = "build the environment again" if self._closed else "reset all environments to start new ones"
            raise RuntimeError(f"The environment workers are closed; {mend}.")
        try:
            self._connections[worker].send_bytes(message)
        except (BrokenPipeError, ConnectionResetError):
            self._fail(worker)

    def _receive(self, workers: Iterable[int], seconds: float) -> None:
        """Waits until each of these workers has answered, at most ``seconds``."""
        waiting = {self._connections[worker]: worker for worker in workers}
        left = seconds
        while waiting:
            # In slices, so that an hour in which this process was stopped counts as one slice.
            answered: list[Any] = wait(list(waiting), min(left, _SLICE_SECONDS))
            if not answered:
                left -= _SLICE_SECONDS
                if left <= 0:
                    self._fail(min(waiting.values()), hung_for=seconds)
            for connection in answered:
                worker = waiting.pop(connection)
                try:
                    answer = connection.recv_bytes()
                except (EOFError, ConnectionResetError):  # the worker has died
                    self._fail(worker)
                if answer != _DONE:
                    self._fail(worker, error=answer.decode())

    def _fail(self, worker: int, *, error: str | None = None, hung_for: float | None = None) -> NoReturn:
        process, block = self.processes[worker], self._blocks[worker]
        where = f"{process.name} (pid {process.pid}, environments {block[0]} to {block[-1]})"
        if hung_for is not None:
            process.kill()
            message = f"{where} did not answer within {hung_for:g} s and was killed; raise worker_timeout if needed."
        elif error is not None:
            message = f"{where} raised:\n{error}"
        else:
            process.join(_JOIN_SECONDS)
            message = f"{where} died with exit code {process.exitcode}; its error output, if any, is on stderr."
        self._stop()
        raise WorkerFault(message)


def _work(
    connection: Connection, builder: LaneBuilder, buffers: dict[str, Any], num_lanes: int, first: int, count: int
) -> None:
    """A worker's loop: executes each message and answers when done, or sends the traceback of an exception and ends."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    Thread(target=_leave_with_parent, daemon=True).start()
    arrays = {name: array[first : first + count] for name, array in _as_arrays(buffers, num_lanes).items()}
    before = int(arrays["divergences"][0])  # counted by earlier workers
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
        with suppress(BrokenPipeError, ConnectionResetError):  # the main process is gone
            connection.send_bytes(traceback.format_exc().encode())


def _leave_with_parent() -> None:
    """Ends this process when the main process dies, even during an endless step."""
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
    """Sets the thread variables before a child starts, because numeric libraries read them once at import."""
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
    """Blocks SIGINT, which children inherit, so that Ctrl-C during their imports does not reach them.

    This process receives the signal right afterwards. (Windows blocks no signals.)
    """
    if not hasattr(signal, "pthread_sigmask"):
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
