"""The same code on a CUDA device. Nothing here runs without one: ``pytest -m gpu``."""

import csv
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from torchrl.collectors import Collector

from htrmrl_torchrl import EpisodicReplayBuffer, EpisodicStorage, HTrMRLAgent, evaluate, keys, make_env
from tests.helpers import assert_same, networks_for_toy
from tests.recipes.runs import curve, metrics

pytestmark = pytest.mark.gpu
ROOT = Path(__file__).resolve().parents[1]
SIZES = {"window": 3, "episodes": 4, "d_model": 16, "intra_layers": 2, "inter_layers": 2}
KINDS = ["htrmrl", "trmrl", "rl2", "mlp"]


@pytest.mark.parametrize("kind", KINDS)
def test_rollout_and_recomputation_agree_on_the_device(kind):
    networks = networks_for_toy(encoder_kind=kind, **SIZES)
    networks.policy.to("cuda")
    env = make_env("toy", num_envs=8, episodes_per_trial=4)
    collector = Collector(
        env, networks.policy, frames_per_batch=192, total_frames=384, policy_device="cuda", env_device="cpu",
        storing_device="cuda", auto_register_policy_transforms=False,
    )  # fmt: skip
    for batch in collector:
        assert batch.device.type == "cuda"
        storage = EpisodicStorage(192, window=networks.encoder.window, episodes=networks.encoder.episodes)
        buffer = EpisodicReplayBuffer(storage=storage, batch_size=192, segment_frames=6)
        buffer.extend(batch)
        (minibatch,) = list(buffer)
        with torch.no_grad():
            log_prob = networks.actor.get_dist(minibatch).log_prob(minibatch[keys.ACTION])
            value = networks.critic(minibatch)[keys.STATE_VALUE]
        assert log_prob.device.type == "cuda"
        assert_same(minibatch[keys.LOG_PROB], log_prob)
        order = torch.argsort(minibatch["index"].flatten())
        assert_same(batch[keys.STATE_VALUE].flatten(), value.flatten()[order])
    collector.shutdown()


@pytest.mark.parametrize("kind", KINDS)
def test_the_agent_decides_as_on_the_cpu(kind):
    on_cpu, on_gpu = (
        HTrMRLAgent(networks_for_toy(encoder_kind=kind, **SIZES), num_envs=5),
        HTrMRLAgent(networks_for_toy(encoder_kind=kind, **SIZES), num_envs=5, device="cuda"),
    )
    rng = np.random.default_rng(0)
    on_cpu.reset()
    on_gpu.reset()
    for step in range(30):
        observation, ended = rng.normal(size=(5, 3)).astype(np.float32), rng.random(5) < 0.2
        actions = [agent.act(observation, deterministic=True) for agent in (on_cpu, on_gpu)]
        assert_same(torch.from_numpy(actions[1]), torch.from_numpy(actions[0]))
        for agent in (on_cpu, on_gpu):
            agent.observe(np.full(5, 0.1 * step), ended, np.zeros(5), action=actions[0])


def test_evaluation_counts_alike_on_both_devices():
    reports = [
        evaluate(networks_for_toy(**SIZES), "toy", adaptation_episodes=0, evaluation_episodes=3, device=device)
        for device in ("cpu", "cuda")
    ]
    assert_same(*(torch.from_numpy(report.returns) for report in reports))


@pytest.mark.parametrize(
    "overrides",
    [[], ["encoder=rl2"], ["encoder=trmrl"], ["encoder=mlp"]],
    ids=str,
)
def test_the_recipe_trains_on_the_device(tmp_path, overrides):
    toy(tmp_path, "device=cuda", "total_frames=6144", *overrides)
    with (tmp_path / "metrics.csv").open(newline="") as file:
        ratios = [float(r["value"]) for r in csv.DictReader(file) if r["metric"] == "ppo/first_minibatch_ratio"]
    assert len(ratios) == 4 and all(abs(ratio - 1) <= 1e-5 for ratio in ratios)


def toy(run_dir, *overrides, **environment):
    command = [sys.executable, str(ROOT / "recipes" / "toy_ppo.py"), f"run_dir={run_dir}", "eval.every_frames=3072"]
    done = subprocess.run(
        [*command, *overrides], capture_output=True, text=True, timeout=600, env=os.environ | environment
    )
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("encoder", ["htrmrl_toy", "rl2"])
def test_a_run_continued_on_the_device_equals_one_that_was_not_stopped(encoder, tmp_path):
    toy(tmp_path / "whole", "device=cuda", "total_frames=6144", f"encoder={encoder}")
    for total in (3072, 6144):
        toy(tmp_path / "stopped", "device=cuda", f"total_frames={total}", f"encoder={encoder}")
    whole, stopped = (
        {(frames, name): value for frames, name, value in metrics(tmp_path / run)} for run in ("whole", "stopped")
    )
    assert whole == stopped and len(whole) > 100


def test_a_run_goes_on_where_there_is_no_gpu_and_back(tmp_path):
    toy(tmp_path, "device=cpu", "total_frames=1536", CUDA_VISIBLE_DEVICES="")
    toy(tmp_path, "device=cuda", "total_frames=3072")
    toy(tmp_path, "device=cpu", "total_frames=4608", CUDA_VISIBLE_DEVICES="")
    toy(tmp_path, "device=cuda", "total_frames=6144")
    assert [frames for frames, _ in curve(tmp_path, "train/return")] == [1536, 3072, 4608, 6144]
