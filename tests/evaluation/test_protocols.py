"""What the protocols known by name are, and what may be changed in them."""

import dataclasses

import numpy as np
import pytest

from htrmrl_torchrl.evaluation import PROTOCOLS, Protocol
from htrmrl_torchrl.evaluation.protocols import named_protocol


def test_the_named_protocols_are_those_of_the_design():
    table = {
        name: (p.adaptation_episodes, p.evaluation_episodes, p.evaluation_actions, p.goals_per_task)
        for name, p in PROTOCOLS.items()
    }
    assert table == {
        "strict": (10, 1, "mean", 4),
        "sampled": (10, 10, "sampled", 4),
        "garage": (10, 10, "sampled", 2),
        "metaworld": (10, 3, "mean", 4),
    }
    assert [name for name, p in PROTOCOLS.items() if p.separate] == ["sampled", "garage"]
    assert [name for name, p in PROTOCOLS.items() if p.biased] == ["metaworld"]
    assert all(named_protocol(name) is protocol and protocol.name == name for name, protocol in PROTOCOLS.items())
    assert {name: p.episodes for name, p in PROTOCOLS.items()} == {
        "strict": 11, "sampled": 20, "garage": 20, "metaworld": 13,
    }  # fmt: skip


def test_an_unknown_protocol_is_named_beside_the_known_ones():
    with pytest.raises(ValueError, match=r"'loose' is unknown; choose one of strict, sampled, garage, metaworld\."):
        named_protocol("loose")


def test_only_what_is_asked_for_changes():
    strict = PROTOCOLS["strict"]
    assert strict.changed() == strict
    changed = strict.changed(goals_per_task=10, evaluation_actions="sampled")
    assert changed == Protocol(
        name="strict",
        adaptation_episodes=10,
        evaluation_episodes=1,
        evaluation_actions="sampled",
        goals_per_task=10,
    )
    assert strict.changed(adaptation_episodes=0).episodes == 1  # zero is a number, not "as it is"
    assert PROTOCOLS["strict"] is strict and strict.goals_per_task == 4
    assert PROTOCOLS["metaworld"].changed(goals_per_task=1).biased


def test_a_protocol_is_a_value():
    assert len({PROTOCOLS["strict"], PROTOCOLS["strict"].changed(), PROTOCOLS["garage"]}) == 2
    with pytest.raises(dataclasses.FrozenInstanceError):
        PROTOCOLS["strict"].goals_per_task = 1


@pytest.mark.parametrize(
    "changes,message",
    [
        ({"adaptation_episodes": -1}, "adaptation_episodes must be a whole number of at least 0, received -1"),
        ({"adaptation_episodes": 1.5}, "adaptation_episodes must be a whole number of at least 0, received 1.5"),
        ({"evaluation_episodes": 0}, "evaluation_episodes must be a whole number of at least 1, received 0"),
        ({"goals_per_task": 0}, "goals_per_task must be a whole number of at least 1, received 0"),
        ({"goals_per_task": -3}, "goals_per_task must be a whole number of at least 1, received -3"),
        ({"goals_per_task": np.float64(2)}, "goals_per_task must be a whole number"),
        ({"evaluation_actions": "best"}, "evaluation_actions='best' is unknown; choose one of mean, sampled"),
    ],
)
def test_impossible_numbers_are_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        PROTOCOLS["strict"].changed(**changes)
