"""Tensors of any types in one message: a row of bytes for each environment."""

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor


def packed(leaves: Sequence[Tensor]) -> Tensor:
    """Tensors ``[n, ...]`` -> ``uint8 [n, bytes]`` on the CPU.

    Example:
        >>> leaves = [torch.ones(2, 3), torch.tensor([[True], [False]])]
        >>> packed(leaves).shape
        torch.Size([2, 13])
    """
    return torch.cat([leaf.cpu().flatten(1).contiguous().view(torch.uint8) for leaf in leaves], 1)


def unpacked(rows: Tensor, like: Sequence[Tensor], *, lanes: int) -> Iterator[Tensor]:
    """What `packed` has made ``rows`` ``[lanes, bytes]`` of; ``like`` says the types and shapes of one row."""
    begin = 0
    for leaf in like:
        shape = leaf.shape[1:]
        width = shape.numel() * leaf.element_size()
        # A copy, because a view begins at a multiple of its type's size; flat, because an empty one has odd strides.
        yield rows[:, begin : begin + width].flatten().clone().view(leaf.dtype).view(lanes, *shape)
        begin += width
