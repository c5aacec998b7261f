"""Figures of attention: by head, through a trial, around the first success, and on retrieved windows. Recordings come
by label (``{"trained": ..., "untrained": ...}``): an untrained network of the same sizes is the control.
"""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from htrmrl_torchrl.inspection.attention import (
    KINDS,
    around_first_success,
    attention_by_episode,
    slot_entropy,
    window_entropy,
)
from htrmrl_torchrl.inspection.recording import Recording
from htrmrl_torchrl.inspection.retrieval import Retrieved
from htrmrl_torchrl.inspection.style import (
    COLORS,
    MAP,
    SUCCESS,
    color,
    episode_axis,
    grid,
    legend,
    scale,
    styled,
    whole_numbers,
)

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Recordings = Mapping[str, Recording]


@styled
def plot_trials(recordings: Recordings, *, titles: Mapping[str, Sequence[str]], count: int = 3) -> "Figure":
    """Attention through ``count`` trials of `example_trials`: each pixel column is a decision, each row an episode in
    memory. ``titles`` are of each trial, by label.
    """
    count = min(count, *(len(recording.task) for recording in recordings.values()))
    figure, rows = grid(count, len(recordings), width=5.2, height=2.5)
    for column, (label, recording) in enumerate(recordings.items()):
        shares = attention_by_episode(recording)  # [N, K, S, K + 1]
        for row, trial in enumerate(example_trials(recording, count=count)):
            axes = rows[row][column]
            share = shares[trial].flatten(0, 1).T  # [K + 1, K * S]
            episodes = share.shape[0] - 1
            share = torch.cat([share[: episodes - 1], share[-1:]])  # no later episode attends to the last one
            axes.imshow(
                share.numpy(), aspect="auto", origin="lower", vmin=0, vmax=1, cmap=MAP, interpolation="nearest",
                extent=(0.5, episodes + 0.5, 0.5, episodes + 0.5),
            )  # fmt: skip
            for k in range(episodes):
                if recording.success[trial, k]:
                    at = k + 0.5 + (float(recording.first_success[trial, k]) + 0.5) / recording.horizon
                    style: dict[str, Any] = {"marker": "v", "color": SUCCESS, "clip_on": False, "markersize": 5}
                    axes.plot(at, 1.06, transform=axes.get_xaxis_transform(), **style)
                axes.axvline(k + 0.5, color="w", linewidth=0.6)
            names = [*(str(k + 1) for k in range(episodes - 1)), "now"]
            ticks = range(episodes) if episodes <= 5 else [*range(0, episodes - 1, 2), episodes - 1]
            axes.set_yticks([tick + 1 for tick in ticks], [names[tick] for tick in ticks])
            axes.set_title(f"{label}: {titles[label][trial]}", pad=14)
            axes.set_ylabel("attended episode")
            episode_axis(axes)
    figure.colorbar(scale(MAP, 0, 1), ax=[axes for row in rows for axes in row], label="share of attention", shrink=0.6)
    return figure


def example_trials(recording: Recording, *, count: int) -> list[int]:
    """Indices of trials of different tasks (or goals); those that fail first and succeed later come first."""
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


@styled
def plot_around_success(recordings: Recordings) -> "Figure":
    """Attention before and after the first success; dashed: uniform attention."""
    figure, (row,) = grid(1, len(recordings), width=5.0, height=3.6)
    for axes, (label, recording) in zip(row, recordings.items(), strict=True):
        around = around_first_success(recording)
        if around is None:
            axes.text(0.5, 0.5, "no trial succeeded", ha="center", va="center", transform=axes.transAxes)
            axes.set_title(label)
            axes.set_axis_off()
            continue
        offset, attention, uniform = around.offset.numpy(), around.attention.numpy(), around.uniform.numpy()
        for kind, name in enumerate(KINDS):
            axes.plot(offset, attention[:, kind], marker="o", color=color(kind), label=name)
            axes.plot(offset, uniform[:, kind], linestyle="--", color=color(kind), alpha=0.6)
        axes.axvline(0, color="0.5", linewidth=0.8, linestyle=":")
        counted = int(around.trials[around.offset == 0])
        axes.set(
            xlabel="episodes since the first success", ylim=(-0.02, 1.02), title=f"{label}, trials: {counted}",
            ylabel="share of attention",
        )  # fmt: skip
        whole_numbers(axes)
    legend(figure, row[0])
    return figure


@styled
def plot_heads(recordings: Recordings) -> "Figure":
    """Relative entropy of each head's attention, for both levels."""
    levels = {"intra: within the window": window_entropy, "inter: over windows": slot_entropy}
    drawn: dict[str, dict[str, Tensor]] = {}
    for name, entropy in levels.items():
        for label, recording in recordings.items():
            if (of_heads := entropy(recording)) is not None:
                drawn.setdefault(name, {})[label] = of_heads
    figure, (row,) = grid(1, len(drawn), width=4.6, height=3.4)
    for axes, (name, by_label) in zip(row, drawn.items(), strict=True):
        layers, heads = next(iter(by_label.values())).shape
        thick = 0.8 / len(by_label)
        for index, (label, value) in enumerate(by_label.items()):
            where = np.arange(layers * heads) + (index - (len(by_label) - 1) / 2) * thick
            axes.bar(where, value.flatten().numpy(), width=0.9 * thick, color=color(index), label=label)
        axes.axhline(1, color="0.5", linestyle=":", linewidth=1)
        names = [f"{layer + 1}.{head + 1}" for layer in range(layers) for head in range(heads)]
        axes.set_xticks(range(layers * heads), names)
        axes.set(xlabel="layer.head", ylabel="relative entropy", ylim=(0, 1.08), title=name)
    legend(figure, row[0])
    return figure


@styled
def plot_maps(recording: Recording, *, trial: int) -> "Figure":
    """Attention maps of both levels in a trial's last decision, by layer and head; rows are queries."""
    levels: dict[str, Tensor] = {}
    if recording.last.window_attention is not None:
        levels["intra"] = recording.last.window_attention[trial]
    if recording.last.slot_attention is not None:
        levels["inter"] = recording.last.slot_attention[trial]
    rows = [(level, layer, maps[layer]) for level, maps in levels.items() for layer in range(len(maps))]
    heads = len(rows[0][2])
    figure, all_axes = grid(len(rows), heads, width=1.9, height=1.9)
    for axes_of_row, (level, layer, maps) in zip(all_axes, rows, strict=True):
        size = maps.shape[-1]
        names = [*(str(i - size + 1) for i in range(size - 1)), "now"]
        ticks = range(size) if size <= 5 else range(size - 1, -1, -3)
        for head, axes in enumerate(axes_of_row):
            axes.imshow(maps[head].numpy(), vmin=0, vmax=1, cmap=MAP)
            axes.set_xticks(list(ticks), [names[tick] for tick in ticks])
            axes.set_yticks(list(ticks), [names[tick] for tick in ticks])
            axes.set_title(f"{level} {layer + 1}.{head + 1}")
    figure.colorbar(scale(MAP, 0, 1), ax=[axes for row in all_axes for axes in row], label="attention", shrink=0.6)
    return figure


@styled
def plot_retrieval(recording: Recording, retrieved: Mapping[str, Retrieved], *, trial: int, window: int) -> "Figure":
    """The rewards of a trial's past episodes, overlaid with each strategy's windows, coloured by attention."""
    from matplotlib.patches import Rectangle

    episodes = max([1, *(e + 1 for one in retrieved.values() for e, _ in one.windows)])
    rewards = recording.tokens[trial, :episodes, 1:, -2]  # [k, H]: reward t is in token t + 1
    low, high = float(rewards.min()), float(rewards.max())
    scaled = (rewards - low) / max(high - low, 1e-12)
    figure, (row,) = grid(1, len(retrieved), width=3.4, height=0.8 + 0.55 * max(3, episodes))
    brightest = max(float(one.attention[:-1].max()) if len(one.windows) else 0.0 for one in retrieved.values())
    colors = scale("YlOrRd", 0, max(brightest, 1e-6))
    horizon = rewards.shape[1]
    for axes, (name, one) in zip(row, retrieved.items(), strict=True):
        for (episode, start), attention in zip(one.windows, one.attention[:-1], strict=True):
            box = (start - 0.5, episode + 0.55)
            width = min(window, horizon + 1 - start)
            axes.add_patch(
                Rectangle(box, width, 0.9, facecolor=colors.to_rgba(float(attention)), edgecolor="0.3", lw=0.6)
            )
        for episode in range(episodes):
            axes.plot(
                np.arange(1, horizon + 1), episode + 0.6 + 0.8 * scaled[episode].numpy(), color=COLORS[0], linewidth=0.9
            )
            if recording.success[trial, episode]:
                at = float(recording.first_success[trial, episode]) + 1
                axes.plot(at, episode + 1, marker="v", color=SUCCESS, markersize=5)
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
