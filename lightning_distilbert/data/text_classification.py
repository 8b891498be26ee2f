"""Data for text classification and scoring."""

from __future__ import annotations

from typing import Any, Literal

import numpy as np
from lightning_utilities.core.rank_zero import rank_zero_warn
from transformers import PreTrainedTokenizerBase

from lightning_distilbert.data.base import TextData, as_list
from lightning_distilbert.data.encoding import EncodedDataset
from lightning_distilbert.data.labels import (
    PROBLEM_TYPES,
    REGRESSION,
    SINGLE,
    LabelSet,
    as_index,
    count_missing,
    no_labels,
)
from lightning_distilbert.data.readers import column, texts
from lightning_distilbert.errors import DistillationError


class TextClassificationData(TextData):
    r"""Texts, or pairs of texts, with a label, several labels or a score.

    Batches hold ``input_ids``, ``attention_mask``, ``token_type_ids`` where the tokenizer gives them, and ``labels``:
    int64 of shape ``(batch,)`` for one label (-100 where a row has none), float32 of shape ``(batch, num_labels)`` for
    several and of shape ``(batch,)`` for a score (NaN where a row has none). A row has none if its field is empty or
    None. With a teacher of another tokenizer, training batches also hold ``teacher_input_ids`` and so on. Predictions
    take the ``predict`` split, or the test split, and need no labels.

    Args:
        source: A folder with ``train.tsv``, ``dev.tsv`` and the like, a mapping from split to file or to rows, a file,
            a `datasets` object or a hub name; see `lightning_distilbert.data.open_splits`.
        text: The column of the text, or the two columns of a pair.
        label: The column of the label; None for data without labels, which only distillation can learn from.
        labels: The names of the labels in the order of the head's outputs. None takes the task's or the teacher's, else
            those that a `datasets` column brings, else the sorted names of the training split; whole numbers stay as
            they are.
        problem_type: ``"single_label_classification"``, ``"multi_label_classification"`` or ``"regression"``; None
            takes the task's, and the first where there is no task.
        tokenizer: A tokenizer, or a folder or hub name of one; None takes the module's.
        batch_size: Rows in a training batch on one device.
        eval_batch_size: Rows in another batch; None: twice `batch_size`.
        max_length: Tokens kept of a text at most; never more than tokenizer and student take.
        columns: Column names, for TSV and CSV files without a header (a last ``"*"`` drops what follows).
        header: Whether TSV and CSV files have a header; None: unless `columns` are given.
        delimiter: The separator of text tables; None takes it from the suffix.
        num_workers: Processes that make batches.
        pad_to_multiple_of: Round padded lengths up; None does not.
        seed: Of the order of training rows.
        unlabelled: Further training rows without a label, which the teacher alone teaches: a file, rows, or another
            source with a training split, with the same columns of text; of single texts also a text file (``.txt``,
            plain, ``.gz`` or ``.zst``), one text in each line.

    Raises:
        DistillationError: If an option, a column or a row is bad.

    Example:
        >>> from transformers import BertTokenizer
        >>> words = BertTokenizer(vocab={"[PAD]": 0, "[UNK]": 1, "[CLS]": 2, "[SEP]": 3, "[MASK]": 4, "good": 5})
        >>> rows = [{"text": "good", "label": "yes"}, {"text": "good good", "label": "no"}]
        >>> data = TextClassificationData({"train": rows}, tokenizer=words)
        >>> batch = next(iter(data.train_dataloader()))
        >>> batch["input_ids"].tolist(), batch["labels"].tolist()
        ([[2, 5, 5, 3], [2, 5, 3, 0]], [0, 1])
    """

    def __init__(
        self,
        source: Any,
        text: str | list[str] = "text",
        label: str | None = "label",
        labels: list[str] | None = None,
        problem_type: Literal["single_label_classification", "multi_label_classification", "regression"] | None = None,
        tokenizer: str | PreTrainedTokenizerBase | None = None,
        batch_size: int = 32,
        eval_batch_size: int | None = None,
        max_length: int = 128,
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
        self.text = as_list(text)
        if len(self.text) not in (1, 2):
            raise DistillationError(f"text={text!r}: it is one column, or the two columns of a pair.")
        if problem_type is not None and problem_type not in PROBLEM_TYPES:
            raise DistillationError(f"problem_type={problem_type!r}: it is one of {list(PROBLEM_TYPES)}.")
        if labels is not None and len(set(labels)) < len(labels):
            raise DistillationError(f"labels={labels} names a label twice.")
        self.label = label
        self.labels = labels
        self.problem_type = problem_type
        self.label_set: LabelSet | None = None
        self._labels_for: Any = None

    def setup(self, stage: str | None = None) -> None:
        """Settle the labels, then read and tokenise the splits of a stage; see `TextData.setup`."""
        self._check_module()
        task = self._task_facts()
        if self.label is not None and (self.label_set is None or task != self._labels_for):
            self.label_set = self._settle_labels(*task)
            self._labels_for = task
        super().setup(stage)

    def depends_on(self) -> Any:
        """Return what the encoded rows depend on: the tokenizer and the labels."""
        return super().depends_on(), self.label_set

    def encode_split(self, split: str) -> EncodedDataset:
        """Read and tokenise one split, with its labels as numbers."""
        parts: list[list[str]] = [[] for _ in self.text]
        extras = {}
        if self.has_source(split):
            rows, where = self.read_split(split), self.where(split)
            parts = [texts(rows, name, where) for name in self.text]
            if self.label is not None:
                values = column(rows, self.label, where, optional=split == "predict")
                if values is not None:
                    extras["labels"] = self._encode_labels(values, split, where)
        if split == "train" and self.unlabelled is not None:
            rows = self.read_unlabelled(self.text)
            more = [texts(rows, name, "unlabelled") for name in self.text]
            parts = [old + new for old, new in zip(parts, more, strict=True)]
            if "labels" in extras:
                extras["labels"] = np.concatenate([extras["labels"], no_labels(len(rows), extras["labels"])])
        second = parts[1] if len(parts) == 2 else None
        return self.encode_texts(parts[0], second, extras, name=split, train=split == "train")

    def _encode_labels(self, values: list[Any], split: str, where: str) -> np.ndarray:
        assert self.label_set is not None
        labels = self.label_set.encode(self._named(values, split), where)
        missing = count_missing(labels)
        if missing and split != "predict":
            use = "count for distillation and not for the task" if split == "train" else "do not count in the metrics"
            rank_zero_warn(f"{where}: {missing} of {len(labels)} rows have no label; they {use}.")
        return labels

    def _task_facts(self) -> tuple[str, tuple[str, ...] | None, int | None]:
        module = self.attached_module()
        task = getattr(module, "task", None)
        kind = getattr(task, "problem_type", None)
        if kind and self.problem_type and kind != self.problem_type:
            raise DistillationError(f"The data has problem_type={self.problem_type!r} and the task {kind!r}.")
        # the module also knows the names of a teacher, whose order the student's outputs must have
        names = (getattr(module, "labels", None) or getattr(task, "labels", None)) if task is not None else None
        return self.problem_type or kind or SINGLE, names, getattr(task, "num_labels", None)

    def _settle_labels(self, kind: str, task_names: tuple[str, ...] | None, number: int | None) -> LabelSet | None:
        if kind == REGRESSION:
            return LabelSet(kind, None, 1)
        if self.labels and task_names and [*map(str.casefold, self.labels)] != [*map(str.casefold, task_names)]:
            raise DistillationError(
                f"The data's labels {list(self.labels)} are not the task's, or in another order: {list(task_names)}. "
                "The task or its teacher names these. Leave labels out of the data, or name them in this order."
            )
        names = task_names or self.labels
        if not names:
            names = self._class_names(next(iter(self.splits())))
        if names:
            if number is not None and len(names) != number:
                raise DistillationError(
                    f"The data names {len(names)} labels, {list(names)}, and the task has num_labels={number}."
                )
            return LabelSet(kind, tuple(names), len(names))
        assert self.label is not None
        for split in self.splits():
            # the training split comes first; a split that has to have the column is refused when it is encoded
            values = column(self.read_split(split), self.label, self.where(split), optional=True)
            if values is not None:
                found = LabelSet.derive(values, kind, number, self.where(split))
                if found.names:
                    self.check_named(found.names)
                return found
        return None

    def _class_names(self, split: str) -> list[str] | None:
        """Return the label names that a column of the `datasets` library brings."""
        features = getattr(self.split_source(split), "features", None) or {}
        feature = features.get(self.label)
        return getattr(feature, "names", None) or getattr(getattr(feature, "feature", None), "names", None)

    def _named(self, values: list[Any], split: str) -> list[Any]:
        """Put names in the place of a `datasets` column's numbers, whose order need not be ours."""
        brought = self._class_names(split)
        names = self.label_set.names if self.label_set else None
        if not brought or not names:
            return values
        if {name.casefold() for name in brought} != {name.casefold() for name in names}:
            if all(as_index(name.removeprefix("LABEL_")) is not None for name in (*names,)):
                return [None if value == -1 else value for value in values]
            raise DistillationError(
                f"{self.where(split)}: the column {self.label!r} has the labels {brought}, and {list(names)} are asked "
                "for. Use the same names."
            )

        def name_of(value: Any) -> Any:
            if isinstance(value, list):
                return [name_of(item) for item in value]
            return brought[value] if isinstance(value, int) and value >= 0 else None if value == -1 else value

        return [name_of(value) for value in values]
