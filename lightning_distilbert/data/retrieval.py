"""Data for retrieval: pairs to train on, and queries with a whole corpus to evaluate on."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from torch.utils.data import Dataset
from transformers import PreTrainedTokenizerBase

from lightning_distilbert.data.base import TextData
from lightning_distilbert.data.beir import BeirFolder, RetrievalSplit
from lightning_distilbert.data.encoding import EncodedDataset
from lightning_distilbert.data.readers import texts
from lightning_distilbert.data.sources import open_splits

NO_QUERY = -1


class PairDataset(Dataset):
    """Pairs of a query and a document, each text encoded once.

    Args:
        queries: The encoded queries.
        documents: The encoded documents.
        pairs: The places of query and document of each pair, of shape ``(pairs, 2)``; -1 for a document without a
            query, whose query is then a row without a token.
    """

    def __init__(self, queries: EncodedDataset, documents: EncodedDataset, pairs: np.ndarray) -> None:
        self.queries = queries.with_empty_row() if (pairs[:, 0] == NO_QUERY).any() else queries
        self.documents = documents
        self.pairs = pairs
        self.lengths = self.queries.lengths[pairs[:, 0]] + documents.lengths[pairs[:, 1]]

    def __len__(self) -> int:
        return len(self.pairs)

    def __getitem__(self, index: int | list[int]) -> Any:
        if isinstance(index, list):
            return [self[i] for i in index]
        query, document = self.pairs[index]
        return {
            "query": self.queries[query if query != NO_QUERY else len(self.queries) - 1],
            "document": self.documents[document],
            "query_index": query,
            "document_index": document,
        }


class RetrievalData(TextData):
    """Queries and the documents that answer them.

    A training batch is ``{"query": {...}, "document": {...}, "document_index": ..., "query_index": ...}``: two padded
    batches, and int64 numbers of shape ``(batch,)`` that are equal for equal texts, so that a loss need not take the
    same document for a wrong one.

    Evaluation has two loaders, of queries and of the corpus. Their batches hold the tokens and ``index``, int64 of
    shape ``(batch,)``: the place of the text. Those of queries also hold ``relevant``, int64 of shape ``(batch, most)``
    (places in the corpus, padded with -1), and ``grades``, float32 of the same shape (padded with 0).

    Args:
        source: A BEIR folder; or a folder, file or mapping as in `lightning_distilbert.data.open_splits` with pairs in
            columns ``query`` and ``document``; a split may also be a list of ``(query, document)``, a `RetrievalSplit`
            or a BEIR folder of its own. For pairs, the corpus of a split is its documents, equal texts once.
        query: The column of the query, for pairs from files.
        document: The column of the document, for pairs from files.
        tokenizer: A tokenizer, or a folder or hub name of one; None takes the module's.
        batch_size: Pairs in a training batch on one device.
        eval_batch_size: Texts in another batch; None: twice `batch_size`.
        max_length: Tokens kept of a text at most; never more than the tokenizer's own limit.
        columns: Column names, for TSV and CSV files without a header.
        header: Whether TSV and CSV files have a header; None: unless `columns` are given.
        delimiter: The separator of text tables; None takes it from the suffix.
        num_workers: Processes that make batches.
        pad_to_multiple_of: Round padded lengths up; None does not.
        seed: Of the order of training pairs.
        unlabelled: Documents for which there is no query, which the teacher alone teaches: a list of texts, or a file,
            rows or another source with a training split, in the column of the document. Their row of a training batch
            has a query without a token, which no loss counts.

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
        source, where = self.split_source(split), self.where(split)
        if isinstance(source, RetrievalSplit):
            return source
        if isinstance(source, (str, Path)) and Path(source).expanduser().is_dir():
            return self._folder(source).split("test" if split == "predict" else split)
        in_memory = isinstance(source, Sequence) and not isinstance(source, str)
        if in_memory and not (source and isinstance(source[0], Mapping)):
            return RetrievalSplit.from_pairs(source, where)
        rows = self.read_split(split)
        queries, documents = texts(rows, self.query, where), texts(rows, self.document, where)
        return RetrievalSplit.from_pairs(list(zip(queries, documents, strict=True)), where)

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
        data = self.retrieval_split("train") if self.has_source("train") else RetrievalSplit([], [], [])
        pairs = np.array(data.pairs(), dtype=np.int64).reshape(-1, 2)
        # documents that answer no training query are not tokenised
        used, pairs[:, 1] = np.unique(pairs[:, 1], return_inverse=True)
        documents = [data.documents[place] for place in used]
        if self.unlabelled is not None:
            more = list(dict.fromkeys(texts(self.read_unlabelled([self.document]), self.document, "unlabelled")))
            alone = np.stack([np.full(len(more), NO_QUERY), len(documents) + np.arange(len(more))], axis=1)
            pairs, documents = np.concatenate([pairs, alone]), documents + more
        queries = self.encode_texts(data.queries, None, None, "queries", train=True)
        return PairDataset(queries, self.encode_texts(documents, None, None, "documents", train=True), pairs)

    def _folder(self, folder: str | Path) -> BeirFolder:
        path = Path(folder).expanduser()
        if path not in self._folders:
            self._folders[path] = BeirFolder(path)
        return self._folders[path]
