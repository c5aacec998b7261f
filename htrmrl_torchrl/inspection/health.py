"""Warning signs of a run, at most one line each. The thresholds are rules of thumb. Untrained networks also show
uniform attention and equal window embeddings, so these count only after `WARM_UP`.
"""

from collections.abc import Mapping

WARM_UP = 0.25  # share of the run in which a network may still look untrained
DEAD_HEAD = 0.995  # evenness above which a head attends uniformly
COLLAPSED = 0.02  # mean evenness of a level's heads below which all attend to one position
ALIKE = 0.01  # mean cosine distance below which remembered windows are nearly equal
DUPLICATES = 2 / 3  # share of slots that repeat another slot's window; 1/2 for independent draws with E = K
FORGOTTEN = 0.5  # fall of a task's held-out success below its best
FALLING = 0.2  # fall of the held-out success over all tasks below its best


def warning_signs(
    metrics: Mapping[str, float], *, best_val_success: float, share_of_run: float = 1.0
) -> dict[str, str]:
    """One line for each sign in the ``metrics`` of an evaluation (see docs/reference/metrics.md), by the sign's name.
    ``best_val_success`` is the best ``eval/val_success`` so far, ``share_of_run`` the completed share, 0 to 1.

    Example:
        >>> warning_signs({"memory/duplicates": 0.75}, best_val_success=0.0)["saturated memory"]
        'memory: 75% of the slots in use repeat another one; try another memory.strategy or fewer encoder.episodes'
    """
    signs: dict[str, str] = {}
    warm = share_of_run >= WARM_UP
    for level in ("intra", "inter"):
        prefix = f"attention/{level}_evenness/"
        heads = {name.removeprefix(prefix): x for name, x in metrics.items() if name.startswith(prefix)}
        if warm and (dead := [head for head, evenness in heads.items() if evenness > DEAD_HEAD]):
            signs[f"dead heads, {level}"] = (
                f"attention: {level} heads {', '.join(dead)} (layer.head) attend uniformly (evenness above {DEAD_HEAD})"
            )
        if heads and sum(heads.values()) / len(heads) < COLLAPSED:
            signs[f"collapsed attention, {level}"] = (
                f"attention: all {level} heads attend to a single position (mean evenness below {COLLAPSED})"
            )
    if (share := metrics.get("memory/duplicates", 0.0)) > DUPLICATES:
        signs["saturated memory"] = (
            f"memory: {share:.0%} of the slots in use repeat another one; try another memory.strategy or fewer "
            "encoder.episodes"
        )
    elif warm and (distance := metrics.get("memory/window_distance", 1.0)) < ALIKE:
        signs["saturated memory"] = (
            f"memory: the embeddings of the remembered windows are nearly equal (mean cosine distance {distance:.1e})"
        )
    prefix = "eval/val_forgetting/"
    lost = {name.removeprefix(prefix): x for name, x in metrics.items() if name.startswith(prefix) and x > FORGOTTEN}
    if lost:
        fell = ", ".join(f"{task} by {fall:.2f}" for task, fall in sorted(lost.items(), key=lambda pair: -pair[1]))
        signs["forgotten tasks"] = f"forgetting: held-out success is below its best so far in {fell}"
    if best_val_success - metrics.get("eval/val_success", best_val_success) > FALLING:
        signs["falling held-out success"] = (
            f"held-out success fell to {metrics['eval/val_success']:.2f} from its best of {best_val_success:.2f}; the "
            "best checkpoint is kept"
        )
    return signs
