"""The memory of a run of several processes: their saved states as one, and shared out again."""

from collections.abc import Sequence
from typing import Any

import torch

from htrmrl_torchrl.envs.shares import LaneShare


def join_states(states: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """`checkpoint_state` of a memory of all environments, from those of the processes in the order of their shares."""
    if not all(state["lanes"] for state in states):
        return {"lanes": 0}  # none has begun
    joined = {"lanes": sum(state["lanes"] for state in states)}
    joined |= {name: _chained(states, name) for name in ("episode", "streams") if name in states[0]}
    if "history" not in states[0]:
        return joined
    histories = [state["history"] for state in states]
    tokens = torch.cat([history["tokens"] for history in histories])
    return joined | {"history": {"tokens": tokens, **{n: _chained(histories, n) for n in ("ended", "running")}}}


def share_of_state(state: dict[str, Any], share: LaneShare) -> dict[str, Any]:
    """What a process loads for its own environments; the state of an empty memory if the number of all differs."""
    if state["lanes"] != share.total:
        return {"lanes": 0}
    own = {"lanes": share.count} | {name: share.of(state[name]) for name in ("episode", "streams") if name in state}
    if "history" not in state:
        return own
    history = state["history"]
    held = [
        sum(length for _, length in ended) + running
        for ended, running in zip(history["ended"], history["running"], strict=True)
    ]
    begin = sum(held[: share.first])
    tokens = history["tokens"][begin : begin + sum(share.of(held))]
    return own | {"history": {"tokens": tokens, **{name: share.of(history[name]) for name in ("ended", "running")}}}


def _chained(states: Sequence[dict[str, Any]], name: str) -> list[Any]:
    return [entry for state in states for entry in state[name]]
