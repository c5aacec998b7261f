"""What ranks say to each other, and what happens where one of them does not."""

import os
import signal
from functools import partial

import pytest
import torch
from tensordict import TensorDict

from htrmrl_torchrl.envs.shares import LaneShare
from htrmrl_torchrl.faults import Left, NonFiniteError
from htrmrl_torchrl.parallel.packing import packed, unpacked
from htrmrl_torchrl.parallel.ranks import RankFault, Ranks
from tests.parallel.processes import in_ranks

LANES = 7


def lanes(share):
    """A batch whose entries are known, of all lanes or of a share, ``[n, 2]``."""
    numbers = torch.arange(LANES * 2 * 3).view(LANES, 2, 3)
    whole = TensorDict(
        {"flag": numbers > 9, "inner": {"float": numbers / 7, "empty": numbers[..., :0]}, "next": {"int": numbers}},
        batch_size=[LANES, 2],
    )
    return whole if share is None else whole[share.first : share.first + share.count]


def test_bytes_of_all_types_come_back():
    leaves = [leaf for _, leaf in sorted(lanes(None).items(True, True), key=str)]
    leaves += [torch.rand(LANES, 1, dtype=torch.float64), torch.rand(LANES, 4)[:, 1:3]]
    received = list(unpacked(packed(leaves), leaves, lanes=LANES))
    assert all(torch.equal(a, b) and a.dtype == b.dtype for a, b in zip(received, leaves, strict=True))


def test_shares_are_neighbouring_lanes_and_all_of_them():
    for lanes_of_run, size in ((7, 3), (20, 8), (4, 4)):
        shares = [Ranks.share(_Of(rank, size), lanes_of_run) for rank in range(size)]
        assert [lane for share in shares for lane in share.of(range(lanes_of_run))] == list(range(lanes_of_run))
        assert max(share.count for share in shares) - min(share.count for share in shares) <= 1
    assert Ranks().share(7) is None


class _Of:
    def __init__(self, rank, size):
        self.rank, self.size = rank, size


def test_one_rank_does_nothing():
    ranks, batch, number = Ranks(), lanes(None), torch.ones(3)
    ranks.add(number)
    ranks.follow([number])
    assert torch.equal(number, torch.ones(3)) and ranks.join(batch) is batch and ranks.free
    assert ranks.broadcast(batch) is batch and ranks.gather(batch) == [batch]
    assert ranks.collect(lambda: batch) is batch
    with pytest.raises(Left):
        ranks.collect(partial(fail, Left()))


def fail(error):
    raise error


def talk(ranks):
    """All that three ranks can say, each answer checked in each of them."""
    torch.manual_seed(0)
    share = ranks.share(LANES)
    assert ranks.gather((ranks.rank, share)) == [
        (0, LaneShare(0, 2, LANES)), (1, LaneShare(2, 2, LANES)), (2, LaneShare(4, 3, LANES)),
    ]  # fmt: skip
    assert ranks.broadcast("first" if ranks.is_first else "other") == "first"
    whole = ranks.join(lanes(share))
    assert (whole == lanes(None)).all() and whole.batch_size == lanes(None).batch_size
    number = torch.full((5,), float(ranks.rank))
    ranks.add(number)
    assert number.tolist() == [3.0] * 5
    own = [torch.full((2, 2), ranks.rank), torch.tensor(ranks.rank / 2), torch.full((3,), ranks.rank > 0)]
    ranks.follow(own)
    assert not any(bool(tensor.any()) for tensor in own)
    assert ranks.attempt(lambda: 7 * ranks.rank) == [0, 7, 14]
    # One rank fails, all know.
    assert (ranks.collect(lambda: lanes(share)) == lanes(None)).all()
    for error, kind, said in (
        (NonFiniteError("reward"), NonFiniteError, "reward"),
        (Left(), Left, None),
    ):
        with pytest.raises(kind, match=said):
            ranks.collect(partial(fail, error) if ranks.rank == 2 else lambda: lanes(share))
    assert not ranks.free
    with pytest.raises(Left):  # before any fault
        ranks.collect(partial(fail, [NonFiniteError("a"), Left(), NonFiniteError("b")][ranks.rank]))
    with pytest.raises(RuntimeError, match="streams have come apart"):
        ranks.collect(lambda: (torch.rand(ranks.rank), lanes(share))[1])
    return "all said"


def test_three_ranks_talk():
    assert in_ranks(3, talk) == "all said"


def die(number, ranks):
    ranks.gather(None)
    if ranks.rank == 1:
        os.kill(os.getpid(), number)
    ranks.gather(None)


def raise_something(ranks):
    ranks.gather(None)
    if ranks.rank == 2:
        raise OSError("no such disk")
    ranks.add(torch.zeros(3))


@pytest.mark.parametrize(
    ("function", "seconds", "said"),
    [
        (partial(die, signal.SIGKILL), 300.0, "rank 1 of 3 died with exit code -9"),
        pytest.param(
            partial(die, signal.SIGSTOP), 2.0, "rank 1 of 3 did not answer within 2 s", marks=pytest.mark.slow
        ),
        pytest.param(raise_something, 300.0, "rank 2 failed with OSError: no such disk", marks=pytest.mark.slow),
    ],
)
def test_the_rank_at_fault_is_named(function, seconds, said):
    with pytest.raises(RankFault, match=said):
        in_ranks(3, function, seconds=seconds)
