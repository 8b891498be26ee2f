from __future__ import annotations

from pathlib import Path

import pytest

from lightning_distilbert.data.beir import RetrievalSplit
from lightning_distilbert.errors import DistillationError
from lightning_distilbert.retrieval.inputs import open_split


def test_a_file_of_pairs_is_any_split(tmp_path: Path):
    (tmp_path / "pairs.tsv").write_text("question\tanswer\na\tx\nb\ty\na\ty\n")
    for split in ("train", "test"):
        found = open_split(tmp_path / "pairs.tsv", split, query="question", document="answer")
        assert (found.queries, found.documents) == (["a", "b"], ["x", "y"])
        assert found.relevant == [{0: 1.0, 1: 1.0}, {1: 1.0}]
        assert (found.query_ids, found.document_ids) == (["q0", "q1"], ["d0", "d1"])
    with pytest.raises(DistillationError, match="has no column 'query'"):
        open_split(tmp_path / "pairs.tsv")


def test_a_folder_of_pairs_has_splits(tmp_path: Path):
    (tmp_path / "test.tsv").write_text("query\tdocument\na\tx\n")
    assert open_split(str(tmp_path)).documents == ["x"]
    (tmp_path / "dev.tsv").write_text("query\tdocument\na\ty\n")
    for name in ("dev", "validation"):
        assert open_split(tmp_path, name).documents == ["y"]
    with pytest.raises(DistillationError, match="has no split 'train', only validation, test"):
        open_split(tmp_path, "train")


def test_a_split_is_taken_as_it_is():
    split = RetrievalSplit(["a"], ["x"], [{0: 1.0}])
    assert open_split(split, "validation") is split


def test_nothing_there(tmp_path: Path):
    with pytest.raises(DistillationError, match=r"no file or folder .*gone"):
        open_split(tmp_path / "gone")
