"""Relations between the tokens of a sequence, as queries, keys or values see them."""

from __future__ import annotations

import math

from torch import Tensor

from lightning_distilbert.errors import DistillationError
from lightning_distilbert.functional.attention import real_pairs
from lightning_distilbert.functional.masking import full_precision
from lightning_distilbert.functional.soft_targets import masked_kl


def relation_divergence(student: Tensor, teacher: Tensor, heads: int, mask: Tensor | None = None) -> Tensor:
    r"""Divergence between how the student's and the teacher's tokens relate to one another.

    The queries (or keys, or values) of all attention heads of a layer are put side by side and cut into :math:`A_r`
    relation heads :math:`A_a` of width :math:`d_r`, so that neither the widths nor the numbers of attention heads have
    to agree (Wang et al. 2021, "MiniLMv2", https://arxiv.org/abs/2012.15828, equations 3 and 4), over the :math:`N`
    real tokens:

    .. math::
        R_a = \mathrm{softmax}\left(\frac{A_a A_a^\top}{\sqrt{d_r}}\right) \qquad
        \mathcal{L} = \frac{1}{A_r N} \sum_{a=1}^{A_r} \sum_{i=1}^{N} \mathrm{KL}(R^T_{a,i} \,\|\, R^S_{a,i})

    Padding is neither a row of :math:`R` nor in its softmax.

    Failure mode: a token is most like itself, and with few relation heads (large :math:`d_r`) the diagonal takes nearly
    all the probability, so that there is little left to learn; the paper's 48 or 64 relation heads counter that. The
    loss fixes relations within one layer, not the vectors: nothing says which direction means what, so that a task
    head is trained afterwards.

    Args:
        student: Of shape ``(batch, heads, sequence, head_width)``.
        teacher: Likewise; heads and head width may be others. No gradient flows to it.
        heads: The number of relation heads :math:`A_r`, which must divide both widths.
        mask: Of shape ``(batch, sequence)``, True at real tokens. None means that all count.

    Returns:
        A float32 scalar in :math:`[0, \infty)`, in nats, computed in float32 whatever comes in; zero with a graph if no
        token counts.

    Raises:
        DistillationError: If the shapes are not as said or differ, or the relation heads do not divide the widths.

    Example:
        >>> import torch
        >>> values = torch.arange(24.0).reshape(1, 2, 3, 4) / 10
        >>> relation_divergence(values, values, heads=4)
        tensor(0.)
        >>> relation_divergence(values, values[..., :2], heads=4) > 0
        tensor(True)
    """
    shapes = {side.shape[::2] for side in (student, teacher)} | ({mask.shape} if mask is not None else set())
    if student.dim() != 4 or teacher.dim() != 4 or len(shapes) > 1:
        raise DistillationError(
            f"relation_divergence() was given tensors of shape {tuple(student.shape)} (student) and "
            f"{tuple(teacher.shape)} (teacher) and a mask of shape {None if mask is None else tuple(mask.shape)}: it "
            "needs (batch, heads, sequence, head_width) and (batch, sequence), of the same tokens."
        )
    with full_precision(student):
        ours, theirs = _relations(student, heads, mask), _relations(teacher.detach(), heads, mask)
        return masked_kl(ours, theirs, real_pairs(ours, mask))


def split_heads(vectors: Tensor, heads: int) -> Tensor:
    """Cut the joined heads of a layer into another number of them.

    Args:
        vectors: Of shape ``(batch, heads, sequence, head_width)``.
        heads: How many heads to return.

    Returns:
        A tensor of shape ``(batch, heads, sequence, width // heads)``.

    Raises:
        DistillationError: If that number does not divide the width.

    Example:
        >>> import torch
        >>> split_heads(torch.zeros(1, 12, 5, 64), heads=48).shape
        torch.Size([1, 48, 5, 16])
    """
    width = vectors.shape[1] * vectors.shape[3]
    if heads < 1 or width % heads:
        raise DistillationError(f"A width of {width} cannot be cut into {heads} relation heads: take a divisor of it.")
    return vectors.transpose(1, 2).reshape(len(vectors), -1, heads, width // heads).transpose(1, 2)


def _relations(vectors: Tensor, heads: int, mask: Tensor | None) -> Tensor:
    """Return the scaled products of all pairs of tokens, of shape ``(batch, heads, sequence, sequence)``."""
    parts = split_heads(vectors, heads).float()
    if mask is not None:
        # a NaN in the padding would reach real tokens in the backward of the product, as 0 times NaN
        parts = parts.masked_fill(~mask.bool()[:, None, :, None], 0.0)
    return parts @ parts.transpose(-1, -2) / math.sqrt(parts.shape[-1])
