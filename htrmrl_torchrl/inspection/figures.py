"""The figures: a trained network beside an untrained one of the same sizes, the null picture.

Each function draws one figure from recordings by label (``{"trained": ..., "untrained": ...}``).
"""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from htrmrl_torchrl.evaluation.intervals import bootstrap_goals
from htrmrl_torchrl.inspection.attention import (
    KINDS,
    around_first_success,
    attention_by_episode,
    slot_entropy,
    window_entropy,
)
from htrmrl_torchrl.inspection.embeddings import Array, Labels, Separation, principal_components
from htrmrl_torchrl.inspection.recording import Recording
from htrmrl_torchrl.inspection.retrieval import Retrieved

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Recordings = Mapping[str, Recording]
# Colour-blind safe (Okabe and Ito 2008).
COLORS = ("#0072B2", "#E69F00", "#009E73", "#CC79A7", "#D55E00", "#56B4E9", "#F0E442", "#000000", "#999999", "#6A3D9A")
_MAP = "viridis"


def plot_success(recordings: Mapping[str, Recording]) -> "Figure":
    """Adaptation: success by episode of the trial, with 95% bootstrap intervals over goals, within tasks."""
    figure, ((axes,),) = _grid(1, 1, width=6.0, height=3.8)
    for index, (label, recording) in enumerate(recordings.items()):
        by_episode = [_success_by_goal(recording, k) for k in range(recording.success.shape[1])]
        mean = [float(np.mean([goals.mean() for goals in tasks])) for tasks in by_episode]
        episodes = np.arange(1, len(mean) + 1)
        style = {"color": _color(index), "linestyle": "--" if "untrained" in label else "-"}
        axes.plot(episodes, mean, marker="o", label=label, **style)
        intervals = [bootstrap_goals(tasks) for tasks in by_episode]
        if all(interval is not None for interval in intervals):
            low, high = np.array(intervals).T
            axes.fill_between(episodes, low, high, color=_color(index), alpha=0.12, linewidth=0)
    _episode_axis(axes)
    axes.set(ylabel="success rate, 95% over goals", ylim=(-0.02, 1.02))
    _legend(figure, axes)
    return figure


def _success_by_goal(recording: Recording, episode: int) -> list[Array]:
    """For each task the success of its goals, mean over the trials of a goal."""
    tasks = []
    for task in recording.task.unique():
        goals = recording.goal[recording.task == task]
        success = recording.success[recording.task == task, episode].double()
        tasks.append(np.array([success[goals == goal].mean().item() for goal in goals.unique()]))
    return tasks


def plot_trials(recordings: Recordings, *, titles: Mapping[str, Sequence[str]], count: int = 3) -> "Figure":
    """Attention through a trial: each column of pixels is a decision, each row an episode that its memory shows.

    Args:
        titles: of each trial, by label.
        count: trials, one of each task as far as there are so many, those with a late first success first.
    """
    count = min(count, *(len(recording.task) for recording in recordings.values()))
    figure, rows = _grid(count, len(recordings), width=5.2, height=2.5)
    image = None
    for column, (label, recording) in enumerate(recordings.items()):
        shares = attention_by_episode(recording)  # [N, K, S, K + 1]
        for row, trial in enumerate(telling_trials(recording, count=count)):
            axes = rows[row][column]
            share = shares[trial].flatten(0, 1).T  # [K + 1, K * S]
            episodes = share.shape[0] - 1
            image = axes.imshow(
                share, aspect="auto", origin="lower", vmin=0, vmax=1, cmap=_MAP, interpolation="nearest",
                extent=(0.5, episodes + 0.5, 0.5, episodes + 1.5),
            )  # fmt: skip
            for k in range(episodes):
                if recording.success[trial, k]:
                    at = k + 0.5 + (float(recording.first_success[trial, k]) + 0.5) / recording.horizon
                    axes.plot(at, episodes + 1.75, marker="v", color="#009E73", clip_on=False, markersize=5)
                axes.axvline(k + 0.5, color="w", linewidth=0.6)
            names = [*(str(k + 1) for k in range(episodes)), "now"]
            ticks = range(episodes + 1) if episodes <= 5 else [*range(0, episodes, 2), episodes]
            axes.set_yticks([tick + 1 for tick in ticks], [names[tick] for tick in ticks])
            axes.set_title(f"{label}: {titles[label][trial]}", pad=12)
            axes.set_ylabel("episode looked at")
            _episode_axis(axes)
    figure.colorbar(image, ax=[axes for row in rows for axes in row], label="share of attention", shrink=0.6)
    return figure


def telling_trials(recording: Recording, *, count: int) -> list[int]:
    """Trials worth showing: of different tasks (or goals), first those that fail at first and succeed later."""
    first = recording.success.int().argmax(1)
    late = recording.success.any(1) & (first > 0)
    order = sorted(range(len(first)), key=lambda n: (not late[n], not recording.success[n].any(), n))
    shown: list[int] = []
    for key in (recording.task, recording.goal, torch.arange(len(first))):
        seen = {int(key[n]) for n in shown}
        for n in order:
            if int(key[n]) not in seen and n not in shown:
                shown.append(n)
                seen.add(int(key[n]))
    return shown[:count]


def plot_around_success(recordings: Recordings) -> "Figure":
    """What is looked at before and after the first success; dashed: if all windows were looked at alike."""
    figure, (row,) = _grid(1, len(recordings), width=5.0, height=3.6)
    for axes, (label, recording) in zip(row, recordings.items(), strict=True):
        around = around_first_success(recording)
        if around is None:
            axes.text(0.5, 0.5, "no trial succeeded", ha="center", va="center", transform=axes.transAxes)
            axes.set_title(label)
            continue
        for kind, name in enumerate(KINDS):
            axes.plot(around.offset, around.attention[:, kind], marker="o", color=_color(kind), label=name)
            axes.plot(around.offset, around.uniform[:, kind], linestyle="--", color=_color(kind), alpha=0.6)
        axes.axvline(0, color="0.5", linewidth=0.8, linestyle=":")
        counted = int(around.trials[around.offset == 0])
        axes.set(
            xlabel="episodes since the first success", ylim=(-0.02, 1.02), title=f"{label}, {counted} trials",
            ylabel="share of attention",
        )  # fmt: skip
        _whole_numbers(axes)
    _legend(figure, row[0])
    return figure


def plot_heads(recordings: Recordings) -> "Figure":
    """Evenness of each head's attention (entropy over that of looking at all places alike), of both levels."""
    levels = {"within the window": window_entropy, "over windows": slot_entropy}
    drawn = {
        name: {label: values for label, recording in recordings.items() if (values := entropy(recording)) is not None}
        for name, entropy in levels.items()
    }
    drawn = {name: values for name, values in drawn.items() if values}
    figure, (row,) = _grid(1, len(drawn), width=4.6, height=3.4)
    for axes, (name, values) in zip(row, drawn.items(), strict=True):
        layers, heads = next(iter(values.values())).shape
        thick = 0.8 / len(values)
        for index, (label, value) in enumerate(values.items()):
            where = np.arange(layers * heads) + (index - (len(values) - 1) / 2) * thick
            axes.bar(where, value.flatten(), width=0.9 * thick, color=_color(index), label=label)
        axes.axhline(1, color="0.5", linestyle=":", linewidth=1)
        names = [f"{layer + 1}.{head + 1}" for layer in range(layers) for head in range(heads)]
        axes.set_xticks(range(layers * heads), names)
        axes.set(xlabel="layer.head", ylabel="relative entropy", ylim=(0, 1.08), title=name)
    _legend(figure, row[0])
    return figure


def plot_maps(recording: Recording, *, trial: int) -> "Figure":
    """The whole attention of both levels in a trial's last decision, by layer and head: rows are queries."""
    levels: dict[str, Tensor] = {}
    if recording.last.window_attention is not None:
        levels["window"] = recording.last.window_attention[trial]
    if recording.last.slot_attention is not None:
        levels["windows"] = recording.last.slot_attention[trial]
    rows = [(level, layer, maps[layer]) for level, maps in levels.items() for layer in range(len(maps))]
    heads = len(rows[0][2])
    figure, grid = _grid(len(rows), heads, width=1.9, height=1.9)
    image = None
    for axes_of_row, (level, layer, maps) in zip(grid, rows, strict=True):
        size = maps.shape[-1]
        names = [*(str(i - size + 1) for i in range(size - 1)), "now"]
        ticks = range(size) if size <= 5 else range(size - 1, -1, -3)
        for head, axes in enumerate(axes_of_row):
            image = axes.imshow(maps[head], vmin=0, vmax=1, cmap=_MAP)
            axes.set_xticks(list(ticks), [names[tick] for tick in ticks], fontsize=7)
            axes.set_yticks(list(ticks), [names[tick] for tick in ticks], fontsize=7)
            axes.set_title(f"{level} {layer + 1}.{head + 1}", fontsize=8)
    figure.colorbar(image, ax=[axes for row in grid for axes in row], label="attention", shrink=0.6)
    return figure


def plot_embeddings(recordings: Recordings, *, names: Mapping[str, Sequence[str]]) -> "Figure":
    """Context vectors of each episode's last decision in the plane of their principal components.

    Left coloured by what is to be told apart (tasks, or goals where there is one task), right by episode.

    Args:
        names: of each trial's task or goal, by label.
    """
    figure, rows = _grid(len(recordings), 2, width=4.6, height=3.8)
    for row, (label, recording) in zip(rows, recordings.items(), strict=True):
        vectors = recording.hidden[:, :, -1].flatten(0, 1).double().numpy()  # [N * K, D]
        episodes = recording.hidden.shape[1]
        points, share = principal_components(vectors)
        groups = np.repeat(np.array(names[label]), episodes)
        order = np.tile(np.arange(1, episodes + 1), len(recording.task))
        for index, name in enumerate(dict.fromkeys(names[label])):
            chosen = groups == name
            style: dict[str, Any] = {"color": _color(index), "marker": "osD^vP"[index // len(COLORS) % 6]}
            row[0].scatter(*points[chosen].T, s=14, alpha=0.75, linewidth=0, label=name, **style)
        drawn = row[1].scatter(*points.T, c=order, s=14, alpha=0.75, linewidth=0, cmap=_MAP)
        figure.colorbar(drawn, ax=row[1], label="episode of the trial", ticks=_few(episodes))
        for axes, what in zip(row, ("task or goal", "episode"), strict=True):
            axes.set_title(f"{label}, by {what}")
            axes.set(xlabel=f"component 1 ({share[0]:.0%})", ylabel=f"component 2 ({share[1]:.0%})")
        row[0].legend(frameon=False, fontsize=7, loc="center left", bbox_to_anchor=(1.0, 0.5), handletextpad=0.1)
    return figure


def plot_separation(told: Mapping[str, Mapping[str, Sequence[Separation | None]]]) -> "Figure":
    """Nearest-neighbour purity by episode, at an episode's first and last decision, with what chance would give.

    Args:
        told: by moment, then by label: one `Separation` for each episode.
    """
    figure, (row,) = _grid(1, len(told), width=4.8, height=3.6)
    for axes, (moment, by_label) in zip(row, told.items(), strict=True):
        for index, (label, separations) in enumerate(by_label.items()):
            known = [(k + 1, one) for k, one in enumerate(separations) if one is not None]
            if not known:
                continue
            episodes, values = zip(*known, strict=True)
            axes.plot(episodes, [one.purity for one in values], marker="o", color=_color(index), label=label)
            if index == 0:
                axes.plot(episodes, [one.chance for one in values], color="0.4", linestyle="--", label="chance")
                low, high = [one.low for one in values], [one.high for one in values]
                axes.fill_between(
                    episodes, low, high, color="0.5", alpha=0.18, linewidth=0, label="95% of shuffled labels"
                )
        axes.set(ylim=(-0.02, 1.02), title=moment, ylabel="nearest neighbour is of the same task or goal")
        _episode_axis(axes)
    _legend(figure, row[0])
    return figure


def plot_retrieval(recording: Recording, retrieved: Mapping[str, Retrieved], *, trial: int, window: int) -> "Figure":
    """The rewards of a trial's past episodes, and on them the windows that each strategy shows, by attention."""
    from matplotlib.patches import Rectangle

    episodes = max([1, *(e + 1 for one in retrieved.values() for e, _ in one.windows)])
    rewards = recording.tokens[trial, :episodes, 1:, -2]  # [k, H]: number t is told by token t + 1
    low, high = float(rewards.min()), float(rewards.max())
    scaled = (rewards - low) / max(high - low, 1e-12)
    figure, (row,) = _grid(1, len(retrieved), width=3.4, height=0.8 + 0.55 * max(3, episodes))
    brightest = max(float(one.attention[:-1].max()) if len(one.windows) else 0.0 for one in retrieved.values())
    colors = _colormap("YlOrRd", 0, max(brightest, 1e-6))
    horizon = rewards.shape[1]
    for axes, (name, one) in zip(row, retrieved.items(), strict=True):
        for (episode, start), attention in zip(one.windows, one.attention[:-1], strict=True):
            box = (start - 0.5, episode + 0.55)
            width = min(window, horizon + 1 - start)
            axes.add_patch(
                Rectangle(box, width, 0.9, facecolor=colors.to_rgba(float(attention)), edgecolor="0.3", lw=0.6)
            )
        for episode in range(episodes):
            axes.plot(np.arange(1, horizon + 1), episode + 0.6 + 0.8 * scaled[episode], color=COLORS[0], linewidth=0.9)
            if recording.success[trial, episode]:
                at = float(recording.first_success[trial, episode]) + 1
                axes.plot(at, episode + 1, marker="v", color="#009E73", markersize=5)
        axes.set(
            xlim=(-1, horizon + 0.8),
            ylim=(0.5, episodes + 0.5),
            xlabel="token",
            title=f"{name}: now {one.attention[-1]:.0%}",
        )
        axes.set_yticks(range(1, episodes + 1))
    row[0].set_ylabel("episode, with its rewards")
    figure.colorbar(colors, ax=list(row), label="attention on the window", shrink=0.8)
    return figure


# --------------------------------------------------------------------------------------------------------- common


def _grid(rows: int, columns: int, *, width: float, height: float) -> tuple["Figure", list[list["Axes"]]]:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width * columns + 0.8, height * rows + 0.5), layout="constrained")
    grid = [list(row) for row in figure.subplots(rows, columns, squeeze=False)]
    for axes in (axes for row in grid for axes in row):
        axes.spines[["top", "right"]].set_visible(False)
        axes.set_axisbelow(True)
        axes.tick_params(labelsize=8)
        axes.title.set_fontsize(9)
    return figure, grid


def _color(index: int) -> str:
    return COLORS[index % len(COLORS)]


def _colormap(name: str, low: float, high: float) -> Any:
    from matplotlib.cm import ScalarMappable
    from matplotlib.colors import Normalize

    return ScalarMappable(Normalize(low, high), name)


def _few(count: int) -> list[int]:
    return sorted({round(x) for x in np.linspace(1, count, min(count, 5))})


def _whole_numbers(axes: "Axes") -> None:
    from matplotlib.ticker import MaxNLocator

    axes.xaxis.set_major_locator(MaxNLocator(integer=True))


def _episode_axis(axes: "Axes") -> None:
    axes.set_xlabel("episode of the trial")
    _whole_numbers(axes)


def _legend(figure: "Figure", axes: "Axes") -> None:
    """Above all axes, where it covers nothing."""
    handles, labels = axes.get_legend_handles_labels()
    if handles:
        figure.legend(handles, labels, loc="outside upper center", ncols=3, frameon=False, fontsize=8)


def labels_of(recording: Recording) -> Labels:
    """What is to be told apart: tasks, or goals where there is one task."""
    return (recording.task if len(recording.task.unique()) > 1 else recording.goal).numpy()
