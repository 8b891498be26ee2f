from __future__ import annotations

import os
from pathlib import Path

import pytest

from lightning_distilbert.errors import DistillationError
from lightning_distilbert.report.table import Table, replace_region


def test_alignment_changes_both_forms() -> None:
    rows = [["a", "bb"], ["ccc", 1]]
    left = Table(["x", "heading"], rows, align="ll")
    right = Table(["x", "heading"], rows)
    assert left.to_text().splitlines()[2:] == ["a    bb", "ccc  1"]
    assert right.to_text().splitlines()[2:] == ["a         bb", "ccc        1"]
    assert left.to_markdown().splitlines()[1] == "| :--- | :--- |"
    assert right.to_markdown().splitlines()[1] == "| :--- | ---: |"


def test_a_cell_cannot_break_the_table() -> None:
    table = Table(["a|b"], [["two\nlines"]])
    assert table.to_markdown().splitlines() == [r"| a\|b |", "| :--- |", "| two lines |"]


def test_a_table_without_rows_has_its_headings() -> None:
    assert Table(["a", "b"], []).to_text() == "a  b\n-  -"


def test_shapes_are_checked() -> None:
    with pytest.raises(DistillationError, match="1 cells for 2 columns"):
        Table(["a", "b"], [["x"]])
    with pytest.raises(DistillationError, match="align='lc'"):
        Table(["a", "b"], [], align="lc")
    with pytest.raises(DistillationError, match="0 columns"):
        Table([], [])


@pytest.fixture
def readme(tmp_path: Path) -> Path:
    path = tmp_path / "README.md"
    path.write_text("before\n<!-- t:begin -->\nold\n<!-- t:end -->\n<!-- u:begin --><!-- u:end -->\n", encoding="utf-8")
    return path


def test_only_the_region_is_replaced(readme: Path) -> None:
    assert replace_region(readme, "t", "new \\1 \\n\n") is True
    assert readme.read_text() == (
        "before\n<!-- t:begin -->\nnew \\1 \\n\n<!-- t:end -->\n<!-- u:begin --><!-- u:end -->\n"
    )
    assert replace_region(readme, "t", "new \\1 \\n") is False
    assert replace_region(readme, "u", "x") is True
    assert [path.name for path in readme.parent.iterdir()] == ["README.md"]


def test_a_write_that_fails_leaves_the_old_file(readme: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    old = readme.read_text()

    def fail(*_: object) -> None:
        raise OSError("no space")

    monkeypatch.setattr(os, "replace", fail)
    monkeypatch.setattr(Path, "replace", fail)
    with pytest.raises(OSError, match="no space"):
        replace_region(readme, "t", "new")
    assert readme.read_text() == old
    assert [path.name for path in readme.parent.iterdir()] == ["README.md"]


@pytest.mark.parametrize("text", ["", "<!-- t:end --><!-- t:begin -->", "<!-- t:begin -->" * 2 + "<!-- t:end -->"])
def test_marks_must_be_there_once_and_in_order(tmp_path: Path, text: str) -> None:
    path = tmp_path / "README.md"
    path.write_text(text)
    with pytest.raises(DistillationError, match="write each once, in this order"):
        replace_region(path, "t", "new")
    assert path.read_text() == text


def test_a_missing_file_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(DistillationError, match="There is no file"):
        replace_region(tmp_path / "none.md", "t", "new")
