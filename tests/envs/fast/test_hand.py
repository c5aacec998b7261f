"""What is remembered of resets is what computing it again would give."""

import mujoco
import numpy as np
import pytest
from metaworld.env_dict import ALL_V3_ENVIRONMENTS

from htrmrl_torchrl.envs.fast import fast_simulator
from htrmrl_torchrl.envs.fast import hand as hand_module
from htrmrl_torchrl.envs.fast.hand import MUTABLE_MODEL, HandCache, Snapshot, hand_key


def other_arrays(model):
    """All numbers of the model but those that are part of the key."""
    kept = {name: getattr(model, name).copy() for name in MUTABLE_MODEL}
    buffer = np.zeros(mujoco.mj_sizeModel(model), dtype=np.uint8)
    for name in MUTABLE_MODEL:
        getattr(model, name)[:] = 0
    mujoco.mj_saveModel(model, None, buffer)
    for name, values in kept.items():
        getattr(model, name)[:] = values
    return buffer


def drawing_simulator(task):
    simulator = fast_simulator(task)
    simulator._freeze_rand_vec, simulator._set_task_called, simulator.seeded_rand_vec = False, True, True
    simulator.seed(0)
    return simulator


def assert_only_known_arrays_change(task):
    simulator = drawing_simulator(task)
    before = other_arrays(simulator.model)
    for _ in range(2):
        simulator.reset()
        for _ in range(3):
            simulator.step(np.ones(4, dtype=np.float32))
    np.testing.assert_array_equal(other_arrays(simulator.model), before)


@pytest.mark.parametrize("task", ["push-v3", "lever-pull-v3", "hammer-v3"])
def test_tasks_change_no_other_array_of_the_model(task):
    assert_only_known_arrays_change(task)


@pytest.mark.slow
@pytest.mark.parametrize("task", list(ALL_V3_ENVIRONMENTS))
def test_no_task_changes_any_other_array_of_the_model(task):
    assert_only_known_arrays_change(task)


def test_the_check_of_the_model_sees_a_change():
    model = fast_simulator("push-v3").model
    before = other_arrays(model)
    model.geom_friction[3, 0] += 0.1
    assert not np.array_equal(other_arrays(model), before)


def test_the_key_holds_all_that_decides():
    simulator = drawing_simulator("push-v3")
    model, data, destination = simulator.model, simulator.data, np.array([0.0, 0.6, 0.2])
    key = hand_key(model, data, destination, 50)
    assert key == hand_key(model, data, destination.copy(), 50)
    assert key != hand_key(model, data, destination, 49) and key != hand_key(model, data, destination + 1e-9, 50)
    for array in (*(getattr(model, name) for name in MUTABLE_MODEL), data.qpos, data.qvel, data.qacc_warmstart):
        before, array[-1] = array[-1].copy(), array[-1] + 1e-9
        assert key != hand_key(model, data, destination, 50)
        array[-1] = before
    assert key == hand_key(model, data, destination, 50)


def test_a_snapshot_brings_back_the_simulation_and_its_lagging_poses():
    simulator = drawing_simulator("push-v3")
    simulator.reset()
    mujoco.mj_step(simulator.model, simulator.data, nstep=3)
    snapshot = Snapshot.take(simulator.model, simulator.data)
    then = {name: getattr(simulator.data, name).copy() for name in ("qpos", "qvel", "xpos", "site_xpos", "geom_xmat")}
    mujoco.mj_step(simulator.model, simulator.data, nstep=20)
    assert not np.array_equal(simulator.data.xpos, then["xpos"])
    snapshot.restore(simulator.model, simulator.data)
    for name, values in then.items():
        np.testing.assert_array_equal(getattr(simulator.data, name), values)


def test_the_second_reset_of_a_goal_computes_nothing(monkeypatch):
    simulator = drawing_simulator("drawer-open-v3")
    simulator.reset()
    simulator._freeze_rand_vec = True
    first = simulator.reset()[0]  # its first pass met the model as it was built, this one meets the goal's

    def refuse(*_):
        raise AssertionError("the hand was driven")

    monkeypatch.setattr(simulator, "do_simulation", refuse)
    np.testing.assert_array_equal(simulator.reset()[0], first)
    simulator._last_rand_vec = simulator._last_rand_vec + 0.01
    with pytest.raises(AssertionError, match="driven"):  # the control: another goal is another place for the drawer
        simulator.reset()


def test_the_least_recently_used_is_dropped_first(monkeypatch):
    monkeypatch.setattr(hand_module, "_CAPACITY", 2)
    cache, snapshots = HandCache(), [Snapshot(np.array([float(i)]), ()) for i in range(3)]
    cache.keep(("a",), snapshots[0])
    cache.keep(("b",), snapshots[1])
    assert cache.find(("a",)) is snapshots[0]
    cache.keep(("c",), snapshots[2])
    assert cache.find(("b",)) is None
    assert cache.find(("a",)) is snapshots[0] and cache.find(("c",)) is snapshots[2]
