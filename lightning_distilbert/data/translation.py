"""Data for translation: parallel texts, each side with its own tokenizer."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from lightning_utilities.core.rank_zero import rank_zero_warn
from torch.utils.data import Dataset
from transformers import PreTrainedTokenizerBase

from lightning_distilbert.data.base import TextData, _vocabulary
from lightning_distilbert.data.encoding import EncodedDataset, encode
from lightning_distilbert.data.parallel import (
    Parallel,
    is_pair_of_files,
    name_of,
    open_parallel,
    read_columns,
    read_files,
    without_empty,
)
from lightning_distilbert.errors import DistillationError
from lightning_distilbert.target_tokenizer import (
    decoder_config,
    load_target_tokenizer,
    set_target_tokenizer,
    shift_right,
    start_token,
    target_positions,
    target_tokenizer,
    train_target_tokenizer,
)

IGNORED = -100


class ParallelDataset(Dataset):
    """Encoded texts with their translations.

    Args:
        texts: The encoded texts.
        translations: The encoded translations, ends included; None if there are none.
        references: The translations as they were written, for the scores; None for training.
    """

    def __init__(
        self, texts: EncodedDataset, translations: EncodedDataset | None, references: Sequence[str] | None = None
    ) -> None:
        self.texts, self.translations, self.references = texts, translations, references
        self.lengths = texts.lengths if translations is None else texts.lengths + translations.lengths

    def __len__(self) -> int:
        return len(self.texts)

    def __getitem__(self, index: int | list[int]) -> Any:
        if isinstance(index, list):
            return [self[i] for i in index]
        row: dict[str, Any] = {"text": self.texts[index]}
        if self.translations is not None:
            row["labels"] = self.translations[index]["input_ids"]
        if self.references is not None:
            row["reference"] = self.references[index]
        return row


@dataclass(frozen=True)
class ParallelBatches:
    """Makes batches of the rows of a `ParallelDataset`. It is cheap to send to a loader's workers.

    Attributes:
        pad: What pads rows of tokens.
        start: The token that a translation begins with; None where the model is to say it.
        pad_token_id: The token of padding in ``decoder_input_ids``.
        multiple_of: Round padded lengths up to a multiple of this.
    """

    pad: Callable[[list[Any]], dict[str, Any]]
    start: int | None
    pad_token_id: int
    multiple_of: int | None = None

    def __call__(self, rows: list[dict[str, Any]]) -> dict[str, Any]:
        """Make a batch.

        Args:
            rows: The rows.
        """
        batch = self.pad([row["text"] for row in rows])
        if "labels" in rows[0]:
            longest = max(len(row["labels"]) for row in rows)
            if self.multiple_of:
                longest = -(-longest // self.multiple_of) * self.multiple_of
            labels = np.full((len(rows), longest), IGNORED, dtype=np.int64)
            for target, row in zip(labels, rows, strict=True):
                target[: len(row["labels"])] = row["labels"]
            batch["labels"] = torch.from_numpy(labels)
            if self.start is not None:
                batch["decoder_input_ids"] = shift_right(batch["labels"], self.start, self.pad_token_id)
        if "reference" in rows[0]:
            batch["reference"] = [row["reference"] for row in rows]
        return batch


class TranslationData(TextData):
    """Texts and their translations.

    A batch holds ``input_ids`` and ``attention_mask`` of the texts, ``labels`` of the translations, their end token
    included and -100 after it, and ``decoder_input_ids``, the same one place later behind the token that the student's
    decoder begins with, both of shape ``(batch, tokens)``. Evaluation batches also hold the ``reference`` texts.

    Translations have a tokenizer of their own: the student's, if it brings one, or else one that is trained on the
    translations of the training split, with as many tokens as the student's decoder can write.

    Pairs with an empty side are left out, and so are training pairs of which a side is too long: cut, they would no
    longer be translations of each other. Each time the number is said.

    Args:
        source: A folder, file, mapping, rows or data set as in `lightning_distilbert.data.open_splits`. A split may
            also be two files of lines, ``["train.en.gz", "train.de.gz"]``.
        text: The column of the text, for rows.
        target: The column of the translation, for rows.
        languages: Two endings, such as ``["en", "de"]``: `source` may then be a folder with ``train.en``,
            ``train.de``, ``val.en`` and so on, a split may be the name that two files share, and rows may hold a
            ``translation`` with a text for each, as data sets of the hub do. Files may end in ``.gz`` or ``.zst``.
        target_tokenizer: The tokenizer of the translations, or a folder of one; None takes the module's.
        tokenizer: A tokenizer, or a folder or hub name of one; None takes the module's.
        batch_size: Pairs in a training batch on one device.
        eval_batch_size: Pairs in another batch; None: twice `batch_size`.
        max_length: Tokens of a text at most.
        max_target_length: Tokens of a translation at most, its end included; None is what the decoder has positions
            for.
        columns: Column names, for TSV and CSV files without a header.
        header: Whether TSV and CSV files have a header; None: unless `columns` are given.
        delimiter: The separator of text tables; None takes it from the suffix.
        num_workers: Processes that make batches.
        pad_to_multiple_of: Round padded lengths up; None does not.
        seed: Of the order of training rows.

    Raises:
        DistillationError: If an option, a file or a row is bad, two files have different numbers of lines, or no pair
            is left.

    Example:
        >>> from transformers import BertTokenizer
        >>> words = BertTokenizer(vocab={t: i for i, t in enumerate(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "a", "dog"])})
        >>> german = train_target_tokenizer(["ein Hund"], vocab_size=30)
        >>> rows = [{"source": "a dog", "target": "ein Hund"}]
        >>> data = TranslationData({"train": rows}, tokenizer=words, target_tokenizer=german)
        >>> batch = next(iter(data.train_dataloader()))
        >>> batch["input_ids"].tolist(), german.decode(batch["labels"][0])
        ([[2, 4, 5, 3]], 'ein Hund</s>')
    """

    def __init__(
        self,
        source: Any,
        text: str = "source",
        target: str = "target",
        languages: list[str] | None = None,
        target_tokenizer: str | PreTrainedTokenizerBase | None = None,
        tokenizer: str | PreTrainedTokenizerBase | None = None,
        batch_size: int = 64,
        eval_batch_size: int | None = None,
        max_length: int = 128,
        max_target_length: int | None = None,
        columns: list[str] | None = None,
        header: bool | None = None,
        delimiter: str | None = None,
        num_workers: int = 0,
        pad_to_multiple_of: int | None = None,
        seed: int = 0,
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
        )
        if max_target_length is not None and max_target_length < 2:
            raise DistillationError(f"max_target_length={max_target_length}: a token and the end are 2.")
        self.text = text
        self.target = target
        self.languages = languages
        self.target_tokenizer = target_tokenizer
        self.max_target_length = max_target_length
        self._read: tuple[str, Parallel] | None = None  # what the tokenizer was trained on, to be encoded next

    def find_splits(self) -> dict[str, Any]:
        """Find what there is in `source`, by split."""
        return open_parallel(self.source, self.languages)

    def where(self, split: str) -> str:
        """Say in an error which pairs are meant."""
        source = self.split_source(split)
        return name_of(source) if isinstance(source, (str, Path)) or is_pair_of_files(source) else super().where(split)

    def setup(self, stage: str | None = None) -> None:
        """Train the target tokenizer if there is none, then read and tokenise the splits of a stage.

        Args:
            stage: As in `TextData.setup`.

        Raises:
            DistillationError: As there, or if the decoder is too short, or there is no target tokenizer.
        """
        self._check_module()
        if self.get_target_tokenizer() is None and stage in ("fit", None) and self.has_source("train"):
            self._train_tokenizer()
        super().setup(stage)
        self._read = None

    def get_target_tokenizer(self) -> Any:
        """Return the tokenizer of the translations, None where there is none yet.

        Raises:
            DistillationError: If the data has another one than the module.
        """
        module = self.attached_module()
        theirs = None if module is None or not hasattr(module, "student") else target_tokenizer(module)
        if self.target_tokenizer is None:
            return theirs
        if isinstance(self.target_tokenizer, (str, Path)):
            self.target_tokenizer = load_target_tokenizer(self.target_tokenizer)
        own = self.target_tokenizer
        if theirs is not None and theirs.get_vocab() != own.get_vocab():
            raise DistillationError(
                f"The data has a target tokenizer of its own, of {len(own)} tokens, and the student one of "
                f"{len(theirs)} with other ids. Leave target_tokenizer out of the data."
            )
        if theirs is None and hasattr(module, "student"):
            set_target_tokenizer(module, own)
        return own

    def _train_tokenizer(self) -> None:
        module = self.attached_module()
        config = getattr(getattr(module, "student", None), "config", None)
        if config is None:
            raise DistillationError(
                "TranslationData has no target tokenizer, and no module with a student is attached for which to train "
                "one. Pass target_tokenizer=..., such as train_target_tokenizer(texts) gives."
            )
        pairs = self._pairs("train")
        size, longest = decoder_config(config).vocab_size, target_positions(config)
        set_target_tokenizer(module, train_target_tokenizer(pairs.translations or [], size, longest))
        self._read = "train", pairs

    def depends_on(self) -> Any:
        """Return what the encoded rows depend on beside `source`."""
        target = self.get_target_tokenizer()
        return super().depends_on(), None if target is None else (_vocabulary(target), self._longest_target())

    def _longest_target(self) -> int:
        """Return how many tokens of a translation there may be.

        Raises:
            DistillationError: If more are asked for than the decoder has positions for.
        """
        config = getattr(getattr(self.attached_module(), "student", None), "config", None)
        limit = int(self.get_target_tokenizer().model_max_length) if config is None else target_positions(config)
        if self.max_target_length is not None and self.max_target_length > limit:
            raise DistillationError(
                f"max_target_length={self.max_target_length}, and the decoder has positions for {limit} tokens. Build "
                "it with more, TranslationStudent(max_target_positions=...), or lower this."
            )
        return min(self.max_target_length or limit, 2**20)

    def _pairs(self, split: str) -> Parallel:
        if self._read is not None and self._read[0] == split:
            return self._read[1]
        source, where = self.split_source(split), self.where(split)
        if is_pair_of_files(source):
            pairs = read_files(source)
        else:
            names = (self.text, self.target)
            pairs = read_columns(self.read_split(split), names, self.languages, where, optional=split == "predict")
        # a prediction is made of every text
        return pairs if split == "predict" else without_empty(pairs, where)

    def encode_split(self, split: str) -> ParallelDataset:
        """Read and tokenise one split."""
        pairs = self._pairs(split)
        if split == "predict":
            return ParallelDataset(self.encode_texts(pairs.texts, None, None, split), None)
        target = self.get_target_tokenizer()
        if target is None:
            raise DistillationError(
                f"There is no target tokenizer to read the translations of the {split} split with: it is trained on "
                "the training split, in a fit. Load a saved student, or pass target_tokenizer=..."
            )
        references = pairs.translations or []
        train, longest = split == "train", self._longest_target()
        # of training pairs one token more tells which are too long
        translations = encode(_Target(target), references, None, longest + train, name=f"{split} translations")
        if not train:
            return ParallelDataset(self.encode_texts(pairs.texts, None, None, split), translations, references)
        limit, other = self.effective_max_length(), self.teacher_tokenizer()
        texts = encode(self.get_tokenizer(), pairs.texts, None, limit + 1, name=split)
        kept = (texts.lengths <= limit) & (translations.lengths <= longest)
        if other is not None:
            theirs = self.teacher_length(other)
            texts.teacher = encode(other, pairs.texts, None, theirs + 1, name=f"{split} for the teacher")
            kept &= texts.teacher.lengths <= theirs
        self._tell(kept, int((translations.lengths > longest).sum()), longest, limit)
        self.check_teacher_length(texts.lengths[kept])
        self._check_teacher_decoder(int(translations.lengths[kept].max()))
        return ParallelDataset(rows_of(texts, kept), rows_of(translations, kept))

    def _check_teacher_decoder(self, longest: int) -> None:
        if (teacher := self._teacher()) is not None and longest > (limit := target_positions(teacher.config)):
            raise DistillationError(
                f"A translation has {longest} tokens, and the teacher's decoder has positions for {limit}. Set "
                f"max_target_length={limit} in the data, to leave longer ones out."
            )

    def _tell(self, kept: np.ndarray, long: int, longest: int, limit: int) -> None:
        where, left = self.where("train"), int((~kept).sum())
        message = (
            f"{where}: {left} of {len(kept)} pairs are too long and left out: {long} translations have more than "
            f"{longest} tokens, the other texts more than {limit}. The first is number {int((~kept).argmax()) + 1}."
        )
        if not kept.any():
            raise DistillationError(f"{message} None is left: raise max_target_positions of the student or max_length.")
        if left:
            rank_zero_warn(message)

    def _collate(self, train: bool = False) -> Any:
        config = getattr(getattr(self.attached_module(), "student", None), "config", None)
        target = self.get_target_tokenizer()
        start, pad = None, 0 if target is None else target.pad_token_id
        if config is not None:
            start, pad = start_token(config), config.pad_token_id
        elif target is not None:
            start = target.bos_token_id
        return ParallelBatches(super()._collate(train), start, pad, self.pad_to_multiple_of)


class _Target:
    """A tokenizer that reads all texts as translations, which Marian's asks for by another argument."""

    def __init__(self, tokenizer: Any) -> None:
        self.tokenizer = tokenizer

    def num_special_tokens_to_add(self, pair: bool = False) -> int:
        return int(self.tokenizer.num_special_tokens_to_add(pair=pair))

    def __call__(self, texts: list[str], pairs: None = None, **options: Any) -> Any:
        return self.tokenizer(text_target=texts, **options)


def rows_of(data: EncodedDataset, kept: np.ndarray) -> EncodedDataset:
    """Return some rows of an encoded data set.

    Args:
        data: The rows.
        kept: Boolean, of shape ``(rows,)``.

    Example:
        >>> data = EncodedDataset(np.array([7, 8, 9]), np.array([1, 2]))
        >>> rows_of(data, np.array([False, True])).input_ids.tolist()
        [8, 9]
    """
    if kept.all():
        return data
    tokens = np.repeat(kept, data.lengths)
    types = None if data.token_type_ids is None else data.token_type_ids[tokens]
    extras = {name: values[kept] for name, values in data.extras.items()}
    teacher = None if data.teacher is None else rows_of(data.teacher, kept)
    return EncodedDataset(data.input_ids[tokens], data.lengths[kept], types, extras, teacher)
