"""Similarity: how alike the student and the teacher find the sentences of one batch."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional as F

from lightning_distilbert.errors import DistillationError
from lightning_distilbert.functional.masking import check_same_shape, full_precision, mean_or_zero, select
from lightning_distilbert.functional.soft_targets import forward_kl


def similarity_divergence(
    student_left: Tensor,
    teacher_left: Tensor,
    student_right: Tensor | None = None,
    teacher_right: Tensor | None = None,
    rows: Tensor | None = None,
    rows_right: Tensor | None = None,
    temperature: float = 0.05,
) -> Tensor:
    r"""Divergence between the rankings that student and teacher give to the sentences of a batch.

    With :math:`s_{ij}` the cosine of left vector :math:`i` and right vector :math:`j`, each model ranks the right
    vectors for each left one, and the rankings are compared (as Fang et al. 2021, "SEED",
    https://arxiv.org/abs/2101.04731, section 3, with the batch in place of a queue and one temperature):

    .. math::
        p_{ij} = \frac{\exp(s^T_{ij} / \tau)}{\sum_k \exp(s^T_{ik} / \tau)} \qquad
        q_{ij} = \frac{\exp(s^S_{ij} / \tau)}{\sum_k \exp(s^S_{ik} / \tau)} \qquad
        \mathcal{L} = \frac{1}{N} \sum_{i=1}^{N} \sum_j p_{ij} \log \frac{p_{ij}}{q_{ij}}

    Without right vectors the left ones are ranked among themselves, and :math:`j = i` is left out of every sum: the
    cosine of a vector with itself is 1 in any model, and at a small :math:`\tau` it would take all the probability.

    There is no factor :math:`\tau^2`, unlike in soft targets. There the temperature softens the predictions for the
    sake of the loss; here it is part of the score: cosines lie in [-1, 1] and only divided by :math:`\tau` are they the
    logits with which a retrieval model is trained (`in_batch_contrastive`, also without a factor). So the loss is a
    divergence in nats at any temperature, and its gradient with respect to a cosine, :math:`(q - p) / (\tau N)`, grows
    as :math:`\tau` falls: with a falling schedule, let the weight fall with it.

    Failure mode: far above the spread of the cosines all rankings are flat and the loss is nearly zero for any student;
    far below it only the nearest neighbour counts. The batch decides what there is to rank: one candidate is no
    ranking, so that a set within itself needs three rows for a loss that can differ from zero, and many more to be of
    use.

    Args:
        student_left: Of shape ``(n, student_width)``.
        teacher_left: Of shape ``(n, teacher_width)``; the widths may differ. No gradient flows to the teacher.
        student_right: Of shape ``(m, student_width)``, or None to compare the left vectors among themselves.
        teacher_right: Of shape ``(m, teacher_width)``, or None likewise.
        rows: Of shape ``(n,)``, True where a left row counts; others leave the batch. None means that all count.
        rows_right: Of shape ``(m,)``, likewise for the right.
        temperature: :math:`\tau`, above 0.

    Returns:
        A float32 scalar in :math:`[0, \infty)`, computed in float32 whatever comes in; zero with a graph if no row
        counts, or only one among itself.

    Raises:
        DistillationError: If only one of the models has right vectors, the numbers of rows differ, or the temperature
            is not above 0.

    Example:
        >>> teacher = torch.eye(3)
        >>> similarity_divergence(torch.eye(3, 5), teacher)
        tensor(0.)
        >>> student = torch.tensor([[1.0, 0.0], [1.0, 0.1], [0.0, 1.0]])
        >>> similarity_divergence(student, teacher) > 1
        tensor(True)
    """
    if not (temperature > 0 and math.isfinite(temperature)):
        raise DistillationError(
            f"similarity_divergence(temperature={temperature}): a temperature is a finite number above 0."
        )
    if (student_right is None) != (teacher_right is None) or (student_right is None and rows_right is not None):
        raise DistillationError(
            "similarity_divergence() needs right vectors of both models, or none (and then no rows_right): given were "
            f"student_right={_shape(student_right)}, teacher_right={_shape(teacher_right)}, "
            f"rows_right={_shape(rows_right)}."
        )
    check_same_shape("embeddings", student_left, teacher_left, leading=True)
    with full_precision(student_left):
        student, teacher = _directions(student_left, rows), _directions(teacher_left.detach(), rows)
        if student_right is None or teacher_right is None:
            if len(student) < 2:  # nothing to compare with
                return mean_or_zero(student[:0], graph_of=student)
            # the diagonal is removed in both models: -inf is a probability of zero
            itself = torch.eye(len(student), dtype=torch.bool, device=student.device)
            student_scores = (student @ student.T).masked_fill(itself, -math.inf)
            teacher_scores = (teacher @ teacher.T).masked_fill(itself, -math.inf)
        else:
            check_same_shape("embeddings", student_right, teacher_right, leading=True)
            student_scores = student @ _directions(student_right, rows_right).T
            teacher_scores = teacher @ _directions(teacher_right.detach(), rows_right).T
        student_log, teacher_log = ((s / temperature).log_softmax(-1) for s in (student_scores, teacher_scores))
        return mean_or_zero(forward_kl(student_log, teacher_log), graph_of=student_scores)


def _directions(embeddings: Tensor, rows: Tensor | None) -> Tensor:
    """Return the counting rows in float32, each of length 1."""
    return F.normalize(select(embeddings, rows).float(), dim=-1)


def _shape(tensor: Tensor | None) -> tuple[int, ...] | None:
    return None if tensor is None else tuple(tensor.shape)
