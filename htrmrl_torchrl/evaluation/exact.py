"""Trials that are independent of the CPU's floating-point summation order.

CPUs add in different orders (vector width, threads), so float32 networks differ in their last digits between machines.
Contacts in a simulator amplify this within an episode. In float64 the last digits are far below the grid to which
actions are rounded here. So all machines execute the same actions, bit for bit, except for a rare action near the
middle between two values of the grid. (The C library differs on x86-64 without FMA, before 2013.)
"""

import torch
from tensordict import TensorDictBase
from tensordict.nn import TensorDictModuleBase
from tensordict.utils import NestedKey

from htrmrl_torchrl import keys

GRID = 2.0**-16  # for action bounds of the order of 1; action noise is thousands of times larger


class ExactPolicy(TensorDictModuleBase):
    """Runs a policy in float64 and rounds its actions to multiples of 2^-16.

    `evaluate` does so with every agent of this package. Trials with sampled actions are reproducible for the same
    device and number of environments.

    Args:
        policy: reads the keys of `htrmrl_torchrl.keys` and writes ``action``. It is converted to float64 in place, so
            pass a copy of a policy in training.

    Example:
        >>> from htrmrl_torchrl.agent.networks import acting_policy, build_networks
        >>> networks = build_networks(observation_dim=3, action_low=[-1.0] * 2, action_high=[1.0] * 2)
        >>> policy = ExactPolicy(acting_policy(networks))
        >>> from htrmrl_torchrl import make_env
        >>> action = policy(make_env("toy", num_envs=4).reset())["action"]
        >>> action.dtype, bool((action * 2**16 % 1 == 0).all())
        (torch.float32, True)
    """

    def __init__(self, policy: TensorDictModuleBase) -> None:
        super().__init__()
        self.policy = policy.double()
        self.in_keys: list[NestedKey] = list(policy.in_keys)
        self.out_keys: list[NestedKey] = [keys.ACTION]

    def forward(self, tensordict: TensorDictBase) -> TensorDictBase:
        action = self.policy(self.seen(tensordict))[keys.ACTION]
        return tensordict.set(keys.ACTION, on_grid(action).to(tensordict[keys.OBSERVATION].dtype))

    def seen(self, tensordict: TensorDictBase) -> TensorDictBase:
        """Input of the policy, in float64."""
        return tensordict.select(*self.in_keys, strict=False).apply(_in_double)


def on_grid(action: torch.Tensor) -> torch.Tensor:
    """``action`` rounded to multiples of 2^-16."""
    return (action / GRID).round() * GRID


def _in_double(value: torch.Tensor) -> torch.Tensor:
    return value.double() if value.is_floating_point() else value
