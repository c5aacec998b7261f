"""Inspection during training, at each evaluation: TensorBoard records and warning signs."""

import time
from typing import TYPE_CHECKING

from tensordict import TensorDictBase

from htrmrl_torchrl import keys
from htrmrl_torchrl.agent.networks import Networks
from htrmrl_torchrl.inspection.health import warning_signs
from htrmrl_torchrl.inspection.training import look, update_forgetting
from htrmrl_torchrl.runs.console import best_effort, note
from htrmrl_torchrl.runs.loggers import RunLogger
from htrmrl_torchrl.runs.progress import Progress

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def look_inside(
    networks: Networks,
    minibatch: TensorDictBase | None,
    metrics: dict[str, float],
    progress: Progress,
    logger: RunLogger,
    *,
    total_frames: int,
) -> dict[str, float]:
    """Inspects the last minibatch (``None`` after an undone update), logs a picture and histograms, and returns metrics
    beside the ``metrics`` of an evaluation. Prints each warning sign once; ``progress`` keeps which, and the best
    success by task.
    """
    started = time.perf_counter()
    frames = progress.frames
    seen = update_forgetting(progress.best_by_task, metrics)
    if minibatch is not None:
        numbers, figure = look(networks, minibatch)
        seen |= numbers
        with best_effort("pictures of the inside"):
            _draw(networks, minibatch, figure, logger, frames)
    signs = warning_signs(
        metrics | seen, best_val_success=progress.best_val_success, share_of_run=frames / total_frames
    )
    for sign, line in signs.items():
        if sign not in progress.warned:
            progress.warned.append(sign)
            note(f"warning at {frames:,} frames: {line}")
    return seen | {"time/inspect": time.perf_counter() - started}


def _draw(
    networks: Networks, minibatch: TensorDictBase, figure: "Figure | None", logger: RunLogger, frames: int
) -> None:
    if figure is not None:
        logger.log_figure("attention/maps", figure, frames)
    action, std = minibatch[keys.ACTION], networks.actor.get_dist(minibatch.copy()).stddev
    for dimension in range(action.shape[-1]):
        logger.log_histogram(f"action/{dimension + 1}", action[..., dimension], frames)
        logger.log_histogram(f"std/{dimension + 1}", std[..., dimension], frames)
