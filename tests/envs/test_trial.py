"""The seams of a trial, checked against tables written by hand."""

from itertools import pairwise

import numpy as np
import pytest
import torch
from tensordict import TensorDict
from torchrl.collectors import Collector
from torchrl.data import Bounded, Categorical, Composite, Unbounded
from torchrl.envs import EnvBase, ParallelEnv, SerialEnv, TransformedEnv, check_env_specs

from htrmrl_torchrl.envs import TrialEnv, TrialTransform, make_env
from htrmrl_torchrl.envs.deck import FixedGrid, TaskDeck

K, H = 2, 3


class CountingLanes:
    """Every observation a lane emits has the next number, 1, 2, ...; a step's reward is ten times what it led to."""

    obs_dim = 1
    action_low = np.array([-1.0], dtype=np.float32)
    action_high = np.array([1.0], dtype=np.float32)

    def __init__(self, num_lanes):
        self.num_lanes = num_lanes
        self.number = np.zeros((num_lanes, 1), dtype=np.float32)
        self.closed = False

    def reset(self, lanes, tasks, goals, draws=None):
        self.number[lanes] += 1
        return self.number[lanes].copy()

    def step(self, actions):
        self.number += 1
        return self.number.copy(), 10 * self.number[:, 0], self.number[:, 0] % 2 == 0

    def render(self, lane, *, size):
        return np.full((size, size, 3), self.number[lane, 0], dtype=np.uint8)

    def close(self):
        self.closed = True


class CountingEnv(EnvBase):
    """The same numbers without any trial bookkeeping, for TrialTransform; ``batch_size`` is ``[]`` or ``[n]``."""

    def __init__(self, batch_size=()):
        super().__init__(batch_size=list(batch_size))
        shape = (*batch_size, 1)
        self.observation_spec = Composite(observation=Unbounded(shape), shape=batch_size)
        self.action_spec = Bounded(-1.0, 1.0, shape)
        self.reward_spec = Unbounded(shape)
        flag = Categorical(2, shape=shape, dtype=torch.bool)
        self.done_spec = Composite(done=flag, terminated=flag.clone(), truncated=flag.clone(), shape=batch_size)
        self.number, self.steps = torch.zeros(shape), torch.zeros(shape)

    def _reset(self, tensordict=None):
        mask = None if tensordict is None else tensordict.get("_reset", None)
        mask = torch.ones_like(self.number, dtype=torch.bool) if mask is None else mask
        self.number = self.number + mask
        self.steps = self.steps.masked_fill(mask, 0)
        return self._with_done({"observation": self.number.clone()})

    def _step(self, tensordict):
        assert tensordict["action"].abs().max() <= 1  # the base environment only ever sees clipped actions
        self.number, self.steps = self.number + 1, self.steps + 1
        return self._with_done({"observation": self.number.clone(), "reward": 10 * self.number})

    def _with_done(self, row):
        row["truncated"] = row["done"] = self.steps >= H
        row["terminated"] = torch.zeros_like(row["done"])
        return TensorDict(row, batch_size=self.batch_size)

    def _set_seed(self, seed):
        pass


def trial_env():
    return TrialEnv(CountingLanes(2), FixedGrid([(0, 0), (0, 1)]), episodes_per_trial=K, horizon=H)


def transformed():
    return TransformedEnv(CountingEnv([2]), TrialTransform(episodes_per_trial=K))


def transform_outside_serial():
    return TransformedEnv(SerialEnv(2, CountingEnv), TrialTransform(episodes_per_trial=K))


def one_transformed():
    return TransformedEnv(CountingEnv(), TrialTransform(episodes_per_trial=K))


def transform_inside_serial():
    return SerialEnv(2, one_transformed)


def transform_inside_parallel():
    return ParallelEnv(2, one_transformed, mp_start_method="fork")


ENVIRONMENTS = [trial_env, transformed, transform_outside_serial, transform_inside_serial, transform_inside_parallel]


def play(env, steps, forced=()):
    """Step with actions 0.1, 0.2, ... on lane 0 and 2, 3, ... on lane 1; reset when done or ``(step, lane)`` forced."""
    rows, row = [], env.reset()
    for step in range(steps):
        row["action"] = torch.tensor([[0.1 * (step + 1)], [2.0 + step]])
        row = env.step(row)
        rows.append(row.clone())
        row = env.step_mdp(row)
        mask = row["done"].clone()
        for when, lane in forced:
            if when == step:
                mask[lane] = True
        if mask.any():
            row["_reset"] = mask
            row = env.reset(row)
    return torch.stack(rows, 1)  # [2, steps]


# One line per row: observation, episode, is_init, trial_init, prev_reward, final observation, final reward.
LANE_0 = [
    (1, 0, 1, 1, 0, 0, 0),
    (2, 0, 0, 0, 20, 0, 0),
    (3, 0, 0, 0, 30, 0, 0),  # leads to observation 4 with reward 40: the horizon
    (5, 1, 1, 0, 0, 4, 40),
    (6, 1, 0, 0, 60, 0, 0),
    (7, 1, 0, 0, 70, 0, 0),  # leads to 8: the second episode ends and with it the trial
    (9, 0, 1, 1, 0, 8, 80),
    (10, 0, 0, 0, 100, 0, 0),
]
LANE_1 = [
    (1, 0, 1, 1, 0, 0, 0),  # reset by force after its first step, which led to 2
    (3, 1, 1, 0, 0, 2, 20),
    (4, 1, 0, 0, 40, 0, 0),
    (5, 1, 0, 0, 50, 0, 0),
    (7, 0, 1, 1, 0, 6, 60),
    (8, 0, 0, 0, 80, 0, 0),
    (9, 0, 0, 0, 90, 0, 0),
    (11, 1, 1, 0, 0, 10, 100),
]
COLUMNS = (
    "observation",
    "episode",
    "is_init",
    "trial_init",
    "prev_reward",
    ("final", "observation"),
    ("final", "reward"),
)


@pytest.mark.parametrize("build", ENVIRONMENTS)
def test_flags_follow_the_table_under_staggered_resets(build):
    env = build()
    try:
        rows = play(env, 8, forced=[(0, 1)])
    finally:
        env.close(raise_if_closed=False)
    table = torch.tensor([LANE_0, LANE_1], dtype=torch.float32)  # [2, 8, columns]
    for column, key in enumerate(COLUMNS):
        torch.testing.assert_close(rows[key][..., 0].float(), table[..., column], rtol=0, atol=0, msg=str(key))
    # Executed actions: lane 0 as written, lane 1 clipped to 1; zero at an episode's start, where final has them.
    init = table[..., 2].bool()
    executed = torch.stack([torch.arange(1, 9) * 0.1, torch.ones(8)])
    before = torch.cat([torch.zeros(2, 1), executed[:, :-1]], 1)
    torch.testing.assert_close(rows["prev_action"][..., 0], before.masked_fill(init, 0), rtol=0, atol=0)
    torch.testing.assert_close(rows["final", "action"][..., 0], before.masked_fill(~init, 0), rtol=0, atol=0)
    assert rows["action"][1, :, 0].tolist() == [2.0 + step for step in range(8)]  # the root keeps the unclipped one
    following = rows["next"]
    assert not following["is_init"].any() and not following["trial_init"].any()
    assert torch.equal(following["episode"], rows["episode"])
    assert torch.equal(following["prev_reward"], following["reward"])
    assert torch.equal(following["prev_action"][..., 0], executed)
    assert all(not following["final", name].any() for name in ("observation", "action", "reward"))


@pytest.mark.parametrize("build", ENVIRONMENTS[:4])
def test_a_full_reset_starts_a_trial_and_a_full_mask_does_not(build):
    env = build()
    last = play(env, 1)[:, -1]
    again = env.step_mdp(last)
    again["_reset"] = torch.ones(2, 1, dtype=torch.bool)
    again = env.reset(again)
    assert again["episode"].flatten().tolist() == [1, 1] and not again["trial_init"].any()
    assert again["final", "observation"].flatten().tolist() == [2, 2]
    full = env.reset()
    assert full["episode"].flatten().tolist() == [0, 0] and full["trial_init"].all() and full["is_init"].all()
    assert full["final", "observation"].flatten().tolist() == [2, 2]  # the last step taken, by whatever trial


@pytest.mark.parametrize("build", [trial_env, transformed])
def test_a_masked_reset_returns_the_other_lanes_as_they_are(build):
    env = build()
    now = env.step_mdp(play(env, 2)[:, -1])
    mask = TensorDict({"_reset": torch.tensor([[True], [False]])}, batch_size=[2])
    returned = env._reset(mask)
    for key in returned.keys(True, True):
        assert torch.equal(returned[key][1], now[key][1]), key
    assert returned["is_init"].flatten().tolist() == [True, False]


@pytest.mark.parametrize("build", [trial_env, transformed, transform_inside_serial])
def test_specs_are_exact(build):
    check_env_specs(build())


def test_episodes_run_to_the_horizon_and_success_ends_nothing():
    rows = trial_env().rollout(2 * H * K, break_when_any_done=False)
    ends = [step % H == H - 1 for step in range(2 * H * K)]
    assert rows["next", "done"][0, :, 0].tolist() == ends
    assert torch.equal(rows["next", "done"], rows["next", "truncated"])
    assert not rows["next", "terminated"].any()
    assert rows["next", "success"].any() and "success" not in rows.keys()


def test_rows_are_copies():
    env = trial_env()
    row = env.reset()
    for key in ("observation", "episode", "is_init", "trial_init", "task", "goal"):
        row[key].zero_()
    mask = TensorDict({"_reset": torch.tensor([[True], [False]])}, batch_size=[2])
    returned = env._reset(mask)
    assert (
        returned["observation"][1].item() == 1 and returned["trial_init"][1].item() and returned["goal"][1].item() == 1
    )


def test_an_action_that_is_not_finite_names_its_lane():
    env = trial_env()
    row = env.reset()
    row["action"] = torch.tensor([[0.0], [float("nan")]])
    with pytest.raises(ValueError, match=r"action is not finite in environment 1 \(nan\)"):
        env.step(row)


def test_one_lane_can_be_looked_at():
    env = TrialEnv(CountingLanes(2), FixedGrid([(0, 0), (0, 1)]), episodes_per_trial=K, horizon=H)
    env.reset()
    assert env.render_lane(1, size=4).tolist() == np.ones((4, 4, 3)).tolist()
    for lane in (-1, 2):
        with pytest.raises(ValueError, match=f"lane must be from 0 to 1, received {lane}"):
            env.render_lane(lane)
    with pytest.raises(ValueError, match="size must be a whole number of at least 1"):
        env.render_lane(0, size=0)


def test_closing_the_environment_closes_the_lanes():
    lanes = CountingLanes(1)
    TrialEnv(lanes, FixedGrid([(0, 0)]), episodes_per_trial=1, horizon=1).close()
    assert lanes.closed


@pytest.mark.parametrize("wrong", [0, -1, 1.5, True])
def test_episodes_per_trial_must_be_positive(wrong):
    for build in (
        lambda: TrialTransform(episodes_per_trial=wrong),
        lambda: TrialEnv(CountingLanes(1), FixedGrid([(0, 0)]), episodes_per_trial=wrong, horizon=1),
    ):
        with pytest.raises(ValueError, match=f"episodes_per_trial .*{wrong}"):
            build()


# --- checkpoints -----------------------------------------------------------------------------------------------------

# A memory-less policy that depends on everything the rows say, so that any difference in them spreads.


class Policy(torch.nn.Module):
    def forward(self, row):
        drive = row["prev_action"] + row["prev_reward"] + row["final", "reward"] + row["final", "action"]
        row["action"] = torch.cos(3 * row["observation"][..., :2] + drive + row["episode"] + row["goal"])
        return row


def toy_env(seed=3):
    return make_env("toy", num_envs=3, episodes_per_trial=2, seed=seed)


def collect(env, trials):
    """Whole trials as a recipe collects them; the collector leaves the environment reset into the next trial."""
    frames = 3 * 2 * 6
    collector = Collector(env, Policy(), frames_per_batch=frames, total_frames=frames * trials, trust_policy=True)
    batches = [batch.clone() for batch in collector]
    return torch.cat(batches, 1)


def assert_same(a, b):
    assert set(a.keys(True, True)) == set(b.keys(True, True))
    for key in a.keys(True, True):
        if key[0] != "collector":
            assert torch.equal(a[key], b[key]), key


def test_resumed_equals_uninterrupted(tmp_path):
    whole = collect(toy_env(), 4)
    frames, trials, saved = 3 * 2 * 6, [], None
    for part in range(2):
        env = toy_env(seed=3 + 100 * part)  # another seed, so that only the loaded state can make them equal
        if saved is not None:
            env.load_checkpoint_state(torch.load(saved, weights_only=True))
        collector = Collector(env, Policy(), frames_per_batch=frames, total_frames=-1, trust_policy=True)
        batches = iter(collector)
        trials += [next(batches).clone() for _ in range(2)]
        saved = tmp_path / "env.pt"
        torch.save(env.checkpoint_state(), saved)
        collector.shutdown()
    assert_same(whole, torch.cat(trials, 1))


def test_a_state_saved_after_loading_is_the_same_state():
    env = toy_env()
    env.rollout(12, break_when_any_done=False)
    env.reset()
    state = env.checkpoint_state()
    other = toy_env(seed=9)
    other.load_checkpoint_state(state)
    again = other.checkpoint_state()
    assert again["deck"] == state["deck"] and again["pending"] == state["pending"]
    assert_same(TensorDict(again["final"]), TensorDict(state["final"]))


def test_a_state_saved_at_the_end_of_a_trial_deals_anew():
    env = toy_env()
    env.rollout(12, break_when_any_done=False)  # a rollout does not reset after its last step
    state = env.checkpoint_state()
    assert state["pending"] is None
    other = toy_env(seed=9)
    other.load_checkpoint_state(state)
    assert_same(env.reset(), other.reset())


def test_a_checkpoint_in_mid_trial_is_refused():
    env = toy_env()
    env.rollout(7, break_when_any_done=False)
    with pytest.raises(RuntimeError, match="trial boundaries"):
        env.checkpoint_state()


def test_a_state_of_another_environment_is_refused():
    state = toy_env().checkpoint_state()
    with pytest.raises(ValueError, match="shapes"):
        make_env("toy", num_envs=4).load_checkpoint_state(state)
    two_tasks = TaskDeck(num_tasks=2, num_goals=4, num_lanes=3, seed=0)
    with pytest.raises(ValueError, match=r"\(3, 1\).*\(3, 2\)"):
        two_tasks.load_state(state["deck"])


def split(seed=0, shortest=2, k=7, lanes=5):
    deck = TaskDeck(num_tasks=1, num_goals=50, num_lanes=lanes, seed=seed)
    return TrialEnv(CountingLanes(lanes), deck, episodes_per_trial=k, horizon=H, seed=seed, shortest_trial=shortest)


def lengths(rows):
    """Episodes of each lane's trials, one after the other."""
    lanes = []
    for lane in rows["trial_init"][..., 0]:
        begins = [*lane.nonzero()[:, 0].tolist(), len(lane)]
        lanes.append([(end - begin) / H for begin, end in pairwise(begins)])
    return lanes


def test_episodes_are_split_into_trials_that_end_together():
    """Seven episodes make trials of 2, 3, 4, 5 or 7, in each lane others, and after seven all begin anew."""
    rows = split().rollout(2 * 7 * H, break_when_any_done=False)
    assert rows["trial_init"][:, 0].all() and rows["trial_init"][:, 7 * H].all()
    played = lengths(rows)
    assert all(sum(of_lane) == 14 and min(of_lane) >= 2 for of_lane in played)
    assert len({tuple(of_lane) for of_lane in played}) > 1 and {n for of in played for n in of} <= {2, 3, 4, 5, 7}
    assert (rows["episode"][rows["trial_init"]] == 0).all()
    assert torch.equal(rows["episode"], split(seed=0).rollout(2 * 7 * H, break_when_any_done=False)["episode"])


def test_a_split_is_continued_at_its_boundary_and_nowhere_else():
    env = split()
    env.rollout(7 * H, break_when_any_done=False)
    again = split()
    again.load_checkpoint_state(env.checkpoint_state())
    rows, continued = (e.rollout(7 * H, break_when_any_done=False) for e in (env, again))
    assert lengths(rows) == lengths(continued) and torch.equal(rows["episode"], continued["episode"])
    env = split(shortest=1, lanes=1, seed=1)
    env.rollout(int(lengths(split(shortest=1, lanes=1, seed=1).rollout(7 * H, break_when_any_done=False))[0][0]) * H)
    with pytest.raises(RuntimeError, match="trial boundaries only"):
        env.checkpoint_state()


def test_a_trial_is_no_longer_than_all_episodes():
    with pytest.raises(ValueError, match="shortest_trial=8 must be at most episodes_per_trial=7"):
        split(shortest=8)
