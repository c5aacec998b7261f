"""Success rates that say how they were obtained."""

from htrmrl_torchrl.evaluation.trials import goal_grid, play_trials, success_metrics

__all__ = ["goal_grid", "play_trials", "success_metrics"]
