"""HTrMRL with PPO: the training loop of all recipes, top to bottom in the order of the algorithm.

``ml10_ppo.py``, ``ml1_ppo.py``, ``ml45_ppo.py`` and ``toy_ppo.py`` call `train` with their configuration.
"""

import sys
import time
from collections import defaultdict
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
    HierarchicalEncoder,
    NormalizedClipPPOLoss,
    TrialGAE,
    final_values,
    keys,
)
from htrmrl_torchrl.checkpoint import RunCheckpoints, latest_checkpoint
from htrmrl_torchrl.envs import TrialEnv
from htrmrl_torchrl.loggers import RunLogger
from htrmrl_torchrl.metrics import attention_entropy, explained_variance, training_metrics
from htrmrl_torchrl.modules.heads import value_head
from htrmrl_torchrl.networks import Networks, build_networks
from recipes._environment import evaluate_on_held_out, names_of_tasks, training_environment
from recipes._inside import look_inside
from recipes._run_folder import checkpoint_to_resume, commit_of_code, plain, print_results, write_summary
from recipes._validate import frames_per_batch


def train(config: DictConfig) -> None:
    """One training run in ``config.run_dir``; continues where a run there has stopped."""
    torchrl_logger.setLevel("WARNING")  # its notes on allocated buffers would cut through the progress bar
    torch.manual_seed(config.seed)
    run_dir = Path(config.run_dir)
    resume_from = checkpoint_to_resume(config, run_dir)

    # Environment, agent, and what trains it.
    env = training_environment(config)
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
    bf16 = config.compute.autocast == "bf16"
    autocast = torch.autocast(torch.device(config.device).type, torch.bfloat16, enabled=bf16)
    if config.compute.compile:
        networks.encoder.compiled_part.compile(dynamic=True)
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
        storage=EpisodicStorage(2 * batch_frames, window=networks.encoder.window, episodes=networks.encoder.episodes),
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
        config=plain(config),
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
        print(f"continuing {run_dir} at {progress['frames']:,} of {config.total_frames:,} frames")
    progress["commits"] = sorted({*progress["commits"], commit_of_code()})
    run_dir.mkdir(parents=True, exist_ok=True)
    OmegaConf.save(config, run_dir / "config.yaml", resolve=True)
    logger = RunLogger(run_dir, resume_from_frames=progress["frames"] if (run_dir / "metrics.csv").exists() else None)
    logger.log_text("config", f"```yaml\n{OmegaConf.to_yaml(config, resolve=True)}```")
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
                    with autocast:
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
            metrics = training_metrics(batch, names_of_tasks(config, "train"))
            metrics |= {name: value / updates for name, value in sums.items()}
            metrics["ppo/first_minibatch_ratio"] = ratio
            metrics["ppo/explained_variance"] = explained_variance(batch[keys.STATE_VALUE], targets[keys.VALUE_TARGET])
            metrics |= _inspect(networks, minibatch)
            finished = progress["frames"] >= config.total_frames
            if finished or progress["frames"] - progress["evaluated"] >= config.eval.every_frames:
                folder = run_dir / "evaluations"
                metrics |= evaluate_on_held_out(config, networks, folder, frames=progress["frames"])
                total_frames = config.total_frames
                metrics |= look_inside(networks, minibatch, metrics, progress, logger, total_frames=total_frames)
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
                write_summary(run_dir, config, progress, metrics)
                bar.close()
                print_results(run_dir, metrics)
                break
    except KeyboardInterrupt:
        saved = latest_checkpoint(run_dir / "checkpoints")
        print(f"\nstopped; {saved or 'nothing'} is kept, the same command continues from there", file=sys.stderr)
    finally:
        bar.close()
        logger.close()
        collector.shutdown()


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
    metrics = {"ppo/std": networks.actor.get_dist(minibatch.copy()).stddev.mean().item()}
    if not isinstance(networks.encoder, HierarchicalEncoder):  # nothing attends
        return metrics
    intra, inter = networks.encoder.attention_weights(minibatch[keys.CONTEXT])
    metrics["attention/intra_entropy"] = attention_entropy(intra)
    return metrics | ({"attention/inter_entropy": attention_entropy(inter)} if inter.shape[1] else {})


def _agent_arguments(config: DictConfig, env: EnvBase) -> dict[str, Any]:
    """Everything that `build_networks` takes, in plain numbers and strings."""
    action = env.action_spec_unbatched.space
    encoder = plain(config.encoder)
    return {
        "observation_dim": env.observation_spec[keys.OBSERVATION].shape[-1],
        "action_low": action.low.tolist(),
        "action_high": action.high.tolist(),
        "encoder_kind": encoder.pop("kind"),
        **encoder,
        "reward_scale": config.env.reward_scale,
        "strategy": config.memory.strategy,
        **plain(config.policy),
        "critic_kind": config.critic.kind,
        "value_norm": config.loss.value_norm,
        "seed": config.seed,
    }
