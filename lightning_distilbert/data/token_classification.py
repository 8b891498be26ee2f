"""Data for token classification: sentences of words, each with a tag."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
from lightning_utilities.core.rank_zero import rank_zero_warn
from transformers import PreTrainedTokenizerBase

from lightning_distilbert.data.alignment import BySentence, WordBatches, WordDataset, encode_words
from lightning_distilbert.data.base import TextData
from lightning_distilbert.data.conll import ROW_SUFFIXES, in_columns, read_conll, tagged_splits
from lightning_distilbert.data.encoding import Padding, encode
from lightning_distilbert.data.labels import IGNORED, SINGLE, LabelSet
from lightning_distilbert.data.readers import Row, column, describe, kind_of, read_rows
from lightning_distilbert.data.split_words import split_words
from lightning_distilbert.data.tags import (
    SCHEMES,
    Scheme,
    broken_at,
    detect_scheme,
    entities_of,
    labels_for,
    scheme_of,
    split_tag,
    tags_of,
)
from lightning_distilbert.data.text_files import TEXT_SUFFIXES, kind_of_text
from lightning_distilbert.errors import DistillationError, check_choice, require

Sentence = list[str]
Tags = list[str] | None


class TokenClassificationData(TextData):
    r"""Sentences of words with a tag for each word.

    Batches hold ``input_ids``, ``attention_mask``, ``token_type_ids`` where the tokenizer gives them, and ``labels`` of
    shape ``(batch, sequence)``: at the first sub-word of each word its label, -100 elsewhere and in sentences without
    tags. ``first_subword`` tells where words begin. A sentence longer than `max_length` becomes several rows that
    overlap, and each of its words counts in one of them, so that no entity is lost. A word that the tokenizer drops (a
    control character, say) counts in evaluations as found outside of entities.

    Args:
        source: A folder with ``eng.train``, ``eng.testa`` and ``eng.testb``, or ``train.txt``, ``dev.conll`` and the
            like; a mapping from split to file or to rows; a file; a `datasets` object or a hub name. Files are columns
            (see `lightning_distilbert.data.conll.read_conll`), JSON lines or parquet.
        tokens: The column of the words; in rows, a list of strings. A sentence without tags may also be a text.
        tags: The column of the tags; in rows, a list of names or numbers. None for data without tags, which only
            distillation can learn from.
        labels: The names of the labels: which they are, and which number in the rows stands for which. None takes the
            task's or the teacher's, else those that a `datasets` column brings, else all that the types of the training
            split need.
        scheme: The scheme of the tags: ``"iob1"``, ``"iob2"``, ``"iobes"``, ``"bilou"`` or ``"io"``; ``"auto"`` finds
            the one whose rules are broken least often.
        model_scheme: The scheme that the model learns, into which tags are rewritten. None takes that of the label
            names, IOB2 where these have B and I. A teacher that was trained on IOB1 tags wants ``"iob1"``.
        broken: What to do with tags that break their scheme, such as an ``I-PER`` after ``B-LOC`` in IOB2:
            ``"repair"`` reads them as the CoNLL script does and says how many there are, ``"stop"`` refuses them.
        stride: The tokens that two rows of one sentence share; None is a quarter of what fits.
        tokenizer: A fast tokenizer, or a folder or hub name of one; None takes the module's.
        batch_size: Rows in a training batch on one device.
        eval_batch_size: Rows in another batch; None: twice `batch_size`.
        max_length: Tokens of a row at most; never more than tokenizer and student take.
        columns: The names of a file's columns in order; None names the first ``tokens`` and the last ``tags``.
        delimiter: What stands between columns; None: any blanks and tabs, and one tab in a ``.tsv`` file.
        comments: Lines of columns that begin with this are skipped.
        num_workers: Processes that make batches.
        pad_to_multiple_of: Round padded lengths up; None does not.
        seed: Of the order of training rows.
        unlabelled: Further training sentences without tags, which the teacher alone teaches: a file (columns as above,
            or plain text with a sentence in each line), rows, a list of texts or of lists of words, or another source
            with a training split.

    Raises:
        DistillationError: If an option, a column or a row is bad.

    Example:
        >>> from transformers import BertTokenizer
        >>> vocabulary = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "in", "ro", "##me"]
        >>> tokenizer = BertTokenizer(vocab={token: index for index, token in enumerate(vocabulary)})
        >>> data = TokenClassificationData([{"tokens": ["In", "Rome"], "tags": ["O", "B-LOC"]}], tokenizer=tokenizer)
        >>> batch = next(iter(data.train_dataloader()))
        >>> batch["input_ids"].tolist(), batch["labels"].tolist(), data.label_set.names
        ([[2, 5, 6, 7, 3]], [[-100, 0, 1, -100, -100]], ('O', 'B-LOC', 'I-LOC'))
    """

    def __init__(
        self,
        source: Any,
        tokens: str = "tokens",
        tags: str | None = "tags",
        labels: list[str] | None = None,
        scheme: Literal["auto", "iob1", "iob2", "iobes", "bilou", "io"] = "auto",
        model_scheme: Literal["iob1", "iob2", "iobes", "bilou", "io"] | None = None,
        broken: Literal["repair", "stop"] = "repair",
        stride: int | None = None,
        tokenizer: str | PreTrainedTokenizerBase | None = None,
        batch_size: int = 32,
        eval_batch_size: int | None = None,
        max_length: int = 128,
        columns: list[str] | None = None,
        delimiter: str | None = None,
        comments: str | None = None,
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
            delimiter=delimiter,
            num_workers=num_workers,
            pad_to_multiple_of=pad_to_multiple_of,
            seed=seed,
            unlabelled=unlabelled,
        )
        check_choice("TokenClassificationData(scheme=...)", scheme, ("auto", *SCHEMES))
        check_choice("TokenClassificationData(broken=...)", broken, ("repair", "stop"))
        if model_scheme is not None:
            check_choice("TokenClassificationData(model_scheme=...)", model_scheme, SCHEMES)
        if labels is not None:
            scheme_of(labels)
        if labels is not None and len(set(labels)) < len(labels):
            raise DistillationError(f"labels={labels} names a label twice.")
        self.tokens = tokens
        self.tags = tags
        self.labels = labels
        self.scheme = scheme
        self.model_scheme = model_scheme
        self.broken = broken
        self.stride = stride
        self.comments = comments
        self.label_set: LabelSet | None = None
        self._labels_for: Any = None

    def setup(self, stage: str | None = None) -> None:
        """Settle the labels, then read and tokenise the splits of a stage; see `TextData.setup`."""
        self._check_module()
        module = self.attached_module()
        task = getattr(module, "task", None)
        # the module also knows the names of a student or a teacher
        names = (getattr(module, "labels", None) or getattr(task, "labels", None)) if task is not None else None
        facts = names, getattr(task, "num_labels", None)
        if self.tags is not None and stage != "predict" and (self.label_set is None or facts != self._labels_for):
            self.label_set = self._settle_labels(*facts)
            self._labels_for = facts
        if self.tags is not None and stage != "predict" and any(map(self.has_source, ("validation", "test"))):
            require("seqeval", extra="ner")  # said before training and not after its first epoch
        super().setup(stage)

    def find_splits(self) -> dict[str, Any]:
        """Find what there is in `source`, by split."""
        return tagged_splits(self.source)

    def depends_on(self) -> Any:
        """Return what the encoded rows depend on: the tokenizer and the labels."""
        return super().depends_on(), self.label_set

    def read_split(self, split: str) -> list[Row]:
        """Read a split's rows."""
        return self._read(self.split_source(split))

    def _read(self, source: Any) -> list[Row]:
        if isinstance(source, (str, Path)) and kind_of(Path(source)) not in ROW_SUFFIXES:
            return read_conll(source, self.columns, self.delimiter, self.comments)
        return read_rows(source)

    def encode_split(self, split: str) -> Any:
        """Read and tokenise one split, with its tags as numbers."""
        sentences: list[Sentence] = []
        tags: list[Tags] = []
        if self.has_source(split):
            where = self.where(split)
            sentences, tags = self._sentences(self.read_split(split), where, split)
            self._say_what_lacks(sentences, tags, split, where)
        if split == "train" and self.unlabelled is not None:
            more = self._read_unlabelled()
            sentences, tags = sentences + more, tags + [None] * len(more)
        data = encode_words(self.get_tokenizer(), sentences, self.effective_max_length(), self.stride, split)
        if split == "predict":
            return BySentence(data, sentences)
        if any(row is not None for row in tags):
            data.tags = self._encode_tags(tags, sentences, self.where(split))
        self._count_unseen(data, sentences, split)
        other = self.teacher_tokenizer() if split == "train" else None
        if other is not None:
            places = zip(data.extras["sentence"].tolist(), data.span.tolist(), strict=True)
            texts = [" ".join(sentences[number][first:end]) for number, (first, end) in places]
            data.teacher = encode(other, texts, None, self.teacher_length(other), name=f"{split} for the teacher")
        elif split == "train":
            self.check_teacher_length(data.lengths)
        return data

    # -- rows ----------------------------------------------------------------------------------------------------------

    def _sentences(self, rows: Sequence[Row], where: str, split: str) -> tuple[list[Sentence], list[Tags]]:
        """Return the words and the tags of rows, with names in the place of numbers."""
        words = column(rows, self.tokens, where) or []
        tags: list[Any] = [None] * len(rows)
        if self.tags is not None:
            tags = column(rows, self.tags, where, optional=split == "predict") or tags
        sentences = [
            self._words(found, number, where, text_too=tag is None or split == "predict")
            for number, (found, tag) in enumerate(zip(words, tags, strict=True), 1)
        ]
        names = self._class_names(split) or self.labels or (self.label_set.names if self.label_set else None)
        named: list[Tags] = [
            None if tag is None or split == "predict" else self._named(tag, sentence, names, f"{where}, row {number}")
            for number, (tag, sentence) in enumerate(zip(tags, sentences, strict=True), 1)
        ]
        return sentences, named

    def _words(self, value: Any, number: int, where: str, text_too: bool) -> Sentence:
        if isinstance(value, str) and text_too:
            return [value[slice(*span)] for span in split_words(value)]
        if isinstance(value, (list, tuple)) and all(isinstance(word, str) for word in value):
            return list(value)
        raise DistillationError(
            f"{where}, row {number}: {self.tokens!r} is {str(value)[:60]!r}, a {type(value).__name__} and not the list "
            "of a sentence's words, which are strings. Mend or drop that row."
        )

    def _named(self, tags: Any, words: Sentence, names: Sequence[str] | None, where: str) -> list[str]:
        if not isinstance(tags, (list, tuple)) or len(tags) != len(words):
            found = f"{len(tags)} tags" if isinstance(tags, (list, tuple)) else f"{str(tags)[:60]!r} as tags"
            raise DistillationError(
                f"{where}: {found} for {len(words)} words. Each word needs one; a sentence without tags has null."
            )
        found_names = []
        for place, tag in enumerate(tags):
            if isinstance(tag, int) and not isinstance(tag, bool) and names and 0 <= tag < len(names):
                tag = names[tag]
            elif isinstance(tag, int):
                known = f"the {len(names)} known are {list(names)[:20]}" if names else "their names are not known"
                raise DistillationError(
                    f"{where}, word {place} ({words[place]!r}): the tag {tag} is a number, and {known}. Name the "
                    "labels in the order of their numbers: labels=['O', 'B-PER', ...]."
                )
            try:
                split_tag(tag if isinstance(tag, str) else str(tag))
            except DistillationError as error:
                raise DistillationError(f"{where}, word {place} ({words[place]!r}): {error}") from None
            found_names.append(tag)
        return found_names

    def _read_unlabelled(self) -> list[Sentence]:
        source = self.unlabelled
        listed = isinstance(source, Sequence) and not isinstance(source, str) and len(source) > 0
        if listed and isinstance(source[0], (str, list, tuple)):
            source = [{self.tokens: words} for words in source]
        splits = tagged_splits(source)
        if "train" not in splits:
            raise DistillationError(
                f"unlabelled: {describe(source)} has only the splits {list(splits)}. Name the file or pass the rows "
                "that are meant."
            )
        file = splits["train"]
        path = Path(file).expanduser() if isinstance(file, (str, Path)) else Path()
        named = self.columns is not None or self.delimiter is not None
        if named or kind_of_text(path) not in TEXT_SUFFIXES or (path.suffix != ".zst" and in_columns(path)):
            rows = self._read(file)
        else:
            rows = self._read_lines(path, [self.tokens])
        found = column(rows, self.tokens, "unlabelled") or []
        return [self._words(words, number, "unlabelled", text_too=True) for number, words in enumerate(found, 1)]

    def _say_what_lacks(self, sentences: list[Sentence], tags: list[Tags], split: str, where: str) -> None:
        empty = [number for number, words in enumerate(sentences, 1) if not words]
        if empty:
            rank_zero_warn(f"{where}: {len(empty)} sentences have no word, the first is row {empty[0]}.")
        missing = sum(tag is None for tag in tags)
        if missing and self.tags is not None and split != "predict":
            use = "count for distillation and not for the task" if split == "train" else "do not count in the metrics"
            rank_zero_warn(f"{where}: {missing} of {len(tags)} sentences have no tags; they {use}.")

    def _count_unseen(self, data: WordDataset, sentences: list[Sentence], split: str) -> None:
        if len(data.unseen) and any(map(self.has_source, (split,))):
            words = [word for sentence in sentences for word in sentence]
            rank_zero_warn(
                f"{self.where(split)}: {len(data.unseen)} words are nothing to the tokenizer, the first is "
                f"{words[data.unseen[0]]!r}. They teach nothing, and in evaluations they count as outside of entities."
            )

    # -- tags ----------------------------------------------------------------------------------------------------------

    def _encode_tags(self, tags: list[Tags], sentences: list[Sentence], where: str) -> np.ndarray:
        """Rewrite tags in the scheme that the model learns, as the numbers of its labels."""
        names = (self.label_set.names if self.label_set else None) or ()
        given = [row for row in tags if row is not None]
        scheme: Scheme = detect_scheme(given) if self.scheme == "auto" else self.scheme
        self._check_broken(tags, sentences, scheme, where)
        target = self._target(names)
        # upper and lower case only count where the names differ in nothing else
        numbers = {name: number for number, name in enumerate(names)}
        index = {name.casefold(): number for name, number in numbers.items()} | numbers
        rows = []
        for number, (row, words) in enumerate(zip(tags, sentences, strict=True), 1):
            if row is None:
                rows.append(np.full(len(words), IGNORED))
                continue
            written = tags_of(entities_of(row), len(row), target)
            found = [index.get(tag, index.get(tag.casefold(), IGNORED)) for tag in written]
            if IGNORED in found:
                place = found.index(IGNORED)
                raise DistillationError(
                    f"{where}, row {number}, word {place} ({words[place]!r}): the tag {written[place]!r} is not one of "
                    f"the {len(names)} labels {list(names)}. Mend the row, or name all labels: labels=[...]."
                )
            rows.append(np.array(found, dtype=np.int64))
        return np.concatenate(rows)

    def _check_broken(self, tags: list[Tags], sentences: list[Sentence], scheme: Scheme, where: str) -> None:
        broken = [(number, places) for number, row in enumerate(tags) if row and (places := broken_at(row, scheme))]
        if not broken:
            return
        number, places = broken[0]
        row, place = tags[number] or [], places[0]
        before = f"after {row[place - 1]}" if place else "at the beginning"
        said = (
            f"{where}: {sum(len(places) for _, places in broken)} tags in {len(broken)} sentences break the rules of "
            f"{scheme.upper()}, the first is {row[place]} {before} in row {number + 1} (the word "
            f"{sentences[number][place]!r})."
        )
        if self.broken == "stop":
            raise DistillationError(f"{said} Mend them, name another scheme, or set broken='repair'.")
        rank_zero_warn(f"{said} They are read as by conlleval: an entity begins where a tag does not go on with one.")

    def _target(self, names: Sequence[str]) -> Scheme:
        written = scheme_of(names)
        if self.model_scheme is None:
            return written
        alike = {self.model_scheme, written} <= {"iob1", "iob2"}
        if self.model_scheme != written and not alike:
            raise DistillationError(
                f"model_scheme={self.model_scheme!r} cannot be written with the labels {list(names)}, which are those "
                f"of {written.upper()}."
            )
        return self.model_scheme

    def _settle_labels(self, known: Sequence[str] | None, number: int | None) -> LabelSet:
        ours, theirs = (sorted(map(str.casefold, names or ())) for names in (self.labels, known))
        if ours and theirs and ours != theirs:
            raise DistillationError(
                f"The data's labels {self.labels} are not those of the task or its teacher: {list(known or ())}. Leave "
                "labels out of the data, or use the same names (in any order)."
            )
        # tags are known by their names, so that the data may have them in another order
        names = known or self.labels or next(filter(None, map(self._class_names, self.splits())), None)
        if not names:
            names = self._derived()
            self.check_named(names)
        scheme_of(names)
        if number is not None and len(names) != number:
            raise DistillationError(
                f"The data has {len(names)} labels, {list(names)}, and the task has num_labels={number}. Name all "
                "labels in the task: TokenClassification(labels=[...])."
            )
        return LabelSet(SINGLE, tuple(names), len(names))

    def _derived(self) -> list[str]:
        """Return the labels that the types of the first split with tags need."""
        for split in self.splits():
            rows = self.read_split(split)
            if self.tags is None or not any(row.get(self.tags) is not None for row in rows):
                continue
            _, tags = self._sentences(rows, self.where(split), "train" if split == "predict" else split)
            kinds = {entity.type for row in tags for entity in entities_of(row or ())}
            if kinds:
                return labels_for(kinds, self.model_scheme or "iob2")
        raise DistillationError(
            f"{describe(self.source)} has no tag of an entity in a column {self.tags!r}, so that the labels are not "
            "known. Name that column (tags=...), or the labels (labels=[...]); tags=None is for data without any."
        )

    def _class_names(self, split: str) -> list[str] | None:
        """Return the label names that a column of the `datasets` library brings."""
        features = getattr(self.split_source(split), "features", None) or {}
        feature = features.get(self.tags)
        return getattr(getattr(feature, "feature", feature), "names", None)

    # -- loaders -------------------------------------------------------------------------------------------------------

    def _collate(self, train: bool = False) -> WordBatches:
        other = self.teacher_tokenizer() if train else None
        return WordBatches(
            Padding.of(self.get_tokenizer()), self.pad_to_multiple_of, None if other is None else Padding.of(other)
        )
