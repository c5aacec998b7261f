"""Advantages against loops, the value loss against TorchRL's."""

import random

import pytest
import torch
from tensordict import TensorDict
from tensordict.nn import TensorDictModule
from torchrl.envs.utils import ExplorationType, set_exploration_type
from torchrl.objectives import ClipPPOLoss

from htrmrl_torchrl import NormalizedClipPPOLoss, TrialGAE, final_values, keys
from htrmrl_torchrl.agent.heads import value_head
from tests.agent.test_heads import build, some_contexts
from tests.helpers import OBSERVATION, as_batch, assert_same, differ, record
from tests.replay.test_storage import make_buffer, ragged

GAMMA, LAMBDA = 0.875, 0.75  # exact in float32, in which TorchRL keeps them


def some_batch(seed=0, *, whole=False):
    """Ragged episodes, some terminated and some truncated, two tasks, random values. ``whole``: no trial is cut."""
    lengths = [[[3, 4, 2], [2, 4, 3]]] * 3 if whole else ragged(seed, frames=30)
    recording = record(lengths, window=2, episodes=2, seed=seed)
    batch = as_batch(recording, 0, 18 if whole else 30, tasks=[4, 1, 4], dtype=torch.float64)
    rng = random.Random(seed)
    for lane in range(3):
        for t in range(batch.shape[1]):
            terminated = bool(batch["next", keys.DONE][lane, t]) and rng.random() < 0.5
            batch["next", keys.TERMINATED][lane, t] = terminated
            batch["next", keys.TRUNCATED][lane, t] = batch["next", keys.DONE][lane, t] and not terminated
    generator = torch.Generator().manual_seed(seed)
    batch[keys.STATE_VALUE] = torch.randn(*batch.shape, 1, dtype=torch.float64, generator=generator)
    ends = torch.randn(*batch.shape, 1, dtype=torch.float64, generator=generator)
    return batch, ends


def loops(batch, ends, *, credit, bootstrap):
    """Advantages and targets, one step after the other from the end of each lane."""
    lanes, steps = batch.shape
    advantage = torch.zeros(lanes, steps, 1, dtype=torch.float64)
    for lane in range(lanes):
        following = 0.0
        for t in reversed(range(steps)):
            done, terminated = bool(batch["next", keys.DONE][lane, t]), bool(batch["next", keys.TERMINATED][lane, t])
            last = t + 1 == steps
            if credit == "episode":
                path_ends = done or last
            else:
                path_ends = last or bool(batch[keys.TRIAL_INIT][lane, t + 1])
            if not path_ends:
                successor = float(batch[keys.STATE_VALUE][lane, t + 1])
            elif terminated or (done and not bootstrap):
                successor = 0.0
            else:
                successor = float(ends[lane, t])
            delta = (
                float(batch["next", keys.REWARD][lane, t]) + GAMMA * successor - float(batch[keys.STATE_VALUE][lane, t])
            )
            following = delta + (0.0 if path_ends else GAMMA * LAMBDA * following)
            advantage[lane, t] = following
    return advantage, advantage + batch[keys.STATE_VALUE]


@pytest.mark.parametrize("bootstrap", [False, True])
@pytest.mark.parametrize("credit", ["episode", "trial"])
@pytest.mark.parametrize("seed", range(2))
def test_advantages_equal_the_loops(seed, credit, bootstrap):
    batch, ends = some_batch(seed)
    gae = TrialGAE(gamma=GAMMA, lmbda=LAMBDA, credit=credit, bootstrap=bootstrap, advantage_norm="none")
    out = gae(batch, final_values=ends)
    advantage, target = loops(batch, ends, credit=credit, bootstrap=bootstrap)
    assert_same(out[keys.ADVANTAGE], advantage, 1e-10)
    assert_same(out[keys.VALUE_TARGET], target, 1e-10)
    for other_credit, other in (("episode", bootstrap), ("trial", bootstrap), (credit, not bootstrap)):
        if (other_credit, other) != (credit, bootstrap):
            assert differ(out[keys.ADVANTAGE], loops(batch, ends, credit=other_credit, bootstrap=other)[0])


@pytest.mark.parametrize("credit", ["episode", "trial"])
def test_whole_trials_need_no_final_values_without_bootstrap(credit):
    batch, ends = some_batch(whole=True)
    gae = TrialGAE(gamma=GAMMA, lmbda=LAMBDA, credit=credit, advantage_norm="none")
    expected, _ = loops(batch, ends, credit=credit, bootstrap=False)
    assert_same(gae(batch)[keys.ADVANTAGE], expected, 1e-10)
    assert_same(gae(batch, final_values=ends)[keys.ADVANTAGE], expected, 1e-10)


def test_final_values_are_read_only_where_a_path_ends():
    batch, ends = some_batch(whole=True)
    gae = TrialGAE(credit="episode", bootstrap=True, advantage_norm="none")
    elsewhere = torch.where(batch["next", keys.DONE], ends, float("nan"))
    assert torch.equal(
        gae(batch, final_values=elsewhere)[keys.ADVANTAGE], gae(batch, final_values=ends)[keys.ADVANTAGE]
    )


@pytest.mark.parametrize("bootstrap,whole", [(True, True), (False, False)])
@pytest.mark.parametrize("credit", ["episode", "trial"])
def test_missing_final_values_are_noticed(credit, bootstrap, whole):
    batch, _ = some_batch(whole=whole)
    batch["next", keys.TERMINATED][:] = False
    batch["next", keys.DONE][:, -1] &= whole
    with pytest.raises(ValueError, match=r"final_values was not given"):
        TrialGAE(credit=credit, bootstrap=bootstrap)(batch)


def test_a_terminated_episode_is_worth_nothing_afterwards():
    batch, ends = some_batch(whole=True)
    batch["next", keys.TERMINATED][:] = batch["next", keys.DONE]
    expected, _ = loops(batch, ends, credit="episode", bootstrap=False)
    gae = TrialGAE(gamma=GAMMA, lmbda=LAMBDA, credit="episode", bootstrap=True, advantage_norm="none")
    assert_same(gae(batch, final_values=ends)[keys.ADVANTAGE], expected, 1e-10)


def test_normalisation_over_the_batch_and_within_tasks():
    batch, ends = some_batch()
    batch["next", keys.REWARD][1] = 100 * batch["next", keys.REWARD][1] + 50  # task 1
    raw, target = loops(batch, ends, credit="episode", bootstrap=True)

    def standardised(values):
        mean = sum(values) / len(values)
        std = (sum((v - mean) ** 2 for v in values) / (len(values) - 1)) ** 0.5
        return [(v - mean) / std for v in values]

    over_batch = torch.tensor(standardised(raw.flatten().tolist()), dtype=torch.float64).view_as(raw)
    within = torch.empty_like(raw)
    for lanes in ([0, 2], [1]):
        within[lanes] = torch.tensor(standardised(raw[lanes].flatten().tolist()), dtype=torch.float64).view(-1, 30, 1)
    for norm, expected in (("batch", over_batch), ("task", within), ("none", raw)):
        gae = TrialGAE(gamma=GAMMA, lmbda=LAMBDA, bootstrap=True, advantage_norm=norm)
        out = gae(batch, final_values=ends)
        assert_same(out[keys.ADVANTAGE], expected, 1e-8)
        assert_same(out[keys.VALUE_TARGET], target, 1e-10)  # targets keep their units


def test_without_task_keys_all_lanes_are_one_task():
    batch, ends = some_batch()
    outs = [
        TrialGAE(bootstrap=True, advantage_norm=norm)(batch.exclude(keys.TASK), final_values=ends)[keys.ADVANTAGE]
        for norm in ("task", "batch")
    ]
    assert_same(*outs, 1e-8)


def test_advantages_change_nothing_in_the_batch():
    batch, ends = some_batch()
    before = batch.clone()
    out = TrialGAE(bootstrap=True)(batch, final_values=ends)
    assert set(out.keys()) == {keys.ADVANTAGE, keys.VALUE_TARGET} and (batch == before).all()
    assert set(batch.keys(True)) == set(before.keys(True))


def test_an_environment_without_lanes():
    batch, ends = some_batch()
    gae = TrialGAE(bootstrap=True, advantage_norm="none")
    one = gae(batch[1], final_values=ends[1])
    assert one.shape == (30,) and (one == gae(batch, final_values=ends)[1]).all()


@pytest.mark.parametrize(
    "wrong,message",
    [
        ({"credit": "step"}, r"credit='step' is unknown; choose one of episode, trial"),
        ({"advantage_norm": "minibatch"}, r"advantage_norm='minibatch' is unknown; choose one of batch, task, none"),
    ],
)
def test_bad_modes(wrong, message):
    with pytest.raises(ValueError, match=message):
        TrialGAE(**wrong)


# ---------------------------------------------------------------------------------------------------- final values


def test_final_values_stand_at_the_last_step_of_each_episode_and_of_the_batch():
    """With the newest observation's sum as the value, they are sums of the raw final observations."""
    value = TensorDictModule(
        lambda current: current[..., -1, :OBSERVATION].sum(-1, keepdim=True),
        in_keys=[keys.CURRENT],
        out_keys=[keys.STATE_VALUE],
    )
    recording = record(ragged(1), window=2, episodes=3)
    buffer = make_buffer(recording)
    for begin, end in ((0, 17), (17, 40)):
        batch = as_batch(recording, begin, end)
        buffer.empty()
        values = final_values(buffer, buffer.extend(batch), value)
        ends = batch["next", keys.DONE].clone()
        ends[:, -1] = True
        expected = torch.where(ends, batch["next", keys.OBSERVATION].sum(-1, keepdim=True), 0)
        assert_same(values, expected)


# ------------------------------------------------------------------------------------------------------------ loss


def losses_of(kind, actor, critic, minibatch, **kwargs):
    kwargs = {"clip_epsilon": 0.2, "entropy_coeff": 0.01, "loss_critic_type": "l2"} | kwargs
    if kind is ClipPPOLoss:
        kwargs["functional"] = False
    return kind(actor, critic, **kwargs)(minibatch.clone())


def some_minibatch(actor, critic):
    torch.manual_seed(3)
    minibatch = some_contexts()
    with torch.no_grad(), set_exploration_type(ExplorationType.RANDOM):
        critic(actor(minibatch))
    minibatch[keys.LOG_PROB] += 0.1 * torch.randn_like(minibatch[keys.LOG_PROB])
    minibatch[keys.STATE_VALUE] += torch.randn_like(minibatch[keys.STATE_VALUE])
    minibatch[keys.ADVANTAGE] = torch.randn(12, 1)
    minibatch[keys.VALUE_TARGET] = 20 * torch.randn(12, 1)
    return minibatch


@pytest.mark.parametrize("clip_value", [False, 0.2])
def test_without_value_normalisation_it_is_torchrls_loss(clip_value):
    _, actor, critic = build(value_norm=False)
    minibatch = some_minibatch(actor, critic)
    ours, theirs = (
        losses_of(kind, actor, critic, minibatch, clip_value=clip_value)
        for kind in (NormalizedClipPPOLoss, ClipPPOLoss)
    )
    assert set(ours.keys()) == set(theirs.keys())
    for name in theirs.keys():
        assert torch.equal(ours[name], theirs[name]), name


def test_with_value_normalisation_the_value_error_is_in_units_of_the_scale():
    _, actor, critic = build(value_norm=True)
    value_head(critic).adapt(torch.tensor([[30.0], [-20.0], [5.0]]))
    scale = value_head(critic).scale
    assert scale > 10
    minibatch = some_minibatch(actor, critic)
    ours, theirs = (losses_of(kind, actor, critic, minibatch) for kind in (NormalizedClipPPOLoss, ClipPPOLoss))
    assert_same(ours["loss_critic"], (theirs["loss_critic"] / scale.square()).squeeze())
    assert torch.equal(ours["loss_objective"], theirs["loss_objective"])
    by_hand = ((critic(actor(minibatch.clone()))[keys.STATE_VALUE] - minibatch[keys.VALUE_TARGET]) / scale).square()
    assert_same(ours["loss_critic"], by_hand.mean())


def test_the_value_clip_is_in_units_of_the_scale_too():
    """Far beyond the clip radius in raw units, within it in normalised ones: nothing is clipped."""
    _, actor, critic = build(value_norm=True)
    value_head(critic).adapt(torch.tensor([[30.0], [-20.0], [5.0]]))
    minibatch = some_minibatch(actor, critic)
    free, clipped = (losses_of(NormalizedClipPPOLoss, actor, critic, minibatch, clip_value=c) for c in (False, 0.5))
    assert_same(clipped["loss_critic"], free["loss_critic"])
    raw = [losses_of(ClipPPOLoss, actor, critic, minibatch, clip_value=c)["loss_critic"] for c in (False, 0.5)]
    assert differ(*raw)


def test_one_backward_pass_reaches_every_weight():
    _, actor, critic = build(value_norm=True)
    loss = NormalizedClipPPOLoss(actor, critic, clip_epsilon=0.2, entropy_coeff=0.01, loss_critic_type="l2")
    for parameter in loss.parameters():
        parameter.requires_grad_(True)
    losses = loss(some_minibatch(actor, critic))
    (losses["loss_objective"] + losses["loss_critic"] + losses["loss_entropy"]).backward()
    names = [name for name, p in loss.named_parameters() if p.grad is None or not p.grad.any()]
    assert not [name for name in names if "key.bias" not in name], names
    assert isinstance(losses, TensorDict)
