"""The protocol ``metaworld``: the simulator's own evaluator, called as it is.

It counts, of each task, the first episodes to finish. Successful ones end early and their environments begin again, so
of several goals of a task the solved ones are counted again and again: an agent that solves one in four is reported to
solve all. Numbers from it compare with nothing else, and reports say so.
"""

from typing import Any, Protocol

import numpy as np
import torch

from htrmrl_torchrl.agent.agent import HTrMRLAgent
from htrmrl_torchrl.agent.metaworld import MetaWorldAgent
from htrmrl_torchrl.agent.networks import Networks
from htrmrl_torchrl.envs.benchmarks import official_arguments
from htrmrl_torchrl.evaluation.protocols import Setup


class MetaLearner(Protocol):
    """``metaworld.evaluation.MetaLearningAgent``, named here so that importing us does not import the simulator."""

    def init(self) -> None: ...

    def adapt_action(self, observations: Any) -> Any: ...

    def step(self, timestep: Any) -> None: ...

    def adapt(self) -> None: ...

    def eval_action(self, observations: Any) -> Any: ...

    def reset(self, env_mask: Any) -> None: ...


def run_official(agent: Any, setup: Setup, *, seed: int, device: str | torch.device | None = None) -> dict[str, Any]:
    """Fields of a report from ``metaworld.evaluation.metalearning_evaluation``.

    Args:
        agent: a `HTrMRLAgent` or what `build_networks` returned, of which a copy of its own plays, or a
            ``MetaLearningAgent``.
        setup: what is played.
        seed: of action noise and of the memory's draws.
        device: where the networks run; default where they are.

    Raises:
        ValueError: for a benchmark or protocol that the official evaluator cannot play, or another kind of agent.
    """
    import metaworld
    from metaworld.evaluation import metalearning_evaluation

    rules = setup.protocol
    if rules.evaluation_actions != "mean" or rules.adaptation_episodes < 1:
        raise ValueError("The protocol metaworld adapts for at least one episode and evaluates the mean action.")
    lanes = rules.goals_per_task * len(setup.tasks)
    adapted = _adapter(agent, lanes, seed, device)
    environments: Any = metaworld.make_ml_envs(
        **official_arguments(setup.benchmark, setup.split, setup.benchmark_seed),
        meta_batch_size=lanes,
        total_tasks_per_cls=rules.goals_per_task,
        task_select="pseudorandom",
        max_episode_steps=setup.horizon,
        recurrent_info_in_obs=True,
    )
    try:
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            _, _, success = metalearning_evaluation(
                adapted,
                environments,
                num_evals=1,
                adaptation_episodes=rules.adaptation_episodes,
                evaluation_episodes=rules.evaluation_episodes,
            )
    finally:
        environments.close()
    tasks = len(setup.tasks)
    unknown = np.full((1, tasks, 1), np.nan)  # it tells neither returns by task nor when a success came
    return {
        "task": np.arange(tasks),
        "goal": np.full(tasks, -1),
        "success": np.array([success[name] for name in setup.tasks])[None, :, None],
        "returns": unknown,
        "steps_to_success": unknown,
    }


def _adapter(agent: Any, lanes: int, seed: int, device: str | torch.device | None) -> Any:
    if isinstance(agent, HTrMRLAgent):
        agent = agent.networks
    if isinstance(agent, Networks):
        return MetaWorldAgent(HTrMRLAgent(agent, num_envs=lanes, seed=seed, device=device))
    methods = ("init", "adapt_action", "step", "adapt", "eval_action", "reset")
    missing = [name for name in methods if not callable(getattr(agent, name, None))]
    if missing:
        raise ValueError(
            f"Received {type(agent).__name__} for the protocol metaworld, which has no {', '.join(missing)}; give a "
            "checkpoint's path, a HTrMRLAgent, what build_networks returned, or a MetaLearningAgent."
        )
    return agent
