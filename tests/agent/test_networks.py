"""Agents from plain numbers and from checkpoints."""

import pytest
import torch
from tensordict import TensorDict
from torch import nn
from torchrl.envs.utils import ExplorationType, set_exploration_type

from htrmrl_torchrl import (
    EpisodicMemory,
    HierarchicalEncoder,
    MemorylessEncoder,
    RecurrentEncoder,
    RecurrentMemory,
    keys,
    make_env,
)
from htrmrl_torchrl.agent.networks import acting_policy, build_networks, load_networks
from tests.helpers import as_batch, differ, record, steps

SIZES = {
    "observation_dim": 2, "action_low": [-1.0], "action_high": [1.0], "window": 2, "episodes": 3, "d_model": 8,
    "num_heads": 2, "intra_layers": 1, "inter_layers": 1,
}  # fmt: skip


def rows():
    return steps(as_batch(record([[[3, 3, 3]], [[2, 4, 3]]], window=2, episodes=3)))


@pytest.mark.parametrize(
    "name,value,where",
    [
        ("attention", "full", lambda n: n.encoder.attention),
        (
            "norm",
            "tfixup",
            lambda n: "pre_ln" if any(isinstance(m, nn.LayerNorm) for m in n.encoder.modules()) else "tfixup",
        ),
        ("reward_scale", 0.5, lambda n: n.encoder.tokens.rest[-2].item()),
        ("max_episodes", 3, lambda n: n.memory.max_episodes),
        ("strategy", "recent", lambda n: type(n.memory.strategy).__name__.lower()),
        ("init_std", 0.25, lambda n: round(n.actor.get_dist(n.memory(rows()[0])).stddev[0, 0].item(), 6)),
        ("min_std", 0.75, lambda n: next(m.scale_lb for m in n.actor.modules() if hasattr(m, "scale_lb"))),
        ("seed", 7, lambda n: n.memory.seed),
    ],
)
def test_choices_arrive(name, value, where):
    assert where(build_networks(**SIZES, **{name: value})) == value


ENCODERS = {
    "htrmrl": HierarchicalEncoder, "trmrl": HierarchicalEncoder, "rl2": RecurrentEncoder, "mlp": MemorylessEncoder
}  # fmt: skip


def test_encoders_by_name():
    built = {kind: build_networks(**SIZES, encoder_kind=kind, mlp_layers=3) for kind in ENCODERS}
    assert {kind: type(networks.encoder) for kind, networks in built.items()} == ENCODERS
    flat, default = built["trmrl"].encoder, build_networks(**SIZES).encoder
    assert (flat.episodes, len(flat.inter.layers), flat.window) == (1, 0, 2)
    assert (default.episodes, len(default.inter.layers)) == (3, 1)
    assert built["rl2"].encoder.gru.gru.hidden_size == 8
    for kind in ("rl2", "mlp"):
        assert [m.out_features for m in built[kind].encoder.mlp if isinstance(m, nn.Linear)] == [8, 8, 8]
        assert (built[kind].encoder.window, built[kind].encoder.episodes) == (1, 1)
    memories = {kind: type(networks.memory) for kind, networks in built.items()}
    assert memories == dict.fromkeys(ENCODERS, EpisodicMemory) | {"rl2": RecurrentMemory}


def test_a_recurrent_separate_critic_has_a_state_of_its_own():
    networks = build_networks(**SIZES, encoder_kind="rl2", critic_kind="separate")
    memory, _, critic = networks.policy.module
    assert memory._encoders == (networks.encoder, critic.module[0])
    out = networks.policy(rows()[0])
    assert differ(out[keys.RECURRENT, "state"], out[keys.RECURRENT, "critic_state"])


def test_the_scope_arrives_and_evaluation_does_not_inherit_it():
    networks = build_networks(**SIZES, scope="lane", max_episodes=3)
    assert networks.memory.scope == "lane"
    for asked, scope in (({}, "trial"), ({"scope": "lane"}, "lane")):
        memory = acting_policy(networks, **asked).module[0]
        assert (memory.scope, memory.max_episodes) == (scope, 3)


def test_the_parts_are_shared_not_copied():
    networks = build_networks(**SIZES, critic_kind="separate")
    memory, actor, critic = networks.policy.module
    assert memory is networks.memory and actor is networks.actor and critic is networks.critic
    assert memory._encoders == (networks.encoder, critic.module[0])


def test_an_acting_policy_uses_the_weights_and_a_memory_of_its_own():
    networks = build_networks(**SIZES)
    policy = acting_policy(networks)
    with torch.no_grad(), set_exploration_type(ExplorationType.DETERMINISTIC):
        before = policy(rows()[0])[keys.ACTION]
        for parameter in networks.actor.parameters():
            parameter += 0.5
        policy.module[0].restart()
        assert differ(policy(rows()[0])[keys.ACTION], before)
        assert networks.memory.checkpoint_state() == {"lanes": 0}
        out = policy(rows()[1])
    assert set(out.keys(True, True)) - set(rows()[1].keys(True, True)) == {keys.ACTION}


@pytest.mark.parametrize("encoder_kind", ENCODERS)
@pytest.mark.parametrize("critic_kind", ["shared", "separate"])
def test_an_acting_policy_acts_like_the_training_policy(critic_kind, encoder_kind):
    networks = build_networks(**SIZES, encoder_kind=encoder_kind, critic_kind=critic_kind, seed=4)
    with torch.no_grad():
        for parameter in networks.actor.parameters():
            parameter += 0.2 * torch.randn_like(parameter)
        acting = acting_policy(networks, seed=4)
        for policy_row, training_row in zip(rows(), rows(), strict=True):
            # Deterministic by default: the action is the mean.
            assert torch.equal(acting(policy_row)[keys.ACTION], networks.policy(training_row)[keys.ACTION])


def test_networks_fit_their_environment():
    env = make_env("toy", num_envs=2, episodes_per_trial=2)
    networks = build_networks(**(SIZES | {"observation_dim": 3, "action_low": [-1.0] * 2, "action_high": [1.0] * 2}))
    out = env.rollout(12, networks.policy, break_when_any_done=False)
    assert out[keys.LOG_PROB].shape == (2, 12) and out[keys.WINDOW_START].shape == (2, 12, 2)
    assert isinstance(out, TensorDict)


@pytest.mark.parametrize(
    "wrong,message",
    [
        ({"window": 0}, r"window=0 is too small"),
        ({"encoder_kind": "lstm"}, r"encoder_kind='lstm' is unknown; choose one of htrmrl, trmrl, rl2, mlp"),
        ({"attention": "ful"}, r"attention='ful' is unknown; choose one of causal, full"),
        ({"strategy": "last"}, r"'last' is unknown.*recent, uniform"),
        ({"critic_kind": "none"}, r"critic_kind='none' is unknown"),
        ({"encoder_kind": "rl2", "scope": "lane", "max_episodes": 4}, r"scope='lane' must be 'trial'"),
        ({"encoder_kind": "mlp", "scope": "lane", "max_episodes": 4}, r"scope='lane' must be 'trial'"),
    ],
)
def test_bad_choices(wrong, message):
    with pytest.raises(ValueError, match=message):
        build_networks(**(SIZES | wrong))


def test_no_checkpoint_and_something_else(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"There is no checkpoint at .*nowhere"):
        load_networks(tmp_path / "nowhere.ckpt")
    (tmp_path / "notes.txt").write_text("weights")
    with pytest.raises(ValueError, match=r"notes.txt is not a checkpoint of this package"):
        load_networks(tmp_path / "notes.txt")


def test_a_checkpoint_of_something_else(tmp_path):
    from torchrl.checkpoint import Checkpoint

    Checkpoint(format="archive", model=nn.Linear(2, 2)).save(tmp_path / "other.ckpt")
    with pytest.raises(ValueError, match=r"other.ckpt is not a checkpoint of this package"):
        load_networks(tmp_path / "other.ckpt")
