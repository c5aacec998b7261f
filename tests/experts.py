"""Meta-World's scripted experts as policies that solve a chosen set of (task, goal) pairs and idle on all others."""

import pickle
from collections.abc import Callable

import numpy as np
import torch
from metaworld.env_dict import ALL_V3_ENVIRONMENTS
from metaworld.policies import ENV_POLICY_MAP
from metaworld.types import Task
from tensordict.nn import TensorDictModule

from htrmrl_torchrl import keys
from htrmrl_torchrl.envs.benchmarks import draw_goals, task_names

Solves = Callable[[int, int, int], bool]  # task, goal, episode


def official_simulator(task, rand_vec, *, partially_observable=True):
    """Meta-World's own class with this goal set."""
    simulator = ALL_V3_ENVIRONMENTS[task]()
    data = {"rand_vec": rand_vec, "env_cls": type(simulator), "partially_observable": partially_observable}
    simulator.set_task(Task(env_name=task, data=pickle.dumps(data)))
    return simulator


def drawn_goals(task, number=2):
    """Goals as Meta-World draws them, without the 50 that a benchmark wants."""
    env = ALL_V3_ENVIRONMENTS[task]()
    env._freeze_rand_vec, env._set_task_called = False, True
    state = np.random.get_state()
    np.random.seed(3)
    goals = []
    for _ in range(number):
        env.reset()
        goals.append(env._last_rand_vec.copy())
    np.random.set_state(state)
    env.close()
    return np.stack(goals)


class Experts:
    """Actions of scripted experts, who are told the goal that the environment hides.

    Args:
        benchmark, split: whose tasks and goals.
        goals_per_task: how many of each task's goals are known.
    """

    def __init__(self, benchmark, split, *, goals_per_task):
        self.names = task_names(benchmark, split)
        self.targets = {}
        for task, goals in enumerate(draw_goals(benchmark, split, 0)):
            for goal in range(goals_per_task):
                simulator = official_simulator(self.names[task], goals[goal])
                simulator.reset()
                self.targets[task, goal] = simulator._target_pos.copy()
                simulator.close()

    def action(self, task, goal, observation):
        """``[4]`` for ``[39]``."""
        seeing = np.concatenate([observation[:36], self.targets[task, goal]]).astype(np.float64)
        return np.clip(ENV_POLICY_MAP[self.names[task]]().get_action(seeing), -1, 1)

    def policy(self, solves: Solves, *, delay=0):
        """A TensorDict policy: the expert, ``delay * goal`` steps late, where ``solves(task, goal, episode)``."""
        steps = {}

        def act(observation, task, goal, episode, is_init):
            actions = torch.zeros(len(observation), 4)
            lanes = torch.cat([task, goal, episode, is_init], -1).tolist()
            for lane, (t, g, k, begins) in enumerate(lanes):
                steps[lane] = 0 if begins else steps[lane] + 1
                if solves(t, g, k) and steps[lane] >= delay * g:
                    actions[lane] = torch.from_numpy(self.action(t, g, observation[lane].numpy()))
            return actions

        names = [keys.OBSERVATION, keys.TASK, keys.GOAL, keys.EPISODE, keys.IS_INIT]
        return TensorDictModule(act, in_keys=names, out_keys=[keys.ACTION])
