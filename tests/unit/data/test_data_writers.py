"""Output files: complete or not there at all."""

from __future__ import annotations

import datetime
import json
import math
from pathlib import Path

import pytest

from lightning_distilbert.data.writers import check_output, complete, write_rows
from lightning_distilbert.errors import DistillationError


def test_rows_appear_when_they_are_complete(tmp_path: Path):
    path = tmp_path / "new.jsonl"
    path.write_text("old", encoding="utf-8")

    def broken():
        yield {"text": "a"}
        raise RuntimeError("no more")

    with pytest.raises(RuntimeError, match="no more"):
        write_rows(broken(), path)
    assert path.read_text(encoding="utf-8") == "old"
    assert list(tmp_path.iterdir()) == [path]
    assert write_rows([{"text": "caf\u00e9\n"}], path) == 1
    assert path.read_text(encoding="utf-8") == '{"text": "caf\u00e9\\n"}\n'
    assert json.loads(path.read_text(encoding="utf-8")) == {"text": "caf\u00e9\n"}


def test_dates_are_written_as_text(tmp_path: Path):
    write_rows([{"day": datetime.date(2024, 1, 31)}], tmp_path / "a" / "b.jsonl")
    assert json.loads((tmp_path / "a" / "b.jsonl").read_text()) == {"day": "2024-01-31"}


def test_of_two_runs_that_write_one_file_the_last_wins_as_a_whole(tmp_path: Path):
    path = tmp_path / "new.jsonl"
    with complete(path) as first:
        first.write_text("first")
        with complete(path) as second:
            second.write_text("second")
        assert path.read_text() == "second"
    assert path.read_text() == "first"
    assert list(tmp_path.iterdir()) == [path]


def test_what_is_no_number_is_null(tmp_path: Path):
    write_rows([{"a": math.nan, "b": [1.0, {"c": math.inf}], "d": 2.0}], tmp_path / "a.jsonl")
    assert (tmp_path / "a.jsonl").read_text() == '{"a": null, "b": [1.0, {"c": null}], "d": 2.0}\n'


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
def test_interrupted_file_leaves_nothing(error: type[BaseException], tmp_path: Path):

    def write() -> None:
        with complete(tmp_path / "out.bin") as partial:
            partial.write_bytes(b"half")
            raise error

    with pytest.raises(error):
        write()
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("a.tsv", {}, r"suffix .jsonl\.$"),
        ("a.tsv", {"suffixes": (".jsonl", ".npy")}, "or vectors with the suffix .npy"),
        ("folder.jsonl", {"overwrite": True}, "is a folder"),
        ("there.jsonl", {}, "is there already"),
        ("there.jsonl", {"source": "./there.jsonl", "overwrite": True}, "is the input, which would be lost"),
        ("link.jsonl", {"source": Path("there.jsonl"), "overwrite": True}, "is the input"),
    ],
)
def test_bad_places_are_refused(name: str, options: dict, message: str, tmp_path: Path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("folder.jsonl").mkdir()
    Path("there.jsonl").touch()
    Path("link.jsonl").symlink_to("there.jsonl")
    with pytest.raises(DistillationError, match=message):
        check_output(name, **options)
    assert check_output("there.jsonl", overwrite=True, source=[]) == Path("there.jsonl")
    assert check_output("A.JSONL") == Path("A.JSONL")
