"""Trial environments: Meta-World's meta-learning benchmarks, a toy with a known optimum, and anything from TorchRL."""

from htrmrl_torchrl.envs.benchmarks import num_goals, task_names
from htrmrl_torchrl.envs.factory import check_name, make_env
from htrmrl_torchrl.envs.transform import TrialTransform
from htrmrl_torchrl.envs.trial import TrialEnv

__all__ = ["TrialEnv", "TrialTransform", "check_name", "make_env", "num_goals", "task_names"]
