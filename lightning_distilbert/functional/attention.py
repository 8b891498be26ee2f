"""Distance between attention matrices, over the real tokens on both of their axes."""

from __future__ import annotations

from typing import Literal, get_args

import torch
from torch import Tensor

from lightning_distilbert.errors import DistillationError, check_choice
from lightning_distilbert.functional.masking import check_same_shape, full_precision
from lightning_distilbert.functional.soft_targets import masked_kl

AttentionMetric = Literal["mse", "kl"]


def attention_distance(
    student: Tensor, teacher: Tensor, mask: Tensor | None = None, metric: AttentionMetric = "mse"
) -> Tensor:
    r"""Mean distance of the student's attention from the teacher's, over heads and real tokens.

    With :math:`a_{hij}` the score, before softmax, that head :math:`h` gives to key :math:`j` at query :math:`i`,
    :math:`R` the pairs of real tokens of one sequence and :math:`N` the real tokens, over :math:`H` heads:

    .. math::
        \mathcal{L}_{\mathrm{mse}} = \frac{1}{H |R|} \sum_{h} \sum_{(i, j) \in R} (a^S_{hij} - a^T_{hij})^2 \qquad
        \mathcal{L}_{\mathrm{kl}} = \frac{1}{H N} \sum_{h, i} \mathrm{KL}\left(\mathrm{softmax}_j(a^T_{hij}) \,\|\,
        \mathrm{softmax}_j(a^S_{hij})\right)

    ``mse`` is Jiao et al. 2020 ("TinyBERT", https://arxiv.org/abs/1909.10351, equation 7), whose code leaves padded
    queries in; ``kl`` is Wang et al. 2020 ("MiniLM", https://arxiv.org/abs/2002.10957, equation 5). Padding is neither
    a query nor a key here: a softmax runs over the real keys alone.

    Failure mode: ``mse`` follows what a softmax does not see, a constant added to all scores of a query, and a long
    sequence of :math:`n` tokens has :math:`n^2` pairs and so outweighs short ones. ``kl`` has a vanishing gradient
    where both attend to one key almost alone.

    Args:
        student: Scores of shape ``(batch, heads, sequence, sequence)``: queries, then keys.
        teacher: Of the same shape. No gradient flows to it.
        mask: Of shape ``(batch, sequence)``, True at real tokens. None means that all count.
        metric: ``mse`` or ``kl`` (in nats), both in :math:`[0, \infty)`.

    Returns:
        A float32 scalar, computed in float32 whatever comes in; zero with a graph if no token counts.

    Raises:
        DistillationError: If the shapes differ, are none of scores and their mask, or the metric is unknown.

    Example:
        >>> student, teacher = torch.zeros(1, 1, 2, 2), torch.tensor([[[[0.0, 2.0], [9.0, 9.0]]]])
        >>> attention_distance(student, teacher, metric="kl")
        tensor(0.1639)
        >>> attention_distance(student, teacher + 1, torch.tensor([[True, False]]))
        tensor(1.)
    """
    check_choice("attention_distance(metric=...)", metric, get_args(AttentionMetric))
    check_same_shape("attention scores", student, teacher)
    pairs = real_pairs(student, mask)
    if metric == "kl":
        return masked_kl(student, teacher, pairs)
    with full_precision(student):
        # set to zero before the square: the gradient at a padded position is then an exact zero, also where NaN stands
        difference = (student.float() - teacher.detach().float()).masked_fill(~pairs, 0.0)
        return difference.square().sum() / (pairs.sum() * student.shape[1]).clamp(min=1)


def real_pairs(scores: Tensor, mask: Tensor | None) -> Tensor:
    """Return where query and key are both real tokens, of shape ``(batch, 1, sequence, sequence)``.

    Raises:
        DistillationError: If the scores are not ``(batch, heads, sequence, sequence)``, or the mask is not theirs.

    Example:
        >>> real_pairs(torch.zeros(1, 4, 2, 2), torch.tensor([[True, False]])).tolist()
        [[[[True, False], [False, False]]]]
    """
    expected = (*scores.shape[:1], *scores.shape[-1:])
    if scores.dim() != 4 or scores.shape[-1] != scores.shape[-2] or (mask is not None and mask.shape != expected):
        raise DistillationError(
            f"Attention scores of shape {tuple(scores.shape)} with a mask of shape "
            f"{None if mask is None else tuple(mask.shape)}: they must be (batch, heads, sequence, sequence) and "
            "(batch, sequence)."
        )
    real = scores.new_ones(expected, dtype=torch.bool) if mask is None else mask.bool()
    return (real.unsqueeze(-1) & real.unsqueeze(-2)).unsqueeze(1)
