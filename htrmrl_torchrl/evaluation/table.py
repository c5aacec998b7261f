"""An `EvaluationReport` as text."""

from typing import TYPE_CHECKING

import numpy as np

from htrmrl_torchrl.evaluation.intervals import Interval

if TYPE_CHECKING:
    from htrmrl_torchrl.evaluation.report import EvaluationReport


def as_table(report: "EvaluationReport") -> str:
    """Headline, protocol, results by task and the adaptation curve."""
    success, returns, steps = report.task_success(), report.task_returns(), report.task_steps_to_success()
    width = max(len(name) for name in (*success, "all tasks"))
    if not report.has_success:
        return "\n".join([*_header(report), "", *_table_of_returns(report, width), *_memory_gain(report, width)])
    lines = [
        *_header(report),
        "",
        f"{'task':<{width}}  success  95% over goals  return  steps to success",
        *(
            f"{name:<{width}}  {success[name]:7.2f}  {_shown(report.task_interval(name)):>14}  "
            f"{_whole(returns[name]):>6}  {_whole(steps[name]):>16}"
            for name in success
        ),
        f"{'all tasks':<{width}}  {report.success_rate:7.2f}  {_shown(report.interval()):>14}  "
        f"{_whole(np.mean(list(returns.values()))):>6}",
    ]
    if len(report.runs) > 1:
        lines.append(f"{len(report.runs)} runs, 95% over runs: {_shown(report.interval(over='runs'))}")
    if report.success.shape[-1] > 1:
        lines += ["", "success by episode: " + " ".join(f"{value:.2f}" for value in report.success_by_episode())]
    return "\n".join([*lines, *_memory_gain(report, width)])


def _memory_gain(report: "EvaluationReport", width: int) -> list[str]:
    """By task, if episodes without memory were played."""
    if report.without_memory is None:
        return []
    episodes = report.protocol.adaptation_episodes
    rows = {name: (gain, report.memory_gain_interval(task=name)) for name, gain in report.task_memory_gain().items()}
    rows["all tasks"] = (report.memory_gain, report.memory_gain_interval())
    what = "success" if report.has_success else "return"
    lines = [
        "",
        f"gain from memory: {what} in episodes 2 to {episodes} minus that of {episodes - 1} episodes that each start "
        "with an empty memory, sampled actions",
        f"{'task':<{width}}       gain      95% over goals",
        *(f"{name:<{width}}  {gain:9.2f}  {_shown(interval):>18}" for name, (gain, interval) in rows.items()),
    ]
    if len(report.runs) > 1:
        lines.append(f"{len(report.runs)} runs, 95% over runs: {_shown(report.memory_gain_interval(over='runs'))}")
    return lines


def _table_of_returns(report: "EvaluationReport", width: int) -> list[str]:
    """For benchmarks that define no success."""
    rows = {name: (score, report.task_interval(name)) for name, score in report.task_returns().items()}
    rows["all tasks"] = (report.headline, report.interval())
    lines = [f"{'task':<{width}}     return      95% over goals"]
    lines += [f"{name:<{width}}  {score:9.2f}  {_shown(interval):>18}" for name, (score, interval) in rows.items()]
    if len(report.runs) > 1:
        lines.append(f"{len(report.runs)} runs, 95% over runs: {_shown(report.interval(over='runs'))}")
    return [*lines, "", "return by episode: " + " ".join(f"{value:.1f}" for value in report.return_by_episode())]


def _header(report: "EvaluationReport") -> list[str]:
    protocol = report.protocol
    goals = f"{protocol.goals_per_task} goals per task (benchmark seed {report.benchmark_seed})"
    lines = [
        f"{report.benchmark} {report.split}, protocol {protocol.name}: {protocol.adaptation_episodes} adaptation + "
        f"{protocol.evaluation_episodes} evaluation episodes of {report.horizon} steps, "
        f"{protocol.evaluation_actions} actions in the latter, "
        f"{'each from the memory of the former, ' if protocol.separate else ''}{goals}"
    ]
    if protocol.biased:
        lines.append(
            "BIASED: the official evaluator counts the first episodes to finish, and successes finish first; "
            "do not compare with other protocols."
        )
    lines += [
        f"checkpoint {run['checkpoint']} ({run['frames']:,} frames, sha256 {run['sha256'][:12]})"
        for run in report.runs
        if run.get("checkpoint")
    ]
    return lines


def _shown(interval: Interval | None) -> str:
    return "-" if interval is None else f"{interval[0]:.2f} to {interval[1]:.2f}"


def _whole(value: float | np.floating) -> str:
    return "-" if np.isnan(value) else f"{value:.0f}"
