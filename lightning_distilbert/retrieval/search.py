"""Exact search for the nearest vectors, in blocks."""

from __future__ import annotations

from typing import Any, TypeAlias

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from lightning_distilbert.errors import DistillationError

SIMILARITIES = ("cosine", "dot")
Vectors: TypeAlias = Tensor | np.ndarray


def search(
    queries: Vectors,
    documents: Vectors,
    top_k: int,
    similarity: str = "cosine",
    block: int = 4096,
    device: torch.device | str | None = None,
) -> tuple[Tensor, Tensor]:
    """Find the most similar documents of each query, exactly.

    It goes through blocks of both, so that no more than ``block * (block + 2 * top_k)`` scores are held at once beside
    the result. The documents are read once, block by block: they may be an array that is mapped from a file.

    Args:
        queries: Shape ``(Q, width)``, a tensor or an array.
        documents: Shape ``(D, width)``, likewise.
        top_k: How many documents to return for each query, at most.
        similarity: ``"cosine"`` or ``"dot"``, both computed in float32.
        block: How many queries, and how many documents, to compare at once.
        device: Where to compute; None is where the queries are. The documents come there block by block.

    Returns:
        The scores in float32 and the documents' positions in ``documents``, both of shape ``(Q, min(top_k, D))``, the
        best first. Of equal scores the lower position comes first, whatever the block.

    Raises:
        DistillationError: If ``similarity`` is unknown, ``top_k`` or ``block`` is below 1, or the widths differ.

    Example:
        >>> scores, positions = search(torch.tensor([[1.0, 0.0]]), torch.tensor([[0.0, 3.0], [2.0, 0.0]]), top_k=2)
        >>> positions.tolist(), scores.tolist()
        ([[1, 0]], [[1.0, 0.0]])
    """
    check_similarity(similarity)
    if top_k < 1 or block < 1:
        raise DistillationError(f"top_k={top_k} and block={block}: both must be at least 1.")
    if queries.ndim != 2 or documents.ndim != 2 or queries.shape[1] != documents.shape[1]:
        raise DistillationError(
            f"Queries of shape {tuple(queries.shape)} cannot be compared with documents of shape "
            f"{tuple(documents.shape)}: both must be (number, width), with the same width."
        )
    device = home_of(queries) if device is None else torch.device(device)
    # neither bfloat16 embeddings nor a surrounding autocast may make documents tie that are not equal
    with torch.autocast(device.type, enabled=False):
        parts = prepared(queries, similarity, device).split(block)
        # one tensor for each block of queries, which is replaced block of documents by block of documents
        scores = [part.new_empty(len(part), 0) for part in parts]
        positions = [torch.empty(len(part), 0, dtype=torch.long, device=device) for part in parts]
        for start in range(0, len(documents), block):
            against = prepared(documents[start : start + block], similarity, device).T
            for row, part in enumerate(parts):
                found, columns = best(part @ against, top_k)
                together = torch.cat([scores[row], found], 1)
                scores[row], columns_kept = best(together, top_k)
                positions[row] = torch.cat([positions[row], columns + start], 1).gather(1, columns_kept)
    return torch.cat(scores), torch.cat(positions)


def check_similarity(similarity: str) -> None:
    """Refuse a name that `search` does not know.

    Args:
        similarity: The name.

    Raises:
        DistillationError: If it is none of `SIMILARITIES`.

    Example:
        >>> check_similarity("cosine")
    """
    if similarity not in SIMILARITIES:
        raise DistillationError(f"similarity={similarity!r} is unknown. Choose one of {', '.join(SIMILARITIES)}.")


def similarity_of(encoder: Any) -> str:
    """Return by what the vectors of an encoder are compared: as its task says, else by the cosine.

    Args:
        encoder: A module, or any object that gives vectors.

    Example:
        >>> similarity_of(object())
        'cosine'
    """
    return str(getattr(getattr(encoder, "task", None), "similarity", "cosine"))


def home_of(vectors: Vectors) -> torch.device:
    """Return where vectors are."""
    return vectors.device if isinstance(vectors, Tensor) else torch.device("cpu")


def prepared(vectors: Vectors, similarity: str, device: torch.device) -> Tensor:
    """Return vectors in float32 on a device, of length one for the cosine."""
    if isinstance(vectors, np.ndarray):
        vectors = torch.from_numpy(np.array(vectors, dtype=np.float32))  # a copy: a mapped file is not writable
    vectors = vectors.to(device).float()
    return F.normalize(vectors, dim=-1) if similarity == "cosine" else vectors


def best(scores: Tensor, top_k: int) -> tuple[Tensor, Tensor]:
    """Return the highest scores of each row and their columns; of equal scores the lower column comes first.

    `torch.topk` alone takes any of those that tie for the last place, and orders equal scores anyhow.

    Example:
        >>> best(torch.tensor([[0.5, 1.0, 1.0, 1.0]]), top_k=2)[1].tolist()
        [[1, 2]]
    """
    top_k = min(top_k, scores.shape[1])
    values, columns = scores.topk(min(top_k + 1, scores.shape[1]), dim=1)
    if values.shape[1] > top_k:
        tied = (values[:, top_k - 1] == values[:, top_k]).nonzero().squeeze(1)
        if len(tied):
            ordered = scores[tied].sort(dim=1, descending=True, stable=True)
            columns[tied] = ordered.indices[:, : top_k + 1]
    columns = columns[:, :top_k].sort(dim=1).values
    values, order = scores.gather(1, columns).sort(dim=1, descending=True, stable=True)
    return values, columns.gather(1, order)


def pair_scores(
    queries: Vectors, documents: Vectors, pairs: np.ndarray, similarity: str = "cosine", block: int = 4096
) -> Tensor:
    """Compute the similarity of some pairs.

    Args:
        queries: Shape ``(Q, width)``.
        documents: Shape ``(D, width)``.
        pairs: The places of query and document of each pair, of shape ``(P, 2)``.
        similarity: ``"cosine"`` or ``"dot"``.
        block: How many pairs to look up at once.

    Returns:
        The scores in float32, of shape ``(P,)``.

    Example:
        >>> pair_scores(torch.eye(2), torch.ones(1, 2), np.array([[1, 0]]), "dot").tolist()
        [1.0]
    """
    device = home_of(queries)
    found = [torch.empty(0, device=device)]
    for start in range(0, len(pairs), block):
        rows = pairs[start : start + block]
        left, right = (
            prepared(vectors[rows[:, side]], similarity, device) for side, vectors in enumerate((queries, documents))
        )
        found.append((left * right).sum(dim=1))
    return torch.cat(found)
