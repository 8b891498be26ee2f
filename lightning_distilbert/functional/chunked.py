"""Soft targets and cross-entropy over a large vocabulary, computed a few rows at a time."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function
from torch.autograd.function import once_differentiable

from lightning_distilbert.functional.masking import full_precision

# 1 MiB of float32: three buffers of this size stay in a processor's cache (measured: half or twice as much is as fast).
# An accelerator has no use for that, and takes as long to start a small operation as to do a larger one.
CHUNK_ELEMENTS = 2**18
ACCELERATOR_CHUNK_ELEMENTS = 2**24
# float16 has no numbers below 6e-8: a stored gradient in [-1, 1] is scaled up to keep the small ones
HALF_SCALE = 2.0**14


def chunked_forward_kl(
    student_logits: Tensor, teacher_logits: Tensor, temperature: float = 1.0, rows: Tensor | None = None
) -> Tensor:
    r"""Mean Kullback-Leibler divergence of softmax predictions, with the memory of a few rows.

    It is :math:`\frac{1}{N} \sum_n \mathrm{KL}(p_n \,\|\, q_n)` with :math:`p = \mathrm{softmax}(z^T / T)` and
    :math:`q = \mathrm{softmax}(z^S / T)`, without the factor :math:`T^2`. Written with torch's operations it keeps
    about ten float32 tensors of the logits' size. Here the rows are taken in chunks through three buffers that are
    re-used, and since the gradient is known, :math:`(q - p) / (T N)`, it is computed while a chunk is at hand and
    stored in the logits' own type.

    Args:
        student_logits: Of shape ``(rows, classes)``.
        teacher_logits: Of the same shape. No gradient flows to them.
        temperature: :math:`T`, above 0.
        rows: The places of the rows that count, integers of shape ``(N,)``, at least one. None means that all count.

    Returns:
        A float32 scalar in :math:`[0, \infty)`.

    Example:
        >>> chunked_forward_kl(torch.tensor([[0.0, 0.0]]), torch.tensor([[0.0, 2.0]]))
        tensor(0.3278)
    """
    keep = torch.is_grad_enabled() and student_logits.requires_grad
    with full_precision(student_logits):
        loss: Tensor = _ChunkedKL.apply(student_logits, teacher_logits.detach(), temperature, rows, keep)
    return loss


def chunked_cross_entropy(logits: Tensor, targets: Tensor) -> Tensor:
    r"""Cross-entropy of each row, with the memory of a few rows.

    It is :math:`-\log \mathrm{softmax}(z)_y`, as `torch.nn.functional.cross_entropy` gives it for float32 logits. That
    keeps four float32 tensors of the logits' size; here, as in `chunked_forward_kl`, the gradient is computed while a
    chunk is at hand and stored in the logits' own type. For 600 rows of a vocabulary of 30,522 and bfloat16 logits,
    loss and gradient take less than half of the time, on one core.

    Args:
        logits: Of shape ``(rows, classes)``.
        targets: The right classes, integers of shape ``(rows,)``.

    Returns:
        Float32, of shape ``(rows,)``, in :math:`[0, \infty)`.

    Example:
        >>> chunked_cross_entropy(torch.zeros(2, 4), torch.tensor([0, 3]))
        tensor([1.3863, 1.3863])
    """
    keep = torch.is_grad_enabled() and logits.requires_grad
    with full_precision(logits):
        losses: Tensor = _ChunkedCrossEntropy.apply(logits, targets, keep)
    return losses


class _ChunkedCrossEntropy(Function):
    @staticmethod
    def forward(ctx: Any, logits: Tensor, targets: Tensor, keep: bool) -> Tensor:
        step = _rows_at_once(logits, len(logits))
        buffer = logits.new_empty(step, logits.shape[-1], dtype=torch.float32)
        losses = logits.new_empty(len(logits), dtype=torch.float32)
        gradient = torch.empty_like(logits) if keep else None
        for start in range(0, len(logits), step):
            part = slice(start, min(start + step, len(logits)))
            log, index = buffer[: part.stop - start], targets[part].unsqueeze(-1)
            torch.log_softmax(log.copy_(logits[part]), dim=-1, out=log)
            losses[part] = -log.gather(-1, index).squeeze(-1)
            if gradient is not None:
                ones = torch.ones_like(index, dtype=torch.float32)
                gradient[part] = log.exp_().scatter_add_(-1, index, -ones).mul_(_scale(gradient))
        if gradient is not None:
            ctx.save_for_backward(gradient)
            ctx.step = step
        return losses

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_output: Tensor) -> tuple[Tensor | None, ...]:
        (gradient,) = ctx.saved_tensors
        result, factor = torch.empty_like(gradient), (grad_output.float() / _scale(gradient)).unsqueeze(-1)
        for start in range(0, len(gradient), ctx.step):
            part = slice(start, start + ctx.step)
            # multiplied in float32: the factor itself may be too small for float16
            result[part] = (gradient[part].float() * factor[part]).to(result.dtype)
        return result, None, None


class _ChunkedKL(Function):
    @staticmethod
    def forward(
        ctx: Any, student: Tensor, teacher: Tensor, temperature: float, rows: Tensor | None, keep: bool
    ) -> Tensor:
        count = len(student) if rows is None else len(rows)
        divergence = student.new_empty(count, dtype=torch.float32)
        gradient = student.new_empty(count, student.shape[-1]) if keep else None
        scale = 1.0 if gradient is None else _scale(gradient)
        divergence_of_rows(student, teacher, temperature, rows, divergence, gradient, scale)
        if gradient is not None:
            ctx.save_for_backward(gradient, rows)
            ctx.shape, ctx.factor = student.shape, 1.0 / (temperature * count * scale)
            ctx.step = _rows_at_once(student, count)
        return divergence.mean()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_output: Tensor) -> tuple[Tensor | None, ...]:
        gradient, rows = ctx.saved_tensors
        # with rows left out, their gradient is zero; without, everything is written
        result = gradient.new_empty(ctx.shape) if rows is None else gradient.new_zeros(ctx.shape)
        factor = grad_output.float() * ctx.factor
        for start in range(0, len(gradient), ctx.step):
            part = slice(start, start + ctx.step)
            # multiplied in float32: the factor itself may be too small for float16
            result[part if rows is None else rows[part]] = (gradient[part].float() * factor).to(result.dtype)
        return result, None, None, None, None


def divergence_of_rows(
    student: Tensor,
    teacher: Tensor,
    temperature: float,
    rows: Tensor | None,
    divergence: Tensor,
    gradient: Tensor | None,
    scale: float = 1.0,
) -> None:
    r"""Write the divergence of each row and its gradient, through buffers of a few rows; without a graph.

    Args:
        student: Logits of shape ``(rows, classes)``.
        teacher: Of the same shape.
        temperature: :math:`T`, above 0.
        rows: The places of the :math:`N` rows that count, or None for all.
        divergence: What :math:`\mathrm{KL}(p_n \,\|\, q_n)` is written to, float32, of shape ``(N,)``.
        gradient: What :math:`q - p` times the scale is written to, of shape ``(N, classes)``, or None. Where all rows
            count it may be the student's logits themselves.
        scale: The scale, since float16 has no small numbers.

    Example:
        >>> logits, cost = torch.tensor([[0.0, 2.0]]), torch.empty(1)
        >>> divergence_of_rows(torch.zeros(1, 2), logits, 1.0, None, cost, logits)
        >>> cost, logits
        (tensor([0.3278]), tensor([[ 0.3808, -0.3808]]))
    """
    count, classes = len(divergence), student.shape[-1]
    step = _rows_at_once(student, count)
    buffers = [student.new_empty(step, classes, dtype=torch.float32) for _ in range(3)]
    for start in range(0, count, step):
        part = slice(start, min(start + step, count))
        ours, theirs, ratio = (buffer[: part.stop - start] for buffer in buffers)
        for log, logits in ((ours, student), (theirs, teacher)):
            ratio.copy_(logits[part if rows is None else rows[part]])
            torch.log_softmax(ratio if temperature == 1.0 else ratio.div_(temperature), dim=-1, out=log)
        torch.sub(theirs, ours, out=ratio)
        # a probability of zero adds nothing, also where the student's is zero as well and the ratio is NaN
        ratio.masked_fill_(theirs == -math.inf, 0.0)
        theirs.exp_()
        torch.sum(ratio.mul_(theirs), dim=-1, out=divergence[part])
        if gradient is not None:
            gradient[part] = ours.exp_().sub_(theirs).mul_(scale)


def _rows_at_once(logits: Tensor, count: int) -> int:
    elements = CHUNK_ELEMENTS if logits.device.type == "cpu" else ACCELERATOR_CHUNK_ELEMENTS
    return max(1, min(count, elements // logits.shape[-1]))


def _scale(gradient: Tensor) -> float:
    return HALF_SCALE if gradient.dtype == torch.float16 else 1.0
