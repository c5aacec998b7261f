"""Every number of a configuration reaches the part that it is for."""

import pytest
import torch
from tensordict import assert_close
from torchrl.collectors import Collector
from torchrl.envs import SerialEnv, TransformedEnv

from htrmrl_torchrl import TrialTransform, make_env
from htrmrl_torchrl.agent.networks import build_networks
from htrmrl_torchrl.runs.progress import Progress
from recipes.configuration.compose import load_config
from recipes.configuration.parts import (
    advantages,
    agent_arguments,
    collector_of,
    merged_batches,
    ppo_loss,
    replay_buffer,
    reward_normalizer,
)
from recipes.configuration.relations import batches_per_update
from tests.helpers import Walk
from tests.recipes.runs import metrics, run

CHANGED = {
    "env.num_envs": 2,
    "env.num_workers": 0,
    "env.episodes_per_trial": 3,
    "env.reward_scale": 0.3,
    "encoder.window": 2,
    "encoder.d_model": 12,
    "encoder.num_heads": 3,
    "memory.strategy": "uniform",
    "memory.scope": "lane",
    "memory.max_episodes": 7,
    "policy.init_std": 0.7,
    "loss.clip_epsilon": 0.11,
    "loss.entropy_coeff": 0.012,
    "loss.critic_coeff": 0.13,
    "loss.gamma": 0.94,
    "loss.gae_lambda": 0.85,
    "loss.credit": "trial",
    "loss.bootstrap": True,
    "loss.advantage_norm": "none",
    "loss.segment_frames": 3,
    "loss.minibatch_frames": 12,
    "collector.frames_per_batch": 72,
    "collector.grow_to": 3,
}


def test_what_is_configured_is_what_is_built():
    config = load_config("toy_ppo", [f"{key}={value}" for key, value in CHANGED.items()])
    env = make_env("toy", num_envs=2, episodes_per_trial=3)
    networks = build_networks(**agent_arguments(config, env))
    encoder, memory = networks.encoder, networks.memory
    assert (encoder.window, encoder.episodes, encoder.d_model) == (2, 3, 12)
    assert encoder.tokens.rest[-2].item() == pytest.approx(0.3)
    assert (type(memory.strategy).__name__, memory.scope, memory.max_episodes) == ("Uniform", "lane", 7)
    assert networks.actor.get_dist(networks.memory(env.reset())).stddev.flatten().tolist() == pytest.approx([0.7] * 4)

    loss = ppo_loss(config, networks)
    assert [float(x) for x in (loss.clip_epsilon, loss.entropy_coeff, loss.critic_coeff)] == pytest.approx(
        [0.11, 0.012, 0.13]
    )
    gae = advantages(config)
    assert (gae.credit, gae.bootstrap, gae._gae.average_gae) == ("trial", True, False)
    assert [float(gae._gae.gamma), float(gae._gae.lmbda)] == pytest.approx([0.94, 0.85])
    assert reward_normalizer(config).gamma == 0.94

    buffer = replay_buffer(config, networks)
    storage = buffer.storage
    assert (storage.window, storage.episodes, storage.scope, storage.max_episodes) == (2, 3, "lane", 7)
    assert buffer._batch_size == 12
    collector = collector_of(config, env, networks)
    batch = next(collector.iterator())
    collector.shutdown()
    assert batch.batch_size == (2, 36)  # two trials of three episodes of six steps on each lane
    buffer.extend(batch)
    frames = next(iter(buffer))["index"].view(-1, 3)
    assert (frames.diff(dim=1) == 1).all()  # segments of three


@pytest.mark.slow
@pytest.mark.parametrize(
    "change", ["loss.max_grad_norm=0.01", "loss.epochs=1", "loss.critic_coeff=0.1", "env.observation_norm=false"]
)
def test_what_the_loop_reads_changes_what_is_learned(change, tmp_path):
    for folder, overrides in {"as it is": (), "changed": (change,)}.items():
        run(tmp_path / folder.replace(" ", "_"), "total_frames=576", *overrides)
    before, after = (
        [row for row in metrics(tmp_path / folder) if row[:2] == (576, "train/return")]
        for folder in ("as_it_is", "changed")
    )
    assert len(before) == 1 and before != after


def test_there_is_room_for_remembered_episodes_and_the_one_that_a_batch_cuts():
    """Episodes of 1, 4, 4, 4, 1 ... steps in batches of 4."""
    sizes = ["env.num_envs=1", "env.num_workers=0", "env.episodes_per_trial=1", "env.horizon=4"]
    sizes += ["memory.scope=lane", "memory.max_episodes=1", "loss.segment_frames=2", "loss.minibatch_frames=4"]
    sizes += ["encoder.episodes=2"]
    config = load_config("toy_ppo", sizes)
    networks = build_networks(
        observation_dim=2, action_low=[-1.0], action_high=[1.0], window=2, episodes=2, scope="lane", max_episodes=1
    )
    env = TransformedEnv(SerialEnv(1, lambda: Walk([1, 4, 4, 4], 0.0)), TrialTransform(episodes_per_trial=1))
    buffer, context = replay_buffer(config, networks), []
    collector = Collector(
        env, networks.policy, frames_per_batch=4, total_frames=20, auto_register_policy_transforms=False
    )
    for batch in collector:
        buffer.empty()
        buffer.extend(batch)
        context.append(len(buffer.storage) - 4)
    collector.shutdown()
    assert context == [0, 1 + 3, 4 + 3, 4 + 3, 1 + 2]  # the latest episode that ended and what has run of the next


def test_batches_grow_one_by_one_and_no_further():
    config = load_config("toy_ppo", ["collector.grow_to=4", "collector.grow_over=900"])
    expected = {0: 1, 299: 1, 300: 2, 599: 2, 600: 3, 899: 3, 900: 4, 10_000: 4}
    assert {frames: batches_per_update(config, frames=frames) for frames in expected} == expected
    assert batches_per_update(load_config("toy_ppo"), frames=10**9) == 1


def test_two_batches_in_one_are_what_a_collector_of_twice_the_size_collects():
    """Every key, what later episodes are shown of earlier ones included; trials of 2 lanes * 3 episodes * 6 steps."""
    collected = []
    for batch_frames, growth in ((72, ()), (36, ("collector.grow_to=2", "collector.grow_over=1"))):
        sizes = ["env.num_envs=2", "env.episodes_per_trial=3", "loss.minibatch_frames=36", "loss.segment_frames=6"]
        config = load_config("toy_ppo", [*sizes, f"collector.frames_per_batch={batch_frames}", *growth])
        env = make_env("toy", num_envs=2, episodes_per_trial=3, seed=1)
        torch.manual_seed(0)
        networks = build_networks(**agent_arguments(config, env))
        collector, buffer = collector_of(config, env, networks), replay_buffer(config, networks)
        batches = merged_batches(collector.iterator(), config, Progress(frames=1, best_val_success=0.0))
        for _ in range(2):
            batch = next(batches)
            frames = buffer.extend(batch)
            buffer.empty()
            collected.append((batch, frames))
        collector.shutdown()
    large, parts = collected[:2], collected[2:]
    for (expected, rows), (found, same_rows) in zip(large, parts, strict=True):
        assert found.shape == (2, 36) and torch.equal(rows, same_rows)
        assert_close(found.exclude("collector"), expected.exclude("collector"), rtol=0, atol=0)
    assert not torch.equal(parts[0][0]["action"][:, :18], parts[0][0]["action"][:, 18:])
