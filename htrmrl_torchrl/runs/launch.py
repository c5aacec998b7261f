"""The processes of a run: on one machine the first starts the others; ``torchrun`` starts all, on several machines.

::

    htrmrl run ml10 workers=4                                                   this process and three of its own
    torchrun --nnodes 2 --nproc-per-node 4 ... recipes/ml10_ppo.py              eight, of which none starts another

The others are spawned, not started as commands: they get the checked configuration, paths of the user's own code and
``sys.argv`` from the first, so that sweeps, notebooks and tests can have them too.
"""

import multiprocessing
import os
import signal
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from multiprocessing import parent_process
from threading import Thread
from typing import Any

import torch
from torch.distributed import TCPStore  # type: ignore[attr-defined]
from torch.distributed.rendezvous import rendezvous

from htrmrl_torchrl.faults import UserError
from htrmrl_torchrl.parallel.ranks import RankFault, Ranks
from htrmrl_torchrl.runs.signals import NUMBERS, end_with_parent, ending_at_once

Follow = Callable[[Any, Ranks], None]
_HOST = "127.0.0.1"
_JOIN_SECONDS = 10.0
_PATIENCE = timedelta(days=365)  # of the store, whose waits are ours


def number_of_rank() -> int:
    """The number of this process among those of its run; 0 if it is the only one."""
    return int(os.environ.get("RANK", "0")) if "WORLD_SIZE" in os.environ else 0


@contextmanager
def ranks_of_run(workers: int, follow: Follow, settings: Any, *, seconds: float) -> Iterator[Ranks]:
    """The processes of a run, all ended after the block; within it torch has this process's part of the cores.

    Args:
        workers: how many there are.
        follow: what each started process does: ``follow(settings, its ranks)``; a function of a module.
        settings: anything that can be pickled.
        seconds: for which they wait for each other.

    Raises:
        UserError: if ``torchrun`` has started another number of processes.
    """
    threads = torch.get_num_threads()
    try:
        yield from _ranks(workers, follow, settings, seconds)
    finally:
        torch.set_num_threads(threads)


def _ranks(workers: int, follow: Follow, settings: Any, seconds: float) -> Iterator[Ranks]:
    started = int(os.environ.get("WORLD_SIZE", "1")) if "RANK" in os.environ else 1
    if started > 1:
        if workers not in (1, started):
            raise UserError(f"workers is {workers} but must be 1, or {started} as torchrun has started: leave it out")
        store, rank, size = next(iter(rendezvous("env://", timeout=_PATIENCE)))
        _share_cores(int(os.environ.get("LOCAL_WORLD_SIZE", size)))
        ranks = Ranks(rank, size, store=store, seconds=seconds)
        yield ranks
        ranks.close()  # not after a fault: it would wait for what others have not sent
    elif workers == 1:
        yield Ranks()
    else:
        yield from _started(workers, follow, settings, seconds)


def _started(size: int, follow: Follow, settings: Any, seconds: float) -> Iterator[Ranks]:
    store = TCPStore(_HOST, 0, size, is_master=True, wait_for_workers=False, timeout=_PATIENCE)
    context, processes = multiprocessing.get_context("spawn"), {}
    with _loopback(), _blocked():
        for rank in range(1, size):
            arguments = (follow, settings, store.port, rank, size, seconds)
            # Daemons: they end with this process, and have no processes of their own.
            process = context.Process(target=_work, args=arguments, daemon=True, name=f"rank-{rank}")
            process.start()
            processes[rank] = process
    ranks, patience = None, 0.0
    try:
        with _loopback():
            _share_cores(size)
            ranks = Ranks(0, size, store=store, seconds=seconds, processes=processes)
        yield ranks
        patience = _JOIN_SECONDS
    finally:
        deadline = time.monotonic() + patience
        for process in processes.values():
            process.join(max(0.0, deadline - time.monotonic()))
            process.kill()
            process.join()
        if ranks is not None:
            ranks.close()  # last: it waits for what others have not sent


def _work(follow: Follow, settings: Any, port: int, rank: int, size: int, seconds: float) -> None:
    """What a started process does."""
    os.environ |= {"RANK": str(rank), "WORLD_SIZE": str(size)}
    _leave_with_parent()
    with ending_at_once(status=0):
        if hasattr(signal, "pthread_sigmask"):
            signal.pthread_sigmask(signal.SIG_UNBLOCK, NUMBERS)
        _share_cores(size)
        store = TCPStore(_HOST, port, size, is_master=False, wait_for_workers=False, timeout=_PATIENCE)
        ranks = Ranks(rank, size, store=store, seconds=seconds)
        follow(settings, ranks)
        ranks.close()


def following(run: Callable[[], None], ranks: Ranks) -> None:
    """Runs one of the ranks that follow the first, which says why they end."""
    try:
        run()
    except RankFault as error:
        raise SystemExit(error.exit_code) from None
    except UserError as error:
        ranks.report(error)
        raise SystemExit(error.exit_code) from None
    except Exception as error:
        ranks.report(error)
        raise


def _leave_with_parent() -> None:
    """Ends this process when the first rank ends in whatever way; on Linux even where it is stopped."""
    parent = parent_process()
    assert parent is not None

    def watch() -> None:
        parent.join()
        os._exit(1)

    Thread(target=watch, daemon=True).start()
    if (ask := end_with_parent(parent.pid, number=signal.SIGKILL)) is not None:
        ask()


def _share_cores(processes: int) -> None:
    """Each of so many processes of this machine computes on its part of the cores, unless the user has said how many
    threads torch has."""
    if not {"OMP_NUM_THREADS", "MKL_NUM_THREADS"} & os.environ.keys():
        torch.set_num_threads(max(1, torch.get_num_threads() // processes))


@contextmanager
def _loopback() -> Iterator[None]:
    """Within the block gloo uses this machine's own network alone, whatever its name resolves to (Linux only)."""
    name = "GLOO_SOCKET_IFNAME"
    if name in os.environ or sys.platform != "linux":
        yield
        return
    os.environ[name] = "lo"
    try:
        yield
    finally:
        del os.environ[name]


@contextmanager
def _blocked() -> Iterator[None]:
    """Children inherit that signals are blocked, until they handle them."""
    if not hasattr(signal, "pthread_sigmask"):
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, NUMBERS)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
