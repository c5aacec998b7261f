"""Adapter that Meta-World's unchanged ``metaworld.evaluation.metalearning_evaluation`` can evaluate.

The evaluator passes rewards on during adaptation only. Later the agent reads them from the observation, so the
environments must be built with ``recurrent_info_in_obs=True``::

    observation [N, 45] = [Meta-World's 39, previous action 4, previous reward / 10, done]
"""

from typing import Any

import numpy as np
import numpy.typing as npt

from htrmrl_torchrl.agent.agent import HTrMRLAgent

Array = npt.NDArray[Any]
_REWARD_DIVISOR = 10.0  # of metaworld.wrappers.RNNBasedMetaRLWrapper


class MetaWorldAgent:
    """Satisfies ``metaworld.evaluation.MetaLearningAgent``: samples actions in adaptation, then takes the mean action.

    The official evaluator passes on neither the observation after an episode's last step nor, in evaluation episodes,
    that step's reward. The previous ones are used instead. ``agent`` must have as many environments as the evaluator.
    ValueError for observations without the recurrent info.

    Example:
        see docs/tutorials/load_and_play.md, or ``tests/agent/test_metaworld.py``.
    """

    def __init__(self, agent: HTrMRLAgent) -> None:
        self.agent = agent
        self._ended: Array | None = None  # environments whose episode ended in the open step
        self._reward = np.zeros(agent.num_envs)

    def init(self) -> None:
        """Starts a trial in all environments."""
        self.agent.reset()
        self._ended = None

    def adapt_action(self, observations: Array) -> tuple[Array, dict[str, Array]]:
        """A sampled action ``[N, a]`` for ``[N, 45]``, and an empty dictionary."""
        return self.agent.act(self._split(observations)[0]), {}

    def step(self, timestep: Any) -> None:
        """Passes the result of an adaptation step to the agent."""
        self.agent.observe(timestep.reward, timestep.terminated, timestep.truncated)

    def adapt(self) -> None:
        """Nothing to do: the agent adapts through its memory."""

    def reset(self, env_mask: Array) -> None:
        """Records which environments begin another episode; called before the first evaluation step and after each."""
        self._ended = None if self._ended is None else np.asarray(env_mask, dtype=bool)

    def eval_action(self, observations: Array) -> Array:
        """The mean action ``[N, a]`` for ``[N, 45]``."""
        observation, reward = self._split(observations)
        if self._ended is not None:
            self._reward = np.where(self._ended, self._reward, reward)
            self.agent.observe(self._reward, self._ended, np.zeros_like(self._ended))
        self._ended = np.zeros(self.agent.num_envs, dtype=bool)  # set by `reset`
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
