"""Success rates that say how they were obtained."""

from htrmrl_torchrl.evaluation.trials import goal_grid, play_trials, success_metrics
from htrmrl_torchrl.evaluation.video import Video, record_trial, write_video

__all__ = ["Video", "goal_grid", "play_trials", "record_trial", "success_metrics", "write_video"]
