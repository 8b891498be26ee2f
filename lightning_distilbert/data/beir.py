"""Retrieval data: queries, documents and which answer which; the BEIR folder layout."""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from lightning_utilities.core.rank_zero import rank_zero_warn

from lightning_distilbert.data.readers import open_text, read_json_lines, read_rows
from lightning_distilbert.data.sources import SPLIT_NAMES
from lightning_distilbert.errors import DistillationError


@dataclass(frozen=True)
class RetrievalSplit:
    """Queries, documents, and which documents answer which query.

    Attributes:
        queries: The queries' texts.
        documents: The documents' texts, each once.
        relevant: For each query, the grades (above 0) of the documents that answer it, by their place in `documents`.
        query_ids: What the queries are called in files of results; ``q0``, ``q1`` and so on where nothing is given.
        document_ids: What the documents are called there; ``d0``, ``d1`` and so on where nothing is given.

    Raises:
        DistillationError: If there are fewer or more ids than texts, or a document in `relevant` is not there or has
            no grade above 0.
    """

    queries: list[str]
    documents: list[str]
    relevant: list[dict[int, float]]
    query_ids: list[str] = field(default_factory=list)
    document_ids: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        """Number the queries and documents that have no ids."""
        for name, texts in (("query_ids", self.queries), ("document_ids", self.documents)):
            ids = getattr(self, name) or [f"{name[0]}{place}" for place in range(len(texts))]
            if len(ids) != len(texts):
                raise DistillationError(f"{len(ids)} {name} are given for {len(texts)} texts: give one for each.")
            object.__setattr__(self, name, ids)
        if len(self.relevant) != len(self.queries):
            raise DistillationError(f"relevant has {len(self.relevant)} entries for {len(self.queries)} queries.")
        for query, grades in zip(self.query_ids, self.relevant, strict=True):
            for place, grade in grades.items():
                if not (0 <= place < len(self.documents) and grade > 0):
                    raise DistillationError(
                        f"The query {query!r} has the grade {grade} for document {place} of {len(self.documents)}: "
                        "name the documents that answer it, counted from 0, each with a grade above 0, and no others."
                    )

    @classmethod
    def from_pairs(cls, pairs: Sequence[Any], where: str = "The pairs") -> RetrievalSplit:
        """Make a split of pairs: the corpus is their documents, and equal texts are one query or one document.

        Args:
            pairs: ``(query, document)`` each, or dicts with these keys.
            where: What to call them in an error.

        Returns:
            The split.

        Raises:
            DistillationError: If a pair is not two strings.

        Example:
            >>> split = RetrievalSplit.from_pairs([("a", "x"), ("a", "y"), ("b", "x")])
            >>> split.queries, split.documents, split.relevant
            (['a', 'b'], ['x', 'y'], [{0: 1.0, 1: 1.0}, {0: 1.0}])
        """
        queries: dict[str, int] = {}
        documents: dict[str, int] = {}
        relevant: list[dict[int, float]] = []
        for number, pair in enumerate(pairs, start=1):
            parts: Any = (pair.get("query"), pair.get("document")) if isinstance(pair, Mapping) else pair
            if isinstance(parts, str) or len(parts) != 2 or not all(isinstance(part, str) for part in parts):
                raise DistillationError(f"{where}, row {number}: {pair!r} is not a query and a document, two strings.")
            query, document = parts
            place = queries.setdefault(query, len(queries))
            if place == len(relevant):
                relevant.append({})
            relevant[place][documents.setdefault(document, len(documents))] = 1.0
        if not relevant:
            raise DistillationError(f"{where}: there is not one pair. Give at least one, or leave the split out.")
        return cls(list(queries), list(documents), relevant)

    def pairs(self) -> list[tuple[int, int]]:
        """Return the places of each query and each document that answers it."""
        return [(query, document) for query, grades in enumerate(self.relevant) for document in grades]


class BeirFolder:
    """A folder with ``corpus.jsonl``, ``queries.jsonl`` and ``qrels/*.tsv``, plain or gzipped.

    A document's text is its title, if it has one, and its text. Documents of equal text become one, which has the id
    of the first, since a search cannot tell them apart.

    Args:
        folder: The folder.

    Raises:
        DistillationError: If a part of it is missing.
    """

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder).expanduser()
        self.corpus_file = self._file("corpus.jsonl")
        self.queries_file = self._file("queries.jsonl")
        self.qrels: dict[str, Path] = {}
        for split, names in {**SPLIT_NAMES, "all": ("all",)}.items():
            files = [self.folder / "qrels" / f"{name}.tsv{end}" for name in names for end in ("", ".gz")]
            if found := [file for file in files if file.is_file()]:
                self.qrels[split] = found[0]
        if whole := self.qrels.pop("all", None):
            self.qrels.setdefault("test", whole)
        if not self.qrels:
            raise DistillationError(f"{self.folder} has no qrels/train.tsv, dev.tsv, test.tsv or all.tsv.")

    @classmethod
    def is_one(cls, folder: str | Path) -> bool:
        """Tell whether a folder has a corpus file."""
        return any((Path(folder).expanduser() / f"corpus.jsonl{end}").is_file() for end in ("", ".gz"))

    def _file(self, name: str) -> Path:
        for path in (self.folder / name, self.folder / f"{name}.gz"):
            if path.is_file():
                return path
        raise DistillationError(f"{self.folder} has no {name} (nor {name}.gz), as BEIR's layout has.")

    @functools.cached_property
    def queries(self) -> dict[str, str]:
        """The queries' texts by id."""
        return _read_texts(self.queries_file)

    @functools.cached_property
    def corpus(self) -> tuple[list[str], dict[str, int]]:
        """The documents' texts, each once, and the place of each id among them."""
        places: dict[str, int] = {}
        by_id = _read_texts(self.corpus_file)
        rows = {key: places.setdefault(text, len(places)) for key, text in by_id.items()}
        if len(places) < len(by_id):
            rank_zero_warn(
                f"{self.corpus_file}: {len(by_id) - len(places)} of {len(by_id)} documents have the text of another "
                "and are one with it."
            )
        return list(places), rows

    def split(self, name: str) -> RetrievalSplit:
        """Read one split.

        Args:
            name: ``train``, ``validation`` or ``test``.

        Returns:
            Its queries (those with a relevant document) and the whole corpus.

        Raises:
            DistillationError: If the split is missing, or names a query or document that does not exist.
        """
        if name not in self.qrels:
            raise DistillationError(f"{self.folder} has no qrels for {name!r}, only for {list(self.qrels)}.")
        path = self.qrels[name]
        documents, places = self.corpus
        document_ids: dict[int, str] = {}
        for document, place in places.items():
            document_ids.setdefault(place, document)
        judged: dict[str, dict[int, float]] = {}
        unknown: dict[str, list[str]] = {"query": [], "document": []}
        columns, header = ["query-id", "corpus-id", "score"], _has_header(path)
        for number, row in enumerate(read_rows(path, columns, header), start=1 + header):
            query, document = row["query-id"], row["corpus-id"]
            if query not in self.queries:
                unknown["query"].append(f"{query!r} (line {number})")
            elif document not in places:
                unknown["document"].append(f"{document!r} (line {number})")
            else:
                grades = judged.setdefault(query, {})
                grade = _grade(row["score"], path, number)
                if grade > 0:
                    grades[places[document]] = max(grade, grades.get(places[document], 0.0))
        for kind, ids in unknown.items():
            if ids:
                file = self.queries_file if kind == "query" else self.corpus_file
                raise DistillationError(
                    f"{path}: {len(ids)} lines name a {kind} that is not in {file.name}, the first {ids[0]}. "
                    "Take qrels and texts from the same version of the data set."
                )
        answered = {query: grades for query, grades in judged.items() if grades}
        if not answered:
            raise DistillationError(f"{path}: no query has a relevant document (a score above 0).")
        if len(answered) < len(judged):
            rank_zero_warn(
                f"{path}: {len(judged) - len(answered)} of {len(judged)} queries have no relevant document and are "
                "left out."
            )
        queries = [self.queries[query] for query in answered]
        return RetrievalSplit(queries, documents, list(answered.values()), list(answered), list(document_ids.values()))


def read_beir(folder: str | Path, split: str = "test") -> RetrievalSplit:
    """Read one split of a BEIR folder; see `BeirFolder`."""
    return BeirFolder(folder).split(split)


def _has_header(path: Path) -> bool:
    """Tell whether the first line of a file of judgements is none itself: some files lack the header."""
    with open_text(path) as file:
        last = file.readline().rpartition("\t")[2].strip()
    return not any(map(str.isdigit, last))  # a bad score is no header either, and is refused as what it is


def _grade(value: str, path: Path, number: int) -> float:
    try:
        return float(int(value))
    except ValueError as error:
        raise DistillationError(f"{path}, line {number}: the score {value!r} is not a whole number.") from error


def _read_texts(path: Path) -> dict[str, str]:
    found: dict[str, str] = {}
    empty = 0
    for number, row in enumerate(read_json_lines(path), start=1):
        if "_id" not in row or "text" not in row:
            raise DistillationError(f"{path}, row {number}: it needs '_id' and 'text', and has {list(row)}.")
        title, text = row.get("title") or "", row["text"]
        if not isinstance(text, str) or not isinstance(title, str):
            raise DistillationError(f"{path}, row {number}: title {title!r} or text {text!r} is not a string.")
        key = str(row["_id"])
        if key in found:
            raise DistillationError(f"{path}, row {number}: the _id {key!r} comes twice.")
        found[key] = f"{title.strip()} {text.strip()}".strip()
        empty += not found[key]
    if not found:
        raise DistillationError(f"{path} holds no rows.")
    if empty:
        rank_zero_warn(f"{path}: {empty} of {len(found)} texts are empty; they are kept.")
    return found
