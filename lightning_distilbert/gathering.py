"""Rows of all processes of a distributed run, with gradients."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor


def processes() -> int:
    """Return how many processes train together; 1 without `torch.distributed`.

    Example:
        >>> processes()
        1
    """
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def sum_over_processes(value: Tensor) -> Tensor:
    """Return the sum of a tensor over all processes, without a gradient. Every process has to call it.

    Example:
        >>> sum_over_processes(torch.tensor(3.0))
        tensor(3.)
    """
    total = value.detach().clone()
    if processes() > 1:
        dist.all_reduce(total)
    return total


def gather_rows(tensors: Sequence[Tensor]) -> tuple[list[Tensor], Tensor, int]:
    """Gather the rows of all processes, which may have different numbers of them.

    Every process has to call it, with tensors of the same kinds. Gradients flow back to the process that a row came
    from, summed over the processes: if each process computes a mean over its own rows, and the gradients are then
    averaged over the processes, as DDP does, the result is the gradient of the mean over all rows.

    Args:
        tensors: Tensors with one entry for each row of this process.

    Returns:
        The tensors with the rows of all processes, one process after the other, each filled up to the most rows of any;
        which of them are rows and not filling; and where the rows of this process begin.

    Example:
        >>> (rows,), real, start = gather_rows([torch.ones(2, 3)])
        >>> rows.shape, real.tolist(), start
        (torch.Size([2, 3]), [True, True], 0)
    """
    own = len(tensors[0])
    if processes() == 1:
        return list(tensors), torch.ones(own, dtype=torch.bool, device=tensors[0].device), 0
    sizes = [torch.zeros(1, dtype=torch.long, device=tensors[0].device) for _ in range(processes())]
    dist.all_gather(sizes, torch.full_like(sizes[0], own))
    most = int(torch.cat(sizes).max())
    filled = [torch.cat([tensor, tensor.new_zeros(most - own, *tensor.shape[1:])]) for tensor in tensors]
    real = torch.arange(most, device=tensors[0].device) < torch.stack(sizes)
    return [_GatherRows.apply(tensor) for tensor in filled], real.flatten(), dist.get_rank() * most


class _GatherRows(torch.autograd.Function):
    """``all_gather`` with a gradient; torch's own of that kind is deprecated in one version and missing in another."""

    @staticmethod
    def forward(context: Any, tensor: Tensor) -> Tensor:
        parts = [torch.empty_like(tensor, memory_format=torch.contiguous_format) for _ in range(processes())]
        dist.all_gather(parts, tensor.contiguous())
        return torch.cat(parts)

    @staticmethod
    def backward(context: Any, *gradients: Tensor) -> Tensor:
        total = gradients[0].contiguous().clone()
        dist.all_reduce(total)
        return total.chunk(processes())[dist.get_rank()]
