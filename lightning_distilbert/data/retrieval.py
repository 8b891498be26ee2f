"""Data for retrieval: pairs to train on, and queries with a whole corpus to evaluate on."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
import torch
from lightning_utilities.core.rank_zero import rank_zero_warn
from torch.utils.data import Dataset
from transformers import PreTrainedTokenizerBase

from lightning_distilbert.data.base import TextData
from lightning_distilbert.data.batching import EpochSampler
from lightning_distilbert.data.beir import BeirFolder, RetrievalSplit
from lightning_distilbert.data.candidates import NOBODY, CandidateSplit, with_texts
from lightning_distilbert.data.encoding import EncodedDataset
from lightning_distilbert.data.labels import as_index
from lightning_distilbert.data.readers import Row, texts
from lightning_distilbert.data.sources import open_splits
from lightning_distilbert.errors import DistillationError, check_choice

Choice = Literal["random", "first"]


class PairDataset(Dataset):
    """Queries with a document and hard negatives each, every text encoded once.

    A row is taken by its number; a list of numbers gives a list of rows; with an epoch before it, as an `EpochSampler`
    yields it, negatives are those of that epoch.

    Args:
        queries: The encoded queries.
        documents: The encoded documents.
        split: Which belong together, as places among these.
        num_negatives: Negatives of a row, at most.
        choice: ``first`` takes the hardest, ``random`` draws others in each epoch, by the seed, the epoch and the row
            alone.
        seed: Of the draws.
    """

    def __init__(
        self,
        queries: EncodedDataset,
        documents: EncodedDataset,
        split: CandidateSplit,
        num_negatives: int = 0,
        choice: Choice = "random",
        seed: int = 0,
    ) -> None:
        self.pairs, self.split = split.pairs, split
        self.num_negatives = min(num_negatives, split.most)
        self.choice, self.seed = choice, seed
        short = self.num_negatives and min(map(len, split.negatives)) < self.num_negatives
        self.queries = queries.with_empty_row() if (self.pairs[:, 0] == NOBODY).any() else queries
        self.documents = documents.with_empty_row() if short or (self.pairs[:, 1] == NOBODY).any() else documents
        negatives = split.negatives if self.num_negatives else []
        longest = np.array([self.documents.lengths[places].max(initial=0) for places in negatives], dtype=np.int64)
        own = self.documents.lengths[self.pairs[:, 1]]
        self.lengths = self.queries.lengths[self.pairs[:, 0]] + (np.maximum(own, longest) if negatives else own)
        # where each query has one document there is nothing else to leave out of the loss
        self.has_relevant = any(len(grades) > 1 for grades in split.relevant)

    def __len__(self) -> int:
        return len(self.pairs)

    def __getitem__(self, index: int | list[int] | tuple[int, list[int]]) -> Any:
        if isinstance(index, tuple):
            epoch, rows = index
            return [self.row(row, epoch) for row in rows]
        return [self.row(row) for row in index] if isinstance(index, list) else self.row(index)

    def row(self, index: int, epoch: int = 0) -> dict[str, Any]:
        """Return one row as an epoch draws it.

        Args:
            index: Its number.
            epoch: The epoch.

        Returns:
            The encoded ``query`` and ``documents`` (an empty row for each that is missing), their places (-1 if
            missing) in ``query_index`` and ``document_index``, the document's ``grade``, other documents that answer
            the query in ``relevant_index``, and ``scores`` where the rows have them.
        """
        query, document = self.pairs[index]
        chosen = self._draw(index, epoch)
        places = np.full(1 + self.num_negatives, NOBODY, dtype=np.int64)
        places[0] = document
        places[1 : 1 + len(chosen)] = self.split.negatives[index][chosen]
        found: dict[str, Any] = {
            "query": _row_of(self.queries, query),
            "documents": [_row_of(self.documents, place) for place in places],
            "query_index": query,
            "document_index": places,
            "grade": self.split.relevant[query].get(int(document), 0.0) if query != NOBODY else np.nan,
        }
        if self.has_relevant:
            grades = self.split.relevant[query] if query != NOBODY else {}
            found["relevant_index"] = np.array([place for place, grade in grades.items() if grade > 0], dtype=np.int64)
        if self.split.scores:
            scores = np.full(1 + self.num_negatives, np.nan, dtype=np.float32)
            scores[0] = self.split.scores[index][0]
            scores[1 : 1 + len(chosen)] = self.split.scores[index][1:][chosen]
            found["scores"] = scores
        return found

    def _draw(self, index: int, epoch: int) -> np.ndarray:
        """Return which of a row's negatives an epoch takes; the same in any order, process and run."""
        there = len(self.split.negatives[index])
        count = min(self.num_negatives, there)
        if self.choice == "first" or count in (0, there):
            return np.arange(count)
        return np.random.default_rng([self.seed, epoch, index]).choice(there, size=count, replace=False)


def _row_of(data: EncodedDataset, place: Any) -> Any:
    return data[int(place) if place != NOBODY else len(data) - 1]


@dataclass(frozen=True)
class PairBatches:
    """Makes batches of the rows of a `PairDataset`. It is cheap to send to a loader's workers.

    Attributes:
        pad: What pads rows of tokens.
    """

    pad: Callable[[list[Any]], dict[str, Any]]

    def __call__(self, rows: list[dict[str, Any]]) -> dict[str, Any]:
        """Make a batch: documents below the queries' own are the first negative of each query, then the second, ...

        Args:
            rows: The rows.
        """
        documents = [row["documents"][place] for place in range(len(rows[0]["documents"])) for row in rows]
        batch: dict[str, Any] = {
            "query": self.pad([row["query"] for row in rows]),
            "document": self.pad(documents),
            "query_index": torch.tensor([int(row["query_index"]) for row in rows]),
            "document_index": torch.from_numpy(np.stack([row["document_index"] for row in rows], axis=1).reshape(-1)),
        }
        if "relevant_index" in rows[0]:
            most = max(1, *(len(row["relevant_index"]) for row in rows))
            # no document has the number -2, and -1 are those that are not there
            fill = [
                np.pad(row["relevant_index"], (0, most - len(row["relevant_index"])), constant_values=-2)
                for row in rows
            ]
            batch["relevant_index"] = torch.from_numpy(np.stack(fill))
        if "scores" in rows[0]:
            batch["scores"] = torch.from_numpy(np.stack([row["scores"] for row in rows]))
        return batch


class RetrievalData(TextData):
    """Queries and the documents that answer them.

    A training batch is ``{"query": {...}, "document": {...}, "query_index": ..., "document_index": ...}``: two padded
    batches, and int64 numbers, one for each text, that are equal for equal texts, so that a loss need not take the same
    document for a wrong one. Where a query has several documents, ``relevant_index``, int64 of shape ``(batch, most)``,
    holds the numbers of all, padded with -2.

    Training rows may bring hard negatives, documents that do not answer their query: ``negatives``, a list of texts,
    and ``scores``, a list of a teacher's scores, first of the document and then of each negative. (What a search alone
    found of them, such as the ``cosines`` of a mined file, is not read.) The batch then holds
    ``k`` times as many documents as queries, ``k = 1 + num_negatives``: first the queries' own, then the first negative
    of each query, then the second; a row without a token, of number -1, where a query has fewer. ``scores`` are
    float32, of shape ``(batch, k)``, NaN where there is none.

    Evaluation has two loaders, of queries and of the corpus. Their batches hold the tokens and ``index``, int64 of
    shape ``(batch,)``: the place of the text. Those of queries also hold ``relevant``, int64 of shape ``(batch, most)``
    (places in the corpus, padded with -1), and ``grades``, float32 of the same shape (padded with 0).

    Args:
        source: A BEIR folder; or a folder, file or mapping as in `lightning_distilbert.data.open_splits` with pairs in
            columns ``query`` and ``document``; a split may also be a list of ``(query, document)``, a `RetrievalSplit`
            or a BEIR folder of its own. For pairs, the corpus of a split is its documents, equal texts once. Rows may
            name texts by ``query_id``, ``document_id`` and ``negative_ids`` where another split is a BEIR folder.
        query: The column of the query, for pairs from files.
        document: The column of the document, for pairs from files.
        tokenizer: A tokenizer, or a folder or hub name of one; None takes the module's.
        batch_size: Pairs in a training batch on one device.
        eval_batch_size: Texts in another batch; None: twice `batch_size`.
        max_length: Tokens kept of a text at most; never more than tokenizer and student take.
        columns: Column names, for TSV and CSV files without a header.
        header: Whether TSV and CSV files have a header; None: unless `columns` are given.
        delimiter: The separator of text tables; None takes it from the suffix.
        num_workers: Processes that make batches.
        pad_to_multiple_of: Round padded lengths up; None does not.
        seed: Of the order of training pairs.
        unlabelled: Documents for which there is no query, which the teacher alone teaches: a list of texts, or a file,
            rows or another source with a training split, in the column of the document; or a text file with one in each
            line. Their row of a training batch has a query without a token, which no loss counts.
        num_negatives: Hard negatives of each query in a training batch, where rows have them; 0 leaves them out.
        negative_choice: ``"random"`` draws them anew in each epoch, alike in any process and after resuming;
            ``"first"`` takes the first of each row, which are the hardest in a mined file.

    Raises:
        DistillationError: If an option, a column or a row is bad.

    Example:
        >>> from transformers import BertTokenizer
        >>> vocabulary = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "who", "me"]
        >>> words = BertTokenizer(vocab={word: i for i, word in enumerate(vocabulary)})
        >>> data = RetrievalData({"train": [("who", "me me")], "test": [("who", "me")]}, tokenizer=words)
        >>> next(iter(data.train_dataloader()))["document"]["input_ids"].tolist()
        [[2, 6, 6, 3]]
        >>> queries, corpus = data.test_dataloader()
        >>> next(iter(queries))["relevant"].tolist()
        [[0]]
    """

    train_sampler = EpochSampler

    def __init__(
        self,
        source: Any,
        query: str = "query",
        document: str = "document",
        tokenizer: str | PreTrainedTokenizerBase | None = None,
        batch_size: int = 32,
        eval_batch_size: int | None = None,
        max_length: int = 256,
        columns: list[str] | None = None,
        header: bool | None = None,
        delimiter: str | None = None,
        num_workers: int = 0,
        pad_to_multiple_of: int | None = None,
        seed: int = 0,
        unlabelled: Any = None,
        num_negatives: int = 1,
        negative_choice: Choice = "random",
    ) -> None:
        super().__init__(
            source=source,
            tokenizer=tokenizer,
            batch_size=batch_size,
            eval_batch_size=eval_batch_size,
            max_length=max_length,
            columns=columns,
            header=header,
            delimiter=delimiter,
            num_workers=num_workers,
            pad_to_multiple_of=pad_to_multiple_of,
            seed=seed,
            unlabelled=unlabelled,
        )
        self.query = query
        self.document = document
        check_choice("RetrievalData(negative_choice=...)", negative_choice, get_args(Choice))
        if num_negatives < 0:
            raise DistillationError(f"num_negatives={num_negatives}: it has to be 0 or more.")
        self.num_negatives = num_negatives
        self.negative_choice: Choice = negative_choice
        self._folders: dict[Path, BeirFolder] = {}

    def find_splits(self) -> dict[str, Any]:
        """Find the splits: those of a BEIR folder's qrels, or as for other data."""
        if isinstance(self.source, RetrievalSplit):
            return {"train": self.source}
        if isinstance(self.source, (str, Path)) and BeirFolder.is_one(self.source):
            return dict.fromkeys(self._folder(self.source).qrels, Path(self.source).expanduser())
        return open_splits(self.source)

    def retrieval_split(self, split: str) -> RetrievalSplit:
        """Read one split as texts, as for a search without a model.

        Args:
            split: ``train``, ``validation`` or ``test``.

        Returns:
            Queries, documents, and which answer which.
        """
        if (given := self._without_rows(split)) is not None:
            return given
        rows, where = self._rows(split), self.where(split)
        queries, documents = texts(rows, self.query, where), texts(rows, self.document, where)
        return RetrievalSplit.from_pairs(list(zip(queries, documents, strict=True)), where)

    def candidate_split(self, split: str) -> CandidateSplit:
        """Read one split as texts with hard negatives and scores, where its rows have them.

        Args:
            split: ``train``, ``validation`` or ``test``.
        """
        if (given := self._without_rows(split)) is not None:
            return CandidateSplit.of(given)
        return CandidateSplit.from_rows(self._rows(split), self.query, self.document, self.where(split))

    def _without_rows(self, split: str) -> RetrievalSplit | None:
        """Return a split that is given as one, as a folder or as pairs in memory; None for one of rows with columns."""
        source = self.split_source(split)
        if isinstance(source, RetrievalSplit):
            return source
        if isinstance(source, (str, Path)) and Path(source).expanduser().is_dir():
            return self._folder(source).split("test" if split == "predict" else split)
        in_memory = isinstance(source, Sequence) and not isinstance(source, str)
        if in_memory and not (source and isinstance(source[0], Mapping)):
            return RetrievalSplit.from_pairs(source, self.where(split))
        return None

    def _rows(self, split: str) -> list[Row]:
        """Read the rows of a split, with texts in the place of ids."""
        folders = [
            source for source in self.splits().values() if isinstance(source, (str, Path)) and BeirFolder.is_one(source)
        ]
        folder = self._folder(folders[0]) if folders else None
        rows, where = self.read_split(split), self.where(split)
        if wrong := [number for number, row in enumerate(rows, start=1) if as_index(row.get("label")) == 0]:
            raise DistillationError(
                f"{where}: {len(wrong)} of {len(rows)} rows have the label 0, the first is row {wrong[0]}: there the "
                "document does not answer the query, and a pair for retrieval is one that does. Give such documents as "
                "the negatives of a row, or leave them out (RerankingData reads labels)."
            )
        return with_texts(rows, folder, self.query, self.document, where)

    def encode_split(self, split: str) -> PairDataset | list[EncodedDataset]:
        """Read and tokenise one split: pairs for training, queries and corpus otherwise."""
        if split == "train":
            return self._encode_pairs()
        data = self.retrieval_split(split)
        most = max(map(len, data.relevant))
        relevant = np.full((len(data.queries), most), -1, dtype=np.int64)
        grades = np.zeros((len(data.queries), most), dtype=np.float32)
        for row, found in enumerate(data.relevant):
            relevant[row, : len(found)] = list(found)
            grades[row, : len(found)] = list(found.values())
        extras: dict[str, np.ndarray] = {"index": np.arange(len(data.queries)), "relevant": relevant, "grades": grades}
        queries = self.encode_texts(data.queries, None, extras, f"{split} queries")
        places = {"index": np.arange(len(data.documents))}
        return [queries, self.encode_texts(data.documents, None, places, f"{split} corpus")]

    def _encode_pairs(self) -> PairDataset:
        data = (
            self.candidate_split("train") if self.has_source("train") else CandidateSplit.of(RetrievalSplit([], [], []))
        )
        if self.num_negatives == 0:
            data.negatives = [places[:0] for places in data.negatives]
            data.scores = []
        elif 0 < data.most < self.num_negatives:
            rank_zero_warn(f"num_negatives={self.num_negatives}, and no row has more than {data.most} negatives.")
        if self.unlabelled is not None:
            more = dict.fromkeys(texts(self.read_unlabelled([self.document]), self.document, "unlabelled"))
            data = data.with_pairs([], list(more))
        # documents that are in no training row are not tokenised
        data = data.used()
        queries = self.encode_texts(data.queries, None, None, "queries", train=True)
        documents = self.encode_texts(data.documents, None, None, "documents", train=True)
        return PairDataset(queries, documents, data, self.num_negatives, self.negative_choice, self.seed)

    def _collate(self, train: bool = False) -> Any:
        pad = super()._collate(train)
        return PairBatches(pad) if train else pad

    def _folder(self, folder: str | Path) -> BeirFolder:
        path = Path(folder).expanduser()
        if path not in self._folders:
            self._folders[path] = BeirFolder(path)
        return self._folders[path]
