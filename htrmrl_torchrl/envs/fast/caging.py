"""Meta-World's caging reward (``SawyerXYZEnv._gripper_caging_reward``) in plain floats."""

import math
from typing import Any

import numpy as np
import numpy.typing as npt

from htrmrl_torchrl.envs.fast.lean import lean_rewards

_tolerance, _hamacher_product = lean_rewards.tolerance, lean_rewards.hamacher_product


def gripper_caging_reward(
    self: Any,
    action: npt.NDArray[np.float32],
    obj_pos: npt.NDArray[np.float64],
    obj_radius: float,
    pad_success_thresh: float,
    object_reach_radius: float,
    xz_thresh: float,
    desired_gripper_effort: float = 1.0,
    high_density: bool = False,
    medium_density: bool = False,
) -> float:
    """The official function's arguments and result, bit for bit; its comments explain the idea.

    Dot products stay numpy's (its BLAS may fuse multiply and add), and the gripper's command stays float32.
    """
    if high_density and medium_density:
        raise ValueError("Can only be either high_density or medium_density")
    x, y, z = obj_pos.tolist()
    init_x, init_y, init_z = self.obj_init_pos.tolist()
    pads = [self.get_body_com(pad)[1].item() for pad in ("leftpad", "rightpad")]
    caging_left, caging_right = (
        _tolerance(
            abs(pad - y),
            bounds=(obj_radius, pad_success_thresh),
            margin=abs(abs(pad - init_y) - pad_success_thresh),
            sigmoid="long_tail",
        )
        for pad in pads
    )
    tcp = self.tcp_center
    tcp_x, _, tcp_z = tcp.tolist()
    init_tcp_x, _, init_tcp_z = self.init_tcp.tolist()
    caging_xz = _tolerance(
        _length(np.array((tcp_x - x, tcp_z - z))),
        bounds=(0, xz_thresh),
        margin=_length(np.array((init_x - init_tcp_x, init_z - init_tcp_z))) - xz_thresh,
        sigmoid="long_tail",
    )
    gripper_closed = min(max(0, action[-1]), desired_gripper_effort) / desired_gripper_effort
    caging = _hamacher_product(_hamacher_product(caging_left, caging_right), caging_xz)
    reward = _hamacher_product(caging, gripper_closed if caging > 0.97 else 0.0)
    if high_density:
        reward = (reward + caging) / 2
    if medium_density:
        reach = _tolerance(
            _length(obj_pos - tcp),
            bounds=(0, object_reach_radius),
            margin=abs(_length(self.obj_init_pos - self.init_tcp) - object_reach_radius),
            sigmoid="long_tail",
        )
        reward = (reward + reach) / 2
    return reward


def _length(vector: npt.NDArray[np.float64]) -> float:
    return math.sqrt(vector.dot(vector))
