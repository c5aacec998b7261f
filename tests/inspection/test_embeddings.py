"""Separation and components against loops and exact answers."""

import numpy as np
import pytest

from htrmrl_torchrl.inspection.embeddings import principal_components, separation

RNG = np.random.default_rng(0)


@pytest.fixture(autouse=True)
def every_test_draws_from_the_beginning():
    RNG.bit_generator.state = np.random.default_rng(0).bit_generator.state


def loop_purity(points, labels):
    same = 0
    for i, point in enumerate(points):
        others = [j for j in range(len(points)) if j != i]
        nearest = min(others, key=lambda j: float(((points[j] - point) ** 2).sum()))
        same += labels[nearest] == labels[i]
    return same / len(points)


def loop_silhouette(points, labels):
    values = []
    for i, point in enumerate(points):
        mean = {}
        for label in set(labels.tolist()):
            others = [j for j in range(len(points)) if labels[j] == label and j != i]
            if others:
                mean[label] = sum(float(((points[j] - point) ** 2).sum()) ** 0.5 for j in others) / len(others)
        own = mean.pop(int(labels[i]), None)
        values.append(0.0 if own is None else (min(mean.values()) - own) / max(own, min(mean.values())))
    return sum(values) / len(values)


@pytest.mark.parametrize("seed", range(3))
def test_purity_and_silhouette_equal_the_loops(seed):
    rng = np.random.default_rng(seed)
    labels = np.array([0, 0, 0, 1, 1, 1, 1, 2, 2, 3])  # one label has a single point
    points = rng.normal(size=(10, 3)) + 1.5 * rng.normal(size=(4, 3))[labels]
    found = separation(points, labels)
    assert found.purity == pytest.approx(loop_purity(points, labels), abs=1e-12)
    assert found.silhouette == pytest.approx(loop_silhouette(points, labels), abs=1e-12)


def test_distant_groups_are_told_apart_and_noise_is_at_chance():
    labels = np.repeat(np.arange(5), 20)
    noise = RNG.normal(size=(100, 8))
    apart = separation(noise + 100 * np.eye(5, 8)[labels], labels)
    assert apart.purity == 1 and apart.silhouette > 0.9 and apart.high < 0.5
    none = separation(noise, labels)
    assert none.chance == pytest.approx(19 / 99)
    assert none.low <= none.purity <= none.high
    assert none.low < none.chance < none.high
    assert abs(none.silhouette) < 0.05


def test_chance_is_the_mean_over_all_dealings():
    """Three points, labels 0, 0, 1: over the three dealings of the labels the purity of fixed points is 1/3."""
    points = np.array([[0.0], [1.0], [3.0]])
    dealings = [np.array(labels) for labels in ([0, 0, 1], [0, 1, 0], [1, 0, 0])]
    purities = [separation(points, labels).purity for labels in dealings]
    assert np.mean(purities) == pytest.approx(separation(points, dealings[0]).chance)


def test_coinciding_points_are_not_told_apart():
    """As from a network that says the same of all tasks; the order in which they were played must not matter."""
    points = np.full((6, 2), 3.0)
    found = separation(points, np.array([0, 0, 0, 1, 1, 1]))
    assert found.purity == pytest.approx(found.chance) and found.silhouette == 0
    cluster = np.concatenate([np.full((6, 2), 3.0) + 1e-7 * np.arange(6)[:, None], [[50.0, 0.0]]])
    found = separation(cluster, np.array([0, 0, 0, 1, 1, 1, 0]))
    assert found.purity == pytest.approx((6 * 2 / 5 + 1 / 2) / 7)


@pytest.mark.parametrize("labels", [[0, 0, 0], [0, 1, 2]])
def test_nothing_to_tell(labels):
    assert separation(RNG.normal(size=(3, 2)), np.array(labels)) is None


def test_components_keep_distances_of_a_plane_and_give_shares_of_the_variance():
    plane = RNG.normal(size=(30, 2)) * [3.0, 1.0]
    basis = np.linalg.qr(RNG.normal(size=(7, 2)))[0]
    coordinates, share = principal_components(plane @ basis.T + 5.0)
    expected = np.linalg.norm(plane[:, None] - plane[None], axis=-1)
    assert np.allclose(np.linalg.norm(coordinates[:, None] - coordinates[None], axis=-1), expected, atol=1e-10)
    assert share.sum() == pytest.approx(1) and share[0] > share[1]
    again, _ = principal_components(plane @ -basis.T)  # mirrored
    assert np.allclose(again, -coordinates, atol=1e-10)


def test_components_of_less_than_a_plane():
    coordinates, share = principal_components(np.array([[1.0], [2.0]]))
    assert coordinates.shape == (2, 2) and share.tolist() == [1, 0]
    coordinates, share = principal_components(np.ones((4, 3)))
    assert not coordinates.any() and not share.any()
