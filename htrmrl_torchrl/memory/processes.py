"""Identifies the process of a memory: collectors send their policy to worker processes with other environments."""

import copy
import multiprocessing
import os
import pickle
from multiprocessing.context import get_spawning_popen
from typing import Any

# Each worker numbers episodes from its own offset, so that a buffer detects batches of several workers (as from
# MultiAsyncCollector) that are added as those of one environment.
EPISODES_A_WORKER = 1 << 22


def worker_number() -> int | None:
    """The number, from 0, of the TorchRL collector's worker that this process is; ``None`` elsewhere.

    TorchRL numbers its workers (``worker_idx``) but passes the number only to the process's main function.
    """
    process = multiprocessing.current_process()
    if type(process).__module__.partition(".")[0] != "torchrl":
        return None
    number: int | None = getattr(process, "_kwargs", {}).get("worker_idx")
    return number


def sent_to_worker(process: int) -> bool:
    """Whether this is a collector's worker, and an object last used in the process with id `process` was sent to it."""
    return process != os.getpid() and worker_number() is not None


def handed_over(state: Any) -> Any:
    """`state` for a pickle or copy of its owner; original and copy share nothing that either modifies.

    Torch shares tensors that it sends to another process. A process that is being started cannot receive all of them
    that way (two views of one storage need a file descriptor too many), so their values are sent.
    """
    return copy.deepcopy(state) if get_spawning_popen() is None else _Values(pickle.dumps(state))


class _Values:
    """A pickled object, which unpickles to the original."""

    def __init__(self, pickled: bytes) -> None:
        self._pickled = pickled

    def __reduce__(self) -> tuple[Any, ...]:
        return pickle.loads, (self._pickled,)
