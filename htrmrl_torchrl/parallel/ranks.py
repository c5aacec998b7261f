"""What the processes of a run, its ranks, say to each other, over ``torch.distributed`` (gloo).

Whoever waits for another does so in slices of a second: in between Python answers signals, and whoever was stopped
(Ctrl-Z) for an hour finds one slice gone when it wakes, not an hour.
"""

import pickle
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from datetime import timedelta
from typing import Any, NoReturn, TypeVar

import torch
import torch.distributed as dist
from tensordict import TensorDictBase
from torch import Tensor

from htrmrl_torchrl.envs.shares import LaneShare
from htrmrl_torchrl.faults import Fault, Left, UserError
from htrmrl_torchrl.parallel.packing import packed, unpacked

Result = TypeVar("Result")
SECONDS = 600.0  # a rank that says nothing for so long hangs
_START_SECONDS = 600.0  # imports take seconds, on a busy machine perhaps a minute
_ANSWER_SECONDS = 10.0
_SLICE = timedelta(seconds=1)
_EVER = timedelta(days=365)


class RankFault(UserError):
    """Another rank has ended or hangs: one sentence and exit code 1."""

    exit_code = 1


class Ranks:
    """The processes that train one agent together, as one of them sees them; without arguments, the only one.

    All must call the same methods in the same order. The first rank, number 0, decides, writes and speaks.

    Args:
        rank, size: the number of this process, and how many there are.
        store: a ``torch.distributed`` store through which they meet; needed for more than one.
        seconds: for which a rank waits for the others at most.
        processes: those that this one has started, by their ranks.

    Attributes:
        free: whether this rank may leave (`Left`) on its own; else the others count on it.
        requested: says whether this rank was asked to stop.

    Raises:
        RankFault: from any method, if another rank has ended or hangs.

    Example:
        >>> ranks = Ranks()
        >>> ranks.is_first, ranks.share(20), ranks.gather("here")
        (True, None, ['here'])
    """

    def __init__(
        self,
        rank: int = 0,
        size: int = 1,
        *,
        store: Any = None,
        seconds: float = SECONDS,
        processes: Mapping[int, Any] | None = None,
    ) -> None:
        self.rank, self.size, self.seconds = rank, size, seconds
        self.free, self.requested = True, lambda: False
        self._store, self._processes = store, processes or {}
        if size > 1:
            self._meet()

    @property
    def is_first(self) -> bool:
        return self.rank == 0

    def share(self, lanes: int) -> LaneShare | None:
        """The block of so many environments in which this rank acts; ``None`` if these are all."""
        if self.size == 1:
            return None
        first, end = (lanes * rank // self.size for rank in (self.rank, self.rank + 1))
        return LaneShare(first, end - first, lanes)

    # ------------------------------------------------------------------------------------------------------- exchange

    def gather(self, value: Result) -> list[Result]:
        """The ``value`` of each rank, in their order; anything that can be pickled."""
        if self.size == 1:
            return [value]
        data = torch.frombuffer(bytearray(pickle.dumps(value)), dtype=torch.uint8)
        return [pickle.loads(rows.numpy().tobytes()) for rows in self._gather_rows(data)]

    def broadcast(self, value: Result) -> Result:
        """The first rank's ``value``, in all."""
        return self.gather(value if self.is_first else None)[0]  # type: ignore[return-value]

    def add(self, numbers: Tensor) -> None:
        """Replaces ``numbers`` in all ranks by their sum, the same bits in each."""
        if self.size > 1:
            self._wait(lambda: dist.all_reduce(numbers, async_op=True))

    def follow(self, tensors: list[Tensor]) -> None:
        """Copies the first rank's ``tensors`` into those of the others."""
        if self.size == 1:
            return
        flat = [tensor.detach().reshape(1, -1) for tensor in tensors]
        rows = packed(flat)
        self._wait(lambda: dist.broadcast(rows, 0, async_op=True))
        if not self.is_first:
            with torch.no_grad():
                for tensor, value in zip(tensors, unpacked(rows, flat, lanes=1), strict=True):
                    tensor.copy_(value.view(tensor.shape))

    def join(self, batch: TensorDictBase) -> TensorDictBase:
        """The batches ``[n, T]`` of all ranks as one, ``[N, T]``, on the device of the own."""
        if self.size == 1:
            return batch
        names = sorted(batch.keys(True, True), key=str)
        leaves = [batch.get(name) for name in names]
        rows = torch.cat(self._gather_rows(packed(leaves)))
        joined = batch.empty()
        joined.batch_size = [len(rows), *batch.batch_size[1:]]
        for name, value in zip(names, unpacked(rows, leaves, lanes=len(rows)), strict=True):
            joined.set(name, value.to(batch.device))
        return joined

    # ------------------------------------------------------------------------------------------------------ agreement

    def attempt(self, run: Callable[[], Result]) -> list[Result]:
        """What ``run`` returns in each rank, unless it fails in some: then all raise what that one raised.

        Raises:
            Fault: of the first rank that has one.
            Left: if a rank was asked to stop.
            RuntimeError: if the ranks' random streams have come apart.
        """
        if self.size == 1:
            return [run()]
        result, ended = None, None
        self.free = True
        try:
            result = run()
        except (Fault, Left) as error:
            ended = error
            if isinstance(error, Left):
                for process in self._processes.values():
                    process.terminate()  # the signal may have come to this process alone
        finally:
            self.free = False
        said = self.gather((ended, None if ended else torch.get_rng_state().numpy().tobytes(), result))
        for kind in (Left, Fault):
            for rank, (end, *_) in enumerate(said):
                if isinstance(end, kind):
                    raise end if rank == self.rank else type(end)(*_told(rank, end))
        if len({stream for _, stream, _ in said}) > 1:
            raise RuntimeError(
                "The ranks' random streams have come apart: code of your own draws from torch's global generator in "
                "some of them; let it draw from the generator that it is given, or choose workers=1."
            )
        return [result for *_, result in said]  # type: ignore[misc]

    def collect(self, play: Callable[[], TensorDictBase]) -> TensorDictBase:
        """The batches ``[n, T]`` that ``play`` returns in all ranks, joined; raises as `attempt` does."""
        if self.size == 1:
            return play()
        played: list[TensorDictBase] = []
        self.attempt(lambda: played.append(play()))
        return self.join(played[0])

    def report(self, error: BaseException) -> None:
        """Tells the first rank why this one ends."""
        lines = str(error).strip().splitlines()
        with suppress(RuntimeError):
            self._store.set(f"failed/{self.rank}", f"{type(error).__name__}: {lines[-1] if lines else ''}")

    def close(self) -> None:
        """Ends the connections."""
        if self.size > 1:
            dist.destroy_process_group()

    # ------------------------------------------------------------------------------------------------- inside gloo

    def _meet(self) -> None:
        """Waits until all ranks are there, and connects them."""
        self._store.set(f"here/{self.rank}", b"")
        here = [f"here/{rank}" for rank in range(self.size)]
        deadline = time.monotonic() + _START_SECONDS
        while not self._store.check(here):
            missing = [rank for rank in range(self.size) if not self._store.check([here[rank]])]
            ended = [rank for rank in missing if self._exit_code(rank) is not None]
            if ended or time.monotonic() > deadline:
                raise RankFault(f"rank {(ended or missing)[0]} of {self.size} did not start")
            time.sleep(0.01)
        # How long a rank waits for others is counted here, see above.
        dist.init_process_group("gloo", store=self._store, rank=self.rank, world_size=self.size, timeout=_EVER)
        self.free = False

    def _gather_rows(self, rows: Tensor) -> list[Tensor]:
        """``rows`` ``[n, ...]``, n of any size, of each rank."""
        counts = [torch.zeros(1, dtype=torch.int64) for _ in range(self.size)]
        self._wait(lambda: dist.all_gather(counts, torch.tensor([len(rows)]), async_op=True))
        longest = max(int(count) for count in counts)
        padded = rows.new_zeros(longest, *rows.shape[1:])
        padded[: len(rows)] = rows
        received = [torch.empty_like(padded) for _ in range(self.size)]
        self._wait(lambda: dist.all_gather(received, padded, async_op=True))
        return [rows[: int(count)] for rows, count in zip(received, counts, strict=True)]

    def _wait(self, start: Callable[[], Any]) -> None:
        left = self.seconds
        try:
            work = start()
            while True:
                try:
                    work.wait(_SLICE)
                    return
                except RuntimeError:
                    if work.is_completed():
                        work.wait()
                        return
                left -= _SLICE.total_seconds()
                if left <= 0 or self._store.check(["broken"]):
                    break
        except RuntimeError:  # what the death of another rank leaves
            self._end("has ended")
        self._end(f"did not answer within {self.seconds:g} s")

    def _end(self, how: str) -> NoReturn:
        """Ends with the reason, which only the first rank needs to know: who is at fault, and ``how``."""
        if not self.is_first:
            with suppress(RuntimeError):
                self._store.set(f"answer/{self.rank}", b"")
            raise RankFault("another rank has ended")
        self._store.set("broken", b"")
        others, left = range(1, self.size), _ANSWER_SECONDS
        while left > 0:
            silent = [rank for rank in others if not self._has_said(rank)]
            if all(self._exit_code(rank) is not None for rank in silent):
                break
            time.sleep(0.05)
            left -= 0.05
        failed = [rank for rank in others if self._store.check([f"failed/{rank}"])]
        if failed:
            raise RankFault(f"rank {failed[0]} failed with {self._store.get(f'failed/{failed[0]}').decode()}")
        if not silent:
            raise RankFault("the connection between the ranks broke")
        code = self._exit_code(silent[0])
        how = how if code is None else f"died with exit code {code}"
        raise RankFault(f"rank {silent[0]} of {self.size} {how}")

    def _has_said(self, rank: int) -> bool:
        return any(self._store.check([f"{what}/{rank}"]) for what in ("answer", "failed"))

    def _exit_code(self, rank: int) -> int | None:
        process = self._processes.get(rank)
        return None if process is None else process.exitcode


def _told(rank: int, error: BaseException) -> tuple[str, ...]:
    return () if isinstance(error, Left) else (f"in rank {rank}, by its own count of environments: {error}",)
