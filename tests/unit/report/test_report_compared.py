from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from lightning_distilbert.errors import DistillationError
from lightning_distilbert.report import compared
from lightning_distilbert.report.compared import FILES, Comparison, check_folder
from tests.comparisons import comparison


def test_what_is_written_is_read_back(tmp_path: Path):
    made = comparison()
    paths = made.write(tmp_path / "new" / "folder")
    assert [path.name for path in paths] == list(FILES)
    assert Comparison.read(tmp_path / "new" / "folder") == made
    assert Comparison.read(paths[0]) == made
    assert paths[1].read_text() == made.to_markdown() + "\n"
    assert paths[2].read_text() == made.to_html()
    assert made["int8"].latency_ms.keys() == {16, 64}
    with pytest.raises(KeyError):
        made["bert"]


def test_what_a_later_version_adds_is_left_out():
    values = json.loads(json.dumps(comparison().to_dict()))
    values["more"] = values["models"][0]["more"] = 1
    assert Comparison.from_dict(values) == comparison()


def test_other_files_of_a_folder_stay_and_a_comparison_is_replaced_when_asked(tmp_path: Path):
    (tmp_path / "model.safetensors").write_bytes(b"weights")
    comparison().write(tmp_path)
    with pytest.raises(DistillationError, match=r"holds comparison.json, comparison.md, comparison.html already"):
        comparison().write(tmp_path)
    comparison(rows=3).write(tmp_path, overwrite=True)
    assert Comparison.read(tmp_path).rows == 3
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted([*FILES, "model.safetensors"])


def test_nothing_half_written_stays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    comparison().write(tmp_path)

    def full(self: Path, *_: Any, **__: Any) -> int:
        self.write_bytes(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(compared.Path, "write_text", full)
    with pytest.raises(DistillationError, match=r"could not be written in .*No space left"):
        comparison(rows=3).write(tmp_path, overwrite=True)
    assert Comparison.read(tmp_path) == comparison()
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(FILES)


def test_places_that_cannot_be_written_to_are_refused(tmp_path: Path):
    (tmp_path / "file").touch()
    with pytest.raises(DistillationError, match=r"is a file\. Give the name of a folder"):
        check_folder(tmp_path / "file")
    with pytest.raises(DistillationError, match="'/proc' is no folder that you may write to"):
        check_folder("/proc/comparison")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "cannot be read"),
        ("[]", "no comparison of version 1"),
        ('{"comparison_version": 2}', "no comparison of version 1"),
        (
            '{"comparison_version": 1, "models": [{}]}',
            r"comparison.json: The comparison is damaged \(KeyError\('name'\)",
        ),
        ('{"comparison_version": 1, "models": 3}', "is damaged"),
    ],
)
def test_damaged_file_is_one_error(tmp_path: Path, text: str, message: str):
    (tmp_path / "comparison.json").write_text(text)
    with pytest.raises(DistillationError, match=message):
        Comparison.read(tmp_path)


def test_missing_file_is_said(tmp_path: Path):
    with pytest.raises(DistillationError, match=r"There is no comparison .*comparison.json'\. Make one with"):
        Comparison.read(tmp_path)
