"""Which process a memory is in: collectors send their policy to worker processes, each with lanes of its own."""

import copy
import multiprocessing
import os
import pickle
from multiprocessing.context import get_spawning_popen
from typing import Any

# Each worker counts a lane's episodes from a number of its own, so that a buffer notices when it is given batches of
# several workers (as MultiAsyncCollector's come) for those of one lane.
EPISODES_A_WORKER = 1 << 22


def worker_number() -> int | None:
    """The number, from 0, of the worker of a TorchRL collector that this process is; ``None`` elsewhere.

    TorchRL numbers its workers (``worker_idx``), but says so to the process's main function alone.
    """
    process = multiprocessing.current_process()
    if type(process).__module__.partition(".")[0] != "torchrl":
        return None
    number: int | None = getattr(process, "_kwargs", {}).get("worker_idx")
    return number


def sent_to_worker(process: int) -> bool:
    """Whether we are in a collector's worker, and what was last used in the process with the id `process` came here."""
    return process != os.getpid() and worker_number() is not None


def handed_over(state: Any) -> Any:
    """What a pickle or copy of an owner of `state` holds of it: nothing that the two would both write into.

    Torch shares the tensors that it sends to another process. One that is being started cannot take all of them as such
    (two views of one storage are a file descriptor too many), so that their values go there.
    """
    return copy.deepcopy(state) if get_spawning_popen() is None else _Values(pickle.dumps(state))


class _Values:
    """Pickled, which unpickles to what it was."""

    def __init__(self, pickled: bytes) -> None:
        self._pickled = pickled

    def __reduce__(self) -> tuple[Any, ...]:
        return pickle.loads, (self._pickled,)
