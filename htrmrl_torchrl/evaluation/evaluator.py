"""`evaluate`: plays an agent on a benchmark under a protocol and returns a report."""

import copy
import hashlib
import math
import os
from collections.abc import Callable, Collection, Sequence
from functools import partial
from pathlib import Path
from typing import Any, TypeAlias

import torch
from tensordict import TensorDict
from tensordict.nn import TensorDictModuleBase
from torch import Tensor
from torchrl.envs import EnvBase

from htrmrl_torchrl import keys
from htrmrl_torchrl.agent.agent import HTrMRLAgent
from htrmrl_torchrl.agent.networks import Networks, acting_policy, load_networks
from htrmrl_torchrl.checkpoints.checkpoint import read_component
from htrmrl_torchrl.checkpoints.folder import MODEL
from htrmrl_torchrl.checkpoints.versions import versions
from htrmrl_torchrl.dotted import is_dotted_path
from htrmrl_torchrl.encoders.contract import ContextEncoder
from htrmrl_torchrl.envs import make_env, task_names
from htrmrl_torchrl.envs.benchmarks import find_benchmark
from htrmrl_torchrl.envs.factory import check_seed, resolve_horizon
from htrmrl_torchrl.envs.shares import LaneShare
from htrmrl_torchrl.envs.workers import WORKER_TIMEOUT
from htrmrl_torchrl.evaluation.exact import ExactPolicy
from htrmrl_torchrl.evaluation.official import MetaLearner, run_official
from htrmrl_torchrl.evaluation.protocols import Actions, Protocol, Setup, named_protocol
from htrmrl_torchrl.evaluation.report import EvaluationReport
from htrmrl_torchrl.evaluation.trials import goal_grid, play_trials
from htrmrl_torchrl.memory.contract import memories_of
from htrmrl_torchrl.memory.episodic import EpisodicMemory
from htrmrl_torchrl.parallel.ranks import Ranks

Evaluable: TypeAlias = str | Path | HTrMRLAgent | Networks | TensorDictModuleBase | MetaLearner


def evaluate(
    agent: Evaluable | Sequence[str | Path],
    benchmark: str,
    *,
    split: str = "test",
    protocol: str = "strict",
    goals_per_task: int | None = None,
    adaptation_episodes: int | None = None,
    evaluation_episodes: int | None = None,
    evaluation_actions: Actions | None = None,
    horizon: int | None = None,
    benchmark_seed: int = 0,
    seed: int = 0,
    device: str | torch.device | None = None,
    num_envs: int = 20,
    num_workers: int = 0,
    worker_timeout: float = WORKER_TIMEOUT,
    memory_gain: bool = False,
    progress: bool = False,
    command: str = "",
    trust: Collection[str] = (),
    ranks: Ranks | None = None,
) -> EvaluationReport:
    """Success rate of an agent on held-out goals (``split="val"``) or tasks (``"test"``).

    Every (task, goal) pair is played in one trial and counted once; success never ends an episode. The agent's weights,
    memory and random streams, and torch's random state, do not change. The same call gives the same report on every CPU
    (`htrmrl_torchrl.evaluation.exact`), except with ``protocol="metaworld"``.

    Args:
        agent: path of a checkpoint or of an agent's folder, or of several (training seeds, merged into one report); a
            `HTrMRLAgent`; the result of `build_networks`; or a TensorDict policy that reads the keys of
            `htrmrl_torchrl.keys` and writes
            ``action`` (a copy plays, in its own precision). With ``protocol="metaworld"`` also a ``MetaLearningAgent``.
        benchmark: a name that `make_env` knows, or the path of a `Benchmark` of your own, but no factory.
        split: ``"train"``, ``"val"`` or ``"test"``.
        protocol: ``"strict"``, ``"sampled"``, ``"garage"`` or ``"metaworld"``, see `PROTOCOLS`.
        goals_per_task, adaptation_episodes, evaluation_episodes, evaluation_actions: replace the protocol's.
        horizon: steps per episode; default the benchmark's (500 in Meta-World).
        benchmark_seed: decides the goals.
        seed: of action noise and of the memory's draws.
        device: of the networks; default where they are. Simulators run on the CPU.
        num_envs: environments at a time; more are faster. Sampled actions depend on it.
        num_workers, worker_timeout: simulator processes (0: this process) and their time limit, see `make_env`.
        memory_gain: whether to play also K trials of one episode per goal, for `EvaluationReport.memory_gain`.
            Action noise is that of the trials' K adaptation episodes, so that an agent without memory gains exactly 0
            (under ``sampled`` and ``garage``, or where starts are random, if `num_envs` plays all goals at once; else 0
            on average).
        progress: whether to show it, see `progress_bar`.
        command: saved in the report.
        trust: your own code that checkpoints may name, see `load_networks`.
        ranks: processes that share out the environments (`num_workers` is then 0) of networks that `build_networks` has
            built; all make the same call and get the same report, which is that of one process.

    Raises:
        ValueError: for an unknown benchmark, split or protocol, too many goals, an untrusted checkpoint, an agent for
            other observations or actions, or ``memory_gain`` with fewer than two adaptation episodes.
        FileNotFoundError: if there is no checkpoint at a path.
        Fault: if a worker fails, or an observation, reward or action is not finite.

    Example:
        >>> from tensordict.nn import TensorDictModule
        >>> import torch
        >>> idle = TensorDictModule(lambda o: torch.zeros(len(o), 2), in_keys=["observation"], out_keys=["action"])
        >>> evaluate(idle, "toy", adaptation_episodes=1).success_rate
        0.0
    """
    known = find_benchmark(benchmark)
    rules = named_protocol(protocol).changed(
        adaptation_episodes=adaptation_episodes,
        evaluation_episodes=evaluation_episodes,
        evaluation_actions=evaluation_actions,
        goals_per_task=goals_per_task,
    )
    check_seed(seed)
    if rules.goals_per_task > known.num_goals:
        raise ValueError(
            f"goals_per_task is {rules.goals_per_task} but must be at most {known.num_goals}, the goals that "
            f"{benchmark} has for each task."
        )
    if memory_gain:
        _check_memory_gain(rules)
    setup = Setup(
        benchmark=benchmark,
        split=split,
        benchmark_seed=benchmark_seed,
        protocol=rules,
        horizon=resolve_horizon(benchmark, horizon),
        tasks=task_names(benchmark, split),
        defines_success=known.has_success if is_dotted_path(benchmark) else None,
    )
    # All are loaded first, so that an invalid one fails before anything is played.
    loaded = [(_own(one, trust), _identity(one)) for one in _several(agent)]
    reports = []
    for own, identity in loaded:
        if rules.name == "metaworld":
            results = run_official(own, setup, seed=seed, device=device)
        else:
            policy = _policy(own, seed).to(device)
            pairs = goal_grid(num_tasks=len(setup.tasks), goals_per_task=rules.goals_per_task)
            lanes = min(num_envs, len(pairs))
            play = partial(
                _play,
                policy,
                setup,
                seed=seed,
                num_envs=lanes,
                num_workers=min(num_workers, lanes),
                worker_timeout=worker_timeout,
                progress=progress,
                ranks=Ranks() if ranks is None else ranks,
            )
            if memory_gain:
                _check_forgets(policy)
            results = _as_fields(play(rules, pairs))
            if memory_gain:
                empty = _without_memory(
                    play, rules, pairs, lanes=lanes, outcome="success" if known.has_success else "return"
                )
                results["without_memory"] = empty.double().numpy()[None]
        runs = [{"seed": seed} | identity]
        reports.append(EvaluationReport(**vars(setup), **results, runs=runs, versions=versions(), command=command))
    return EvaluationReport.merge(reports)


def _play(
    policy: TensorDictModuleBase,
    setup: Setup,
    protocol: Protocol,
    pairs: list[tuple[int, int]],
    *,
    seed: int,
    num_envs: int,
    num_workers: int,
    worker_timeout: float,
    progress: bool,
    ranks: Ranks,
) -> TensorDict:
    """Plays one trial of each pair, see `play_trials`; several ranks play a share of the lanes each."""
    share = ranks.share(num_envs)
    play = partial(_play_share, policy, setup, protocol, pairs, share, seed=seed)
    if share is None:
        return play(num_envs=num_envs, num_workers=num_workers, worker_timeout=worker_timeout, progress=progress)
    for memory in memories_of(policy):
        if isinstance(memory, EpisodicMemory):
            memory.first_lane = share.first
    idle = TensorDict(batch_size=[0])  # more ranks than lanes
    played = ranks.attempt(lambda: play(num_envs=num_envs) if share.count else idle)
    # A rank returns [rounds * n], all rounds of its lanes; in a round they stand side by side.
    rounds = math.ceil(len(pairs) / num_envs)
    return torch.cat([part.reshape(rounds, -1) for part in played if len(part)], 1).reshape(-1)[: len(pairs)]


def _play_share(
    policy: TensorDictModuleBase,
    setup: Setup,
    protocol: Protocol,
    pairs: list[tuple[int, int]],
    share: LaneShare | None,
    *,
    seed: int,
    progress: bool = False,
    **lanes: Any,
) -> TensorDict:
    env = make_env(
        setup.benchmark,
        split=setup.split,
        episodes_per_trial=protocol.episodes,
        horizon=setup.horizon,
        benchmark_seed=setup.benchmark_seed,
        pairs=pairs,
        share=share,
        **lanes,
    )
    try:
        check_sizes(policy, env)
        return play_trials(policy, env, protocol, trials=len(pairs), seed=seed, progress=progress, share=share)
    finally:
        env.close()


def _as_fields(outcomes: TensorDict) -> dict[str, Any]:
    """Outcomes as fields of a report."""
    steps = outcomes["steps_to_success"].double()
    return {
        "task": outcomes["task"].numpy(),
        "goal": outcomes["goal"].numpy(),
        "success": outcomes["success"].double().numpy()[None],
        "returns": outcomes["return"].double().numpy()[None],
        "steps_to_success": steps.masked_fill(steps == 0, float("nan")).numpy()[None],
    }


def _without_memory(
    play: Callable[[Protocol, list[tuple[int, int]]], TensorDict],
    rules: Protocol,
    pairs: list[tuple[int, int]],
    *,
    lanes: int,
    outcome: str,
) -> Tensor:
    """An outcome of trials of one episode, one for each of the adaptation episodes 2 to K: ``[pairs, K - 1]``.

    Environments play the same pairs at the same time as in the trials of K episodes, so that action noise is the same.
    The first episode of those also has an empty memory: it is played for its noise and not returned.
    """
    episodes, rounds = rules.adaptation_episodes, math.ceil(len(pairs) / lanes)
    one = rules.changed(adaptation_episodes=0, evaluation_episodes=1, evaluation_actions="sampled")
    order = [(r * lanes + i) % len(pairs) for r in range(rounds) for _ in range(episodes) for i in range(lanes)]
    outcomes = play(one, [pairs[index] for index in order])[outcome]
    by_trial = outcomes.reshape(rounds, episodes, lanes).transpose(1, 2).reshape(rounds * lanes, episodes)
    return by_trial[: len(pairs), 1:]


def _check_memory_gain(rules: Protocol) -> None:
    if rules.biased:
        raise ValueError(
            f"memory_gain is for strict, sampled and garage; {rules.name} does not report single episodes."
        )
    if rules.adaptation_episodes < 2:
        raise ValueError(
            "memory_gain is of the adaptation episodes after the first, so that adaptation_episodes must be at least "
            f"2, received {rules.adaptation_episodes}."
        )


def _check_forgets(policy: TensorDictModuleBase) -> None:
    if any(getattr(memory, "scope", "trial") != "trial" for memory in memories_of(policy)):
        raise ValueError("memory_gain is for memory.scope=trial; this policy remembers earlier trials, scope=lane.")


def _several(agent: Any) -> list[Any]:
    agents = list(agent) if isinstance(agent, list | tuple) and not isinstance(agent, Networks) else [agent]
    if not agents:
        raise ValueError(f"Received {agent!r} to evaluate; give at least one checkpoint.")
    return agents


def _own(agent: Any, trust: Collection[str]) -> Any:
    """A copy that may be moved and changed; a ``MetaLearningAgent`` unchanged."""
    if isinstance(agent, str | Path):
        return load_networks(agent, trust=trust)
    if isinstance(agent, HTrMRLAgent):
        agent = agent.networks
    return copy.deepcopy(agent) if isinstance(agent, Networks | TensorDictModuleBase) else agent


def _policy(own: Any, seed: int) -> TensorDictModuleBase:
    if isinstance(own, Networks):
        return ExactPolicy(acting_policy(own, seed=seed))
    if isinstance(own, TensorDictModuleBase):
        return own
    raise ValueError(
        f"Received {type(own).__name__} to evaluate; give a checkpoint's path, a HTrMRLAgent, what build_networks "
        "returned, or a TensorDict policy."
    )


def check_sizes(policy: TensorDictModuleBase, env: EnvBase) -> None:
    """Raise ValueError if the policy holds an encoder for other observation or action sizes than the environment's."""
    encoder = next((module for module in policy.modules() if isinstance(module, ContextEncoder)), None)
    if encoder is None:
        return
    expected = (encoder.observation_dim, encoder.action_dim)
    offered = (env.observation_spec[keys.OBSERVATION].shape[-1], env.action_spec.shape[-1])
    if expected != offered:
        raise ValueError(
            f"The agent is for observations and actions of sizes {expected}; this benchmark has {offered}. Evaluate it "
            "on what it was trained on."
        )


def _identity(agent: Any) -> dict[str, Any]:
    """Path, SHA-256 and frames of a checkpoint; nothing for other agents."""
    if not isinstance(agent, str | Path):
        return {}
    frames = read_component(agent, "progress")["frames"]
    weights = Path(agent, MODEL) if os.path.isdir(agent) else Path(agent)
    digest = hashlib.sha256(weights.read_bytes()).hexdigest()
    return {"checkpoint": str(agent), "sha256": digest, "frames": frames}
