"""Evaluation protocols: what is played and how it is counted."""

from dataclasses import dataclass, replace
from typing import Literal, Self, get_args

import numpy as np

from htrmrl_torchrl.envs.lanes import check_positive

Actions = Literal["mean", "sampled"]


@dataclass(frozen=True, kw_only=True)
class Protocol:
    """One way to evaluate; `PROTOCOLS` holds the named ones.

    Args:
        name: ``"strict"``, ``"sampled"``, ``"garage"`` or ``"metaworld"``.
        adaptation_episodes: K episodes per trial with sampled actions, which do not count.
        evaluation_episodes: M episodes that count.
        evaluation_actions: the ``"mean"`` action or ``"sampled"`` ones in the M episodes.
        goals_per_task: the first goals of each task's list.
        separate: whether each of the M episodes starts from the memory after the K; else it also remembers the earlier
            ones of the M.
        biased: whether the counting favours agents that succeed quickly on some goals.

    Raises ValueError for numbers below 1 (K: below 0) or unknown actions.

    Example:
        >>> PROTOCOLS["strict"].changed(goals_per_task=10).goals_per_task
        10
    """

    name: str
    adaptation_episodes: int
    evaluation_episodes: int
    evaluation_actions: Actions
    goals_per_task: int
    separate: bool = False
    biased: bool = False

    def __post_init__(self) -> None:
        check_positive(evaluation_episodes=self.evaluation_episodes, goals_per_task=self.goals_per_task)
        if not isinstance(self.adaptation_episodes, int | np.integer) or self.adaptation_episodes < 0:
            raise ValueError(
                f"adaptation_episodes must be a whole number of at least 0, received {self.adaptation_episodes!r}."
            )
        if self.evaluation_actions not in get_args(Actions):
            raise ValueError(
                f"evaluation_actions={self.evaluation_actions!r} is unknown; choose one of "
                f"{', '.join(get_args(Actions))}."
            )

    @property
    def episodes(self) -> int:
        """Number of episodes in a trial: adaptation plus evaluation."""
        return self.adaptation_episodes + self.evaluation_episodes

    @property
    def trial_length(self) -> int:
        """Episodes of a trial as the agent experiences it: K + 1 where the M are separate."""
        return self.adaptation_episodes + (1 if self.separate else self.evaluation_episodes)

    def changed(
        self,
        *,
        adaptation_episodes: int | None = None,
        evaluation_episodes: int | None = None,
        evaluation_actions: Actions | None = None,
        goals_per_task: int | None = None,
    ) -> Self:
        """A copy with other values; ``None`` keeps one as it is."""
        changes = {
            "adaptation_episodes": adaptation_episodes,
            "evaluation_episodes": evaluation_episodes,
            "evaluation_actions": evaluation_actions,
            "goals_per_task": goals_per_task,
        }
        return replace(self, **{name: value for name, value in changes.items() if value is not None})  # type: ignore[arg-type]


PROTOCOLS = {
    protocol.name: protocol
    for protocol in (
        # Every (task, goal) pair once: ten adaptation episodes, one evaluation episode with the mean action.
        Protocol(
            name="strict",
            adaptation_episodes=10,
            evaluation_episodes=1,
            evaluation_actions="mean",
            goals_per_task=4,
        ),
        # The goals and the adaptation of `strict`, then ten episodes with sampled actions, each from the memory after
        # the adaptation. `garage` with as many goals plays the same trials.
        Protocol(
            name="sampled",
            adaptation_episodes=10,
            evaluation_episodes=10,
            evaluation_actions="sampled",
            goals_per_task=4,
            separate=True,
        ),
        # The evaluation in TrMRL's garage code, presumably the paper's: ten and ten, all sampled, two goals per task.
        Protocol(
            name="garage",
            adaptation_episodes=10,
            evaluation_episodes=10,
            evaluation_actions="sampled",
            goals_per_task=2,
            separate=True,
        ),
        # The simulator's own evaluator: it counts the first episodes to finish, of any goal.
        Protocol(
            name="metaworld",
            adaptation_episodes=10,
            evaluation_episodes=3,
            evaluation_actions="mean",
            goals_per_task=4,
            biased=True,
        ),
    )
}


def named_protocol(name: str) -> Protocol:
    """The protocol of that name. Raises ValueError for an unknown one."""
    if name not in PROTOCOLS:
        raise ValueError(f"Protocol {name!r} is unknown; choose one of {', '.join(PROTOCOLS)}.")
    return PROTOCOLS[name]


@dataclass(frozen=True, kw_only=True)
class Setup:
    """What an evaluation plays, and how: tasks (by name) and goals of a benchmark's split, the protocol, and the steps
    of an episode. See `EvaluationReport` for ``defines_success``.
    """

    benchmark: str
    split: str
    benchmark_seed: int
    protocol: Protocol
    horizon: int
    tasks: list[str]
    defines_success: bool | None = None
