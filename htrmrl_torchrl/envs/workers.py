"""Lanes spread over worker processes.

The main process keeps everything that is decided (deck, random streams, trial bookkeeping) and only sends actions;
workers hold simulators. So trajectories don't depend on the number of workers. Arrays travel through shared memory;
through pipes go an empty message for "step" and one for "done", so that nothing is pickled at a step.

    lanes   0 1 2 3 4 5 6        num_lanes = 7, num_workers = 2
    worker  0 0 0 0 1 1 1
"""

import os
import pickle
import signal
import traceback
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from multiprocessing import get_context
from multiprocessing.connection import Connection
from multiprocessing.sharedctypes import RawArray
from typing import Any, NoReturn

import numpy as np
import numpy.typing as npt

from htrmrl_torchrl.envs.lanes import BoolArray, FloatArray, IntArray, Lanes, Picture

LaneBuilder = Callable[[int], Lanes]  # number of lanes -> lanes; pickled into the worker
_THREAD_VARIABLES = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")
_JOIN_SECONDS = 5.0
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
        action_low: lower action bounds [a].
        action_high: upper action bounds [a].

    Raises:
        ValueError: if ``num_workers`` is not from 1 to ``num_lanes``.
        RuntimeError: from the call in which a worker raises (with its traceback) or dies (with its exit code); all are
            then closed.
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
    ) -> None:
        if not 1 <= num_workers <= num_lanes:
            raise ValueError(
                f"num_workers must be from 1 to the number of lanes ({num_lanes}), received {num_workers}."
            )
        self.num_lanes, self.obs_dim = num_lanes, obs_dim
        self.action_low, self.action_high = action_low, action_high
        shapes = {"action": (num_lanes, len(action_low)), "observation": (num_lanes, obs_dim), "reward": (num_lanes,)}
        self._buffers = {name: RawArray("f", int(np.prod(shape))) for name, shape in shapes.items()}
        self._buffers["success"] = RawArray("b", num_lanes)
        self._arrays = _as_arrays(self._buffers, num_lanes)
        self._blocks = np.array_split(np.arange(num_lanes), num_workers)
        self._connections: list[Connection] = []
        self.processes: list[Any] = []
        context = get_context("spawn")
        with _single_threaded_children(), _deaf_to_interrupts():
            for index, block in enumerate(self._blocks):
                ours, theirs = context.Pipe()
                arguments = (theirs, builder, self._buffers, num_lanes, int(block[0]), len(block))
                process = context.Process(target=_work, args=arguments, daemon=True, name=f"environment-worker-{index}")
                process.start()
                theirs.close()  # so that only the worker holds its end, and its death is seen here
                self._connections.append(ours)
                self.processes.append(process)
        self._receive(range(num_workers))

    def reset(self, lanes: IntArray, tasks: IntArray, goals: IntArray) -> FloatArray:
        """Start an episode of ``(tasks[i], goals[i])`` on lane ``lanes[i]``; returns ``[len(lanes), obs_dim]``."""
        addressed = []
        for worker, block in enumerate(self._blocks):
            mine = (lanes >= block[0]) & (lanes <= block[-1])
            if mine.any():
                self._send(worker, pickle.dumps((lanes[mine] - block[0], tasks[mine], goals[mine])))
                addressed.append(worker)
        self._receive(addressed)
        return self._arrays["observation"][lanes]

    def step(self, actions: FloatArray) -> tuple[FloatArray, FloatArray, BoolArray]:
        """Step all lanes with ``actions`` [N, a]."""
        self._arrays["action"][:] = actions
        for worker in range(len(self._blocks)):
            self._send(worker, _STEP)
        self._receive(range(len(self._blocks)))
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
        for connection in self._connections:
            connection.close()  # the worker reads end-of-file and leaves
        for process in self.processes:
            process.join(_JOIN_SECONDS)
            if process.is_alive():
                process.kill()
                process.join()
        self._connections, self.processes = [], []

    def _send(self, worker: int, message: bytes) -> None:
        if not self._connections:
            raise RuntimeError("The environment workers are closed; build the environment again.")
        try:
            self._connections[worker].send_bytes(message)
        except (BrokenPipeError, ConnectionResetError):
            self._fail(worker)

    def _receive(self, workers: Iterable[int]) -> None:
        for worker in workers:
            try:
                answer = self._connections[worker].recv_bytes()
            except (EOFError, ConnectionResetError):  # what a death leaves
                self._fail(worker)
            if answer != _DONE:
                self._fail(worker, answer.decode())

    def _fail(self, worker: int, error: str | None = None) -> NoReturn:
        process, block = self.processes[worker], self._blocks[worker]
        where = f"{process.name} (pid {process.pid}, lanes {block[0]} to {block[-1]})"
        if error is None:
            process.join(_JOIN_SECONDS)
            message = f"{where} died with exit code {process.exitcode}; its last words, if any, are on stderr."
        else:
            message = f"{where} raised:\n{error}"
        self.close()
        raise RuntimeError(message)


def _work(
    connection: Connection, builder: LaneBuilder, buffers: dict[str, Any], num_lanes: int, first: int, count: int
) -> None:
    """What a worker does: obey until the main process hangs up; tell when done, or the traceback of what went wrong."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    arrays = {name: array[first : first + count] for name, array in _as_arrays(buffers, num_lanes).items()}
    try:
        lanes = builder(count)
        connection.send_bytes(_DONE)
        while True:
            message = connection.recv_bytes()
            if message == _STEP:
                arrays["observation"][:], arrays["reward"][:], arrays["success"][:] = lanes.step(arrays["action"])
            else:
                addressed, tasks, goals = pickle.loads(message)
                arrays["observation"][addressed] = lanes.reset(addressed, tasks, goals)
            connection.send_bytes(_DONE)
    except (EOFError, BrokenPipeError, ConnectionResetError):
        return  # closed, or the main process is gone
    except Exception:
        with suppress(BrokenPipeError, ConnectionResetError):  # nobody is left to tell
            connection.send_bytes(traceback.format_exc().encode())


def _as_arrays(buffers: dict[str, Any], num_lanes: int) -> dict[str, npt.NDArray[Any]]:
    arrays: dict[str, npt.NDArray[Any]] = {}
    for name, buffer in buffers.items():
        flat = np.frombuffer(buffer, dtype=np.int8 if name == "success" else np.float32)
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

    It reaches this process, which the terminal sends one too, right afterwards.
    """
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
