"""`evaluate`: an agent, a benchmark and a protocol to a report."""

import copy
import hashlib
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any, TypeAlias

import torch
from tensordict.nn import TensorDictModuleBase
from torchrl.envs import EnvBase

from htrmrl_torchrl import keys
from htrmrl_torchrl.agent.agent import HTrMRLAgent
from htrmrl_torchrl.agent.networks import Networks, acting_policy, load_networks
from htrmrl_torchrl.checkpoints.checkpoint import read_component
from htrmrl_torchrl.checkpoints.versions import versions
from htrmrl_torchrl.dotted import is_dotted_path
from htrmrl_torchrl.encoders.contract import ContextEncoder
from htrmrl_torchrl.envs import make_env, task_names
from htrmrl_torchrl.envs.benchmarks import find_benchmark
from htrmrl_torchrl.envs.factory import check_seed, resolve_horizon
from htrmrl_torchrl.envs.workers import WORKER_TIMEOUT
from htrmrl_torchrl.evaluation.exact import ExactPolicy
from htrmrl_torchrl.evaluation.official import MetaLearner, run_official
from htrmrl_torchrl.evaluation.protocols import Actions, Setup, named_protocol
from htrmrl_torchrl.evaluation.report import EvaluationReport
from htrmrl_torchrl.evaluation.trials import goal_grid, play_trials

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
    progress: bool = False,
    command: str = "",
    trust: Collection[str] = (),
) -> EvaluationReport:
    """How often an agent succeeds on held-out goals (``split="val"``) or tasks (``"test"``).

    Every (task, goal) pair is played in one trial and counted once; success never ends an episode. The agent's weights,
    memory and random streams, and torch's random state, stay as they are. The same call gives the same report on every
    processor, see `htrmrl_torchrl.evaluation.exact`. (`protocol="metaworld"` calls the simulator's own evaluator.)

    Args:
        agent: path of a checkpoint, or of several (training seeds; one report of all); a `HTrMRLAgent`; what
            `build_networks` returned; or any TensorDict policy that reads the keys of `htrmrl_torchrl.keys` and writes
            ``action`` (played in a copy, in its own precision, with the scope of its memory). With
            ``protocol="metaworld"`` a ``MetaLearningAgent`` too.
        benchmark: a name that `make_env` knows, or the path of a `Benchmark` of your own, but no factory.
        split: ``"train"``, ``"val"`` or ``"test"``.
        protocol: ``"strict"``, ``"garage"`` or ``"metaworld"``, see `htrmrl_torchrl.evaluation.protocols`.
        goals_per_task, adaptation_episodes, evaluation_episodes, evaluation_actions: in place of the protocol's.
        horizon: steps per episode; default the benchmark's (500 in Meta-World).
        benchmark_seed: decides the goals.
        seed: of action noise and of the memory's draws.
        device: where the networks run; default where they are. Simulators stay on the CPU.
        num_envs: environments at a time; more are faster. Sampled actions depend on it.
        num_workers: processes for the simulators; 0 steps them in this one.
        worker_timeout: seconds within which a worker must answer, see `make_env`.
        progress: whether it is shown, see `progress_bar`.
        command: noted in the report.
        trust: code of your own that checkpoints may name, see `load_networks`.

    Raises:
        ValueError: for an unknown benchmark, split or protocol, more goals than there are, a foreign checkpoint, or an
            agent for other observations or actions.
        FileNotFoundError: if there is no checkpoint at a path.
        Fault: if a worker fails or an observation, reward or action is not finite: such trials cannot be counted.

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
    setup = Setup(
        benchmark=benchmark,
        split=split,
        benchmark_seed=benchmark_seed,
        protocol=rules,
        horizon=resolve_horizon(benchmark, horizon),
        tasks=task_names(benchmark, split),
        defines_success=known.has_success if is_dotted_path(benchmark) else None,
    )
    # All first: a foreign one shows before anything is played.
    loaded = [(_own(one, trust), _identity(one)) for one in _several(agent)]
    reports = []
    for own, identity in loaded:
        if rules.name == "metaworld":
            results = run_official(own, setup, seed=seed, device=device)
        else:
            policy = _policy(own, seed).to(device)
            results = _play(
                policy,
                setup,
                seed=seed,
                num_envs=num_envs,
                num_workers=num_workers,
                worker_timeout=worker_timeout,
                progress=progress,
            )
        runs = [{"seed": seed} | identity]
        reports.append(EvaluationReport(**vars(setup), **results, runs=runs, versions=versions(), command=command))
    return EvaluationReport.merge(reports)


def _play(
    policy: TensorDictModuleBase,
    setup: Setup,
    *,
    seed: int,
    num_envs: int,
    num_workers: int,
    worker_timeout: float,
    progress: bool,
) -> dict[str, Any]:
    """The grid's outcomes as fields of a report."""
    pairs = goal_grid(num_tasks=len(setup.tasks), goals_per_task=setup.protocol.goals_per_task)
    lanes = min(num_envs, len(pairs))
    env = make_env(
        setup.benchmark,
        split=setup.split,
        num_envs=lanes,
        num_workers=min(num_workers, lanes),
        worker_timeout=worker_timeout,
        episodes_per_trial=setup.protocol.episodes,
        horizon=setup.horizon,
        benchmark_seed=setup.benchmark_seed,
        pairs=pairs,
    )
    try:
        check_sizes(policy, env)
        outcomes = play_trials(policy, env, setup.protocol, trials=len(pairs), seed=seed, progress=progress)
    finally:
        env.close()
    steps = outcomes["steps_to_success"].double()
    return {
        "task": outcomes["task"].numpy(),
        "goal": outcomes["goal"].numpy(),
        "success": outcomes["success"].double().numpy()[None],
        "returns": outcomes["return"].double().numpy()[None],
        "steps_to_success": steps.masked_fill(steps == 0, float("nan")).numpy()[None],
    }


def _several(agent: Any) -> list[Any]:
    agents = list(agent) if isinstance(agent, list | tuple) and not isinstance(agent, Networks) else [agent]
    if not agents:
        raise ValueError(f"Received {agent!r} to evaluate; give at least one checkpoint.")
    return agents


def _own(agent: Any, trust: Collection[str]) -> Any:
    """A copy that may be moved to a device and used up; a ``MetaLearningAgent`` as it is."""
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
    """Raise ValueError unless the policy, if an encoder is in it, is for the environment's observations and actions."""
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
    """What tells a checkpoint from all others; nothing of other agents."""
    if not isinstance(agent, str | Path):
        return {}
    frames = read_component(agent, "progress")["frames"]
    digest = hashlib.sha256(Path(agent).read_bytes()).hexdigest()
    return {"checkpoint": str(agent), "sha256": digest, "frames": frames}
