"""HTrMRL with PPO: the training loop of all recipes, top to bottom in the order of the algorithm.

``ml10_ppo.py``, ``ml1_ppo.py``, ``ml45_ppo.py`` and ``toy_ppo.py`` call `train` with their configuration.
"""

import json
import subprocess
import sys
import time
from collections import defaultdict
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from omegaconf import DictConfig, OmegaConf
from tensordict import TensorDictBase
from tensordict.nn import TensorDictSequential
from torchrl import torchrl_logger
from torchrl.collectors import Collector
from torchrl.envs import EnvBase
from tqdm import tqdm

from htrmrl_torchrl import (
    EpisodicReplayBuffer,
    EpisodicStorage,
    NormalizedClipPPOLoss,
    TrialGAE,
    final_values,
    keys,
    make_env,
)
from htrmrl_torchrl.agent import Networks, acting_policy, build_networks
from htrmrl_torchrl.checkpoint import RunCheckpoints, latest_checkpoint, read_component
from htrmrl_torchrl.envs import TrialEnv, task_names
from htrmrl_torchrl.envs.factory import is_dotted_path
from htrmrl_torchrl.evaluation import goal_grid, play_trials, success_metrics
from htrmrl_torchrl.loggers import RunLogger
from htrmrl_torchrl.metrics import attention_entropy, explained_variance, training_metrics
from htrmrl_torchrl.modules.heads import value_head
from recipes._cli import UserError
from recipes._validate import frames_per_batch


def train(config: DictConfig) -> None:
    """One training run in ``config.run_dir``; continues where a run there has stopped."""
    torchrl_logger.setLevel("WARNING")  # its notes on allocated buffers would cut through the progress bar
    torch.manual_seed(config.seed)
    run_dir = Path(config.run_dir)
    resume_from = _checkpoint_to_resume(config, run_dir)

    # Environment, agent, and what trains it.
    env = _make_env(config, split="train", num_envs=config.env.num_envs)
    agent = _agent_arguments(config, env)
    networks = build_networks(**agent)
    loss = NormalizedClipPPOLoss(
        networks.actor,
        networks.critic,
        clip_epsilon=config.loss.clip_epsilon,
        entropy_coeff=config.loss.entropy_coeff,
        critic_coeff=config.loss.critic_coeff,
        loss_critic_type="l2",
    ).to(config.device)
    optimizer = torch.optim.Adam(loss.parameters(), lr=config.optim.lr)
    gae = TrialGAE(
        gamma=config.loss.gamma,
        lmbda=config.loss.gae_lambda,
        credit=config.loss.credit,
        bootstrap=config.loss.bootstrap,
        advantage_norm=config.loss.advantage_norm,
    )
    batch_frames = frames_per_batch(config)
    buffer = EpisodicReplayBuffer(
        # Where a batch cuts trials, their beginnings stay as context: hence twice the room.
        storage=EpisodicStorage(2 * batch_frames, window=config.encoder.window, episodes=config.encoder.episodes),
        batch_size=config.loss.minibatch_frames,
        segment_frames=config.loss.segment_frames,
    )
    collector = Collector(
        env,
        networks.policy,
        frames_per_batch=batch_frames,
        total_frames=-1,
        policy_device=config.device,
        env_device="cpu",
        storing_device=config.device,
        auto_register_policy_transforms=False,
    )

    # A run goes on from its last checkpoint as if nothing had happened.
    progress: dict[str, Any] = {"frames": 0, "evaluated": 0, "saved": 0, "best_val_success": -1.0, "commits": []}
    checkpoints = RunCheckpoints(
        run_dir / "checkpoints",
        keep=config.checkpoint.keep,
        agent=agent,
        config=_plain(config),
        progress=progress,
        actor=networks.actor,
        critic=networks.critic,
        optimizer=optimizer,
        env=env if isinstance(env, TrialEnv) else None,
        memory=networks.memory,
    )
    if resume_from is not None:
        checkpoints.restore(resume_from)
        collector.reset()  # it has reset the environment already, before the task deck was restored
        print(f"continuing {run_dir} at {progress['frames']:,} frames")
    progress["commits"] = sorted({*progress["commits"], _commit()})
    run_dir.mkdir(parents=True, exist_ok=True)
    OmegaConf.save(config, run_dir / "config.yaml", resolve=True)
    logger = RunLogger(run_dir, resume_from_frames=progress["frames"] if (run_dir / "metrics.csv").exists() else None)
    logger.log_text("config", f"```yaml\n{OmegaConf.to_yaml(config, resolve=True)}```")
    evaluator = _Evaluator(config, networks)
    bar = tqdm(total=config.total_frames, initial=progress["frames"], unit=" frames", unit_scale=True, smoothing=0.1)

    # While acting, more than one thread only gets in the way of the environment workers.
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    clock = time.perf_counter()
    batches = iter(collector) if progress["frames"] < config.total_frames else iter(())
    try:
        for batch in batches:
            collected = time.perf_counter()
            torch.set_num_threads(threads)

            # 1. Store the batch once; windows and contexts are gathered from it by index.
            buffer.empty()
            frames = buffer.extend(batch)

            # 2. Advantages and value targets from the values that the policy left in the rollout.
            ends = None
            if config.loss.bootstrap or not batch["next", keys.DONE][:, -1].all():
                ends = final_values(buffer, frames, TensorDictSequential(networks.encoder, networks.critic))
            targets = gae(batch, final_values=ends)
            buffer.assign(frames, targets)
            value_head(networks.critic).adapt(targets[keys.VALUE_TARGET])

            # 3. Several epochs of PPO over minibatches that mix all tasks.
            sums: dict[str, float] = defaultdict(float)
            updates = 0
            for _ in range(config.loss.epochs):
                for minibatch in buffer:
                    losses = loss(minibatch)
                    if not updates:
                        sums["ppo/first_minibatch_ratio"] = losses["mean_ratio"].item()
                    total = losses["loss_objective"] + losses["loss_entropy"] + losses["loss_critic"]
                    optimizer.zero_grad(set_to_none=True)
                    total.backward()
                    norm = torch.nn.utils.clip_grad_norm_(loss.parameters(), config.loss.max_grad_norm)
                    _refuse_non_finite(losses, norm)
                    optimizer.step()
                    updates += 1
                    for name, value in _loss_metrics(losses, norm).items():
                        sums[name] += value
            collector.update_policy_weights_()
            progress["frames"] += batch.numel()
            updated = time.perf_counter()
            torch.set_num_threads(1)

            # 4. Log, evaluate on held-out goals and tasks, save.
            ratio = sums.pop("ppo/first_minibatch_ratio")
            metrics = training_metrics(batch, _task_names(config, "train"))
            metrics |= {name: value / updates for name, value in sums.items()}
            metrics["ppo/first_minibatch_ratio"] = ratio
            metrics["ppo/explained_variance"] = explained_variance(batch[keys.STATE_VALUE], targets[keys.VALUE_TARGET])
            metrics |= _inspect(networks, minibatch)
            finished = progress["frames"] >= config.total_frames
            if finished or progress["frames"] - progress["evaluated"] >= config.eval.every_frames:
                metrics |= evaluator(run_dir / "evaluations", frames=progress["frames"])
                progress["evaluated"] = progress["frames"]
            now = time.perf_counter()
            metrics |= {
                "time/collect": collected - clock,
                "time/update": updated - collected,
                "time/evaluate": now - updated,
                "time/frames_per_second": batch.numel() / (now - clock),
            }
            clock = now
            logger.log(metrics, frames=progress["frames"])
            val_success = metrics.get("eval/val_success", -1.0)
            if val_success > progress["best_val_success"]:
                progress["best_val_success"] = val_success
                checkpoints.save_best(val_success)
            if finished or progress["frames"] - progress["saved"] >= config.checkpoint.every_frames:
                progress["saved"] = progress["frames"]
                checkpoints.save()
            bar.set_postfix_str(f"success {metrics.get('train/success', float('nan')):.2f}")
            bar.update(batch.numel())
            if finished:
                _write_summary(run_dir, config, progress, metrics)
                break
    except KeyboardInterrupt:
        saved = latest_checkpoint(run_dir / "checkpoints")
        print(f"\nstopped; {saved or 'nothing'} is kept, the same command continues from there", file=sys.stderr)
    finally:
        bar.close()
        logger.close()
        evaluator.close()
        collector.shutdown()


class _Evaluator:
    """Success on fixed grids of held-out goals (``val``) and held-out tasks (``test``), beside training.

    It has environments and a memory of its own; only the weights are shared.
    """

    def __init__(self, config: DictConfig, networks: Networks) -> None:
        self._config = config
        self._policy = acting_policy(networks, seed=config.seed)
        self._envs: dict[str, EnvBase] = {}
        self.adaptation_episodes = config.eval.adaptation_episodes
        if self.adaptation_episodes is None:
            self.adaptation_episodes = config.env.episodes_per_trial

    def __call__(self, folder: Path, *, frames: int) -> dict[str, float]:
        metrics: dict[str, float] = {}
        if is_dotted_path(self._config.env.name):  # a foreign environment has no goals to make a grid of
            return metrics
        for split in ("val", "test"):
            names = _task_names(self._config, split)
            outcomes = play_trials(
                self._policy,
                self._env(split, len(names)),
                adaptation_episodes=self.adaptation_episodes,
                seed=self._config.seed,
            )
            metrics |= success_metrics(outcomes, names, split=split)
            self._write(folder, split, frames, names, outcomes)
        return metrics

    def _env(self, split: str, tasks: int) -> EnvBase:
        if split not in self._envs:
            grid = goal_grid(num_tasks=tasks, goals_per_task=self._config.eval.goals_per_task)
            self._envs[split] = _make_env(
                self._config,
                split=split,
                num_envs=len(grid),
                pairs=grid,
                episodes_per_trial=self.adaptation_episodes + 1,
            )
        return self._envs[split]

    def _write(self, folder: Path, split: str, frames: int, names: list[str], outcomes: TensorDictBase) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        report = {
            "protocol": self._config.eval.protocol,
            "benchmark": self._config.env.name,
            "split": split,
            "frames": frames,
            "adaptation_episodes": self.adaptation_episodes,
            "evaluation_episodes": 1,
            "horizon": self._config.env.horizon,
            "tasks": names,
            **{key: outcomes[key].tolist() for key in ("task", "goal", "success", "return")},
        }
        (folder / f"{split}_{frames:012d}.json").write_text(json.dumps(report))

    def close(self) -> None:
        for env in self._envs.values():
            env.close()


def _make_env(config: DictConfig, *, split: str, num_envs: int, **changes: Any) -> EnvBase:
    settings = {
        "episodes_per_trial": config.env.episodes_per_trial,
        "horizon": config.env.horizon,
        "seed": config.seed,
        "benchmark_seed": config.env.benchmark_seed,
        "num_workers": min(config.env.num_workers, num_envs),
    }
    if is_dotted_path(config.env.name):
        settings = {name: settings[name] for name in ("episodes_per_trial", "seed")}
    return make_env(config.env.name, split=split, num_envs=num_envs, **(settings | changes))


def _task_names(config: DictConfig, split: str) -> list[str]:
    return [config.env.name] if is_dotted_path(config.env.name) else task_names(config.env.name, split)


def _agent_arguments(config: DictConfig, env: EnvBase) -> dict[str, Any]:
    """Everything that `build_networks` takes, in plain numbers and strings."""
    action = env.action_spec_unbatched.space
    return {
        "observation_dim": env.observation_spec[keys.OBSERVATION].shape[-1],
        "action_low": action.low.tolist(),
        "action_high": action.high.tolist(),
        **_plain(config.encoder),
        "reward_scale": config.env.reward_scale,
        "strategy": config.memory.strategy,
        **_plain(config.policy),
        "critic_kind": config.critic.kind,
        "value_norm": config.loss.value_norm,
        "seed": config.seed,
    }


def _checkpoint_to_resume(config: DictConfig, run_dir: Path) -> Path | None:
    """Where the run goes on from; refuses to continue a run with other settings."""
    if config.resume == "never":
        return None
    path = latest_checkpoint(run_dir / "checkpoints") if config.resume == "auto" else Path(config.resume)
    if path is None:
        return None
    free = ("total_frames", "resume", "run_dir", "env.num_workers", "checkpoint.", "eval.")
    try:
        before = _flat(read_component(path, "config"))
    except (FileNotFoundError, ValueError) as error:
        raise UserError(str(error)) from error
    for key, value in _flat(_plain(config)).items():
        if before.get(key) != value and not key.startswith(free):
            raise UserError(
                f"{path} is of a run with {key}={before.get(key)} and this one has {key}={value}: a run goes on with "
                "its own settings, so choose another run_dir"
            )
    return path


def _plain(config: Any) -> dict[str, Any]:
    container: Any = OmegaConf.to_container(config, resolve=True)
    return container


def _flat(tree: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for name, value in tree.items():
        flat |= _flat(value, f"{prefix}{name}.") if isinstance(value, dict) else {prefix + name: value}
    return flat


def _refuse_non_finite(losses: TensorDictBase, norm: torch.Tensor) -> None:
    """Stops before the optimizer steps, so that the last good weights stay."""
    bad = [name for name, value in losses.items() if not value.isfinite().all()]
    if bad or not norm.isfinite():
        raise FloatingPointError(
            f"Not finite: {', '.join(bad) or 'the gradient'}. The weights are as before; the last checkpoint is good."
        )


def _loss_metrics(losses: TensorDictBase, norm: torch.Tensor) -> dict[str, float]:
    return {
        "loss/objective": losses["loss_objective"].item(),
        "loss/critic": losses["loss_critic"].item(),
        "loss/entropy": losses["loss_entropy"].item(),
        "loss/gradient_norm": norm.item(),
        "ppo/kl": losses["kl_approx"].item(),
        "ppo/clip_fraction": losses["clip_fraction"].item(),
        "ppo/entropy": losses["entropy"].item(),
    }


@torch.no_grad()
def _inspect(networks: Networks, minibatch: TensorDictBase) -> dict[str, float]:
    intra, inter = networks.encoder.attention_weights(minibatch[keys.CONTEXT])
    metrics = {
        "ppo/std": networks.actor.get_dist(minibatch.copy()).stddev.mean().item(),
        "attention/intra_entropy": attention_entropy(intra),
    }
    return metrics | ({"attention/inter_entropy": attention_entropy(inter)} if inter.shape[1] else {})


def _commit() -> str:
    """The state of the code, for the record."""
    command = ["git", "describe", "--always", "--dirty"]
    return (
        subprocess.run(command, cwd=Path(__file__).parent, capture_output=True, text=True).stdout.strip() or "unknown"
    )


def _write_summary(run_dir: Path, config: DictConfig, progress: dict[str, Any], metrics: dict[str, float]) -> None:
    summary = {
        "command": " ".join(["python", *sys.argv]),
        "versions": {name: version(name) for name in ("torch", "torchrl", "tensordict", "metaworld", "mujoco")},
        "config": _plain(config),
        "progress": progress,
        "metrics": metrics,
    }
    (run_dir / "summary.json").write_text(json.dumps(summary, indent=2))
