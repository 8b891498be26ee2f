"""Scores of candidates for each query, and what they cost against the teacher's scores."""

from __future__ import annotations

import math
from typing import Literal, get_args

import torch
from torch import Tensor
from torch.nn import functional as F

from lightning_distilbert.errors import DistillationError, check_choice
from lightning_distilbert.functional.masking import check_same_shape, full_precision
from lightning_distilbert.functional.soft_targets import masked_kl

Score = Literal["cosine", "dot"]
Candidates = Literal["auto", "own", "batch"]


def candidate_scores(
    queries: Tensor,
    documents: Tensor,
    rows: Tensor | None = None,
    document_rows: Tensor | None = None,
    candidates: Candidates = "auto",
    score: Score = "cosine",
) -> tuple[Tensor, Tensor]:
    r"""Score the candidates of each query by their embeddings; the first candidate is the one that answers it.

    The documents of query :math:`i` out of :math:`B` stand in rows :math:`i, i + B, i + 2B, \dots`: first the documents
    that answer the queries, in the queries' order, then a first hard negative of each query, then a second, and so on.

    Args:
        queries: Of shape ``(batch, width)``.
        documents: Of shape ``(k * batch, width)``: each query has 1 answer and ``k - 1`` hard negatives.
        rows: Of shape ``(batch,)``, True where a query counts. None means that all count.
        document_rows: Of shape ``(k * batch,)``, True where a document counts. None means that all count.
        candidates: ``own``: the documents of the query itself. ``batch``: its answer and then all documents of the
            batch. ``auto``: ``own`` if there are hard negatives, else ``batch``.
        score: ``cosine`` or ``dot``.

    Returns:
        Scores in float32, and which of them count, both of shape ``(batch, k)`` for ``own`` and
        ``(batch, 1 + k * batch)`` for ``batch``. There the answer stands in column 0, and its second place, among all
        documents, does not count.

    Raises:
        DistillationError: If an option is unknown, or there is not the same number of documents for each query.

    Example:
        >>> queries = torch.eye(2)
        >>> documents = torch.tensor([[1.0, 0.0], [0.0, 1.0], [0.0, 1.0], [0.6, 0.8]])  # two answers, two negatives
        >>> candidate_scores(queries, documents)[0]
        tensor([[1.0000, 0.0000],
                [1.0000, 0.8000]])
        >>> scores, counts = candidate_scores(queries, documents[:2])
        >>> scores.masked_select(counts).reshape(2, -1)
        tensor([[1., 0.],
                [1., 0.]])
    """
    check_choice("candidate_scores(candidates=...)", candidates, get_args(Candidates))
    check_choice("candidate_scores(score=...)", score, get_args(Score))
    batch = len(queries)
    if queries.dim() != 2 or documents.dim() != 2 or not batch or not len(documents) or len(documents) % batch:
        raise DistillationError(
            f"Candidates are scored for queries of shape {tuple(queries.shape)} with documents of shape "
            f"{tuple(documents.shape)}: each query needs as many documents as the others, its answer in row i and its "
            "hard negatives in rows i + batch, i + 2 * batch, and so on."
        )
    with full_precision(queries):
        left, real = prepared(queries, rows, score)
        right, real_documents = prepared(documents, document_rows, score)
        if candidates == "own" or (candidates == "auto" and len(documents) > batch):
            blocks = right.unflatten(0, (-1, batch))
            counts = real_documents.unflatten(0, (-1, batch)).T & real.unsqueeze(-1)
            return torch.einsum("iw,kiw->ik", left, blocks), counts
        scores = left @ right.T
        counts = real.unsqueeze(-1) & real_documents
        itself = torch.eye(batch, len(documents), dtype=torch.bool, device=scores.device)
        answer, answer_counts = scores.diagonal().unsqueeze(-1), counts.diagonal().unsqueeze(-1)
        return torch.cat([answer, scores], dim=-1), torch.cat([answer_counts, counts & ~itself], dim=-1)


def prepared(embeddings: Tensor, rows: Tensor | None, score: Score = "cosine") -> tuple[Tensor, Tensor]:
    """Make vectors ready for a product that compares them.

    Args:
        embeddings: Of shape ``(rows, width)``.
        rows: Of shape ``(rows,)``, True where a row counts. None means that all count.
        score: ``cosine`` scales them to length 1, ``dot`` does not.

    Returns:
        The vectors in float32, zero where they do not count, and which count.

    Raises:
        DistillationError: If the mask is not one of these rows.

    Example:
        >>> prepared(torch.tensor([[3.0, 4.0], [1.0, 0.0]]), torch.tensor([True, False]))[0]
        tensor([[0.6000, 0.8000],
                [0.0000, 0.0000]])
    """
    counts = embeddings.new_ones(len(embeddings), dtype=torch.bool) if rows is None else rows.bool()
    if counts.shape != embeddings.shape[:1]:
        raise DistillationError(
            f"A mask of shape {tuple(counts.shape)} does not say which of {len(embeddings)} embeddings count."
        )
    # a NaN there would reach the other rows in the backward of the product, as 0 times NaN
    vectors = embeddings.float().masked_fill(~counts.unsqueeze(-1), 0.0)
    return (F.normalize(vectors, dim=-1) if score == "cosine" else vectors), counts


def arrange_scores(scores: Tensor, documents: int, own: bool) -> Tensor:
    r"""Bring given scores, such as a cross-encoder's, into the order of `candidate_scores`.

    Args:
        scores: Of the documents of each query alone, of shape ``(batch, k)``, its answer first; or of all documents of
            the batch, of shape ``(batch, k * batch)``, in their order.
        documents: The number of documents in the batch, :math:`k B`.
        own: Whether the documents of the query itself are wanted, or its answer and then all documents.

    Returns:
        Of shape ``(batch, k)``, or ``(batch, 1 + k * batch)``.

    Raises:
        DistillationError: If the scores are of another number of documents, or all are wanted and not there.

    Example:
        >>> scores = torch.tensor([[5.0, 1.0, 2.0, 0.0], [1.0, 6.0, 0.0, 3.0]])  # two answers, two negatives
        >>> arrange_scores(scores, documents=4, own=True)
        tensor([[5., 2.],
                [6., 3.]])
        >>> arrange_scores(scores[:, :2], documents=2, own=False)
        tensor([[5., 5., 1.],
                [6., 1., 6.]])
    """
    batch = len(scores)
    if scores.dim() != 2 or not batch or documents % batch or scores.shape[1] not in (documents // batch, documents):
        raise DistillationError(
            f"There are scores of shape {tuple(scores.shape)} for {documents} documents: each query needs one for each "
            "of its own documents, or for all of the batch."
        )
    whole = scores.shape[1] == documents
    if own:
        return scores.unflatten(1, (-1, batch)).diagonal(dim1=0, dim2=2).T if whole and batch > 1 else scores
    if not whole:
        raise DistillationError(
            f"The scores are those of the {documents // batch} documents of each query, and all {documents} documents "
            "of the batch are to be compared: use candidates='own', or a teacher that can score them."
        )
    return torch.cat([scores.diagonal().unsqueeze(-1), scores], dim=-1)


def margin_mse(student_scores: Tensor, teacher_scores: Tensor, mask: Tensor | None = None) -> Tensor:
    r"""Mean squared error of the margins by which each query's answer beats its other candidates.

    With :math:`s_{i0}` the score of the answer of query :math:`i` and :math:`M` the pairs of a query and another
    candidate (Hofstätter et al. 2020, "Improving Efficient Neural Ranking Models with Cross-Architecture Knowledge
    Distillation", https://arxiv.org/abs/2010.02666, section 4.1):

    .. math:: \mathcal{L} = \frac{1}{|M|} \sum_{(i, j) \in M}
        \left((s^S_{i0} - s^S_{ij}) - (s^T_{i0} - s^T_{ij})\right)^2

    The teacher's scores may come from anywhere, such as a cross-encoder. Failure mode: margins have the scale of the
    scores, so that a student that scores by cosine (margins in [-2, 2]) can never follow the logits of a cross-encoder
    (margins of 10 and more): scale one of the two.

    Args:
        student_scores: Of shape ``(batch, candidates)``; the answer stands in column 0.
        teacher_scores: Of the same shape. No gradient flows to them.
        mask: Of the same shape, True where a candidate counts. None means that all count.

    Returns:
        A float32 scalar in :math:`[0, \infty)`, computed in float32 whatever comes in; zero with a graph if no margin
        counts.

    Raises:
        DistillationError: If the shapes differ, or there is no second column.

    Example:
        >>> margin_mse(torch.tensor([[3.0, 1.0]]), torch.tensor([[7.0, 4.0]]))
        tensor(1.)
    """
    mask = _checked("margin_mse", student_scores, teacher_scores, mask)
    with full_precision(student_scores):
        pairs = mask[:, :1] & mask[:, 1:]
        ours, theirs = (scores.float().masked_fill(~mask, 0.0) for scores in (student_scores, teacher_scores.detach()))
        difference = (ours[:, :1] - ours[:, 1:]) - (theirs[:, :1] - theirs[:, 1:])
        return difference.masked_fill(~pairs, 0.0).square().sum() / pairs.sum().clamp(min=1)


def ranking_kl(
    student_scores: Tensor,
    teacher_scores: Tensor,
    mask: Tensor | None = None,
    temperature: float = 1.0,
    teacher_temperature: float | None = None,
) -> Tensor:
    r"""Divergence between the rankings that student and teacher give to each query's candidates.

    .. math:: \mathcal{L} = \frac{1}{N} \sum_{i=1}^{N} \mathrm{KL}\left(\mathrm{softmax}_j(s^T_{ij} / \tau_T) \,\|\,
        \mathrm{softmax}_j(s^S_{ij} / \tau)\right)

    As Lin et al. 2021 ("In-Batch Negatives for Knowledge Distillation with Tightly-Coupled Teachers", RepL4NLP,
    equation 3). The temperature is part of the scores and there is no factor :math:`\tau^2`:
    `lightning_distilbert.functional.similarity_divergence` says why. The teacher's scores may come from anywhere, such
    as a cross-encoder. Failure mode: far above the spread of the scores all rankings are flat, far below it only the
    best candidate counts. Scores of different scales
    (a student's cosines, a cross-encoder's logits) need a temperature each.

    Args:
        student_scores: Of shape ``(batch, candidates)``.
        teacher_scores: Of the same shape. No gradient flows to them.
        mask: Of the same shape, True where a candidate counts. None means that all count.
        temperature: :math:`\tau`, above 0.
        teacher_temperature: :math:`\tau_T`, above 0; None is :math:`\tau`.

    Returns:
        A float32 scalar in :math:`[0, \infty)`, in nats, computed in float32 whatever comes in; zero with a graph if no
        candidate counts.

    Raises:
        DistillationError: If the shapes differ, there is only one candidate, or the temperature is not above 0.

    Example:
        >>> ranking_kl(torch.tensor([[0.0, 0.0]]), torch.tensor([[0.0, 2.0]]))
        tensor(0.3278)
    """
    theirs = temperature if teacher_temperature is None else teacher_temperature
    for name, value in (("temperature", temperature), ("teacher_temperature", theirs)):
        if not (value > 0 and math.isfinite(value)):
            raise DistillationError(f"ranking_kl({name}={value}): a temperature is a finite number above 0.")
    mask = _checked("ranking_kl", student_scores, teacher_scores, mask)
    with full_precision(student_scores):
        return masked_kl(student_scores.float() / temperature, teacher_scores.float() / theirs, mask)


def _checked(owner: str, student_scores: Tensor, teacher_scores: Tensor, mask: Tensor | None) -> Tensor:
    """Return the mask, made if there is none, or refuse the shapes."""
    check_same_shape("scores", student_scores, teacher_scores)
    mask = student_scores.new_ones(student_scores.shape, dtype=torch.bool) if mask is None else mask.bool()
    if student_scores.dim() != 2 or student_scores.shape[1] < 2 or mask.shape != student_scores.shape:
        raise DistillationError(
            f"{owner}() was given scores of shape {tuple(student_scores.shape)} and a mask of shape "
            f"{tuple(mask.shape)}: both must be (batch, candidates), with at least two candidates a query."
        )
    return mask
