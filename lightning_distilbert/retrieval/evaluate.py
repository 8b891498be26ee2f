"""How well a sentence encoder, or BM25, ranks a corpus: nDCG, MRR and recall as trec_eval computes them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from lightning_distilbert.data.beir import RetrievalSplit
from lightning_distilbert.data.writers import complete
from lightning_distilbert.errors import DistillationError, require
from lightning_distilbert.report.bootstrap import Interval, bootstrap_interval
from lightning_distilbert.retrieval.bm25 import BM25
from lightning_distilbert.retrieval.encode import Encoder, encode_corpus, open_encoder
from lightning_distilbert.retrieval.inputs import open_split
from lightning_distilbert.retrieval.search import check_similarity, search, similarity_of

Run = dict[str, dict[str, float]]


@dataclass(frozen=True)
class RetrievalResults:
    """The scores of one ranking of a corpus.

    Attributes:
        query_ids: The queries.
        per_query: The values of each query in their order, in float64, under ``"ndcg@10"``, ``"mrr@10"`` and
            ``"recall@100"`` or whatever the cut-offs are: for a bootstrap over them.
        run: For each query the documents that were found, and their scores.
    """

    query_ids: list[str]
    per_query: dict[str, Tensor]
    run: Run

    @property
    def scores(self) -> dict[str, float]:
        """The mean of each metric over the queries."""
        return {name: float(values.mean()) for name, values in self.per_query.items()}

    def intervals(self, confidence: float = 0.95, resamples: int = 1000, seed: int = 0) -> dict[str, Interval]:
        """Return the mean of each metric with its bootstrap interval over the queries; see `bootstrap_interval`."""
        return {
            name: bootstrap_interval(values, None, confidence, resamples, seed)
            for name, values in self.per_query.items()
        }

    def write_run(self, path: str | Path, tag: str = "lightning-distilbert") -> Path:
        """Write the ranking as trec_eval reads it: ``query Q0 document rank score tag`` on each line.

        A query that finds nothing has no line: ``trec_eval -c`` counts it as 0, and without ``-c`` it is left out.
        trec_eval's ``recip_rank`` has no cut-off unless ``-M 10`` gives it one.

        Args:
            path: The file, which appears when it is complete.
            tag: The name of the system.

        Returns:
            The path.

        Raises:
            DistillationError: If an id or the tag is empty or holds a blank, which the format cannot tell from the
                next field.
        """
        check_fields((tag, *self.run, *(document for found in self.run.values() for document in found)))
        path = Path(path).expanduser()
        with complete(path) as partial, partial.open("w", encoding="utf-8", newline="\n") as file:
            for query, found in self.run.items():
                for rank, document in enumerate(in_order(found), start=1):
                    # nine digits tell any two numbers in float32 apart
                    file.write(f"{query} Q0 {document} {rank} {found[document]:.9g} {tag}\n")
        return path


def evaluate_retrieval(
    source: RetrievalSplit | str | Path,
    ranker: Encoder | Literal["bm25"],
    split: str = "test",
    ndcg_at: int = 10,
    mrr_at: int = 10,
    recall_at: int = 100,
    similarity: str | None = None,
    max_length: int | None = None,
    precision: str | None = "32-true",
    vectors: str | Path | None = None,
    ignore_identical_ids: bool = False,
    device: str | None = None,
) -> RetrievalResults:
    """Search a corpus for each query of a split and score what was found.

    Args:
        source: A BEIR folder, a file or folder of pairs, or a `RetrievalSplit`; see `open_split`.
        ranker: A sentence encoder as in `encode_corpus`, or ``"bm25"``.
        split: Which split of a folder: ``train``, ``validation`` or ``test``.
        ndcg_at: The rank at which nDCG is cut.
        mrr_at: The rank at which MRR is cut.
        recall_at: The rank at which recall is cut.
        similarity: ``"cosine"`` or ``"dot"``, for an encoder; None is that of its task.
        max_length: Tokens kept of a text at most, for an encoder.
        precision: As in `encode_corpus`.
        vectors: A file for the corpus' vectors, as the ``output`` of `encode_corpus`; a finished one is used again.
        ignore_identical_ids: Whether a document with the id of the query is passed over, as BEIR's own code does: where
            queries are documents themselves (ArguAna, Quora), each would find itself.
        device: Where an encoder from a folder runs; None is the graphics processor if there is one.

    Returns:
        The scores, in total and of each query, and the ranking.

    Raises:
        DistillationError: If the folder, the encoder or an option is bad.
        MissingExtraError: If pytrec-eval-terrier or, for BM25, bm25s is not installed.

    Example:
        >>> split = RetrievalSplit(["sort rows"], ["rows sort rows", "sort the rows of a table"], [{1: 1.0}])
        >>> evaluate_retrieval(split, "bm25").scores["mrr@10"]
        0.5
    """
    data = open_split(source, split)
    depth = max(ndcg_at, mrr_at, recall_at)
    if min(ndcg_at, mrr_at, recall_at) < 1:
        raise DistillationError(f"ndcg_at={ndcg_at}, mrr_at={mrr_at}, recall_at={recall_at}: each must be at least 1.")
    # before hours of encoding, and not after them
    require("pytrec_eval", extra="retrieval")
    judgements(data)
    if similarity is not None:
        check_similarity(similarity)
    encoder = None if ranker == "bm25" else open_encoder(ranker, device)
    if encoder is None:
        scores, positions = BM25(data.documents).search(data.queries, depth + ignore_identical_ids)
    else:
        options: dict[str, Any] = {"max_length": max_length, "precision": precision}
        documents = encode_corpus(encoder, data.documents, output=vectors, **options)
        queries = encode_corpus(encoder, data.queries, name="queries", **options)
        by = similarity or similarity_of(encoder)
        scores, positions = search(queries, documents, depth + ignore_identical_ids, by, device=encoder.device)
    run = run_of(data, scores, positions, depth, ignore_identical_ids)
    return RetrievalResults(data.query_ids, score_run(data, run, ndcg_at, mrr_at, recall_at), run)


def run_of(
    data: RetrievalSplit, scores: Tensor, positions: Tensor, top_k: int, ignore_identical_ids: bool = False
) -> Run:
    """Name what a search found.

    Args:
        data: What was searched.
        scores: Shape ``(Q, K)``.
        positions: Places in ``data.documents``, of the same shape, the best first; -1 where there is none.
        top_k: How many documents to keep of each query.
        ignore_identical_ids: Whether a document with the id of the query is passed over.

    Returns:
        For each query the documents and their scores.
    """
    run: Run = {}
    for query, places, values in zip(data.query_ids, positions.tolist(), scores.tolist(), strict=True):
        named = ((data.document_ids[place], value) for place, value in zip(places, values, strict=True) if place >= 0)
        kept = [(document, value) for document, value in named if not (ignore_identical_ids and document == query)]
        run[query] = dict(kept[:top_k])
    return run


def score_run(
    data: RetrievalSplit,
    run: Mapping[str, Mapping[str, float]],
    ndcg_at: int = 10,
    mrr_at: int = 10,
    recall_at: int = 100,
) -> dict[str, Tensor]:
    """Score a ranking with trec_eval's code, by pytrec_eval.

    Of documents with equal scores, trec_eval takes the one first whose id is last in alphabetical order.

    Args:
        data: The judgements.
        run: For each query the documents found, and their scores.
        ndcg_at: The rank at which nDCG is cut.
        mrr_at: The rank at which MRR is cut.
        recall_at: The rank at which recall is cut.

    Returns:
        The values of each query of ``data`` in order, in float64; 0 for a query for which nothing was found.

    Raises:
        DistillationError: If two queries have the same id, or two documents, or a grade is no whole number.
        MissingExtraError: If pytrec-eval-terrier is not installed.
    """
    pytrec_eval = require("pytrec_eval", extra="retrieval")
    judged = judgements(data)
    found = {query: dict(run.get(query, {})) for query in judged}
    measures = {f"ndcg_cut.{ndcg_at}", f"recall.{recall_at}"}
    values = pytrec_eval.RelevanceEvaluator(judged, measures).evaluate(found)
    # trec_eval's reciprocal rank has no cut-off
    tops = {query: {name: row[name] for name in in_order(row)[:mrr_at]} for query, row in found.items()}
    ranks = pytrec_eval.RelevanceEvaluator(judged, {"recip_rank"}).evaluate(tops)
    columns = {
        f"ndcg@{ndcg_at}": [values[query][f"ndcg_cut_{ndcg_at}"] for query in judged],
        f"mrr@{mrr_at}": [ranks[query]["recip_rank"] for query in judged],
        f"recall@{recall_at}": [values[query][f"recall_{recall_at}"] for query in judged],
    }
    return {name: torch.tensor(column, dtype=torch.double) for name, column in columns.items()}


def judgements(data: RetrievalSplit) -> dict[str, dict[str, int]]:
    """Return the grades of each query's documents by their ids.

    Args:
        data: The judgements.

    Raises:
        DistillationError: If two queries have the same id, or two documents, a grade is no whole number, or a query has
            none: trec_eval would leave it out.
    """
    if bare := [query for query, grades in zip(data.query_ids, data.relevant, strict=True) if not grades]:
        raise DistillationError(
            f"{len(bare)} of {len(data.queries)} queries have no relevant document, the first is {bare[0]!r}: nothing "
            "can be said of how well they are answered. Leave them out."
        )
    for name, ids in (("query", data.query_ids), ("document", data.document_ids)):
        if len(set(ids)) < len(ids):
            raise DistillationError(f"{len(ids) - len(set(ids))} of {len(ids)} {name} ids come more than once.")
    return {
        query: {data.document_ids[place]: whole(grade, query) for place, grade in grades.items()}
        for query, grades in zip(data.query_ids, data.relevant, strict=True)
    }


def check_fields(values: Iterable[str]) -> None:
    """Refuse ids that cannot stand in a TREC run.

    Args:
        values: The ids, and the tag of the system.

    Raises:
        DistillationError: If one is empty or holds a blank.
    """
    for value in values:
        if len(value.split()) != 1 or value != value.strip():
            raise DistillationError(f"{value!r} cannot stand in a TREC run: its fields hold no blanks.")


def whole(grade: float, query: str) -> int:
    """Return a grade as trec_eval takes it, or say that it is no whole number."""
    if grade != int(grade):
        raise DistillationError(f"The query {query!r} has a grade {grade}: trec_eval takes whole numbers.")
    return int(grade)


def in_order(found: Mapping[str, float]) -> list[str]:
    """Return documents in trec_eval's order: by score in float32, of equal ones the last id first.

    Example:
        >>> in_order({"a": 1.0, "c": 1.0, "b": 2.0})
        ['b', 'c', 'a']
    """
    return sorted(found, key=lambda document: (np.float32(found[document]), document), reverse=True)
