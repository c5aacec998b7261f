"""Signals that ask a recipe to stop (`NUMBERS`): Ctrl-C, SIGTERM, SIGHUP (closed terminal), SIGUSR1 (batch systems).

Raising in a handler could interrupt anything, for example a half-written file. So during an iteration the handler only
sets a flag, which training checks before every call of the encoder, every few milliseconds. If a step hangs, a second
Ctrl-C ends the process from the handler.
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

from htrmrl_torchrl.faults import Left
from htrmrl_torchrl.runs.console import command_line, occupy_standard_descriptors, say

# Windows has the first two.
NUMBERS = tuple(signal.Signals[name] for name in ("SIGINT", "SIGTERM", "SIGHUP", "SIGUSR1") if hasattr(signal, name))


class Interrupts:
    """Between `hold` and `release` a first signal sets ``requested``; a Ctrl-C after it ends with code 130. Other
    signals have no second effect: schedulers and ``timeout`` send one to the process and one to its group.
    """

    def __init__(self) -> None:
        self.requested = False
        self._before: dict[int, Any] = {}

    def leave_before(self, *, free: Callable[[], bool] = lambda: True) -> Callable[..., None]:
        """A forward pre-hook that raises `Left` after a signal, unless others wait for this one (``free``)."""

        def leave_if_requested(*_: object) -> None:  # a function, because copies of the network must not copy the flag
            if self.requested and free():
                raise Left

        return leave_if_requested

    def hold(self) -> None:
        self._before = _handle(self._note)

    def release(self) -> None:
        _restore(self._before)

    def _note(self, number: int, frame: FrameType | None) -> None:
        if self.requested and number == signal.SIGINT:
            say("stopped at once")
            _end(128 + number)
        self.requested = True


@contextmanager
def ending_at_once(*, sentence: Callable[[], str] = str, status: int | None = None) -> Iterator[None]:
    """Within the block a signal prints ``sentence()``, if any, and ends the process at once, without a traceback; for
    when nothing would be lost. The exit code is ``status``, by default 128 plus the signal's number.
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
    """Drop ``resume=PATH`` from `command_to_continue`: the run folder is at that checkpoint now."""
    global _went_back
    _went_back = True


def command_to_continue() -> str:
    """The shell command that continues this run."""
    arguments = [argument for argument in sys.argv[1:] if not (_went_back and argument.startswith("resume="))]
    return command_line(arguments, python=sys.executable)


_PR_SET_PDEATHSIG = 1  # prctl(2)


def end_with_parent(parent: int | None = None, *, number: signal.Signals = signal.SIGTERM) -> Callable[[], None] | None:
    """For `subprocess.Popen(preexec_fn=)`: sends the child a signal when this process ends, even by SIGKILL. Linux
    only; elsewhere None.

    Args:
        parent: the process whose child calls what is returned; default this one.
        number: the signal.
    """
    if sys.platform != "linux":
        return None
    prctl, parent = ctypes.CDLL(None).prctl, os.getpid() if parent is None else parent

    def ask_for_signal() -> None:
        prctl(_PR_SET_PDEATHSIG, number)
        if os.getppid() != parent:  # the parent has ended already
            os._exit(1)

    return ask_for_signal


def _handle(handler: Callable[[int, FrameType | None], None]) -> dict[int, Any]:
    """Installs a handler, except for signals that the process was started to ignore (``nohup``, ``&`` in a script)."""
    _shield_resource_tracker()
    numbers = [number for number in NUMBERS if signal.getsignal(number) is not signal.SIG_IGN]
    return {number: signal.signal(number, handler) for number in numbers}


def _shield_resource_tracker() -> None:
    """Starts multiprocessing's resource tracker with `NUMBERS` blocked: it must outlive this process. By itself it
    ignores Ctrl-C and SIGTERM only. Windows has no such process.
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
    """Kills workers and exits without cleanup, which could wait for a hanging step."""
    for child in multiprocessing.active_children():
        child.kill()
    with suppress(OSError):
        sys.stdout.flush()
    os._exit(status)
