"""One run in a run folder at a time.

The operating system holds the lock (`filelock`, on ``run_dir/.lock``): it ends with its process, however that ends, so
a lock file that a killed run left behind locks nothing. The file names its holder (process id, host, and when the
process started) for the error that a second start gets.
"""

import errno
import json
import os
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from htrmrl_torchrl.faults import UserError
from htrmrl_torchrl.runs.console import say

LOCK = ".lock"  # in a run folder, of the process that runs in it
_SECONDS_TO_SIGN = 2.0  # a process signs its lock within microseconds


@contextmanager
def locked(run_dir: Path) -> Iterator[None]:
    """Holds the lock of a run folder, which is created where it is missing and removed again if it stays empty.

    (It can stay where several runs start together: only the one that created the folder removes it.)

    Raises:
        UserError: if another process holds it, or the folder cannot be written.
    """
    missing: list[Path] = []
    signed: list[os.stat_result] = []

    def sign(descriptor: int) -> None:
        signed.append(os.fstat(descriptor))
        who = {"pid": os.getpid(), "host": socket.gethostname(), "started": _started(os.getpid())}
        os.ftruncate(descriptor, 0)
        with suppress(OSError):  # a full disk takes no signature, but the lock holds
            os.write(descriptor, f" {json.dumps(who)}".encode())

    try:
        missing += [path for path in (run_dir, *run_dir.parents) if not path.exists()]
        run_dir.mkdir(parents=True, exist_ok=True)
        lock = FileLock(run_dir / LOCK, blocking=False, on_acquired=sign)
        _take(lock, run_dir)
    except OSError as error:
        _remove_empty(missing)
        raise UserError(
            f"run_dir is '{run_dir}' but {error.filename or run_dir} cannot be written ({error.strerror}): choose "
            "another folder"
        ) from error
    try:
        yield
    finally:
        with suppress(OSError):  # a folder that has become read-only, or a system that deletes no open file
            # Another run may have its lock in a new folder of this name.
            if signed and os.path.samestat(os.stat(run_dir / LOCK), signed[0]):
                (run_dir / LOCK).unlink()  # while it is held: whoever has opened it meanwhile tries again
        lock.release()
        _remove_empty(missing)


def holder(run_dir: Path) -> str | None:
    """The process that runs in a run folder, None if there is none."""
    path = run_dir / LOCK
    if not path.exists():
        return None
    try:
        with FileLock(path, blocking=False):
            return None
    except Timeout:
        return _signature(path) or "another process"
    except OSError:  # a file system without locks, or a folder that is gone
        return None


def _take(lock: FileLock, run_dir: Path) -> None:
    """Takes the lock, or says who holds it; a holder that is just ending or beginning has not signed."""
    deadline = time.monotonic() + _SECONDS_TO_SIGN
    while True:
        try:
            lock.acquire()
            return
        except Timeout:
            who = _signature(run_dir / LOCK)
            if who or time.monotonic() > deadline:
                raise UserError(
                    f"run_dir '{run_dir}' is in use by {who or 'another process'}: stop it, or choose another run_dir"
                ) from None
        except OSError as error:
            if error.errno not in (errno.ENOSYS, errno.EOPNOTSUPP, errno.ENOLCK):
                raise
            (run_dir / LOCK).unlink(missing_ok=True)
            say(f"warning: {run_dir} is on a file system without locks, so a second run in it would go unnoticed")
            return
        time.sleep(0.01)


def _signature(path: Path) -> str | None:
    """Whom a lock file names, if that process runs: one of a killed run is gone, or another one has its number."""
    with suppress(OSError, ValueError, LookupError, TypeError), path.open("rb", buffering=0) as file:
        file.seek(1)  # Windows refuses to read the first byte, which is what it locks
        who: dict[str, Any] = json.loads(file.read())
        if who["host"] != socket.gethostname():
            return f"process {who['pid']} on {who['host']}"
        if who["started"] == _started(who["pid"]):
            return f"process {who['pid']}"
    return None


def _started(pid: int) -> str:
    """When a process started, in clock ticks since boot: tells it from others of its number (Linux)."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[19]
    except OSError:
        return ""


def _remove_empty(folders: list[Path]) -> None:
    """Removes folders, innermost first, as far as nothing is in them."""
    with suppress(OSError):
        for folder in folders:
            folder.rmdir()
