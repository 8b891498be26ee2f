"""Scores that can be trusted: the temperature of a classifier, and the score below which nothing is answered."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from lightning_distilbert.errors import DistillationError

COLDEST, WARMEST = 0.05, 20.0


def fit_temperature(logits: Tensor, labels: Tensor, steps: int = 60) -> float:
    r"""Find the temperature at which a classifier's probabilities fit the labels best.

    Guo et al. 2017 (section 4.2): the logits :math:`z` are divided by one number, which changes no answer,

    .. math:: T = \arg\min_T -\sum_{i=1}^N \Bigl( \log p_i(y_i) + \frac{1}{N K} \sum_{k=1}^K \log p_i(k) \Bigr)
        \qquad p_i = \operatorname{softmax}(z_i / T)

    The second term is one further row whose label may be any of the :math:`K`: without it a few rows that are all right
    would call for probabilities of 1 (as Platt 1999 has it, section 2.2). In :math:`1 / T` the loss is convex, and its
    derivative rises: where that is zero is found by bisection, in float64.

    Args:
        logits: Shape ``(rows, labels)``.
        labels: The numbers of the right labels, of shape ``(rows,)``.
        steps: Halvings of the range.

    Returns:
        The temperature, between 0.05 and 20; 1 if there are no rows.

    Raises:
        DistillationError: If the shapes do not fit together, or a logit is not finite.

    Example:
        >>> logits = torch.tensor([[4.0, 0.0]]).repeat(40, 1)
        >>> fit_temperature(logits, torch.tensor([0] * 30 + [1] * 10))  # 98 % sure, and right in three of four
        3.75...
    """
    if logits.ndim != 2 or labels.shape != logits.shape[:1]:
        raise DistillationError(
            f"Logits of the shape {tuple(logits.shape)} and labels of {tuple(labels.shape)} do not fit together: they "
            "are (rows, labels) and (rows,)."
        )
    if not len(logits):
        return 1.0
    logits = logits.double()
    if not logits.isfinite().all():
        raise DistillationError("A logit is NaN or infinite, so that no temperature fits. The model has diverged.")
    extra = 1 / len(logits)
    wanted = logits.gather(1, labels[:, None].long()).squeeze(1) + extra * logits.mean(dim=1)
    low, high = math.log(1 / WARMEST), math.log(1 / COLDEST)
    for _ in range(steps):
        middle = (low + high) / 2
        expected = ((logits * math.exp(middle)).softmax(dim=1) * logits).sum(dim=1)
        if ((1 + extra) * expected - wanted).mean() > 0:
            high = middle
        else:
            low = middle
    return math.exp(-(low + high) / 2)


def choose_threshold(scores: Tensor, right: Tensor, answerable: Tensor, balanced: bool = True) -> tuple[float, float]:
    r"""Find the score from which on an answer is given, so that most is right.

    A row counts as right if its answer is given and right, or if it has none and none is given. With
    :math:`a_i` for rows that have an answer and :math:`n` for how many there are of each kind,

    .. math:: \max_t \frac{1}{2 n_a} \sum_{i: a_i} [s_i \ge t] \, r_i
        + \frac{1}{2 n_{\bar a}} \sum_{i: \bar a_i} [s_i < t]

    Args:
        scores: How sure each answer is, of shape ``(rows,)``.
        right: Whether it is right, or how right it is in [0, 1], of that shape.
        answerable: Whether the row has an answer at all, of that shape.
        balanced: Whether both kinds of rows weigh as much together, however many there are of each. Otherwise each
            row does: what is best where questions come as they do here.

    Returns:
        The best value, and the threshold. It lies halfway between two scores, so that rounding moves no row across it;
        of equally good ones it is the lowest.

    Raises:
        DistillationError: If one of the two kinds is missing, or a score is NaN.

    Example:
        >>> scores, right = torch.tensor([0.9, 0.8, 0.6, 0.4]), torch.tensor([1.0, 1.0, 0.0, 0.0])
        >>> choose_threshold(scores, right, torch.tensor([True, True, False, True]), balanced=False)
        (0.75, 0.7...)
    """
    answerable = answerable.bool()
    if answerable.all() or not answerable.any():
        share = "none" if not answerable.any() else "each"
        raise DistillationError(
            f"A threshold parts what has an answer from what has none, and {share} of the {len(answerable)} rows has "
            "one. Give rows of both kinds."
        )
    if scores.isnan().any():
        raise DistillationError("A score is NaN, so that no threshold can be chosen. The model has diverged.")
    scores, order = scores.double().sort(stable=True)
    answerable, right = answerable[order], right.double()[order]
    weight = torch.ones_like(scores)
    if balanced:
        weight = torch.where(answerable, 0.5 / answerable.sum(), 0.5 / (~answerable).sum()).double()
    given, left = right * answerable * weight, (~answerable) * weight
    # the value if the first k are left without an answer, for every k
    values = torch.cat([given.sum()[None], given.sum() + (left - given).cumsum(0)]) / weight.sum()
    edges = torch.cat([scores[:1], (scores[1:] + scores[:-1]) / 2, scores[-1:] + scores[-1:].abs().clamp(min=1)])
    tied = torch.zeros_like(values, dtype=torch.bool)
    tied[1:-1] = scores[1:] == scores[:-1]  # a threshold cannot part two equal scores
    place = int(values.masked_fill(tied, -torch.inf).argmax())
    return float(values[place]), float(edges[place])
