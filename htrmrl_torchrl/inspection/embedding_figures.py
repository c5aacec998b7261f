"""Figures of adaptation and of embeddings: context vectors in a plane, and how well they separate tasks. Recordings
come by label (``{"trained": ..., "untrained": ...}``): an untrained network of the same sizes is the control.
"""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from htrmrl_torchrl.evaluation.intervals import SHARES, interval_over_goals
from htrmrl_torchrl.inspection.embeddings import Array, Labels, Separation, principal_components
from htrmrl_torchrl.inspection.recording import Recording
from htrmrl_torchrl.inspection.style import COLORS, MAP, color, episode_axis, few, grid, legend, styled

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Recordings = Mapping[str, Recording]


@styled
def plot_success(recordings: Recordings) -> "Figure":
    """Success by episode of the trial, with 95% intervals over goals, within tasks."""
    figure, ((axes,),) = grid(1, 1, width=6.0, height=3.8)
    for index, (label, recording) in enumerate(recordings.items()):
        by_episode = [_success_by_goal(recording, k) for k in range(recording.success.shape[1])]
        mean = [float(np.mean([goals.mean() for goals in tasks])) for tasks in by_episode]
        episodes = np.arange(1, len(mean) + 1) + 0.04 * index  # beside each other where they are equal
        style: dict[str, Any] = {"color": color(index), "linestyle": "--" if "untrained" in label else "-"}
        axes.plot(episodes, mean, marker="o", label=label, **style)
        intervals = [interval_over_goals(tasks, scale=SHARES) for tasks in by_episode]
        if all(interval is not None for interval in intervals):
            low, high = np.array(intervals).T
            axes.fill_between(episodes, low, high, color=color(index), alpha=0.12, linewidth=0)
    episode_axis(axes)
    axes.set(ylabel="success rate, 95% over goals", ylim=(-0.02, 1.02))
    legend(figure, axes)
    return figure


def _success_by_goal(recording: Recording, episode: int) -> list[Array]:
    """For each task the success of its goals, mean over the trials of a goal."""
    tasks = []
    for task in recording.task.unique():
        goals = recording.goal[recording.task == task]
        success = recording.success[recording.task == task, episode].double()
        tasks.append(np.array([success[goals == goal].mean().item() for goal in goals.unique()]))
    return tasks


@styled
def plot_embeddings(recordings: Recordings, *, names: Mapping[str, Sequence[str]]) -> "Figure":
    """First two principal components of the context vectors of each episode's last decision. Left coloured by task (or
    goal, if there is one task), right by episode. ``names`` are those of each trial's task or goal, by label.
    """
    figure, rows = grid(len(recordings), 2, width=4.6, height=3.8)
    for row, (label, recording) in zip(rows, recordings.items(), strict=True):
        vectors = recording.hidden[:, :, -1].flatten(0, 1).double().numpy()  # [N * K, D]
        episodes = recording.hidden.shape[1]
        points, share = principal_components(vectors)
        groups = np.repeat(np.array(names[label]), episodes)
        order = np.tile(np.arange(1, episodes + 1), len(recording.task))
        for index, name in enumerate(dict.fromkeys(names[label])):
            chosen = groups == name
            style: dict[str, Any] = {"color": color(index), "marker": "osD^vP"[index // len(COLORS) % 6]}
            row[0].scatter(points[chosen, 0], points[chosen, 1], s=14, alpha=0.75, linewidth=0, label=name, **style)
        drawn = row[1].scatter(points[:, 0], points[:, 1], c=order, s=14, alpha=0.75, linewidth=0, cmap=MAP)
        figure.colorbar(drawn, ax=row[1], label="episode of the trial", ticks=few(episodes))
        for axes, what in zip(row, ("task or goal", "episode"), strict=True):
            axes.set_title(f"{label}, by {what}")
            axes.set(xlabel=f"component 1 ({share[0]:.0%})", ylabel=f"component 2 ({share[1]:.0%})")
        row[0].legend(frameon=False, loc="center left", bbox_to_anchor=(1.0, 0.5), handletextpad=0.1)
    return figure


@styled
def plot_separation(separations: Mapping[str, Mapping[str, Sequence[Separation | None]]]) -> "Figure":
    """Nearest-neighbour purity by episode, at the first and last decision, with its value by chance. ``separations``
    are by moment, then by label: one `Separation` per episode.
    """
    figure, (row,) = grid(1, len(separations), width=4.8, height=3.6)
    for axes, (moment, by_label) in zip(row, separations.items(), strict=True):
        for index, (label, by_episode) in enumerate(by_label.items()):
            known = [(k + 1, one) for k, one in enumerate(by_episode) if one is not None]
            if not known:
                continue
            episodes, values = zip(*known, strict=True)
            axes.plot(episodes, [one.purity for one in values], marker="o", color=color(index), label=label)
            if index == 0:
                axes.plot(episodes, [one.chance for one in values], color="0.4", linestyle="--", label="chance")
                low, high = [one.low for one in values], [one.high for one in values]
                axes.fill_between(
                    episodes, low, high, color="0.5", alpha=0.18, linewidth=0, label="95% of shuffled labels"
                )
        axes.set(ylim=(-0.02, 1.02), title=moment, ylabel="nearest neighbour is of the same task or goal")
        episode_axis(axes)
    legend(figure, row[0])
    return figure


def labels_of(recording: Recording) -> Labels:
    """Task indices, or goal indices if there is one task."""
    return (recording.task if len(recording.task.unique()) > 1 else recording.goal).numpy()
