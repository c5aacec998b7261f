"""Disguises: in training, each trial changes how its task looks and answers, so that acting alone reveals the task.

Ten training tasks are recognised by their first observation, and then there is nothing left to adapt to. A disguise is
drawn when a trial starts, stays the same in all of its episodes, and is off in evaluation. Success is that of the task
underneath. The agent remembers its own actions, not what a disguise makes of them.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np

from htrmrl_torchrl.envs.lanes import FloatArray, IntArray, Layout, check_choice

Kind = Literal["mirror", "shift", "gain", "flip", "reward", "objects", "noise", "blank"]
KINDS: tuple[str, ...] = get_args(Kind)
OF_POSITIONS = ("mirror", "shift", "objects")  # which need a `Layout`

SHIFT = 0.1  # metres, at most, along each axis
GAIN = (0.5, 1.5)
FLIPPED = 0.25  # probability for each axis of the action
REWARD = (0.3, 3.0)
NOISE = 0.01  # standard deviation in an observation's units, at most
BLANK = 0.2  # probability of a step, at most


@dataclass
class _Drawn:
    """What N environments play now."""

    sign: FloatArray  # [N, o] factor of each observation, 0 hides it
    shift: FloatArray  # [N, o]
    source: IntArray  # [N, o] which entry stands there
    gain: FloatArray  # [N, a] factor of each action
    reward: FloatArray  # [N]
    noise: FloatArray  # [N] standard deviation
    blank: FloatArray  # [N] probability


class TrialDisguise:
    """Changes observations, actions and rewards of N environments, each in its own way for the length of a trial.

    Args:
        kinds: what is changed.

            - ``mirror``: half of the trials are mirrored in x, positions and action alike (not orientations).
            - ``shift``: all positions move by one vector, up to 0.1 m along each axis; absent objects stay at zero.
            - ``gain``: each axis of the action is multiplied by 0.5 to 1.5 and then clipped to its range.
            - ``flip``: each axis of the action changes its sign in a quarter of the trials.
            - ``reward``: multiplied by 0.3 to 3, uniform in the logarithm.
            - ``objects``: half of the trials exchange the objects' places in the observation, half hide orientations.
            - ``noise``: normal, of a standard deviation of up to 0.01.
            - ``blank``: single observations are all zeros, with a probability of up to 0.2.
        num_lanes: N.
        obs_dim: o.
        action_low, action_high: range of the actions ``[a]``.
        layout: which observations are positions; needed by ``mirror``, ``shift`` and ``objects``.
        seed: a disguise follows from it and the number that `draw` is given, whatever was drawn before.

    Raises:
        ValueError: for an unknown kind, or one that needs a layout where there is none.

    Example:
        >>> low, high = np.full(2, -1.0, np.float32), np.full(2, 1.0, np.float32)
        >>> disguise = TrialDisguise(["reward"], num_lanes=3, obs_dim=4, action_low=low, action_high=high, seed=1)
        >>> disguise.draw(np.arange(3), 0)
        >>> bool(((0.3 <= disguise.pay(np.ones(3, np.float32))) & (disguise.pay(np.ones(3, np.float32)) <= 3)).all())
        True
    """

    def __init__(
        self,
        kinds: Sequence[str],
        *,
        num_lanes: int,
        obs_dim: int,
        action_low: FloatArray,
        action_high: FloatArray,
        layout: Layout | None = None,
        seed: int = 0,
    ) -> None:
        check_kinds(kinds, layout)
        self._kinds, self._layout, self._seed = frozenset(kinds), layout or Layout((), (), ()), seed
        self._low, self._high = action_low, action_high
        self._shape = num_lanes, obs_dim, len(action_low)
        self._now = self._plain()
        self._steps = np.random.default_rng(seed)

    def draw(self, lanes: IntArray, number: int, *, seed: int | None = None) -> None:
        """New disguises for environments ``lanes`` ``[n]``, determined by the seed and ``number``.

        Every environment has its own draws of a number, whoever else starts a trial with it.
        """
        self._seed = self._seed if seed is None else seed
        rng = np.random.default_rng([self._seed, number, 1])
        drawn = self._drawn(rng)
        for name, value in vars(drawn).items():
            getattr(self._now, name)[lanes] = value[lanes]

    def start_steps(self, number: int) -> None:
        """What is random in single steps follows, from here on, from this number and the seed alone."""
        self._steps = np.random.default_rng([self._seed, number, 2])

    def show(self, observation: FloatArray, lanes: IntArray | slice = slice(None)) -> FloatArray:
        """What the agent observes ``[n, o]`` in environments ``lanes``, given the simulators' observation."""
        now = self._now
        shown = np.take_along_axis(observation, now.source[lanes], -1)
        shown = np.where(shown == 0, shown, shown * now.sign[lanes] + now.shift[lanes])
        if "noise" in self._kinds:
            noise = self._steps.standard_normal(self._shape[:2], dtype=np.float32)
            shown = shown + noise[lanes] * now.noise[lanes, None]
        if "blank" in self._kinds:
            blank = self._steps.random(self._shape[0]) < now.blank
            shown = np.where(blank[lanes, None], 0, shown)
        return np.asarray(shown, dtype=np.float32)

    def act(self, action: FloatArray) -> FloatArray:
        """What the simulators execute ``[N, a]``, given the agent's action."""
        return np.clip(action * self._now.gain, self._low, self._high)

    def pay(self, reward: FloatArray) -> FloatArray:
        """What the agent receives ``[N]``, given the task's reward."""
        return reward * self._now.reward

    def _plain(self) -> _Drawn:
        n, o, a = self._shape
        ones = np.ones((n, o), np.float32)
        places = np.tile(np.arange(o), (n, 1))
        flat = np.ones(n, np.float32)
        return _Drawn(ones, 0 * ones, places, np.ones((n, a), np.float32), flat, 0 * flat, 0 * flat)

    def _drawn(self, rng: np.random.Generator) -> _Drawn:
        """All numbers are drawn whatever the kinds are, so that a kind looks the same beside others."""
        n, _, a = self._shape
        mirrored, exchanged, hidden = rng.random((3, n)) < 0.5
        shift = rng.uniform(-SHIFT, SHIFT, (n, 3))
        gain = rng.uniform(*GAIN, (n, a))
        flipped = rng.random((n, a)) < FLIPPED
        reward = np.exp(rng.uniform(np.log(REWARD[0]), np.log(REWARD[1]), n))
        noise, blank = rng.uniform(0, 1, (2, n)) * [[NOISE], [BLANK]]
        drawn, layout = self._plain(), self._layout
        if "mirror" in self._kinds:
            drawn.sign[np.ix_(mirrored, [place[0] for place in layout.positions])] *= -1
            drawn.gain[mirrored, layout.action_x] *= -1
        if "shift" in self._kinds:
            for axis in range(3):
                drawn.shift[:, [place[axis] for place in layout.positions]] = shift[:, [axis]]
        if "objects" in self._kinds:
            for first, second in layout.exchangeable:
                drawn.source[np.ix_(exchanged, [*first, *second])] = [*second, *first]
            drawn.sign[np.ix_(hidden, layout.orientations)] = 0
        if "gain" in self._kinds:
            drawn.gain *= gain
        if "flip" in self._kinds:
            drawn.gain *= np.where(flipped, -1, 1)
        if "reward" in self._kinds:
            drawn.reward *= reward
        if "noise" in self._kinds:
            drawn.noise += noise
        if "blank" in self._kinds:
            drawn.blank += blank
        return drawn


def check_kinds(kinds: Sequence[str], layout: Layout | None) -> None:
    """Raises ValueError unless these are kinds of disguises that an environment of this layout can wear."""
    for kind in kinds:
        check_choice(Kind, disguise=kind)
    if layout is None and (missing := [kind for kind in kinds if kind in OF_POSITIONS]):
        raise ValueError(
            f"The disguise {missing[0]} needs to know which observations are positions; give the Benchmark a layout, "
            f"or choose among {', '.join(kind for kind in KINDS if kind not in OF_POSITIONS)}."
        )
