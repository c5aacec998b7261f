"""Separation of tasks: principal components, and purity and silhouette with their values by chance."""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[np.float64]
Labels = npt.NDArray[np.int64]
SHUFFLES = 500
# Vectors closer than this share of the largest distance are equal up to rounding.
_SAME = 1e-5


def principal_components(points: Array, *, count: int = 2) -> tuple[Array, Array]:
    """Coordinates ``[n, count]`` of points ``[n, D]`` on their principal components, and each one's share of variance.
    The sign of each component is fixed: its largest coefficient is positive.

    Example:
        >>> coordinates, share = principal_components(np.array([[0.0, 1.0], [3.0, 1.0], [6.0, 1.0]]), count=1)
        >>> coordinates.flatten().tolist(), share.tolist()
        ([-3.0, 0.0, 3.0], [1.0])
    """
    centred = points - points.mean(0)
    left, singular, axes = np.linalg.svd(centred, full_matrices=False)
    largest = axes[np.arange(len(axes)), np.abs(axes).argmax(1)]
    coordinates = left * singular * np.where(largest < 0, -1.0, 1.0)
    missing = max(0, count - coordinates.shape[1])
    coordinates = np.pad(coordinates, ((0, 0), (0, missing)))[:, :count]
    variance = np.pad(singular**2, (0, missing))
    return coordinates, variance[:count] / max(variance.sum(), 1e-30)


@dataclass(frozen=True, kw_only=True)
class Separation:
    """How well labels are separated by distance.

    Args:
        purity: share of points whose nearest other point has the same label; ties count by their share.
        chance: the exact expected purity of randomly permuted labels.
        low, high: 95% range of purity over random permutations.
        silhouette: mean silhouette (Rousseeuw 1987): 1 for tight, distant groups, 0 for none, below 0 for mixed ones.
    """

    purity: float
    chance: float
    low: float
    high: float
    silhouette: float


def separation(points: Array, labels: Labels, *, seed: int = 0) -> Separation | None:
    """Purity and silhouette of points ``[n, D]`` with labels ``[n]``, by Euclidean distance. ``None`` with fewer than
    two labels, or if no two points share one.

    Example:
        >>> points = np.array([[0.0], [0.1], [5.0], [5.1]])
        >>> found = separation(points, np.array([0, 0, 1, 1]))
        >>> found.purity, round(found.chance, 3), round(found.silhouette, 2)
        (1.0, 0.333, 0.98)
    """
    counts = np.unique(labels, return_counts=True)[1]
    if len(counts) < 2 or counts.max() < 2:
        return None
    distance = np.linalg.norm(points[:, None] - points[None], axis=-1)
    near = _nearest(distance)
    rng = np.random.default_rng(seed)
    shuffled = [_purity(near, rng.permutation(labels)) for _ in range(SHUFFLES)]
    low, high = np.quantile(shuffled, [0.025, 0.975])
    return Separation(
        purity=_purity(near, labels),
        chance=float((counts * (counts - 1)).sum() / (len(labels) * (len(labels) - 1))),
        low=float(low),
        high=float(high),
        silhouette=_silhouette(distance, labels),
    )


def _nearest(distance: Array) -> Array:
    """``[n, n]``: for each point equal weights, summing to one, on its nearest other points, ties included."""
    others = distance + np.diag(np.full(len(distance), np.inf))
    tied = others <= others.min(1, keepdims=True) + _SAME * distance.max()
    return tied / tied.sum(1, keepdims=True)


def _purity(near: Array, labels: Labels) -> float:
    return float((near * (labels[:, None] == labels[None])).sum(1).mean())


def _silhouette(distance: Array, labels: Labels) -> float:
    groups = np.stack([labels == label for label in np.unique(labels)])  # [g, n]
    total, size = distance @ groups.T, groups.sum(1)  # [n, g], [g]
    own = groups.argmax(0)
    rows = np.arange(len(labels))
    within = total[rows, own] / np.maximum(size[own] - 1, 1)
    mean = total / size
    mean[rows, own] = np.inf
    nearest = mean.min(1)
    scale = np.maximum(within, nearest)
    values = np.divide(nearest - within, scale, out=np.zeros_like(scale), where=scale > _SAME * distance.max())
    return float(np.where(size[own] > 1, values, 0.0).mean())  # a single point counts 0, as in Rousseeuw
