"""Rows from local files: TSV, CSV, JSON lines and parquet, as dicts, with errors that name the file and the line."""

from __future__ import annotations

import csv
import gzip
import json
import zlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TextIO

from tqdm.auto import tqdm

from lightning_distilbert.errors import DistillationError, require

TABLE_SUFFIXES = (".tsv", ".csv")
JSON_SUFFIXES = (".jsonl", ".ndjson", ".json")
SUFFIXES = (*TABLE_SUFFIXES, *JSON_SUFFIXES, ".parquet")
Row = dict[str, Any]


def read_rows(
    source: Any,
    columns: Sequence[str] | None = None,
    header: bool | None = None,
    delimiter: str | None = None,
) -> list[Row]:
    r"""Read all rows of one split.

    Text files are UTF-8, with or without a byte order mark, and may be gzipped (``.tsv.gz``). Where the delimiter is a
    tab there is no quoting (GLUE's layout); other delimiters follow the usual CSV quoting. Blank lines are no rows.

    Args:
        source: A path to a ``.tsv``, ``.csv``, ``.jsonl``, ``.ndjson``, ``.json`` (an array, or lines) or ``.parquet``
            file; a list of dicts; or a `datasets.Dataset`.
        columns: Column names, for TSV and CSV files without a header. A last name ``"*"`` stands for any number of
            further fields, which are dropped.
        header: Whether the first line of a TSV or CSV file holds names. None: yes, unless `columns` are given. True
            with `columns` skips that line.
        delimiter: The field separator of a text table; None takes it from the suffix.

    Returns:
        One dict per row. Fields of text tables are strings.

    Raises:
        DistillationError: If the file is missing, empty, of unknown kind, or holds a malformed line.
        MissingExtraError: If a parquet file is read without pyarrow.

    Example:
        >>> import tempfile
        >>> path = Path(tempfile.mkdtemp()) / "train.tsv"
        >>> _ = path.write_text("sentence\tlabel\nso \"good\t1\n")
        >>> read_rows(path)
        [{'sentence': 'so "good', 'label': '1'}]
    """
    if isinstance(source, (str, Path)):
        path = Path(source).expanduser()
        lines = iter_rows(path, columns, header, delimiter)
        rows = list(tqdm(lines, desc=f"read {path.name}", unit=" rows", delay=1, leave=False))
    elif hasattr(source, "to_list") and hasattr(source, "column_names"):
        rows = source.to_list()
    elif isinstance(source, Sequence):
        rows = list(source)
        for number, row in enumerate(rows, start=1):
            if not isinstance(row, Mapping):
                raise DistillationError(f"Row {number} is a {type(row).__name__} ({_short(row)}); each row is a dict.")
    else:
        raise DistillationError(
            f"Rows cannot be read from a {type(source).__name__}. Pass a path, a list of dicts or a datasets.Dataset "
            "(a streamed one has no length: save it to a file first)."
        )
    if not rows:
        raise DistillationError(f"{describe(source)} holds no rows. Give it at least one, or leave this split out.")
    return rows


def describe(source: Any) -> str:
    """Say in an error where rows came from: the path, or the kind of object."""
    return str(source) if isinstance(source, (str, Path)) else f"the {type(source).__name__} passed in"


def column(rows: Sequence[Mapping[str, Any]], name: str, where: str, optional: bool = False) -> list[Any] | None:
    """Take one column out of rows.

    Args:
        rows: The rows.
        name: The column.
        where: What to call the rows in an error.
        optional: Whether to return None where no row has the column, and None for single rows without it.

    Returns:
        The values, or None.

    Raises:
        DistillationError: If the column is missing.

    Example:
        >>> column([{"a": 1}, {"a": 2}], "a", "here")
        [1, 2]
    """
    if not any(name in row for row in rows):
        if optional:
            return None
        raise DistillationError(f"{where} has no column {name!r}. Its columns are {list(rows[0])}.")
    if not optional:
        for number, row in enumerate(rows, start=1):
            if name not in row:
                raise DistillationError(f"{where}, row {number}: there is no {name!r}, only {list(row)}.")
    return [row.get(name) for row in rows]


def texts(rows: Sequence[Mapping[str, Any]], name: str, where: str) -> list[str]:
    """Take a column of text, refusing anything that is not a string.

    Raises:
        DistillationError: If the column is missing, or holds a value that is not a string.

    Example:
        >>> texts([{"text": "a"}], "text", "here")
        ['a']
    """
    values = column(rows, name, where) or []
    for number, value in enumerate(values, start=1):
        if not isinstance(value, str):
            raise DistillationError(
                f"{where}, row {number}: {name!r} is {_short(value)}, a {type(value).__name__} and not a string. "
                "Mend or drop that row."
            )
    return values


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."


def kind_of(path: Path) -> str:
    """Return a file's suffix in lower case, less a final ``.gz``.

    Example:
        >>> kind_of(Path("a/Train.TSV.gz"))
        '.tsv'
    """
    name = path.name.lower().removesuffix(".gz")
    return Path(name).suffix


def iter_rows(
    path: str | Path,
    columns: Sequence[str] | None = None,
    header: bool | None = None,
    delimiter: str | None = None,
) -> Iterator[Row]:
    r"""Yield the rows of a file one by one, so that it need not fit into memory; only a JSON array is read whole.

    Args:
        path: A file as in `read_rows`.
        columns: As in `read_rows`.
        header: As in `read_rows`.
        delimiter: As in `read_rows`.

    Yields:
        The rows.

    Raises:
        DistillationError: If the file is missing, of unknown kind, or holds a malformed line.
        MissingExtraError: If a parquet file is read without pyarrow.

    Example:
        >>> import tempfile
        >>> path = Path(tempfile.mkdtemp()) / "new.csv"
        >>> _ = path.write_text("text,id\nso good,1\n")
        >>> next(iter_rows(path))
        {'text': 'so good', 'id': '1'}
    """
    path = Path(path).expanduser()
    if not path.is_file():
        raise DistillationError(f"There is no file {str(path)!r} (working folder: {Path.cwd()}).")
    kind = kind_of(path)
    if delimiter is not None or kind in TABLE_SUFFIXES:
        yield from _read_table(path, columns, header, delimiter or ("\t" if kind == ".tsv" else ","))
    elif kind in JSON_SUFFIXES:
        yield from _json_lines(path)
    elif kind == ".parquet":
        with open_parquet(path) as file:
            for part in parquet_batches(file, path):
                yield from part.to_pylist()
    else:
        raise DistillationError(
            f"{path} has the suffix {kind!r}, of which the kind is not known. Known are {', '.join(SUFFIXES)}; "
            "for a text table of another name pass its delimiter."
        )


def open_parquet(path: Path) -> Any:
    """Open a parquet file.

    Args:
        path: The file.

    Raises:
        DistillationError: If it is none.
        MissingExtraError: Without pyarrow.
    """
    parquet = require("pyarrow.parquet", extra="data")
    try:
        return parquet.ParquetFile(path)
    except Exception as error:  # pyarrow's errors share no base of their own
        raise DistillationError(f"{path} cannot be read as parquet: {error}.") from error


def parquet_batches(file: Any, path: Path, **options: Any) -> Iterator[Any]:
    """Yield the batches of a parquet file, of which the pages are read and checked only now.

    Args:
        file: What `open_parquet` returned.
        path: The file's path, for an error.
        **options: Of pyarrow's ``iter_batches``.

    Raises:
        DistillationError: If it is damaged.
    """
    batches = file.iter_batches(**options)
    while True:
        try:
            batch = next(batches)
        except StopIteration:
            return
        except Exception as error:  # pyarrow's errors share no base of their own
            raise DistillationError(f"{path} is damaged: {error}. Copy or make it anew.") from error
        yield batch


@contextmanager
def open_text(path: Path) -> Iterator[TextIO]:
    """Open a plain or gzipped UTF-8 file, less its byte order mark; only a line feed ends a line."""
    opener = gzip.open if path.name.lower().endswith(".gz") else open
    try:
        # newline="\n": a lone carriage return inside a text is part of it
        with opener(path, "rt", encoding="utf-8-sig", newline="\n") as file:
            yield file
    except (gzip.BadGzipFile, zlib.error, EOFError) as error:
        raise DistillationError(f"{path} is damaged or not what its suffix says: {error}.") from error
    except UnicodeDecodeError as error:
        raise DistillationError(f"{path} cannot be read as UTF-8 text: {error}. Convert it to UTF-8.") from error


def read_json_lines(path: Path) -> Iterator[Row]:
    """Yield the objects of a JSON lines file (or of a file that holds one JSON array), with a progress bar.

    Raises:
        DistillationError: If a line is not a JSON object.
    """
    yield from tqdm(_json_lines(path), desc=f"read {path.name}", unit=" rows", delay=1, leave=False)


def _json_lines(path: Path) -> Iterator[Row]:
    with open_text(path) as file:
        if file.read(1) == "[":
            lines: Any = enumerate(parse_json("[" + file.read(), path, 1), start=1)
        else:
            file.seek(0)
            lines = ((n, parse_json(line, path, n)) for n, line in enumerate(file, start=1) if line.strip())
        for number, row in lines:
            if not isinstance(row, dict):
                raise DistillationError(f"{path}, line {number}: {_short(row)} is not a JSON object.")
            yield row


def parse_json(text: str, path: Path, number: int) -> Any:
    """Return the value that a line of JSON holds.

    Args:
        text: The line.
        path: Its file, for an error.
        number: Its number there.

    Raises:
        DistillationError: If it is not valid, or escapes half a character, which no tokenizer reads.
    """
    try:
        value = json.loads(text)
        if "\\ud" in text or "\\uD" in text:
            json.dumps(value, ensure_ascii=False).encode()
    except json.JSONDecodeError as error:
        raise DistillationError(f"{path}, line {number}: not valid JSON ({error}): {_short(text.strip())}.") from error
    except UnicodeEncodeError as error:
        raise DistillationError(
            f"{path}, line {number}: {error.object[error.start]!r} is one half of a character (a surrogate) without "
            "the other. Mend or drop that line."
        ) from error
    return value


def _read_table(path: Path, columns: Sequence[str] | None, header: bool | None, delimiter: str) -> Iterator[Row]:
    names = list(columns) if columns is not None else None
    skip = columns is None if header is None else header
    if names is None and not skip:
        raise DistillationError(f"{path} has no header (header=False): pass the names of its columns.")
    with open_text(path) as file:
        records = _split_lines(file, delimiter) if delimiter == "\t" else _parse_csv(file, delimiter, path)
        for number, fields in records:
            if skip:
                skip, names = False, names or fields
                if len(set(names)) < len(names):
                    raise DistillationError(f"{path}: the header names a column twice: {names}. Pass other `columns`.")
                continue
            assert names is not None
            rest = names[-1] == "*"
            expected = len(names) - rest
            if len(fields) != expected and not (rest and len(fields) > expected):
                raise DistillationError(
                    f"{path}, line {number}: {len(fields)} fields where the columns are {names}: "
                    f"{_short(delimiter.join(fields))}. Mend the line, or check the delimiter ({delimiter!r}) and the "
                    "columns."
                )
            yield dict(zip(names[:expected], fields, strict=False))


def _split_lines(file: TextIO, delimiter: str) -> Iterator[tuple[int, list[str]]]:
    for number, line in enumerate(file, start=1):
        line = line.rstrip("\r\n")
        if line:
            yield number, line.split(delimiter)


def _parse_csv(file: TextIO, delimiter: str, path: Path) -> Iterator[tuple[int, list[str]]]:
    # csv refuses fields over 131,072 characters unless told otherwise, and the limit is global to the process
    limit = csv.field_size_limit(2**31 - 1)
    reader = csv.reader(file, delimiter=delimiter, strict=True)
    try:
        for fields in reader:
            if fields:
                yield reader.line_num, fields
    except csv.Error as error:
        raise DistillationError(f"{path}, line {reader.line_num}: not valid CSV ({error}).") from error
    finally:
        csv.field_size_limit(limit)
