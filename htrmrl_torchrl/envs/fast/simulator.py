"""Fast Meta-World simulators as subclasses of the official classes, which are not changed."""

import copy
import math
import weakref
from functools import cache
from typing import Any

import mujoco
import numpy as np
import numpy.typing as npt
from metaworld.env_dict import ALL_V3_ENVIRONMENTS
from metaworld.sawyer_xyz_env import SawyerXYZEnv

from htrmrl_torchrl.envs.fast.hand import HandCache, Snapshot, hand_key
from htrmrl_torchrl.envs.fast.rebuild import fast_class
from htrmrl_torchrl.envs.fast.views import NamedData

_ONES = np.ones(3, dtype=np.float32)
_DOWNWARDS = np.array([1.0, 0.0, 1.0, 0.0])  # the hand's orientation
_FRAME = 18  # numbers of one frame; an observation is this frame, the one before, and the goal


def fast_simulator(name: str) -> Any:
    """A simulator of the Meta-World task ``name``: the official one's results, several times as fast."""
    return _class_of(name)()


@cache
def _class_of(name: str) -> Any:
    return fast_class(ALL_V3_ENVIRONMENTS[name], FastSawyer)


class FastSawyer(SawyerXYZEnv):
    """Methods that replace those of ``SawyerXYZEnv``, placed before a task's own class."""

    _hand_cache: HandCache  # of the class, so that all simulators of a task share what each has computed
    _stepped_to: tuple[bytes, bytes] | None = None  # the state that the last step ended in; none since a reset

    @property
    def tcp_center(self) -> npt.NDArray[np.float64]:
        """Between the fingertips; rewards read it several times a step."""
        right, left = self._fingertips
        return (right + left) / 2.0  # type: ignore[no-any-return]

    def _initialize_simulation(self) -> tuple[Any, Any]:
        model = copy.copy(_compiled_model(self.fullpath))
        model.vis.global_.offwidth = max(model.vis.global_.offwidth, self.width)
        model.vis.global_.offheight = max(model.vis.global_.offheight, self.height)
        data = NamedData(model)
        weakref.finalize(self, data.release).atexit = False
        self._qpos, self._qvel = data.qpos, data.qvel  # live views, as are those below
        self._fingertips = tuple(data.site(name).xpos for name in ("rightEndEffector", "leftEndEffector"))
        self._hand_and_claws = tuple(data.body(name).xpos for name in ("hand", "rightclaw", "leftclaw"))
        self._ctrl, self._mocap_pos, self._mocap_quat = data.ctrl, data.mocap_pos[0], data.mocap_quat[0]
        return model, data

    def set_goal(self, rand_vec: npt.NDArray[np.float64]) -> None:
        """``set_task`` without its pickles: the goal vector of the next resets."""
        self._set_task_called = self._freeze_rand_vec = True
        self._last_rand_vec = rand_vec.copy()

    def reset(self, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        """As the official one, which resets the model twice: the first pass moves bodies that affect the second.

        Here the first pass also starts from the cleared state, so that the cache can find it. The result depends on the
        goal alone (but for one unused value, the drawn height of push's and push-back's goal marker before the first
        step).
        """
        self.curr_path_length, self._stepped_to = 0, None
        mujoco.mj_resetData(self.model, self.data)
        self.reset_model()
        mujoco.mj_resetData(self.model, self.data)
        observation = self.reset_model()
        self._prev_obs = observation[:_FRAME].copy()
        observation[_FRAME : 2 * _FRAME] = self._prev_obs
        return observation, {}

    def step(self, action: npt.NDArray[np.float32]) -> tuple[Any, Any, bool, bool, dict[str, Any]]:
        if self.curr_path_length >= self.max_path_length:
            raise ValueError("You must reset the env manually once truncate==True")
        self._simulate(action)
        self.curr_path_length += 1
        observation = self._get_obs()
        space = self.sawyer_observation_space
        np.maximum(observation, space.low, out=observation)
        np.minimum(observation, space.high, out=observation)
        reward, info = self.evaluate_state(observation, action)
        return observation, reward, False, self.curr_path_length == self.max_path_length, info

    def _simulate(self, action: npt.NDArray[np.float32]) -> None:
        """Move the mocap body and the gripper, and run five physics steps.

        Omits ``mj_rnePostConstraint`` (its forces are not read) and moving the target sites (``mj_forward`` does it).
        """
        offset = np.minimum(np.maximum(action[:3], -_ONES), _ONES) * self.action_scale
        moved = np.maximum(self._mocap_pos + offset, self.mocap_low)
        np.minimum(moved, self.mocap_high, out=self._mocap_pos)
        self._mocap_quat[:] = _DOWNWARDS
        grip = action[-1]
        self._ctrl[0], self._ctrl[1] = grip, -grip
        model, data, steps = self.model, self.data, self.frame_skip
        if self._stepped_to == self._state() and self._is_tame():
            _first_step(model, data)
            steps -= 1
        mujoco.mj_step(model, data, nstep=steps)
        mujoco.mj_forward(model, data)
        self._stepped_to = self._state()

    def _state(self) -> tuple[bytes, bytes]:
        return self._qpos.tobytes(), self._qvel.tobytes()

    def _is_tame(self) -> bool:
        """Whether all positions and velocities are far below 1e10, beyond which ``mj_step`` resets the simulation."""
        return bool(self._qpos.dot(self._qpos) + self._qvel.dot(self._qvel) < 1e20)

    def _get_obs(self) -> npt.NDArray[np.float64]:
        observation = np.zeros(2 * _FRAME + 3)
        frame = self._get_curr_obs_combined_no_goal()
        observation[:_FRAME] = frame
        observation[_FRAME : 2 * _FRAME] = self._prev_obs
        if not self._partially_observable:
            observation[2 * _FRAME :] = self._get_pos_goal()
        self._prev_obs = frame
        return observation

    def _get_curr_obs_combined_no_goal(self) -> npt.NDArray[np.float64]:
        """Hand, gripper, then (position, quaternion) of each object."""
        frame, (hand, right, left) = np.zeros(_FRAME), self._hand_and_claws
        frame[:3] = hand
        apart = right - left
        frame[3] = min(max(math.sqrt(apart.dot(apart)) / 0.1, 0.0), 1.0)
        positions, quaternions = self._get_pos_objects(), self._get_quat_objects()
        if len(positions) == 3:
            frame[4:7], frame[7:11] = positions, quaternions
        else:
            frame[4:7], frame[7:11] = positions[:3], quaternions[:4]
            frame[11:14], frame[14:18] = positions[3:], quaternions[4:]
        return frame

    def _reset_hand(self, steps: int = 50) -> None:
        key = hand_key(self.model, self.data, np.asarray(self.hand_init_pos), steps)
        snapshot = self._hand_cache.find(key)
        if snapshot is None:
            super()._reset_hand(steps)
            self._hand_cache.keep(key, Snapshot.take(self.model, self.data))
        else:
            snapshot.restore(self.model, self.data)
            super()._reset_hand(0)  # what it does besides stepping

    def touching_object(self, object_geom_id: int) -> bool:
        """As the official one, but reads all contacts at once."""
        contact = self.data.contact
        geoms = contact.geom.tolist()  # [contacts, 2]
        touching = [index for index, pair in enumerate(geoms) if object_geom_id in pair]
        if not touching:
            return False
        forces, addresses = self.data.efc_force, contact.efc_address
        for pad in ("leftpad_geom", "rightpad_geom"):
            pad_id = self.data.geom(pad).id
            if not sum(forces[addresses[index]] for index in touching if pad_id in geoms[index]) > 0:
                return False
        return True


def _first_step(model: Any, data: Any) -> None:
    """``mj_step`` right after an ``mj_forward`` of this state, when only mocap and control have changed since.

    Skips what they cannot change: centres of mass, inertias, contacts (the mocap geom has no collisions), gravity and
    friction. The rest follows the order of ``mj_step``.
    """
    mujoco.mj_kinematics(model, data)
    mujoco.mj_makeConstraint(model, data)
    mujoco.mj_projectConstraint(model, data)
    mujoco.mj_referenceConstraint(model, data)
    mujoco.mj_step2(model, data)


@cache
def _compiled_model(path: str) -> Any:
    """Compiled once and copied for each simulator: copying is ten times as fast."""
    return mujoco.MjModel.from_xml_path(path)
