"""Parallel texts: pairs of a text and its translation, from two files line by line or from rows."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from lightning_utilities.core.rank_zero import rank_zero_warn
from tqdm.auto import tqdm

from lightning_distilbert.data.readers import SUFFIXES, Row, column, describe, texts
from lightning_distilbert.data.sources import SPLIT_NAMES, open_splits, split_name
from lightning_distilbert.data.text_files import COMPRESSED, TEXT_SUFFIXES, TextFile, kind_of_text
from lightning_distilbert.errors import DistillationError

TRANSLATION = "translation"  # the column of data sets of the hub, which holds a dict of texts by language


class Parallel(NamedTuple):
    """Texts and their translations.

    Attributes:
        texts: The texts.
        translations: One for each of them, or None.
    """

    texts: list[str]
    translations: list[str] | None


def open_parallel(source: Any, languages: Sequence[str] | None) -> dict[str, Any]:
    """Find the splits of parallel texts without reading them.

    Args:
        source: As `open_splits` takes it. A split may also be two files, ``["train.en", "train.de"]``; and with
            `languages` a folder may hold such files, and a split be the name that they share, ``"texts/train"``.
        languages: The endings of these files, such as ``("en", "de")``.

    Returns:
        What `open_splits` returns, with a list of two files for a split of such.

    Raises:
        DistillationError: If one of two files is missing, or nothing is found.

    Example:
        >>> open_parallel(["train.en", "train.de"], None)
        {'train': ['train.en', 'train.de']}
    """
    if languages is not None and (isinstance(languages, str) or len(languages) != 2):
        raise DistillationError(f"languages={languages!r}: they are two, such as ['en', 'de'].")
    if languages is None:
        for one in source.values() if isinstance(source, Mapping) else [source]:
            if isinstance(one, (str, Path)):
                _check_named(Path(one).expanduser())
        return open_splits(source)
    if isinstance(source, (str, Path)):
        path = Path(source).expanduser()
        if path.is_dir():
            return _folder(path, languages) or open_splits(source)
        pair = _files(path, languages)
        return {"train": pair} if pair else open_splits(source)
    if isinstance(source, Mapping):
        return open_splits({split: _shared(value, languages) for split, value in source.items()})
    return open_splits(source)


def _check_named(path: Path) -> None:
    """Refuse files that are told apart by their languages alone, where no languages are given."""
    splits = [name for names in SPLIT_NAMES.values() for name in names]
    folder, names = (path, splits) if path.is_dir() else (path.parent, [path.name])
    if path.is_file() or not folder.is_dir():
        return
    files = [file.name for file in folder.iterdir() if file.name.startswith(tuple(f"{name}." for name in names))]
    endings = sorted({kind_of_text(Path(name)) for name in files})
    if len(endings) > 1 and not {*endings} & {"", *SUFFIXES, *TEXT_SUFFIXES}:
        raise DistillationError(
            f"{str(path)!r} stands for files that end in {', '.join(endings)}: name two, first the one that is read, "
            f"such as languages=['{endings[0][1:]}', '{endings[1][1:]}'], or --languages for the commands."
        )


def _shared(value: Any, languages: Sequence[str]) -> Any:
    path = Path(value).expanduser() if isinstance(value, (str, Path)) else None
    return value if path is None or path.is_file() else _files(path, languages) or value


def _files(path: Path, languages: Sequence[str]) -> list[str] | None:
    """Return the two files that share a name, None if neither is there."""
    found = {}
    for language in languages:
        names = [path.with_name(f"{path.name}.{language}{ending}") for ending in ("", *COMPRESSED)]
        found[language] = next((str(name) for name in names if name.is_file()), None)
    files = [name for name in found.values() if name is not None]
    if len(files) == 1:
        missing = next(language for language, name in found.items() if name is None)
        raise DistillationError(
            f"There is {files[0]!r} and no {path!s}.{missing} beside it (nor one that ends in "
            f"{' or '.join(COMPRESSED)}): each text needs its translation."
        )
    return files or None


def _folder(folder: Path, languages: Sequence[str]) -> dict[str, Any]:
    splits: dict[str, Any] = {}
    for names in SPLIT_NAMES.values():
        for name in names:
            pair = _files(folder / name, languages)
            if pair is not None:
                split = str(split_name(name))
                if split in splits:
                    raise DistillationError(f"{folder} has more than one pair of files for {split!r}. Pass a mapping.")
                splits[split] = pair
    return splits


def is_pair_of_files(source: Any) -> bool:
    """Tell whether a split is two files of lines.

    Example:
        >>> is_pair_of_files(["a.en", "a.de"]), is_pair_of_files([{"source": "a"}])
        (True, False)
    """
    paths = isinstance(source, (list, tuple)) and len(source) == 2
    return paths and all(isinstance(name, (str, Path)) for name in source)


def read_files(source: Sequence[str | Path]) -> Parallel:
    """Read two files, of which each line of one is the translation of that line of the other.

    They may be compressed (``.gz``, ``.zst``).

    Args:
        source: The two files.

    Raises:
        DistillationError: If a file is missing or no text, or they have different numbers of lines.
    """
    sides = []
    for name in source:
        path = Path(name).expanduser()
        if not path.is_file():
            raise DistillationError(f"There is no file {str(path)!r} (working folder: {Path.cwd()}).")
        if kind_of_text(path) in (".jsonl", ".json", ".ndjson", ".parquet", ".tsv", ".csv"):
            raise DistillationError(f"{path} is no file of lines: give one file with both columns in its place.")
        lines = tqdm(TextFile(path).texts(), desc=f"read {path.name}", unit=" rows", delay=1, leave=False)
        sides.append(list(lines))
    first, second = sides
    if len(first) != len(second):
        raise DistillationError(
            f"{source[0]} has {len(first)} lines and {source[1]} {len(second)}: line by line they have to be "
            "translations of each other, and from the first line that is missing on all are of other texts. Align them."
        )
    if not first:
        raise DistillationError(f"{source[0]} and {source[1]} hold no lines.")
    return Parallel(first, second)


def read_columns(
    rows: Sequence[Row], names: Sequence[str], languages: Sequence[str] | None, where: str, optional: bool = False
) -> Parallel:
    """Take texts and translations out of rows.

    Args:
        rows: The rows. Without the columns of `names`, ``translation`` may hold a dict of texts by language.
        names: The columns of the text and of the translation.
        languages: The keys of such a dict.
        where: What to call the rows in an error.
        optional: Whether there may be no translations.

    Raises:
        DistillationError: If a column is missing, or holds something else than text.

    Example:
        >>> read_columns([{"translation": {"en": "a", "de": "b"}}], ("source", "target"), ("en", "de"), "here")
        Parallel(texts=['a'], translations=['b'])
    """
    if names[0] not in rows[0] and TRANSLATION in rows[0]:
        if languages is None:
            raise DistillationError(
                f"{where}: the column {TRANSLATION!r} holds texts by language. Say which: languages=['en', 'de']."
            )
        inner = column(rows, TRANSLATION, where) or []
        for number, value in enumerate(inner, start=1):
            if not isinstance(value, Mapping):
                raise DistillationError(f"{where}, row {number}: {TRANSLATION!r} is {str(value)[:60]!r} and no dict.")
        rows, names = [dict(value) for value in inner], languages
    first = texts(rows, names[0], where)
    if optional and not any(names[1] in row for row in rows):
        return Parallel(first, None)
    return Parallel(first, texts(rows, names[1], where))


def without_empty(pairs: Parallel, where: str) -> Parallel:
    """Leave pairs out of which a side is empty, and say how many.

    Args:
        pairs: The pairs, with translations.
        where: What to call them in the warning.

    Raises:
        DistillationError: If none is left.

    Warns:
        UserWarning: If there are any.
    """
    translations = pairs.translations or []
    kept: list[int] = []
    empty: list[int] = []
    for number, (text, translation) in enumerate(zip(pairs.texts, translations, strict=True), start=1):
        (kept if text.strip() and translation.strip() else empty).append(number - 1)
    if not kept:
        raise DistillationError(f"{where}: none of the {len(empty)} pairs has a text on both sides.")
    if empty:
        rank_zero_warn(
            f"{where}: {len(empty)} of {len(pairs.texts)} pairs have an empty side and are left out, the first is "
            f"number {empty[0] + 1}."
        )
    return Parallel([pairs.texts[i] for i in kept], [translations[i] for i in kept])


def name_of(source: Any) -> str:
    """Say in an error where parallel texts come from."""
    return " and ".join(map(str, source)) if is_pair_of_files(source) else describe(source)
