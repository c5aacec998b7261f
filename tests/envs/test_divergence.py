"""Real divergences of real simulators: counted, and the same with both backends."""

from functools import partial

import mujoco
import numpy as np
import pytest

from htrmrl_torchrl.envs import divergence
from htrmrl_torchrl.envs.deck import FixedGrid
from htrmrl_torchrl.envs.divergence import diverged
from htrmrl_torchrl.envs.metaworld import BACKENDS, MetaWorldLanes
from htrmrl_torchrl.envs.trial import TrialEnv
from htrmrl_torchrl.envs.workers import WorkerLanes
from tests.envs.fast.test_simulator import Pair
from tests.experts import drawn_goals

# Position, velocity and acceleration: what MuJoCo checks.
DISTURBANCES = {
    "position": lambda data: data.qpos.__setitem__(3, np.nan),
    "velocity": lambda data: data.qvel.__setitem__(3, 1e12),
    "acceleration": lambda data: data.qfrc_applied.__setitem__(3, 1e14),
}
MOVE = np.array([0.3, -0.2, 0.1, 0.5], dtype=np.float32)


@pytest.fixture(autouse=True)
def _log_file_elsewhere(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)  # MuJoCo writes MUJOCO_LOG.TXT where it stands


def have_diverged(pair):
    answers = [diverged(simulator.data) for simulator in (pair.fast, pair.official)]
    assert answers[0] == answers[1]
    return answers[0]


def test_the_warnings_counted_are_mujocos():
    kinds = mujoco.mjtWarning
    expected = [kinds.mjWARN_BADQPOS, kinds.mjWARN_BADQVEL, kinds.mjWARN_BADQACC]
    assert list(range(int(kinds.mjNWARNING)))[divergence.UNSTABLE] == [int(kind) for kind in expected]


@pytest.mark.parametrize("kind", DISTURBANCES)
def test_a_divergence_goes_the_same_way_with_both_backends(kind):
    pair = Pair("push-v3")
    pair.reset(drawn_goals("push-v3", 1)[0])
    for step in range(8):
        if step == 3:
            for simulator in (pair.fast, pair.official):
                DISTURBANCES[kind](simulator.data)
        pair.step(MOVE)  # compares observation, reward, info and state bit by bit
        assert have_diverged(pair) == (step == 3)
        if kind == "acceleration" and step == 3:
            for simulator in (pair.fast, pair.official):
                simulator.data.qfrc_applied[:] = 0


def test_a_divergence_that_a_step_ends_in_goes_the_same_way_with_both_backends():
    """An object in free flight crosses the limit between two steps: the next step's first check meets it."""
    pair = Pair("push-v3")
    pair.reset(drawn_goals("push-v3", 1)[0])
    pair.step(MOVE)
    for simulator in (pair.fast, pair.official):
        simulator.data.qvel[11] = 9.9e9
    met = []
    for _ in range(90):
        pair.step(MOVE)
        met.append(have_diverged(pair))
    assert sum(met) == 1 and not met[0]


class Disturbed(MetaWorldLanes):
    """The second lane's simulator gets an absurd velocity in every third step."""

    steps = 0

    def step(self, actions):
        self.steps += 1
        if self.steps % 3 == 0:
            self._simulators[1].data.qvel[0] = 1e12
        return super().step(actions)


def disturbed(goals, num_lanes):
    return Disturbed(["reach-v3"], [goals], num_lanes=num_lanes)


def play(lanes):
    env = TrialEnv(lanes, FixedGrid([(0, 0), (0, 1)]), episodes_per_trial=2, horizon=5)
    assert env.divergences == 0
    rows = env.rollout(10, break_when_any_done=False)
    count = env.divergences
    env.close()
    return count, rows


@pytest.mark.parametrize("backend", BACKENDS)
def test_lanes_count_them(backend):
    lanes = MetaWorldLanes(["reach-v3"], [drawn_goals("reach-v3", 2)], num_lanes=2, backend=backend)
    lanes.reset(np.arange(2), np.zeros(2, np.int64), np.arange(2))
    for step in range(4):
        if step == 1:
            lanes._simulators[1].data.qvel[0] = 1e12
        if step == 2:
            lanes._simulators[0].data.qpos[0] = np.inf
        observation, reward, _ = lanes.step(np.tile(MOVE, (2, 1)))
        assert np.isfinite(observation).all() and np.isfinite(reward).all()  # which is why nobody would notice
        assert lanes.divergences == min(step, 2)
    lanes.close()


def test_environments_count_them_in_this_process_and_through_workers():
    builder = partial(disturbed, drawn_goals("reach-v3", 2))
    direct, rows = play(builder(2))
    assert direct == 3 and rows["next", "observation"].isfinite().all()
    box = {"obs_dim": 39, "action_low": MetaWorldLanes.action_low, "action_high": MetaWorldLanes.action_high}
    assert play(WorkerLanes(builder, num_lanes=2, num_workers=1, **box))[0] == 3
