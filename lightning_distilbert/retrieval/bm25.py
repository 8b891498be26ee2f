"""Search by words: BM25, the baseline that needs no model."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from tqdm.auto import tqdm

from lightning_distilbert.errors import DistillationError, require


class BM25:
    """An index of documents by their words (Lucene's variant of BM25; words in lower case and not stemmed).

    Args:
        documents: The documents.
        k1: How soon further occurrences of a word count no more.
        b: How much long documents are held back, from 0 to 1.
        stop_words: Words that do not count: ``"english"`` or another list that bm25s has, or words; empty for none.

    Raises:
        DistillationError: If there is no document, or no word in any, or an option is out of range.
        MissingExtraError: If bm25s is not installed.

    Example:
        >>> index = BM25(["plot a line", "sort the rows of a table"])
        >>> scores, positions = index.search(["sort rows"], top_k=2)
        >>> positions.tolist()
        [[1, -1]]
    """

    def __init__(
        self, documents: Sequence[str], k1: float = 1.5, b: float = 0.75, stop_words: str | Sequence[str] = "english"
    ) -> None:
        if k1 < 0 or not 0 <= b <= 1:
            raise DistillationError(f"k1={k1} must be at least 0, and b={b} lie between 0 and 1.")
        self._bm25s: Any = require("bm25s", extra="retrieval")
        self._stop_words = stop_words if isinstance(stop_words, str) else list(stop_words)
        self._documents = len(documents)
        tokens = self._bm25s.tokenize(list(documents), stopwords=self._stop_words, show_progress=False)
        if not any(tokens.ids):
            raise DistillationError(
                f"None of the {len(documents)} documents has a word of two letters or more that is no stop word, so "
                "there is nothing to search."
            )
        self._index = self._bm25s.BM25(k1=k1, b=b)
        self._index.index(tokens, show_progress=False)

    def search(self, queries: Sequence[str], top_k: int) -> tuple[Tensor, Tensor]:
        """Find the documents with the highest scores.

        Args:
            queries: The queries.
            top_k: How many documents to return for each query, at most.

        Returns:
            The scores in float32 and the documents' positions, both of shape ``(Q, min(top_k, D))``, the best first; of
            equal scores the lower position comes first. Where no further document has a word of the query, the
            position is -1 and the score 0.

        Raises:
            DistillationError: If ``top_k`` is below 1.
        """
        if top_k < 1:
            raise DistillationError(f"top_k={top_k}: it must be at least 1.")
        shape = (len(queries), min(top_k, self._documents))
        scores, positions = np.zeros(shape, np.float32), np.full(shape, -1, np.int64)
        for row, found in enumerate(self._scores(queries)):
            best = best_of(found, top_k)
            scores[row, : len(best)], positions[row, : len(best)] = found[best], best
        return torch.from_numpy(scores), torch.from_numpy(positions)

    def score(self, queries: Sequence[str], positions: Sequence[np.ndarray]) -> list[np.ndarray]:
        """Score some documents of each query.

        Args:
            queries: The queries.
            positions: For each query the documents' positions.

        Returns:
            For each query the scores of these documents, in float32.
        """
        return [found[places] for found, places in zip(self._scores(queries), positions, strict=True)]

    def _scores(self, queries: Sequence[str]) -> Iterator[np.ndarray]:
        """Yield the scores of all documents, query by query."""
        tokens = self._bm25s.tokenize(list(queries), stopwords=self._stop_words, return_ids=False, show_progress=False)
        for words in tqdm(tokens, desc="BM25", unit=" queries", delay=1, leave=False):
            yield self._index.get_scores_from_ids(self._index.get_tokens_ids(words))


def best_of(scores: np.ndarray, top_k: int) -> np.ndarray:
    """Return the positions of the highest scores above 0, the best first; of equal scores the lower position first.

    Example:
        >>> best_of(np.array([0.0, 2.0, 3.0, 2.0]), top_k=2).tolist()
        [2, 1]
    """
    places = np.flatnonzero(scores > 0)
    values = scores[places]
    if len(values) > top_k:
        enough = values >= np.partition(values, -top_k)[-top_k]
        places, values = places[enough], values[enough]
    return places[np.argsort(-values, kind="stable")][:top_k]
