"""95% intervals that hold with few goals: of the mean over tasks of the mean over goals, and of the mean over runs.

Tasks are fixed; a task's goals are a random sample. Each task has its own variance, so the interval is Student's t with
the degrees of freedom of Welch and Satterthwaite. Near success 0 or 1, all sampled goals may agree although others
differ. *Pseudo-goals* at both ends of the scale correct this (Agresti and Coull 1998 for one task, Agresti and Caffo
2000 for two, Price and Bonett 2004 for any number): two at 0 and two at 1, shared among tasks in proportion to their
variance.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy.special import stdtrit

Interval = tuple[float, float]
Array = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Scale:
    """Lowest and highest value of a goal, and the number of pseudo-goals at each end over all tasks."""

    low: float
    high: float
    pseudo_goals: float


SHARES = Scale(0.0, 1.0, pseudo_goals=2.0)  # success
DIFFERENCES = Scale(-1.0, 1.0, pseudo_goals=1.0)  # of success, paired by goal (Bonett and Price 2012)


def interval_over_goals(by_task: Sequence[Array], *, scale: Scale | None) -> Interval | None:
    """95% interval, over other goals of the same tasks, of the mean over tasks of the mean over goals. ``by_task`` has
    one number per goal for each task. ``scale`` is `SHARES`, `DIFFERENCES`, or ``None`` for unbounded values such as
    returns, which get no pseudo-goals. Returns low and high; ``None`` if a task has fewer than two goals, or, without a
    scale, if each task's goals are equal.

    Example:
        >>> low, high = interval_over_goals([np.ones(5), np.ones(5)], scale=SHARES)
        >>> f"{low:.1f} to {high:.1f}"
        '0.6 to 1.0'
    """
    if min(len(goals) for goals in by_task) < 2:
        return None
    tasks = len(by_task)
    if scale is None:
        means, variances, counts = _moments(by_task, np.zeros(tasks), Scale(0.0, 0.0, 0.0))
    else:
        _, variances, _ = _moments(by_task, np.full(tasks, scale.pseudo_goals / tasks), scale)
        shares = variances / variances.sum()
        means, variances, counts = _moments(by_task, scale.pseudo_goals * shares, scale)
    total = variances.sum()
    if not total > 0:
        return None
    freedom = total**2 / (variances**2 / (counts - 1)).sum()
    return _around(means.mean(), np.sqrt(total) / tasks, freedom, scale)


def interval_over_runs(scores: Sequence[float], *, scale: Scale | None = None) -> Interval | None:
    """95% interval (Student's t) of the mean over runs, clipped to the ends of ``scale``; ``None`` with fewer than two
    runs or if all are equal. ``scores`` has one headline per run, assumed to be normally distributed.

    Example:
        >>> low, high = interval_over_runs([0.16, 0.24, 0.16], scale=SHARES)
        >>> f"{low:.2f} to {high:.2f}"
        '0.07 to 0.30'
    """
    values = np.asarray(scores, dtype=float)
    if len(values) < 2 or not np.ptp(values) > 0:
        return None
    return _around(values.mean(), values.std(ddof=1) / np.sqrt(len(values)), len(values) - 1, scale)


def _moments(by_task: Sequence[Array], pseudo: Array, scale: Scale) -> tuple[Array, Array, Array]:
    """Mean, variance of the mean and number of goals, ``[tasks]`` each, with `pseudo` goals at both ends."""
    counts = np.array([len(goals) for goals in by_task]) + 2 * pseudo
    means = (np.array([goals.sum() for goals in by_task]) + pseudo * (scale.low + scale.high)) / counts
    squares = np.array([np.square(goals - mean).sum() for goals, mean in zip(by_task, means, strict=True)])
    squares += pseudo * (np.square(scale.low - means) + np.square(scale.high - means))
    return means, squares / (counts - 1) / counts, counts


def _around(center: float, error: float, freedom: float, scale: Scale | None) -> Interval:
    reach = float(stdtrit(freedom, 0.975)) * error
    low, high = center - reach, center + reach
    return (float(low), float(high)) if scale is None else (float(max(low, scale.low)), float(min(high, scale.high)))
