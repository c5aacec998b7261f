"""One run in a run folder at a time.

The lock is the kernel's (`flock` on ``run_dir/.lock``): it ends with its process, however that ends, so a lock file
that a killed run left behind locks nothing. What the file says (process id, host, and when the process started) is for
the sentence in which the second start is refused.
"""

import errno
import fcntl
import json
import os
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from htrmrl_torchrl.faults import UserError
from htrmrl_torchrl.runs.console import say

LOCK = ".lock"  # in a run folder, of the process that runs in it
_SECONDS_TO_SIGN = 2.0  # between taking the lock and having said who has it pass microseconds


@contextmanager
def locked(run_dir: Path) -> Iterator[None]:
    """Holds the lock of a run folder, which is created where it is missing and removed again if it stays empty.

    (Where several start together in a missing folder, one may have made it and another one have got the lock, which
    leaves an existing folder alone: then an empty folder can stay.)

    Raises:
        UserError: if another process holds it, or the folder cannot be written.
    """
    missing: list[Path] = []
    try:
        missing += [path for path in (run_dir, *run_dir.parents) if not path.exists()]
        descriptor = _take(run_dir / LOCK, run_dir)
    except OSError as error:
        _remove_empty(missing)
        raise UserError(
            f"run_dir is '{run_dir}' but {error.filename or run_dir} cannot be written ({error.strerror}): choose "
            "another folder"
        ) from error
    try:
        yield
    finally:
        with suppress(OSError):  # a folder that has become read-only
            if _is_still(run_dir / LOCK, descriptor):  # not that of a run in another folder of this name
                (run_dir / LOCK).unlink()  # before it is let go: whoever opened it notices in `_take`
        os.close(descriptor)
        _remove_empty(missing)


def holder(run_dir: Path) -> str | None:
    """The process that runs in a run folder, None if there is none."""
    try:
        descriptor = os.open(run_dir / LOCK, os.O_RDONLY)
    except OSError:
        return None
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return _holder(run_dir / LOCK)
    except OSError:  # a file system without locks
        return None
    finally:
        os.close(descriptor)
    return None


def _take(path: Path, run_dir: Path) -> int:
    while True:
        run_dir.mkdir(parents=True, exist_ok=True)
        # Python closes it in children, so that an environment worker cannot hold on to the lock.
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(descriptor)
            raise UserError(
                f"run_dir '{run_dir}' is in use by {_holder(path)}: stop it, or choose another run_dir"
            ) from None
        except OSError as error:
            if error.errno not in (errno.ENOSYS, errno.EOPNOTSUPP, errno.ENOLCK):
                os.close(descriptor)
                raise
            say(f"warning: {run_dir} is on a file system without locks, so a second run in it would go unnoticed")
        if _is_still(path, descriptor):
            break
        os.close(descriptor)  # its holder ended and removed it between our two calls
    who = {"pid": os.getpid(), "host": socket.gethostname(), "started": _started(os.getpid())}
    os.ftruncate(descriptor, 0)
    with suppress(OSError):  # a full disk takes no signature, but the lock holds
        os.pwrite(descriptor, json.dumps(who).encode(), 0)
    return descriptor


def _is_still(path: Path, descriptor: int) -> bool:
    try:
        return os.path.samestat(os.stat(path), os.fstat(descriptor))
    except OSError:
        return False


def _holder(path: Path) -> str:
    """Who holds the lock. What a killed run signed is no answer: its process is gone, or another one has its number."""
    deadline = time.monotonic() + _SECONDS_TO_SIGN
    while time.monotonic() < deadline:
        with suppress(OSError, ValueError, KeyError):
            who: dict[str, Any] = json.loads(path.read_text())
            if who["host"] != socket.gethostname():
                return f"process {who['pid']} on {who['host']}"
            if who["started"] == _started(who["pid"]):
                return f"process {who['pid']}"
        time.sleep(0.01)
    return "another process"


def _started(pid: int) -> str:
    """When a process started, in clock ticks since boot: with its number, what makes it unmistakable (Linux)."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[19]
    except OSError:
        return ""


def _remove_empty(folders: list[Path]) -> None:
    """Removes folders, innermost first, as far as nothing is in them."""
    with suppress(OSError):
        for folder in folders:
            folder.rmdir()
