"""Detect simulators that diverge.

If a position, velocity or acceleration is NaN or beyond 1e10, MuJoCo (since 2.1) warns on stderr and in
``MUJOCO_LOG.TXT``, resets the simulation to the model's initial state, and continues. The environment sees a jump with
finite observations. We leave the trajectory as it is and count the event. (Nothing sets the flag
``_did_see_sim_exception`` in Meta-World 3.1.1.)
"""

from typing import Any

# MjData's counters mjWARN_BADQPOS, BADQVEL and BADQACC; as numbers, because importing mujoco is slow.
UNSTABLE = slice(4, 7)
_NONE = bytes(3 * 4)


def diverged(data: Any) -> bool:
    """Whether this ``MjData`` has diverged since its last reset or the last call."""
    numbers = data.warning.number[UNSTABLE]
    if numbers.tobytes() == _NONE:  # three times as fast as ``numbers.any()``
        return False
    numbers[:] = 0
    return True
