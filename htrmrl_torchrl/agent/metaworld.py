"""The agent as Meta-World's own evaluator wants it, which is then run unchanged.

``metaworld.evaluation.metalearning_evaluation`` tells rewards while it adapts and no longer while it evaluates. There
the agent reads them from the observation, so the environments must be built with ``recurrent_info_in_obs=True``::

    observation [N, 45] = [Meta-World's 39, previous action 4, previous reward / 10, done]
"""

from typing import Any

import numpy as np
import numpy.typing as npt

from htrmrl_torchrl.agent.agent import HTrMRLAgent

Array = npt.NDArray[Any]
_REWARD_DIVISOR = 10.0  # of metaworld.wrappers.RNNBasedMetaRLWrapper


class MetaWorldAgent:
    """Satisfies ``metaworld.evaluation.MetaLearningAgent``: sampled actions while it adapts, then the mean action.

    Two things the official evaluator keeps from every agent: the observation after an episode's last step (the one
    before stands in), and, in the episodes that count, that step's reward (the one before stands in).

    Args:
        agent: with as many lanes as the evaluator has environments.

    Raises:
        ValueError: by the methods, for observations without the recurrent info.

    Example:
        see "Use a trained agent" in the README, or ``tests/agent/test_metaworld.py``.
    """

    def __init__(self, agent: HTrMRLAgent) -> None:
        self.agent = agent
        self._ended: Array | None = None  # lanes that ended with the step that is not closed yet
        self._reward = np.zeros(agent.num_envs)

    def init(self) -> None:
        """Begins a trial on all lanes."""
        self.agent.reset()
        self._ended = None

    def adapt_action(self, observations: Array) -> tuple[Array, dict[str, Array]]:
        """A sampled action ``[N, a]`` for ``[N, 45]``, and nothing beside it."""
        return self.agent.act(self._split(observations)[0]), {}

    def step(self, timestep: Any) -> None:
        """Hears what an adaptation step led to."""
        self.agent.observe(timestep.reward, timestep.terminated, timestep.truncated)

    def adapt(self) -> None:
        """Nothing to do: adaptation is remembering."""

    def reset(self, env_mask: Array) -> None:
        """Hears which lanes begin another episode; called before the first evaluation step and after each one."""
        self._ended = None if self._ended is None else np.asarray(env_mask, dtype=bool)

    def eval_action(self, observations: Array) -> Array:
        """The mean action ``[N, a]`` for ``[N, 45]``."""
        observation, reward = self._split(observations)
        if self._ended is not None:
            self._reward = np.where(self._ended, self._reward, reward)
            self.agent.observe(self._reward, self._ended, np.zeros_like(self._ended))
        self._ended = np.zeros(self.agent.num_envs, dtype=bool)  # `reset` says which
        return self.agent.act(observation, deterministic=True)

    def _split(self, observations: Array) -> tuple[Array, Array]:
        """Observation ``[N, 39]`` and previous reward ``[N]``."""
        plain, info = self.agent.observation_dim, self.agent.action_dim + 2
        if observations.ndim != 2 or observations.shape[1] != plain + info:
            raise ValueError(
                f"The evaluator's observations have shape {list(observations.shape)} but must be "
                f"[{self.agent.num_envs}, {plain} + {info}]: build the environments with recurrent_info_in_obs=True."
            )
        return observations[:, :plain], observations[:, -2] * _REWARD_DIVISOR
