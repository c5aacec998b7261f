"""A toy task whose optimum is known on paper: find the hidden goal once, then remember it.

A point starts at the origin of the unit disc and moves by ``0.4 * action`` per step. The reward is 0 until an episode's
last step, which pays ``<goal, position>``: only that number reveals the goal.

The reward is at most 1, at the goal. In the first episode every goal is equally likely: the best action reaches one
goal in four, and the expected reward ``<mean of goals, position>`` is at most ``|mean of goals| = 0.063``. (The mean
points to within 2 degrees of a goal, so both are reached together.) The inner products of any goal's position with the
four goals differ by at least 0.26, so afterwards the goal is known:

    success by episode   1/4    1  1  ...
    return by episode    0.063  1  1  ...

Without memory, or with memory of the running episode only, every episode has the first entry.
"""

from functools import partial

import numpy as np

from htrmrl_torchrl.envs.lanes import (
    Benchmark,
    BoolArray,
    FloatArray,
    IntArray,
    LaneKind,
    Picture,
    check_positive,
)
from htrmrl_torchrl.extras import require

TASK_NAME = "hidden-goal"
STEP_SIZE = 0.4
SUCCESS_RADIUS = 0.5

# Irregular angles (gaps 65, 100, 85, 110 degrees; goals at least 1.07 apart): in a symmetric layout two goals would
# give the same reward at a third one. Ties remain only on the six lines halfway between two goals.
GOAL_ANGLES = (20.0, 85.0, 185.0, 270.0)
GOALS: FloatArray = np.stack(
    [np.cos(np.deg2rad(GOAL_ANGLES)), np.sin(np.deg2rad(GOAL_ANGLES))], axis=-1, dtype=np.float32
)  # [4, 2]


class ToyLanes:
    """Vectorised hidden-goal toy; its only task has index 0. From ``horizon`` 3 on every goal can be reached.

    Example:
        >>> lanes = ToyLanes(num_lanes=1, horizon=6)
        >>> lanes.reset(np.array([0]), np.array([0]), np.array([3]))
        array([[0., 0., 1.]], dtype=float32)
    """

    obs_dim = 3  # position x, y and the remaining share of the episode
    divergences = 0  # never
    action_low: FloatArray = np.array([-1.0, -1.0], dtype=np.float32)
    action_high: FloatArray = np.array([1.0, 1.0], dtype=np.float32)

    def __init__(self, *, num_lanes: int, horizon: int) -> None:
        check_positive(num_lanes=num_lanes, horizon=horizon)
        self.num_lanes, self.horizon = num_lanes, horizon
        self._position = np.zeros((num_lanes, 2), dtype=np.float32)
        self._goal = np.zeros((num_lanes, 2), dtype=np.float32)
        self._steps = np.zeros(num_lanes, dtype=np.int64)

    def reset(self, lanes: IntArray, tasks: IntArray, goals: IntArray, draws: IntArray | None = None) -> FloatArray:
        """Move these environments to the origin, with hidden goals ``goals``."""
        self._position[lanes] = 0.0
        self._steps[lanes] = 0
        self._goal[lanes] = GOALS[goals]
        return self._observation()[lanes]

    def step(self, actions: FloatArray) -> tuple[FloatArray, FloatArray, BoolArray]:
        """Move all points; only the step that reaches the horizon can pay or succeed."""
        position = self._position + np.float32(STEP_SIZE) * actions
        # Projected onto the disc, so that the goal itself has the highest reward.
        self._position = position / np.maximum(np.linalg.norm(position, axis=-1, keepdims=True), 1.0)
        self._steps += 1
        last = self._steps == self.horizon
        reward = np.where(last, (self._goal * self._position).sum(-1), 0.0).astype(np.float32)
        success = last & (np.linalg.norm(self._position - self._goal, axis=-1) < SUCCESS_RADIUS)
        return self._observation(), reward, success

    def _observation(self) -> FloatArray:
        left = 1.0 - self._steps[:, None] / self.horizon
        return np.concatenate([self._position, left], axis=-1, dtype=np.float32)

    def render(self, lane: int, *, size: int) -> Picture:
        """The disc with all goals, the hidden one in orange, and the point, [size, size, 3]."""
        require("video", "PIL")
        from PIL import Image, ImageDraw

        large = 4 * size  # drawn large and scaled down: smooth edges
        image = Image.new("RGB", (large, large), "#f4f1ea")
        draw = ImageDraw.Draw(image)

        def circle(center: FloatArray, radius: float, fill: str | None, line: str) -> None:
            x, y = (0.5 + 0.24 * np.array([1.0, -1.0]) * center) * large  # y grows upwards
            reach = 0.24 * radius * large
            draw.ellipse((x - reach, y - reach, x + reach, y + reach), fill=fill, outline=line, width=large // 150)

        circle(np.zeros(2, np.float32), 1.0, "#ffffff", "#b9b2a5")
        for goal in GOALS:
            hidden = bool((goal == self._goal[lane]).all())
            circle(goal, SUCCESS_RADIUS, "#fbd9a5" if hidden else None, "#e07b00" if hidden else "#c9c3b8")
        circle(self._position[lane], 0.09, "#1f5fbf", "#ffffff")
        return np.array(image.resize((size, size), Image.Resampling.LANCZOS))

    def close(self) -> None:
        """Nothing to free."""


def build_lanes(horizon: int, num_lanes: int) -> ToyLanes:
    """:class:`ToyLanes` with positional arguments; a worker appends the number of environments."""
    return ToyLanes(num_lanes=num_lanes, horizon=horizon)


def _lanes(split: str, horizon: int, benchmark_seed: int) -> LaneKind:
    builder = partial(build_lanes, horizon)
    return LaneKind(builder, ToyLanes.obs_dim, ToyLanes.action_low, ToyLanes.action_high)


BENCHMARK = Benchmark(
    name="toy",
    train=(TASK_NAME,),
    test=(TASK_NAME,),
    num_goals=len(GOALS),
    lanes=_lanes,
    default_horizon=6,
    needs_opengl=False,
    steps_per_second=4.0,  # for videos; the toy has no time unit
)
