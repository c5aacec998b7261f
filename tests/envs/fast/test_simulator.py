"""The fast simulators against Meta-World's own, action by action and bit by bit."""

import gc
import pickle
import weakref

import numpy as np
import pytest
from metaworld.env_dict import ALL_V3_ENVIRONMENTS
from metaworld.policies import ENV_POLICY_MAP
from metaworld.types import Task

from htrmrl_torchrl.envs.fast import fast_simulator
from tests.experts import drawn_goals

ALL_TASKS = list(ALL_V3_ENVIRONMENTS)
# Grasping with contacts; a hinge and a quaternion; two objects; another sigmoid; static methods of its own.
VARIED_TASKS = ["pick-place-v3", "door-open-v3", "stick-pull-v3", "dial-turn-v3", "assembly-v3"]
STATE = ("qpos", "qvel", "act", "qacc_warmstart", "time", "ctrl", "mocap_pos", "mocap_quat")
POSES = ("xpos", "xquat", "xmat", "xipos", "geom_xpos", "geom_xmat", "site_xmat")
MODEL = ("body_pos", "body_quat", "geom_pos", "site_pos", "jnt_range", "eq_data")
# Between reset and first step their goal marker still has the height of the first of the reset's two passes.
LATE_MARKERS = ("push-v3", "push-back-v3")


class Pair:
    """One official and one fast simulator of a task, which must agree in every bit."""

    def __init__(self, task):
        self.task, self.official, self.fast = task, ALL_V3_ENVIRONMENTS[task](), fast_simulator(task)

    def reset(self, goal):
        """The goal is shown, since the experts need it."""
        data = {"rand_vec": goal, "env_cls": ALL_V3_ENVIRONMENTS[self.task], "partially_observable": False}
        task = Task(env_name=self.task, data=pickle.dumps(data))
        self.official.set_task(task)
        self.fast.set_task(task)
        expected, observation = self.official.reset()[0], self.fast.reset()[0]
        assert_same_bits(observation, expected)
        self.assert_same_simulation(MODEL if self.task in LATE_MARKERS else (*MODEL, "site_xpos"))
        return expected

    def step(self, action):
        expected, results = self.official.step(action), self.fast.step(action)
        assert_same_bits(results[0], expected[0])
        assert results[1:4] == expected[1:4] and type(results[1]) is type(expected[1])
        assert results[4] == expected[4]
        self.assert_same_simulation(("site_xpos", "qacc", "qfrc_constraint"))
        return expected[0], expected[4]

    def assert_same_simulation(self, more):
        for name in (*STATE, *POSES, *more):
            owner = "model" if name in MODEL else "data"
            assert_same_bits(getattr(getattr(self.fast, owner), name), getattr(getattr(self.official, owner), name))


def assert_same_bits(ours, theirs):
    ours, theirs = np.asarray(ours), np.asarray(theirs)
    assert ours.dtype == theirs.dtype
    np.testing.assert_array_equal(ours, theirs)


def play(pair, goal, *, steps, random_until=0, seed=0, noise=0.0):
    """An episode of the task's expert, after random actions; returns the successes."""
    observation, expert, successes = pair.reset(goal), ENV_POLICY_MAP[pair.task](), []
    generator = np.random.default_rng(seed)
    for step in range(steps):
        if step < random_until:
            action = generator.uniform(-1.2, 1.2, 4)  # the official step clips, but rewards see what was commanded
        else:
            action = expert.get_action(observation) + noise * generator.normal(size=4)
        observation, info = pair.step(np.clip(action, -2.0, 2.0).astype(np.float32))
        successes.append(info["success"] > 0)
    return successes


def assert_fast_equals_official(task):
    """Two goals on the same pair, early and late successes, noise, and nothing but random actions."""
    pair, (first, second) = Pair(task), drawn_goals(task, 2)
    successes = play(pair, first, steps=140)
    successes += play(pair, second, steps=180, random_until=60)
    successes += play(pair, second, steps=100, random_until=100, seed=1)
    successes += play(pair, first, steps=100, noise=0.4)
    assert 0 < sum(successes) < len(successes)  # both were compared


@pytest.mark.filterwarnings("ignore:Constant")  # the experts' own gains
@pytest.mark.parametrize("task", VARIED_TASKS)
def test_fast_equals_official(task):
    assert_fast_equals_official(task)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:Constant")
@pytest.mark.parametrize("task", ALL_TASKS)
def test_fast_equals_official_in_every_task(task):
    assert_fast_equals_official(task)


def test_the_comparison_notices_the_smallest_difference():
    """Negative control: one bit of one joint."""
    pair = Pair("reach-v3")
    pair.reset(drawn_goals("reach-v3", 1)[0])
    pair.step(np.zeros(4, dtype=np.float32))
    pair.fast.data.qpos[0] = np.nextafter(pair.fast.data.qpos[0], 1.0)
    with pytest.raises(AssertionError):
        pair.assert_same_simulation(())


def test_a_state_set_from_outside_is_met_as_it_is():
    """The step reuses what the one before has computed for the same state, and only for the same."""
    pair, still = Pair("push-v3"), np.zeros(4, dtype=np.float32)
    pair.reset(drawn_goals("push-v3", 1)[0])
    for _ in range(3):
        pair.step(still)
        for simulator in (pair.fast, pair.official):
            simulator.data.qpos[9:11] += 0.03  # the object, pushed from one place to another
            simulator.data.qvel[0] -= 0.1
        pair.step(still)


def test_meta_world_itself_does_not_change():
    official = ALL_V3_ENVIRONMENTS["push-v3"]
    before = [dict(vars(kind)) for kind in official.__mro__[:-1]]
    scope = dict(official.compute_reward.__globals__)
    fast = fast_simulator("push-v3")
    fast.set_goal(drawn_goals("push-v3", 1)[0])
    fast.reset()
    fast.step(np.zeros(4, dtype=np.float32))
    assert type(fast) is not official and isinstance(fast, official)
    assert before == [dict(vars(kind)) for kind in official.__mro__[:-1]]
    assert all(scope[name] is value for name, value in official.compute_reward.__globals__.items())
    assert scope["np"] is np and type(official()) is official


def test_an_episode_ends_where_the_official_one_does():
    fast = fast_simulator("reach-v3")
    fast.set_goal(drawn_goals("reach-v3", 1)[0])
    fast.reset()
    still = np.zeros(4, dtype=np.float32)
    truncated = [fast.step(still)[3] for _ in range(500)]
    assert truncated == [False] * 499 + [True]
    with pytest.raises(ValueError, match="reset"):
        fast.step(still)


def test_the_goal_is_the_callers():
    """Meta-World's tasks carry a pickled copy; here, too, nothing that an episode does reaches the goal's owner."""
    goal = drawn_goals("assembly-v3", 1)[0]
    fast, before = fast_simulator("assembly-v3"), goal.copy()
    fast.set_goal(goal)
    fast.reset()
    assert not np.shares_memory(fast.obj_init_pos, goal)
    np.testing.assert_array_equal(goal, before)


def test_a_simulator_that_is_dropped_leaves_no_memory_behind():
    """The model is 20 MB: a cached view would keep it, and no garbage collector sees that."""
    fast = fast_simulator("push-v3")
    fast.set_goal(drawn_goals("push-v3", 1)[0])
    fast.reset()
    fast.step(np.zeros(4, dtype=np.float32))
    data = weakref.ref(fast.data)
    assert fast.data.site("goal") is fast.data.site("goal"), "views are cached"
    del fast
    gc.collect()
    assert data() is None
