"""Distance between sentence embeddings."""

from __future__ import annotations

from torch import Tensor

from lightning_distilbert.functional.hidden_states import Metric, hidden_state_distance


def embedding_distance(
    student: Tensor, teacher: Tensor, rows: Tensor | None = None, metric: Metric = "cosine"
) -> Tensor:
    r"""Mean distance of the student's sentence embeddings from the teacher's.

    The student is placed at the teacher's own vectors (``mse``: Reimers and Gurevych 2020, "Making Monolingual Sentence
    Embeddings Multilingual using Knowledge Distillation", https://arxiv.org/abs/2004.09813, section 2), or in their
    directions (``cosine``), over the :math:`N` counting rows with vectors of width :math:`d`:

    .. math::
        \mathcal{L}_{\cos} = \frac{1}{N} \sum_{n} 1 - \frac{e^S_n \cdot e^T_n}{\|e^S_n\| \|e^T_n\|} \qquad
        \mathcal{L}_{\mathrm{mse}} = \frac{1}{N d} \sum_{n} \|e^S_n - e^T_n\|^2

    Failure mode: with vectors of length 1 and width :math:`d` the ``mse`` is of the order :math:`2 / d`, so that it
    needs a far larger weight than ``cosine``. Use ``cosine`` where retrieval scores by cosine, ``mse`` where by dot
    product.

    Args:
        student: Of shape ``(batch, width)``.
        teacher: Of the same shape. No gradient flows to it.
        rows: Of shape ``(batch,)``, True where a row counts. None means that all count.
        metric: ``cosine``, in [0, 2], ``mse``, in :math:`[0, \infty)`, or ``normalized_mse``, ``mse`` of vectors
            scaled to length 1.

    Returns:
        A float32 scalar, computed in float32 whatever comes in; zero with a graph if no row counts.

    Raises:
        DistillationError: If the shapes differ or the metric is unknown.

    Example:
        >>> import torch
        >>> embedding_distance(torch.tensor([[1.0, 0.0]]), torch.tensor([[-3.0, 0.0]]))
        tensor(2.)
    """
    return hidden_state_distance(student, teacher, mask=rows, metric=metric)
