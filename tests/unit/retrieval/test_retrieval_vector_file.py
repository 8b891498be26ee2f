from __future__ import annotations

import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from lightning_distilbert.errors import DistillationError
from lightning_distilbert.retrieval import vector_file
from lightning_distilbert.retrieval.vector_file import VectorFile, hash_texts, hash_weights, write_json

ROWS = np.arange(24, dtype=np.float32).reshape(8, 3)


def test_rows_that_are_appended_make_an_array(tmp_path: Path):
    file = VectorFile(tmp_path / "new" / "a.npy")
    assert not file.finished({"a": 1})
    assert file.resume({"a": 1}, step=3) == 0
    for start in (0, 3, 6):
        file.append(ROWS[start : start + 3], total=8)
        assert not file.path.exists()
    file.finish()
    np.testing.assert_array_equal(np.load(tmp_path / "new" / "a.npy"), ROWS)
    assert VectorFile(tmp_path / "new" / "a.npy").finished({"a": 1})
    assert sorted(path.name for path in (tmp_path / "new").iterdir()) == ["a.npy", "a.npy.json"]


@pytest.mark.parametrize(("rows", "more", "left"), [(0, 0, 0), (3, 0, 3), (4, 0, 3), (7, 5, 6), (8, 0, 8)])
def test_whole_steps_of_an_interrupted_run_are_left(tmp_path: Path, rows: int, more: int, left: int):
    file = VectorFile(tmp_path / "a.npy")
    file.resume({"a": [1, 2]}, step=3)
    file.append(ROWS[:rows], total=8)
    with file.partial.open("ab") as raw:
        raw.write(bytes(more))
    again = VectorFile(tmp_path / "a.npy")
    assert again.resume({"a": (1, 2)}, step=3) == left
    again.append(ROWS[left:], total=8)
    again.finish()
    np.testing.assert_array_equal(again.vectors(), ROWS)


def test_a_run_that_was_interrupted_within_the_header_begins_anew(tmp_path: Path):
    file = VectorFile(tmp_path / "a.npy")
    file.resume({}, step=3)
    file.append(ROWS, total=8)
    file.partial.write_bytes(file.partial.read_bytes()[:20])
    assert file.resume({}, step=3) == 0
    file.append(ROWS, total=8)
    file.finish()
    np.testing.assert_array_equal(file.vectors(), ROWS)


def test_a_partial_file_of_something_else_begins_anew(tmp_path: Path):
    file = VectorFile(tmp_path / "a.npy")
    file.resume({"a": 1}, step=1)
    file.append(ROWS, total=9)
    assert file.resume({"a": 2}, step=1) == 0
    assert not file.partial.exists()


def test_a_second_run_waits_and_takes_what_the_first_has_made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    told = []
    monkeypatch.setattr(vector_file, "PATIENCE", 0.05)
    monkeypatch.setattr(vector_file, "rank_zero_warn", told.append)
    first, second = VectorFile(tmp_path / "a.npy"), VectorFile(tmp_path / "a.npy")
    assert first.resume({"a": [1]}, step=4) == 0
    first.append(ROWS[:4], total=8)
    with ThreadPoolExecutor(1) as other:
        waiting = other.submit(second.resume, {"a": (1,)}, 4)
        with pytest.raises(TimeoutError):
            waiting.result(timeout=0.5)
        first.append(ROWS[4:], total=8)
        first.finish()
        assert waiting.result(timeout=60) == 8
    assert told == [f"Waiting for {first.path}, which another process or thread makes."]
    second.finish()
    np.testing.assert_array_equal(second.vectors(), ROWS)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.npy", "a.npy.json"]


def test_a_second_run_of_something_else_is_refused_once_the_first_has_ended(tmp_path: Path):
    first = VectorFile(tmp_path / "a.npy")
    first.resume({"a": 1}, step=8)
    first.append(ROWS, total=8)
    with ThreadPoolExecutor(1) as other:
        waiting = other.submit(VectorFile(tmp_path / "a.npy").resume, {"a": 2}, 8)
        first.finish()
        with pytest.raises(DistillationError, match="made with another a"):
            waiting.result(timeout=60)
    assert not list(tmp_path.glob(".*"))


def test_a_run_that_failed_does_not_lock_its_own_thread_out(tmp_path: Path):
    first, second = VectorFile(tmp_path / "a.npy"), VectorFile(tmp_path / "a.npy")
    first.resume({"a": 1}, step=4)
    first.append(ROWS[:4], total=8)
    assert second.resume({"a": 1}, step=4) == 4  # the first is alive in a traceback, such as a notebook keeps
    second.append(ROWS[4:], total=8)
    second.finish()
    np.testing.assert_array_equal(second.vectors(), ROWS)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.npy", "a.npy.json"]


@pytest.mark.skipif(sys.platform == "win32", reason="the other process locks as POSIX does")
def test_the_lock_of_a_process_that_was_killed_is_free(tmp_path: Path):
    file = VectorFile(tmp_path / "a.npy")
    file.resume({"a": 1}, step=4)
    file.append(ROWS[:4], total=8)
    file._free()
    holds = "import fcntl, sys; f = open(sys.argv[1], 'w'); fcntl.flock(f, 2); print(flush=True); sys.stdin.read()"
    command = [sys.executable, "-c", holds, file._lock.lock_file]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    with ThreadPoolExecutor(1) as thread, subprocess.Popen(command, **pipes) as other:
        try:
            other.stdout.readline()
            waiting = thread.submit(file.resume, {"a": 1}, 4)
            with pytest.raises(TimeoutError):
                waiting.result(timeout=0.3)
        finally:
            other.kill()
        assert waiting.result(timeout=60) == 4
    file.append(ROWS[4:], total=8)
    file.finish()
    np.testing.assert_array_equal(file.vectors(), ROWS)
    assert not list(tmp_path.glob(".*"))


def test_a_file_that_is_replaced_just_now_is_not_finished(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    file = VectorFile(tmp_path / "a.npy")
    file.resume({"a": 1}, step=8)
    file.append(ROWS, total=8)
    file.finish()

    def replaced(path: Path) -> dict[str, int]:
        file.path.unlink()
        return {"a": 1}

    monkeypatch.setattr(vector_file, "read_json", replaced)
    assert not file.finished({"a": 1})


def test_other_files_are_refused_unless_they_may_be_replaced(tmp_path: Path):
    np.save(tmp_path / "a.npy", ROWS)
    with pytest.raises(DistillationError, match="was not made here"):
        VectorFile(tmp_path / "a.npy").finished({"a": 1})
    assert not VectorFile(tmp_path / "a.npy", overwrite=True).finished({"a": 1})
    write_json(tmp_path / "a.npy.json", {"a": 2, "b": 3})
    with pytest.raises(DistillationError, match=r"made with another a\. Name another file"):
        VectorFile(tmp_path / "a.npy").finished({"a": 1, "b": 3})
    assert not VectorFile(tmp_path / "a.npy", overwrite=True).finished({"a": 1, "b": 3})


@pytest.mark.parametrize("left", [0, 20, 140], ids=["empty", "within the header", "within the rows"])
def test_a_damaged_file_is_refused_unless_it_may_be_replaced(tmp_path: Path, left: int):
    np.save(tmp_path / "a.npy", ROWS)
    write_json(tmp_path / "a.npy.json", {"a": 1})
    (tmp_path / "a.npy").write_bytes((tmp_path / "a.npy").read_bytes()[:left])
    with pytest.raises(DistillationError, match=r"a\.npy is damaged .* Delete it and run again"):
        VectorFile(tmp_path / "a.npy").finished({"a": 1})
    with pytest.warns(UserWarning, match=r"a\.npy is damaged, and is made anew"):
        assert not VectorFile(tmp_path / "a.npy", overwrite=True).finished({"a": 1})


@pytest.mark.parametrize("name", ["a.bin", "folder.npy"])
def test_bad_names(tmp_path: Path, name: str):
    (tmp_path / "folder.npy").mkdir()
    with pytest.raises(DistillationError, match=r"give it the suffix \.npy"):
        VectorFile(tmp_path / name)


def test_hashes_tell_contents_apart():
    assert hash_texts(["a", "b"]) != hash_texts(["b", "a"])
    assert hash_texts(["a", "b"]) == hash_texts(iter(("a", "b")))
    assert hash_texts(["\ud800"]) != hash_texts(["?"])  # half a surrogate pair, as JSON may hold
    one, other = nn.Linear(2, 3), nn.Linear(2, 3)
    other.load_state_dict(one.state_dict())
    assert hash_weights(one) == hash_weights(other)
    with torch.no_grad():
        other.bias[2] += 1e-6
    assert hash_weights(one) != hash_weights(other)
    assert hash_weights(nn.BatchNorm1d(2).bfloat16()) != hash_weights(nn.BatchNorm1d(2))  # a scalar among them
