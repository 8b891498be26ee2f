"""Contrastive loss of retrieval: each query must find its own document among those of the batch."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional as F

from lightning_distilbert.errors import DistillationError
from lightning_distilbert.functional.masking import full_precision, mean_or_zero
from lightning_distilbert.functional.ranking import Score, prepared


def in_batch_contrastive(
    queries: Tensor,
    documents: Tensor,
    document_ids: Tensor | None = None,
    temperature: float = 0.05,
    rows: Tensor | None = None,
    document_rows: Tensor | None = None,
    relevant: Tensor | None = None,
    answers: Tensor | None = None,
    score: Score = "cosine",
) -> Tensor:
    r"""Cross-entropy of each query's own document against the other documents of the batch (InfoNCE).

    With :math:`s_{ij}` the score of query :math:`i` and document :math:`j`, :math:`a_i` the query's own document and
    :math:`R_i` the documents that are the same as it, or answer the query too (van den Oord et al. 2018,
    https://arxiv.org/abs/1807.03748, equation 4; Henderson et al. 2017, https://arxiv.org/abs/1705.00652, section 4.4;
    the MultipleNegativesRankingLoss of sentence-transformers with ``scale`` :math:`= 1 / \tau`; with hard negatives
    Karpukhin et al. 2020, https://arxiv.org/abs/2004.04906, section 3.2):

    .. math:: \mathcal{L} = -\frac{1}{N} \sum_{i=1}^{N} \log
        \frac{\exp(s_{ia_i} / \tau)}{\exp(s_{ia_i} / \tau) + \sum_{j \notin R_i} \exp(s_{ij} / \tau)}

    The documents are the queries' own, in the queries' order, and below them any number of hard negatives of each
    query: rows :math:`i, i + B, i + 2B, \dots` of :math:`B` queries. Each query is compared with all of them.

    Failure mode: a document that answers two queries of a batch is pushed away from one of them unless
    ``document_ids`` and ``relevant`` say so. A batch of one document gives zero. With a larger batch there are more
    negatives, so that losses of different batch sizes cannot be compared. Dot products of long vectors, divided by a
    small temperature, give a loss of hundreds, whose gradient is that of the worst negative alone: take 1 there.

    Args:
        queries: Of shape ``(batch, width)``.
        documents: Of shape ``(k * batch, width)``, or of any number of rows with ``answers``.
        document_ids: Integers, one for each document: rows with equal numbers hold the same document. None means that
            all differ.
        temperature: :math:`\tau`, above 0.
        rows: Of shape ``(batch,)``, True where a query counts. None means that all count.
        document_rows: One for each document, True where it counts. None: where its query does, all with ``answers``. A
            query whose own document does not count does not count.
        relevant: Integers of shape ``(batch, any)``: the ``document_ids`` of further documents that answer each query;
            any other number is padding.
        answers: Integers of shape ``(batch,)``: the row of each query's own document. None means row ``i``.
        score: ``cosine``, or ``dot`` for the dot product of the vectors as they are.

    Returns:
        A float32 scalar in :math:`[0, \infty)`, computed in float32 whatever comes in; zero with a graph if no query
        counts.

    Raises:
        DistillationError: If the shapes do not fit together, or the temperature is not above 0.

    Example:
        >>> queries = torch.eye(2)
        >>> in_batch_contrastive(queries, queries.flip(0), temperature=1.0)
        tensor(1.3133)
        >>> in_batch_contrastive(queries, queries.flip(0), document_ids=torch.tensor([7, 7]))
        tensor(0.)
        >>> in_batch_contrastive(queries, torch.cat([queries, queries]), temperature=1.0)  # a hard negative each
        tensor(1.0064)
    """
    if not (temperature > 0 and math.isfinite(temperature)):
        raise DistillationError(
            f"in_batch_contrastive(temperature={temperature}): a temperature is a finite number above 0."
        )
    batch, count = len(queries), len(documents)
    fits = queries.dim() == documents.dim() == 2 and queries.shape[-1:] == documents.shape[-1:]
    whole = answers is not None or (count % batch == 0 and count >= batch if batch else count == 0)
    if not fits or not whole or (answers is not None and answers.shape != (batch,)):
        raise DistillationError(
            f"in_batch_contrastive() was given queries of shape {tuple(queries.shape)} and documents of shape "
            f"{tuple(documents.shape)}: it needs one document a query, or as many for each, all of one width."
        )
    if document_ids is not None and document_ids.shape != (count,):
        raise DistillationError(
            f"in_batch_contrastive() was given document_ids of shape {tuple(document_ids.shape)} for {count} "
            "documents: it needs one number a document."
        )
    if relevant is not None and (document_ids is None or relevant.dim() != 2 or len(relevant) != batch):
        raise DistillationError(
            f"in_batch_contrastive() was given relevant of shape {tuple(relevant.shape)} for {batch} queries: it needs "
            "a row of numbers for each query, and the document_ids that they speak of."
        )
    if answers is None:
        answers = torch.arange(batch, device=queries.device)
        if document_rows is None and rows is not None and batch:
            document_rows = rows.repeat(count // batch)
    with full_precision(queries):
        left, asked = prepared(queries, rows, score)
        right, real = prepared(documents, document_rows, score)
        excluded = ~real.unsqueeze(0).expand(batch, count)
        if document_ids is not None:
            excluded = excluded | (document_ids[answers].unsqueeze(-1) == document_ids)
        if document_ids is not None and relevant is not None:
            excluded = excluded | (relevant.unsqueeze(-1) == document_ids).any(dim=1)
        itself = torch.zeros_like(excluded).scatter_(1, answers.unsqueeze(-1), True)
        scores = (left @ right.T / temperature).masked_fill(excluded & ~itself, -math.inf)
        counts = asked & real[answers]
        per_query = F.cross_entropy(scores[counts], answers[counts], reduction="none")
        return mean_or_zero(per_query, graph_of=scores)
