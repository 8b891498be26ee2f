"""Contrastive loss of retrieval: each query must find its own document among those of the batch."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional as F

from lightning_distilbert.errors import DistillationError
from lightning_distilbert.functional.masking import full_precision, mean_or_zero, select


def in_batch_contrastive(
    queries: Tensor,
    documents: Tensor,
    document_ids: Tensor | None = None,
    temperature: float = 0.05,
    rows: Tensor | None = None,
) -> Tensor:
    r"""Cross-entropy of each query's own document against the other documents of the batch (InfoNCE).

    With :math:`s_{ij}` the cosine of query :math:`i` and document :math:`j`, and :math:`S_i` the documents that are the
    same as the query's own (van den Oord et al. 2018, https://arxiv.org/abs/1807.03748, equation 4; Henderson et al.
    2017, https://arxiv.org/abs/1705.00652, section 4.4; the MultipleNegativesRankingLoss of sentence-transformers with
    ``scale`` :math:`= 1 / \tau`):

    .. math:: \mathcal{L} = -\frac{1}{N} \sum_{i=1}^{N} \log
        \frac{\exp(s_{ii} / \tau)}{\exp(s_{ii} / \tau) + \sum_{j \notin S_i} \exp(s_{ij} / \tau)}

    Failure mode: a document that answers two queries of a batch is pushed away from one of them unless
    ``document_ids`` says that it is the same. A batch of one document gives zero. With a larger batch there are more
    negatives, so that losses of different batch sizes cannot be compared.

    Args:
        queries: Of shape ``(batch, width)``.
        documents: Of shape ``(batch, width)``: row ``i`` answers query ``i``.
        document_ids: Integers of shape ``(batch,)``: rows with equal numbers hold the same document. None means that
            all differ.
        temperature: :math:`\tau`, above 0.
        rows: Of shape ``(batch,)``, True where a pair counts; others are no negatives either. None means that all
            count.

    Returns:
        A float32 scalar in :math:`[0, \infty)`, computed in float32 whatever comes in; zero with a graph if no pair
        counts.

    Raises:
        DistillationError: If the shapes differ, there is not one document number a row, or the temperature is not above
            0.

    Example:
        >>> queries = torch.eye(2)
        >>> in_batch_contrastive(queries, queries.flip(0), temperature=1.0)
        tensor(1.3133)
        >>> in_batch_contrastive(queries, queries.flip(0), document_ids=torch.tensor([7, 7]))
        tensor(0.)
    """
    if not (temperature > 0 and math.isfinite(temperature)):
        raise DistillationError(
            f"in_batch_contrastive(temperature={temperature}): a temperature is a finite number above 0."
        )
    if queries.dim() != 2 or queries.shape != documents.shape:
        raise DistillationError(
            f"in_batch_contrastive() was given queries of shape {tuple(queries.shape)} and documents of shape "
            f"{tuple(documents.shape)}: it needs one document a query, both (batch, width)."
        )
    if document_ids is not None and document_ids.shape != queries.shape[:1]:
        raise DistillationError(
            f"in_batch_contrastive() was given document_ids of shape {tuple(document_ids.shape)} for {len(queries)} "
            "documents: it needs one number a document."
        )
    with full_precision(queries):
        left = F.normalize(select(queries, rows).float(), dim=-1)
        right = F.normalize(select(documents, rows).float(), dim=-1)
        scores = left @ right.T / temperature
        if document_ids is not None:
            ids = select(document_ids.unsqueeze(-1), rows)
            itself = torch.eye(len(left), dtype=torch.bool, device=left.device)
            scores = scores.masked_fill((ids == ids.T) & ~itself, -math.inf)
        per_query = F.cross_entropy(scores, torch.arange(len(left), device=left.device), reduction="none")
        return mean_or_zero(per_query, graph_of=scores)
