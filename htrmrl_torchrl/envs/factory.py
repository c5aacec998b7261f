"""``make_env``: builds a trial environment by name."""

import inspect
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from torchrl.envs import EnvBase, TransformedEnv

from htrmrl_torchrl import keys
from htrmrl_torchrl.dotted import resolve
from htrmrl_torchrl.envs import benchmarks, metaworld
from htrmrl_torchrl.envs.deck import FixedGrid, TaskDeck
from htrmrl_torchrl.envs.disguise import TrialDisguise, check_kinds
from htrmrl_torchrl.envs.lanes import Deck, LaneKind, Lanes, check_choice, check_positive
from htrmrl_torchrl.envs.shares import LaneShare
from htrmrl_torchrl.envs.transform import TrialTransform
from htrmrl_torchrl.envs.trial import TrialEnv
from htrmrl_torchrl.envs.workers import WORKER_TIMEOUT, WorkerLanes
from htrmrl_torchrl.specs import MismatchError, check_base, check_trials


def make_env(
    name: str,
    *,
    split: str = "train",
    num_envs: int = 20,
    episodes_per_trial: int = 10,
    horizon: int | None = None,
    seed: int = 0,
    benchmark_seed: int = 0,
    num_workers: int = 0,
    worker_timeout: float = WORKER_TIMEOUT,
    backend: metaworld.Backend = "fast",
    pairs: Sequence[tuple[int, int]] | None = None,
    shortest_trial: int | None = None,
    disguises: Sequence[str] = (),
    share: LaneShare | None = None,
    **factory_kwargs: Any,
) -> EnvBase:
    """Build a batched trial environment, ``batch_size=[num_envs]``; ``keys.py`` lists what it writes.

    A trial is ``episodes_per_trial`` episodes of one (task, goal); the next trial has the next pair of a `TaskDeck`.

    Args:
        name: a built-in name of ``benchmarks.py``, or a dotted path (``package.module:name`` or
            ``package.module.name``). The path names a `Benchmark` of your own (see ``lanes.py``), or a factory that is
            called as ``factory(split=, num_envs=, seed=, **factory_kwargs)`` and wrapped in :class:`TrialTransform`
            unless it writes ``trial_init``.
        split: ``train``, ``val`` (training tasks, goals of another benchmark seed) or ``test``.
        num_envs: environments stepped together.
        episodes_per_trial: K.
        horizon: steps per episode; default 500 in Meta-World (its maximum), 200 with HalfCheetah and Ant, 6 in the toy.
            Not for factories.
        seed: of the deck and random starts. Trajectories are the same for any ``num_workers``.
        benchmark_seed: determines the goals, in Meta-World as ``metaworld.ML10(seed=...)`` does.
        num_workers: worker processes the simulators are spread over; 0 keeps them in this process.
        worker_timeout: seconds after which a worker that does not answer a step is killed. Starting and resetting build
            simulators and may take ten times as long, at least ten minutes.
        backend: Meta-World only: ``fast``, or ``official`` for its own code; the trajectories are the same.
        pairs: for evaluation: (task index, goal index) pairs to play instead of the deck, at least ``num_envs``;
            environment ``i`` plays ``pairs[i]``, ``pairs[i + num_envs]``, ...
        shortest_trial: for training: K episodes are split at random into trials of at least this many episodes, see
            `TrialEnv`; default one trial of K. Not for factories.
        disguises: for training: kinds of `TrialDisguise` that change each trial. Not for factories.
        share: if several processes play the ``num_envs`` environments: those of this one, ``batch_size=[share.count]``.
            Trajectories do not depend on it. Not for factories.

    Raises:
        ValueError: for an unknown name, split or task, or a number out of range, before any simulator is built.
        WorkerFault: (a RuntimeError) if a worker fails, also in reset and step. A full reset then starts new workers
            and trials; ``close()`` ends them for good.

    Example:
        >>> env = make_env("toy", num_envs=2, episodes_per_trial=3)
        >>> env.reset()["trial_init"].flatten().tolist()
        [True, True]
    """
    check_positive(num_envs=num_envs, episodes_per_trial=episodes_per_trial)
    benchmarks.check_split(split)
    check_choice(metaworld.Backend, backend=backend)
    if benchmarks.is_factory(name):
        given = {"horizon": horizon is not None, "pairs": pairs is not None, "num_workers": num_workers != 0}
        given["share"] = share is not None
        given["backend"] = backend != metaworld.BACKENDS[0]
        given |= {"disguises": bool(disguises), "shortest_trial": shortest_trial is not None}
        _refuse(name, [argument for argument, was_given in given.items() if was_given])
        foreign = _load_factory(name)(split=split, num_envs=num_envs, seed=seed, **factory_kwargs)
        return wrap_foreign(foreign, name=name, num_envs=num_envs, episodes_per_trial=episodes_per_trial)
    _refuse(name, sorted(factory_kwargs))
    tasks = benchmarks.task_names(name, split)
    horizon = resolve_horizon(name, horizon)
    lanes = num_envs if share is None else _check_share(share, num_envs).count
    _check_workers(num_workers, lanes, worker_timeout)
    benchmarks.check_benchmark_seed(benchmark_seed)
    benchmark = benchmarks.find_benchmark(name, backend=backend)
    check_kinds(disguises, benchmark.layout)
    goals, deck_seed = benchmark.num_goals, check_seed(seed)
    deck: Deck
    if pairs is None:
        deck = TaskDeck(num_tasks=len(tasks), num_goals=goals, num_lanes=num_envs, seed=deck_seed)
    else:
        deck = FixedGrid(_check_pairs(pairs, num_envs, len(tasks), goals), num_lanes=num_envs)
    kind = benchmark.lanes(split, horizon, benchmark_seed)
    disguise = None
    if disguises:
        disguise = TrialDisguise(
            disguises,
            num_lanes=num_envs,
            obs_dim=kind.obs_dim,
            action_low=kind.action_low,
            action_high=kind.action_high,
            layout=benchmark.layout,
            seed=deck_seed,
        )
    return TrialEnv(
        _make_lanes(kind, num_envs=lanes, num_workers=num_workers, worker_timeout=worker_timeout),
        deck,
        episodes_per_trial=episodes_per_trial,
        horizon=horizon,
        seed=deck_seed,
        success=benchmark.has_success,
        shortest_trial=shortest_trial,
        disguise=disguise,
        share=share,
    )


def check_name(name: str) -> None:
    """Raise ValueError, with the nearest known names, unless ``make_env`` knows this name. Imports a dotted path."""
    if benchmarks.is_factory(name):
        _load_factory(name)
    else:
        benchmarks.find_benchmark(name)


def check_factory(name: str) -> None:
    """Raise ValueError unless a dotted path's object accepts a factory's arguments."""
    factory = _load_factory(name)
    try:
        inspect.signature(factory).bind(split="train", num_envs=1, seed=0)
    except TypeError as error:
        raise ValueError(
            f"{name!r} is no environment factory, which is called as factory(split=, num_envs=, seed=): {error}."
        ) from error
    except ValueError:  # a builtin that does not say what it takes
        return


def wrap_foreign(env: EnvBase, *, name: str, num_envs: int, episodes_per_trial: int) -> EnvBase:
    """Check a factory's environment and wrap it in a `TrialTransform`, unless it writes ``trial_init``.

    Raises MismatchError (a ValueError) unless it is a TorchRL environment of batch size ``[num_envs]`` with valid
    specs.
    """
    if not isinstance(env, EnvBase):
        raise MismatchError(f"{name} returned {type(env).__name__}; a factory must return a torchrl.envs.EnvBase.")
    if tuple(env.batch_size) != (num_envs,):
        raise MismatchError(
            f"{name} returned batch_size {list(env.batch_size)}, expected [{num_envs}]; build num_envs of them, for "
            "instance with SerialEnv(num_envs, make_one)."
        )
    if keys.TRIAL_INIT in env.observation_spec.keys():
        check_trials(env)
        return env
    check_base(env)
    return TransformedEnv(env, TrialTransform(episodes_per_trial=episodes_per_trial))


def _load_factory(path: str) -> Callable[..., EnvBase]:
    if not callable(factory := resolve(path)):
        raise ValueError(f"{path!r} is {type(factory).__name__}, neither a Benchmark nor a factory of environments.")
    return factory  # type: ignore[no-any-return]


def _make_lanes(kind: LaneKind, *, num_envs: int, num_workers: int, worker_timeout: float) -> Lanes:
    if num_workers == 0:
        return kind.builder(num_envs)
    return WorkerLanes(
        kind.builder,
        num_lanes=num_envs,
        num_workers=num_workers,
        obs_dim=kind.obs_dim,
        action_low=kind.action_low,
        action_high=kind.action_high,
        timeout=worker_timeout,
    )


def _refuse(name: str, arguments: list[str]) -> None:
    if arguments:
        raise ValueError(f"make_env({name!r}) takes no {', '.join(arguments)}; leave it out.")


def resolve_horizon(name: str, horizon: int | None) -> int:
    """Steps per episode of a built-in environment: the default, or the given number if allowed, else ValueError."""
    benchmark = benchmarks.find_benchmark(name)
    if horizon is None:
        return benchmark.default_horizon
    check_positive(horizon=horizon)
    if benchmark.max_horizon is not None and horizon > benchmark.max_horizon:
        raise ValueError(f"horizon must be at most {benchmark.max_horizon} in {name}, received {horizon}.")
    return horizon


def _check_workers(num_workers: int, num_envs: int, timeout: float) -> None:
    if isinstance(num_workers, bool) or not isinstance(num_workers, int) or not 0 <= num_workers <= num_envs:
        raise ValueError(f"num_workers must be from 0 to num_envs ({num_envs}), received {num_workers!r}.")
    if isinstance(timeout, bool) or not isinstance(timeout, int | float) or not timeout > 0:
        raise ValueError(f"worker_timeout must be a number of seconds above 0, received {timeout!r}.")


def _check_share(share: LaneShare, num_envs: int) -> LaneShare:
    if share.total != num_envs or not 0 <= share.first < share.first + share.count <= num_envs:
        raise ValueError(f"share must be a block of the num_envs ({num_envs}) environments, received {share}.")
    return share


def check_seed(seed: int) -> int:
    """The seed as an int, or ValueError."""
    if isinstance(seed, bool) or not isinstance(seed, int | np.integer) or seed < 0:
        raise ValueError(f"seed must be a whole number of at least 0, received {seed!r}.")
    return int(seed)


def _check_pairs(pairs: Sequence[tuple[int, int]], num_envs: int, tasks: int, goals: int) -> list[tuple[int, int]]:
    if len(pairs) < num_envs:
        raise ValueError(f"pairs must have num_envs={num_envs} (task, goal) pairs or more, received {len(pairs)}.")
    wrong = [pair for pair in pairs if not (0 <= pair[0] < tasks and 0 <= pair[1] < goals)]
    if wrong:
        raise ValueError(f"Pairs {wrong} are out of range: tasks are 0 to {tasks - 1}, goals 0 to {goals - 1}.")
    return [(int(task), int(goal)) for task, goal in pairs]
