from __future__ import annotations

import gzip
import json
import os
from pathlib import Path

import pytest

from lightning_distilbert import DistillationError
from lightning_distilbert.data import read_atis, read_clinc150

WHOLE = {name: [["a text", "balance"]] for name in ("train", "val", "test")}
WHOLE |= {f"oos_{name}": [["another", "oos"]] for name in ("train", "val", "test")}
LINE = "BOS from new york EOS\tO O B-fromloc I-fromloc atis_flight\n"


def test_clinc150_has_its_splits(tmp_path: Path):
    path = tmp_path / "data.json.gz"
    path.write_bytes(gzip.compress(json.dumps(WHOLE).encode()))
    splits = read_clinc150(path)
    assert list(splits) == ["train", "validation", "test"]
    assert splits["validation"] == [{"text": "a text", "label": "balance"}, {"text": "another", "label": "oos"}]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "no JSON"),
        ("[]", "has no train, oos_train"),
        (json.dumps({name: rows for name, rows in WHOLE.items() if name != "oos_val"}), "has no oos_val"),
        (json.dumps(WHOLE | {"val": [["a", "b"], ["a text"]]}), r"val, entry 2: \['a text'\] is no pair"),
        (json.dumps(WHOLE | {"val": [["a", 1]]}), "is no pair"),
    ],
)
def test_clinc150_of_another_layout_is_refused(tmp_path: Path, content: str, message: str):
    (tmp_path / "data.json").write_text(content)
    with pytest.raises(DistillationError, match=message):
        read_clinc150(tmp_path / "data.json")


def test_atis_lines(tmp_path: Path):
    (tmp_path / "a.iob").write_text(LINE + "\n" + LINE)
    rows = read_atis(tmp_path / "a.iob")
    assert len(rows) == 2
    assert rows[0] == {
        "text": "from new york", "tokens": ["from", "new", "york"], "tags": ["O", "B-fromloc", "I-fromloc"],
        "label": "atis_flight",
    }  # fmt: skip


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "holds no request"),
        (LINE + LINE.replace(" I-fromloc", ""), "line 2: "),
        (LINE.replace("\t", " "), "line 1"),
        (LINE.replace("BOS ", ""), "not 'BOS words EOS'"),
        ("BOS EOS\tO atis_flight\n", "line 1"),
    ],
)
def test_atis_of_another_form_is_refused(tmp_path: Path, content: str, message: str):
    (tmp_path / "a.iob").write_text(content)
    with pytest.raises(DistillationError, match=message):
        read_atis(tmp_path / "a.iob")


@pytest.mark.parametrize("read", [read_atis, read_clinc150])
def test_missing_file(read, tmp_path: Path):
    with pytest.raises(DistillationError, match="There is no file"):
        read(tmp_path / "nowhere")


@pytest.mark.skipif("LIGHTNING_DISTILBERT_DATA" not in os.environ, reason="LIGHTNING_DISTILBERT_DATA is not set")
def test_published_files():
    root = Path(os.environ["LIGHTNING_DISTILBERT_DATA"])
    splits = read_clinc150(root / "clinc150" / "data_full.json")
    assert {split: len(rows) for split, rows in splits.items()} == {"train": 15100, "validation": 3100, "test": 5500}
    assert len({row["label"] for row in splits["train"]}) == 151
    assert sum(row["label"] == "oos" for row in splits["test"]) == 1000
    assert [len(read_atis(root / "atis" / f"atis.{name}.w-intent.iob")) for name in ("train", "test")] == [4978, 893]
