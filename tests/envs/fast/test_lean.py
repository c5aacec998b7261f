"""Each stand-in returns the original's bits and the original's type."""

import mujoco
import numpy as np
import pytest
from metaworld.utils import reward_utils
from scipy.spatial.transform import Rotation

from htrmrl_torchrl.envs.fast.lean import LeanRotation, lean_numpy, lean_rewards


def assert_same(ours, theirs):
    assert type(ours) is type(theirs)
    np.testing.assert_array_equal(ours, theirs)
    assert getattr(ours, "dtype", None) == getattr(theirs, "dtype", None)


def vectors():
    generator = np.random.default_rng(0)
    for _ in range(2000):
        yield generator.normal(size=generator.integers(1, 7)) * generator.choice([1e-3, 1.0, 1e3])


def test_norm():
    for vector in vectors():
        for x in (vector, vector[::2], vector.astype(np.float32), vector[None]):
            assert_same(lean_numpy.linalg.norm(x), np.linalg.norm(x))
        assert_same(lean_numpy.linalg.norm(vector, ord=2), np.linalg.norm(vector, ord=2))
        assert_same(lean_numpy.linalg.norm(vector, ord=1), np.linalg.norm(vector, ord=1))
    assert_same(lean_numpy.linalg.norm([3, 4]), np.linalg.norm([3, 4]))


@pytest.mark.parametrize("sigmoid", ["long_tail", "gaussian", "hyperbolic", "linear"])
def test_tolerance(sigmoid):
    generator = np.random.default_rng(1)
    for _ in range(3000):
        x, margin = generator.normal() * generator.choice([0.01, 1.0, 10.0]), abs(generator.normal()) * 0.3
        bounds = tuple(sorted(generator.normal(size=2) * 0.1))
        for number in (x, np.float64(x), np.float32(x), np.array([x, x])):
            for wide in (margin, np.float64(margin), 0.0):
                arguments = {"bounds": bounds, "margin": wide, "sigmoid": sigmoid}
                assert_same(lean_rewards.tolerance(number, **arguments), reward_utils.tolerance(number, **arguments))


@pytest.mark.parametrize("value_at_margin", [0.1, 0.3])
def test_tolerance_takes_its_arguments_by_position_too(value_at_margin):
    arguments = (0.7, (0.0, 0.2), 0.4, "long_tail", value_at_margin)
    assert_same(lean_rewards.tolerance(*arguments), reward_utils.tolerance(*arguments))


@pytest.mark.parametrize("arguments", [{"margin": -1.0}, {"bounds": (1.0, 0.0), "margin": 1.0}, {"sigmoid": "no"}])
def test_tolerance_refuses_what_the_original_refuses(arguments):
    for tolerance in (reward_utils.tolerance, lean_rewards.tolerance):
        with pytest.raises(ValueError):
            tolerance(2.0, **{"margin": 1.0, **arguments})


def test_rotations_become_the_same_quaternions():
    """Small angles too, half turns about each axis, and ties between the branches."""
    generator, matrix = np.random.default_rng(2), np.empty(9)
    quaternions = [*np.eye(4), *np.full((1, 4), 0.5), *generator.normal(size=(2000, 4))]
    quaternions += list(generator.normal(size=(2000, 4)) * [1.0, 1e-4, 1e-4, 1e-3])
    quaternions += list(generator.normal(size=(2000, 4)) * [1e-3, 1.0, 1e-3, 1e-3])
    for quaternion in quaternions:
        mujoco.mju_quat2Mat(matrix, quaternion / np.linalg.norm(quaternion))
        square = matrix.reshape(3, 3)
        assert_same(LeanRotation.from_matrix(square).as_quat(), Rotation.from_matrix(square).as_quat())


@pytest.mark.parametrize("x", [-0.5, 3.0, np.float64(0.3), np.float32(0.3), np.float32(-9), 1, np.array([0.5, -4.0])])
def test_clip_and_abs(x):
    assert_same(lean_numpy.clip(x, -1, 1), np.clip(x, -1, 1))
    assert_same(lean_numpy.clip(x, 0.0, 1.0), np.clip(x, 0.0, 1.0))
    assert_same(lean_numpy.abs(x), np.abs(x))


def test_stacking_and_copying():
    a, b = np.arange(3.0), np.arange(4.0) + 0.5
    for parts in ((a, b), [a, b, a], (a[0], b[1]), (a, 1.0), (a[None], b[None]), (1, 2)):
        assert_same(lean_numpy.hstack(parts), np.hstack(parts))
    for x in (a, [1.0, 2.0], 3.0):
        assert_same(lean_numpy.copy(x), np.copy(x))
    assert not np.shares_memory(lean_numpy.copy(a), a)


def test_everything_else_is_numpy():
    assert lean_numpy.log is np.log and lean_numpy.pi == np.pi and lean_numpy.ndarray is np.ndarray
    assert lean_rewards.hamacher_product is reward_utils.hamacher_product
    with pytest.raises(AttributeError):
        lean_numpy.no_such_function  # noqa: B018
