"""Soft targets: the divergence between the teacher's and the student's predictions at a temperature."""

from __future__ import annotations

import math
from typing import Literal, get_args

import torch
from torch import Tensor
from torch.nn import functional as F

from lightning_distilbert.errors import DistillationError, check_choice
from lightning_distilbert.functional.masking import check_same_shape, full_precision, mean_or_zero, select

Activation = Literal["softmax", "sigmoid", "identity"]


def soft_targets(
    student_logits: Tensor,
    teacher_logits: Tensor,
    temperature: float = 1.0,
    mask: Tensor | None = None,
    activation: Activation = "softmax",
) -> Tensor:
    r"""Divergence of the student's predictions from the teacher's, both softened by a temperature.

    For ``softmax`` (one label out of :math:`C`; Hinton et al. 2015, "Distilling the Knowledge in a Neural Network",
    https://arxiv.org/abs/1503.02531, section 2), with :math:`p = \mathrm{softmax}(z^T / T)` the teacher's and
    :math:`q = \mathrm{softmax}(z^S / T)` the student's distribution at each of the :math:`N` counting positions:

    .. math:: \mathcal{L} = \frac{T^2}{N} \sum_{n=1}^{N} \sum_{c=1}^{C} p_{nc} \log \frac{p_{nc}}{q_{nc}}

    For ``sigmoid`` (any number of labels), with :math:`p = \sigma(z^T / T)` and :math:`q = \sigma(z^S / T)`:

    .. math:: \mathcal{L} = \frac{T^2}{N} \sum_{n} \sum_{c}
        p_{nc} \log \frac{p_{nc}}{q_{nc}} + (1 - p_{nc}) \log \frac{1 - p_{nc}}{1 - q_{nc}}

    For ``identity`` (regression) the mean squared error of the logits, in which the temperature has no part:

    .. math:: \mathcal{L} = \frac{1}{NC} \sum_{n} \sum_{c} (z^S_{nc} - z^T_{nc})^2

    The gradients of the soft distributions shrink as :math:`1 / T^2`; the factor :math:`T^2` keeps the weight of this
    term against the task loss about the same when the temperature changes (Hinton et al., end of section 2). Some
    implementations leave it out, and their weights then mean something else.

    Failure mode: far above the spread of the logits, a temperature makes both distributions uniform, and the loss tends
    to half the mean squared error of the centred logits, noise of hopeless classes included. Far below it, the teacher
    becomes one-hot (its other classes underflow to exact zeros once they are about 100 temperatures below the best) and
    the soft targets carry nothing that hard labels do not. 1 to 4 is usual.

    Args:
        student_logits: Of shape ``(..., C)``, any real numbers. A class masked out by ``-inf`` must be so in both.
        teacher_logits: Of the same shape. No gradient flows to them.
        temperature: :math:`T`, above 0.
        mask: Of shape ``(...)``, True where a row counts. None means that all count.
        activation: What makes predictions of the logits: ``softmax``, ``sigmoid`` or ``identity``.

    Returns:
        A float32 scalar in :math:`[0, \infty)`, computed in float32 whatever comes in; zero with a graph if no row
        counts.

    Raises:
        DistillationError: If the shapes differ, the mask does not cover all axes but the last, the temperature is not
            above 0, the activation is unknown, or softmax is asked for a single class (it is always 1, so that the loss
            would be zero whatever the student says).

    Example:
        >>> student = torch.tensor([[0.0, 0.0]])
        >>> teacher = torch.tensor([[0.0, 2.0]])
        >>> soft_targets(student, teacher)
        tensor(0.3278)
        >>> soft_targets(student, teacher, activation="identity")
        tensor(2.)
    """
    check_choice("soft_targets(activation=...)", activation, get_args(Activation))
    check_same_shape("logits", student_logits, teacher_logits)
    if not (temperature > 0 and math.isfinite(temperature)):
        raise DistillationError(f"soft_targets(temperature={temperature}): a temperature is a finite number above 0.")
    if activation == "softmax" and student_logits.shape[-1] == 1:
        raise DistillationError(
            f"softmax over the single logit of {tuple(student_logits.shape)} is always 1, so that this loss would be "
            "zero. Use activation='identity' for a regression and 'sigmoid' for a yes-or-no label."
        )
    if mask is not None and mask.dim() != student_logits.dim() - 1:
        raise DistillationError(
            f"A mask of shape {tuple(mask.shape)} does not say which rows of logits of shape "
            f"{tuple(student_logits.shape)} count: it needs all their axes but the last."
        )
    with full_precision(student_logits):
        student, teacher = select(student_logits, mask).float(), select(teacher_logits.detach(), mask).float()
        if activation == "identity":
            # equal infinities differ by nothing, not by NaN
            per_row = (student - teacher).masked_fill(student == teacher, 0.0).square()
        elif activation == "softmax":
            per_row = forward_kl((student / temperature).log_softmax(-1), (teacher / temperature).log_softmax(-1))
        else:
            per_label = forward_kl(_log_bernoulli(student / temperature), _log_bernoulli(teacher / temperature))
            per_row = per_label.sum(-1)
        loss = mean_or_zero(per_row, graph_of=student_logits)
        return loss if activation == "identity" else temperature**2 * loss


def forward_kl(student_log: Tensor, teacher_log: Tensor) -> Tensor:
    r"""Kullback-Leibler divergence of the student from the teacher over the last axis.

    .. math:: \mathrm{KL}(p \,\|\, q) = \sum_c p_c (\log p_c - \log q_c), \qquad 0 \log 0 = 0

    Args:
        student_log: :math:`\log q`, of shape ``(..., C)``.
        teacher_log: :math:`\log p`, of the same shape. ``-inf`` stands for a probability of zero, which adds nothing to
            the sum and to the gradient, also where :math:`\log q` is ``-inf`` as well.

    Returns:
        A tensor of shape ``(...)``, in :math:`[0, \infty]` up to rounding.

    Example:
        >>> never = float("-inf")
        >>> forward_kl(torch.tensor([0.0, never]), torch.tensor([0.0, never]))
        tensor(0.)
    """
    impossible = teacher_log == -math.inf
    # exp(0) * (0 - 0) = 0 instead of 0 * (inf - inf) = NaN, forward and backward
    student_log, teacher_log = student_log.masked_fill(impossible, 0.0), teacher_log.masked_fill(impossible, 0.0)
    return F.kl_div(student_log, teacher_log, reduction="none", log_target=True).sum(-1)


def _log_bernoulli(logits: Tensor) -> Tensor:
    """Return the log-probabilities of yes and no, of shape ``(..., 2)``."""
    return torch.stack([F.logsigmoid(logits), F.logsigmoid(-logits)], dim=-1)
