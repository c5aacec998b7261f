"""The encoder equals the loop-only reference, and nothing leaks into it."""

import itertools

import pytest
import torch
from tensordict import TensorDict
from torch import nn

from htrmrl_torchrl import EpisodicReplayBuffer, EpisodicStorage, HierarchicalEncoder
from tests.helpers import ACTION, OBSERVATION, TOKEN, as_batch, assert_same, differ, record, stack_contexts
from tests.reference import encode, make_context

MODES = list(itertools.product(["causal", "full"], ["pre_ln", "tfixup"]))
LENGTHS = [[[3, 1, 4, 2]], [[2, 2], [5, 1]]]


def make_encoder(*, seed=0, dtype=torch.float64, **sizes):
    """Small, with every parameter (biases, norms, positions) away from its initial value."""
    torch.manual_seed(seed)
    settings = {"window": 3, "episodes": 3, "d_model": 8, "num_heads": 2, "intra_layers": 2, "inter_layers": 2} | sizes
    encoder = HierarchicalEncoder(observation_dim=OBSERVATION, action_dim=ACTION, **settings).to(dtype)
    for parameter in encoder.parameters():
        nn.init.normal_(parameter, std=0.4)
    return encoder.requires_grad_(False)


def run(encoder, contexts):
    return encoder(TensorDict(context=contexts, batch_size=contexts.batch_size))["_hidden"]


def contexts_of(recording):
    return [recording.context(lane, f) for lane, steps in enumerate(recording.steps) for f in range(len(steps))]


VARIANTS = [
    {},
    {"window": 1},
    {"episodes": 1},
    {"window": 1, "episodes": 1, "inter_layers": 0},
    {"inter_layers": 0},
    {"intra_layers": 1, "inter_layers": 1, "episodes": 2},
    {"intra_layers": 3, "inter_layers": 3, "window": 5, "episodes": 5, "num_heads": 4, "d_feedforward": 5},
]


@pytest.mark.parametrize("attention,norm", MODES)
@pytest.mark.parametrize("variant", VARIANTS, ids=lambda v: ",".join(f"{k}={n}" for k, n in v.items()) or "default")
def test_the_encoder_equals_the_reference(variant, attention, norm):
    for seed in range(2):
        encoder = make_encoder(seed=seed, attention=attention, norm=norm, reward_scale=0.25, **variant)
        recording = record(LENGTHS, window=encoder.window, episodes=encoder.episodes, seed=seed)
        contexts = contexts_of(recording)[:: 2 + seed]
        expected = torch.stack([encode(encoder, context, reward_scale=0.25) for context in contexts])
        assert_same(run(encoder, stack_contexts(contexts)), expected, 1e-10)
    if encoder.remembers:  # negative control: one wrong slot shows
        last = [i for i, context in enumerate(contexts) if context.past][-1]
        context = contexts[last]
        foreign = record(LENGTHS, window=encoder.window, episodes=encoder.episodes, seed=99).trials[0][0]
        other = make_context(foreign, 1, 0, [(0, 0)], encoder.window, encoder.episodes)
        contexts[last] = type(context)(context.current, other.past, other.drawn, context.episodes)
        assert differ(run(encoder, stack_contexts(contexts))[last], expected[last])


@pytest.mark.parametrize("attention", ["causal", "full"])
def test_float32_equals_float64(attention):
    encoder = make_encoder(attention=attention)
    contexts = stack_contexts(contexts_of(record(LENGTHS, window=3, episodes=3)))
    expected = run(encoder, contexts)
    single = run(encoder.float(), contexts.apply(lambda x: x.float() if x.is_floating_point() else x))
    assert_same(single.double(), expected, 1e-5)


# --------------------------------------------------------------------------------------- shortcuts change no number


@pytest.mark.parametrize("attention", ["causal", "full"])
def test_segments_that_share_their_past_equal_flat_contexts(attention):
    encoder = make_encoder(attention=attention)
    recording = record([[[4, 4, 4]], [[4, 4, 4]]], window=3, episodes=3)
    buffer = EpisodicReplayBuffer(storage=EpisodicStorage(24, window=3, episodes=3), batch_size=8, segment_frames=4)
    frames = buffer.extend(as_batch(recording, dtype=torch.float64)).view(6, 4)
    contexts = buffer.storage.contexts(frames)
    assert contexts["past"].stride(1) == 0
    expected = torch.stack([encode(encoder, context) for context in contexts_of(recording)])
    assert_same(run(encoder, contexts).flatten(0, 1), expected, 1e-10)
    assert_same(run(encoder, buffer.storage.contexts(frames.flatten())), expected, 1e-10)
    # Rows that do not share their past, in the same shape: column i holds episode i of each.
    mixed = buffer.storage.contexts(frames.T)
    assert_same(run(encoder, mixed).transpose(0, 1).flatten(0, 1), expected, 1e-10)


@pytest.mark.parametrize("attention", ["causal", "full"])
def test_equal_windows_are_encoded_once_to_the_same_result(attention):
    encoder = make_encoder(attention=attention, episodes=4)
    recording = record(
        [[[3, 2, 4, 3]]], window=3, episodes=4, draw=lambda n: [(0, 0)] * 2 + [(len(n) - 1, 0)] if n else []
    )
    buffer = EpisodicReplayBuffer(storage=EpisodicStorage(24, window=3, episodes=4), batch_size=8)
    frames = buffer.extend(as_batch(recording, dtype=torch.float64)).flatten()
    contexts = buffer.storage.contexts(frames)
    held = contexts["past_id"][contexts["slot_mask"]]
    assert len(held.unique()) < len(held) / 4
    distinct = contexts.clone()
    distinct["past_id"] = torch.arange(held.numel()).new_zeros(contexts["past_id"].shape)
    distinct["past_id"] += torch.arange(distinct["past_id"].numel()).view_as(distinct["past_id"])
    encoded = []
    original = encoder.intra.forward
    encoder.intra.forward = lambda tokens, mask: (encoded.append(len(tokens)), original(tokens, mask))[1]
    assert_same(run(encoder, contexts), run(encoder, distinct), 1e-10)
    assert encoded == [len(frames), len(held.unique()), len(frames), len(held)]


def test_gradients_of_shared_and_flat_contexts_are_equal():
    encoder = make_encoder().requires_grad_(True)
    recording = record([[[4, 4, 4]]], window=3, episodes=3)
    buffer = EpisodicReplayBuffer(storage=EpisodicStorage(24, window=3, episodes=3), batch_size=8, segment_frames=4)
    frames = buffer.extend(as_batch(recording, dtype=torch.float64)).view(3, 4)
    gradients = []
    for rows in (frames, frames.flatten()):
        weight = torch.linspace(-1, 1, 12 * 8, dtype=torch.float64).view(*rows.shape, 8)
        loss = (run(encoder, buffer.storage.contexts(rows)) * weight).sum()
        gradients.append(torch.autograd.grad(loss, list(encoder.parameters()), allow_unused=False))
    for shared, flat in zip(*gradients, strict=True):
        assert_same(shared, flat, 1e-9)


# -------------------------------------------------------------------------------------------------------- no leaks


@pytest.mark.parametrize("attention,norm", MODES)
def test_padding_has_no_influence_and_content_has(attention, norm):
    encoder = make_encoder(attention=attention, norm=norm)
    contexts = stack_contexts(contexts_of(record(LENGTHS, window=3, episodes=3)))
    before = run(encoder, contexts)
    noisy = contexts.clone()
    noisy["current"][~noisy["current_mask"]] = 1e3
    noisy["past"][~noisy["past_mask"]] = -1e3
    noisy["past_id"][~noisy["slot_mask"]] = 7  # also the id of a window that is there
    assert torch.equal(run(encoder, noisy), before)
    for tokens, mask in (("current", "current_mask"), ("past", "past_mask")):
        changed = contexts.clone()
        changed[tokens][changed[mask]] += 0.5
        touched = contexts["slot_mask"].any(-1) if tokens == "past" else torch.ones(len(before), dtype=torch.bool)
        difference = (run(encoder, changed) - before).abs().amax(-1)
        assert (difference[touched] > 1e-4).all() and not difference[~touched].any()


def test_other_decisions_have_no_influence():
    encoder = make_encoder()
    contexts = stack_contexts(contexts_of(record(LENGTHS, window=3, episodes=3)))
    changed = contexts.clone()
    changed[1:]["current"].normal_()
    changed[1:]["past"].normal_()
    assert_same(run(encoder, changed)[0], run(encoder, contexts)[0], 1e-10)
    assert_same(run(encoder, contexts[:1])[0], run(encoder, contexts)[0], 1e-10)


def test_slots_see_earlier_slots_only_with_causal_attention():
    """The keys and values of a slot do not change with a later one; with full attention its output does."""
    encoder = make_encoder(episodes=4)
    slots = torch.ones(1, 3, dtype=torch.bool)
    past = torch.randn(1, 3, 8, dtype=torch.float64)
    changed = past.clone()
    changed[:, 2].normal_()
    cache, cache_changed = (encoder.inter.encode_past(p, slots) for p in (past, changed))
    assert torch.equal(cache[..., :2, :], cache_changed[..., :2, :])
    assert differ(cache[..., 2, :], cache_changed[..., 2, :])


def test_trmrl_and_memoryless_policies_are_special_cases():
    """E=1, L2=0: a function of the window. T=1 besides: of the newest token."""
    recording = record(LENGTHS, window=3, episodes=3)
    contexts = stack_contexts([c for c in contexts_of(recording) if c.past and len(c.current.tokens) == 3])
    flat = make_encoder(inter_layers=0)
    changed = contexts.clone()
    changed["past"].normal_()
    assert torch.equal(run(flat, changed), run(flat, contexts))
    older = contexts.clone()
    older["current"][:, 0] += 1
    assert differ(run(flat, older), run(flat, contexts))
    memoryless = make_encoder(window=1, episodes=1, inter_layers=0)
    one = record(LENGTHS, window=1, episodes=1)
    tokens = stack_contexts(contexts_of(one))["current"][:, 0]
    expected = [encode(memoryless, context) for context in contexts_of(one)]
    shuffled = torch.randperm(len(tokens))
    context = stack_contexts(contexts_of(one))[shuffled]
    assert_same(run(memoryless, context), torch.stack(expected)[shuffled], 1e-10)


# ------------------------------------------------------------------------------------------------- initial weights


@pytest.mark.parametrize("norm,count", [("pre_ln", 2 * (2 + 3) + 2), ("tfixup", 0)])
def test_layer_norms(norm, count):
    encoder = HierarchicalEncoder(observation_dim=2, action_dim=1, intra_layers=2, inter_layers=3, norm=norm)
    assert sum(isinstance(module, nn.LayerNorm) for module in encoder.modules()) == count


def test_tfixup_uses_the_depth_of_each_level():
    """Xavier-uniform weights of a square matrix are bounded by sqrt(6 / 2d); so are T-Fixup's, times its factor."""
    torch.manual_seed(0)
    encoder = HierarchicalEncoder(
        observation_dim=2, action_dim=1, d_model=64, intra_layers=1, inter_layers=4, norm="tfixup"
    )
    bound = (6 / 128) ** 0.5
    for level, depth in ((encoder.intra, 1), (encoder.inter, 4)):
        for layer in level.layers:
            largest = layer.attention.output.weight.abs().max().item()
            assert 0.99 < largest / (bound * 0.67 * depth**-0.25) <= 1
            assert 0.99 < layer.attention.query.weight.abs().max().item() / bound <= 1


def test_the_reward_scale_acts_on_the_previous_reward_alone():
    contexts = stack_contexts(contexts_of(record(LENGTHS, window=3, episodes=3)))
    plain, scaled = make_encoder(), make_encoder(reward_scale=0.125)
    by_hand = contexts.clone()
    by_hand["current"][..., -2] *= 0.125
    by_hand["past"][..., -2] *= 0.125
    assert_same(run(scaled, contexts), run(plain, by_hand), 1e-12)
    assert differ(run(scaled, contexts), run(plain, contexts))


def test_observations_are_normalised_in_every_window():
    contexts = stack_contexts(contexts_of(record(LENGTHS, window=3, episodes=3)))
    plain, adapted = make_encoder(), make_encoder()
    observation = contexts["current"][..., : plain.observation_dim]
    adapted.tokens.adapt(3 * observation + 1)
    by_hand = contexts.clone()
    seen = (3 * observation + 1).reshape(-1, plain.observation_dim)
    for name in ("current", "past"):
        raw = by_hand[name][..., : plain.observation_dim]
        raw.copy_((raw - seen.mean(0)) / seen.std(0, correction=0))
    assert_same(run(adapted, contexts), run(plain, by_hand), 1e-10)
    assert differ(run(adapted, contexts), run(plain, contexts))
    assert_same(adapted.inspect(contexts).hidden, run(adapted, contexts), 1e-10)


def test_attention_weights_are_those_of_the_last_layers():
    encoder = make_encoder(episodes=4)
    contexts = stack_contexts(contexts_of(record(LENGTHS, window=3, episodes=4)))
    intra, inter = encoder.attention_weights(contexts)
    assert intra.shape == (len(contexts), 2, 3) and inter.shape == (len(contexts), 2, 4)
    assert_same(intra.sum(-1), torch.ones(len(contexts), 2, dtype=torch.float64), 1e-10)
    assert_same(inter.sum(-1), torch.ones(len(contexts), 2, dtype=torch.float64), 1e-10)
    assert not (intra * ~contexts["current_mask"].unsqueeze(1)).any()
    assert not (inter[..., :-1] * ~contexts["slot_mask"].unsqueeze(1)).any()
    assert make_encoder(inter_layers=0).attention_weights(
        stack_contexts(contexts_of(record(LENGTHS, window=3, episodes=3)))
    )[1].shape == (len(contexts), 2, 0)


# ------------------------------------------------------------------------------------------------- what may go wrong


@pytest.mark.parametrize(
    "wrong,message",
    [
        ({"window": 0}, r"window=0 is too small; it must be at least 1"),
        ({"episodes": 0}, r"episodes=0 is too small; it must be at least 1"),
        ({"intra_layers": 0}, r"intra_layers=0 is too small; it must be at least 1"),
        ({"inter_layers": -1}, r"inter_layers=-1 is too small; it must be at least 0"),
        ({"observation_dim": 0}, r"observation_dim=0 is too small"),
        ({"action_dim": 0}, r"action_dim=0 is too small"),
        ({"num_heads": 3}, r"num_heads=3 does not divide d_model=64"),
        ({"attention": "causl"}, r"attention='causl' is unknown; choose one of causal, full"),
        ({"norm": "post"}, r"norm='post' is unknown; choose one of pre_ln, tfixup"),
    ],
)
def test_bad_arguments(wrong, message):
    with pytest.raises(ValueError, match=message):
        HierarchicalEncoder(**({"observation_dim": 2, "action_dim": 1} | wrong))


def test_a_context_of_another_size_is_refused():
    contexts = stack_contexts(contexts_of(record(LENGTHS, window=2, episodes=3)))
    with pytest.raises(ValueError, match=rf"current window is \[2, {TOKEN}\] \[T, x\]; .* built for \[3, {TOKEN}\]"):
        run(make_encoder(), contexts)
    contexts = stack_contexts(contexts_of(record(LENGTHS, window=3, episodes=5)))
    with pytest.raises(ValueError, match=r"has 4 slots .* built for episodes=3, 2 slots"):
        run(make_encoder(episodes=3), contexts)
