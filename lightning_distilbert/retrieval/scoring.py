"""Scores of pairs of texts by a cross-encoder, in a file that survives interruptions."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias

import numpy as np
import torch
from torch import nn
from tqdm.auto import tqdm

from lightning_distilbert.errors import DistillationError, check_choice
from lightning_distilbert.precision import auto_precision
from lightning_distilbert.retrieval.encode import PRECISIONS
from lightning_distilbert.retrieval.vector_file import VectorFile, hash_texts, hash_weights

if TYPE_CHECKING:
    from lightning_distilbert.module import DistillationModule

Pairs: TypeAlias = Sequence[tuple[str, str]]
Scorer: TypeAlias = Callable[[Pairs], Sequence[float]]
CHUNK = 1024  # pairs that are scored together, and lost at most where a run is interrupted


class PairScorer:
    """A function that scores pairs of a query and a document by a cross-encoder of the task `Reranking`.

    Args:
        source: A `DistillationModule`, or the folder of a saved one.
        batch_size: Pairs in a batch; pairs of similar length go together.
        max_length: Tokens kept of a pair at most; None is what tokenizer and model allow.
        precision: As in `encode_corpus`.
        device: Where to put what is loaded; None is the graphics processor if there is one.

    Raises:
        DistillationError: If it scores no pairs, cannot be loaded, or an option is bad.
    """

    def __init__(
        self,
        source: DistillationModule | str | Path,
        batch_size: int = 32,
        max_length: int | None = None,
        precision: str | None = "32-true",
        device: str | None = None,
    ) -> None:
        from lightning_distilbert.saved import load
        from lightning_distilbert.tasks.reranking import Reranking

        self.precision = precision or auto_precision()
        check_choice("PairScorer(precision=...)", self.precision, PRECISIONS)
        if batch_size < 1:
            raise DistillationError(f"batch_size={batch_size}: it must be at least 1.")
        if isinstance(source, nn.Module):
            self.module = source
        else:
            self.module = load(source, device or ("cuda" if torch.cuda.is_available() else "cpu"))
        if not isinstance(self.module.task, Reranking):
            raise DistillationError(
                f"A module of the task {type(self.module.task).__name__} scores no pairs of a query and a document. "
                "Give one of the task Reranking."
            )
        self.batch_size, self.max_length = batch_size, max_length

    def __call__(self, pairs: Pairs) -> list[float]:
        """Score pairs.

        Args:
            pairs: Tuples of a query and a document.

        Returns:
            One score for each, the higher the better.
        """
        mixed = self.precision == "bf16-mixed"
        with torch.autocast(self.module.device.type, torch.bfloat16, enabled=mixed):
            answers = self.module.predict(list(pairs), self.batch_size, self.max_length)
        return [answer["score"] for answer in answers]

    def identity(self) -> str:
        """Return a text that changes with whatever changes the scores."""
        return f"{hash_weights(self.module.student)} {self.max_length} {self.precision}"


def score_all(
    scorer: Scorer, queries: Sequence[str], documents: Sequence[str], pairs: np.ndarray, output: Path | None = None
) -> np.ndarray:
    """Score many pairs, chunk by chunk, with a progress bar.

    Args:
        scorer: What scores a list of pairs: a `PairScorer`, or a function.
        queries: The queries' texts.
        documents: The documents' texts.
        pairs: The places of query and document of each pair, of shape ``(P, 2)``.
        output: A ``.npy`` file in which the scores survive an interruption. It is not used for a function, of which
            nobody can tell whether it is still the same.

    Returns:
        The scores in float32, of shape ``(P,)``.

    Raises:
        DistillationError: If the scorer returns another number of scores, or something that is no finite number.

    Example:
        >>> score_all(lambda pairs: [len(q + d) for q, d in pairs], ["a"], ["b", "cc"], np.array([[0, 1], [0, 0]]))
        array([3., 2.], dtype=float32)
    """
    identity = scorer.identity() if isinstance(scorer, PairScorer) else None
    file = None if output is None or identity is None else VectorFile(output, overwrite=True)
    parts, done = [np.zeros(0, np.float32)], 0
    if file is not None:
        texts = (text for q, d in pairs.tolist() for text in (queries[q], documents[d]))
        made_of = {"pairs": hash_texts(texts), "scorer": identity}
        if file.finished(made_of):
            return np.array(file.vectors()[:, 0])
        done = file.resume(made_of, CHUNK)
    with tqdm(total=len(pairs), initial=done, desc="score pairs", unit=" pairs", delay=1, leave=False) as bar:
        for start in range(done, len(pairs), CHUNK):
            part = [(queries[q], documents[d]) for q, d in pairs[start : start + CHUNK].tolist()]
            scores = checked(scorer(part), part)
            if file is None:
                parts.append(scores)
            else:
                file.append(scores[:, None], len(pairs))
            bar.update(len(part))
    if file is None or not len(pairs):
        return np.concatenate(parts)
    file.finish()
    return np.array(file.vectors()[:, 0])


def checked(scores: Sequence[float], pairs: Pairs) -> np.ndarray:
    """Return what a scorer answered as an array, after checking it."""
    try:
        found = [float(score) for score in scores]
    except (TypeError, ValueError) as error:
        raise DistillationError(f"The scorer returned no list of numbers ({error}).") from error
    if len(found) != len(pairs):
        raise DistillationError(f"The scorer returned {len(found)} scores for {len(pairs)} pairs: one each is needed.")
    for score, pair in zip(found, pairs, strict=True):
        if not math.isfinite(score):
            raise DistillationError(f"The scorer gave {score} to the pair {tuple(text[:60] for text in pair)}.")
    return np.array(found, dtype=np.float32)
