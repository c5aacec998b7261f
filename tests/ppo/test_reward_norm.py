"""The scale of each task's rewards, against loops."""

import math

import pytest
import torch
from tensordict import TensorDict

from htrmrl_torchrl import TaskRewardNormalizer, TrialGAE, keys
from tests.helpers import assert_same, differ
from tests.ppo.test_objectives import some_batch

GAMMA = 0.875


def returns_of(batch):
    """Task -> discounted returns of all its steps, one step after the other from the end of each lane."""
    returns = {}
    for lane in range(batch.shape[0]):
        following = 0.0
        for t in reversed(range(batch.shape[1])):
            if batch["next", keys.DONE][lane, t]:
                following = 0.0
            following = float(batch["next", keys.REWARD][lane, t]) + GAMMA * following
            returns.setdefault(int(batch[keys.TASK][lane, t]), []).append(following)
    return returns


def rms(values):
    return math.sqrt(sum(value**2 for value in values) / len(values))


@pytest.mark.parametrize("seed", range(3))
def test_rewards_are_divided_by_the_root_mean_square_of_their_tasks_returns(seed):
    batch, _ = some_batch(seed)  # tasks 4, 1, 4, ragged episodes, the last one cut
    before = batch.clone()
    normalizer = TaskRewardNormalizer(num_tasks=5, gamma=GAMMA)
    normalizer.adapt(batch)
    sizes = {task: rms(returns) for task, returns in returns_of(batch).items()}
    expected = torch.tensor([sizes.get(task, 1.0) for task in range(5)], dtype=torch.float64)
    assert sizes.keys() == {1, 4} and abs(sizes[1] - sizes[4]) > 1e-3
    assert_same(normalizer.scale, expected, 1e-6)

    scaled = normalizer(batch)
    for lane, task in enumerate((4, 1, 4)):
        assert_same(scaled["next", keys.REWARD][lane], before["next", keys.REWARD][lane] / sizes[task], 1e-6)
    assert differ(scaled["next", keys.REWARD], before["next", keys.REWARD])
    assert (batch == before).all()  # whoever else reads the batch finds the environment's rewards
    assert scaled[keys.STATE_VALUE] is batch[keys.STATE_VALUE]  # and nothing is copied


def test_an_environment_without_lanes_and_without_tasks():
    batch, _ = some_batch()
    lane = batch[0].exclude(keys.TASK)
    batch[keys.TASK][:] = 0
    one, other = (TaskRewardNormalizer(num_tasks=1, gamma=GAMMA) for _ in range(2))
    one.adapt(lane)
    other.adapt(batch[:1])
    assert one.scale == other.scale != 1
    assert torch.equal(one(lane)["next", keys.REWARD], other(batch[:1])["next", keys.REWARD][0])


def test_the_scale_remembers_about_ten_batches_and_tasks_that_are_absent():
    batches = [some_batch(seed)[0] for seed in range(4)]
    batches[2][keys.TASK][:] = 1  # task 4 is away
    batches[3]["next", keys.REWARD][1] *= 30
    normalizer = TaskRewardNormalizer(num_tasks=5, gamma=GAMMA)
    squares = {1: [], 4: []}
    for batch in batches:
        normalizer.adapt(batch)
        for task, returns in returns_of(batch).items():
            squares[task].append(rms(returns) ** 2)
        for task, seen in squares.items():
            weights = [0.9 ** (len(seen) - 1 - i) for i in range(len(seen))]  # the latest first
            mean = sum(w * square for w, square in zip(weights, seen, strict=True)) / sum(weights)
            assert normalizer.scale[task].item() == pytest.approx(math.sqrt(mean), rel=1e-6)
    assert [len(seen) for seen in squares.values()] == [4, 3]


def test_before_its_first_batch_rewards_stay_as_they_are_bit_for_bit():
    batch, _ = some_batch()
    normalizer = TaskRewardNormalizer(num_tasks=5, gamma=GAMMA)
    assert torch.equal(normalizer(batch)["next", keys.REWARD], batch["next", keys.REWARD])


def test_tasks_that_pay_nothing_and_tasks_that_pay_very_much():
    """Rewards of zero stay zero, next to nothing is not blown up, squares beyond float32 do not overflow."""
    step = {"reward": torch.tensor([0.0, 1e-9, 1e30]).view(3, 1, 1), "done": torch.ones(3, 1, 1, dtype=torch.bool)}
    batch = TensorDict({"task": torch.arange(3).view(3, 1, 1), "next": step}, [3, 1])
    normalizer = TaskRewardNormalizer(num_tasks=3, gamma=GAMMA)
    normalizer.adapt(batch)
    assert_same(normalizer(batch)["next", keys.REWARD].flatten(), torch.tensor([0.0, 1e-6, 1.0]))


def test_advantages_no_longer_depend_on_what_a_task_pays():
    """Equal lanes but for the pay of their tasks: equal advantages, in units that a critic of size 1 can predict."""
    batch, _ = some_batch(whole=True)
    for key, entry in batch.items(True, True):
        if key != keys.TASK:
            entry[1] = entry[0]
    batch[keys.STATE_VALUE][:] = 0
    batch["next", keys.REWARD][1] *= 1000
    normalizer = TaskRewardNormalizer(num_tasks=5, gamma=GAMMA)
    batch = batch[:2]  # one lane of task 4, one of task 1
    gae = TrialGAE(gamma=GAMMA, lmbda=1.0, advantage_norm="none")
    assert differ(*gae(batch)[keys.VALUE_TARGET])
    normalizer.adapt(batch)
    targets = gae(normalizer(batch))[keys.VALUE_TARGET]
    assert_same(targets[0], targets[1], 1e-6)
    assert rms(targets.flatten().tolist()) == pytest.approx(1, rel=1e-6)


@pytest.mark.parametrize("wrong", [{"num_tasks": 0}, {"gamma": 0.0}, {"gamma": 1.01}])
def test_wrong_sizes_are_refused(wrong):
    with pytest.raises(ValueError, match=rf"^{next(iter(wrong))}={next(iter(wrong.values()))} must be"):
        TaskRewardNormalizer(**{"num_tasks": 2, "gamma": GAMMA} | wrong)
