"""Parallel texts: two files, folders, rows, and what is wrong with them."""

from __future__ import annotations

import gzip
from pathlib import Path

import pytest
import pytorch_lightning  # noqa: F401 (without a Trainer nobody knows which process warns)

from lightning_distilbert.data.parallel import (
    Parallel,
    is_pair_of_files,
    name_of,
    open_parallel,
    read_columns,
    read_files,
    without_empty,
)
from lightning_distilbert.errors import DistillationError

LANGUAGES = ["en", "de"]


def write(folder: Path, name: str, text: str) -> str:
    path = folder / name
    if name.endswith(".gz"):
        path.write_bytes(gzip.compress(text.encode()))
    else:
        path.write_text(text, encoding="utf-8")
    return str(path)


def test_two_files_are_read_line_by_line_plain_and_compressed(tmp_path: Path):
    pair = [write(tmp_path, "a.en", "a dog\n\na cat\n"), write(tmp_path, "a.de.gz", "ein Hund\nnichts\neine Katze")]
    assert read_files(pair) == Parallel(["a dog", "", "a cat"], ["ein Hund", "nichts", "eine Katze"])


def test_files_of_other_lengths_are_refused(tmp_path: Path):
    pair = [write(tmp_path, "a.en", "a\nb\n"), write(tmp_path, "a.de", "a\n")]
    with pytest.raises(DistillationError, match=r"a\.en has 2 lines and .*a\.de 1: line by line"):
        read_files(pair)


def test_files_that_are_none_or_of_another_kind_are_refused(tmp_path: Path):
    empty = [write(tmp_path, "e.en", ""), write(tmp_path, "e.de", "")]
    with pytest.raises(DistillationError, match="hold no lines"):
        read_files(empty)
    with pytest.raises(DistillationError, match="There is no file"):
        read_files([empty[0], tmp_path / "nowhere.de"])
    with pytest.raises(DistillationError, match="no file of lines"):
        read_files([empty[0], write(tmp_path, "a.jsonl", "{}")])
    (tmp_path / "latin.de").write_bytes("Bäume\n".encode("latin-1"))
    with pytest.raises(DistillationError, match="UTF-8"):
        read_files([write(tmp_path, "one.en", "trees\n"), tmp_path / "latin.de"])


def test_a_folder_of_both_languages_gives_its_splits(tmp_path: Path):
    for name in ("train.en.gz", "train.de", "val.en", "val.de", "train.fr"):
        write(tmp_path, name, "a\n")
    found = open_parallel(tmp_path, LANGUAGES)
    assert {split: [Path(name).name for name in pair] for split, pair in found.items()} == {
        "train": ["train.en.gz", "train.de"],
        "validation": ["val.en", "val.de"],
    }
    assert [Path(name).name for name in open_parallel(tmp_path / "train", LANGUAGES)["train"]] == [
        "train.en.gz", "train.de",
    ]  # fmt: skip
    mapping = open_parallel({"test": str(tmp_path / "val"), "train": [{"source": "a"}]}, LANGUAGES)
    assert Path(mapping["test"][1]).name == "val.de"
    assert mapping["train"] == [{"source": "a"}]
    write(tmp_path, "dev.en", "a\n")
    with pytest.raises(DistillationError, match=r"no .*dev\.de beside it"):
        open_parallel(tmp_path, LANGUAGES)
    write(tmp_path, "dev.de", "a\n")
    with pytest.raises(DistillationError, match="more than one pair of files for 'validation'"):
        open_parallel(tmp_path, LANGUAGES)


def test_other_folders_files_and_mappings_are_those_of_any_data(tmp_path: Path):
    file = write(tmp_path, "train.jsonl", "{}")
    assert open_parallel(tmp_path, LANGUAGES) == {"train": Path(file)}
    assert open_parallel(file, LANGUAGES) == {"train": Path(file)}
    pair = ["x.en", "x.de"]
    assert open_parallel({"dev": pair}, None) == {"validation": pair}
    for languages in ("en", ["en"]):
        with pytest.raises(DistillationError, match="they are two"):
            open_parallel(pair, languages)


def test_files_in_two_languages_that_nobody_named(tmp_path: Path):
    for name in ("train.en", "train.de", "dev.en.gz", "dev.de.gz", "notes.md"):
        write(tmp_path, name, "a\n")
    for source in (tmp_path, str(tmp_path / "train"), {"validation": tmp_path / "dev"}):
        with pytest.raises(DistillationError, match=r"end in \.de, \.en: name two.*languages=\['de', 'en'\]"):
            open_parallel(source, None)
    file = write(tmp_path, "train.jsonl", "{}")
    assert open_parallel(tmp_path, None) == {"train": Path(file)}


def test_rows_have_columns_or_a_dict_of_languages():
    rows = [{"source": "a", "target": "b"}]
    assert read_columns(rows, ("source", "target"), None, "here") == Parallel(["a"], ["b"])
    hub = [{"translation": {"en": "a", "de": "b"}}]
    assert read_columns(hub, ("source", "target"), LANGUAGES, "here") == Parallel(["a"], ["b"])
    with pytest.raises(DistillationError, match=r"Say which: languages"):
        read_columns(hub, ("source", "target"), None, "here")
    with pytest.raises(DistillationError, match=r"row 1: 'translation' is 'a' and no dict"):
        read_columns([{"translation": "a"}], ("source", "target"), LANGUAGES, "here")
    with pytest.raises(DistillationError, match="no column 'target'"):
        read_columns([{"source": "a"}], ("source", "target"), None, "here")
    assert read_columns([{"source": "a"}], ("source", "target"), None, "here", optional=True) == Parallel(["a"], None)
    with pytest.raises(DistillationError, match="row 1: 'target' is None"):
        read_columns([{"source": "a", "target": None}], ("source", "target"), None, "here")


def test_pairs_with_an_empty_side_are_left_out_and_counted():
    pairs = Parallel(["a", " ", "c", "d"], ["A", "B", "", "D"])
    with pytest.warns(UserWarning, match="here: 2 of 4 pairs have an empty side and are left out, .* number 2"):
        assert without_empty(pairs, "here") == Parallel(["a", "d"], ["A", "D"])
    with pytest.raises(DistillationError, match="none of the 1 pairs"):
        without_empty(Parallel(["a"], [""]), "here")
    whole = Parallel(["a"], ["A"])
    assert without_empty(whole, "here") == whole


def test_pairs_of_files_are_told_from_rows():
    assert is_pair_of_files((Path("a"), "b"))
    assert not is_pair_of_files(["a", "b", "c"])
    assert not is_pair_of_files("ab")
    assert (name_of(["a", "b"]), name_of("x")) == ("a and b", "x")


def test_a_carriage_return_within_a_line_parts_no_pair(tmp_path: Path):
    files = [tmp_path / "a.en", tmp_path / "a.de"]
    for file, content in zip(files, (b"one\rtwo\nthree\n", b"eins zwei\ndrei\n"), strict=True):
        file.write_bytes(content)
    assert read_files(files) == Parallel(["one\rtwo", "three"], ["eins zwei", "drei"])
