"""A hook that inspects an encoder while it runs."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from htrmrl_torchrl import keys
from htrmrl_torchrl.encoders.contract import ContextEncoder, Inside


@contextmanager
def watch(encoder: ContextEncoder) -> Iterator[list[Inside]]:
    """Collects an `Inside` for each call of ``encoder`` while the ``with`` block runs.

    The encoder's output stays the same bit for bit; attention is computed separately, from the same context. Encoders
    without attention show their vectors alone.

    Example:
        >>> from htrmrl_torchrl import make_env
        >>> from htrmrl_torchrl.agent.networks import build_networks
        >>> networks = build_networks(observation_dim=3, action_low=[-1.0] * 2, action_high=[1.0] * 2)
        >>> with watch(networks.encoder) as seen:
        ...     _ = make_env("toy", num_envs=4).rollout(2, networks.policy)
        >>> len(seen), seen[0].slot_attention.shape  # [decisions, layers, heads, queries, keys]
        (2, torch.Size([4, 2, 4, 10, 10]))
    """
    seen: list[Inside] = []

    def look(module: ContextEncoder, arguments: tuple[Any, ...], _: Any) -> None:
        seen.append(module.inspect(arguments[0].get(keys.CONTEXT)))

    handle = encoder.register_forward_hook(look)
    try:
        yield seen
    finally:
        handle.remove()
