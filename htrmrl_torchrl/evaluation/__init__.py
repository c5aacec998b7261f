"""Evaluation: success rates that say how they were obtained."""

from typing import TYPE_CHECKING

from htrmrl_torchrl._lazy import lazy_names
from htrmrl_torchrl.envs.opengl import check_import

if TYPE_CHECKING:
    from htrmrl_torchrl.evaluation.evaluator import evaluate
    from htrmrl_torchrl.evaluation.exact import ExactPolicy
    from htrmrl_torchrl.evaluation.plots import plot_adaptation, plot_tasks
    from htrmrl_torchrl.evaluation.protocols import PROTOCOLS, Protocol
    from htrmrl_torchrl.evaluation.report import EvaluationReport, ProtocolMismatchError
    from htrmrl_torchrl.evaluation.stages import StageReport, play_stages
    from htrmrl_torchrl.evaluation.trials import goal_grid, play_trials
    from htrmrl_torchrl.evaluation.video import Video, record_trial, write_video

__all__ = [
    "PROTOCOLS",
    "EvaluationReport",
    "ExactPolicy",
    "Protocol",
    "ProtocolMismatchError",
    "StageReport",
    "Video",
    "evaluate",
    "goal_grid",
    "play_stages",
    "play_trials",
    "plot_adaptation",
    "plot_tasks",
    "record_trial",
    "write_video",
]

__getattr__ = lazy_names(__name__, __file__, before=check_import)
