"""Rows and files of varied texts."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from lightning_distilbert.data.augmentation import augment_file, augment_rows, options_of
from lightning_distilbert.data.readers import read_rows
from lightning_distilbert.data.text_classification import TextClassificationData
from lightning_distilbert.data.words import CorpusWords, WordAugmenter
from lightning_distilbert.errors import DistillationError

ROWS = [{"id": "7", "text": "great film", "label": "1"}, {"id": "8", "text": "dull plot", "label": "0"}]


class Listed(WordAugmenter):
    """Gives each text the same endings, so that what is done with them can be told exactly."""

    def __init__(self, *endings: str) -> None:
        super().__init__()
        self.endings = endings
        self.keys: list[tuple[int, int]] = []

    def variants(self, texts: Sequence[str], keys: Sequence[tuple[int, int]]) -> list[list[str]]:
        self.keys += keys
        return [[f"{text}{ending}" for ending in self.endings] for text in texts]


def made(rows: Any = ROWS, augmenter: WordAugmenter | None = None, **options: Any) -> list[dict[str, Any]]:
    return list(augment_rows(rows, augmenter or Listed(" a", " b"), **options))


def test_new_rows_have_the_text_and_no_label_of_their_own():
    assert made() == [
        {"text": "great film a", "label": None},
        {"text": "great film b", "label": None},
        {"text": "dull plot a", "label": None},
        {"text": "dull plot b", "label": None},
    ]
    assert [row["label"] for row in made(keep_labels=True)] == ["1", "1", "0", "0"]
    assert made(label=None)[0] == {"text": "great film a"}
    assert made(label="id", keep_labels=True)[0] == {"text": "great film a", "id": "7"}
    assert made([{"text": "x"}])[0] == {"text": "x a", "label": None}  # a source without labels


def test_source_rows_come_before_their_variants_with_their_labels():
    rows = made(with_source=True)
    assert [row["text"] for row in rows][::3] == ["great film", "dull plot"]
    assert [row["label"] for row in rows] == ["1", None, None, "0", None, None]


def test_each_side_of_a_pair_is_varied_while_the_other_stays():
    augmenter = Listed(" a", " b")
    rows = made([{"q": "x", "d": "y", "label": 1}], augmenter, text=["q", "d"])
    assert [(row["q"], row["d"]) for row in rows] == [("x a", "y"), ("x b", "y"), ("x", "y a"), ("x", "y b")]
    assert augmenter.keys == [(0, 0), (0, 1)]
    assert list(rows[0]) == ["q", "d", "label"]


def test_no_row_comes_twice_and_none_is_one_of_the_source():
    rows = [{"text": "x"}, {"text": "x a"}, {"text": "x"}]
    assert [row["text"] for row in made(rows)] == ["x b", "x a a", "x a b"]
    assert [row["text"] for row in made(rows, with_source=True)] == ["x", "x b", "x a", "x a a", "x a b"]
    # the same words on other sides are another row
    pairs = [{"q": "x", "d": "x a"}, {"q": "x a", "d": "x"}]
    assert [(row["q"], row["d"]) for row in made(pairs, Listed(" a"), text=["q", "d"])] == [
        ("x a", "x a"),
        ("x", "x a a"),
        ("x a a", "x"),
    ]


def test_rows_are_worked_on_in_parts_that_change_nothing(monkeypatch: pytest.MonkeyPatch):
    rows = [{"text": f"film {'x' * i} plot"} for i in range(1, 9)]
    corpus = CorpusWords([row["text"] for row in rows])
    whole = made(rows, corpus)
    monkeypatch.setattr("lightning_distilbert.data.augmentation.ROWS", 3)
    assert made(rows, corpus) == whole


@pytest.mark.parametrize(
    ("rows", "options", "message"),
    [
        (ROWS, {"text": "sentence"}, r"The data has no column 'sentence'. Its columns are \['id', 'text', 'label'\]"),
        (ROWS, {"text": ["a", "b", "c"]}, r"text=\['a', 'b', 'c'\]: it is one column"),
        (ROWS, {"label": None, "keep_labels": True}, "keep_labels=True needs the column"),
        ([{"text": "x"}], {"keep_labels": True}, "has no column 'label'"),
        ([{"text": 3}], {"where": "a.tsv"}, "a.tsv, row 1: 'text' is 3, a int and not a string"),
        (ROWS, {"augmenter": Listed()}, r"The data gave no new row.*raise n \(here 20\) or p \(here 0.4\)"),
    ],
)
def test_bad_rows(rows, options, message):
    with pytest.raises(DistillationError, match=message):
        made(rows, **options)


# -- files -------------------------------------------------------------------------------------------------------------


@pytest.fixture
def table(tmp_path: Path) -> Path:
    path = tmp_path / "train.tsv"
    lines = [f"the {'great' if i % 2 else 'dull'} movie\u2028has number {'x' * i}\t{i % 2}" for i in range(1, 30)]
    path.write_text("\n".join(["sentence\tlabel", *lines, ""]), encoding="utf-8")
    return path


def test_file_of_new_rows_is_read_by_the_data_module(table: Path, tmp_path: Path, tokenizer_dir: Path):
    output = tmp_path / "new" / "train.jsonl"
    read, written = augment_file(table, output, text="sentence", method="words", n=4, with_source=True)
    rows = read_rows(output)
    assert (read, written) == (29, len(rows))
    assert 29 * 4 < written <= 29 * 5
    assert [row["label"] for row in rows if row["label"] is not None] == [row["label"] for row in read_rows(table)]
    assert list(output.parent.iterdir()) == [output]
    data = TextClassificationData(output, text="sentence", tokenizer=str(tokenizer_dir), labels=["0", "1"])
    with pytest.warns(UserWarning, match=f"{written - 29} of {written} rows have no label"):
        data.setup("fit")
    labels = [batch["labels"] for batch in data.train_dataloader()]
    assert sum(int((batch == -100).sum()) for batch in labels) == written - 29


def test_columns_header_and_delimiter_are_those_of_the_readers(tmp_path: Path):
    path = tmp_path / "a.txt"
    path.write_text("x;text\n1;great film\n", encoding="utf-8")
    options: dict[str, Any] = {"method": "words", "operations": ["swap"], "n": 9, "delimiter": ";", "label": "x"}
    options["overwrite"] = True
    output = tmp_path / "new.jsonl"
    assert augment_file(path, output, **options) == (1, 1)
    assert augment_file(path, output, columns=["x", "text"], header=True, keep_labels=True, **options) == (1, 1)
    assert read_rows(output) == [{"text": "film great", "x": "1"}]
    assert augment_file(path, output, columns=["x", "text"], **options) == (2, 1)
    with pytest.raises(DistillationError, match=r"suffix '.txt'"):
        augment_file(path, output, **{**options, "delimiter": None})


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"source": "nowhere.tsv"}, "no file 'nowhere.tsv'"),
        ({"source": "empty.tsv"}, "empty.tsv holds no rows"),
        ({"text": "words"}, "train.tsv has no column 'words'"),
        ({"output": "new.tsv"}, "'new.tsv' holds JSON lines"),
        ({"output": "folder.jsonl"}, "'folder.jsonl' is a folder"),
        ({"output": "own.jsonl"}, "'own.jsonl' is there already.*overwrite=True"),
        ({"source": "own.jsonl", "output": "./own.jsonl", "overwrite": True}, "is the input, which would be lost"),
        ({"method": "glove"}, "was given 'glove': choose one of 'mlm', 'words'"),
        ({"method": "mlm"}, "method='mlm' needs a model"),
        ({"model": "teacher"}, "method='words' uses no model"),
        ({"k": 3}, "method='words' has no option 'k'. It has n, p, operations, seed, stop_words"),
        ({"method": "mlm", "model": "x", "operations": ["swap"]}, "method='mlm' has no option 'operations'"),
        ({"p": 7.0}, r"p=7\.0"),
    ],
)
def test_bad_files_and_options(options, message, table: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    Path("empty.tsv").write_text("sentence\tlabel\n")
    Path("own.jsonl").write_text('{"sentence": "great film"}\n')
    Path("folder.jsonl").mkdir()
    before = sorted(tmp_path.iterdir())
    with pytest.raises(DistillationError, match=message):
        augment_file(**{"source": table, "output": "new.jsonl", "text": "sentence", "method": "words", **options})
    assert sorted(tmp_path.iterdir()) == before


def test_options_are_those_of_the_classes():
    assert {"n": 20, "p": 0.4, "k": 15, "seed": 0, "batch_size": 128}.items() <= options_of("mlm").items()
    assert "k" not in options_of("words")
