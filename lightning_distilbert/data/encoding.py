"""Text tokenised once into flat arrays, and padded only when a batch is made."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, overload

import numpy as np
import torch
from torch.utils.data import Dataset
from tqdm.auto import tqdm

from lightning_distilbert.data.inputs import CHUNK
from lightning_distilbert.errors import DistillationError

TEACHER = "teacher_"  # in front of the names of what a teacher with another tokenizer reads
TOKENS = ("input_ids", "attention_mask", "token_type_ids")
PADDED = (*TOKENS, *(f"{TEACHER}{name}" for name in TOKENS))
EncodedRow = dict[str, Any]


@dataclass(frozen=True)
class Padding:
    """What padding needs of a tokenizer; unlike the tokenizer it is cheap to send to a loader's workers.

    Attributes:
        pad_token_id: The padding token.
        pad_token_type_id: The token type at padding.
        padding_side: ``"right"`` or ``"left"``.
    """

    pad_token_id: int
    pad_token_type_id: int = 0
    padding_side: str = "right"

    @classmethod
    def of(cls, tokenizer: Any) -> Padding:
        """Read the padding off a tokenizer.

        Raises:
            DistillationError: If the tokenizer has no padding token.
        """
        if tokenizer.pad_token_id is None:
            raise DistillationError(
                f"The tokenizer {type(tokenizer).__name__} of {tokenizer.name_or_path!r} has no padding token. "
                "Set one: tokenizer.pad_token = ..."
            )
        return cls(tokenizer.pad_token_id, tokenizer.pad_token_type_id, tokenizer.padding_side)


class EncodedDataset(Dataset):
    """Token ids of all rows in one flat array, with values that go along with each row.

    A row is taken by its number; a list of numbers gives a list of rows, which is what a sampler of whole batches
    asks for.

    Args:
        input_ids: The token ids of all rows, one after the other.
        lengths: The number of tokens of each row, of shape ``(rows,)``.
        token_type_ids: Token types, as `input_ids`; None where the tokenizer has none.
        extras: Further values by name, each an array with one entry (a number or a vector) per row.
        teacher: The same rows in the encoding of a teacher with another tokenizer; a row then also has
            ``teacher_input_ids``.

    Example:
        >>> data = EncodedDataset(np.array([7, 8, 9]), np.array([1, 2]), extras={"labels": np.array([0, 1])})
        >>> data[1]["input_ids"].tolist(), len(data[[0, 1]])
        ([8, 9], 2)
    """

    def __init__(
        self,
        input_ids: np.ndarray,
        lengths: np.ndarray,
        token_type_ids: np.ndarray | None = None,
        extras: Mapping[str, np.ndarray] | None = None,
        teacher: EncodedDataset | None = None,
    ) -> None:
        self.input_ids = input_ids
        self.token_type_ids = token_type_ids
        self.lengths = lengths
        self.extras = dict(extras or {})
        self.teacher = teacher
        self._starts = np.concatenate([[0], np.cumsum(lengths)])

    def __len__(self) -> int:
        return len(self.lengths)

    @overload
    def __getitem__(self, index: int) -> EncodedRow: ...

    @overload
    def __getitem__(self, index: list[int]) -> list[EncodedRow]: ...

    def __getitem__(self, index: int | list[int]) -> EncodedRow | list[EncodedRow]:
        if isinstance(index, list):
            return [self[i] for i in index]
        tokens = slice(self._starts[index], self._starts[index + 1])
        row: EncodedRow = {"input_ids": self.input_ids[tokens]}
        if self.token_type_ids is not None:
            row["token_type_ids"] = self.token_type_ids[tokens]
        if self.teacher is not None:
            row |= {f"{TEACHER}{name}": value for name, value in self.teacher[index].items()}
        return row | {name: values[index] for name, values in self.extras.items()}

    def with_empty_row(self) -> EncodedDataset:
        """Return these rows and one more without a token; there must be no extras."""
        teacher = None if self.teacher is None else self.teacher.with_empty_row()
        return EncodedDataset(self.input_ids, np.append(self.lengths, 0), self.token_type_ids, None, teacher)


def encode(
    tokenizer: Any,
    texts: Sequence[str],
    pairs: Sequence[str] | None = None,
    max_length: int = 128,
    extras: Mapping[str, np.ndarray] | None = None,
    name: str = "text",
) -> EncodedDataset:
    """Tokenise texts once, with a progress bar if it takes longer than a second.

    Args:
        tokenizer: A transformers tokenizer.
        texts: The texts, or the first of each pair.
        pairs: The second of each pair.
        max_length: Tokens kept at most, special tokens included (the longer part of a pair is cut first).
        extras: Values that go along with each row.
        name: What the progress bar says.

    Returns:
        The encoded rows.

    Raises:
        DistillationError: If `max_length` leaves no room beside the special tokens.
    """
    special = tokenizer.num_special_tokens_to_add(pair=pairs is not None)
    if max_length <= special:
        raise DistillationError(f"max_length={max_length} leaves no room: the tokenizer adds {special} special tokens.")
    chunks: list[np.ndarray] = []
    type_chunks: list[np.ndarray] = []
    lengths: list[int] = []
    with tqdm(total=len(texts), desc=f"tokenise {name}", unit=" rows", delay=1, leave=False) as bar:
        for start in range(0, len(texts), CHUNK):
            part = slice(start, start + CHUNK)
            batch = tokenizer(
                list(texts[part]),
                None if pairs is None else list(pairs[part]),
                truncation=True,
                max_length=max_length,
                return_attention_mask=False,
            )
            rows = batch["input_ids"]
            lengths.extend(map(len, rows))
            chunks.append(np.fromiter(itertools.chain.from_iterable(rows), dtype=np.int32))
            if "token_type_ids" in batch:
                types = itertools.chain.from_iterable(batch["token_type_ids"])
                type_chunks.append(np.fromiter(types, dtype=np.int8))
            bar.update(len(rows))
    return EncodedDataset(
        np.concatenate(chunks) if chunks else np.zeros(0, dtype=np.int32),
        np.asarray(lengths, dtype=np.int64),
        np.concatenate(type_chunks) if type_chunks else None,
        extras,
    )


def pad_batch(
    rows: Sequence[EncodedRow], tokenizer: Any, multiple_of: int | None = None, teacher: Any = None
) -> dict[str, Any]:
    """Make a batch of tensors from rows, padded to the longest of them.

    Args:
        rows: Rows of an `EncodedDataset`. A row may hold such rows under names (a query and a document), which are
            padded apart.
        tokenizer: A tokenizer, or the `Padding` of one.
        multiple_of: Round the padded length up to a multiple of this.
        teacher: The teacher's tokenizer or `Padding`, where rows also hold its tokens; they are padded to a length of
            their own.

    Returns:
        ``input_ids`` and ``attention_mask``, int64 of shape ``(batch, sequence)``, ``token_type_ids`` where rows have
        them, both also as ``teacher_...``, and each further value stacked along the batch.

    Example:
        >>> rows = [{"input_ids": np.array([5, 6]), "labels": 1}, {"input_ids": np.array([7]), "labels": 0}]
        >>> batch = pad_batch(rows, Padding(pad_token_id=0))
        >>> batch["input_ids"].tolist(), batch["attention_mask"].tolist(), batch["labels"].tolist()
        ([[5, 6], [7, 0]], [[1, 1], [1, 0]], [1, 0])
    """
    batch: dict[str, Any] = {}
    if "input_ids" in rows[0]:
        batch |= _pad(rows, "", tokenizer, multiple_of)
    if f"{TEACHER}input_ids" in rows[0]:
        batch |= _pad(rows, TEACHER, teacher, multiple_of)
    for name, value in rows[0].items():
        if isinstance(value, dict):
            batch[name] = pad_batch([row[name] for row in rows], tokenizer, multiple_of, teacher)
        elif name not in PADDED:
            batch[name] = torch.from_numpy(np.stack([np.asarray(row[name]) for row in rows]))
    return batch


def _pad(rows: Sequence[EncodedRow], prefix: str, tokenizer: Any, multiple_of: int | None) -> dict[str, torch.Tensor]:
    """Pad the tokens whose names begin with a prefix."""
    ids = [row[f"{prefix}input_ids"] for row in rows]
    longest = max(1, *map(len, ids))  # a model takes no batch without a column
    if multiple_of:
        longest = -(-longest // multiple_of) * multiple_of
    left = tokenizer.padding_side == "left"
    columns = {"input_ids": tokenizer.pad_token_id, "attention_mask": 0}
    if f"{prefix}token_type_ids" in rows[0]:
        columns["token_type_ids"] = tokenizer.pad_token_type_id
    padded = {}
    for name, fill in columns.items():
        values = np.full((len(rows), longest), fill, dtype=np.int64)
        for target, row, tokens in zip(values, rows, ids, strict=True):
            place = slice(longest - len(tokens), longest) if left else slice(0, len(tokens))
            target[place] = 1 if name == "attention_mask" else row[f"{prefix}{name}"]
        padded[f"{prefix}{name}"] = torch.from_numpy(values)
    return padded
