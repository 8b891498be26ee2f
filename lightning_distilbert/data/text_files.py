"""Raw text from files and data sets, part by part and never all at once."""

from __future__ import annotations

import glob
import gzip
import hashlib
import io
import json
import zlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any, BinaryIO, Protocol, cast

from lightning_distilbert.data.readers import (
    JSON_SUFFIXES,
    TABLE_SUFFIXES,
    open_parquet,
    parquet_batches,
    parse_json,
    read_json_lines,
)
from lightning_distilbert.errors import DistillationError, require

TEXT_SUFFIXES = (".txt", ".text", ".tokens")
KNOWN_SUFFIXES = (*TEXT_SUFFIXES, *JSON_SUFFIXES, ".parquet")
COMPRESSED = (".gz", ".zst")
CHUNK_TEXTS, CHUNK_CHARACTERS = 1024, 2**18
HEAD = 2**16  # bytes of a file that its fingerprint reads
WINDOW = 2**31  # bytes that a Zstandard file may look back over: dumps are often made with --long=31
# of what a stream of `datasets` is made, where it takes row by row: its rows are then those of its shards. Not so where
# take, skip, step, repeat or interleave count the rows of all shards. Of kinds unknown here it is not relied on.
ROW_BY_ROW = frozenset(
    {
        "ExamplesIterable",
        "ArrowExamplesIterable",
        "SelectColumnsIterable",
        "MappedExamplesIterable",
        "FilteredExamplesIterable",
        "FormattedExamplesIterable",
        "BufferShuffledExamplesIterable",
        "InterleavedShardsExamplesIterable",  # in turn, until each has ended
        "VerticallyConcatenatedMultiSourcesExamplesIterable",
    }
)


class Part(Protocol):
    """A part of a corpus that is read from its beginning to its end, such as a file."""

    def texts(self) -> Iterator[str]:
        """Yield the texts in order, and ``""`` where a document ends."""

    def fingerprint(self) -> list[Any]:
        """Return plain values that change where the texts do."""


@dataclass(frozen=True)
class TextFile:
    """A file of text, of JSON lines or of parquet, plain or compressed.

    Attributes:
        path: The file: ``.jsonl`` (also ``.ndjson``), ``.parquet``, and text in all other cases; text and JSON lines
            also with ``.gz`` or ``.zst`` after it.
        column: The column of JSON lines and parquet that holds the text.
        separator: What ends a text in a file of text: ``"line"``, or ``"blank_line"``, of which the lines are joined.
            Of single lines, a blank one ends a document.
    """

    path: Path
    column: str = "text"
    separator: str = "line"

    def texts(self) -> Iterator[str]:
        """Yield the texts in order, and ``""`` where a document ends.

        Raises:
            DistillationError: If the file is no UTF-8 text, or a row has no text.
        """
        kind = kind_of_text(self.path)
        if kind == ".parquet":
            yield from self._parquet()
        elif kind in JSON_SUFFIXES:
            yield from self._json()
        elif self.separator == "line":
            yield from self._lines()
        else:
            block: list[str] = []
            for line in self._lines():
                if line:
                    block.append(line)
                elif block:
                    yield " ".join(block)
                    block = []
            if block:
                yield " ".join(block)

    def fingerprint(self) -> list[Any]:
        """Return how the file is read, its path, size and time of change, and a hash of its head."""
        status = self.path.stat()
        with self.path.open("rb") as file:
            head = hashlib.sha256(file.read(HEAD)).hexdigest()
        read = ["TextFile", self.column, self.separator]
        return [*read, str(self.path.resolve()), status.st_size, status.st_mtime_ns, head]

    def _lines(self) -> Iterator[str]:
        """Yield each line less its blanks at both ends; only a line feed ends one, as in `open_text`."""
        number = 0
        with open_bytes(self.path) as file, io.TextIOWrapper(file, encoding="utf-8-sig", newline="\n") as lines:
            try:
                for number, line in enumerate(lines, start=1):
                    if "\0" in line:
                        raise DistillationError(
                            f"{self.path}, line {number}: there is a zero byte in it. This is no text file; leave it "
                            "out of the source, or convert it to UTF-8."
                        )
                    yield line.strip()
            except UnicodeDecodeError as error:
                raise DistillationError(
                    f"{self.path} cannot be read as UTF-8 text, somewhere after line {number}: {error}. "
                    "Leave it out of the source, or convert it to UTF-8."
                ) from error

    def _json(self) -> Iterator[str]:
        if self.path.name.lower().endswith(".zst"):
            lines = self._lines()
            first = next(lines, "")
            if first.startswith("["):
                rows: Any = parse_json("\n".join([first, *lines]), self.path, 1)
            else:
                numbered = enumerate(chain([first], lines), start=1)
                rows = (parse_json(line, self.path, number) for number, line in numbered if line)
        else:
            rows = read_json_lines(self.path)
        for number, row in enumerate(rows, start=1):
            yield text_of(row, self.column, f"{self.path}, row {number}")

    def _parquet(self) -> Iterator[str]:
        with open_parquet(self.path) as file:
            names = file.schema_arrow.names
            if self.column not in names:
                raise DistillationError(f"{self.path} has no column {self.column!r}. Its columns are {names}.")
            number = 0
            for batch in parquet_batches(file, self.path, batch_size=CHUNK_TEXTS, columns=[self.column]):
                for value in batch.column(0).to_pylist():
                    number += 1
                    yield text_of({self.column: value}, self.column, f"{self.path}, row {number}")


@dataclass(frozen=True)
class Rows:
    """Rows in memory, or a data set of the `datasets` library, or one shard of a streamed one.

    Attributes:
        rows: A list of dicts, a `datasets.Dataset` or a `datasets.IterableDataset`.
        column: The column of the text.
        shard: Which shard of a streamed data set is meant; None is the whole.
    """

    rows: Any
    column: str = "text"
    shard: int | None = None

    def texts(self) -> Iterator[str]:
        """Yield the text of each row.

        Raises:
            DistillationError: If a row has no text.
        """
        rows = self.rows
        if is_streamed(rows):
            rows = _rows_of_stream(rows, self.shard)
        elif hasattr(rows, "column_names") and self.column in rows.column_names:
            rows = rows.select_columns([self.column])
        for number, row in enumerate(rows, start=1):
            yield text_of(row, self.column, f"The {type(self.rows).__name__}, row {number}")

    def fingerprint(self) -> list[Any]:
        """Return the fingerprint that the `datasets` library keeps, or a hash of rows in memory.

        Of a streamed data set only name, columns, number of shards and the draws of its shuffles are known.
        """
        known = getattr(self.rows, "_fingerprint", None)
        if is_streamed(self.rows):
            draws = [str(state) for state in _draws(self.rows._ex_iterable)]
            known = " ".join(
                map(str, [self.rows.info.dataset_name, self.rows.column_names, self.rows.num_shards, *draws])
            )
        elif known is None:
            known = hashlib.sha256(json.dumps(list(self.texts())).encode()).hexdigest()
        return ["Rows", self.column, type(self.rows).__name__, known, self.shard]


def is_streamed(rows: Any) -> bool:
    """Tell whether rows are a streamed data set of the `datasets` library.

    Example:
        >>> is_streamed([{"text": "a"}])
        False
    """
    return hasattr(rows, "num_shards") and not hasattr(rows, "__len__")


def _rows_of_stream(rows: Any, shard: int | None) -> Iterator[dict[str, Any]]:
    if shard is not None:
        rows = rows.shard(num_shards=rows.num_shards, index=shard)
    # `iter` and not `__iter__`, which in a worker of a DataLoader would share the rows out among the workers again
    for batch in rows.iter(256):
        yield from (dict(zip(batch, values, strict=True)) for values in zip(*batch.values(), strict=True))


def _is_row_by_row(step: Any) -> bool:
    """Tell whether the rows of a stream are those of its shards, one shard after the other."""
    if type(step).__name__ not in ROW_BY_ROW or getattr(step, "batched", False) or getattr(step, "with_indices", False):
        return False
    before = getattr(step, "ex_iterables", None) or [getattr(step, "ex_iterable", None)]
    return all(_is_row_by_row(other) for other in before if other is not None)


def _draws(step: Any) -> Iterator[Any]:
    """Yield the states of the generators that shuffle a stream: without a seed each process has others."""
    generator = getattr(step, "generator", None)
    if generator is not None:
        yield generator.bit_generator.state
    for before in getattr(step, "ex_iterables", None) or [getattr(step, "ex_iterable", None)]:
        if before is not None:
            yield from _draws(before)


def text_of(row: Any, name: str, where: str) -> str:
    """Take the text of one row.

    Raises:
        DistillationError: If there is none.

    Example:
        >>> text_of({"text": "a"}, "text", "here")
        'a'
    """
    if not isinstance(row, Mapping):
        raise DistillationError(f"{where}: {str(row)[:60]!r} is a {type(row).__name__}; each row is a dict.")
    if name not in row:
        raise DistillationError(f"{where}: there is no column {name!r}. Its columns are {list(row)}.")
    value = row[name]
    if not isinstance(value, str):
        raise DistillationError(
            f"{where}: {name!r} is {str(value)[:60]!r}, a {type(value).__name__} and not a string. Mend or drop it."
        )
    if not value.isascii():
        try:
            value.encode()
        except UnicodeEncodeError as error:
            raise DistillationError(
                f"{where}: {value[error.start]!r} in {name!r} is one half of a character (a surrogate) without the "
                "other. Mend or drop that row."
            ) from error
    return value


def text_parts(source: Any, column: str = "text", separator: str = "line") -> list[Part]:
    """Find the parts of a corpus without reading them.

    Args:
        source: A file; a pattern such as ``"books/*.txt.gz"`` (``**`` for folders within folders); a folder, of which
            all files of a known kind are taken, those of its sub-folders too; a list of these; a list of dicts; or a
            data set of the `datasets` library.
        column: The column of the text, where there are columns.
        separator: What ends a text in a file of text, ``"line"`` or ``"blank_line"``.

    Returns:
        The parts, files in the order of their names.

    Raises:
        DistillationError: If there is no file, or one of a kind that has no text.

    Example:
        >>> [list(part.texts()) for part in text_parts([{"text": "a"}, {"text": "b"}])]
        [['a', 'b']]
    """
    if isinstance(source, (str, Path)):
        return [TextFile(path, column, separator) for path in _find(str(source))]
    if hasattr(source, "column_names"):
        if getattr(getattr(source, "_distributed", None), "world_size", 1) > 1:
            raise DistillationError(
                "The data set is shared out among processes already (split_dataset_by_node), and would be once more "
                "here. Pass it whole: each process reads its own share."
            )
        if is_streamed(source) and _is_row_by_row(getattr(source, "_ex_iterable", None)):
            return [Rows(source, column, shard) for shard in range(source.num_shards)]
        return [Rows(source, column)]
    if isinstance(source, Sequence) and source:
        if all(isinstance(entry, (str, Path)) for entry in source):
            found: dict[Path, Path] = {}  # a file is read once, however it is named
            for path in (path for entry in source for path in _find(str(entry))):
                found.setdefault(path.resolve(), path)
            return [TextFile(path, column, separator) for path in found.values()]
        if all(isinstance(entry, Mapping) for entry in source):
            return [Rows(source, column)]
    raise DistillationError(
        f"A {type(source).__name__} ({str(source)[:60]}) is no source of text. Pass a file, a pattern, a folder, a "
        "list of these, a list of dicts or a datasets object."
    )


def _find(name: str) -> list[Path]:
    path = Path(name).expanduser()
    if path.is_file():
        found = [path]
    elif path.is_dir():
        kinds = (*TEXT_SUFFIXES, *JSON_SUFFIXES, ".parquet")
        found = sorted(file for file in path.rglob("*") if file.is_file() and kind_of_text(file) in kinds)
        if not found:
            content = sorted(file.name for file in path.iterdir())[:10]
            raise DistillationError(
                f"{path} has no file with one of the suffixes {', '.join(kinds)}. It has {content}."
            )
    elif glob.has_magic(name):
        found = sorted(Path(match) for match in glob.glob(str(path), recursive=True) if Path(match).is_file())
        if not found:
            raise DistillationError(f"No file matches the pattern {name!r} (working folder: {Path.cwd()}).")
    else:
        raise DistillationError(f"There is no file or folder {name!r} (working folder: {Path.cwd()}).")
    for file in found:
        if kind_of_text(file) in TABLE_SUFFIXES:
            raise DistillationError(f"{file} is a table. Convert it to .jsonl or .parquet, or read its rows yourself.")
    return found


def kind_of_text(path: Path) -> str:
    """Return a file's suffix in lower case, less one of compression.

    Example:
        >>> kind_of_text(Path("a/Book.TXT.zst")), kind_of_text(Path("wiki.train.tokens"))
        ('.txt', '.tokens')
    """
    name = path.name.lower()
    for suffix in COMPRESSED:
        name = name.removesuffix(suffix)
    return Path(name).suffix


@contextmanager
def open_bytes(path: Path) -> Iterator[BinaryIO]:
    """Open a plain, gzipped or Zstandard file for reading its bytes.

    Raises:
        DistillationError: If what is in it is not what its suffix says, or it ends too early.
        MissingExtraError: If a ``.zst`` file is read without zstandard.
    """
    name = path.name.lower()
    broken: tuple[type[Exception], ...] = (gzip.BadGzipFile, zlib.error, EOFError)
    file: Any
    if name.endswith(".zst"):
        zstandard = require("zstandard", extra="data")
        broken = (*broken, zstandard.ZstdError)
        file = io.BufferedReader(_ZstdReader(path.open("rb"), zstandard.ZstdDecompressor(max_window_size=WINDOW)), HEAD)
    else:
        opener: Any = gzip.open if name.endswith(".gz") else open
        file = opener(path, "rb")
    try:
        with file:
            yield cast(BinaryIO, file)
    except broken as error:
        raise DistillationError(f"{path} is damaged or not what its suffix says: {error}.") from error


class _ZstdReader(io.RawIOBase):
    """Reads Zstandard frames; the package's own reader takes a truncated file for a whole one."""

    def __init__(self, file: BinaryIO, context: Any) -> None:
        self._file = file
        self._context = context
        self._frame: Any = None
        self._ready = b""

    def readable(self) -> bool:
        return True

    def readinto(self, target: Any) -> int:
        while not self._ready:
            waiting = self._frame.unused_data if self._frame is not None and self._frame.eof else b""
            data = waiting or self._file.read(HEAD)
            if not data:
                if self._frame is not None and not self._frame.eof:
                    raise EOFError("the file ends in the middle of a frame")
                return 0
            if self._frame is None or self._frame.eof:
                self._frame = self._context.decompressobj()
            self._ready = self._frame.decompress(data)
        size = min(len(target), len(self._ready))
        target[:size] = self._ready[:size]
        self._ready = self._ready[size:]
        return size

    def close(self) -> None:
        self._file.close()
        super().close()


def chunks(part: Part) -> Iterator[list[str]]:
    """Yield the texts of a part in lists, which are what one process tokenises at a time.

    Where lists end depends on the texts alone. A list holds at most 1,024 texts, and no further one once it has 262,144
    characters.

    Example:
        >>> [len(texts) for texts in chunks(Rows([{"text": "a"}] * 1500))]
        [1024, 476]
    """
    texts: list[str] = []
    characters = 0
    for text in part.texts():
        if not text and not (texts and texts[-1]):
            continue  # several blank lines end a document once
        texts.append(text)
        characters += len(text)
        if len(texts) >= CHUNK_TEXTS or characters >= CHUNK_CHARACTERS:
            yield texts
            texts, characters = [], 0
    if any(texts):
        yield texts
