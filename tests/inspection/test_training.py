"""Numbers of the inside while training, on contexts and modules whose answers are on paper."""

import math

import pytest
import torch
from tensordict import TensorDict

from htrmrl_torchrl import EpisodicReplayBuffer, EpisodicStorage, make_env
from htrmrl_torchrl.agent.networks import build_networks
from htrmrl_torchrl.encoders.contract import Inside
from htrmrl_torchrl.inspection.training import (
    attention_metrics,
    fullest,
    look,
    newest_decisions,
    norm_metrics,
    update_forgetting,
    window_metrics,
)
from tests.helpers import assert_same


def decisions(window_episode, past_id, *, tokens=2):
    """``[F]`` with slots that are empty where the episode is -1 and windows whose first token is padding."""
    episode = torch.tensor(window_episode)
    held = episode >= 0
    mask = held.unsqueeze(-1) & (torch.arange(tokens) > 0)
    context = TensorDict(
        slot_mask=held,
        past_mask=mask,
        past_id=torch.tensor(past_id),
        current_mask=torch.ones(len(held), tokens, dtype=torch.bool),
        batch_size=[len(held)],
    )
    return TensorDict({"context": context, ("window", "episode"): episode}, batch_size=[len(held)])


def test_windows_by_hand():
    seen = decisions([[-1, -1, -1], [-1, 4, 5], [4, 4, 5]], [[-1, -1, -1], [-1, 7, 8], [7, 7, 8]])
    past = torch.zeros(3, 3, 2)
    past[1, 1:] = torch.tensor([[1.0, 0.0], [0.0, 3.0]])  # at right angles: distance 1
    past[2] = torch.tensor([[1.0, 0.0], [2.0, 0.0], [-1.0, 0.0]])  # distances 0, 2 and 2
    metrics = window_metrics(seen, Inside(hidden=torch.zeros(3, 2), past_embedding=past))
    assert metrics.pop("memory/masked") == pytest.approx(1 - 5 / 18)  # five held tokens of 3 * 3 * 2
    assert metrics.pop("memory/distinct_episodes") == pytest.approx((1 + 2 / 3) / 2)
    assert metrics.pop("memory/duplicates") == pytest.approx((0 + 1 / 3) / 2)
    assert metrics.pop("memory/window_distance") == pytest.approx((1 + 4 / 3) / 2)
    assert not metrics


def test_nothing_remembered_tells_nothing():
    seen = decisions([[-1], [-1]], [[-1], [-1]])
    assert window_metrics(seen, Inside(hidden=torch.zeros(2, 2))) == {"memory/masked": 1.0}
    none = decisions([[]] * 2, [[]] * 2)
    assert window_metrics(none, Inside(hidden=torch.zeros(2, 2))) == {}


def test_attention_by_hand():
    """Two decisions of one layer with two heads over three slots; the first has one place only."""
    seen = decisions([[-1, -1], [1, 2]], [[-1, -1], [1, 2]])
    newest = torch.tensor([[[0.0, 0.0, 1.0]] * 2, [[0.5, 0.25, 0.25], [1.0, 0.0, 0.0]]])
    slots = torch.zeros(2, 1, 2, 3, 3)
    slots[:, 0, :, -1] = newest
    metrics = attention_metrics(Inside(hidden=torch.zeros(2, 2), slot_attention=slots), seen["context"])
    assert metrics.pop("attention/inter_evenness/1.1") == pytest.approx(1.5 * math.log(2) / math.log(3))
    assert metrics.pop("attention/inter_evenness/1.2") == pytest.approx(0, abs=1e-6)
    assert metrics.pop("attention/past_share") == pytest.approx((0.75 + 1.0) / 2)
    assert not metrics


def test_forgetting_is_below_the_best_so_far_and_survives_as_plain_numbers():
    best = {}
    first = update_forgetting(best, {"eval/val_success/a": 0.5, "eval/val_success/b": 0.0, "eval/val_success": 0.25})
    assert set(first.values()) == {0.0} and "eval/val_test_gap" not in first
    second = {
        "eval/val_success/a": 0.25,
        "eval/val_success/b": 1.0,
        "eval/val_success": 0.625,
        "eval/test_success": 0.5,
    }
    expected = {"eval/val_forgetting/a": 0.25, "eval/val_forgetting/b": 0.0, "eval/val_forgetting": 0.125}
    assert update_forgetting(best, second) == expected | {"eval/val_test_gap": 0.125}
    assert best == {"a": 0.5, "b": 1.0}
    assert update_forgetting({"a": 0.5}, {"eval/test_success/a": 0.0}) == {}


def agent(kind="htrmrl"):
    torch.manual_seed(0)
    return build_networks(
        observation_dim=3, action_low=[-1.0] * 2, action_high=[1.0] * 2, encoder_kind=kind, d_model=16, episodes=4,
        window=3, num_heads=2,
    )  # fmt: skip


def a_minibatch(networks, *, segment=3):
    env = make_env("toy", num_envs=8, episodes_per_trial=4)
    buffer = EpisodicReplayBuffer(
        storage=EpisodicStorage(192, window=networks.encoder.window, episodes=networks.encoder.episodes),
        batch_size=96,
        segment_frames=segment,
    )
    with torch.no_grad():
        buffer.extend(env.rollout(24, networks.policy, break_when_any_done=False))
    return next(iter(buffer))


def test_norms_add_up_to_those_of_all_parameters():
    networks = agent()
    networks.critic(networks.encoder(a_minibatch(networks)))["state_value"].sum().backward()
    metrics = norm_metrics(networks)
    parameters = {id(p): p for part in (networks.actor, networks.critic) for p in part.parameters()}.values()
    for kind, values in (
        ("weight", [p.detach() for p in parameters]), ("gradient", [p.grad for p in parameters if p.grad is not None]),
    ):  # fmt: skip
        total = math.sqrt(sum(value**2 for name, value in metrics.items() if name.startswith(f"norm/{kind}/")))
        assert total == pytest.approx(float(torch.cat([value.flatten() for value in values]).norm()), rel=1e-5)
    blocks = {name.removeprefix("norm/weight/") for name in metrics if name.startswith("norm/weight/")}
    assert {"intra.embed", "intra.1", "intra.2", "inter.1", "inter.2", "actor", "critic"} <= blocks
    assert "norm/gradient/critic" in metrics and "norm/gradient/actor" not in metrics


@pytest.mark.parametrize("kind", ["htrmrl", "trmrl", "rl2", "mlp"])
def test_a_look_at_real_minibatches_draws_no_random_number_and_changes_nothing(kind):
    networks = agent(kind)
    minibatch = a_minibatch(networks)
    before, random, weights = minibatch.clone(), torch.get_rng_state(), [p.clone() for p in networks.actor.parameters()]
    metrics, figure = look(networks, minibatch)
    assert (before == minibatch).all() and torch.equal(random, torch.get_rng_state())
    assert all(torch.equal(a, b) for a, b in zip(weights, networks.actor.parameters(), strict=True))
    assert all(math.isfinite(value) for value in metrics.values())
    assert (figure is None) == (kind in ("rl2", "mlp"))
    names = {name.split("/")[1] for name in metrics if not name.startswith("norm/")}
    remembering = {"inter_evenness", "past_share", "masked", "distinct_episodes", "duplicates", "window_distance"}
    assert names == {"htrmrl": {"intra_evenness"} | remembering, "trmrl": {"intra_evenness"}}.get(kind, set())
    if kind == "htrmrl":
        fresh = [value for name, value in metrics.items() if "evenness" in name]
        assert len(fresh) == 2 * 2 * 2 and min(fresh) > 0.5  # untrained: near 1


def test_segments_of_unequal_length_come_flat():
    networks = agent()
    flat = a_minibatch(networks, segment=4)  # of episodes of six
    assert flat.ndim == 1
    metrics, figure = look(networks, flat)
    assert figure is not None and metrics["attention/past_share"] > 0
    assert newest_decisions(TensorDict(x=torch.arange(2000), batch_size=[2000]))["x"][:3].tolist() == [0, 4, 8]


def test_the_fullest_decisions_of_different_tasks_come_first():
    seen = decisions([[-1, -1], [1, 2], [-1, 1], [1, 2], [1, 1]], [[0, 0]] * 5)
    seen["task"] = torch.tensor([[0], [0], [1], [0], [2]])
    assert fullest(seen, count=3) == [1, 4, 2]
    assert fullest(seen, count=5) == [1, 4, 2, 3, 0]
    assert_same(seen["context", "slot_mask"][1].float().sum(), torch.tensor(2.0))
