"""Hard negatives: documents that a teacher, or BM25, ranks high for a query and that do not answer it."""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
from lightning_utilities.core.rank_zero import rank_zero_warn
from tqdm.auto import tqdm

from lightning_distilbert.data.beir import RetrievalSplit
from lightning_distilbert.data.writers import check_output, write_rows
from lightning_distilbert.errors import DistillationError, check_choice
from lightning_distilbert.retrieval.bm25 import BM25
from lightning_distilbert.retrieval.encode import Encoder, encode_corpus, open_encoder
from lightning_distilbert.retrieval.inputs import open_split
from lightning_distilbert.retrieval.scoring import Scorer, score_all
from lightning_distilbert.retrieval.search import check_similarity, pair_scores, search, similarity_of

# what the scores are called in a mined file; what only ranked the documents must not pass for a teacher's
SCORES, BM25_SCORES = "scores", "bm25_scores"
SEARCH_SCORES = {"cosine": "cosines", "dot": "dot_products"}


@dataclass(frozen=True)
class Selection:
    """Which of the documents that were found become negatives.

    Attributes:
        num_negatives: How many of each row, at most.
        depth: How many of the best documents that do not answer the query are looked at.
        skip: How many of the best of these are passed over: among the very first are answers that nobody has judged.
        margin: A negative scores at least so much less than the row's own document; None is no limit.
        relative_margin: As `margin`, in shares of that document's score (its absolute value): 0.05 keeps what scores at
            most 95 % of it.
        pick: ``"top"`` takes the highest ranked of what is left, ``"random"`` draws among it.
        seed: Of the draws.

    Raises:
        DistillationError: If an option is out of range.
    """

    num_negatives: int = 5
    depth: int = 100
    skip: int = 0
    margin: float | None = None
    relative_margin: float | None = None
    pick: str = "top"
    seed: int = 0

    def __post_init__(self) -> None:
        """Check the options."""
        if not 1 <= self.num_negatives <= self.depth or self.skip < 0:
            raise DistillationError(
                f"num_negatives={self.num_negatives}, depth={self.depth}, skip={self.skip}: depth must be at least "
                "num_negatives, that at least 1, and skip at least 0."
            )
        for name in ("margin", "relative_margin"):
            value = getattr(self, name)
            if value is not None and not value >= 0:
                raise DistillationError(f"{name}={value}: it must be at least 0, or None.")
        check_choice("pick=...", self.pick, ("top", "random"))

    @property
    def limited(self) -> bool:
        """Whether the own document's score limits that of a negative."""
        return self.margin is not None or self.relative_margin is not None

    def of(self, positive: float, candidates: np.ndarray, row: int) -> np.ndarray:
        """Choose for one row.

        Args:
            positive: The score of the row's own document.
            candidates: The scores of the candidates, in the order in which they were found.
            row: The number of the row, for the draws.

        Returns:
            The places of the chosen among the candidates, in their order.

        Example:
            >>> Selection(num_negatives=2, margin=0.1).of(0.8, np.array([0.9, 0.75, 0.6, 0.5]), row=0).tolist()
            [2, 3]
        """
        limits = [positive - self.margin] if self.margin is not None else []
        if self.relative_margin is not None:
            limits.append(positive - abs(positive) * self.relative_margin)
        left = np.flatnonzero(candidates <= min(limits)) if limits else np.arange(len(candidates))
        if self.pick == "top" or len(left) <= self.num_negatives:
            return left[: self.num_negatives]
        generator = np.random.default_rng([self.seed, row])
        return np.sort(generator.choice(left, self.num_negatives, replace=False))


class Mined(NamedTuple):
    """What was written: rows, their negatives, and the rows that have fewer of these than asked for, or none."""

    rows: int
    negatives: int
    short: int
    without: int


def mine_negatives(
    source: RetrievalSplit | str | Path,
    ranker: Encoder | Literal["bm25"],
    output: str | Path,
    split: str = "train",
    scorer: Scorer | None = None,
    similarity: str | None = None,
    max_length: int | None = None,
    precision: str | None = "32-true",
    vectors: str | Path | None = None,
    device: str | None = None,
    overwrite: bool = False,
    **choice: Any,
) -> Mined:
    """Find hard negatives for each query and each document that answers it, and write them as JSON lines.

    A line holds ``query``, ``document``, ``negatives`` (texts, in the order in which they were found), the scores of
    the document and then of each negative, ``query_id``, ``document_id`` and ``negative_ids``. `RetrievalData` reads
    it. The scores are under a name that says what they are: ``scores`` are the scorer's, which training takes for a
    teacher's; without one ``cosines``, ``dot_products`` or ``bm25_scores``, which it does not read. Documents that
    answer the query, that have the text of one that does, or that of the query itself, are no negatives.

    The file appears when it is complete. Vectors and scores are kept beside it until then, so that an interrupted run
    goes on where it stopped.

    Args:
        source: A BEIR folder, a file or folder of pairs, or a `RetrievalSplit`; see `open_split`.
        ranker: What finds candidates: a sentence encoder as in `encode_corpus`, such as the teacher, or ``"bm25"``.
        output: The file to write, ``.jsonl``.
        split: Which split of a folder.
        scorer: What scores pairs of a query and a document: a `PairScorer`, or a function of a list of such pairs. It
            scores the candidates where there is a margin, which then is one of its scores, and only the chosen ones
            where there is none.
        similarity: ``"cosine"`` or ``"dot"``, for an encoder; None is that of its task.
        max_length: Tokens kept of a text at most, for an encoder.
        precision: As in `encode_corpus`.
        vectors: A file for the corpus' vectors, as the ``output`` of `encode_corpus`; a finished one is used again.
        device: Where an encoder from a folder runs; None is the graphics processor if there is one.
        overwrite: Whether an output that is there may be replaced.
        **choice: The options of `Selection`: which of the candidates become negatives.

    Returns:
        How much was written.

    Raises:
        DistillationError: If the folder, a model or an option is bad, or there is not one negative.
        MissingExtraError: If bm25s is needed and not installed.

    Example:
        >>> import json, tempfile
        >>> split = RetrievalSplit(["sort rows"], ["rows of trees", "sort the rows of a table"], [{1: 1.0}])
        >>> path = Path(tempfile.mkdtemp()) / "mined.jsonl"
        >>> mine_negatives(split, "bm25", path, num_negatives=1)
        Mined(rows=1, negatives=1, short=0, without=0)
        >>> json.loads(path.read_text())["negatives"]
        ['rows of trees']
    """
    if unknown := [name for name in choice if name not in {field.name for field in fields(Selection)}]:
        raise DistillationError(f"mine_negatives has no option {unknown[0]!r}.")
    wanted = Selection(**choice)
    if similarity is not None:
        check_similarity(similarity)
    path = check_output(output, overwrite, source=None if isinstance(source, RetrievalSplit) else source)
    data = open_split(source, split)
    work = path.with_name(f".{path.name}.work")
    pairs = np.array(data.pairs(), dtype=np.int64).reshape(-1, 2)
    excluded = excluded_of(data)
    top_k = wanted.skip + wanted.depth + max(map(len, excluded), default=0)

    own: np.ndarray
    name = BM25_SCORES
    if ranker == "bm25":
        index = BM25(data.documents)
        found, places = index.search(data.queries, top_k)
        own = np.concatenate(index.score(data.queries, [np.array(list(row), np.int64) for row in data.relevant]))
    else:
        encoder = open_encoder(ranker, device)
        by = similarity or similarity_of(encoder)
        name = SEARCH_SCORES[by]
        options: dict[str, Any] = {"max_length": max_length, "precision": precision}
        kept = work / "corpus.npy" if vectors is None else vectors
        documents = encode_corpus(encoder, data.documents, output=kept, overwrite=vectors is None, **options)
        queries = encode_corpus(encoder, data.queries, name="queries", **options)
        found, places = search(queries, documents, top_k, by, device=encoder.device)
        own = pair_scores(queries, documents, pairs, by).numpy()

    candidates: list[np.ndarray] = []
    scores: list[np.ndarray] = []
    for row, values, out in zip(places.cpu().numpy(), found.cpu().numpy(), excluded, strict=True):
        left = np.flatnonzero((row >= 0) & ~np.isin(row, list(out)))[wanted.skip : wanted.skip + wanted.depth]
        candidates.append(row[left])
        scores.append(values[left])
    rows = Rows(data, pairs, wanted, candidates, scores, own, name)
    if scorer is not None:
        rows.score_by(scorer, work / "scores.npy")
    mined = rows.count()
    if not mined.negatives:
        raise DistillationError(
            f"Not one of {mined.rows} rows has a negative: of the {len(data.documents)} documents none is left that "
            "does not answer the query. Lower skip or the margin, or take a larger corpus."
        )
    if mined.short:
        rank_zero_warn(
            f"{mined.short} of {mined.rows} rows have fewer than {wanted.num_negatives} negatives, {mined.without} of "
            "them none. A greater depth or a smaller margin finds more."
        )
    write_rows(tqdm(rows.lines(), total=mined.rows, desc="write", unit=" rows", delay=1, leave=False), path)
    shutil.rmtree(work, ignore_errors=True)
    return mined


class Rows:
    """The rows to write: each a query and a document that answers it, and what was found for the query.

    Args:
        data: The texts and their ids.
        pairs: The places of query and document of each row, of shape ``(rows, 2)``.
        choice: Which candidates become negatives.
        candidates: For each query the places of the candidates, the best first.
        scores: For each query their scores.
        own: For each row the score of its own document.
        name: What these scores are called.
    """

    def __init__(
        self,
        data: RetrievalSplit,
        pairs: np.ndarray,
        choice: Selection,
        candidates: Sequence[np.ndarray],
        scores: Sequence[np.ndarray],
        own: np.ndarray,
        name: str,
    ) -> None:
        self.data, self.pairs, self.own, self.name = data, pairs, own, name
        self.negatives: list[np.ndarray] = []
        self.scores: list[np.ndarray] = []
        self._choice, self._candidates = choice, candidates
        self._choose([scores[query] for query, _ in pairs])

    def _choose(self, scores: Sequence[np.ndarray]) -> None:
        """Choose the negatives of each row by the scores of its candidates."""
        self.negatives, self.scores = [], []
        for row, ((query, _), values) in enumerate(zip(self.pairs, scores, strict=True)):
            chosen = self._choice.of(float(self.own[row]), values, row)
            self.negatives.append(self._candidates[query][chosen])
            self.scores.append(values[chosen])

    def score_by(self, scorer: Scorer, output: Path) -> None:
        """Replace the scores by those of a scorer, and choose again where they decide."""
        # with a margin all candidates of a query are scored, for all of its rows at once
        if self._choice.limited:
            asked = [(query, place) for query, row in enumerate(self._candidates) for place in row]
        else:
            asked = [
                (query, place) for (query, _), row in zip(self.pairs, self.negatives, strict=True) for place in row
            ]
        wanted = np.unique(np.array([*map(tuple, self.pairs), *asked], dtype=np.int64).reshape(-1, 2), axis=0)
        values = score_all(scorer, self.data.queries, self.data.documents, wanted, output)
        known = {(query, place): value for (query, place), value in zip(wanted.tolist(), values.tolist(), strict=True)}
        self.own = np.array([known[query, place] for query, place in self.pairs.tolist()], dtype=np.float32)
        self.name = SCORES

        def of(query: int, places: np.ndarray) -> np.ndarray:
            return np.array([known[query, place] for place in places.tolist()], dtype=np.float32)

        if self._choice.limited:
            self._choose([of(query, self._candidates[query]) for query, _ in self.pairs.tolist()])
        else:
            rows = zip(self.pairs.tolist(), self.negatives, strict=True)
            self.scores = [of(query, places) for (query, _), places in rows]

    def count(self) -> Mined:
        """Count rows and negatives."""
        sizes = [len(places) for places in self.negatives]
        short = sum(size < self._choice.num_negatives for size in sizes)
        return Mined(len(sizes), sum(sizes), short, sizes.count(0))

    def lines(self) -> Iterator[dict[str, Any]]:
        """Yield what is written of each row."""
        data = self.data
        for (query, document), own, places, scores in zip(
            self.pairs.tolist(), self.own.tolist(), self.negatives, self.scores, strict=True
        ):
            yield {
                "query": data.queries[query],
                "document": data.documents[document],
                "negatives": [data.documents[place] for place in places],
                self.name: [round(score, 6) for score in (own, *scores.tolist())],
                "query_id": data.query_ids[query],
                "document_id": data.document_ids[document],
                "negative_ids": [data.document_ids[place] for place in places],
            }


def excluded_of(data: RetrievalSplit) -> list[set[int]]:
    """Return for each query the places of documents that cannot be its negatives.

    Example:
        >>> [sorted(row) for row in excluded_of(RetrievalSplit(["a"], ["x", "a ", "y", "x"], [{0: 1.0}]))]
        [[0, 1, 3]]
    """
    places: dict[str, list[int]] = {}
    for place, text in enumerate(data.documents):
        places.setdefault(text.strip().casefold(), []).append(place)
    found = []
    for query, grades in zip(data.queries, data.relevant, strict=True):
        texts = {text.strip().casefold() for text in (query, *(data.documents[place] for place in grades))}
        found.append({place for text in texts for place in places.get(text, [])})
    return found
