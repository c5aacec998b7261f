"""`EvaluationReport`: what an evaluation saw, episode by episode, and under which protocol."""

import json
import statistics
from collections.abc import Sequence
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any, Self

import numpy as np
import numpy.typing as npt

from htrmrl_torchrl.checkpoints.files import read_json, read_regular, write_whole
from htrmrl_torchrl.dotted import is_dotted_path
from htrmrl_torchrl.envs.benchmarks import check_benchmark_seed, check_split, find_benchmark
from htrmrl_torchrl.envs.lanes import check_positive
from htrmrl_torchrl.evaluation.intervals import (
    DIFFERENCES,
    SHARES,
    Interval,
    Scale,
    interval_over_goals,
    interval_over_runs,
)
from htrmrl_torchrl.evaluation.protocols import Protocol

Array = npt.NDArray[np.float64]

_LARGEST = 1 << 26  # bytes of a file; 20 episodes of 50 goals in 50 tasks take 3 million for each run

# What two reports must agree in before their numbers may stand side by side.
_COMPARED = ("protocol", "benchmark", "split", "benchmark_seed", "horizon", "tasks")


class ProtocolMismatchError(ValueError):
    """Two reports were made in different ways; the difference of their numbers would mean nothing."""


@dataclass(frozen=True, kw_only=True)
class EvaluationReport:
    """Success, return and steps to success of R runs on P (task, goal) pairs, in each of E episodes.

    The headline weighs evaluation episodes, goals and then tasks equally. Under the protocol ``metaworld`` a row is a
    task (its goal is -1), and there is one column, since the official evaluator gives no more.

    Args:
        benchmark, split, benchmark_seed, protocol, horizon, tasks: what was played, see `Setup`.
        task, goal: ``[P]``, indices of tasks and goals.
        success: ``[R, P, E]``, 1 where an episode succeeded at any step (a share under ``metaworld``).
        returns: ``[R, P, E]`` undiscounted.
        steps_to_success: ``[R, P, E]`` counted from 1, NaN where there was no success.
        runs: one dictionary per run: seed of the evaluation, checkpoint with its SHA-256, frames it was trained for.
        versions: of the packages that produced the numbers.
        command: that reproduces it, where there is one.
        defines_success: whether the benchmark says what success is; default: as the built-in one of that name does.

    Raises:
        ValueError: if the arrays do not fit each other, the runs or the tasks, or hold numbers that cannot be.

    Example:
        >>> from htrmrl_torchrl import evaluate
        >>> from htrmrl_torchrl.agent.networks import build_networks
        >>> networks = build_networks(observation_dim=3, action_low=[-1.0] * 2, action_high=[1.0] * 2)
        >>> report = evaluate(networks, "toy", adaptation_episodes=2)
        >>> report.success.shape, 0 <= report.success_rate <= 1
        ((1, 4, 3), True)
    """

    benchmark: str
    split: str
    benchmark_seed: int
    protocol: Protocol
    horizon: int
    tasks: list[str]
    task: npt.NDArray[np.int64]
    goal: npt.NDArray[np.int64]
    success: Array
    returns: Array
    steps_to_success: Array
    runs: list[dict[str, Any]]
    versions: dict[str, str] = field(default_factory=dict)
    command: str = ""
    defines_success: bool | None = None

    def __post_init__(self) -> None:
        expected = (len(self.runs), len(self.task))
        shapes = {name: getattr(self, name).shape for name in _PER_RUN}
        if len({*shapes.values()}) > 1 or self.success.ndim != 3 or self.success.shape[:2] != expected:
            raise ValueError(f"{len(self.runs)} runs of {len(self.task)} pairs cannot have arrays of shapes {shapes}.")
        if not self.success.size or len(self.goal) != len(self.task):
            raise ValueError(f"{len(self.task)} tasks and {len(self.goal)} goals do not make pairs to report of.")
        if not (self.task.min() >= 0 and self.task.max() < len(self.tasks)):
            raise ValueError(f"task holds {sorted({*self.task.tolist()})}, but there are {len(self.tasks)} tasks.")
        if self.goal.min() < -1:
            raise ValueError(f"goal holds {self.goal.min()}; goals count from 0, and -1 stands for all of a task.")
        if not ((self.success >= 0) & (self.success <= 1)).all():  # NaN is neither
            raise ValueError("success holds numbers outside 0 to 1, or NaN; it is a share of episodes.")
        if not np.isnan(self.steps_to_success[~(self.steps_to_success >= 1)]).all():
            raise ValueError("steps_to_success holds numbers below 1; steps count from 1, and are NaN without success.")
        if np.isinf(self.returns).any() or np.isinf(self.steps_to_success).any():
            raise ValueError("returns or steps_to_success hold an infinity.")

    # ------------------------------------------------------------------------------------------------ numbers

    @property
    def success_rate(self) -> float:
        """Mean over evaluation episodes, runs and goals, then over tasks with equal weight."""
        return float(np.mean(list(self.task_success().values())))

    @property
    def has_success(self) -> bool:
        """Whether the benchmark says what success is; else `success` is 0 everywhere and means nothing."""
        return find_benchmark(self.benchmark).has_success if self.defines_success is None else self.defines_success

    @property
    def headline(self) -> float:
        """The success rate; where the benchmark defines no success, the return, averaged in the same way."""
        return self.success_rate if self.has_success else float(np.mean(list(self.task_returns().values())))

    def task_success(self) -> dict[str, float]:
        """Success of the episodes that count, by task."""
        return self._by_task(self._counting(self.success))

    def task_returns(self) -> dict[str, float]:
        """Return of the episodes that count, by task."""
        return self._by_task(self._counting(self.returns))

    def task_steps_to_success(self) -> dict[str, float]:
        """Median steps to success of the episodes that count and succeeded, by task; NaN where none did."""
        medians = {}
        for name, rows in self._rows():
            steps = self._counting(self.steps_to_success)[:, rows]
            steps = steps[np.isfinite(steps)]
            medians[name] = float(np.median(steps)) if len(steps) else float("nan")
        return medians

    def success_by_episode(self) -> list[float]:
        """The adaptation curve: success in each of the K + M episodes, tasks weighing equally."""
        return self._by_episode(self.success)

    def return_by_episode(self) -> list[float]:
        """Return of each of the K + M episodes, tasks weighing equally: the curve where there is no success."""
        return self._by_episode(self.returns)

    def interval(self, *, over: str = "goals") -> Interval | None:
        """95% interval of the headline, see `htrmrl_torchrl.evaluation.intervals`.

        ``None`` with fewer than two goals per task, or runs, and where runs (or returns) are all equal.

        Args:
            over: ``"goals"``: over other goals of the same tasks, a goal's score being its mean over runs.
                ``"runs"``: over other training seeds.
        """
        if over == "runs":
            runs = range(len(self.success))
            scores = [np.mean([self._goal_scores(rows)[run].mean() for _, rows in self._rows()]) for run in runs]
            return interval_over_runs(scores, scale=self._scale)
        if over != "goals":
            raise ValueError(f"over={over!r} is unknown; choose goals or runs.")
        return interval_over_goals([self._goal_scores(rows).mean(0) for _, rows in self._rows()], scale=self._scale)

    def task_interval(self, name: str) -> Interval | None:
        """95% interval over goals of one task's part of the headline."""
        return interval_over_goals([self._goal_scores(dict(self._rows())[name]).mean(0)], scale=self._scale)

    def difference(self, other: Self) -> tuple[float, Interval | None]:
        """How much higher the headline of `other` is, with a 95% interval over paired goals; as `check_comparable`."""
        self.check_comparable(other)
        pairs = [(other._goal_scores(rows).mean(0) - self._goal_scores(rows).mean(0)) for _, rows in self._rows()]
        scale = DIFFERENCES if self.has_success else None
        return other.headline - self.headline, interval_over_goals(pairs, scale=scale)

    @classmethod
    def merge(cls, reports: Sequence[Self]) -> Self:
        """One report of all runs, for instance of several training seeds. Raises as `check_comparable` does."""
        first = reports[0]
        for other in reports[1:]:
            first.check_comparable(other)
        arrays: dict[str, Any] = {name: np.concatenate([getattr(r, name) for r in reports]) for name in _PER_RUN}
        return replace(first, runs=[run for report in reports for run in report.runs], **arrays)

    def check_comparable(self, other: Self) -> None:
        """Raises `ProtocolMismatchError` unless `other` was made in the same way, on the same goals."""
        for name in _COMPARED:
            mine, theirs = getattr(self, name), getattr(other, name)
            if mine != theirs:
                raise ProtocolMismatchError(
                    f"The reports differ in {name}: {mine} and {theirs}. Evaluate both in the same way first."
                )
        if not (np.array_equal(self.task, other.task) and np.array_equal(self.goal, other.goal)):
            raise ProtocolMismatchError("The reports played different (task, goal) pairs; evaluate both on the same.")

    @property
    def _scale(self) -> Scale | None:
        return SHARES if self.has_success else None

    def _rows(self) -> list[tuple[str, npt.NDArray[np.int64]]]:
        """Each played task's rows."""
        played = [(name, np.flatnonzero(self.task == index)) for index, name in enumerate(self.tasks)]
        return [(name, rows) for name, rows in played if len(rows)]

    def _counting(self, values: Array) -> Array:
        return values[..., -min(self.protocol.evaluation_episodes, values.shape[-1]) :]

    def _by_episode(self, values: Array) -> list[float]:
        return np.mean([values[:, rows].mean((0, 1)) for _, rows in self._rows()], axis=0).tolist()

    def _by_task(self, values: Array) -> dict[str, float]:
        return {name: float(values[:, rows].mean()) for name, rows in self._rows()}

    def _goal_scores(self, rows: npt.NDArray[np.int64]) -> Array:
        """``[R, goals]`` of one task."""
        return self._counting(self.success if self.has_success else self.returns)[:, rows].mean(-1)

    # ------------------------------------------------------------------------------------------------ in and out

    def save(self, path: str | Path) -> None:
        """Writes the report as JSON, whole or not at all."""
        content = {f.name: getattr(self, f.name) for f in fields(self) if f.name != "defines_success"}
        content["protocol"] = vars(self.protocol)
        for name in ("task", "goal", "success"):
            content[name] = content[name].tolist()
        for name in ("returns", "steps_to_success"):
            content[name] = _nan_to_none(content[name].tolist())
        # For whoever reads the file and not the class.
        name = "success_rate" if self.has_success else "return"
        content["summary"] = {name: self.headline, "interval_over_goals": self.interval()}
        path = Path(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        write_whole(path, json.dumps(content, allow_nan=False, default=int))  # numpy's integers too

    @classmethod
    def load(cls, path: str | Path) -> Self:
        """Reads what `save` wrote. Raises FileNotFoundError, or ValueError if an evaluation could not have given it."""
        try:
            content = read_json(read_regular(path, largest=_LARGEST))
            summary = content.pop("summary")
            if is_dotted_path(content["benchmark"]):
                content["defines_success"] = "success_rate" in summary
            content["protocol"] = Protocol(**content["protocol"])
            _check_words(content)
            for name, kind in {"task": int, "goal": int, **dict.fromkeys(_PER_RUN, float)}.items():
                _check_entries(name, content[name], kind)
                content[name] = np.array(content[name], dtype=kind)  # null becomes NaN
            return cls(**content)
        except FileNotFoundError:
            raise
        except (ValueError, KeyError, TypeError, AttributeError, OverflowError, OSError) as error:
            raise ValueError(
                f"{path} is not an evaluation report ({error!r}); `EvaluationReport.save` writes one."
            ) from error

    def __str__(self) -> str:
        from htrmrl_torchrl.evaluation.table import as_table

        return as_table(self)


_PER_RUN = ("success", "returns", "steps_to_success")


def _check_words(content: dict[str, Any]) -> None:
    """Raise ValueError for fields of a file, all but its arrays, that are not what they are called."""
    protocol, runs, tasks = content["protocol"], content["runs"], content["tasks"]
    flags = [protocol.separate, protocol.biased]
    if type(protocol.name) is not str or not all(type(flag) is bool for flag in flags):
        raise ValueError(f"its protocol is {protocol}")
    if not is_dotted_path(content["benchmark"]):  # a name to look up, never to import
        find_benchmark(content["benchmark"])
    check_split(content["split"])
    check_benchmark_seed(content["benchmark_seed"])
    check_positive(horizon=content["horizon"])
    if type(tasks) is not list or not all(type(task) is str for task in tasks) or len({*tasks}) != len(tasks):
        raise ValueError(f"tasks is {tasks!r}, which are no names")
    if type(runs) is not list or not all(type(run) is dict for run in runs):
        raise ValueError("runs are not one object for each run")
    versions, command = content.get("versions", {}), content.get("command", "")
    if type(command) is not str or not all(type(entry) is str for entry in [*versions.values()]):
        raise ValueError("versions and command are not words")


def _check_entries(name: str, entries: Any, kind: type) -> None:
    """Raise ValueError unless nested lists hold numbers alone, which numpy would make of truths and texts as well."""
    if type(entries) is list:
        for entry in entries:
            _check_entries(name, entry, kind)
    elif type(entries) is not int and not (kind is float and (type(entries) is float or entries is None)):
        raise ValueError(f"{name} holds {entries!r}")


def _nan_to_none(values: Any) -> Any:
    return [_nan_to_none(v) for v in values] if isinstance(values, list) else None if np.isnan(values) else values


def evaluation_metrics(report: EvaluationReport) -> dict[str, float]:
    """``eval/<split>_*`` of a report: its headline, by task and by episode, and the return of what counts.

    A benchmark that defines no success has returns only.
    """
    prefix = f"eval/{report.split}"
    metrics = {f"{prefix}_return": statistics.fmean(report.task_returns().values())}
    metrics |= {f"{prefix}_return_by_episode/{k}": x for k, x in enumerate(report.return_by_episode())}
    if not report.has_success:
        return metrics
    metrics[f"{prefix}_success"] = report.success_rate
    metrics |= {f"{prefix}_success/{name}": success for name, success in report.task_success().items()}
    return metrics | {f"{prefix}_success_by_episode/{k}": x for k, x in enumerate(report.success_by_episode())}
