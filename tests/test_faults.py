"""The first tensor that is not finite, and its lanes."""

import pytest
import torch

from htrmrl_torchrl.faults import Fault, NonFiniteError, WorkerFault, check_finite

NAN, INF = float("nan"), float("inf")


def refused(*tensors, **kwargs):
    with pytest.raises(NonFiniteError) as caught:
        check_finite(tensors, **kwargs)
    return str(caught.value)


def test_finite_tensors_pass_and_whole_numbers_are_not_asked():
    check_finite([("a", torch.full((2, 3), 3e38)), ("b", torch.tensor([2**62])), ("c", torch.tensor([True]))])
    check_finite([("empty", torch.empty(0, 3))])


def test_the_first_one_is_named_with_its_lanes_and_their_first_wrong_values():
    good, bad = torch.zeros(3, 2, 2), torch.zeros(3, 2, 2)
    bad[0, 1, 0], bad[0, 1, 1], bad[2, 0, 1] = -INF, NAN, NAN
    assert refused(("good", good), (("next", "reward"), bad), ("later", bad)) == (
        "next/reward is not finite in environments 0 (-inf), 2 (nan)"
    )
    assert refused(("x", torch.tensor([[0.0], [INF]]))) == "x is not finite in environment 1 (inf)"
    assert refused(("weight", torch.tensor([[0.0], [INF]])), axis="row") == "weight is not finite in row 1 (inf)"


def test_a_number_of_no_lane_is_named_alone():
    assert refused(("loss", torch.tensor(NAN))) == "loss is not finite (nan)"


def test_many_lanes_are_counted_not_listed():
    assert refused(("x", torch.full((64, 1), NAN))).endswith("9 (nan) and 54 more")


def test_what_callers_caught_before_is_still_caught():
    assert issubclass(NonFiniteError, ValueError) and issubclass(NonFiniteError, Fault)
    assert issubclass(WorkerFault, RuntimeError) and issubclass(WorkerFault, Fault)
