"""Exact search for the nearest vectors, in blocks, in numpy."""

from __future__ import annotations

import numpy as np

from lightning_distilbert.errors import DistillationError, check_choice

SIMILARITIES = ("cosine", "dot")


def search(
    queries: np.ndarray, documents: np.ndarray, top_k: int = 10, similarity: str = "cosine", block: int = 4096
) -> tuple[np.ndarray, np.ndarray]:
    """Find the most similar documents of each query, exactly, as `lightning_distilbert.retrieval.search` does.

    Args:
        queries: Shape ``(Q, width)``.
        documents: Shape ``(D, width)``; it may be mapped from a file, and is read once, block by block.
        top_k: How many documents to return for each query, at most.
        similarity: ``"cosine"`` or ``"dot"``, both computed in float32.
        block: How many queries, and how many documents, to compare at once.

    Returns:
        The scores in float32 and the documents' positions, both of shape ``(Q, min(top_k, D))``, the best first. Of
        equal scores the lower position comes first.

    Raises:
        DistillationError: If an option is bad, the widths differ, or a number is not finite.

    Example:
        >>> scores, positions = search(np.array([[1.0, 0.0]]), np.array([[0.0, 3.0], [2.0, 0.0]]), top_k=2)
        >>> positions.tolist(), scores.tolist()
        ([[1, 0]], [[1.0, 0.0]])
    """
    check_choice("search(similarity=...)", similarity, SIMILARITIES)
    if top_k < 1 or block < 1:
        raise DistillationError(f"top_k={top_k} and block={block}: both must be at least 1.")
    queries, documents = np.asanyarray(queries), np.asanyarray(documents)
    if queries.ndim != 2 or documents.ndim != 2 or queries.shape[1] != documents.shape[1]:
        raise DistillationError(
            f"Queries of shape {queries.shape} cannot be compared with documents of shape {documents.shape}: both must "
            "be (number, width), with the same width."
        )
    if not len(queries):
        shape = (0, min(top_k, len(documents)))
        return np.empty(shape, np.float32), np.empty(shape, np.int64)
    parts = [
        _prepared(queries[start : start + block], similarity, "queries") for start in range(0, len(queries), block)
    ]
    found = [(np.empty((len(part), 0), np.float32), np.empty((len(part), 0), np.int64)) for part in parts]
    for start in range(0, len(documents), block):
        against = _prepared(documents[start : start + block], similarity, "documents").T
        for row, part in enumerate(parts):
            scores, columns = _best(part @ against, top_k)
            together = np.concatenate([found[row][0], scores], axis=1)
            positions = np.concatenate([found[row][1], columns + start], axis=1)
            scores, kept = _best(together, top_k)
            found[row] = scores, np.take_along_axis(positions, kept, axis=1)
    return np.concatenate([scores for scores, _ in found]), np.concatenate([places for _, places in found])


def _prepared(vectors: np.ndarray, similarity: str, name: str) -> np.ndarray:
    """Return vectors in float32, of length one for the cosine."""
    vectors = np.asarray(vectors, dtype=np.float32)
    if not np.isfinite(vectors).all():
        raise DistillationError(f"There are numbers among the {name} that are NaN or infinite, and cannot be compared.")
    if similarity == "dot":
        return vectors
    lengths = np.linalg.norm(vectors, axis=1, keepdims=True)
    return vectors / np.maximum(lengths, 1e-12)


def _best(scores: np.ndarray, top_k: int) -> tuple[np.ndarray, np.ndarray]:
    """Return the highest scores of each row and their columns; of equal scores the lower column comes first.

    Example:
        >>> _best(np.array([[0.5, 1.0, 1.0, 1.0]]), top_k=2)[1].tolist()
        [[1, 2]]
    """
    rows, width = scores.shape
    top_k = min(top_k, width)
    if not top_k:
        return scores[:, :0], np.empty((rows, 0), np.int64)
    least = np.partition(scores, width - top_k, axis=1)[:, width - top_k, None]
    above, equal = scores > least, scores == least
    room = top_k - above.sum(axis=1, keepdims=True)
    kept = above | (equal & (equal.cumsum(axis=1) <= room))
    columns = np.nonzero(kept)[1].reshape(rows, top_k)
    values = np.take_along_axis(scores, columns, axis=1)
    order = np.argsort(-values, axis=1, kind="stable")
    return np.take_along_axis(values, order, axis=1), np.take_along_axis(columns, order, axis=1)
