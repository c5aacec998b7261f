"""What `inspect` shows is what the encoder computes: full maps of all layers and heads, and nothing else changes."""

import copy
from contextlib import nullcontext

import pytest
import torch
from tensordict import TensorDict

from htrmrl_torchrl import HierarchicalEncoder, MemorylessEncoder, RecurrentEncoder, make_env
from htrmrl_torchrl.agent.networks import build_networks
from htrmrl_torchrl.inspection.hook import watch
from tests.encoders.test_hierarchical import LENGTHS, MODES, contexts_of, make_encoder, run
from tests.helpers import ACTION, OBSERVATION, assert_same, differ, record, stack_contexts

SIZES = [
    {},
    {"window": 1},
    {"episodes": 1},
    {"inter_layers": 0},
    {"inter_layers": 0, "episodes": 1},
    {"intra_layers": 3, "inter_layers": 3, "window": 5, "episodes": 5, "num_heads": 4},
]

ORDINARY = {"window": 3, "episodes": 3, "d_model": 8, "num_heads": 2, "intra_layers": 2, "inter_layers": 2}


def sizes(seed=0, dtype=torch.float64, **settings):
    encoder = make_encoder(seed=seed, dtype=dtype, **settings)
    contexts = stack_contexts(contexts_of(record(LENGTHS, window=encoder.window, episodes=encoder.episodes)), dtype)
    return encoder, contexts


def assert_rows(attention, held, *, causal):
    """``[F, layers, H, L, L]`` for sequences that hold something where ``held`` ``[F, L]``."""
    length = held.shape[-1]
    allowed = held.unsqueeze(-1) & held.unsqueeze(-2)
    if causal:
        allowed = allowed & torch.ones(length, length, dtype=torch.bool).tril()
    allowed = allowed[:, None, None].expand(attention.shape)
    assert not attention[~allowed].any()
    expected = held[:, None, None].expand(attention.shape[:-1]).to(attention.dtype)
    assert_same(attention.sum(-1), expected, 1e-5 if attention.dtype == torch.float32 else 1e-10)


@pytest.mark.parametrize("attention,norm", MODES)
@pytest.mark.parametrize("size", SIZES, ids=str)
def test_maps_are_whole_and_their_output_is_the_encoders(size, attention, norm):
    # Float32 with weights as they begin: those of `make_encoder`, without layer norm, magnify every rounding.
    for dtype, tolerance in ((torch.float64, 1e-10), (torch.float32, 1e-5)):
        encoder, contexts = sizes(dtype=dtype, attention=attention, norm=norm, reward_scale=0.25, **size)
        if dtype == torch.float32:
            encoder = HierarchicalEncoder(
                observation_dim=OBSERVATION, action_dim=ACTION, attention=attention, norm=norm, **ORDINARY | size
            ).requires_grad_(False)
        inside = encoder.inspect(contexts)
        frames, layers, heads = len(contexts), len(encoder.intra.layers), encoder.intra.layers[0].attention.num_heads
        assert_same(inside.hidden, run(encoder, contexts), tolerance)
        assert_same(inside.hidden, run(encoder, contexts.view(-1, 1)).flatten(0, 1), tolerance)
        assert inside.window_attention.shape == (frames, layers, heads, encoder.window, encoder.window)
        assert_rows(inside.window_attention, contexts["current_mask"], causal=True)
        if not len(encoder.inter.layers):
            assert inside.slot_attention is None
            continue
        slots = (frames, len(encoder.inter.layers), heads, encoder.episodes, encoder.episodes)
        assert inside.slot_attention.shape == slots
        held = torch.cat([contexts["slot_mask"], torch.ones(frames, 1, dtype=torch.bool)], -1)
        assert_rows(inside.slot_attention, held, causal=attention == "causal")
        if encoder.episodes > 1:
            assert_rows(inside.past_attention.flatten(0, 1), contexts["past_mask"].flatten(0, 1), causal=True)
            assert not inside.past_embedding[~contexts["slot_mask"]].any()


def test_the_newest_rows_are_those_of_the_fast_path():
    encoder, contexts = sizes(episodes=4)
    inside = encoder.inspect(contexts)
    window, slots = encoder.attention_weights(contexts)
    assert_same(inside.window_attention[:, -1, :, -1], window, 1e-10)
    assert_same(inside.slot_attention[:, -1, :, -1], slots, 1e-10)
    assert differ(inside.slot_attention[:, 0, :, -1], slots)  # negative control: another layer


def test_equal_windows_have_equal_embeddings_wherever_they_stand():
    encoder, contexts = sizes(episodes=4)
    row = contexts["slot_mask"].sum(-1).argmax()
    alike = contexts[row].clone()
    alike["current"], alike["current_mask"] = alike["past"][-1], alike["past_mask"][-1]
    inside = encoder.inspect(alike.unsqueeze(0))
    assert_same(inside.embedding, inside.past_embedding[:, -1], 1e-10)


def test_any_batch_axes_are_flattened():
    encoder, contexts = sizes()
    contexts = contexts[:4]
    square = encoder.inspect(contexts.view(2, 2))
    for name, value in vars(encoder.inspect(contexts)).items():
        assert torch.equal(getattr(square, name), value)


def test_the_encoded_past_alone_is_refused():
    encoder, contexts = sizes()
    cache = encoder.encode_past(*(contexts[key] for key in ("past", "past_mask", "past_id", "slot_mask")))
    bare = contexts.select("current", "current_mask", "slot_mask").set("past_cache", cache)
    assert_same(run(encoder, bare), run(encoder, contexts), 1e-10)
    with pytest.raises(ValueError, match=r"only the encoded past \(past_cache\); inspection needs the windows"):
        encoder.inspect(bare)


@pytest.mark.parametrize("kind", ["htrmrl", "trmrl", "rl2", "mlp"])
def test_watching_a_rollout_changes_no_bit_and_leaves_nothing_behind(kind):
    env = make_env("toy", num_envs=3, episodes_per_trial=3)

    def play(*, watched):
        torch.manual_seed(0)
        networks = build_networks(
            observation_dim=3, action_low=[-1.0] * 2, action_high=[1.0] * 2, encoder_kind=kind, d_model=16, episodes=4
        )
        written = []
        env.set_seed(0)
        networks.encoder.register_forward_hook(lambda _, __, output: written.append(output["_hidden"]))
        with torch.no_grad(), watch(networks.encoder) if watched else nullcontext() as seen:
            rollout = env.rollout(18, networks.policy, break_when_any_done=False)
        if watched:
            env.rollout(2, networks.policy)
            assert len(seen) == 18 and len(written) == 20  # the hook has gone
        return rollout, written, seen

    rollout, written, _ = play(watched=False)
    watched, again, seen = play(watched=True)
    assert torch.equal(rollout["action"], watched["action"])
    assert torch.equal(rollout["state_value"], watched["state_value"])
    for plain, beside, inside in zip(written, again, seen, strict=False):
        assert torch.equal(plain, beside)
        assert_same(inside.hidden, plain)
    assert (seen[5].slot_attention is None) == (kind != "htrmrl")
    assert (seen[5].window_attention is None) == (kind in ("rl2", "mlp"))


@pytest.mark.parametrize(
    "encoder",
    [
        RecurrentEncoder(observation_dim=OBSERVATION, action_dim=ACTION, d_model=8),
        MemorylessEncoder(observation_dim=OBSERVATION, action_dim=ACTION, d_model=8),
    ],
    ids=["rl2", "mlp"],
)
def test_encoders_without_attention_show_their_vectors_alone(encoder):
    contexts = TensorDict(current=torch.randn(5, 1, encoder.token_dim), batch_size=[5])
    contexts["current_mask"] = torch.ones(5, 1, dtype=torch.bool)
    contexts["before", "state"] = torch.zeros(5, 8)
    inside = encoder.inspect(contexts)
    assert_same(inside.hidden, run(encoder, contexts).detach())
    assert not inside.hidden.requires_grad
    assert all(value is None for name, value in vars(inside).items() if name != "hidden")


def test_looking_leaves_weights_gradients_and_context_alone():
    encoder, contexts = sizes()
    encoder.requires_grad_(True)
    before, state = contexts.clone(), copy.deepcopy(encoder.state_dict())
    assert not encoder.inspect(contexts).hidden.requires_grad
    assert (before == contexts).all()
    assert all(torch.equal(state[name], value) for name, value in encoder.state_dict().items())
    assert all(parameter.grad is None for parameter in encoder.parameters())
    run(encoder, contexts).sum().backward()
    assert encoder.intra.embed.weight.grad is not None
