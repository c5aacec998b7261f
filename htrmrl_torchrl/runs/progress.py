"""What a run counts from its first frame to its last, over all its continuations."""

from dataclasses import dataclass, field


@dataclass(kw_only=True)
class Progress:
    """The counters of a run; they are saved in its checkpoints and in ``summary.json``.

    Args:
        frames: learned from so far.
        evaluated, saved: frames at the last evaluation and at the last periodic checkpoint.
        best_val_success: best score on ``val`` so far.
        rate_share: factor on the learning rate, see ``optim.kl_target``.
        commits: states of the code that the run was trained with.
        faults: how many by stage, see `FaultGuard`.
        divergences, worker_restarts: of the training environments.
        best_by_task: best success on ``val`` by task.
        warned: names of the warning signs that were printed.
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
