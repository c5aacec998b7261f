"""95% bootstrap intervals, all by ``scipy.stats.bootstrap`` with the percentile method.

Percentiles, not BCa: the latter is undefined where all goals of a task have the same outcome, which is common.
"""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
from scipy.stats import bootstrap

Interval = tuple[float, float]
Array = npt.NDArray[np.float64]
RESAMPLES = 9_999


def bootstrap_goals(by_task: Sequence[Array]) -> Interval | None:
    """Of the mean over tasks of the mean over goals, goals drawn anew within each task.

    Args:
        by_task: for each task one number per goal. scipy resamples each of several samples on its own, which is what
            "stratified by task" means.

    Returns:
        low and high, or ``None`` where a task has fewer than two goals.

    Example:
        >>> bootstrap_goals([np.array([0.0, 1.0, 1.0, 0.0]), np.array([1.0, 1.0])])
        (0.5, 1.0)
    """
    if min(len(goals) for goals in by_task) < 2:
        return None
    return _interval(by_task)


def bootstrap_runs(scores: Sequence[float]) -> Interval | None:
    """Of the mean over runs of their headlines, whole runs drawn anew; ``None`` for fewer than two runs."""
    return _interval([np.asarray(scores)]) if len(scores) > 1 else None


def _interval(samples: Sequence[Array]) -> Interval:
    def mean_of_means(*resampled: Array, axis: int) -> Array:
        return np.mean([np.mean(sample, axis=axis) for sample in resampled], axis=0)

    result = bootstrap(
        samples,
        mean_of_means,
        n_resamples=RESAMPLES,
        method="percentile",
        vectorized=True,
        rng=np.random.default_rng(0),  # the same report gives the same interval
    )
    return float(result.confidence_interval.low), float(result.confidence_interval.high)
