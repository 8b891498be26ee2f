"""Bytes by key on disk: appended by any number of processes, read through memory maps."""

from __future__ import annotations

import mmap
import struct
import uuid
import zlib
from collections.abc import Mapping, Sequence
from io import RawIOBase
from pathlib import Path
from typing import Any, NamedTuple

from lightning_distilbert.errors import DistillationError

KEY_BYTES = 16
ENTRY = struct.Struct(f"<{KEY_BYTES}sQQI")  # key, offset, length, checksum


class Place(NamedTuple):
    """Where a row lies."""

    segment: str
    offset: int
    length: int
    checksum: int


class RowStore:
    """Rows of bytes in a folder, each written once.

    Each process that writes has a segment of its own: a file of rows and an index beside it, which names a row after it
    is written. So nothing is locked, a process that is killed leaves no half row, and what one process writes another
    one finds.

    Args:
        folder: Where the segments are; it need not be there yet.

    Raises:
        DistillationError: If an index names rows that its segment does not hold.

    Example:
        >>> import tempfile
        >>> store = RowStore(Path(tempfile.mkdtemp()))
        >>> store.put({b"k" * 16: b"row"})
        >>> [None if row is None else bytes(row) for row in store.get([b"k" * 16, b"x" * 16])]
        [b'row', None]
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._places: dict[bytes, Place] = {}
        self._read: dict[str, int] = {}  # how far each index was read
        self._maps: dict[str, Any] = {}
        self._own = uuid.uuid4().hex
        self.refresh()

    def __len__(self) -> int:
        """The number of rows that are known of."""
        return len(self._places)

    def refresh(self) -> None:
        """Read what has been added to the indices, by this process or by others."""
        for index in sorted(self.folder.glob("*.index")):
            name = index.stem
            start = self._read.get(name, 0)
            with index.open("rb") as file:
                file.seek(start)
                entries = file.read()
            whole = len(entries) - len(entries) % ENTRY.size  # the last one may be in the making
            if not whole:
                continue
            rows = self._rows(name)
            size = rows.stat().st_size if rows.is_file() else 0
            for key, offset, length, checksum in ENTRY.iter_unpack(entries[:whole]):
                if offset + length > size:
                    raise DistillationError(
                        f"{rows} holds {size} bytes, and its index names rows up to byte {offset + length}: it is "
                        f"truncated. Delete the folder {str(self.folder)!r}; the rows are then computed again."
                    )
                self._places.setdefault(key, Place(name, offset, length, checksum))
            self._read[name] = start + whole

    def get(self, keys: Sequence[bytes]) -> list[memoryview | None]:
        """Return the row of each key, or None where there is none.

        Raises:
            DistillationError: If a row is not what was written.
        """
        if any(key not in self._places for key in keys):
            self.refresh()
        return [None if (place := self._places.get(key)) is None else self._row(place) for key in keys]

    def put(self, rows: Mapping[bytes, bytes]) -> None:
        """Append rows.

        Raises:
            DistillationError: If they cannot be written.
        """
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            with (
                self._rows(self._own).open("ab", 0) as data,
                (self.folder / f"{self._own}.index").open("ab", 0) as index,
            ):
                offset, entries = data.tell(), []
                for key, row in rows.items():
                    entries.append(ENTRY.pack(key, offset, len(row), zlib.crc32(row)))
                    offset += len(row)
                _write(data, b"".join(rows.values()))
                _write(index, b"".join(entries))
        except OSError as error:
            raise DistillationError(
                f"{len(rows)} rows could not be written to {str(self.folder)!r}: {error.strerror or error}. What is "
                "there is whole and will be read; make room, or train without it."
            ) from error

    def _rows(self, name: str) -> Path:
        return self.folder / f"{name}.rows"

    def _row(self, place: Place) -> memoryview:
        if not place.length:  # a segment of such rows alone is an empty file, which has no map
            return memoryview(b"")
        found = self._maps.get(place.segment)
        if found is None or len(found) < place.offset + place.length:
            with self._rows(place.segment).open("rb") as file:
                found = self._maps[place.segment] = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        row = memoryview(found)[place.offset : place.offset + place.length]
        if zlib.crc32(row) != place.checksum:
            raise DistillationError(
                f"A row of {self._rows(place.segment)} is not what was written: the file is damaged. Delete the folder "
                f"{str(self.folder)!r}; the rows are then computed again."
            )
        return row


def _write(file: RawIOBase, content: bytes) -> None:
    """Write all of it: an unbuffered file may take less at once."""
    rest = memoryview(content)
    while rest:
        rest = rest[file.write(rest) :]
