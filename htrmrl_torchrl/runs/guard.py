"""Fault handling: a faulty batch is dropped, a faulty update is undone, and the run continues.

A fault is a NaN or an infinity (observation, reward, action, anything in a batch, loss, gradient) or, with
``env.restart_workers``, a failed worker:

    collecting   the batch is dropped, its frames don't count; all environments begin new trials, with the memory before
    updating     weights, optimizer and normalisers go back to where they were before the update
    evaluating   the evaluation is repeated; it changes nothing

The whole update is undone, because its earlier steps led to weights with non-finite losses. The run ends after
``faults.max_in_a_row`` faults without a completed update or evaluation in between.
"""

import copy
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TypeVar

import torch
from tensordict import TensorDictBase
from torch import nn
from torch.optim import Optimizer
from torchrl.collectors import Collector
from torchrl.envs import EnvBase

from htrmrl_torchrl.envs import TrialEnv
from htrmrl_torchrl.faults import Fault, NonFiniteError, UserError, WorkerFault, check_finite
from htrmrl_torchrl.memory.contract import Memory
from htrmrl_torchrl.parallel.ranks import Ranks
from htrmrl_torchrl.ppo.reward_norm import TaskRewardNormalizer
from htrmrl_torchrl.runs.console import note
from htrmrl_torchrl.runs.progress import Progress

Result = TypeVar("Result")
STAGES = ("collecting", "updating", "evaluating")


class TooManyFaults(UserError):
    """Too many faults in a row: one sentence and exit code 3."""

    exit_code = 3


class FaultGuard:
    """Handles faults, counts them, and ends the run after too many in a row.

    Args:
        max_in_a_row: number of faults in a row that ends the run.
        restart_workers: whether a failed worker is handled too; otherwise its :class:`WorkerFault` is raised.
        progress: keeps the counters ``faults``, ``divergences`` and ``worker_restarts``.
        memory: changed by collecting.
        loss, optimizer, rewards: changed by an update.
        ranks: the processes that train together; a fault of one is a fault of all.
    """

    def __init__(
        self,
        *,
        max_in_a_row: int,
        restart_workers: bool,
        progress: Progress,
        memory: Memory,
        loss: nn.Module,
        optimizer: Optimizer,
        rewards: TaskRewardNormalizer,
        ranks: Ranks | None = None,
    ) -> None:
        self._ranks = Ranks() if ranks is None else ranks
        self.max_in_a_row, self.restart_workers = max_in_a_row, restart_workers
        self._progress, self._memory, self._optimizer = progress, memory, optimizer
        self._changed: tuple[nn.Module | Optimizer, ...] = (loss, optimizer, rewards)
        self._in_row = 0
        self._seen = {"divergences": 0, "worker_restarts": 0}

    def batches(self, collector: Collector) -> Iterator[TensorDictBase]:
        """The batches of all ranks' collectors, without faulty ones; raises as `evaluate` does."""
        remembered, abandoned = self._memory.checkpoint_state(), False
        # Not iter(collector), which shuts everything down at the first exception.
        batches = collector.iterator()

        def play() -> TensorDictBase:
            nonlocal batches
            if abandoned:
                batches = collector.iterator()
                collector.reset()
                self._memory.load_checkpoint_state(remembered)
                # The last step belongs to the abandoned batch, so the running episodes are incomplete.
                self._memory.drop_running()
            batch: TensorDictBase = next(batches)
            check_finite(batch.items(True, True))
            return batch

        while True:
            try:
                batch = self._ranks.collect(play)
            except StopIteration:
                return
            except Fault as fault:
                self._note(fault, "collecting", "all environments begin new trials")
                abandoned = True
                self._go_on_alike(collector.env)
            else:
                remembered, abandoned = self._memory.checkpoint_state(), False
                yield batch

    @contextmanager
    def update(self) -> Iterator[None]:
        """An update that is undone if something is not finite; raises as `evaluate` does."""
        before = [copy.deepcopy(part.state_dict()) for part in self._changed]
        try:
            yield
        except NonFiniteError as fault:
            for part, state in zip(self._changed, before, strict=True):
                part.load_state_dict(state)
            self._optimizer.zero_grad(set_to_none=True)
            self._note(fault, "updating", "the weights are those before the update")
        else:
            self._in_row = 0

    def evaluate(self, run: Callable[[], Result]) -> Result:
        """The result of ``run``, repeated after a fault. Raises WorkerFault if a worker fails and may not be restarted,
        and TooManyFaults at the limit.
        """
        while True:
            try:
                result = run()
            except Fault as fault:
                self._note(fault, "evaluating", "it is repeated")
            else:
                self._in_row = 0
                return result

    def metrics(self, env: EnvBase) -> dict[str, float]:
        """``faults/*`` and ``env/*``: counts over the whole run so far."""
        counts = self._counts()
        metrics = {f"faults/{stage}": float(counts[stage]) for stage in STAGES}  # in this order after a restart too
        if isinstance(env, TrialEnv):
            of_ranks = self._ranks.gather({name: getattr(env, name) for name in self._seen})
            for name, seen in self._seen.items():
                now, before = sum(of_rank[name] for of_rank in of_ranks), getattr(self._progress, name)
                setattr(self._progress, name, before + now - seen)
                metrics[f"env/{name}"] = float(before + now - seen)
                self._seen[name] = now
        return metrics

    def _go_on_alike(self, env: EnvBase) -> None:
        """After a batch that some ranks have played to its end, all go on with the random streams of the first."""
        if self._ranks.size > 1:
            assert isinstance(env, TrialEnv)
            streams, drawn = self._ranks.broadcast((env.streams(), torch.get_rng_state()))
            env.follow(streams)
            torch.set_rng_state(drawn)

    def _counts(self) -> dict[str, int]:
        self._progress.faults = dict.fromkeys(STAGES, 0) | self._progress.faults
        return self._progress.faults

    def _note(self, fault: Fault, stage: str, consequence: str) -> None:
        if isinstance(fault, WorkerFault) and not self.restart_workers:
            raise fault
        self._in_row += 1
        self._counts()[stage] += 1
        note(f"fault while {stage}, {consequence}: {fault}")
        if self._in_row >= self.max_in_a_row:
            raise TooManyFaults(
                f"the run ended after {self._in_row} faults in a row (faults.max_in_a_row), the last one while "
                f"{stage}: {str(fault).strip().splitlines()[-1]}; the weights are those before it"
            ) from fault
