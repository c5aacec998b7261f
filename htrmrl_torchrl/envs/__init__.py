"""Trial environments: Meta-World's meta-learning benchmarks, a toy with a known optimum, and anything from TorchRL."""

from typing import TYPE_CHECKING

from htrmrl_torchrl._lazy import lazy_names

if TYPE_CHECKING:
    from htrmrl_torchrl.envs.benchmarks import num_goals, task_names
    from htrmrl_torchrl.envs.factory import check_name, make_env
    from htrmrl_torchrl.envs.transform import TrialTransform
    from htrmrl_torchrl.envs.trial import TrialEnv

__all__ = ["TrialEnv", "TrialTransform", "check_name", "make_env", "num_goals", "task_names"]

__getattr__ = lazy_names(__name__, __file__)
