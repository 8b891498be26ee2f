"""Distance between hidden states, token by token."""

from __future__ import annotations

from typing import Literal, get_args

from torch import Tensor
from torch.nn import functional as F

from lightning_distilbert.errors import check_choice
from lightning_distilbert.functional.masking import check_same_shape, full_precision, mean_or_zero, select

Metric = Literal["cosine", "mse", "normalized_mse"]


def hidden_state_distance(
    student: Tensor, teacher: Tensor, mask: Tensor | None = None, metric: Metric = "cosine"
) -> Tensor:
    r"""Mean distance of the student's vectors from the teacher's over the real tokens.

    ``cosine`` (Sanh et al. 2019, "DistilBERT", https://arxiv.org/abs/1910.01108, section 2) and ``mse`` (Jiao et al.
    2020, "TinyBERT", https://arxiv.org/abs/1909.10351, section 3, hidden states based distillation), over the
    :math:`N` real tokens with vectors of width :math:`d`:

    .. math::
        \mathcal{L}_{\cos} = \frac{1}{N} \sum_{n} 1 - \frac{h^S_n \cdot h^T_n}{\|h^S_n\| \|h^T_n\|} \qquad
        \mathcal{L}_{\mathrm{mse}} = \frac{1}{N d} \sum_{n} \|h^S_n - h^T_n\|^2

    ``normalized_mse`` is ``mse`` of vectors that were scaled to length 1 first (Sun et al. 2019, "Patient Knowledge
    Distillation", https://arxiv.org/abs/1908.09355, equation 7, as a mean over the width as in the authors' code, so
    that their weights mean the same here). It is :math:`2 / d` times ``cosine``, and keeps its digits near zero, where
    ``cosine`` is a difference of numbers close to 1. Each vector is scaled by itself: no other token, and no padding,
    has a part in it.

    Failure mode: ``cosine`` and ``normalized_mse`` do not see lengths, so that a student may agree in every direction
    and still differ in scale (a LayerNorm after it hides that); ``mse`` is ruled by the few outlier dimensions that
    BERT-type models have.

    Args:
        student: Of shape ``(batch, sequence, width)``, or with any other axes before the width.
        teacher: Of the same shape. No gradient flows to it.
        mask: Of shape ``(batch, sequence)``, True at real tokens. None means that all count.
        metric: ``cosine``, in [0, 2], ``mse``, in :math:`[0, \infty)`, or ``normalized_mse``, in [0, 4 / width].

    Returns:
        A float32 scalar, computed in float32 whatever comes in; zero with a graph if no token counts.

    Raises:
        DistillationError: If the shapes differ or the metric is unknown.

    Example:
        >>> import torch
        >>> student, teacher = torch.tensor([[[1.0, 0.0], [9.0, 9.0]]]), torch.tensor([[[0.0, 2.0], [0.0, 0.0]]])
        >>> mask = torch.tensor([[True, False]])
        >>> hidden_state_distance(student, teacher, mask), hidden_state_distance(student, teacher, mask, metric="mse")
        (tensor(1.), tensor(2.5000))
    """
    check_choice("hidden_state_distance(metric=...)", metric, get_args(Metric))
    check_same_shape("hidden states", student, teacher)
    with full_precision(student):
        ours, theirs = select(student, mask).float(), select(teacher.detach(), mask).float()
        if metric == "cosine":
            return mean_or_zero(1.0 - F.cosine_similarity(ours, theirs, dim=-1), graph_of=student)
        if metric == "normalized_mse":
            ours, theirs = F.normalize(ours, dim=-1), F.normalize(theirs, dim=-1)
        return mean_or_zero((ours - theirs).square(), graph_of=student)
