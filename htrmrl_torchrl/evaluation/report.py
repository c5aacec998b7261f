"""`EvaluationReport`: the outcome of each episode of an evaluation, and its protocol."""

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

# Fields that comparable reports share.
_COMPARED = ("protocol", "benchmark", "split", "benchmark_seed", "horizon", "tasks")


class ProtocolMismatchError(ValueError):
    """Two reports were made in different ways, so their numbers cannot be compared."""


@dataclass(frozen=True, kw_only=True)
class EvaluationReport:
    """Success, return and steps to success of R runs on P (task, goal) pairs, in each of E episodes.

    The headline averages over evaluation episodes and goals, then over tasks with equal weight. Under the protocol
    ``metaworld`` a row is a task (its goal is -1) and E is 1, because the official evaluator reports no more.

    Args:
        benchmark, split, benchmark_seed, protocol, horizon, tasks: what was played, see `Setup`.
        task, goal: ``[P]``, indices of tasks and goals.
        success: ``[R, P, E]``, 1 where an episode succeeded at any step (a share under ``metaworld``).
        returns: ``[R, P, E]``, undiscounted.
        steps_to_success: ``[R, P, E]``, counted from 1; NaN without success.
        runs: one dictionary per run: evaluation seed, checkpoint with SHA-256, frames trained.
        without_memory: ``[R, P, K - 1]``, success (return where there is none) of episodes that each started with an
            empty memory, with sampled actions; None if none were played.
        versions: of the packages used.
        command: that reproduces the report, if there is one.
        defines_success: whether the benchmark defines success; default: looked up by its name.

    Raises ValueError if array shapes are inconsistent or values impossible.

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
    without_memory: Array | None = None

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
        if self.without_memory is not None:
            self._check_without_memory(self.without_memory)

    def _check_without_memory(self, values: Array) -> None:
        runs, pairs, episodes = self.success.shape
        adaptation = self.protocol.adaptation_episodes
        if not 2 <= adaptation <= episodes or values.shape != (runs, pairs, adaptation - 1):
            raise ValueError(f"without_memory has shape {values.shape} beside {adaptation} adaptation episodes.")
        low, high = (0.0, 1.0) if self.has_success else (-np.inf, np.inf)
        if not (np.isfinite(values) & (values >= low) & (values <= high)).all():
            raise ValueError("without_memory holds numbers that are no success or return.")

    @property
    def success_rate(self) -> float:
        """Mean over evaluation episodes, runs and goals, then over tasks."""
        return float(np.mean(list(self.task_success().values())))

    @property
    def has_success(self) -> bool:
        """Whether the benchmark defines success; else `success` is 0 everywhere and means nothing."""
        return find_benchmark(self.benchmark).has_success if self.defines_success is None else self.defines_success

    @property
    def headline(self) -> float:
        """The success rate, or the return averaged in the same way where the benchmark defines no success."""
        return self.success_rate if self.has_success else float(np.mean(list(self.task_returns().values())))

    def task_success(self) -> dict[str, float]:
        return self._by_task(self._counting(self.success))

    def task_returns(self) -> dict[str, float]:
        return self._by_task(self._counting(self.returns))

    def task_steps_to_success(self) -> dict[str, float]:
        """Median steps to success over successful evaluation episodes, by task; NaN without any."""
        medians = {}
        for name, rows in self._rows():
            steps = self._counting(self.steps_to_success)[:, rows]
            steps = steps[np.isfinite(steps)]
            medians[name] = float(np.median(steps)) if len(steps) else float("nan")
        return medians

    def per_run_scores(self) -> Array:
        """``[R, tasks]``: headline score of each run on each task, mean over evaluation episodes and goals.

        Rows are runs in the order of `runs`; columns are tasks in the order of `task_success`. Scores are success, or
        returns where the benchmark defines no success. `rliable <https://github.com/google-research/rliable>`_ reads
        one such array for each method: ``get_interval_estimates({"HTrMRL": scores}, metrics.aggregate_iqm)``.

        Example:
            >>> from htrmrl_torchrl import evaluate
            >>> from htrmrl_torchrl.agent.networks import build_networks
            >>> networks = build_networks(observation_dim=3, action_low=[-1.0] * 2, action_high=[1.0] * 2)
            >>> report = evaluate(networks, "toy", adaptation_episodes=2, protocol="sampled")
            >>> two_seeds = EvaluationReport.merge([report, report])
            >>> two_seeds.per_run_scores().shape
            (2, 1)
        """
        return np.stack([self._goal_scores(rows).mean(-1) for _, rows in self._rows()], axis=-1)

    def success_by_episode(self) -> list[float]:
        """The adaptation curve: success in each of the K + M episodes, mean over tasks."""
        return self._by_episode(self.success)

    def return_by_episode(self) -> list[float]:
        """Return of each of the K + M episodes, mean over tasks: the adaptation curve without success."""
        return self._by_episode(self.returns)

    def interval(self, *, over: str = "goals") -> Interval | None:
        """95% interval of the headline (`intervals`), ``over`` other ``"goals"`` of the same tasks or training
        ``"runs"``. ``None`` with fewer than two goals per task, or runs, and where runs (or returns) are all equal.
        """
        return _interval([self._goal_scores(rows) for _, rows in self._rows()], over=over, scale=self._scale)

    def task_interval(self, name: str) -> Interval | None:
        """95% interval over goals of one task's part of the headline."""
        return interval_over_goals([self._goal_scores(dict(self._rows())[name]).mean(0)], scale=self._scale)

    def difference(self, other: Self) -> tuple[float, Interval | None]:
        """Headline of `other` minus this one, with a 95% interval paired by goal. Raises as `check_comparable` does."""
        self.check_comparable(other)
        pairs = [(other._goal_scores(rows).mean(0) - self._goal_scores(rows).mean(0)) for _, rows in self._rows()]
        return other.headline - self.headline, interval_over_goals(pairs, scale=self._scale_of_differences)

    @property
    def memory_gain(self) -> float:
        """Success (or return) in episodes 2 to K of a trial, K its adaptation episodes, minus that of as many episodes
        that each start with an empty memory; mean over tasks. Sampled actions in both. Raises ValueError if the latter
        were not played.
        """
        return float(np.mean(list(self.task_memory_gain().values())))

    def task_memory_gain(self) -> dict[str, float]:
        """`memory_gain` by task."""
        return {name: float(gains.mean()) for name, gains in self._memory_gains()}

    def memory_gain_interval(self, *, over: str = "goals", task: str | None = None) -> Interval | None:
        """95% interval of `memory_gain`, or of one task's, paired by goal; see `interval` for ``over``."""
        gains = [gains for name, gains in self._memory_gains() if task in (None, name)]
        return _interval(gains, over=over, scale=self._scale_of_differences)

    def _memory_gains(self) -> list[tuple[str, Array]]:
        """``[R, goals]`` of each task."""
        if self.without_memory is None:
            raise ValueError("No episodes without memory were played: evaluate with memory_gain=True.")
        remembering = (self.success if self.has_success else self.returns)[..., 1 : self.protocol.adaptation_episodes]
        gains = (remembering - self.without_memory).mean(-1)
        return [(name, gains[:, rows]) for name, rows in self._rows()]

    @classmethod
    def merge(cls, reports: Sequence[Self]) -> Self:
        """One report of all runs, e.g. of several training seeds. Raises as `check_comparable` does."""
        first = reports[0]
        for other in reports[1:]:
            first.check_comparable(other)
        names = _PER_RUN if first.without_memory is None else (*_PER_RUN, "without_memory")
        if len({report.without_memory is None for report in reports}) > 1:
            raise ProtocolMismatchError("Some reports have episodes without memory and others have none.")
        arrays: dict[str, Any] = {name: np.concatenate([getattr(r, name) for r in reports]) for name in names}
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

    @property
    def _scale_of_differences(self) -> Scale | None:
        return DIFFERENCES if self.has_success else None

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

    def save(self, path: str | Path) -> None:
        content = {f.name: getattr(self, f.name) for f in fields(self) if f.name != "defines_success"}
        content["protocol"] = vars(self.protocol)
        for name in ("task", "goal", "success"):
            content[name] = content[name].tolist()
        for name in ("returns", "steps_to_success"):
            content[name] = _nan_to_none(content[name].tolist())
        # For people who read the file.
        name = "success_rate" if self.has_success else "return"
        content["summary"] = {name: self.headline, "interval_over_goals": self.interval()}
        if self.without_memory is None:
            del content["without_memory"]
        else:
            content["without_memory"] = self.without_memory.tolist()
            gain = {"memory_gain": self.memory_gain, "memory_gain_interval_over_goals": self.memory_gain_interval()}
            content["summary"] |= gain
        path = Path(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        write_whole(path, json.dumps(content, allow_nan=False, default=int))  # numpy's integers too

    @classmethod
    def load(cls, path: str | Path) -> Self:
        """Reads what `save` wrote. Raises FileNotFoundError, or ValueError for anything that is not a report."""
        try:
            content = read_json(read_regular(path, largest=_LARGEST))
            summary = content.pop("summary")
            if is_dotted_path(content["benchmark"]):
                content["defines_success"] = "success_rate" in summary
            content["protocol"] = Protocol(**content["protocol"])
            _check_words(content)
            optional = [name for name in ("without_memory",) if name in content]
            for name, kind in {"task": int, "goal": int, **dict.fromkeys([*_PER_RUN, *optional], float)}.items():
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


def _interval(by_task: Sequence[Array], *, over: str, scale: Scale | None) -> Interval | None:
    """95% interval over goals or runs of numbers ``[R, goals]`` of each task."""
    if over == "runs":
        runs = range(len(by_task[0]))
        return interval_over_runs([np.mean([goals[run].mean() for goals in by_task]) for run in runs], scale=scale)
    if over != "goals":
        raise ValueError(f"over={over!r} is unknown; choose goals or runs.")
    return interval_over_goals([goals.mean(0) for goals in by_task], scale=scale)


def _check_words(content: dict[str, Any]) -> None:
    """Raise ValueError for non-array fields of a file with invalid values."""
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
    """Raise ValueError unless nested lists hold numbers only; numpy would also convert booleans and strings."""
    if type(entries) is list:
        for entry in entries:
            _check_entries(name, entry, kind)
    elif type(entries) is not int and not (kind is float and (type(entries) is float or entries is None)):
        raise ValueError(f"{name} holds {entries!r}")


def _nan_to_none(values: Any) -> Any:
    return [_nan_to_none(v) for v in values] if isinstance(values, list) else None if np.isnan(values) else values


def evaluation_metrics(report: EvaluationReport) -> dict[str, float]:
    """``eval/<split>_*`` of a report: success (if defined) by task and by episode, return by episode, and the gain from
    memory (if played).
    """
    prefix = f"eval/{report.split}"
    metrics = {f"{prefix}_return": statistics.fmean(report.task_returns().values())}
    if report.without_memory is not None:
        metrics[f"{prefix}_memory_gain"] = report.memory_gain
    metrics |= {f"{prefix}_return_by_episode/{k}": x for k, x in enumerate(report.return_by_episode())}
    if not report.has_success:
        return metrics
    metrics[f"{prefix}_success"] = report.success_rate
    metrics |= {f"{prefix}_success/{name}": success for name, success in report.task_success().items()}
    return metrics | {f"{prefix}_success_by_episode/{k}": x for k, x in enumerate(report.success_by_episode())}
