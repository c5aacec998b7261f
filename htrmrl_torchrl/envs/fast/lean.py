"""Faster versions of the functions that Meta-World's rewards and observations call most, with identical results.

The originals serve arrays of any shape; a step calls them with one or three numbers. Each function here handles that
case with the same floating-point operations in the same order and passes the rest on to the original. Types are kept
too: a Python float times a float32 action is a float32, but a ``numpy.float64`` times one is not.
"""

import math
from types import SimpleNamespace
from typing import Any

import numpy as np
import numpy.typing as npt
from metaworld.utils import reward_utils as official_rewards

_FLOAT64 = np.dtype(np.float64)
_ADJACENT = (8,)  # strides of a vector of float64 without gaps


class _LeanNumpy:
    """``numpy`` with the functions below replaced."""

    def __init__(self) -> None:
        self.linalg = SimpleNamespace(norm=_norm)

    def __getattr__(self, name: str) -> Any:
        value = getattr(np, name)
        setattr(self, name, value)  # found at once the next time
        return value

    @staticmethod
    def abs(x: Any) -> Any:
        return abs(x) if type(x) is np.float64 else np.abs(x)

    @staticmethod
    def copy(x: Any) -> Any:
        return x.copy() if type(x) is np.ndarray else np.copy(x)

    @staticmethod
    def clip(x: Any, low: Any, high: Any) -> Any:
        if type(x) in (float, np.float64, np.float32) and low <= x <= high:
            return x if type(x) is not float else np.float64(x)
        return np.clip(x, low, high)

    @staticmethod
    def hstack(parts: Any) -> Any:
        if all(type(part) is np.ndarray and part.ndim == 1 for part in parts):
            return np.concatenate(parts)
        if all(type(part) is np.float64 for part in parts):
            return np.array(parts)
        return np.hstack(parts)


def _norm(x: Any, ord: int | None = None) -> Any:
    """``numpy.linalg.norm``, which for a vector is the square root of its dot product with itself."""
    if type(x) is np.ndarray and x.dtype is _FLOAT64 and x.strides == _ADJACENT and (ord is None or ord == 2):
        return np.float64(math.sqrt(x.dot(x)))
    return np.linalg.norm(x, ord=ord)


class _Rotation:
    """scipy's ``Rotation.from_matrix(m).as_quat()``, without its check that m is a rotation."""

    def __init__(self, matrix: npt.NDArray[np.float64]) -> None:
        self._matrix = matrix

    from_matrix = classmethod(lambda cls, matrix: cls(matrix))

    def as_quat(self) -> npt.NDArray[np.float64]:
        """Scalar last: scipy's branch for the largest of diagonal and trace, then its normalisation."""
        (m00, m01, m02), (m10, m11, m12), (m20, m21, m22) = self._matrix.tolist()
        trace = m00 + m11 + m22
        largest = max(m00, m11, m22, trace)
        if largest == m00:  # the first of equals wins, as in scipy
            x, y, z, w = 1 - trace + 2 * m00, m10 + m01, m20 + m02, m21 - m12
        elif largest == m11:
            x, y, z, w = m10 + m01, 1 - trace + 2 * m11, m21 + m12, m02 - m20
        elif largest == m22:
            x, y, z, w = m20 + m02, m21 + m12, 1 - trace + 2 * m22, m10 - m01
        else:
            x, y, z, w = m21 - m12, m02 - m20, m10 - m01, 1 + trace
        norm = math.sqrt(x * x + y * y + z * z + w * w)
        return np.array((x / norm, y / norm, z / norm, w / norm))


def _tolerance(
    x: Any,
    bounds: Any = (0.0, 0.0),
    margin: Any = 0.0,
    sigmoid: Any = "gaussian",
    value_at_margin: float = 0.1,
) -> Any:
    """``reward_utils.tolerance`` for one number and the two sigmoids of Meta-World's rewards."""
    plain = (type(x) is float or type(x) is np.float64) and sigmoid in _SCALES and value_at_margin == 0.1
    if not plain or not margin > 0:
        return official_rewards.tolerance(x, bounds, margin, sigmoid, value_at_margin)
    lower, upper = bounds
    if lower > upper:
        raise ValueError("Lower bound must be <= upper bound.")
    x = float(x)
    if lower <= x <= upper:
        return 1.0
    scaled = float(lower - x if x < lower else x - upper) / float(margin) * _SCALES[sigmoid]
    if sigmoid == "long_tail":
        return 1 / (scaled**2 + 1)
    return np.exp(-0.5 * scaled**2).item()


# Scale of the distance in margins; all of Meta-World's rewards have sigmoids that are 0.1 at one margin.
_SCALES = {"long_tail": np.sqrt(1 / 0.1 - 1).item(), "gaussian": np.sqrt(-2 * np.log(0.1)).item()}

lean_numpy = _LeanNumpy()
lean_rewards = SimpleNamespace(**{**vars(official_rewards), "tolerance": _tolerance})
LeanRotation = _Rotation
lean_tolerance = _tolerance
