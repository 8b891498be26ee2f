"""Rows on disk: found by every process, whole or not at all."""

from __future__ import annotations

import errno

import pytest

import lightning_distilbert.row_store as module
from lightning_distilbert.errors import DistillationError
from lightning_distilbert.row_store import ENTRY, RowStore

A, B, C = (letter * 16 for letter in (b"a", b"b", b"c"))


def read(store, *keys):
    return [None if row is None else bytes(row) for row in store.get(keys)]


def test_what_was_put_is_found_by_all(tmp_path):
    folder = tmp_path / "new" / "store"
    first, second = RowStore(folder), RowStore(folder)
    first.put({A: b"one", B: b""})
    second.put({C: b"three" * 1000})
    first.put({b"d" * 16: b"four"})  # behind what is mapped already
    assert read(first, A, C, b"d" * 16, b"x" * 16) == [b"one", b"three" * 1000, b"four", None]
    assert read(second, b"d" * 16, B, A) == [b"four", b"", b"one"]
    assert len(RowStore(folder)) == 4


def test_rows_may_all_be_empty(tmp_path):
    RowStore(tmp_path).put({A: b"", B: b""})
    assert read(RowStore(tmp_path), A, B, C) == [b"", b"", None]


def test_the_first_of_two_rows_stays(tmp_path):
    first, second = RowStore(tmp_path), RowStore(tmp_path)
    first.put({A: b"one"})
    assert read(first, A) == [b"one"]
    second.put({A: b"two"})
    first.refresh()
    assert read(first, A) == [b"one"]


def test_an_entry_in_the_making_is_left_for_later(tmp_path):
    RowStore(tmp_path).put({A: b"one", B: b"two"})
    (index,) = tmp_path.glob("*.index")
    whole = index.read_bytes()
    index.write_bytes(whole[: ENTRY.size + 5])
    store = RowStore(tmp_path)
    assert read(store, A, B) == [b"one", None]
    index.write_bytes(whole)
    assert read(store, A, B) == [b"one", b"two"]


def test_truncated_rows_are_refused_at_once(tmp_path):
    RowStore(tmp_path).put({A: b"one", B: b"two"})
    (rows,) = tmp_path.glob("*.rows")
    rows.write_bytes(rows.read_bytes()[:-1])
    with pytest.raises(DistillationError, match=r"holds 5 bytes, and its index names rows up to byte 6: it is trunc"):
        RowStore(tmp_path)
    rows.unlink()
    with pytest.raises(DistillationError, match="holds 0 bytes"):
        RowStore(tmp_path)


def test_a_damaged_row_is_refused(tmp_path):
    RowStore(tmp_path).put({A: b"one", B: b"two"})
    (rows,) = tmp_path.glob("*.rows")
    rows.write_bytes(b"onetwx")
    assert read(RowStore(tmp_path), A) == [b"one"]
    with pytest.raises(DistillationError, match=r"is not what was written: the file is damaged\. Delete the folder"):
        RowStore(tmp_path).get([B])


def test_a_full_disk_is_one_error_and_what_was_there_stays(tmp_path, monkeypatch):
    store = RowStore(tmp_path)
    store.put({A: b"one"})

    def full(file, content):
        file.write(content[:2])
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(module, "_write", full)
    with pytest.raises(DistillationError, match=r"1 rows could not be written to .*: No space left on device"):
        store.put({B: b"two"})
    monkeypatch.undo()
    store.put({C: b"three"})  # behind what was half written
    assert read(RowStore(tmp_path), A, B, C) == [b"one", None, b"three"]
