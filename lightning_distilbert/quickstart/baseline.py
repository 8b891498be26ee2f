"""What a plain word search does on the same queries: BM25."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from lightning_distilbert.errors import DistillationError, require


def bm25_rankings(queries: Sequence[str], documents: Sequence[str], top_k: int = 100) -> Tensor:
    """Rank documents for each query by BM25 (Lucene's variant, k1 = 1.5, b = 0.75, English stop words left out).

    Args:
        queries: The queries.
        documents: The documents.
        top_k: How many documents to return for each query, at most.

    Returns:
        The documents' positions, the best first, of shape ``(queries, min(top_k, documents))``, for
        `lightning_distilbert.metrics.ranking_scores`; -1 where no further document has a word of the query.

    Raises:
        DistillationError: If either side is empty or ``top_k`` is below 1.
        MissingExtraError: If bm25s is not installed.

    Example:
        >>> bm25_rankings(["sort rows"], ["plot a line", "sort the rows of a table"], top_k=1).tolist()
        [[1]]
    """
    if not queries or not documents or top_k < 1:
        raise DistillationError(
            f"{len(queries)} queries, {len(documents)} documents and top_k={top_k}: BM25 needs at least one of each."
        )
    bm25s = require("bm25s", extra="quickstart")
    index = bm25s.BM25()
    index.index(bm25s.tokenize(list(documents), show_progress=False), show_progress=False)
    ranked, scores = index.retrieve(
        bm25s.tokenize(list(queries), show_progress=False), k=min(top_k, len(documents)), show_progress=False
    )
    # documents that share no word with the query fill the ranking up: they were not found
    return torch.as_tensor(ranked.astype("int64")).masked_fill(torch.as_tensor(scores) <= 0, -1)
