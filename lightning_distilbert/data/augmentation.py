"""More text for a teacher to label: rows with varied texts, in memory and in files."""

from __future__ import annotations

import hashlib
import inspect
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from tqdm.auto import tqdm
from transformers import PreTrainedModel

from lightning_distilbert.data.base import as_list
from lightning_distilbert.data.masked_words import MaskedWords
from lightning_distilbert.data.readers import Row, column, describe, read_rows, texts
from lightning_distilbert.data.words import CorpusWords, WordAugmenter
from lightning_distilbert.data.writers import check_output, write_rows
from lightning_distilbert.errors import DistillationError, check_choice

ROWS = 1024  # rows that are worked on together: what is held in memory


def augment_rows(
    rows: Sequence[Mapping[str, Any]],
    augmenter: WordAugmenter,
    text: str | Sequence[str] = "text",
    label: str | None = "label",
    keep_labels: bool = False,
    with_source: bool = False,
    where: str = "The data",
) -> Iterator[Row]:
    """Make new rows from rows, without duplicates.

    Of a pair each side is varied while the other stays as it is, so that there are up to ``2 n`` rows. A new row has
    the columns of the text and the label, and no others.

    Args:
        rows: The rows.
        augmenter: What varies a text.
        text: The column of the text, or the two columns of a pair.
        label: The column of the label; None for rows without one.
        keep_labels: Whether a new row has the label of its source. False gives it None, which leaves it to the teacher:
            a replaced word may well change what the label should be.
        with_source: Whether each row itself comes before its variants, with its label.
        where: What to call the rows in an error.

    Yields:
        The new rows.

    Raises:
        DistillationError: If a column is missing, a text is no string, or there is no word that may change.

    Example:
        >>> augmenter = CorpusWords(["great film"], n=9, operations=["swap"])
        >>> list(augment_rows([{"text": "great film", "label": 1}], augmenter))
        [{'text': 'film great', 'label': None}]
    """
    names = _names(text)
    if keep_labels and label is None:
        raise DistillationError("keep_labels=True needs the column of the label, and label is None.")
    sides = [texts(rows, name, where) for name in names]
    labels = column(rows, label, where, optional=not keep_labels) if label is not None else None
    pairs = list(zip(*sides, strict=True))
    seen = {_key(pair) for pair in pairs}
    given: set[bytes] = set()
    made = 0
    with tqdm(total=len(pairs), desc="augment", unit=" rows", delay=1, leave=False) as bar:
        for start in range(0, len(pairs), ROWS):
            numbers = range(start, min(start + ROWS, len(pairs)))
            keys = [(number, side) for number in numbers for side in range(len(names))]
            variants = iter(augmenter.variants([pairs[number][side] for number, side in keys], keys))
            for number in numbers:
                pair = pairs[number]
                own = labels[number] if labels is not None else None
                if with_source and _is_new(pair, given):
                    yield _row(names, pair, label, own)
                for side in range(len(names)):
                    for variant in next(variants):
                        new = (*pair[:side], variant, *pair[side + 1 :])
                        if _is_new(new, seen):
                            made += 1
                            yield _row(names, new, label, own if keep_labels else None)
                bar.update()
    if not made:
        raise DistillationError(
            f"{where} gave no new row: no variant differs from the rows that there are. Stop words, numbers and "
            f"punctuation never change; raise n (here {augmenter.n}) or p (here {augmenter.p})."
        )


def augment_file(
    source: Any,
    output: str | Path,
    text: str | Sequence[str] = "text",
    label: str | None = "label",
    method: str = "mlm",
    model: str | Path | PreTrainedModel | None = None,
    keep_labels: bool = False,
    with_source: bool = False,
    columns: Sequence[str] | None = None,
    header: bool | None = None,
    delimiter: str | None = None,
    overwrite: bool = False,
    **options: Any,
) -> tuple[int, int]:
    """Read rows, vary their texts, and write the new rows as JSON lines.

    Args:
        source: A file, or rows in memory; see `read_rows`.
        output: The file of the new rows.
        text: The column of the text, or the two columns of a pair.
        label: The column of the label; None for rows without one.
        method: ``"mlm"`` takes `MaskedWords`, ``"words"`` `CorpusWords` with the texts themselves as the corpus.
        model: The masked language model of ``"mlm"``.
        keep_labels: Whether a new row has the label of its source.
        with_source: Whether each row itself is written too, with its label.
        columns: Column names, for TSV and CSV files without a header.
        header: Whether TSV and CSV files have a header; None: unless `columns` are given.
        delimiter: The separator of text tables; None takes it from the suffix.
        overwrite: Whether an output that is there may be replaced.
        options: Those of the method's class.

    Returns:
        How many rows were read, and how many written.

    Raises:
        DistillationError: If the file, a column or an option is bad.

    Example:
        >>> import tempfile
        >>> path = Path(tempfile.mkdtemp()) / "new.jsonl"
        >>> augment_file([{"text": "great film"}], path, method="words", operations=["swap"], n=9)
        (1, 1)
    """
    check_choice("augment(method=...)", method, ("mlm", "words"))
    path = check_output(output, overwrite, source=source)
    where = describe(source)
    known = options_of(method)
    unknown = [name for name in options if name not in known]
    if unknown:
        raise DistillationError(f"method={method!r} has no option {unknown[0]!r}. It has {', '.join(known)}.")
    if method == "words" and model is not None:
        raise DistillationError(f"model={str(model)!r}: method='words' uses no model. Leave it out.")
    if method == "mlm" and model is None:
        raise DistillationError(
            "method='mlm' needs a model: the folder or hub name of a masked language model, such as bert-base-uncased. "
            "method='words' needs none."
        )
    rows = read_rows(source, columns, header, delimiter)
    corpus = [value for name in _names(text) for value in texts(rows, name, where)]
    augmenter = CorpusWords(corpus, **options) if model is None else MaskedWords(model, **options)
    return len(rows), write_rows(augment_rows(rows, augmenter, text, label, keep_labels, with_source, where), path)


def options_of(method: str) -> dict[str, Any]:
    """Return the options of a method with their defaults.

    Example:
        >>> options_of("words")["p"]
        0.4
    """
    parameters = inspect.signature(MaskedWords if method == "mlm" else CorpusWords).parameters.values()
    return {one.name: one.default for one in parameters if one.name not in ("model", "corpus")}


def _names(text: str | Sequence[str]) -> list[str]:
    names = as_list(text)
    if len(names) not in (1, 2):
        raise DistillationError(f"text={text!r}: it is one column, or the two columns of a pair.")
    return names


def _key(pair: tuple[str, ...]) -> bytes:
    # millions of rows: sixteen bytes each, and not their text
    return hashlib.blake2b(json.dumps(pair).encode(), digest_size=16).digest()


def _is_new(pair: tuple[str, ...], seen: set[bytes]) -> bool:
    key, before = _key(pair), len(seen)
    seen.add(key)
    return len(seen) > before


def _row(names: Sequence[str], pair: tuple[str, ...], label: str | None, value: Any) -> Row:
    return dict(zip(names, pair, strict=True)) | ({label: value} if label is not None else {})
