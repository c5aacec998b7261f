"""Signals that ask a recipe to stop (`NUMBERS`): when it may be left, and how.

Ctrl-C, SIGTERM (``kill``, ``timeout``, schedulers), SIGHUP (a closed terminal) and SIGUSR1 (batch systems, some time
before they kill) are obeyed alike. All others do what they always do.

A handler that raises would raise anywhere, for example in a half-written file. So while there is something to lose the
handler only takes note, and training checks it before every call of the encoder, which is every few milliseconds. If a
step hangs, a second Ctrl-C ends the process from inside the handler.
"""

import ctypes
import multiprocessing
import os
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from multiprocessing import resource_tracker
from types import FrameType
from typing import Any, NoReturn

from htrmrl_torchrl.runs.console import command_line, occupy_standard_descriptors, say

NUMBERS = tuple(
    signal.Signals[name] for name in ("SIGINT", "SIGTERM", "SIGHUP", "SIGUSR1") if hasattr(signal, name)
)  # Windows has the first two


class Left(BaseException):
    """Raised at a point where training may be left. No Exception, so that no library takes it for a fault."""


class Interrupts:
    """Between `hold` and `release` a first signal is noted in ``requested``; a Ctrl-C after it ends with code 130.

    Other signals are noted once, since schedulers and ``timeout`` send one to the process and one to its group.
    """

    def __init__(self) -> None:
        self.requested = False
        self._before: dict[int, Any] = {}

    def leave_before(self) -> Callable[..., None]:
        """A forward pre-hook that raises `Left` once a signal was noted."""

        def leave_if_requested(*_: object) -> None:  # a function: what copies the network must not copy the note
            if self.requested:
                raise Left

        return leave_if_requested

    def hold(self) -> None:
        """From now on signals are noted."""
        self._before = _handle(self._note)

    def release(self) -> None:
        """Signals do what they did before."""
        _restore(self._before)

    def _note(self, number: int, frame: FrameType | None) -> None:
        if self.requested and number == signal.SIGINT:
            say("stopped at once")
            _end(128 + number)
        self.requested = True


@contextmanager
def ending_at_once(*, sentence: Callable[[], str] = str, status: int | None = None) -> Iterator[None]:
    """Meanwhile, while nothing would be lost, a signal ends the process at once, without a traceback.

    Args:
        sentence: what to say then, if anything.
        status: exit code; by default the shells' own, 128 plus the signal's number.
    """

    def end(number: int, frame: FrameType | None) -> None:
        if said := sentence():
            say(said)
        _end(128 + number if status is None else status)

    before = _handle(end)
    try:
        yield
    finally:
        _restore(before)


_went_back = False


def gone_back() -> None:
    """From now on the run folder is where ``resume=PATH`` asked for: the next start begins where this one is left."""
    global _went_back
    _went_back = True


def command_to_continue() -> str:
    """What to type to go on with this run, ready for a shell."""
    arguments = [argument for argument in sys.argv[1:] if not (_went_back and argument.startswith("resume="))]
    return command_line(arguments, python=sys.executable)


_PR_SET_PDEATHSIG = 1  # prctl(2)


def end_with_parent() -> Callable[[], None] | None:
    """For `subprocess.Popen(preexec_fn=)`: the child gets a SIGTERM when this process ends, even by SIGKILL.

    The kernel sends it on Linux; elsewhere the answer is None.
    """
    if sys.platform != "linux":
        return None
    prctl, parent = ctypes.CDLL(None).prctl, os.getpid()

    def ask_for_signal() -> None:
        prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
        if os.getppid() != parent:  # it has ended already
            os._exit(1)

    return ask_for_signal


def _handle(handler: Callable[[int, FrameType | None], None]) -> dict[int, Any]:
    """Installs a handler, except for what the process was started to ignore (``nohup``, ``&`` in a script)."""
    _shield_resource_tracker()
    numbers = [number for number in NUMBERS if signal.getsignal(number) is not signal.SIG_IGN]
    return {number: signal.signal(number, handler) for number in numbers}


def _shield_resource_tracker() -> None:
    """Starts the process that cleans up after multiprocessing; it has to outlive this one, and hear none of `NUMBERS`.

    By itself it ignores Ctrl-C and SIGTERM only. It inherits the others as blocked. (Windows has no such process.)
    """
    if not hasattr(signal, "pthread_sigmask"):
        return
    occupy_standard_descriptors()  # or its pipe would get the number of a closed stdout or stderr
    before = signal.pthread_sigmask(signal.SIG_BLOCK, NUMBERS)
    try:
        resource_tracker.ensure_running()
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _restore(handlers: dict[int, Any]) -> None:
    for number, handler in handlers.items():
        signal.signal(number, handler)


def _end(status: int) -> NoReturn:
    """Ends environment workers and the process: no cleaning up, which could wait for what hangs."""
    for child in multiprocessing.active_children():
        child.kill()
    with suppress(OSError):
        sys.stdout.flush()
    os._exit(status)
