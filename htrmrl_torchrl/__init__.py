"""In-context meta-reinforcement learning with hierarchical transformers (HTrMRL, arXiv 2402.06402), TorchRL-native."""

# First: an unusable MUJOCO_GL makes the import of TorchRL below fail without saying why.
from htrmrl_torchrl.opengl import check_import

check_import()

from htrmrl_torchrl.agent import HTrMRLAgent
from htrmrl_torchrl.data.replay import EpisodicReplayBuffer
from htrmrl_torchrl.data.storage import EpisodicStorage
from htrmrl_torchrl.envs import TrialTransform, make_env
from htrmrl_torchrl.evaluation import EvaluationReport, evaluate
from htrmrl_torchrl.metaworld_agent import MetaWorldAgent
from htrmrl_torchrl.modules.encoder import HierarchicalEncoder
from htrmrl_torchrl.modules.heads import make_actor_critic
from htrmrl_torchrl.modules.memory import EpisodicMemory
from htrmrl_torchrl.objectives import NormalizedClipPPOLoss, TrialGAE, final_values

__all__ = [
    "EpisodicMemory",
    "EpisodicReplayBuffer",
    "EpisodicStorage",
    "EvaluationReport",
    "HTrMRLAgent",
    "HierarchicalEncoder",
    "MetaWorldAgent",
    "NormalizedClipPPOLoss",
    "TrialGAE",
    "TrialTransform",
    "evaluate",
    "final_values",
    "make_actor_critic",
    "make_env",
]
