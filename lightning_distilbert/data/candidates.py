"""Queries with the documents that answer them and hard negatives that do not, from rows of text."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from lightning_utilities.core.rank_zero import rank_zero_warn

from lightning_distilbert.data.beir import BeirFolder, RetrievalSplit
from lightning_distilbert.data.labels import is_missing
from lightning_distilbert.data.readers import Row, column, texts
from lightning_distilbert.errors import DistillationError

NOBODY = -1  # in the place of a query or a document that is not there


@dataclass
class CandidateSplit:
    """Rows of a query, a document and hard negatives, as places in lists of texts that hold each text once.

    Attributes:
        queries: The queries' texts.
        documents: The documents' texts.
        pairs: The places of query and document of each row, of shape ``(rows, 2)``; -1 where there is none.
        negatives: The places of each row's hard negatives, the hardest first.
        scores: A teacher's scores of each row: of its document, then of its negatives; NaN where there is none.
        relevant: For each query, the grades of its documents: above 0 of those that answer it, NaN where nobody knows.
    """

    queries: list[str]
    documents: list[str]
    pairs: np.ndarray
    negatives: list[np.ndarray]
    scores: list[np.ndarray] = field(default_factory=list)
    relevant: list[dict[int, float]] = field(default_factory=list)

    @classmethod
    def of(cls, split: RetrievalSplit) -> CandidateSplit:
        """Take a split of queries and documents that answer them, without negatives.

        Example:
            >>> CandidateSplit.of(RetrievalSplit(["a"], ["x", "y"], [{1: 1.0}])).pairs.tolist()
            [[0, 1]]
        """
        pairs = np.array(split.pairs(), dtype=np.int64).reshape(-1, 2)
        relevant = [dict(grades) for grades in split.relevant]
        return cls(split.queries, split.documents, pairs, [np.zeros(0, np.int64)] * len(pairs), [], relevant)

    @classmethod
    def from_rows(
        cls, rows: Sequence[Row], query: str = "query", document: str = "document", where: str = "The rows"
    ) -> CandidateSplit:
        """Read rows of a query, a document that answers it, and maybe ``negatives`` and ``scores``.

        A negative that answers its query after all, as another row says, is left out, with its score.

        Args:
            rows: The rows.
            query: The column of the query.
            document: The column of the document.
            where: What to call the rows in an error.

        Raises:
            DistillationError: If a column is missing, or something in a row is of another kind or number.

        Example:
            >>> rows = [{"query": "a", "document": "x", "negatives": ["y", "z"], "scores": [9, 2, 0.5]}]
            >>> split = CandidateSplit.from_rows(rows)
            >>> split.documents, split.negatives[0].tolist(), split.scores[0].tolist()
            (['x', 'y', 'z'], [1, 2], [9.0, 2.0, 0.5])
        """
        asked, answers = texts(rows, query, where), texts(rows, document, where)
        _warn_of_empty(asked, answers, where)
        queries, documents = _places(asked), _places(answers)
        pairs = np.array([[queries[q], documents[d]] for q, d in zip(asked, answers, strict=True)], dtype=np.int64)
        relevant: list[dict[int, float]] = [{} for _ in queries]
        for place, found in pairs:
            relevant[place][int(found)] = 1.0
        negatives, scores, wrong = [], [], 0
        for number, (row, (place, _)) in enumerate(zip(rows, pairs, strict=True), start=1):
            names = _strings(row.get("negatives"), f"{where}, row {number}")
            values = _scores(row.get("scores"), len(names), f"{where}, row {number}")
            kept: dict[int, float] = {}
            for name, score in zip(names, values[1:], strict=True):
                if (found := documents.setdefault(name, len(documents))) in relevant[place]:
                    wrong += 1
                else:
                    kept.setdefault(found, score)
            negatives.append(np.fromiter(kept, dtype=np.int64, count=len(kept)))
            scores.append(np.array([values[0], *kept.values()], dtype=np.float32))
        if wrong:
            rank_zero_warn(f"{where}: {wrong} negatives answer their query, as some row says, and are left out.")
        split = cls(list(queries), list(documents), pairs, negatives, scores, relevant)
        split._settle_scores(where)
        return split

    @classmethod
    def from_labels(
        cls, rows: Sequence[Row], query: str, document: str, label: str, where: str = "The rows"
    ) -> CandidateSplit:
        """Read rows of a query, a document and a label: above 0 if it answers the query, 0 if not, None if not known.

        Each document that answers a query, or of which nobody knows, becomes a row with the query's other documents as
        negatives; a query without one becomes a row without a document.

        Args:
            rows: The rows.
            query: The column of the query.
            document: The column of the document.
            label: The column of the label.
            where: What to call the rows in an error.

        Raises:
            DistillationError: If a column is missing, or a label is no number of at least 0.

        Example:
            >>> rows = [{"q": "a", "d": "x", "label": 1}, {"q": "a", "d": "y", "label": 0}]
            >>> split = CandidateSplit.from_labels(rows, "q", "d", "label")
            >>> split.pairs.tolist(), split.negatives[0].tolist()
            ([[0, 0]], [1])
        """
        asked, answers = texts(rows, query, where), texts(rows, document, where)
        labels = column(rows, label, where) or []
        _warn_of_empty(asked, answers, where)
        queries, documents = _places(asked), _places(answers)
        judged: list[dict[int, float]] = [{} for _ in queries]
        for number, (q, d, value) in enumerate(zip(asked, answers, labels, strict=True), start=1):
            grade = _grade(value, f"{where}, row {number}")
            before = judged[queries[q]].get(documents[d], math.nan)
            judged[queries[q]][documents[d]] = max(before, grade) if not math.isnan(before) else grade
        pairs, negatives = [], []
        for place, grades in enumerate(judged):
            others = np.array([found for found, grade in grades.items() if grade == 0], dtype=np.int64)
            for found in [found for found, grade in grades.items() if grade != 0] or [NOBODY]:
                pairs.append((place, found))
                negatives.append(others)
        return cls(list(queries), list(documents), np.array(pairs, dtype=np.int64), negatives, [], judged)

    @property
    def most(self) -> int:
        """The most negatives that a row has."""
        return max(map(len, self.negatives), default=0)

    def with_pairs(self, queries: Sequence[str], documents: Sequence[str]) -> CandidateSplit:
        """Return these rows and below them others, of which nobody knows whether they belong together.

        Args:
            queries: The query of each further row; an empty list for documents without a query.
            documents: Its document.
        """
        # a BEIR folder may have one text under several ids: all keep their places, and the first stands for the text
        all_queries, all_documents = list(self.queries), list(self.documents)
        asked, found = (
            {text: place for place, text in reversed(list(enumerate(own)))} for own in (all_queries, all_documents)
        )
        relevant = list(self.relevant)
        more = []
        for number, text in enumerate(documents):
            place = _place(queries[number], asked, all_queries) if queries else NOBODY
            more.append((place, _place(text, found, all_documents)))
            if place == len(relevant):
                relevant.append({})
            if place != NOBODY:
                relevant[place].setdefault(more[-1][1], math.nan)
        pairs = np.concatenate([self.pairs, np.array(more, dtype=np.int64).reshape(-1, 2)])
        negatives = self.negatives + [np.zeros(0, dtype=np.int64)] * len(more)
        scores = self.scores + [np.full(1, np.nan, dtype=np.float32)] * (len(more) if self.scores else 0)
        return CandidateSplit(all_queries, all_documents, pairs, negatives, scores, relevant)

    def used(self) -> CandidateSplit:
        """Return the same rows without the documents that occur in none, which need no tokens."""
        places = np.concatenate([self.pairs[:, 1], *self.negatives])
        used = np.unique(places[places != NOBODY])
        new = np.full(len(self.documents) + 1, NOBODY, dtype=np.int64)  # the last stands for the place -1
        new[used] = np.arange(len(used))
        pairs = self.pairs.copy()
        pairs[:, 1] = new[pairs[:, 1]]
        # a document that answers a query and is in no row cannot be in a batch
        relevant = [{int(new[place]): g for place, g in grades.items() if new[place] >= 0} for grades in self.relevant]
        documents = [self.documents[place] for place in used]
        return CandidateSplit(self.queries, documents, pairs, [new[n] for n in self.negatives], self.scores, relevant)

    def _settle_scores(self, where: str) -> None:
        """Drop scores that are none, and say how many rows have none among others that do."""
        without = sum(bool(np.isnan(values).all()) for values in self.scores)
        if without == len(self.scores):
            self.scores = []
        elif without:
            rank_zero_warn(f"{where}: {without} of {len(self.scores)} rows have no scores; they count in no ranking.")


def with_texts(rows: Sequence[Row], folder: BeirFolder | None, query: str, document: str, where: str) -> list[Row]:
    """Put texts in the place of ids: ``query_id``, ``document_id`` and ``negative_ids`` of a BEIR folder.

    Args:
        rows: The rows; a text that is there already stays.
        folder: The folder, or None.
        query: The column of the query's text.
        document: The column of the document's text.
        where: What to call the rows in an error.

    Returns:
        Rows with texts.

    Raises:
        DistillationError: If an id is not in the folder, or there are ids and no folder.
    """
    names = {query: "query_id", document: "document_id", "negatives": "negative_ids"}
    lacking = [
        (row, {name: key for name, key in names.items() if row.get(name) is None and row.get(key) is not None})
        for row in rows
    ]
    if not any(keys for _, keys in lacking):
        return list(rows)
    if folder is None:
        raise DistillationError(
            f"{where}: rows have no {_lacking(lacking)} but only ids (columns {list(rows[0])}), and there is no BEIR "
            "folder among the splits to look them up in. Name the column, or the folder, as in "
            "{'train': 'mined.jsonl', 'test': 'a BEIR folder'}."
        )
    documents, places = folder.corpus
    found = []
    for number, (row, keys) in enumerate(lacking, start=1):
        new = dict(row)
        for name, key in keys.items():
            ids = _id_list(row[key], f"{where}, row {number}", key) if name == "negatives" else [str(row[key])]
            known: Mapping[str, Any] = folder.queries if name == query else places
            if missing := [value for value in ids if value not in known]:
                file = folder.queries_file if name == query else folder.corpus_file
                raise DistillationError(f"{where}, row {number}: {key} names {missing[0]!r}, which is not in {file}.")
            text = [folder.queries[value] if name == query else documents[places[value]] for value in ids]
            new[name] = text if name == "negatives" else text[0]
        found.append(new)
    return found


def _lacking(rows: Sequence[tuple[Row, Mapping[str, str]]]) -> str:
    return " and ".join(repr(name) for name in next(keys for _, keys in rows if keys))


def _place(text: str, places: dict[str, int], texts: list[str]) -> int:
    """Return the place of a text, which becomes the last one if it has none."""
    if text not in places:
        places[text] = len(texts)
        texts.append(text)
    return places[text]


def _places(values: Sequence[str]) -> dict[str, int]:
    found: dict[str, int] = {}
    for value in values:
        found.setdefault(value, len(found))
    return found


def _warn_of_empty(queries: Sequence[str], documents: Sequence[str], where: str) -> None:
    for name, values in (("queries", queries), ("documents", documents)):
        if empty := sum(not value.strip() for value in values):
            rank_zero_warn(f"{where}: {empty} of {len(values)} {name} are empty; they are kept, as texts like others.")


def _id_list(value: Any, where: str, name: str) -> list[str]:
    if isinstance(value, (str, Mapping)) or not hasattr(value, "__iter__"):
        raise DistillationError(f"{where}: {name!r} is {value!r}, and has to be a list.")
    return [str(item) for item in value]


def _strings(value: Any, where: str) -> list[str]:
    if value is None:
        return []
    names: list[Any] = list(value) if isinstance(value, (list, tuple, np.ndarray)) else [None]
    if wrong := [item for item in names if not isinstance(item, str)]:
        shown = repr(value if wrong[0] is None and len(names) == 1 else wrong[0])[:60]
        raise DistillationError(f"{where}: 'negatives' holds {shown}, and has to be a list of strings.")
    return names


def _scores(value: Any, negatives: int, where: str) -> list[float]:
    if value is None:
        return [math.nan] * (1 + negatives)
    values = list(value) if isinstance(value, (list, tuple, np.ndarray)) else []
    if len(values) != 1 + negatives:
        raise DistillationError(
            f"{where}: there are {len(values)} 'scores' for the document and {negatives} negatives: one is needed for "
            "each, first of the document."
        )
    try:
        numbers = [math.nan if item is None else float(item) for item in values]
    except (TypeError, ValueError) as error:
        raise DistillationError(f"{where}: 'scores' are not numbers: {values!r}.") from error
    if any(math.isinf(number) for number in numbers):
        raise DistillationError(f"{where}: a score is infinite: {values!r}.")
    return numbers


def _grade(value: Any, where: str) -> float:
    if is_missing(value):
        return math.nan
    try:
        grade = float(value)
    except (TypeError, ValueError):
        grade = math.nan
    if not (math.isfinite(grade) and grade >= 0):
        raise DistillationError(
            f"{where}: the label {value!r} is no number of at least 0. It is above 0 where the document answers the "
            "query, 0 where it does not, and empty where nobody knows."
        )
    return grade
