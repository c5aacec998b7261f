"""Keeps Ctrl-C from child processes that start: by default they would answer it with a traceback."""

import signal
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def interrupts_blocked() -> Iterator[None]:
    """Blocks SIGINT, and children started meanwhile inherit that; this process receives the signal right afterwards.

    Windows blocks no signals.

    Example:
        >>> with interrupts_blocked():
        ...     signal.SIGINT in signal.pthread_sigmask(signal.SIG_BLOCK, ())
        True
    """
    if not hasattr(signal, "pthread_sigmask"):
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
