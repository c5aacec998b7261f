"""Actor, critic and the policy around them."""

import copy
import math

import pytest
import torch
from tensordict import TensorDict
from torchrl.data import Bounded
from torchrl.envs.utils import ExplorationType, set_exploration_type

from htrmrl_torchrl import EpisodicMemory, keys, make_actor_critic
from htrmrl_torchrl.agent.heads import ValueHead, keep_std_at_floor, value_head
from tests.copies import WAYS
from tests.encoders.test_hierarchical import contexts_of, make_encoder
from tests.helpers import ACTION, TOKEN, as_batch, assert_same, differ, record, stack_contexts, steps

SPEC = Bounded(-1, 1, (ACTION,))


def build(encoder=None, **choices):
    encoder = make_encoder(dtype=torch.float32) if encoder is None else encoder
    torch.manual_seed(1)
    return make_actor_critic(encoder=encoder, memory=EpisodicMemory(encoder), action_spec=SPEC, hidden=(6,), **choices)


def some_contexts(dtype=torch.float32):
    contexts = stack_contexts(contexts_of(record([[[4, 4, 4]]], window=3, episodes=3)), dtype)
    return TensorDict(context=contexts, batch_size=contexts.batch_size)


@pytest.mark.parametrize("std", ["independent", "dependent"])
def test_the_initial_std_is_the_one_asked_for_and_the_mean_is_near_zero(std):
    _, actor, _ = build(std=std, init_std=0.3)
    dist = actor.get_dist(some_contexts())
    # The last layer is initialised with gain 0.01, so a dependent std starts within some percent of it.
    assert_same(dist.stddev, torch.full((12, ACTION), 0.3), 1e-6 if std == "independent" else 0.03)
    assert dist.mean.abs().max() < 0.1
    assert (dist.stddev.std() < 1e-7) == (std == "independent")


@pytest.mark.parametrize("std", ["independent", "dependent"])
def test_the_std_falls_to_the_least_one_and_not_below(std):
    for min_std, expected in ((0.2, 0.2), (1e-4, math.exp(-2))):
        _, actor, _ = build(std=std, min_std=min_std)
        with torch.no_grad():  # learned until the logarithm is -2
            if std == "independent":
                actor.get_submodule("module.0.module.1.module.scale").state_independent_scale.fill_(-2)
            else:
                last = [module for module in actor.modules() if isinstance(module, torch.nn.Linear)][-1]
                last.weight[ACTION:] = 0
                last.bias[ACTION:] = -2
        assert_same(actor.get_dist(some_contexts()).stddev, torch.full((12, ACTION), expected))


def log_std_of(actor, std):
    """The parameter whose exponential the std is; a dependent one's for all contexts alike."""
    if std == "independent":
        return next(p for name, p in actor.named_parameters() if name.endswith("scale.state_independent_scale"))
    last = [module for module in actor.modules() if isinstance(module, torch.nn.Linear)][-1]
    with torch.no_grad():
        last.weight[ACTION:] = 0
    return last.bias


@pytest.mark.parametrize("below", [0.0, 0.5])
@pytest.mark.parametrize("std", ["independent", "dependent"])
def test_a_std_at_the_floor_or_below_rises_where_the_loss_asks_for_it_and_falls_no_further(std, below):
    _, actor, _ = build(std=std, min_std=0.5)
    log_std = log_std_of(actor, std)
    with torch.no_grad():
        log_std[-ACTION:] = math.log(0.5) - below - 1e-3
    for sign, moves in ((1, False), (-1, True)):  # descending the std, then ascending it
        actor.zero_grad()
        stddev = actor.get_dist(some_contexts()).stddev
        assert torch.equal(stddev, torch.full_like(stddev, 0.5))
        (sign * stddev.mean()).backward()
        gradient = log_std.grad[-ACTION:]
        assert (gradient < 0).all() if moves else (gradient == 0).all()
    optimizer = torch.optim.Adam(actor.parameters(), lr=0.05)
    for _ in range(30):
        optimizer.zero_grad()
        (-actor.get_dist(some_contexts()).stddev.mean()).backward()
        optimizer.step()
    assert (actor.get_dist(some_contexts()).stddev > 0.55).all()
    # Negative control: clamped in the forward pass, it has no gradient in either direction.
    clamped = torch.tensor(math.log(0.5) - 1e-3, requires_grad=True)
    clamped.exp().clamp_min(0.5).backward()
    assert clamped.grad == 0


def test_a_learned_std_is_kept_at_the_floor_so_that_one_step_raises_it():
    _, actor, _ = build(min_std=0.5)
    log_std = log_std_of(actor, "independent")
    before = some_contexts()
    with torch.no_grad():
        log_std.copy_(torch.tensor([math.log(0.2), math.log(0.7)])[:ACTION])
    acted = actor.get_dist(before.clone()).stddev
    kept = log_std[1:].clone()
    keep_std_at_floor(actor)
    assert torch.equal(log_std[0], torch.tensor(math.log(0.5))) and torch.equal(log_std[1:], kept)
    assert_same(actor.get_dist(before.clone()).stddev, acted)
    optimizer = torch.optim.SGD(actor.parameters(), lr=1.0)
    (-actor.get_dist(before.clone()).stddev.mean()).backward()
    optimizer.step()
    keep_std_at_floor(actor)
    assert (actor.get_dist(before.clone()).stddev > acted).all()


@pytest.mark.parametrize("std", ["independent", "dependent"])
def test_above_the_floor_value_and_gradient_are_those_of_an_exponential(std):
    _, actor, _ = build(std=std, min_std=0.5, init_std=0.9)
    log_std = log_std_of(actor, std)
    stddev = actor.get_dist(some_contexts()).stddev
    assert torch.equal(stddev, log_std[-ACTION:].exp().expand_as(stddev))
    stddev.sum().backward()
    assert_same(log_std.grad[-ACTION:], stddev.sum(0).detach())


@pytest.mark.parametrize("std", ["independent", "dependent"])
def test_the_log_prob_is_that_of_a_gaussian(std):
    _, actor, _ = build(std=std)
    with set_exploration_type(ExplorationType.RANDOM):
        out = actor(some_contexts())
    assert differ(out["action"], out["_loc"])
    expected = []
    for action, loc, scale in zip(out["action"], out["_loc"], out["_scale"], strict=True):
        z = [(a - m) / s for a, m, s in zip(action.tolist(), loc.tolist(), scale.tolist(), strict=True)]
        expected.append(
            sum(-x * x / 2 - math.log(s * math.sqrt(2 * math.pi)) for x, s in zip(z, scale.tolist(), strict=True))
        )
    assert_same(out[keys.LOG_PROB], torch.tensor(expected))


@pytest.mark.parametrize("observe_token", [False, True])
def test_the_actor_reads_the_newest_token_directly_only_if_told(observe_token):
    _, actor, _ = build(observe_token=observe_token)
    td = some_contexts()
    loc = actor(td.clone())["_loc"]
    hidden = td.clone()
    hidden[keys.CURRENT][:, -1] += 1
    before = actor.module[0].module[0](td.clone())  # the encoder
    hidden[keys.HIDDEN] = before[keys.HIDDEN]
    rest = actor.module[0].module[1:]
    for module in rest:
        hidden = module(hidden)
    assert differ(hidden["_loc"], loc) == observe_token


def test_a_single_step_critic_is_a_function_of_the_newest_token():
    _, _, critic = build(critic_kind="single_step")
    td = some_contexts()
    before = critic(td.clone())[keys.STATE_VALUE]
    changed = td.clone()
    changed[keys.PAST].normal_()
    changed[keys.CURRENT][:, :-1].normal_()
    assert torch.equal(critic(changed)[keys.STATE_VALUE], before)
    changed[keys.CURRENT][:, -1] += 1
    assert differ(critic(changed)[keys.STATE_VALUE], before)


def test_heads_read_the_reward_as_the_encoder_scales_it():
    """Tenfold rewards at a tenth of the scale are the same token."""
    td, tenfold = some_contexts(), some_contexts()
    tenfold[keys.CURRENT][..., -2] *= 10
    tenfold[keys.PAST][..., -2] *= 10
    values, means = [], []
    for scale, contexts in ((1.0, td), (0.1, tenfold), (0.1, td)):
        torch.manual_seed(0)
        encoder = make_encoder(dtype=torch.float32, reward_scale=scale)
        _, actor, critic = build(encoder, critic_kind="single_step", observe_token=True)
        values.append(critic(contexts.clone())[keys.STATE_VALUE])
        means.append(actor(contexts.clone())[keys.LOC])
    assert_same(values[1], values[0])
    assert_same(means[1], means[0])
    assert differ(values[2], values[0])


def test_heads_read_observations_as_the_encoder_normalises_them():
    encoder = make_encoder(dtype=torch.float32)
    _, actor, critic = build(encoder, critic_kind="single_step", observe_token=True)
    td, shifted = some_contexts(), some_contexts()
    before = critic(td.clone())[keys.STATE_VALUE], actor(td.clone())[keys.LOC]
    seen = torch.tensor([[-1.0], [3.0]]).expand(2, encoder.observation_dim)  # mean 1, standard deviation 2
    encoder.tokens.adapt(seen)
    for name in (keys.CURRENT, keys.PAST):
        observation = shifted[name][..., : encoder.observation_dim]
        observation.copy_(2 * observation + 1)
    after = critic(shifted.clone())[keys.STATE_VALUE], actor(shifted.clone())[keys.LOC]
    assert_same(after[0], before[0])
    assert_same(after[1], before[1])
    assert differ(critic(td.clone())[keys.STATE_VALUE], before[0])


def test_a_separate_critic_leaves_the_actor_alone():
    encoder = make_encoder(dtype=torch.float32)
    own = make_encoder(seed=1, dtype=torch.float32, hidden_key="_critic", cache_key=("context", "critic_cache"))
    _, actor, critic = build(encoder, critic_kind="separate", critic_encoder=own)
    shared = {id(p) for p in actor.parameters()} & {id(p) for p in critic.parameters()}
    assert not shared
    td = some_contexts()
    value, loc = critic(td.clone())[keys.STATE_VALUE], actor(td.clone())["_loc"]
    own.inter.position.data += 1
    own.inter.position.data[:, ::2] -= 2
    assert differ(critic(td.clone())[keys.STATE_VALUE], value)
    assert torch.equal(actor(td.clone())["_loc"], loc)


def test_the_policy_gives_collectors_no_context():
    policy, _, _ = build()
    step = steps(as_batch(record([[[2]]], window=3, episodes=3)))[0]
    out = policy(step.clone())
    added = set(out.keys(True, True)) - set(step.keys(True, True))
    assert added == {
        keys.ACTION, keys.LOG_PROB, keys.STATE_VALUE, keys.WINDOW_EPISODE, keys.WINDOW_START, keys.WINDOW_CURRENT,
    }  # fmt: skip


def test_a_policys_state_dict_holds_each_weight_once():
    policy, actor, critic = build()
    state = policy.state_dict()
    storages = [value.data_ptr() for value in state.values() if value.numel()]
    assert len(storages) == len(set(storages))
    assert len(state) == len(actor.state_dict()) + len(critic.state_dict())
    encoder = [p.data_ptr() for p in actor.module[0].module[0].parameters()]
    assert all(storages.count(pointer) == 1 for pointer in encoder)


@pytest.mark.parametrize("way", WAYS)
def test_a_copied_policy_remembers_and_acts_alike(way):
    policy, _, _ = build()
    rows = steps(as_batch(record([[[3, 3, 3], [3, 3]]], window=3, episodes=3)))
    for row in rows[:5]:
        policy(row.clone())
    copied = WAYS[way](policy)
    memory, encoder = copied.module[0], copied.module[1].module[0].module[0]
    assert memory._encoders[0] is encoder  # the copy's own, not the original's
    torch.manual_seed(0)
    expected = [policy(row.clone()) for row in rows[5:]]
    torch.manual_seed(0)
    for row, out in zip(rows[5:], expected, strict=True):
        assert (copied(row.clone()) == out).all()


# ------------------------------------------------------------------------------------------------------ value head


def test_adapting_changes_no_prediction_and_normalises_the_targets():
    torch.manual_seed(0)
    head = ValueHead(in_features=4, hidden=(8,), normalize=True).double()
    x = torch.randn(50, 4, dtype=torch.float64)
    assert head.scale == 1
    targets = 300 + 40 * torch.randn(5_000, 1, dtype=torch.float64)
    before = head(x)
    head.adapt(targets)
    assert_same(head(x), before, 1e-10)
    normalised = (targets - head.norm.denormalize(torch.zeros(1))) / head.scale
    # The identity before the first call keeps a weight of 0.9 * 0.001 / 0.1009, so 0.9 % of the mean is missing: 2.7 of
    # 40 in the mean, and a variance of 40^2 + 0.009 * 300^2.
    assert abs(normalised.mean()) < 0.1 and abs(normalised.std() - 1) < 0.3
    for shift in (1.0, -500.0, 3.0):
        before = head(x)
        head.adapt(targets + shift)
        assert_same(head(x), before, 1e-9)


def test_after_some_calls_targets_are_standardised():
    torch.manual_seed(0)
    head = ValueHead(in_features=4, hidden=(8,), normalize=True).double()
    targets = 300 + 40 * torch.randn(5_000, 1, dtype=torch.float64)
    for _ in range(100):
        head.adapt(targets)
    normalised = (targets - head.norm.denormalize(torch.zeros(1))) / head.scale
    assert abs(normalised.mean()) < 1e-3 and abs(normalised.std() - 1) < 1e-3


def test_without_normalisation_adapting_does_nothing():
    head = ValueHead(in_features=4, hidden=(8,), normalize=False)
    before = copy.deepcopy(head.state_dict())
    head.adapt(torch.randn(10, 1) * 100)
    assert head.scale == 1.0 and all(torch.equal(before[name], x) for name, x in head.state_dict().items())


def test_the_value_head_is_found_in_every_critic():
    for choices in ({}, {"critic_kind": "single_step"}):
        _, _, critic = build(value_norm=True, **choices)
        assert isinstance(value_head(critic), ValueHead) and value_head(critic).norm is not None


# ---------------------------------------------------------------------------------------------- what may go wrong


@pytest.mark.parametrize(
    "wrong,message",
    [
        ({"std": "fixed"}, r"std='fixed' is unknown; choose one of independent, dependent"),
        ({"init_std": 0.0}, r"init_std=0.0 must be positive"),
        ({"min_std": 0.0}, r"min_std=0.0 must be positive and at most init_std=1.0"),
        ({"min_std": 0.5, "init_std": 0.4}, r"min_std=0.5 must be positive and at most init_std=0.4"),
        ({"critic_kind": "twin"}, r"critic_kind='twin' is unknown; choose one of shared, separate, single_step"),
        ({"critic_kind": "separate"}, r"'separate' needs a critic_encoder"),
        ({"critic_encoder": make_encoder()}, r"'separate' needs a critic_encoder"),
        ({"critic_kind": "separate", "critic_encoder": make_encoder()}, r"share hidden_key, cache_key or state_key"),
    ],
)
def test_bad_choices(wrong, message):
    with pytest.raises(ValueError, match=message):
        build(**wrong)


def test_an_action_of_another_size_is_refused():
    encoder = make_encoder()
    with pytest.raises(ValueError, match=r"expects actions of size 1, but the action spec has 3"):
        make_actor_critic(encoder=encoder, memory=EpisodicMemory(encoder), action_spec=Bounded(-1, 1, (3,)))
    assert make_encoder().token_dim == TOKEN
