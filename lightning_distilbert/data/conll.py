"""Words in columns, one word a line and a blank line after each sentence: the CoNLL format."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from tqdm.auto import tqdm

from lightning_distilbert.data.readers import JSON_SUFFIXES, Row, kind_of, open_text
from lightning_distilbert.data.sources import SPLIT_NAMES, one_file_each, open_splits, split_name
from lightning_distilbert.data.tags import OUTSIDE, TAG
from lightning_distilbert.errors import DistillationError

ROW_SUFFIXES = (*JSON_SUFFIXES, ".parquet")
# the two files of evaluation in the shared tasks have names of their own
SHARED_TASK = {"testa": "validation", "testb": "test"}
COLUMN_SUFFIXES = (".txt", ".conll", ".iob", ".iob2", ".bio", ".tsv", ".data", ".conllu")
DOCUMENT = "-DOCSTART-"
# white space of other kinds may be a word of a sentence, and so may a control character
SPACE = " \t\r\n"


def read_conll(
    path: str | Path,
    columns: Sequence[str] | None = None,
    delimiter: str | None = None,
    comments: str | None = None,
) -> list[Row]:
    r"""Read the sentences of a file in columns.

    Lines of documents (``-DOCSTART-``) belong to no sentence and end one, as blank lines do; any number of these stands
    between two sentences. Files are UTF-8 and may be gzipped.

    Args:
        path: The file.
        columns: The names of its columns in order; one of an empty name is dropped. None names the first ``tokens`` and
            the last ``tags``, of two columns or more.
        delimiter: What stands between columns; None is any number of blanks and tabs, and one tab in a ``.tsv`` file.
        comments: Lines that begin with this are skipped.

    Returns:
        One dict per sentence: under each column's name the list of its fields.

    Raises:
        DistillationError: If the file is missing, holds no sentence, or a line has another number of columns.

    Example:
        >>> import tempfile
        >>> path = Path(tempfile.mkdtemp()) / "eng.train"
        >>> _ = path.write_text("-DOCSTART- -X- O\n\nIn IN O\nRome NNP I-LOC\n")
        >>> read_conll(path)
        [{'tokens': ['In', 'Rome'], 'tags': ['O', 'I-LOC']}]
    """
    path = Path(path).expanduser()
    if not path.is_file():
        raise DistillationError(f"There is no file {str(path)!r} (working folder: {Path.cwd()}).")
    if delimiter is None and kind_of(path) == ".tsv":
        delimiter = "\t"
    names = None if columns is None else list(columns)
    if names and len(set(filter(None, names))) < sum(map(bool, names)):
        raise DistillationError(f"columns={names} names a column twice.")
    rows: list[Row] = []
    row: Row = {}
    expected = 0
    for number, fields in _lines(path, delimiter, comments):
        if not fields or fields[0].startswith(DOCUMENT):
            row = {}
            continue
        if not expected:
            expected = len(fields)
            if names is None:
                names = ["tokens", *[""] * (expected - 2), "tags"][:expected]
        if len(fields) != expected or len(names or ()) != expected:
            wanted = f"the columns are {names}" if columns is not None else f"other lines have {expected}"
            raise DistillationError(
                f"{path}, line {number}: {len(fields)} columns where {wanted}: {' '.join(fields)[:60]!r}. Mend the "
                "line, or name the columns and what stands between them (delimiter)."
            )
        if not row:
            row = {name: [] for name in names or () if name}
            rows.append(row)
        for name, field in zip(names or (), fields, strict=True):
            if name:
                row[name].append(field)
    if not rows:
        raise DistillationError(f"{path} holds no sentence. Give it at least one, or leave this split out.")
    return rows


def in_columns(path: Path) -> bool:
    r"""Tell whether a text file holds words in columns; if not, it is plain text.

    In columns most lines end in a tag; without tags there are as many words in each line, and blank lines between some.

    Args:
        path: A text file, plain or gzipped.

    Example:
        >>> import tempfile
        >>> path = Path(tempfile.mkdtemp()) / "more.txt"
        >>> _ = path.write_text("a long story\nthe best film\n")
        >>> in_columns(path)
        False
        >>> _ = path.write_text("a\nstory\n\nthe\nfilm\n")
        >>> in_columns(path)
        True
    """
    widths: set[int] = set()
    count = tagged = 0
    gap = parted = False
    for _, fields in _lines(path, None, None):
        if not fields or fields[0].startswith(DOCUMENT):
            gap = count > 0
            continue
        count += 1
        widths.add(len(fields))
        # a sentence may well end in a letter, such as "I"
        sign = fields[-1] if fields[-1] == OUTSIDE or "-" in fields[-1] else ""
        tagged += len(fields) > 1 and TAG.fullmatch(sign) is not None
        parted, gap = parted or gap, False
    return (tagged > 0 and 2 * tagged >= count) or (parted and len(widths) == 1)


def _lines(path: Path, delimiter: str | None, comments: str | None) -> Iterator[tuple[int, list[str]]]:
    with open_text(path) as file:
        for number, line in enumerate(tqdm(file, desc=f"read {path.name}", unit=" lines", delay=1, leave=False), 1):
            if comments is not None and line.startswith(comments):
                continue
            text = line.strip(SPACE)
            # an empty field counts where columns are told apart by a tab, and a line of tabs alone is a blank line
            fields = re.split("[ \t]+", text) if delimiter is None else line.rstrip("\r\n").split(delimiter)
            yield number, fields if text else []


def tagged_splits(source: Any) -> dict[str, Any]:
    """Find the splits of a source of tagged sentences.

    Args:
        source: What `open_splits` takes. In a folder any file counts whose name has a split between its dots
            (``eng.train``, ``train.txt``, ``dev.conll``, ``test.jsonl``); ``testa`` and ``testb`` are the validation
            and the test split, as in the shared tasks of CoNLL.

    Returns:
        A mapping from ``train``, ``validation``, ``test`` and ``predict``, as far as present, to files or rows.

    Raises:
        DistillationError: If there is no such file, or two are of one split.
    """
    if not isinstance(source, (str, Path)) or not Path(source).expanduser().is_dir():
        return open_splits(source)
    folder = Path(source).expanduser()
    found: dict[str, list[Path]] = {}
    for path in sorted(folder.iterdir()):
        parts = path.name.removesuffix(".gz").split(".")
        split = next(filter(None, (SHARED_TASK.get(part) or split_name(part) for part in parts)), None)
        # "eng.train" has no suffix but the split
        known = (*COLUMN_SUFFIXES, *ROW_SUFFIXES, *(f".{name}" for names in SPLIT_NAMES.values() for name in names))
        if split is not None and path.is_file() and kind_of(path) in (*known, ".testa", ".testb", ""):
            found.setdefault(split, []).append(path)
    return one_file_each(folder, found, "such as eng.train, train.txt or dev.jsonl")
