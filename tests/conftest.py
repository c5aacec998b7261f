"""Every test begins alike and leaves the process as it found it: so neither their order nor who runs them matters."""

import os
import random
import signal
import sys
from collections.abc import Iterator
from functools import cache
from typing import Any

import numpy as np
import pytest

os.environ.pop("PYTHONWARNINGS", None)  # a user's: the processes that tests start would end with others' warnings


def _shared() -> dict[str, Any]:
    """What tests of one process share."""
    import torch

    mask = os.umask(0)
    os.umask(mask)
    return {
        "folder": os.getcwd(),
        "umask": mask,
        "arguments": list(sys.argv),
        "signal handlers": [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)],
        "blocked signals": signal.pthread_sigmask(signal.SIG_BLOCK, ()),
        "errors of numpy": np.geterr(),
        "print options of numpy": np.get_printoptions(),
        "default dtype of torch": torch.get_default_dtype(),
        "gradients of torch": torch.is_grad_enabled(),
        "deterministic torch": torch.are_deterministic_algorithms_enabled(),
    }


@cache
def _threads() -> int:
    """Of torch, at the beginning."""
    import torch

    return torch.get_num_threads()


def _begin() -> None:
    import torch

    torch.set_num_threads(_threads())  # set back here: TorchRL's batched environments change it when they are closed
    random.seed(0)
    np.random.seed(0)
    torch.manual_seed(0)


@pytest.fixture(autouse=True, scope="module")
def modules_begin_alike() -> None:
    """Before what a module's tests share is built."""
    _begin()


@pytest.fixture(autouse=True)
def tests_begin_and_end_alike() -> Iterator[None]:
    _begin()
    before, variables = _shared(), dict(os.environ)
    yield
    if runs := sys.modules.get("tests.recipes.runs"):
        runs.end_started()
    after = _shared()
    # What is new among the variables, libraries have set at their first import; they change none.
    for name in variables.keys() - {"PYTEST_CURRENT_TEST"}:
        before[name], after[name] = variables[name], os.environ.get(name)
    changed = {name: (before[name], after[name]) for name in before if before[name] != after[name]}
    assert not changed, f"the test leaves other settings to those that follow: {changed}"
