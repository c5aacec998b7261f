"""95% intervals that hold with few goals: of the mean over tasks of the mean over goals, and of the mean over runs.

Tasks are fixed, a task's goals are a random sample of those that might have been drawn. So each task has a variance of
its own, and the interval is Student's t with the degrees of freedom of Welch and Satterthwaite.

Where success is near 0 or 1, all goals drawn may be equal although those not drawn differ. A few *pseudo-goals* at both
ends of the scale account for that (Agresti and Coull 1998 for one task, Agresti and Caffo 2000 for two, Price and
Bonett 2004 for any number): two at 0 and two at 1 in all, in proportion to each task's part in the variance.
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
    """The ends between which a goal's value lies, and how many pseudo-goals stand at each end, over all tasks."""

    low: float
    high: float
    pseudo_goals: float


SHARES = Scale(0.0, 1.0, pseudo_goals=2.0)  # success
DIFFERENCES = Scale(-1.0, 1.0, pseudo_goals=1.0)  # of success, paired by goal (Bonett and Price 2012)


def interval_over_goals(by_task: Sequence[Array], *, scale: Scale | None) -> Interval | None:
    """95% interval, over other goals of the same tasks, of the mean over tasks of the mean over goals.

    Args:
        by_task: for each task one number per goal.
        scale: `SHARES` or `DIFFERENCES`; ``None`` for values without ends, as returns: no pseudo-goals then.

    Returns:
        low and high, or ``None`` where a task has fewer than two goals. Without a scale also ``None`` where the goals
        of each task are equal. An interval never has width zero.

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
    """95% interval of the mean over runs (Student's t), ``None`` for fewer than two runs and where all are equal.

    Args:
        scores: a headline for each run, assumed to be normally distributed.
        scale: whose ends cut the interval off, if given.

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
    """``[tasks]`` each: mean, the mean's variance, and number of goals, with `pseudo` goals at both ends."""
    counts = np.array([len(goals) for goals in by_task]) + 2 * pseudo
    means = (np.array([goals.sum() for goals in by_task]) + pseudo * (scale.low + scale.high)) / counts
    squares = np.array([np.square(goals - mean).sum() for goals, mean in zip(by_task, means, strict=True)])
    squares += pseudo * (np.square(scale.low - means) + np.square(scale.high - means))
    return means, squares / (counts - 1) / counts, counts


def _around(center: float, error: float, freedom: float, scale: Scale | None) -> Interval:
    reach = float(stdtrit(freedom, 0.975)) * error
    low, high = center - reach, center + reach
    return (float(low), float(high)) if scale is None else (float(max(low, scale.low)), float(min(high, scale.high)))
