"""Soft targets: the divergence between the teacher's and the student's predictions at a temperature."""

from __future__ import annotations

import math
from typing import Literal, get_args

import torch
from torch import Tensor
from torch.nn import functional as F

from lightning_distilbert.errors import DistillationError, check_choice
from lightning_distilbert.functional.chunked import chunked_forward_kl
from lightning_distilbert.functional.masking import check_same_shape, full_precision, mean_or_zero, select

Activation = Literal["softmax", "sigmoid", "identity"]
Divergence = Literal["forward", "reverse", "js"]

# from this size of the logits on, a softmax over a vocabulary is computed a few rows at a time
LARGE_ELEMENTS = 2**20
LARGE_CLASSES = 2**10


def soft_targets(
    student_logits: Tensor,
    teacher_logits: Tensor,
    temperature: float = 1.0,
    mask: Tensor | None = None,
    activation: Activation = "softmax",
    divergence: Divergence = "forward",
    beta: float = 0.5,
    top_k: int | None = None,
    classes: Tensor | None = None,
) -> Tensor:
    r"""Divergence of the student's predictions from the teacher's, both softened by a temperature.

    For ``softmax`` (one label out of :math:`C`; Hinton et al. 2015, "Distilling the Knowledge in a Neural Network",
    https://arxiv.org/abs/1503.02531, section 2), with :math:`p = \mathrm{softmax}(z^T / T)` the teacher's and
    :math:`q = \mathrm{softmax}(z^S / T)` the student's distribution at each of the :math:`N` counting positions:

    .. math:: \mathcal{L} = \frac{T^2}{N} \sum_{n=1}^{N} D(p_n, q_n) \qquad
        D(p, q) = \mathrm{KL}(p \,\|\, q) = \sum_{c=1}^{C} p_c \log \frac{p_c}{q_c}

    For ``sigmoid`` (any number of labels), with :math:`p = \sigma(z^T / T)` and :math:`q = \sigma(z^S / T)`, the
    divergence of each label's yes and no, :math:`(p_{nc}, 1 - p_{nc})` and :math:`(q_{nc}, 1 - q_{nc})`, summed over
    the labels. For ``identity`` (regression) the mean squared error of the logits, in which the temperature has no
    part:

    .. math:: \mathcal{L} = \frac{1}{NC} \sum_{n} \sum_{c} (z^S_{nc} - z^T_{nc})^2

    Two other divergences may take the place of the forward one. ``reverse``, :math:`D = \mathrm{KL}(q \,\|\, p)`,
    punishes what the student says and the teacher does not, so that a small student keeps to the teacher's best classes
    and drops the others; the forward one punishes what it leaves out. ``js`` is the generalised Jensen-Shannon
    divergence (Agarwal et al. 2024, "On-Policy Distillation of Language Models", https://arxiv.org/abs/2306.13649,
    section 3), at most :math:`\log 2` for :math:`\beta = 1/2`; divided by :math:`\beta` it tends to the forward
    divergence for :math:`\beta \to 0`, and divided by :math:`1 - \beta` to the reverse one for :math:`\beta \to 1`:

    .. math:: D = \beta \, \mathrm{KL}(p \,\|\, m) + (1 - \beta) \, \mathrm{KL}(q \,\|\, m), \qquad
        m = \beta p + (1 - \beta) q

    With ``top_k`` the classes are the teacher's :math:`k` most probable ones, at each position, and one more that all
    others are lumped into. Their sums are compared, so that the student still learns how much is left for the rest, and
    not how it is shared out.

    With ``classes`` each row has classes of its own, :math:`C_n`: the sums run over these, as does the softmax, and
    what the models say of the others is not looked at. An answer's first token is one of the context's, never one of
    the question or of the padding.

    The gradients of the soft distributions shrink as :math:`1 / T^2`; the factor :math:`T^2` keeps the weight of this
    term against the task loss about the same when the temperature changes (Hinton et al., end of section 2). Some
    implementations leave it out, and their weights then mean something else.

    The forward divergence over a large vocabulary is computed a few rows at a time (`chunked_forward_kl`), with the
    same result and a fraction of the memory.

    Failure mode: far above the spread of the logits, a temperature makes both distributions uniform, and the loss tends
    to half the mean squared error of the centred logits, noise of hopeless classes included. Far below it, the teacher
    becomes one-hot (its other classes underflow to exact zeros once they are about 100 temperatures below the best) and
    the soft targets carry nothing that hard labels do not. 1 to 4 is usual. ``reverse`` has little to say to a student
    that is sure of a wrong class: its gradient vanishes there with the student's own doubt.

    Args:
        student_logits: Of shape ``(..., C)``, any real numbers. A class masked out by ``-inf`` must be so in both.
        teacher_logits: Of the same shape. No gradient flows to them.
        temperature: :math:`T`, above 0.
        mask: Of shape ``(...)``, True where a row counts. None means that all count.
        activation: What makes predictions of the logits: ``softmax``, ``sigmoid`` or ``identity``.
        divergence: ``forward``, ``reverse`` or ``js``; not for ``identity``.
        beta: :math:`\beta` of ``js``, in (0, 1): the teacher's share.
        top_k: How many classes of the teacher to keep apart, for ``softmax`` only. None keeps all.
        classes: Boolean, of the shape of the logits: True at the classes that a row has. A row without any does not
            count. None means that all rows have all classes.

    Returns:
        A float32 scalar in :math:`[0, \infty)`, computed in float32 whatever comes in; zero with a graph if no row
        counts.

    Raises:
        DistillationError: If the shapes differ, the mask does not cover all axes but the last, an option is unknown or
            out of range or has no meaning for this activation, or softmax is asked for a single class (it is always 1,
            so that the loss would be zero whatever the student says).

    Example:
        >>> student, teacher = torch.zeros(1, 3), torch.tensor([[0.0, 1.0, 2.0]])
        >>> soft_targets(student, teacher), soft_targets(student, teacher, divergence="reverse")
        (tensor(0.2662), tensor(0.3090))
        >>> soft_targets(student, teacher, divergence="js"), soft_targets(student, teacher, top_k=1)
        (tensor(0.0687), tensor(0.2291))
    """
    check_choice("soft_targets(activation=...)", activation, get_args(Activation))
    check_divergence("soft_targets", activation, divergence, beta, top_k)
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
    if classes is not None:
        check_same_shape("logits and their classes", student_logits, classes)
        classes = classes.bool()
        some = classes.any(dim=-1)
        mask = some if mask is None else mask.bool() & some
    large = student_logits.numel() >= LARGE_ELEMENTS and student_logits.shape[-1] >= LARGE_CLASSES
    if large and classes is None and activation == "softmax" and divergence == "forward" and top_k is None:
        return temperature**2 * _by_chunks(student_logits, teacher_logits, temperature, mask)
    with full_precision(student_logits):
        student, teacher = select(student_logits, mask).float(), select(teacher_logits.detach(), mask).float()
        if classes is not None:
            others = ~select(classes, mask)
            # a probability of zero under softmax; elsewhere the same in both, which costs nothing
            never = -math.inf if activation == "softmax" else 0.0
            student, teacher = student.masked_fill(others, never), teacher.masked_fill(others, never)
            if activation == "identity":
                student, teacher = student[~others], teacher[~others]
        if activation == "identity":
            # equal infinities differ by nothing, not by NaN
            return mean_or_zero((student - teacher).masked_fill(student == teacher, 0.0).square(), student_logits)
        if activation == "softmax":
            student_log, teacher_log = (student / temperature).log_softmax(-1), (teacher / temperature).log_softmax(-1)
            if top_k is not None and top_k < student.shape[-1]:
                best = teacher_log.topk(top_k, dim=-1).indices
                student_log, teacher_log = _lumped(student_log, best), _lumped(teacher_log, best)
            per_row = _divergence(student_log, teacher_log, divergence, beta)
        else:
            student_log, teacher_log = _log_bernoulli(student / temperature), _log_bernoulli(teacher / temperature)
            per_row = _divergence(student_log, teacher_log, divergence, beta).sum(-1)
        return temperature**2 * mean_or_zero(per_row, graph_of=student_logits)


def check_divergence(
    owner: str, activation: str | None, divergence: Divergence, beta: float, top_k: int | None
) -> None:
    """Refuse a divergence that is unknown, or that means nothing for an activation.

    Args:
        owner: The function or class, for errors.
        activation: What makes predictions of the logits, or None if that is not known yet.
        divergence: The divergence.
        beta: The teacher's share in ``js``.
        top_k: How many classes are kept apart.

    Raises:
        DistillationError: In these cases, or if a number is out of range.

    Example:
        >>> check_divergence("soft_targets", "softmax", "js", beta=0.1, top_k=None)
    """
    check_choice(f"{owner}(divergence=...)", divergence, get_args(Divergence))
    if isinstance(beta, bool) or not isinstance(beta, (int, float)) or not 0 < beta < 1:
        raise DistillationError(f"{owner}(beta={beta!r}): it is a share between 0 and 1, both excluded.")
    if top_k is not None and (isinstance(top_k, bool) or not isinstance(top_k, int) or top_k < 1):
        raise DistillationError(f"{owner}(top_k={top_k!r}): it is a number of classes, at least 1, or None for all.")
    if activation == "identity" and (divergence != "forward" or top_k is not None):
        raise DistillationError(
            f"{owner}(divergence={divergence!r}, top_k={top_k}) with the activation 'identity': a mean squared error "
            "compares no distributions. Leave both out."
        )
    if activation == "sigmoid" and top_k is not None:
        raise DistillationError(
            f"{owner}(top_k={top_k}) with the activation 'sigmoid': each label is a distribution of its own, of yes "
            "and no. Leave it out."
        )


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


def masked_kl(student_scores: Tensor, teacher_scores: Tensor, mask: Tensor) -> Tensor:
    r"""Mean divergence of softmax distributions, each over those of its scores that count.

    .. math:: \mathcal{L} = \frac{1}{N} \sum_{n} \mathrm{KL}\left(\mathrm{softmax}_{j \in M_n}(s^T_{nj}) \,\|\,
        \mathrm{softmax}_{j \in M_n}(s^S_{nj})\right)

    Args:
        student_scores: Of shape ``(..., C)``. What does not count may be anything, even NaN.
        teacher_scores: Of the same shape. No gradient flows to them.
        mask: The sets :math:`M_n`, boolean, of that shape or one that expands to it. A row without any counting score
            is no row.

    Returns:
        A float32 scalar in :math:`[0, \infty)`, computed in float32 whatever comes in; zero with a graph if no row
        counts.

    Example:
        >>> scores = torch.tensor([[0.0, 0.0, 9.0]])
        >>> masked_kl(scores, torch.tensor([[0.0, 2.0, float("nan")]]), torch.tensor([[True, True, False]]))
        tensor(0.3278)
    """
    # the smallest number and not -inf: its probability is an exact zero too, and nothing becomes NaN on the way, not
    # even in a row where all is masked, whose two distributions are then both uniform and differ by nothing
    never = torch.finfo(torch.float32).min
    with full_precision(student_scores):
        student_log, teacher_log = (
            scores.float().masked_fill(~mask, never).log_softmax(-1)
            for scores in (student_scores, teacher_scores.detach())
        )
        rows = mask.any(dim=-1).expand(student_scores.shape[:-1]).sum()
        return F.kl_div(student_log, teacher_log, reduction="sum", log_target=True) / rows.clamp(min=1)


def _by_chunks(student: Tensor, teacher: Tensor, temperature: float, mask: Tensor | None) -> Tensor:
    """Return the forward divergence of large logits; the rows that count are never copied out all at once."""
    ours, theirs = student.reshape(-1, student.shape[-1]), teacher.reshape(-1, teacher.shape[-1])
    if mask is None:
        return chunked_forward_kl(ours, theirs, temperature)
    if mask.shape != student.shape[:-1]:
        select(student, mask)  # says what is wrong
    rows = mask.reshape(-1).nonzero().squeeze(-1)
    if not len(rows):
        return mean_or_zero(ours.new_empty(0, dtype=torch.float32), graph_of=student)
    return chunked_forward_kl(ours, theirs, temperature, rows)


def _divergence(student_log: Tensor, teacher_log: Tensor, divergence: Divergence, beta: float) -> Tensor:
    """Return the divergence over the last axis, from log-probabilities."""
    if divergence == "forward":
        return forward_kl(student_log, teacher_log)
    if divergence == "reverse":
        return forward_kl(teacher_log, student_log)
    # where both are zero the mixture is, and its gradient would be NaN; any number does, since neither weighs it
    neither = (student_log == -math.inf) & (teacher_log == -math.inf)
    ours, theirs = student_log.masked_fill(neither, 0.0), teacher_log.masked_fill(neither, 0.0)
    mixture = torch.logaddexp(ours + math.log1p(-beta), theirs + math.log(beta))
    return beta * forward_kl(mixture, teacher_log) + (1.0 - beta) * forward_kl(mixture, student_log)


def _lumped(log_probabilities: Tensor, classes: Tensor) -> Tensor:
    """Return the log-probabilities of some classes and, as one more, of all others together."""
    others = log_probabilities.scatter(-1, classes, -math.inf)
    # a row whose others are all impossible: logsumexp would have NaN for a gradient
    empty = (others == -math.inf).all(dim=-1, keepdim=True)
    rest = others.masked_fill(empty, 0.0).logsumexp(dim=-1, keepdim=True).masked_fill(empty, -math.inf)
    return torch.cat([log_probabilities.gather(-1, classes), rest], dim=-1)


def _log_bernoulli(logits: Tensor) -> Tensor:
    """Return the log-probabilities of yes and no, of shape ``(..., 2)``."""
    return torch.stack([F.logsigmoid(logits), F.logsigmoid(-logits)], dim=-1)
