"""Counters of a run over all its continuations."""

from dataclasses import dataclass, field


@dataclass(kw_only=True)
class Progress:
    """The counters of a run, saved in its checkpoints and in ``summary.json``.

    Args:
        frames: learned from so far.
        evaluated, saved: frames at the last evaluation and at the last periodic checkpoint.
        best_val_success, best_by_task: best score on ``val`` so far, overall and by task.
        rate_share: factor on the learning rate, see ``optim.kl_target``.
        commits: code versions that the run was trained with.
        faults: number by stage, see `FaultGuard`.
        divergences, worker_restarts: of the training environments.
        warned: names of the warning signs already printed.
    """

    frames: int = 0
    evaluated: int = 0
    saved: int = 0
    best_val_success: float
    rate_share: float = 1.0
    commits: list[str] = field(default_factory=list)
    faults: dict[str, int] = field(default_factory=dict)
    divergences: int = 0
    worker_restarts: int = 0
    best_by_task: dict[str, float] = field(default_factory=dict)
    warned: list[str] = field(default_factory=list)
