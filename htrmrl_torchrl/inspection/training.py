"""What is inspected during training, from the last minibatch: numbers, and one picture.

Neither an environment nor random numbers are used, so inspection changes no run.
"""

from collections import defaultdict
from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np
import torch
from tensordict import TensorDictBase
from torch import Tensor

from htrmrl_torchrl import keys
from htrmrl_torchrl.agent.networks import Networks
from htrmrl_torchrl.encoders.contract import ContextEncoder, Inside
from htrmrl_torchrl.encoders.hierarchical import HierarchicalEncoder
from htrmrl_torchrl.inspection.attention import entropy, relative_entropy
from htrmrl_torchrl.inspection.style import MAP, styled

if TYPE_CHECKING:
    from matplotlib.figure import Figure

DECISIONS = 512  # looked into at most
_TILE = 24  # pixels of the picture for each map


def newest_decisions(minibatch: TensorDictBase) -> TensorDictBase:
    """The last decision of each segment of a minibatch ``[segments, S]``, at most `DECISIONS`: ``[F]``.

    Of a flat minibatch ``[frames]``, where segments differ in length, as many at even distances.
    """
    if minibatch.ndim == 1:
        return minibatch[:: max(1, -(-len(minibatch) // DECISIONS))]
    return minibatch[:DECISIONS, -1]


@torch.no_grad()
def attention_entropy(encoder: ContextEncoder, minibatch: TensorDictBase) -> dict[str, float]:
    """``attention/<level>_entropy``, in nats, of the newest position in each level's last layer, mean over heads.

    Of all decisions of a minibatch, by the fast path; nothing of encoders that do not attend.
    """
    if not isinstance(encoder, HierarchicalEncoder):
        return {}
    levels = zip(("intra", "inter"), encoder.attention_weights(minibatch[keys.CONTEXT]), strict=True)
    return {f"attention/{level}_entropy": entropy(rows).mean().item() for level, rows in levels if rows.shape[-1]}


def attention_metrics(inside: Inside, context: TensorDictBase) -> dict[str, float]:
    """``attention/*`` of decisions ``[F]``: evenness by level, layer and head, and what share the past gets."""
    metrics: dict[str, float] = {}
    if inside.window_attention is not None:
        newest = inside.window_attention[..., -1, :]  # [F, L1, H, T]
        metrics |= _by_head("attention/intra_evenness", relative_entropy(newest, context[keys.CURRENT_MASK[1]]))
    if inside.slot_attention is not None:
        newest, past = inside.slot_attention[..., -1, :], context[keys.SLOT_MASK[1]]  # [F, L2, H, E]
        held = torch.cat([past, past.new_ones(len(past), 1)], -1)
        metrics |= _by_head("attention/inter_evenness", relative_entropy(newest, held))
        some = past.any(-1)
        if some.any():
            metrics["attention/past_share"] = newest[some, -1, :, :-1].sum(-1).mean().item()
    return metrics


def _by_head(prefix: str, values: Tensor) -> dict[str, float]:
    return {
        f"{prefix}/{layer + 1}.{head + 1}": value
        for layer, heads in enumerate(values.tolist())
        for head, value in enumerate(heads)
        if value == value  # not a number where no decision had a choice
    }


def window_metrics(decisions: TensorDictBase, inside: Inside) -> dict[str, float]:
    """``memory/*`` of decisions ``[F]``: how much the windows that they see differ.

    Means over decisions that see at least one window (for distances: two).
    """
    context = decisions[keys.CONTEXT]
    held = context.get(keys.SLOT_MASK[1], None)  # [F, E-1]
    if held is None or not held.shape[-1]:
        return {}
    metrics = {"memory/masked": 1 - context[keys.PAST_MASK[1]].float().mean().item()}
    count = held.sum(-1)
    some, several = count > 0, count > 1
    if some.any():
        used = count[some]
        episodes, windows = (
            _distinct(label, held)[some] for label in (decisions[keys.WINDOW_EPISODE], context[keys.PAST_ID[1]])
        )
        metrics["memory/distinct_episodes"] = (episodes / used).mean().item()
        metrics["memory/duplicates"] = 1 - (windows / used).mean().item()
    if several.any() and inside.past_embedding is not None:
        unit = torch.nn.functional.normalize(inside.past_embedding[several], dim=-1)  # zero where a slot is empty
        pairs = count[several] * (count[several] - 1)
        alike = (unit.sum(1).square().sum(-1) - count[several]) / pairs  # mean cosine over pairs of held slots
        metrics["memory/window_distance"] = (1 - alike).mean().item()
    return metrics


def _distinct(label: Tensor, held: Tensor) -> Tensor:
    """How many different labels the held slots of each row have, ``[F]``."""
    same = (label.unsqueeze(-1) == label.unsqueeze(-2)) & held.unsqueeze(-1) & held.unsqueeze(-2)
    earlier = same.tril(-1).any(-1)
    return (held & ~earlier).sum(-1)


def norm_metrics(networks: Networks) -> dict[str, float]:
    """``norm/weight/<block>`` and ``norm/gradient/<block>``: Euclidean norms, of the gradient that is at hand."""
    blocks: dict[str, dict[int, torch.nn.Parameter]] = defaultdict(dict)
    seen: set[int] = set()
    for owner, module in (("encoder", networks.encoder), ("actor", networks.actor), ("critic", networks.critic)):
        for name, parameter in module.named_parameters():
            if id(parameter) not in seen:
                blocks[_block(name) if owner == "encoder" else owner][id(parameter)] = parameter
                seen.add(id(parameter))
    metrics = {}
    for block, parameters in blocks.items():
        metrics[f"norm/weight/{block}"] = _norm([p.detach() for p in parameters.values()])
        if gradients := [p.grad for p in parameters.values() if p.grad is not None]:
            metrics[f"norm/gradient/{block}"] = _norm(gradients)
    return metrics


def _block(name: str) -> str:
    """``intra.layers.0.attention.query.weight`` belongs to ``intra.1``, ``intra.embed.weight`` to ``intra.embed``."""
    parts = name.split(".")
    return f"{parts[0]}.{int(parts[2]) + 1}" if len(parts) > 2 and parts[1] == "layers" else ".".join(parts[:2])


def _norm(tensors: list[Tensor]) -> float:
    return torch.stack([tensor.norm() for tensor in tensors]).norm().item()


def update_forgetting(best: dict[str, float], metrics: Mapping[str, float]) -> dict[str, float]:
    """``eval/val_forgetting``, with ``/<task>``: how far success on ``val`` is below its ``best``, which is updated.

    Also ``eval/val_test_gap``, how far ``test`` is below ``val``. ``metrics`` are those of an evaluation.
    """
    prefix = "eval/val_success/"
    forgetting = {}
    for name, success in metrics.items():
        if name.startswith(prefix):
            task = name.removeprefix(prefix)
            best[task] = max(best.get(task, 0.0), success)
            forgetting[f"eval/val_forgetting/{task}"] = best[task] - success
    if forgetting:
        forgetting["eval/val_forgetting"] = sum(forgetting.values()) / len(forgetting)
    if "eval/val_success" in metrics and "eval/test_success" in metrics:
        forgetting["eval/val_test_gap"] = metrics["eval/val_success"] - metrics["eval/test_success"]
    return forgetting


@styled
def plot_decisions(inside: Inside, *, rows: list[int]) -> "Figure":
    """Whole attention maps of some decisions: one row each, a tile for each layer and head of both levels.

    One set of axes for all tiles: drawn in a tenth of the time of one for each.
    """
    from matplotlib.figure import Figure

    columns = [
        (f"{level} {layer + 1}.{head + 1}", maps[:, layer, head])
        for level, maps in (("intra", inside.window_attention), ("inter", inside.slot_attention))
        if maps is not None
        for layer in range(maps.shape[1])
        for head in range(maps.shape[2])
    ]
    tiles = [[_tile(maps[row].cpu().numpy()) for _, maps in columns] for row in rows]
    picture = np.concatenate([np.concatenate(row, 1) for row in tiles], 0)
    figure = Figure(figsize=(0.9 * len(columns) + 0.8, 0.9 * len(rows) + 0.6), layout="constrained", dpi=80)
    axes = figure.subplots()
    axes.imshow(picture, vmin=0, vmax=1, cmap=MAP, interpolation="nearest")
    step = _TILE + 2
    axes.set_xticks([step * i + _TILE / 2 for i in range(len(columns))], [name for name, _ in columns], rotation=90)
    axes.set_yticks([step * i + _TILE / 2 for i in range(len(rows))], [f"decision {i + 1}" for i in range(len(rows))])
    axes.tick_params(length=0)
    for side in axes.spines.values():
        side.set_visible(False)
    return figure


def _tile(attention: np.ndarray) -> np.ndarray:
    """``[L, L]`` stretched to `_TILE` pixels, with a rim of nothing."""
    size = attention.shape[0]
    index = np.arange(_TILE) * size // _TILE
    return np.pad(attention[index][:, index], ((0, 2), (0, 2)), constant_values=np.nan)


def fullest(decisions: TensorDictBase, *, count: int) -> list[int]:
    """Of decisions ``[F]`` those that see the most windows, of different tasks first; the earliest among equals."""
    held = decisions[keys.SLOT_MASK].sum(-1).tolist()
    task = decisions.get(keys.TASK, torch.zeros(len(held), 1)).flatten().tolist()
    order = sorted(range(len(held)), key=lambda row: (-held[row], row))
    first = {task[row]: row for row in reversed(order)}  # the best of each task
    chosen = sorted(first.values(), key=order.index)
    return (chosen + [row for row in order if row not in chosen])[:count]


def look(networks: Networks, minibatch: TensorDictBase) -> tuple[dict[str, float], "Figure | None"]:
    """All numbers of this module that a minibatch ``[segments, S]`` tells, and the picture for encoders that attend."""
    metrics = norm_metrics(networks)
    if not isinstance(networks.encoder, HierarchicalEncoder):
        return metrics, None
    decisions = newest_decisions(minibatch)
    inside = networks.encoder.inspect(decisions[keys.CONTEXT])
    metrics |= attention_metrics(inside, decisions[keys.CONTEXT]) | window_metrics(decisions, inside)
    return metrics, plot_decisions(inside, rows=fullest(decisions, count=3))
