"""Logits over a vocabulary that are computed where they are compared, a part at a time."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from lightning_distilbert.errors import DistillationError
from lightning_distilbert.functional.chunked import divergence_of_rows
from lightning_distilbert.functional.masking import full_precision

# logits at once: 2,198 rows of BERT's vocabulary, 128 MiB in bfloat16. Each part adds to a gradient of the vocabulary's
# size, so that parts of a few rows would take longer than their logits (256 rows: half as long again).
LATE_ELEMENTS = 2**26
# in float16 the gradient of a part's mean is taken times this, so that it does not vanish, and hidden states by a 64th:
# their products stay below 65,504 as long as no state is above 1,023
HALF_SCALE = 2.0**12

Cast = tuple[Tensor, Tensor, Tensor | None]


@dataclass
class LateLogits:
    r"""What logits are computed from: :math:`z = h W^\top + b`.

    Attributes:
        hidden: :math:`h`, of shape ``(rows, width)``.
        weight: :math:`W`, of shape ``(vocabulary, width)``.
        bias: :math:`b`, of shape ``(vocabulary,)``, or None.

    Example:
        >>> late = LateLogits(torch.ones(2, 3), torch.ones(5, 3))
        >>> late.shape, late.compute().shape
        ((2, 5), torch.Size([2, 5]))
    """

    hidden: Tensor
    weight: Tensor
    bias: Tensor | None = None

    @property
    def shape(self) -> tuple[int, int]:
        """The shape of the logits: ``(rows, vocabulary)``."""
        return len(self.hidden), len(self.weight)

    def compute(self) -> Tensor:
        """Return the logits, all at once."""
        return F.linear(*self.cast())

    def cast(self) -> Cast:
        """Return them in the type that their product is computed in: half precision where autocast is on."""
        dtype, device = self.weight.dtype, self.hidden.device.type
        if dtype == torch.float32 and torch.is_autocast_enabled(device):
            dtype = torch.get_autocast_dtype(device)
        return self.hidden.to(dtype), self.weight.to(dtype), None if self.bias is None else self.bias.to(dtype)


def late_forward_kl(student: LateLogits, teacher: LateLogits, temperature: float = 1.0) -> Tensor:
    r"""Mean Kullback-Leibler divergence over a vocabulary, whose logits never stand in memory as a whole.

    The same number as `chunked_forward_kl` of both logits. A part of the rows at a time is projected on the vocabulary,
    compared, and its gradient taken back through the projection at once, to :math:`h`, :math:`W` and :math:`b`. Memory
    is that of two parts and of one gradient of :math:`W`; nothing is computed twice.

    Args:
        student: What the student's logits are computed from.
        teacher: What the teacher's are, of as many rows and as large a vocabulary. No gradient flows to it.
        temperature: :math:`T`, above 0.

    Returns:
        A float32 scalar in :math:`[0, \infty)`; zero with a graph if there are no rows.

    Raises:
        DistillationError: If the two differ in rows or vocabulary.

    Example:
        >>> student = LateLogits(torch.zeros(1, 2), torch.eye(2))
        >>> late_forward_kl(student, LateLogits(torch.tensor([[0.0, 2.0]]), torch.eye(2)))
        tensor(0.3278)
    """
    if student.shape != teacher.shape:
        raise DistillationError(
            f"The student's logits have the shape {student.shape} and the teacher's {teacher.shape}: they must agree. "
            "Give both models the same batch and one vocabulary."
        )
    with torch.no_grad():
        ours, theirs = student.cast(), teacher.cast()
    given = (student.hidden, student.weight, student.bias)
    keep = torch.is_grad_enabled() and any(tensor is not None and tensor.requires_grad for tensor in given)
    with full_precision(student.hidden):
        loss: Tensor = _LateKL.apply(*given, ours, theirs, temperature, keep)
    return loss


class _LateKL(Function):
    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        ours: Cast,
        theirs: Cast,
        temperature: float,
        keep: bool,
    ) -> Tensor:
        count, low = len(hidden), ours[0].dtype
        needed = [keep and ctx.needs_input_grad[place] for place in range(3)]
        divergence = hidden.new_zeros(max(count, 1), dtype=torch.float32)  # of no rows the mean is zero
        gradients: list[Tensor | None] = [
            tensor.new_zeros(tensor.shape, dtype=torch.float32) if wanted and tensor is not None else None
            for tensor, wanted in zip((hidden, weight, bias), needed, strict=True)
        ]
        step = max(1, LATE_ELEMENTS // len(weight))
        for start in range(0, count, step):
            part = slice(start, min(start + step, count))
            rows = part.stop - start
            logits, other = (F.linear(side[0][part], *side[1:]) for side in (ours, theirs))
            scale = (HALF_SCALE if low == torch.float16 else 1.0) / rows
            divergence_of_rows(logits, other, temperature, None, divergence[part], logits if keep else None, scale)
            if keep:
                _add(gradients, part, logits, ours, 1.0 / (temperature * count * scale))
        if keep:
            ctx.save_for_backward(*gradients)
            ctx.dtypes = [None if tensor is None else tensor.dtype for tensor in (hidden, weight, bias)]
        return divergence.mean()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_output: Tensor) -> tuple[Tensor | None, ...]:
        factor = grad_output.float()
        found = [
            None if gradient is None else (gradient * factor).to(dtype)
            for gradient, dtype in zip(ctx.saved_tensors, ctx.dtypes, strict=True)
        ]
        return (*found, None, None, None, None)


def _add(gradients: list[Tensor | None], part: slice, logits: Tensor, ours: Cast, factor: float) -> None:
    """Take the gradient of a part's logits back through the projection."""
    hidden, weight, bias = gradients
    if hidden is not None:
        # in float32 first: the factor would take float16 below its range
        torch.mul((logits @ ours[1]).float(), factor, out=hidden[part])
    if weight is not None:
        weight.add_(logits.t() @ (ours[0][part] / 64), alpha=64 * factor)
    if bias is not None:
        bias.add_(logits.sum(dim=0, dtype=torch.float32), alpha=factor)
