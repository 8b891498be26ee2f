"""Which positions count: selection before any arithmetic, and a mean that survives an empty selection."""

from __future__ import annotations

import torch
from torch import Tensor

from lightning_distilbert.errors import DistillationError


def select(values: Tensor, mask: Tensor | None) -> Tensor:
    """Return the entries at the positions that count.

    It selects and does not multiply by the mask: 0 times NaN is NaN, so that a NaN in the padding would reach the loss
    through a product, and the gradient through the backward of one.

    Args:
        values: Of shape ``(..., width)``, with ``(batch, sequence)`` or ``(batch,)`` in front.
        mask: Shaped as the leading axes of ``values``, True (or 1) where a position counts. None means that all count.

    Returns:
        A tensor of shape ``(N, ...)``: ``N`` positions, then the axes that the mask does not have. Without a mask all
        axes but the last are flattened into ``N``.

    Raises:
        DistillationError: If the mask does not have the shape of the leading axes.

    Example:
        >>> select(torch.tensor([[[1.0], [float("nan")]]]), torch.tensor([[True, False]]))
        tensor([[1.]])
    """
    if mask is None:
        return values.reshape(-1, values.shape[-1])
    if mask.shape != values.shape[: mask.dim()]:
        raise DistillationError(
            f"A mask of shape {tuple(mask.shape)} cannot select from values of shape {tuple(values.shape)}: the mask "
            "needs the shape of their leading axes, (batch, sequence) or (batch,)."
        )
    # an integer mask would be taken for indices
    return values[mask.bool()]


def first_tokens(values: Tensor, mask: Tensor | None) -> Tensor:
    """Return the vector of the first real token of each sequence, also where padding stands on the left.

    Args:
        values: Of shape ``(batch, sequence, width)``.
        mask: Of shape ``(batch, sequence)``, True (or 1) at real tokens. None means that all are real.

    Returns:
        A tensor of shape ``(batch, width)``. Of a sequence without a real token it is the first vector, which does not
        count.

    Example:
        >>> first_tokens(torch.tensor([[[1.0], [2.0]]]), torch.tensor([[False, True]]))
        tensor([[2.]])
    """
    if mask is None:
        return values[:, 0]
    # of several ones, argmax takes the first
    return values[torch.arange(len(values), device=values.device), mask.int().argmax(dim=1)]


def mean_or_zero(per_position: Tensor, graph_of: Tensor) -> Tensor:
    """Return the mean, or where nothing counts a zero that still has a graph.

    ``torch.tensor(0.0)`` has no graph, and ``backward()`` on it fails; a mean over nothing is NaN. Under DDP the zero
    must also reach every parameter that a normal step reaches.

    Args:
        per_position: The cost of each counting position, of any shape, possibly empty.
        graph_of: What the costs were computed from. None of its values is read, so that they may be NaN.

    Returns:
        A scalar.

    Example:
        >>> student = torch.full((2, 3), float("nan"), requires_grad=True)
        >>> mean_or_zero(student[:0], graph_of=student).backward()
        >>> student.grad.abs().sum()
        tensor(0.)
    """
    if per_position.numel() > 0:
        return per_position.mean()
    return per_position.sum() + graph_of.reshape(-1)[:0].sum().to(per_position.dtype)


def both(mask: Tensor | None, other: Tensor | None) -> Tensor | None:
    """Return the positions that count in both masks; None means that all count.

    Raises:
        DistillationError: If the masks differ in shape.

    Example:
        >>> both(torch.tensor([True, True]), torch.tensor([True, False]))
        tensor([ True, False])
    """
    if mask is None or other is None:
        return other if mask is None else mask
    if mask.shape != other.shape:
        raise DistillationError(
            f"The student's mask has the shape {tuple(mask.shape)} and the teacher's {tuple(other.shape)}: they must "
            "see the same positions. Token-level objectives need one tokenizer for both models."
        )
    return mask.bool() & other.bool()


def full_precision(tensor: Tensor) -> torch.autocast:
    """Return the context without autocast on this tensor's device, in which float32 stays float32.

    Example:
        >>> with torch.autocast("cpu", dtype=torch.bfloat16), full_precision(torch.zeros(1)):
        ...     (torch.ones(1, 1) @ torch.ones(1, 1)).dtype
        torch.float32
    """
    return torch.autocast(device_type=tensor.device.type, enabled=False)


def check_same_shape(what: str, student: Tensor, teacher: Tensor, *, leading: bool = False) -> None:
    """Refuse to compare tensors of different shapes, which broadcasting would do without a word.

    Args:
        what: What is compared, for the error.
        student: The student's tensor.
        teacher: The teacher's tensor.
        leading: Whether only the axes before the last must agree.

    Raises:
        DistillationError: If the shapes differ.

    Example:
        >>> check_same_shape("logits", torch.zeros(2, 3), torch.zeros(2, 3))
    """
    upto = -1 if leading else None
    if student.dim() != teacher.dim() or student.shape[:upto] != teacher.shape[:upto]:
        raise DistillationError(
            f"The student's {what} have the shape {tuple(student.shape)} and the teacher's {tuple(teacher.shape)}: "
            f"they must agree{' but for the last axis' if leading else ''}. Give both models the same batch, and "
            "compare token by token only where both use one tokenizer."
        )
