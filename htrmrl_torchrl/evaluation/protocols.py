"""What was played and how it was counted: a success rate means nothing without it."""

from dataclasses import dataclass, replace
from typing import Literal, Self, get_args

import numpy as np

from htrmrl_torchrl.envs.lanes import check_positive

Actions = Literal["mean", "sampled"]


@dataclass(frozen=True, kw_only=True)
class Protocol:
    """One way to evaluate; `PROTOCOLS` holds the three that are known by name.

    Args:
        name: ``"strict"``, ``"garage"`` or ``"metaworld"``.
        adaptation_episodes: K episodes per trial with sampled actions, which do not count.
        evaluation_episodes: M episodes that count.
        evaluation_actions: in these M, the ``"mean"`` action or ``"sampled"`` ones.
        goals_per_task: the first goals of each task's list.
        separate: whether each of the M starts from what was remembered after the K; else it remembers those of the M
            before it as well, which makes no difference where M is 1.
        biased: whether the counting is known to favour agents that succeed quickly on some goals.

    Raises:
        ValueError: for numbers below 1 (K: below 0) or unknown actions.

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
        """Episodes of a trial as the agent lives it, its last one included: K + 1 where the M are separate."""
        return self.adaptation_episodes + (1 if self.separate else self.evaluation_episodes)

    def changed(
        self,
        *,
        adaptation_episodes: int | None = None,
        evaluation_episodes: int | None = None,
        evaluation_actions: Actions | None = None,
        goals_per_task: int | None = None,
    ) -> Self:
        """The protocol with other numbers; ``None`` leaves one as it is."""
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
        # Every (task, goal) pair once, ten episodes to adapt, one with the mean action.
        Protocol(
            name="strict",
            adaptation_episodes=10,
            evaluation_episodes=1,
            evaluation_actions="mean",
            goals_per_task=4,
        ),
        # TrMRL's line in garage, presumed for the paper: ten and ten, all sampled, two goals a task.
        Protocol(
            name="garage",
            adaptation_episodes=10,
            evaluation_episodes=10,
            evaluation_actions="sampled",
            goals_per_task=2,
            separate=True,
        ),
        # The simulator's own evaluator: it counts the first episodes to finish, whichever goal they are of.
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
    """The protocol of that name.

    Raises:
        ValueError: if it is unknown.
    """
    if name not in PROTOCOLS:
        raise ValueError(f"Protocol {name!r} is unknown; choose one of {', '.join(PROTOCOLS)}.")
    return PROTOCOLS[name]


@dataclass(frozen=True, kw_only=True)
class Setup:
    """What an evaluation plays, and how.

    Args:
        benchmark, split, benchmark_seed: which tasks and goals.
        protocol: how many of the goals, and how they are played and counted.
        horizon: steps of an episode.
        tasks: names of the split's tasks.
        defines_success: see `EvaluationReport`.
    """

    benchmark: str
    split: str
    benchmark_seed: int
    protocol: Protocol
    horizon: int
    tasks: list[str]
    defines_success: bool | None = None
