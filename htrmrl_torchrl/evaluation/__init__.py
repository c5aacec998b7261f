"""Success rates that say how they were obtained."""

from htrmrl_torchrl.evaluation.evaluator import evaluate
from htrmrl_torchrl.evaluation.plots import plot_adaptation, plot_tasks
from htrmrl_torchrl.evaluation.protocols import PROTOCOLS, Protocol
from htrmrl_torchrl.evaluation.report import EvaluationReport, ProtocolMismatchError
from htrmrl_torchrl.evaluation.trials import goal_grid, play_trials

__all__ = [
    "PROTOCOLS",
    "EvaluationReport",
    "Protocol",
    "ProtocolMismatchError",
    "evaluate",
    "goal_grid",
    "play_trials",
    "plot_adaptation",
    "plot_tasks",
]
