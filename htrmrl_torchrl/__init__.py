"""In-context meta-reinforcement learning with hierarchical transformers (HTrMRL, arXiv 2402.06402), TorchRL-native."""

from typing import TYPE_CHECKING

from htrmrl_torchrl._lazy import lazy_names
from htrmrl_torchrl.opengl import check_import

if TYPE_CHECKING:
    from htrmrl_torchrl.agent import HTrMRLAgent
    from htrmrl_torchrl.data.replay import EpisodicReplayBuffer
    from htrmrl_torchrl.data.storage import EpisodicStorage
    from htrmrl_torchrl.envs import TrialTransform, make_env
    from htrmrl_torchrl.evaluation import EvaluationReport, evaluate
    from htrmrl_torchrl.metaworld_agent import MetaWorldAgent
    from htrmrl_torchrl.modules.encoder import HierarchicalEncoder
    from htrmrl_torchrl.modules.heads import make_actor_critic
    from htrmrl_torchrl.modules.memory import EpisodicMemory
    from htrmrl_torchrl.modules.memoryless import MemorylessEncoder
    from htrmrl_torchrl.modules.recurrent import RecurrentEncoder, RecurrentMemory
    from htrmrl_torchrl.objectives import NormalizedClipPPOLoss, TrialGAE, final_values
    from htrmrl_torchrl.reward_norm import TaskRewardNormalizer

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

__getattr__ = lazy_names(
    __name__,
    {
        "EpisodicMemory": "modules.memory",
        "EpisodicReplayBuffer": "data.replay",
        "EpisodicStorage": "data.storage",
        "EvaluationReport": "evaluation",
        "HTrMRLAgent": "agent",
        "HierarchicalEncoder": "modules.encoder",
        "MemorylessEncoder": "modules.memoryless",
        "MetaWorldAgent": "metaworld_agent",
        "NormalizedClipPPOLoss": "objectives",
        "RecurrentEncoder": "modules.recurrent",
        "RecurrentMemory": "modules.recurrent",
        "TaskRewardNormalizer": "reward_norm",
        "TrialGAE": "objectives",
        "TrialTransform": "envs",
        "evaluate": "evaluation",
        "final_values": "objectives",
        "make_actor_critic": "modules.heads",
        "make_env": "envs",
    },
)

check_import()  # an unusable MUJOCO_GL makes the import of TorchRL fail without saying why
