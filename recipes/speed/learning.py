"""Frames per second of collection, of the update (dense and deduplicated) and of the whole recipe."""

import csv
import shlex
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import torch
from omegaconf import DictConfig, OmegaConf
from tensordict import TensorDictBase
from torchrl import torchrl_logger
from torchrl.collectors import Collector

from htrmrl_torchrl import EpisodicReplayBuffer, EpisodicStorage, NormalizedClipPPOLoss, TrialGAE, keys, make_env
from htrmrl_torchrl.agent.collector import TrialCollector
from htrmrl_torchrl.agent.networks import Networks, build_networks
from htrmrl_torchrl.encoders.hierarchical import HierarchicalEncoder
from htrmrl_torchrl.encoders.transformer import causal_mask
from htrmrl_torchrl.envs.metaworld import Backend
from htrmrl_torchrl.progress import progress_bar
from recipes.configuration.compose import CONFIG_DIR, load_config
from recipes.configuration.paths import path_override
from recipes.configuration.relations import frames_per_batch
from recipes.speed.environment import interleaved, ratio

HORIZON, MINIBATCH, SEGMENT = 50, 4_000, 50  # as in base.yaml, except the horizon
SIZES: tuple[dict[str, int], ...] = (
    {}, {"window": 3}, {"window": 10}, {"episodes": 2}, {"episodes": 20}, {"d_model": 32}, {"d_model": 128},
)  # fmt: skip


def _networks(**sizes: int) -> Networks:
    torch.manual_seed(0)
    bounds = {"action_low": [-1.0] * 4, "action_high": [1.0] * 4}
    return build_networks(observation_dim=39, **bounds, reward_scale=0.1, **sizes)  # type: ignore[arg-type]


def _collector(
    networks: Networks,
    *,
    num_envs: int,
    num_workers: int,
    backend: Backend = "fast",
    kind: type[Collector] = TrialCollector,
) -> Collector:
    torchrl_logger.setLevel("WARNING")
    env = make_env("ML10", num_envs=num_envs, num_workers=num_workers, horizon=HORIZON, backend=backend)
    return kind(
        env,
        networks.policy,
        frames_per_batch=num_envs * 10 * HORIZON,
        total_frames=-1,
        auto_register_policy_transforms=False,
    )


def collection(config: DictConfig) -> list[dict[str, Any]]:
    """Frames per second of the collector and of TorchRL's rollout: default ML10 model, trials of 10 episodes."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # as in the recipe during collection
    cases: dict[str, tuple[int, Backend, type[Collector]]] = {}
    for lanes in config.lanes:
        cases[f"{lanes} lanes"] = (lanes, "fast", TrialCollector)
        cases[f"{lanes} lanes, TorchRL's rollout"] = (lanes, "fast", Collector)
    cases[f"{config.lanes[0]} lanes, backend=official"] = (config.lanes[0], "official", TrialCollector)
    collectors = {
        name: _collector(_networks(), num_envs=lanes, num_workers=config.num_workers, backend=backend, kind=kind)
        for name, (lanes, backend, kind) in cases.items()
    }
    batches = {name: iter(collector) for name, collector in collectors.items()}

    def measure(name: str) -> float:
        start = time.perf_counter()
        return float(next(batches[name]).numel() / (time.perf_counter() - start))

    for name in cases:
        measure(name)  # simulators are built at the first use
    measured = interleaved({name: partial(measure, name) for name in cases}, rounds=config.rounds)
    for collector in collectors.values():
        collector.shutdown()
    torch.set_num_threads(threads)
    official = list(cases)[-1]
    return [
        {
            "collection": name,
            "frames/s": statistics.median(values),
            "x official": ratio(measured, name, official),
            "measured": values,
        }
        for name, values in measured.items()
    ]


def update(config: DictConfig) -> list[dict[str, Any]]:
    """Frames per second and epoch of PPO's forward, backward and optimizer step, for several model sizes."""
    torch.set_num_threads(config.threads or torch.get_num_threads())
    contenders: dict[str, Callable[[], float]] = {}
    for sizes in SIZES:
        name = ", ".join(f"{key}={value}" for key, value in sizes.items()) or "default (T=5, E=10, d=64)"
        networks = _networks(**sizes)
        minibatches = _minibatches(networks)
        dense = _networks()
        if not sizes:
            _make_dense(dense.encoder)
            _check_equal(networks, dense, next(minibatches))  # before they learn
        contenders[name] = _learner(networks, minibatches)
        if not sizes:
            contenders["dense"] = _learner(dense, _minibatches(dense))
    default = next(iter(contenders))
    measured = interleaved(contenders, rounds=config.rounds)
    return [
        {
            "update": name,
            "frame-epochs/s": statistics.median(values),
            "x dense": ratio(measured, name, "dense"),
            "x default": ratio(measured, name, default),
            "measured": values,
        }
        for name, values in measured.items()
    ]


def _minibatches(networks: Networks) -> Iterator[TensorDictBase]:
    """Endless minibatches of one collected batch: 10 trials of 10 episodes."""
    encoder = networks.encoder
    collector = _collector(networks, num_envs=10, num_workers=0)
    batch = next(iter(collector))
    collector.shutdown()
    storage = EpisodicStorage(batch.numel(), window=encoder.window, episodes=encoder.episodes)
    buffer = EpisodicReplayBuffer(storage=storage, batch_size=MINIBATCH, segment_frames=SEGMENT)
    buffer.assign(buffer.extend(batch), TrialGAE(gamma=0.99, advantage_norm="task")(batch))
    while True:
        yield from buffer


def _learner(networks: Networks, minibatches: Iterator[TensorDictBase]) -> Callable[[], float]:
    loss = NormalizedClipPPOLoss(networks.actor, networks.critic, critic_coeff=0.5, loss_critic_type="l2")
    optimizer = torch.optim.Adam(loss.parameters(), lr=1e-5)

    def measure() -> float:
        start = time.perf_counter()
        for _ in range(2):
            losses = loss(next(minibatches))
            optimizer.zero_grad(set_to_none=True)
            (losses["loss_objective"] + losses["loss_critic"]).backward()
            torch.nn.utils.clip_grad_norm_(loss.parameters(), 1.0)
            optimizer.step()
        return 2 * MINIBATCH / (time.perf_counter() - start)

    measure()
    return measure


def _make_dense(encoder: HierarchicalEncoder) -> None:
    """Turns off all shortcuts of the encoder: computes all windows, positions and queries for every frame."""

    def forward(tensordict: TensorDictBase) -> TensorDictBase:
        context = tensordict.get(keys.CONTEXT).reshape(-1)
        tokens = torch.cat([context["past"], context["current"].unsqueeze(1)], 1)  # [F, E, T, x]
        mask = torch.cat([context["past_mask"], context["current_mask"].unsqueeze(1)], 1)
        x = encoder.intra.embed(encoder.tokens(tokens.flatten(0, 1))) + encoder.intra.position  # [F * E, T, D]
        for layer in encoder.intra.layers:
            x = layer(x, causal_mask(mask.flatten(0, 1)))
        x = encoder.intra.norm(x)[:, -1].view(*mask.shape[:2], -1) + encoder.inter.position  # [F, E, D]
        held = torch.cat([context["slot_mask"], torch.ones_like(context["slot_mask"][:, :1])], 1)
        for layer in encoder.inter.layers:
            x = layer(x, causal_mask(held))
        return tensordict.set(keys.HIDDEN, encoder.inter.norm(x)[:, -1].view(*tensordict.batch_size, -1))

    encoder.forward = forward  # type: ignore[method-assign]


def _check_equal(networks: Networks, dense: Networks, minibatch: TensorDictBase) -> None:
    """Raises RuntimeError if the shortcuts change the result."""
    with torch.no_grad():
        fast, slow = (n.encoder(minibatch.copy())[keys.HIDDEN] for n in (networks, dense))
    worst = ((fast - slow).abs() / slow.abs().clamp(min=1)).max().item()
    if worst > 1e-5:
        raise RuntimeError(f"The deduplicated encoder differs from the dense one by {worst}.")


def recipe(config: DictConfig) -> list[dict[str, Any]]:
    """End-to-end frames per second of ``recipes/ml10_ppo.py``, peak memory, start-up time and evaluation time."""
    workers = f"env.num_workers={config.num_workers}"
    cases = {
        "defaults": [workers],
        "3 epochs": [workers, "loss.epochs=3"],
        f"3 epochs, {config.recipe_lanes} lanes": [workers, "loss.epochs=3", f"env.num_envs={config.recipe_lanes}"],
    }
    return [_run_recipe(name, [*overrides, f"device={config.device}"]) for name, overrides in cases.items()]


def _run_recipe(name: str, overrides: list[str]) -> dict[str, Any]:
    """Two iterations and an evaluation in a separate process; the first iteration, which fills caches, does not count.

    The evaluation's share of the time is that of a long run: one evaluation every ``eval.every_frames``.
    """
    batch = frames_per_batch(load_config("ml10_ppo", overrides))
    with tempfile.TemporaryDirectory() as folder:
        run_dir = Path(folder) / "run"
        script = str(CONFIG_DIR.parent / "recipes" / "ml10_ppo.py")
        command = [sys.executable, script, path_override("run_dir", run_dir), f"total_frames={2 * batch}", *overrides]
        start, peak = time.perf_counter(), 0.0
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        with progress_bar(desc=name, bar_format="{desc} {elapsed}") as bar:
            while process.poll() is None:
                peak = max(peak, _memory_gib(process.pid))
                bar.update(0)
                time.sleep(0.5)
        if process.returncode:
            raise RuntimeError(f"{shlex.join(command)} ended with exit code {process.returncode}.")
        seconds = time.perf_counter() - start
        with (run_dir / "metrics.csv").open(newline="") as file:
            times = [(row["metric"], float(row["value"])) for row in csv.DictReader(file)]
        every = OmegaConf.load(run_dir / "config.yaml").eval.every_frames
    stages = {
        kind: [value for metric, value in times if metric == f"time/{kind}"]
        for kind in ("collect", "update", "evaluate")
    }
    collect, update, evaluate = (values[-1] for values in stages.values())
    return {
        "recipe": name,
        "frames/s": batch / (collect + update),
        "collect s": collect,
        "update s": update,
        "evaluate s": evaluate,
        "evaluation share": evaluate / (evaluate + every / batch * (collect + update)),
        "start-up s": seconds - sum(map(sum, stages.values())),
        "peak GiB": peak,
        "command": ["python", "recipes/ml10_ppo.py", *overrides],
    }


def _memory_gib(pid: int) -> float:
    """Proportional set size of a process and all its descendants."""
    total = 0.0
    try:
        for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
            if line.startswith("Pss:"):
                total += int(line.split()[1]) / 2**20
        children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    except OSError:  # the process has just ended
        return total
    return total + sum(_memory_gib(int(child)) for child in children)
