"""HTrMRL with PPO: the training loop of all recipes, top to bottom in the order of the algorithm.

The other recipes named ``*_ppo.py`` call `train` with their configuration.
"""

import time
from functools import partial
from pathlib import Path

import torch
from omegaconf import DictConfig
from tensordict import TensorDictBase
from torchrl import torchrl_logger

from htrmrl_torchrl import keys
from htrmrl_torchrl.agent.networks import Networks, build_networks
from htrmrl_torchrl.checkpoints.checkpoint import checkpoints_of, frames_of
from htrmrl_torchrl.faults import Left, UserError
from htrmrl_torchrl.inspection.progress import look_inside
from htrmrl_torchrl.inspection.training import attention_entropy
from htrmrl_torchrl.parallel.ranks import Ranks
from htrmrl_torchrl.ppo.metrics import critic_metrics, process_metrics, training_metrics
from htrmrl_torchrl.ppo.update import Learner, Updated, update
from htrmrl_torchrl.progress import progress_bar
from htrmrl_torchrl.runs.checkpoint import RunCheckpoints
from htrmrl_torchrl.runs.console import STDERR, best_effort, say
from htrmrl_torchrl.runs.guard import FaultGuard
from htrmrl_torchrl.runs.launch import following, number_of_rank, ranks_of_run
from htrmrl_torchrl.runs.lock import LOCK, locked
from htrmrl_torchrl.runs.progress import Progress
from htrmrl_torchrl.runs.signals import Interrupts
from htrmrl_torchrl.specs import MismatchError
from recipes.configuration.environment import (
    LOWEST,
    check_horizon,
    evaluate_on_held_out,
    names_of_tasks,
    score_on_val,
    training_environment,
)
from recipes.configuration.parts import (
    advantages,
    agent_arguments,
    collector_of,
    learning_rate,
    make_repeatable,
    merged_batches,
    next_share,
    ppo_loss,
    replay_buffer,
    reward_normalizer,
)
from recipes.configuration.relations import warnings
from recipes.configuration.run_folder import (
    Start,
    UnsavedEnd,
    commit_of_code,
    complete_summary,
    finish,
    leave_boundary,
    plain,
    remove_records,
    take_over,
    where_to_start,
)
from recipes.configuration.together import check_alike, joined, restored, tensors_of


def train(config: DictConfig) -> None:
    """One training run in ``config.run_dir``; continues an earlier run there."""
    processes = partial(ranks_of_run, config.workers, follow, config, seconds=10 * config.env.worker_timeout)
    if number_of_rank():  # torchrun started this process, and it is not the first
        with processes() as ranks:
            follow(config, ranks)
        return
    run_dir = Path(config.run_dir)
    with locked(run_dir):
        for sentence in warnings(config):
            say(f"warning: {sentence}")
        begins = not any(path.name != LOCK for path in run_dir.iterdir())
        try:
            start = where_to_start(config, run_dir)
            with processes() as ranks:
                _train(config, ranks, start)
        except MismatchError as error:  # from a factory's environment
            saved = checkpoints_of(run_dir / "checkpoints", "step")
            if begins and all(frames_of(path) == 0 for path in saved):
                remove_records(run_dir)
            raise UserError(f"env.name is {config.env.name}: {error}") from error


def follow(config: DictConfig, ranks: Ranks) -> None:
    """The same run in another process than the first: it plays and learns its share, and writes nothing."""
    following(lambda: _train(config, ranks, None), ranks)


def _train(config: DictConfig, ranks: Ranks, start: Start | None) -> None:
    torchrl_logger.setLevel("WARNING")  # its messages about buffers would break the progress bar
    make_repeatable(config.device)
    torch.manual_seed(config.seed)
    run_dir = Path(config.run_dir)
    check_alike(config, ranks)

    # Environment, agent and learner; each of several processes has a share of the environments.
    share = ranks.share(config.env.num_envs)
    env = training_environment(config, share)
    agent = agent_arguments(config, env)
    networks = build_networks(**agent)
    loss = ppo_loss(config, networks)
    optimizer = torch.optim.Adam(loss.parameters(), lr=config.optim.lr)
    rewards = reward_normalizer(config)
    buffer = replay_buffer(config, networks)
    learner = Learner(
        networks=networks,
        loss=loss,
        optimizer=optimizer,
        advantages=advantages(config),
        buffer=buffer,
        rewards=rewards if config.loss.reward_norm else None,
        epochs=config.loss.epochs,
        target_kl=config.loss.target_kl,
        max_grad_norm=config.loss.max_grad_norm,
        normalize_observations=config.env.observation_norm,
        ranks=ranks,
    )
    whole_env, whole_memory = joined(env, networks, ranks, lanes=config.env.num_envs)
    collector = collector_of(config, env, networks, share)

    # A continued run equals an uninterrupted one.
    progress = Progress(best_val_success=LOWEST)
    checkpoints = RunCheckpoints(
        run_dir / "checkpoints",
        keep=config.checkpoint.keep,
        agent=agent,
        config=plain(config),
        progress=progress,
        actor=networks.actor,
        critic=networks.critic,
        optimizer=optimizer,
        rewards=rewards,
        env=whole_env,
        memory=whole_memory,
        storage=buffer.storage if config.memory.scope == "lane" else None,
    )
    if restored(checkpoints, start, ranks):
        collector.reset()  # its first reset was before the task deck was restored
        if ranks.is_first:
            print(f"continuing {run_dir} at {progress.frames:,} of {config.total_frames:,} frames")
    progress.commits = sorted({*progress.commits, commit_of_code()})
    guard = FaultGuard(
        max_in_a_row=config.faults.max_in_a_row,
        restart_workers=config.env.restart_workers,
        progress=progress,
        memory=networks.memory,
        loss=loss,
        optimizer=optimizer,
        rewards=rewards,
        ranks=ranks,
    )
    ranks.follow(tensors_of(loss, rewards))
    # If a signal or a fault ends an iteration early, its start is saved: the boundary marked last.
    checkpoints.mark()
    logger = None if start is None else take_over(run_dir, config, checkpoints, start, frames=progress.frames)
    bar = progress_bar(
        total=config.total_frames, initial=progress.frames, unit=" frames", unit_scale=True, smoothing=0.1,
        file=STDERR, disable=not ranks.is_first,
    )  # fmt: skip

    interrupts = Interrupts()
    networks.encoder.register_forward_pre_hook(interrupts.leave_before(free=lambda: ranks.free))
    ranks.requested = lambda: interrupts.requested
    interrupts.hold()

    if ranks.is_first and progress.frames >= config.total_frames:
        complete_summary(run_dir, config, progress)

    # While acting, more threads would only slow down the environment workers.
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    clock = time.perf_counter()
    batches = guard.batches(collector) if progress.frames < config.total_frames else iter(())
    try:
        for batch in merged_batches(batches, config, progress):
            collected = time.perf_counter()
            torch.set_num_threads(threads)

            # 1. Store the batch once; windows and contexts are gathered from it by index.
            buffer.empty()
            frames = buffer.extend(batch)
            check_horizon(config, batch, buffer.storage)

            # 2. One PPO update, undone completely after a fault.
            updated = None
            rate = learning_rate(config, frames=progress.frames, share=progress.rate_share)
            with guard.update():
                updated = update(learner, batch, frames, learning_rate=rate)
            ranks.follow(tensors_of(loss, rewards))
            collector.update_policy_weights_()
            progress.frames += batch.numel()
            learned = time.perf_counter()
            torch.set_num_threads(1)

            # 3. Measure, and periodically evaluate on held-out goals and tasks.
            metrics = training_metrics(batch, names_of_tasks(config, "train")) | guard.metrics(env)
            if updated is not None:
                metrics |= _learning_metrics(config, networks, batch, updated)
                progress.rate_share = next_share(config, progress.rate_share, kl=metrics["ppo/kl"])
            finished = progress.frames >= config.total_frames
            if finished or progress.frames - progress.evaluated >= config.eval.every_frames:
                folder = run_dir / "evaluations"
                evaluation = partial(evaluate_on_held_out, config, networks, folder, last=finished, ranks=ranks)
                metrics |= guard.evaluate(partial(evaluation, frames=progress.frames))
                if logger is not None:
                    minibatch = None if updated is None else updated.minibatch
                    total = config.total_frames
                    metrics |= look_inside(networks, minibatch, metrics, progress, logger, total_frames=total)
                progress.evaluated = progress.frames
            metrics |= _timings(batch, begun=clock, collected=collected, learned=learned) | process_metrics()
            clock = time.perf_counter()

            # 4. Log and save.
            if logger is not None:
                with best_effort("metrics"):
                    logger.log(metrics, frames=progress.frames)
            _save(config, checkpoints, progress, ranks, score=score_on_val(metrics), finished=finished)
            shown = "success" if "train/success" in metrics else "return"
            bar.set_postfix_str(f"{shown} {metrics.get(f'train/{shown}', float('nan')):.2f}", refresh=False)
            bar.update(min(batch.numel(), bar.total - bar.n))  # the last batch may exceed the total
            if finished:
                bar.close()
                if ranks.is_first:
                    finish(run_dir, config, checkpoints, progress, metrics)
                break
    except UnsavedEnd:
        raise
    except BaseException as error:
        bar.close()  # before further output
        asked = interrupts.requested or isinstance(error, Left)
        begun = not isinstance(error, MismatchError) or progress.frames  # otherwise there is nothing to continue
        if ranks.is_first and begun:
            leave_boundary(checkpoints, asked=asked)
        if not asked:
            raise
    finally:
        bar.close()
        if logger is not None:
            with best_effort("metrics"):
                logger.close()
        collector.shutdown()
        interrupts.release()
        torch.set_num_threads(threads)


@torch.no_grad()
def _learning_metrics(
    config: DictConfig, networks: Networks, batch: TensorDictBase, updated: Updated
) -> dict[str, float]:
    """Metrics of the update, the critic, the std and the attention."""
    metrics = dict(updated.metrics)
    metrics |= critic_metrics(batch, updated.targets[keys.VALUE_TARGET], names_of_tasks(config, "train"))
    metrics["ppo/std"] = networks.actor.get_dist(updated.minibatch.copy()).stddev.mean().item()
    return metrics | attention_entropy(networks.encoder, updated.minibatch)


def _timings(batch: TensorDictBase, *, begun: float, collected: float, learned: float) -> dict[str, float]:
    now = time.perf_counter()
    return {
        "time/collect": collected - begun,
        "time/update": learned - collected,
        "time/evaluate": now - learned,
        "time/frames_per_second": batch.numel() / (now - begun),
    }


def _save(
    config: DictConfig,
    checkpoints: RunCheckpoints,
    progress: Progress,
    ranks: Ranks,
    *,
    score: float,
    finished: bool,
) -> None:
    """Saves the best and the periodic checkpoint when they are due."""
    is_best = score > progress.best_val_success
    progress.best_val_success = max(score, progress.best_val_success)
    is_due = finished or progress.frames - progress.saved >= config.checkpoint.every_frames
    progress.saved = progress.frames if is_due else progress.saved
    checkpoints.mark()
    if not ranks.is_first:
        return
    with best_effort("the best checkpoint"):
        if is_best:
            checkpoints.save_best(score)
    with best_effort("the checkpoint"):
        if is_due:
            checkpoints.save()
