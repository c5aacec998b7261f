"""Simulators that diverge: how MuJoCo handles it, and how it is noticed.

When a position, velocity or acceleration is NaN or beyond 1e10, MuJoCo (since 2.1) writes a warning to stderr and to
``MUJOCO_LOG.TXT``, puts the simulation back to the model's first pose and time, and goes on. Environments see nothing
of it: the episode continues from another place, with finite observations. (Meta-World has a path of its own for this,
``_did_see_sim_exception``, which repeats the last observation with reward 0; it dates from mujoco-py, and in Meta-World
3.1.1 nothing sets the flag.) So the trajectory is left as it is, the same as everywhere else, and the event is counted.
"""

from typing import Any

# Of the warnings that MjData counts, mjWARN_BADQPOS, mjWARN_BADQVEL and mjWARN_BADQACC. (Numbers, because this is
# imported where there may be no simulator, and mujoco takes its time.)
UNSTABLE = slice(4, 7)
_NONE = bytes(3 * 4)


def diverged(data: Any) -> bool:
    """Whether this ``MjData`` has diverged since its last reset or since this was last asked."""
    numbers = data.warning.number[UNSTABLE]
    if numbers.tobytes() == _NONE:  # bytes: a third of the time that ``numbers.any()`` takes
        return False
    numbers[:] = 0
    return True
