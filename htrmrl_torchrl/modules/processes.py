"""Which process a memory is in: collectors send their policy to worker processes, each with lanes of its own."""

import multiprocessing
import os

# Each worker counts a lane's episodes from a number of its own, so that a buffer notices when it is given the batches of
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
