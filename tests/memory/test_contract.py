"""What every memory promises (`htrmrl_torchrl.memory.contract`), ours and any third one; wrong ones fail."""

import copy

import pytest
import torch

from htrmrl_torchrl import EpisodicMemory, RecurrentEncoder, RecurrentMemory, keys
from htrmrl_torchrl.memory.contract import Memory, memories_of
from tests.helpers import ACTION, OBSERVATION, as_batch, record, steps

BOUNDARY = 9  # steps of the first trial in every environment


def played():
    """Two environments, two trials of three episodes each."""
    return as_batch(record([[[3, 4, 2]] * 2, [[2, 3, 4]] * 2], window=3, episodes=3), dtype=torch.float32)


def recurrent():
    torch.manual_seed(0)
    return RecurrentMemory(RecurrentEncoder(observation_dim=OBSERVATION, action_dim=ACTION, d_model=4))


MEMORIES = {
    "episodic": lambda: EpisodicMemory(window=3, episodes=3, strategy="recent"),
    "episodic, drawing": lambda: EpisodicMemory(window=3, episodes=3, strategy="uniform"),
    "episodic, earlier trials": lambda: EpisodicMemory(
        window=3, episodes=3, strategy="recent", scope="lane", max_episodes=4
    ),
    "recurrent": recurrent,
}


def seen(memory, batch):
    """All numbers of the contexts of a batch, step by step; not the names of windows, which are running numbers."""
    out = []
    for step in steps(batch):
        context = memory(step)[keys.CONTEXT].exclude("past_id")
        out.append(torch.cat([value.flatten(1).float() for _, value in sorted(context.items(True, True), key=str)], 1))
    return torch.stack(out, 1)


def check_contract(make, *, draws=False):
    """Raises AssertionError unless the memories that ``make()`` builds keep their promises.

    Args:
        make: builds one; always alike.
        draws: whether its contexts depend on random streams, which go on where other things go back.
    """
    batch = played()
    memory = make()
    assert isinstance(memory, Memory) and memory.out_keys[0] == keys.CONTEXT
    first = seen(memory, batch)
    memory.restart()
    assert torch.equal(seen(memory, batch), first)

    memory.restart()
    seen(memory, batch[:, :BOUNDARY])
    saved, loaded = copy.deepcopy(memory.checkpoint_state()), make()
    loaded.load_checkpoint_state(saved)
    assert torch.equal(seen(loaded, batch[:, BOUNDARY:]), first[:, BOUNDARY:])

    if draws:
        return
    middle = BOUNDARY - 3
    memory.restart()
    seen(memory, batch[:, :middle])
    snapshot = memory.snapshot()
    for _ in range(2):
        assert torch.equal(seen(memory, batch[:, middle:]), first[:, middle:])
        memory.go_back(snapshot)
    memory.forget()
    assert torch.equal(seen(memory, batch[:, middle:]), seen(make(), batch[:, middle:]))

    memory.restart()
    seen(memory, batch[:, : BOUNDARY - 1])  # the last step of the trial's last episodes is not there
    memory.drop_running()
    rest = seen(memory, batch[:, BOUNDARY:])
    assert memory.remembers_trials or torch.equal(rest, first[:, BOUNDARY:])


@pytest.mark.parametrize("name", MEMORIES)
def test_memories_keep_it(name):
    check_contract(MEMORIES[name], draws="drawing" in name)


class Restarts(EpisodicMemory):
    def restart(self):
        """Does not."""


class GoesBack(EpisodicMemory):
    def go_back(self, snapshot):
        """Does not."""


class Forgets(EpisodicMemory):
    def forget(self):
        """Does not."""


class Loads(EpisodicMemory):
    def load_checkpoint_state(self, state):
        self._restored = None


@pytest.mark.parametrize("wrong", [Restarts, GoesBack, Forgets, Loads])
def test_a_wrong_one_fails(wrong):
    draws = wrong in (Restarts, Loads)  # what they lose is their random streams
    strategy = "uniform" if draws else "recent"
    with pytest.raises(AssertionError):
        check_contract(lambda: wrong(window=3, episodes=3, strategy=strategy), draws=draws)


def test_what_lacks_a_promise_is_no_memory():
    assert memories_of(torch.nn.Sequential(torch.nn.Linear(1, 1), recurrent()))[0].remembers_trials is False
    assert not memories_of(torch.nn.Linear(1, 1))
