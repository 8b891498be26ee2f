"""Data for masked language modelling: raw text, tokenised once or streamed, and masked anew in every epoch."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from lightning_utilities.core.rank_zero import rank_zero_info, rank_zero_warn
from torch.utils.data import DataLoader
from transformers import PreTrainedTokenizerBase

from lightning_distilbert.data.base import STAGES, TextData
from lightning_distilbert.data.batching import EpochSampler
from lightning_distilbert.data.corpus import (
    Corpus,
    Sequences,
    build_corpus,
    check_sequences,
    is_corpus,
    tokenizer_fingerprint,
)
from lightning_distilbert.data.encoding import EncodedRow, Padding, encode, pad_batch
from lightning_distilbert.data.masking import Masking, check_masking
from lightning_distilbert.data.readers import TABLE_SUFFIXES
from lightning_distilbert.data.resume import ResumableLoader
from lightning_distilbert.data.sources import SPLIT_NAMES, is_hub_name, load_hub, open_splits, split_name
from lightning_distilbert.data.stream import StreamLoader
from lightning_distilbert.data.text_files import (
    KNOWN_SUFFIXES,
    Part,
    Rows,
    chunks,
    is_streamed,
    kind_of_text,
    text_parts,
)
from lightning_distilbert.errors import DistillationError, check_choice

COUNTED_CHUNKS = 32  # of a stream, for the frequencies of tokens: about 8 MiB of text


def default_cache() -> Path:
    """Return where caches of tokens are kept: ``lightning_distilbert`` in the user's folder for caches."""
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "lightning_distilbert" / "text"


class MaskedLMData(TextData):
    """Raw text, masked for `lightning_distilbert.MaskedLM`.

    Batches hold ``input_ids`` (masked), ``attention_mask`` and ``labels`` (the token where one was masked, -100
    elsewhere), int64 of shape ``(batch, sequence)``.

    Text is tokenised once, into a cache that later runs find again; or, streamed, while training goes on. Training rows
    are masked anew in each epoch, by draws that depend on the seed, the epoch and the row alone; see `Masking`. Masks
    for evaluation are uniform and the same for ever, row by row, so that losses compare between epochs, batch sizes and
    numbers of devices.

    Args:
        source: Text files (``.txt``, plain, ``.gz`` or ``.zst``), ``.jsonl`` or ``.parquet`` files; a pattern such as
            ``"books/*.txt.gz"``; a folder, with files named after splits (``train.txt``, ``wiki.train.tokens``,
            ``test-00000-of-00001.parquet``) or without; a list of these; a `datasets` object; rows in memory; a mapping
            from split to any of these; or a hub name. A folder that an earlier run made in its cache is taken as it is.
        text: The column of the text, where there are columns.
        separator: What ends a text in a text file: ``"line"``, or ``"blank_line"``, of which the lines are joined.
        pack: Whether texts that follow each other share a sequence, as long as whole ones fit. Of single lines, only up
            to a blank one.
        min_length: Sequences of fewer tokens are dropped, special ones included.
        max_unknown: Sequences are dropped where this share of tokens or more is unknown.
        mask_share: The share of tokens that are masked.
        smoothing: Tokens are drawn with a probability in proportion to ``count ** -smoothing``; 0 is uniform.
        whole_word: Whether all pieces of a word are masked together.
        validation_share: The share of training sequences, drawn once, that is held out for validation; None has none.
        streaming: Whether training text is tokenised while training goes on, for a corpus too large for a cache. Give
            the Trainer ``max_steps``, since nobody knows the number of batches.
        buffer: Rows that a stream gathers to make batches of, on each device.
        cache_dir: Where caches are kept; None is `default_cache`.
        num_proc: Processes that tokenise into the cache; None leaves it to the tokenizer's own threads.
        tokenizer: A tokenizer, or a folder or hub name of one; None takes the module's.
        batch_size: Rows in a training batch on one device.
        eval_batch_size: Rows in another batch; None: twice `batch_size`.
        max_length: Tokens of a sequence at most; longer texts are cut into several.
        num_workers: Processes that make batches; of a stream, that read and tokenise.
        pad_to_multiple_of: Round padded lengths up; None does not.
        seed: Of the order, the masks and the held-out share.

    Raises:
        DistillationError: If an option, a file or a row is bad.

    Example:
        >>> from transformers import BertTokenizer
        >>> words = BertTokenizer(vocab={"[PAD]": 0, "[UNK]": 1, "[CLS]": 2, "[SEP]": 3, "[MASK]": 4, "good": 5})
        >>> rows = [{"text": "good good good"}]
        >>> data = MaskedLMData(rows, streaming=True, tokenizer=words, min_length=3)
        >>> batch = next(iter(data.train_dataloader()))
        >>> batch["attention_mask"].tolist(), int((batch["labels"] == 5).sum())
        ([[1, 1, 1, 1, 1]], 1)
    """

    def __init__(
        self,
        source: Any,
        text: str = "text",
        separator: Literal["line", "blank_line"] = "line",
        pack: bool = False,
        min_length: int = 12,
        max_unknown: float = 0.5,
        mask_share: float = 0.15,
        smoothing: float = 0.7,
        whole_word: bool = False,
        validation_share: float | None = None,
        streaming: bool = False,
        buffer: int = 8192,
        cache_dir: str | Path | None = None,
        num_proc: int | None = None,
        tokenizer: str | PreTrainedTokenizerBase | None = None,
        batch_size: int = 32,
        eval_batch_size: int | None = None,
        max_length: int = 128,
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
            num_workers=num_workers,
            pad_to_multiple_of=pad_to_multiple_of,
            seed=seed,
        )
        check_choice("MaskedLMData(separator=...)", separator, ("line", "blank_line"))
        if validation_share is not None and not 0.0 < validation_share < 1.0:
            raise DistillationError(f"validation_share={validation_share}: it is a share, 0 < validation_share < 1.")
        if validation_share is not None and streaming:
            raise DistillationError(
                "validation_share cannot be held out of a stream, which nobody has seen to its end. Give the source of "
                "the validation split: {'train': ..., 'validation': ...}."
            )
        check_masking(mask_share, smoothing)
        check_sequences(max_length, min_length, max_unknown)
        if buffer < 1 or (num_proc is not None and num_proc < 1):
            raise DistillationError(f"buffer={buffer} and num_proc={num_proc} have to be 1 or more.")
        self.text = text
        self.separator = separator
        self.pack = pack
        self.min_length = min_length
        self.max_unknown = max_unknown
        self.mask_share = mask_share
        self.smoothing = smoothing
        self.whole_word = whole_word
        self.validation_share = validation_share
        self.streaming = streaming
        self.buffer = buffer
        self.cache_dir = Path(cache_dir) if cache_dir is not None else default_cache()
        self.num_proc = num_proc

    # -- sources -------------------------------------------------------------------------------------------------------

    def prepare_data(self) -> None:
        """Tokenise into the cache what the stage needs; Lightning calls this in one process per node."""
        self._check_module()  # here already: with a large corpus this takes hours
        stage = getattr(getattr(self.trainer, "state", None), "fn", None)
        splits = self.splits()
        wanted = STAGES.get(str(getattr(stage, "value", stage)), tuple(splits))
        wanted = tuple(split for split in wanted if split in splits and split != "predict")
        if wanted:
            self.masking(None)  # it refuses a tokenizer without a mask token
        for split in wanted:
            if not self._streams(split):
                self.corpus(split)

    def find_splits(self) -> dict[str, Any]:
        """Find what there is in `source`, by split."""
        splits = self._find_splits(self.source)
        if self.validation_share is not None:
            if "validation" in splits or "train" not in splits:
                raise DistillationError(
                    f"validation_share={self.validation_share} takes rows of the training split, and there are the "
                    f"splits {list(splits)}. Leave it out, or name a training split alone."
                )
            splits["validation"] = splits["train"]
        return splits

    def _find_splits(self, source: Any) -> dict[str, Any]:
        if is_corpus(source):
            return {"train": source}
        if isinstance(source, (str, Path)):
            folder = Path(source).expanduser()
            if folder.is_dir():
                return _splits_of_folder(folder) or {"train": source}
            # "corpus.txt" could be a name on the hub as well
            if is_hub_name(source) and kind_of_text(folder) not in KNOWN_SUFFIXES:
                return open_splits(load_hub(str(source), self.streaming))
            return {"train": source}
        return open_splits(source)

    def parts(self, split: str) -> list[Part]:
        """Return the parts of a split's text: files, or shards of a data set."""
        return text_parts(self.split_source(split), self.text, self.separator)

    # -- sequences -----------------------------------------------------------------------------------------------------

    def sequences(self) -> Sequences:
        """Return how texts become sequences of tokens."""
        tokenizer, length = self.get_tokenizer(), self.effective_max_length()
        return Sequences(tokenizer, length, self.min_length, self.max_unknown, self.pack)

    def corpus(self, split: str) -> Corpus:
        """Return a split's sequences, tokenised or out of the cache; its `manifest` says what was dropped.

        Args:
            split: ``train``, ``validation`` or ``test``.

        Raises:
            DistillationError: If the text is bad, or a cache given as the source is one of another tokenizer.
        """
        source = self.split_source(split)
        if not is_corpus(source):
            parts = self.parts(split)
            if any(isinstance(part, Rows) and is_streamed(part.rows) for part in parts):
                if split == "train":
                    raise DistillationError("The train split is a streamed data set: pass streaming=True, or load it.")
                # read once: of what a stream holds nobody knows enough to find it in a cache
                rows = [{self.text: text} for part in parts for text in part.texts()]
                self.splits()[split], parts = rows, text_parts(rows, self.text)
            return build_corpus(parts, self.sequences(), self.cache_dir, self.num_proc, split)
        corpus = Corpus(source)
        options = corpus.manifest["options"]
        if options["tokenizer"] != tokenizer_fingerprint(self.get_tokenizer()):
            raise DistillationError(
                f"{source} is a cache of another tokenizer than {type(self.get_tokenizer()).__name__} of "
                f"{self.get_tokenizer().name_or_path!r}. Pass the text itself, to have it tokenised anew."
            )
        if options["max_length"] > self.effective_max_length():
            raise DistillationError(
                f"{source} holds sequences of up to {options['max_length']} tokens, more than "
                f"max_length={self.effective_max_length()}. Pass the text itself, to have it cut anew."
            )
        return corpus

    def encode_split(self, split: str) -> Any:
        """Tokenise one split, or find it in the cache; a stream is only opened."""
        if split == "train" and self.teacher_tokenizer() is not None:
            raise DistillationError(
                "The teacher has another tokenizer than the student, and masked tokens cannot be carried over. Take a "
                "teacher with the student's vocabulary, or a student that is built from this teacher."
            )
        if split == "predict":
            rows = [text for part in self.parts(split) for text in part.texts() if text]
            return encode(self.get_tokenizer(), rows, max_length=self.effective_max_length(), name=split)
        if self._streams(split):
            self.check_teacher_length(np.array([self.effective_max_length()]))
            return _Stream(self.parts(split))
        corpus = self.corpus(split)
        if split == "train":
            self.check_teacher_length(corpus.lengths)
        if self.validation_share is None or split == "test":
            return corpus
        held_out = round(self.validation_share * len(corpus))
        if not 0 < held_out < len(corpus):
            raise DistillationError(
                f"validation_share={self.validation_share} of {len(corpus)} sequences leaves one of the splits empty. "
                "Name another share, or a validation split of its own and validation_share=None."
            )
        order = np.random.default_rng([self.seed, len(corpus)]).permutation(len(corpus))
        return corpus.select(np.sort(order[:held_out] if split == "validation" else order[held_out:]))

    def masking(self, counts: np.ndarray | None) -> Masking:
        """Return the masking, with the frequencies of tokens; None of them draws uniformly."""
        smoothing = self.smoothing if counts is not None else 0.0
        return Masking.of(self.get_tokenizer(), counts, smoothing, self.mask_share, self.whole_word)

    # -- loaders -------------------------------------------------------------------------------------------------------

    def _streams(self, split: str) -> bool:
        return self.streaming and split == "train" and not is_corpus(self.split_source(split))

    def _collate(self, train: bool = False) -> MaskedBatches:
        return self._batches(None)  # a loader of training rows brings the frequencies; see _loader

    def _batches(self, counts: np.ndarray | None) -> MaskedBatches:
        padding = Padding.of(self.get_tokenizer())
        return MaskedBatches(self.masking(counts), padding, self.seed, self.pad_to_multiple_of)

    def _loader(self, dataset: Any, batch_size: int, shuffle: bool) -> Any:
        overfit = bool(getattr(self.trainer, "overfit_batches", 0))
        ranks: dict[str, Any] = getattr(self.trainer, "distributed_sampler_kwargs", None) or {}
        if isinstance(dataset, _Stream):
            if overfit:
                raise DistillationError("overfit_batches needs batches that stay: pass streaming=False.")
            return StreamLoader(
                dataset.parts,
                self.sequences(),
                self._batches(self._count(dataset.parts)),
                batch_size,
                self.buffer,
                self.seed,
                self.num_workers,
                ranks.get("rank", 0),
                ranks.get("num_replicas", 1),
                self.trainer,
            )
        if not shuffle or overfit:
            return super()._loader(dataset, batch_size, shuffle)
        return ResumableLoader(
            _ByEpoch(dataset),
            EpochSampler(dataset.lengths, batch_size, seed=self.seed, **ranks),
            self.trainer,
            collate_fn=self._batches(dataset.counts()),
            num_workers=self.num_workers,
            persistent_workers=self.num_workers > 0,
        )

    def _ordered_loader(self, dataset: Any) -> DataLoader:
        # texts to be filled in bring their own mask tokens
        pad = super()._collate()
        return DataLoader(dataset, batch_size=self.eval_batch_size, collate_fn=pad, num_workers=self.num_workers)

    def _count(self, parts: Sequence[Part]) -> np.ndarray | None:
        """Count the tokens in samples of a stream, the same in each process and each run."""
        if self.smoothing == 0:
            return None
        sequences = self.sequences()
        counts = np.zeros(max(self.get_tokenizer().get_vocab().values()) + 1, dtype=np.int64)
        chosen = np.unique(np.linspace(0, len(parts) - 1, COUNTED_CHUNKS).round().astype(int))
        for part in chosen:
            for texts in islice(chunks(parts[part]), -(-COUNTED_CHUNKS // len(chosen))):
                counts += np.bincount(sequences(texts)["input_ids"], minlength=len(counts))
        return counts


def _splits_of_folder(folder: Path) -> dict[str, list[Path]]:
    """Return the files and folders in a folder that are named after splits, by split; none if no name is."""
    found: dict[str | None, list[Path]] = {}
    for path in sorted(folder.iterdir()):
        if path.is_dir() or kind_of_text(path) in (*KNOWN_SUFFIXES, *TABLE_SUFFIXES):
            # "wiki.train.tokens" and "test-00000-of-00001.parquet" too: taken for no split, test text is trained on
            words = re.split(r"[._-]", path.name)
            found.setdefault(next(filter(None, map(split_name, words)), None), []).append(path)
    others = [path for path in found.pop(None, []) if path.is_file() or _has_text(path)]
    others.sort(key=Path.is_dir)
    if found and others:
        names = f"{others[0].name!r}" + (f" and {len(others) - 1} more" if len(others) > 1 else "")
        if "train" not in found and others[0].is_file():
            raise DistillationError(
                f"{folder} has files that are named after the splits {list(found)}, none named train, and {names}, "
                "named after no split. Say which is which: {'train': ..., 'validation': ...}."
            )
        read = ", ".join(f"{path.name!r} ({split})" for split, paths in found.items() for path in paths[:3])
        # beside train.txt and dev.txt a note is no news; one book of many that is called "the last train" is
        tell = rank_zero_warn if len(others) > sum(map(len, found.values())) else rank_zero_info
        tell(
            f"In {folder} only what is named after a split is read, {read}; {names} is left out. If all of it is text "
            "to train on, pass a pattern such as '*.txt'."
        )
    return {split: found[split] for split in SPLIT_NAMES if split in found}


def _has_text(folder: Path) -> bool:
    return not folder.name.startswith(".") and any(kind_of_text(path) in KNOWN_SUFFIXES for path in folder.rglob("*"))


@dataclass(frozen=True)
class MaskedBatches:
    """Pads rows and masks them. It is cheap to send to a loader's workers.

    Attributes:
        masking: The masking.
        padding: What padding needs of the tokenizer.
        seed: Of the masks.
        multiple_of: Round padded lengths up to a multiple of this.

    Example:
        >>> masking = Masking(4, np.array([0, 0, 0, 0, 0, 1.0]), np.array([5]), share=0.5)
        >>> batches = MaskedBatches(masking, Padding(pad_token_id=0))
        >>> rows = [{"input_ids": np.array([2, 5, 5, 3]), "row": 0}, {"input_ids": np.array([2, 5, 3]), "row": 1}]
        >>> (batches(rows)["labels"] != -100).sum(dim=1).tolist()
        [1, 1]
    """

    masking: Masking
    padding: Padding
    seed: int = 0
    multiple_of: int | None = None

    def __call__(self, given: tuple[int, list[EncodedRow]] | list[EncodedRow]) -> dict[str, Any]:
        """Make a batch.

        Args:
            given: The epoch and the rows, which are masked together by a draw of that epoch; or rows alone, each of
                which is masked by itself and always alike.

        Returns:
            ``input_ids``, ``attention_mask`` and ``labels``.
        """
        epoch, rows = given if isinstance(given, tuple) else (None, given)
        batch = pad_batch([{"input_ids": row["input_ids"]} for row in rows], self.padding, self.multiple_of)
        ids = batch["input_ids"].numpy()
        if epoch is not None:
            masked, labels = self.masking(ids, (0, self.seed, epoch, *(row["row"] for row in rows)))
        else:
            pairs = [self.masking(ids[i : i + 1], (1, self.seed, row["row"])) for i, row in enumerate(rows)]
            masked, labels = (np.concatenate(parts) for parts in zip(*pairs, strict=True))
        return batch | {"input_ids": torch.from_numpy(masked), "labels": torch.from_numpy(labels)}


@dataclass(frozen=True)
class _Stream:
    """A split that is not encoded beforehand."""

    parts: list[Part]


class _ByEpoch:
    """A corpus that is asked for rows together with the epoch, and passes it on."""

    def __init__(self, corpus: Corpus) -> None:
        self.corpus = corpus

    def __len__(self) -> int:
        return len(self.corpus)

    def __getitem__(self, index: tuple[int, list[int]]) -> tuple[int, list[EncodedRow]]:
        epoch, rows = index
        return epoch, self.corpus[rows]
