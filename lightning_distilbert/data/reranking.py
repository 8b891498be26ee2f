"""Data for reranking: queries joined with the documents among which theirs is to be found."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, get_args

import numpy as np
import torch
from lightning_utilities.core.rank_zero import rank_zero_warn
from torch.utils.data import Dataset
from transformers import PreTrainedTokenizerBase

from lightning_distilbert.data.base import TextData
from lightning_distilbert.data.batching import EpochSampler
from lightning_distilbert.data.candidates import NOBODY, CandidateSplit
from lightning_distilbert.data.encoding import TEACHER, EncodedDataset
from lightning_distilbert.data.readers import texts
from lightning_distilbert.data.retrieval import Choice, PairDataset
from lightning_distilbert.errors import DistillationError, check_choice
from lightning_distilbert.joining import PairTemplate


class CandidateLists(Dataset):
    """All queries with all of their candidates, every text encoded once.

    Args:
        queries: The encoded queries.
        documents: The encoded documents.
        lists: For each query the grades of its candidates, by their place among the documents.
    """

    def __init__(self, queries: EncodedDataset, documents: EncodedDataset, lists: list[dict[int, float]]) -> None:
        self.queries, self.documents, self.lists = queries, documents, lists
        tokens = [int(documents.lengths[list(grades)].sum()) for grades in lists]
        self.lengths = queries.lengths + np.array(tokens, dtype=np.int64)

    def __len__(self) -> int:
        return len(self.lists)

    def __getitem__(self, index: int | list[int]) -> Any:
        if isinstance(index, list):
            return [self[i] for i in index]
        grades = self.lists[index]
        return {
            "query": self.queries[index],
            "documents": [self.documents[place] for place in grades],
            "query_index": index,
            "document_index": np.fromiter(grades, dtype=np.int64, count=len(grades)),
            "labels": np.fromiter(grades.values(), dtype=np.float32, count=len(grades)),
        }


@dataclass(frozen=True)
class JoinedBatches:
    """Makes batches of pairs of the rows of a `PairDataset` or `CandidateLists`. It is cheap to send to workers.

    Attributes:
        pad: What pads rows of tokens.
        template: How the tokenizer joins two texts.
        max_length: Tokens in a pair at most.
        teacher: How the teacher's tokenizer joins them, where it is another; and its `max_length`.
        multiple_of: Round padded lengths up to a multiple of this.
        once: Whether a pair that several rows bring stands in the batch once: two rows of one query may draw the same
            document, which would weigh twice among its candidates.
    """

    pad: Callable[[list[Any]], dict[str, Any]]
    template: PairTemplate
    max_length: int
    teacher: tuple[PairTemplate, int] | None = None
    multiple_of: int | None = None
    once: bool = False

    def __call__(self, rows: list[dict[str, Any]]) -> dict[str, Any]:
        """Make a batch with one pair after the other.

        Args:
            rows: The rows.
        """
        queries: list[int] = []
        documents: list[Any] = []
        labels: list[float] = []
        numbers: list[int] = []
        seen: dict[tuple[int, int], int] = {}
        for place, row in enumerate(rows):
            # the first of a training row answers its query, unless nobody knows
            given = row.get("labels")
            given = [row["grade"]] + [0.0] * (len(row["documents"]) - 1) if given is None else given
            for document, index, label in zip(row["documents"], row["document_index"], given, strict=True):
                pair = int(row["query_index"]), int(index)
                if index == NOBODY:
                    continue
                if self.once and (known := seen.setdefault(pair, len(labels))) < len(labels):
                    labels[known] = float(label) if math.isnan(labels[known]) else labels[known]
                    continue
                queries.append(place)
                documents.append(document)
                labels.append(float(label))
                numbers.append(pair[0])
        left, right = self.pad([row["query"] for row in rows]), self.pad(documents)
        places = torch.tensor(queries), torch.arange(len(documents))
        batch = self.template.join(left, right, *places, self.max_length, self.multiple_of)
        if self.teacher is not None:
            template, longest = self.teacher
            first, second = (
                {name.removeprefix(TEACHER): side[name] for name in side if name.startswith(TEACHER)}
                for side in (left, right)
            )
            joined = template.join(first, second, *places, longest, self.multiple_of)
            batch |= {f"{TEACHER}{name}": value for name, value in joined.items()}
        return batch | {"labels": torch.tensor(labels), "query_index": torch.tensor(numbers)}


class RerankingData(TextData):
    """Queries, documents that answer them and documents that do not, joined as a cross-encoder reads them.

    Rows are those of a file for retrieval with hard negatives (``query``, ``document`` and ``negatives``, a list of
    texts), or have a ``label``: above 0 where the document answers the query, 0 where it does not, empty where nobody
    knows. Equal queries are one.

    A batch holds ``input_ids``, ``attention_mask`` and ``token_type_ids`` where the tokenizer gives them, all of shape
    ``(pairs, sequence)``; ``labels``, float32 of shape ``(pairs,)``, the label of each pair, NaN where there is none;
    and ``query_index``, int64 of the same shape, equal in the pairs of one query. With a teacher of another tokenizer,
    training batches also hold ``teacher_input_ids`` and so on. Texts are tokenised once each and joined when a batch is
    made; of a pair that is too long the longer part is cut. Predictions are of each row's query with its document.

    Args:
        source: A folder, file or mapping as in `lightning_distilbert.data.open_splits`.
        query: The column of the query.
        document: The column of the document.
        label: The column of the label, for rows that have one.
        tokenizer: A tokenizer, or a folder or hub name of one; None takes the module's.
        batch_size: Queries in a training batch on one device, each with up to ``1 + num_negatives`` documents.
        eval_batch_size: Queries in another batch, each with all of its documents; None: `batch_size`.
        max_length: Tokens kept of a pair at most; never more than tokenizer and student take.
        columns: Column names, for TSV and CSV files without a header.
        header: Whether TSV and CSV files have a header; None: unless `columns` are given.
        delimiter: The separator of text tables; None takes it from the suffix.
        num_workers: Processes that make batches.
        pad_to_multiple_of: Round padded lengths up; None does not.
        seed: Of the order of training rows and of the draws of negatives.
        unlabelled: Further pairs of a query and a document of which nobody knows whether they belong together, for
            the teacher to judge: a file, rows, or another source with a training split, in the same columns.
        num_negatives: Documents that do not answer the query beside each that does, in training.
        negative_choice: ``"random"`` draws them anew in each epoch, alike in any process and after resuming;
            ``"first"`` takes the first of each row.

    Raises:
        DistillationError: If an option, a column or a row is bad, or there is nothing to tell apart.

    Example:
        >>> from transformers import BertTokenizer
        >>> vocabulary = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "who", "me", "you"]
        >>> words = BertTokenizer(vocab={word: i for i, word in enumerate(vocabulary)})
        >>> rows = [{"query": "who", "document": "me", "negatives": ["you you"]}]
        >>> batch = next(iter(RerankingData({"train": rows}, tokenizer=words).train_dataloader()))
        >>> batch["input_ids"].tolist(), batch["labels"].tolist()
        ([[2, 5, 3, 6, 3, 0], [2, 5, 3, 7, 7, 3]], [1.0, 0.0])
    """

    train_sampler = EpochSampler

    def __init__(
        self,
        source: Any,
        query: str = "query",
        document: str = "document",
        label: str = "label",
        tokenizer: str | PreTrainedTokenizerBase | None = None,
        batch_size: int = 8,
        eval_batch_size: int | None = None,
        max_length: int = 256,
        columns: list[str] | None = None,
        header: bool | None = None,
        delimiter: str | None = None,
        num_workers: int = 0,
        pad_to_multiple_of: int | None = None,
        seed: int = 0,
        unlabelled: Any = None,
        num_negatives: int = 4,
        negative_choice: Choice = "random",
    ) -> None:
        super().__init__(
            source=source,
            tokenizer=tokenizer,
            batch_size=batch_size,
            eval_batch_size=eval_batch_size or batch_size,
            max_length=max_length,
            columns=columns,
            header=header,
            delimiter=delimiter,
            num_workers=num_workers,
            pad_to_multiple_of=pad_to_multiple_of,
            seed=seed,
            unlabelled=unlabelled,
        )
        check_choice("RerankingData(negative_choice=...)", negative_choice, get_args(Choice))
        if num_negatives < 1:
            raise DistillationError(f"num_negatives={num_negatives}: it has to be 1 or more.")
        self.query = query
        self.document = document
        self.label = label
        self.num_negatives = num_negatives
        self.negative_choice: Choice = negative_choice

    def encode_split(self, split: str) -> PairDataset | CandidateLists:
        """Read and tokenise one split: pairs for training and predictions, all candidates of each query otherwise."""
        data = self._read(split) if self.has_source(split) else CandidateSplit([], [], np.zeros((0, 2), np.int64), [])
        train = split == "train"
        if train and self.unlabelled is not None:
            rows = self.read_unlabelled([self.query, self.document])
            columns = [texts(rows, name, "unlabelled") for name in (self.query, self.document)]
            data = data.with_pairs(*columns)
        queries = self.encode_texts(data.queries, None, None, f"{split} queries", train=train)
        documents = self.encode_texts(data.documents, None, None, f"{split} documents", train=train)
        if train:
            self._check_pairs(queries, documents)
        if train or split == "predict":
            return PairDataset(queries, documents, data, self.num_negatives, self.negative_choice, self.seed)
        lists = [dict(grades) for grades in data.relevant]
        for (place, _), others in zip(data.pairs, data.negatives, strict=True):
            for other in others.tolist():
                lists[place].setdefault(other, 0.0)
        return CandidateLists(queries, documents, lists)

    def _read(self, split: str) -> CandidateSplit:
        rows, where = self.read_split(split), self.where(split)
        if split == "predict":  # one answer for each row, in their order
            pairs = [{self.query: row.get(self.query), self.document: row.get(self.document)} for row in rows]
            return CandidateSplit.from_rows(pairs, self.query, self.document, where)
        if any(self.label in row for row in rows):
            if any(row.get("negatives") is not None for row in rows):
                raise DistillationError(
                    f"{where}: rows have negatives and a {self.label!r}, of which only one is read. Drop that column, "
                    f"or name another (label=...); or give each negative a row of its own with {self.label!r} 0."
                )
            return CandidateSplit.from_labels(rows, self.query, self.document, self.label, where)
        data = CandidateSplit.from_rows(rows, self.query, self.document, where)
        if not data.most:
            raise DistillationError(
                f"{where}: no row has negatives or a {self.label!r}, so that there is nothing to tell apart (columns "
                f"{list(rows[0])}). Mine hard negatives first, or label the pairs."
            )
        if data.most and split == "train" and (bare := sum(not len(others) for others in data.negatives)):
            rank_zero_warn(f"{where}: {bare} of {len(rows)} rows have no negatives.")
        return data

    def _check_pairs(self, queries: EncodedDataset, documents: EncodedDataset) -> None:
        """Refuse pairs that are longer than a teacher with the same tokenizer reads."""
        if not len(queries) or not len(documents):
            return
        template = PairTemplate.of(self.get_tokenizer())
        longest = int(queries.lengths.max() + documents.lengths.max()) - 2 * sum(template.alone) + template.special
        self.check_teacher_length(np.array([min(longest, self.effective_max_length())]))

    def _collate(self, train: bool = False) -> Any:
        other = self.teacher_tokenizer() if train else None
        teacher = None if other is None else (PairTemplate.of(other), self.teacher_length(other))
        template = PairTemplate.of(self.get_tokenizer())
        return JoinedBatches(
            super()._collate(train), template, self.effective_max_length(), teacher, self.pad_to_multiple_of, once=train
        )
