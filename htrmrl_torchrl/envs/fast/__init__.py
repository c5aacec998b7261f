"""Meta-World's simulators, several times as fast, bit for bit the same.

| file | its idea |
|---|---|
| ``simulator.py`` | a subclass of each task's class with a step, a reset and an observation of its own |
| ``rebuild.py`` | the task's own reward code, looking up other globals |
| ``lean.py`` | those globals: numpy, scipy's Rotation and ``reward_utils`` for three numbers instead of arrays |
| ``views.py`` | MuJoCo data whose named accessors are looked up once |
| ``hand.py`` | the hand's first pose, remembered under everything that it follows from |
"""

from htrmrl_torchrl.envs.fast.simulator import fast_simulator

__all__ = ["fast_simulator"]
