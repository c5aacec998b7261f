"""Runs a function in several ranks, real processes, and the same function in one."""

from contextlib import contextmanager

import torch

from htrmrl_torchrl.parallel.ranks import Ranks
from htrmrl_torchrl.runs.launch import following, ranks_of_run


def follow(function, ranks):
    following(lambda: function(ranks), ranks)


@contextmanager
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def in_ranks(size, function, *, seconds=300.0):
    """What ``function(ranks)``, of a module, returns in the first of so many ranks."""
    with one_thread():
        if size == 1:
            return function(Ranks())
        with ranks_of_run(size, follow, function, seconds=seconds) as ranks:
            return function(ranks)
