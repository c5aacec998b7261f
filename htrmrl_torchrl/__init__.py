"""In-context meta-reinforcement learning with hierarchical transformers (HTrMRL, arXiv 2402.06402), TorchRL-native."""

from typing import TYPE_CHECKING

from htrmrl_torchrl._lazy import lazy_names
from htrmrl_torchrl.envs.opengl import check_import

if TYPE_CHECKING:
    from htrmrl_torchrl.agent.agent import HTrMRLAgent
    from htrmrl_torchrl.agent.heads import make_actor_critic
    from htrmrl_torchrl.agent.metaworld import MetaWorldAgent
    from htrmrl_torchrl.encoders.hierarchical import HierarchicalEncoder
    from htrmrl_torchrl.encoders.mlp import MemorylessEncoder
    from htrmrl_torchrl.encoders.recurrent import RecurrentEncoder
    from htrmrl_torchrl.envs import TrialTransform, make_env
    from htrmrl_torchrl.evaluation import EvaluationReport, evaluate
    from htrmrl_torchrl.memory.episodic import EpisodicMemory
    from htrmrl_torchrl.memory.recurrent import RecurrentMemory
    from htrmrl_torchrl.ppo.objectives import NormalizedClipPPOLoss, TrialGAE, final_values
    from htrmrl_torchrl.ppo.reward_norm import TaskRewardNormalizer
    from htrmrl_torchrl.replay.buffer import EpisodicReplayBuffer
    from htrmrl_torchrl.replay.storage import EpisodicStorage

__all__ = [
    "EpisodicMemory",
    "EpisodicReplayBuffer",
    "EpisodicStorage",
    "EvaluationReport",
    "HTrMRLAgent",
    "HierarchicalEncoder",
    "MemorylessEncoder",
    "MetaWorldAgent",
    "NormalizedClipPPOLoss",
    "RecurrentEncoder",
    "RecurrentMemory",
    "TaskRewardNormalizer",
    "TrialGAE",
    "TrialTransform",
    "evaluate",
    "final_values",
    "make_actor_critic",
    "make_env",
]

# An unusable MUJOCO_GL makes the import of TorchRL fail without saying why.
__getattr__ = lazy_names(__name__, __file__, before=check_import)
