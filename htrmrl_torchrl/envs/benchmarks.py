"""Benchmark names, and the tasks and goals they stand for.

============================  ==================================================================================
name                          tasks
============================  ==================================================================================
``ML1:<task>``                one of the 50 Meta-World tasks; test = the same task with other goals
``ML10``, ``ML25``, ``ML45``  Meta-World's splits: 10, 25 or 45 training tasks and 5 test tasks
``ML10:fold=1`` to ``=5``     eight of ML10's training tasks; test = the other two. ML10's test tasks are never built
``ML45:fold=1`` to ``=5``     36 of ML45's training tasks; test = the other nine
``custom:[a,b]/[c]``          training tasks a and b, test task c (``metaworld.CustomML``)
``HalfCheetah-Dir``           one task with 2 goals, forward and backward, the same in every split
``HalfCheetah-Vel``           one task, 50 target velocities in each split
``Ant-Dir``                   one task, 50 directions in the plane in each split
``toy``                       one task, ``hidden-goal``, with the same 4 goals in every split
``package.module:name``       a `Benchmark` of your own, see ``lanes.py``
============================  ==================================================================================

In Meta-World the 50 goals per task are those of the official classes (``metaworld.ML10(seed=benchmark_seed)`` etc.).
Split ``val`` has the training tasks with the goals of seed ``benchmark_seed + 10_000`` (``metaworld.ML1`` already uses
``seed + 1`` for its test goals). Choose models on ``val``, never on ``test``. No (task, goal) is in two splits. In
ML25, Meta-World 3.1.1 has basketball-v3 among both the training and the test tasks, with other goals.

Choose what helps on unknown tasks on folds, never on a benchmark's test tasks. Fold n holds out every fifth training
task in Meta-World's order, beginning with the n-th, so that the five folds together hold out each training task once.
Every task has the goals that it has in the whole benchmark.
"""

import difflib
import hashlib
import os
import pickle
import re
import tempfile
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache, partial
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
import numpy.typing as npt

from htrmrl_torchrl.dotted import is_dotted_path, resolve
from htrmrl_torchrl.envs import locomotion, metaworld, toy
from htrmrl_torchrl.envs.lanes import Benchmark, LaneKind

Split = Literal["train", "val", "test"]
SPLITS: tuple[str, ...] = get_args(Split)
VAL_SEED_OFFSET = 10_000
GOALS_PER_TASK = 50  # metaworld._N_GOALS
FIXED_NAMES = ("ML10", "ML25", "ML45")
FOLDED_NAMES = ("ML10", "ML45")  # ML25's training tasks hold one of its test tasks
FOLDS = 5
OWN = {benchmark.name: benchmark for benchmark in (toy.BENCHMARK, *locomotion.BENCHMARKS)}  # beside Meta-World's
GoalList = list[npt.NDArray[np.float64]]  # per task [50, d]; d depends on the task


@dataclass(frozen=True)
class MetaWorldBenchmark:
    """Task names of both splits in Meta-World's order, which determines the goals of a seed.

    ``drawn`` are the tasks whose goals are drawn together; by default those of the split.
    """

    name: str
    train: tuple[str, ...]
    test: tuple[str, ...]
    test_seed_offset: int = 0
    drawn: tuple[str, ...] | None = None

    def drawn_with(self, split: str) -> tuple[str, ...]:
        """The tasks whose goals are drawn together with this split's."""
        return self.drawn or (self.test if split == "test" else self.train)

    def seed(self, split: str, benchmark_seed: int) -> int:
        """The seed with which Meta-World's constructor draws this split's goals."""
        return benchmark_seed + {"train": 0, "val": VAL_SEED_OFFSET, "test": self.test_seed_offset}[split]


def is_factory(name: str) -> bool:
    """Whether a name is the path of an environment factory, whose tasks and goals are unknown. It is imported."""
    return is_dotted_path(name) and not isinstance(resolve(name), Benchmark)


def is_metaworld(name: str) -> bool:
    """Whether a name is one of Meta-World's benchmarks. Imports nothing."""
    return name not in OWN and not is_dotted_path(name)


def find_benchmark(name: str, *, backend: metaworld.Backend = "fast") -> Benchmark:
    """The benchmark of a name; a dotted path is imported. ValueError for a factory or an unknown name or task.

    Example:
        >>> find_benchmark("HalfCheetah-Vel").default_horizon
        200
    """
    if name in OWN:
        return OWN[name]
    if is_dotted_path(name):
        if is_factory(name):
            raise ValueError(
                f"{name!r} is a factory, whose tasks and goals are unknown: name a Benchmark of your own (see "
                "htrmrl_torchrl.envs.lanes), or a built-in one."
            )
        benchmark: Benchmark = resolve(name)
        return benchmark
    official = parse_name(name)
    return Benchmark(
        name=official.name,
        train=tuple(sorted(official.train)),
        test=tuple(sorted(official.test)),
        num_goals=GOALS_PER_TASK,
        lanes=partial(_metaworld_lanes, name, backend),
        default_horizon=metaworld.MAX_HORIZON,
        max_horizon=metaworld.MAX_HORIZON,
        layout=metaworld.LAYOUT,
    )


def _metaworld_lanes(name: str, backend: str, split: str, horizon: int, benchmark_seed: int) -> LaneKind:
    goals = draw_goals(name, split, benchmark_seed)
    builder = partial(metaworld.build_lanes, task_names(name, split), goals, backend)
    kind = metaworld.MetaWorldLanes
    return LaneKind(builder, kind.obs_dim, kind.action_low, kind.action_high)


def parse_name(name: str) -> MetaWorldBenchmark:
    """The Meta-World benchmark of a name; ValueError, with the nearest known, for an unknown or repeated task.

    Example:
        >>> parse_name("custom:[reach,push]/[sweep]").train
        ('reach-v3', 'push-v3')
    """
    if name in FIXED_NAMES:
        split_classes = getattr(_env_dict(), f"{name}_V3")
        return MetaWorldBenchmark(name, tuple(split_classes["train"]), tuple(split_classes["test"]))
    if ":fold" in name:
        return _parse_fold(name)
    if name.startswith("ML1:"):
        task = _task_name(name.removeprefix("ML1:"), name)
        return MetaWorldBenchmark(f"ML1:{task}", (task,), (task,), test_seed_offset=1)
    if name.startswith("custom:"):
        return _parse_custom(name)
    known = [*OWN, *FIXED_NAMES, "ML1:<task>", "ML10:fold=<n>", "ML45:fold=<n>", "custom:[a,b]/[c]"]
    nearest = difflib.get_close_matches(name, known, n=3, cutoff=0.3) or known
    raise ValueError(
        f"Unknown environment {name!r}; nearest known: {', '.join(nearest)}. Known are {', '.join(known)} and the "
        "dotted path of an environment of your own (package.module:name)."
    )


def _parse_fold(name: str) -> MetaWorldBenchmark:
    benchmark, _, fold = name.partition(":fold=")
    if benchmark not in FOLDED_NAMES or fold not in map(str, range(1, FOLDS + 1)):
        folded = " or ".join(f"{known}:fold=<n>" for known in FOLDED_NAMES)
        raise ValueError(f"Received {name!r}; a fold is written {folded}, with n from 1 to {FOLDS}.")
    whole = parse_name(benchmark)
    held_out = whole.train[int(fold) - 1 :: FOLDS]
    rest = tuple(task for task in whole.train if task not in held_out)
    return MetaWorldBenchmark(name, rest, held_out, drawn=whole.train)


def _parse_custom(name: str) -> MetaWorldBenchmark:
    match = re.fullmatch(r"custom:\[([^\]]*)\]/\[([^\]]*)\]", name.replace(" ", ""))
    if match is None:
        raise ValueError(f"Received {name!r}; a custom benchmark is written custom:[train tasks]/[test tasks].")
    train, test = (tuple(_task_name(task, name) for task in part.split(",") if task) for part in match.groups())
    if not train:
        raise ValueError(f"{name!r} has no training task; name at least one.")
    repeated = sorted({task for task in train + test if (train + test).count(task) > 1})
    if repeated:
        raise ValueError(f"{name!r} names {', '.join(repeated)} more than once; training and test tasks must differ.")
    canonical = f"custom:[{','.join(train)}]/[{','.join(test)}]"
    return MetaWorldBenchmark(canonical, train, test)


def _task_name(task: str, name: str) -> str:
    known = list(_env_dict().ALL_V3_ENVIRONMENTS)
    full = task if task.endswith("-v3") else f"{task}-v3"
    if full not in known:
        nearest = difflib.get_close_matches(full, known, n=3, cutoff=0.0)
        raise ValueError(f"Unknown Meta-World task {task!r} in {name!r}; nearest known: {', '.join(nearest)}.")
    return full


def check_split(split: str) -> None:
    """Raise ValueError unless ``split`` is ``train``, ``val`` or ``test``."""
    if split not in SPLITS:
        nearest = difflib.get_close_matches(str(split), SPLITS, n=1, cutoff=0.3)
        hint = f" (nearest: {nearest[0]})" if nearest else ""
        raise ValueError(f"Unknown split {split!r}; allowed are {', '.join(SPLITS)}{hint}.")


def task_names(name: str, split: str = "train") -> list[str]:
    """Sorted task names of a split: entry ``i`` has the environment's ``task`` index ``i``. Builds nothing.

    Raises ValueError if the name or split is unknown, the name is that of a factory, or the split has no tasks.

    Example:
        >>> task_names("ML10", "test")
        ['door-close-v3', 'drawer-open-v3', 'lever-pull-v3', 'shelf-place-v3', 'sweep-into-v3']
        >>> task_names("ML10:fold=1", "test")
        ['button-press-topdown-v3', 'reach-v3']
    """
    check_split(split)
    names = list(find_benchmark(name).tasks(split))
    if not names:
        raise ValueError(f"{name!r} has no {split} tasks; name some or use another split.")
    return names


def num_goals(name: str) -> int:
    """Goals per task: 50 in Meta-World, 4 in the toy. Builds nothing."""
    return find_benchmark(name).num_goals


def draw_goals(name: str, split: str, benchmark_seed: int) -> GoalList:
    """The official goals ("rand_vec") of a Meta-World split: one ``[50, d]`` array per task of :func:`task_names`.

    Drawing takes about 0.7 s per task, because Meta-World resets a simulator for each. Later calls read a cache in this
    process or in ``$XDG_CACHE_HOME/htrmrl_torchrl`` (default ``~/.cache``); a cache that cannot be used is ignored.
    Raises ValueError as :func:`task_names`, and if the seed is negative or too large for numpy.
    """
    names = task_names(name, split)
    benchmark = parse_name(name)
    check_benchmark_seed(benchmark_seed)
    drawn_names = benchmark.drawn_with(split)
    goals = _goals(drawn_names, benchmark.seed(split, benchmark_seed))
    return [goals[drawn_names.index(task)].copy() for task in names]


def check_benchmark_seed(benchmark_seed: int) -> None:
    """Raise ValueError unless numpy accepts the seeds of all splits."""
    largest = 2**32 - 1 - VAL_SEED_OFFSET
    if not isinstance(benchmark_seed, int | np.integer) or not 0 <= benchmark_seed <= largest:
        raise ValueError(f"benchmark_seed must be a whole number from 0 to {largest}, received {benchmark_seed!r}.")


@cache
def _goals(names: tuple[str, ...], seed: int) -> GoalList:
    path = cache_path(names, seed)
    goals = _read_cache(path, names)
    if goals is None:
        goals = official_goals(names, seed)
        _write_cache(path, names, goals)
    return goals


def official_goals(names: Sequence[str], seed: int) -> GoalList:
    """Goals that Meta-World's constructors draw for one split, from its classes and the seed alone."""
    import metaworld

    env_dict = _env_dict()
    classes = env_dict._get_env_dict(list(names))
    arguments = env_dict._get_args_kwargs(env_dict.ALL_V3_ENVIRONMENTS, classes)
    tasks = metaworld._make_tasks(classes, arguments, metaworld._ML_OVERRIDE, seed=seed)
    goals: dict[str, list[npt.NDArray[np.float64]]] = {name: [] for name in names}
    for task in tasks:
        goals[task.env_name].append(pickle.loads(task.data)["rand_vec"])
    return [np.stack(goals[name]) for name in names]


def official_arguments(name: str, split: str, benchmark_seed: int) -> dict[str, Any]:
    """Arguments of ``metaworld.make_ml_envs`` for a split; ValueError for our own and custom benchmarks and folds."""
    if not is_metaworld(name) or name.startswith("custom:") or ":fold" in name:
        raise ValueError(f"{name!r} is none of Meta-World's own benchmarks; they are ML1:<task>, ML10, ML25 and ML45.")
    benchmark = parse_name(name)
    half = "test" if split == "test" else "train"
    seed = benchmark_seed + (VAL_SEED_OFFSET if split == "val" else 0)
    return {"name": benchmark.name.removeprefix("ML1:"), "seed": seed, "split": half}


def cache_path(names: Sequence[str], seed: int) -> Path:
    """File that keeps the goals of these tasks (in this order) and this seed between processes."""
    root = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    digest = hashlib.sha256(",".join(names).encode()).hexdigest()[:16]
    versions = f"metaworld{version('metaworld')}-mujoco{version('mujoco')}"
    return root / "htrmrl_torchrl" / f"goals-{versions}-seed{seed}-{len(names)}tasks-{digest}.npz"


def _read_cache(path: Path, names: Sequence[str]) -> GoalList | None:
    try:
        with path.open("rb") as file, np.load(file, allow_pickle=False) as archive:
            goals = [archive[name] for name in names]
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile):
        return None
    sane = all(g.ndim == 2 and len(g) == GOALS_PER_TASK and np.isfinite(g).all() for g in goals)
    return goals if sane else None


def _write_cache(path: Path, names: Sequence[str], goals: GoalList) -> None:
    temporary = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=path.parent, suffix=".tmp", delete=False) as file:
            temporary = file.name
            arrays: dict[str, Any] = dict(zip(names, goals, strict=True))
            np.savez(file, **arrays)
        os.replace(temporary, path)  # atomic: another process sees all of it or nothing
    except OSError:
        if temporary is not None:
            Path(temporary).unlink(missing_ok=True)


def _env_dict() -> Any:
    # Importing Meta-World takes a second, and other environments do not need it.
    import metaworld.env_dict

    return metaworld.env_dict
