"""Names, official goals, splits that don't overlap, and a cache that can be trusted."""

import itertools
import pickle

import metaworld
import numpy as np
import pytest

from htrmrl_torchrl.envs import benchmarks, check_name, make_env
from htrmrl_torchrl.envs.benchmarks import draw_goals, num_goals, task_names


def official(tasks):
    """name -> [50, d] of a list of metaworld tasks."""
    goals = {}
    for task in tasks:
        data = pickle.loads(task.data)
        assert data["partially_observable"] is True
        goals.setdefault(task.env_name, []).append(data["rand_vec"])
    return {name: np.stack(vectors) for name, vectors in goals.items()}


def drawn(name, split, seed=0):
    return dict(zip(task_names(name, split), draw_goals(name, split, seed), strict=True))


def assert_equal(ours, theirs):
    assert ours.keys() == theirs.keys()
    for name in ours:
        np.testing.assert_array_equal(ours[name], theirs[name])


@pytest.fixture
def cache(tmp_path, monkeypatch):
    """A private cache folder; goals drawn earlier in this process are forgotten."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    benchmarks._goals.cache_clear()
    yield tmp_path
    benchmarks._goals.cache_clear()


def test_ml1_has_the_official_goals(cache):
    benchmark = metaworld.ML1("reach-v3", seed=7)
    assert_equal(drawn("ML1:reach", "train", 7), official(benchmark.train_tasks))
    assert_equal(drawn("ML1:reach-v3", "test", 7), official(benchmark.test_tasks))
    assert_equal(drawn("ML1:reach", "val", 7), official(metaworld.ML1("reach-v3", seed=10_007).train_tasks))


def test_custom_has_the_official_goals_in_the_order_written(cache):
    benchmark = metaworld.CustomML(["reach-v3", "drawer-close-v3"], ["push-v3"], seed=1)
    name = "custom:[reach,drawer-close]/[push]"
    assert task_names(name) == ["drawer-close-v3", "reach-v3"]
    assert_equal(drawn(name, "train", 1), official(benchmark.train_tasks))
    assert_equal(drawn(name, "test", 1), official(benchmark.test_tasks))
    other_order = drawn("custom:[drawer-close,reach]/[push]", "train", 1)
    assert not np.array_equal(other_order["reach-v3"], drawn(name, "train", 1)["reach-v3"])  # the order matters


@pytest.mark.slow
@pytest.mark.parametrize("name", ["ML10", "ML25", "ML45"])
def test_benchmarks_have_the_official_goals(name, cache):
    benchmark = getattr(metaworld, name)(seed=3)
    assert_equal(drawn(name, "train", 3), official(benchmark.train_tasks))
    assert_equal(drawn(name, "test", 3), official(benchmark.test_tasks))


def assert_disjoint(name):
    sets = []
    for split in benchmarks.SPLITS:
        goals = drawn(name, split)
        sets.append({(task, vector.tobytes()) for task, vectors in goals.items() for vector in vectors})
        assert len(sets[-1]) == 50 * len(goals)
    for a, b in itertools.combinations(sets, 2):
        assert not a & b


def test_splits_of_ml1_are_disjoint():
    assert_disjoint("ML1:push")


@pytest.mark.slow
@pytest.mark.parametrize("name", ["ML10", "ML25", "ML45"])
def test_splits_of_benchmarks_are_disjoint(name):
    assert_disjoint(name)


@pytest.mark.parametrize(("name", "size"), [("ML10", 2), ("ML45", 9)])
def test_folds_partition_the_training_tasks_and_hold_no_test_task(name, size):
    whole = list(getattr(metaworld.env_dict, f"{name}_V3")["train"])
    held_out = []
    for fold in range(1, 6):
        train, test = (task_names(f"{name}:fold={fold}", split) for split in ("train", "test"))
        assert train == task_names(f"{name}:fold={fold}", "val")
        assert test == sorted(task for index, task in enumerate(whole) if index % 5 == fold - 1) and len(test) == size
        assert sorted([*train, *test]) == sorted(whole)
        held_out += test
    assert sorted(held_out) == sorted(whole)
    assert not {*held_out} & {*task_names(name, "test")}


def test_a_folds_tasks_have_the_goals_of_the_whole_benchmark(monkeypatch):
    """Goals are stood in for by what decides them: tasks drawn together, their order, and the seed."""

    def goals(names, seed):
        return [np.full((50, 1), [hash((names, seed, name))]) for name in names]

    monkeypatch.setattr(benchmarks, "_goals", goals)
    for fold in range(1, 6):
        name = f"ML10:fold={fold}"
        for split, whole in (("train", "train"), ("val", "val"), ("test", "train")):
            expected = drawn("ML10", whole, 3)
            assert_equal(drawn(name, split, 3), {task: expected[task] for task in task_names(name, split)})
    alone = f"custom:[{','.join(task_names('ML10:fold=1'))}]/[]"  # the control: drawn without the held-out ones
    assert not np.array_equal(drawn(alone, "train", 3)["push-v3"], drawn("ML10", "train", 3)["push-v3"])


WRONG_FOLDS = [
    "ML10:fold=6", "ML10:fold=0", "ML10:fold=", "ML10:fold", "ML10:fold=01", "ML10:fold=x", "ML10:fold=1,2",
    "ML1:fold=1", "ML25:fold=1", "toy:fold=1",
]  # fmt: skip


@pytest.mark.parametrize("name", WRONG_FOLDS)
def test_a_wrong_fold_is_refused_with_how_it_is_written(name):
    for refuses in (task_names, check_name):
        with pytest.raises(ValueError) as error:
            refuses(name)
        said = f"Received {name!r}; a fold is written ML10:fold=<n> or ML45:fold=<n>, with n from 1 to 5."
        assert str(error.value) == said


def test_a_fold_is_played_and_its_held_out_tasks_are_other_simulators():
    """The simulators that a lane builds are of the fold's own tasks, and of no other."""
    for split, tasks in (("train", 8), ("val", 8), ("test", 2)):
        env = make_env("ML10:fold=3", split=split, num_envs=tasks, horizon=2)
        assert sorted(env.reset()["task"].flatten().tolist()) == list(range(tasks))
        assert env._lanes.task_names == task_names("ML10:fold=3", split)
        env.close()


@pytest.mark.parametrize(("name", "train", "test"), [("ML10", 10, 5), ("ML25", 25, 5), ("ML45", 45, 5)])
def test_task_names_are_sorted_and_metaworlds(name, train, test):
    for split, number in (("train", train), ("val", train), ("test", test)):
        names = task_names(name, split)
        assert names == sorted(names) and len(names) == number
    assert set(task_names(name)) == set(getattr(metaworld.env_dict, f"{name}_V3")["train"])
    shared = {"basketball-v3"} if name == "ML25" else set()  # Meta-World 3.1.1 lists it twice
    assert set(task_names(name, "train")) & set(task_names(name, "test")) == shared


def test_every_metaworld_task_is_an_ml1():
    known = list(metaworld.env_dict.ALL_V3_ENVIRONMENTS)
    assert len(known) == 50
    for task in known:
        short = task.removesuffix("-v3")
        assert task_names(f"ML1:{task}") == task_names(f"ML1:{short}", "test") == [task]
    assert num_goals("ML1:reach") == num_goals("ML45") == 50 and num_goals("toy") == 4


@pytest.mark.parametrize(
    ("name", "hint"),
    [
        ("ML11", "ML10"),
        ("toyy", "toy"),
        ("ML1:reech", "reach-v3"),
        ("ML1:", "nearest known"),
        ("custom:[reach]", "custom:"),
        ("custom:[reach]/[pusch]", "push-v3"),
        ("custom:[]/[push]", "at least one"),
        ("custom:[reach]/[reach]", "more than once"),
        ("custom:[reach,reach-v3]/[push]", "more than once"),
    ],
)
def test_unknown_names_answer_with_the_nearest_known(name, hint):
    with pytest.raises(ValueError) as error:
        task_names(name)
    assert hint in str(error.value)


def test_splits_and_seeds_are_checked():
    with pytest.raises(ValueError, match=r"'tests'.*nearest: test"):
        task_names("ML10", "tests")
    with pytest.raises(ValueError, match="no test tasks"):
        task_names("custom:[reach]/[]", "test")
    for seed in (-1, 2**32 - 1, 0.5):
        with pytest.raises(ValueError, match="benchmark_seed"):
            draw_goals("ML1:reach", "train", seed)


# --- cache -----------------------------------------------------------------------------------------------------------


def forbid_drawing(monkeypatch):
    def refuse(*_):
        raise AssertionError("drawn although cached")

    monkeypatch.setattr(benchmarks, "official_goals", refuse)


def test_goals_are_drawn_once_and_come_from_disk_afterwards(cache, monkeypatch):
    first = draw_goals("ML1:reach", "train", 0)
    benchmarks._goals.cache_clear()
    forbid_drawing(monkeypatch)
    np.testing.assert_array_equal(draw_goals("ML1:reach", "train", 0), first)
    (file,) = (cache / "htrmrl_torchrl").iterdir()  # and no temporary file is left
    assert metaworld.__name__ in file.name and "mujoco" in file.name and "seed0" in file.name
    with pytest.raises(AssertionError, match="drawn although cached"):  # the control: another seed is not cached
        draw_goals("ML1:reach", "train", 1)


@pytest.mark.parametrize("damage", ["truncated", "empty", "text", "short", "nan", "other task"])
def test_a_damaged_cache_is_drawn_anew(damage, cache):
    first = draw_goals("ML1:reach", "train", 0)
    (file,) = (cache / "htrmrl_torchrl").iterdir()
    contents = {
        "truncated": lambda: file.write_bytes(file.read_bytes()[:100]),
        "empty": lambda: file.write_bytes(b""),
        "text": lambda: file.write_text("no archive"),
        "short": lambda: np.savez(file, **{"reach-v3": first[0][:49]}),
        "nan": lambda: np.savez(file, **{"reach-v3": first[0] * np.nan}),
        "other task": lambda: np.savez(file, **{"push-v3": first[0]}),
    }
    contents[damage]()
    benchmarks._goals.cache_clear()
    np.testing.assert_array_equal(draw_goals("ML1:reach", "train", 0), first)
    assert benchmarks._read_cache(file, ["reach-v3"]) is not None  # and repaired


def test_a_cache_that_cannot_be_written_is_ignored(cache, monkeypatch):
    blocked = cache / "a file"
    blocked.touch()
    monkeypatch.setenv("XDG_CACHE_HOME", str(blocked))
    assert draw_goals("ML1:reach", "train", 0)[0].shape == (50, 6)


def test_drawing_leaves_numpys_global_generator_alone(cache):
    np.random.seed(5)
    expected = np.random.random()
    np.random.seed(5)
    draw_goals("ML1:reach", "train", 0)
    assert np.random.random() == expected


def test_what_is_returned_can_be_written_into(cache):
    draw_goals("ML1:reach", "train", 0)[0][:] = 0
    assert draw_goals("ML1:reach", "train", 0)[0].any()
