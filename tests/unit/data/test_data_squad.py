from __future__ import annotations

import gzip
import json

import pytest

from lightning_distilbert.data.squad import (
    find_answer,
    flatten_squad,
    open_question_splits,
    parse_answers,
    read_questions,
)
from lightning_distilbert.errors import DistillationError

CONTEXT = "the tower was built in the city"
TREE = {
    "version": "v2.0",
    "data": [
        {
            "title": "Towers",
            "paragraphs": [
                {
                    "context": CONTEXT,
                    "qas": [
                        {"id": "1", "question": "what?", "answers": [{"text": "tower", "answer_start": 4}]},
                        {"id": "2", "question": "who?", "answers": [], "is_impossible": True},
                    ],
                },
                {"context": "the city", "qas": [{"id": "3", "question": "where?"}]},
            ],
        },
        {"paragraphs": [{"context": "x", "qas": []}]},
    ],
}


def test_the_tree_becomes_one_row_per_question_with_all_its_fields():
    rows = flatten_squad(TREE, "here")
    assert [row["id"] for row in rows] == ["1", "2", "3"]
    assert rows[0] == {
        "title": "Towers",
        "context": CONTEXT,
        "id": "1",
        "question": "what?",
        "answers": [{"text": "tower", "answer_start": 4}],
    }
    assert rows[1]["is_impossible"]
    assert "answers" not in rows[2]
    assert rows[0]["context"] is rows[1]["context"]  # not a copy for each question


@pytest.mark.parametrize("suffix", [".json", ".json.gz"])
def test_files_of_squad_are_read(tmp_path, suffix):
    path = tmp_path / f"train{suffix}"
    text = "\ufeff" + json.dumps(TREE, indent=1)
    path.write_bytes(gzip.compress(text.encode()) if suffix.endswith("gz") else text.encode())
    assert read_questions(path) == flatten_squad(TREE, "here")
    assert read_questions(str(path)) == flatten_squad(TREE, "here")


def test_other_json_is_read_as_rows(tmp_path):
    rows = [{"question": "what?", "context": CONTEXT}, {"question": "who?", "context": CONTEXT}]
    for name, text in (
        ("lines.jsonl", "\n".join(map(json.dumps, rows))),
        ("lines.json", "\n".join(map(json.dumps, rows))),
        ("array.json", json.dumps(rows)),
    ):
        (tmp_path / name).write_text(text)
        assert read_questions(tmp_path / name) == rows
    (tmp_path / "one.json").write_text(json.dumps(rows[0]))
    assert read_questions(tmp_path / "one.json") == rows[:1]
    assert read_questions(rows) == rows


def test_pairs_are_rows():
    assert read_questions([("who?", "me"), ["what?", "it"]])[1] == {"question": "what?", "context": "it"}
    with pytest.raises(DistillationError, match=r"Entry 2 is \('what\?',\)"):
        read_questions([("who?", "me"), ("what?",)])


def test_a_broken_file_says_what_is_wrong(tmp_path):
    path = tmp_path / "train-v1.1.json"
    path.write_text(json.dumps(TREE)[:-20])
    with pytest.raises(DistillationError, match=r"train-v1.1.json, line 1: not valid JSON"):
        read_questions(path)
    path.write_text('{"data": [{"paragraphs": [{"context": "\\ud83d", "qas": []}]}]}')
    with pytest.raises(DistillationError, match="one half of a character"):
        read_questions(path)
    with pytest.raises(DistillationError, match="no file"):
        read_questions(tmp_path / "none.json")


def without(path, value=None):
    """The tree with the field at this path missing, or of another value."""
    tree = json.loads(json.dumps(TREE))
    *way, last = path
    place = tree
    for step in way:
        place = place[step]
    if value is None:
        del place[last]
    else:
        place[last] = value
    return tree


@pytest.mark.parametrize(
    ("tree", "message"),
    [
        ({"data": {}}, r"here: 'data' should be a list and is a dict"),
        ({"data": []}, r"here holds no questions"),
        (without(["data", 0, "paragraphs"]), r"here, data\[0\]: 'paragraphs' should be a list and is a NoneType"),
        (without(["data", 0, "paragraphs", 1, "context"]), r"data\[0\].paragraphs\[1\]: 'context' should be a str"),
        (without(["data", 0, "paragraphs", 0, "qas"]), r"data\[0\].paragraphs\[0\]: 'qas' should be a list"),
        (without(["data", 0, "paragraphs", 0, "qas", 1, "question"]), r"paragraphs\[0\].qas\[1\]: 'question' should"),
        (without(["data", 1], "text"), r"data\[1\]: 'paragraphs' should be a list"),
    ],
)
def test_a_missing_field_is_named_with_its_place(tree, message):
    with pytest.raises(DistillationError, match=message):
        flatten_squad(tree, "here")


def test_answers_in_both_layouts():
    expected = [("tower", 4), ("the tower", 0)]
    assert parse_answers([{"text": text, "answer_start": start} for text, start in expected], "here") == expected
    assert parse_answers({"text": ["tower", "the tower"], "answer_start": [4, 0]}, "here") == expected
    assert parse_answers([], "here") == parse_answers({"text": [], "answer_start": []}, "here") == []
    assert parse_answers(None, "here") is None


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ([{"text": "tower"}], r"row 1: the answer 'tower' at None has to be"),
        ([{"answer_start": 4}], r"the answer None at 4"),
        ([{"text": "tower", "answer_start": "4"}], r"at '4'"),
        ([{"text": "tower", "answer_start": True}], r"at True"),
        (["tower"], r"the answer 'tower' at None"),
        ("tower", r"answers='tower' is no list"),
        ({"text": ["tower"]}, r"has to hold the lists"),
        ({"text": "tower", "answer_start": [4]}, r"has to hold the lists"),
        ({"text": ["tower"], "answer_start": []}, r"not as many texts as places"),
    ],
)
def test_answers_of_no_known_layout_are_refused(value, message):
    with pytest.raises(DistillationError, match=message):
        parse_answers(value, "row 1")


@pytest.mark.parametrize(
    ("answers", "place"),
    [
        ([("tower", 4)], (4, 9)),
        ([("city", 4), ("tower", 4)], (4, 9)),
        ([(" tower ", 3)], (4, 9)),
        ([("tower", 5)], None),
        ([("tower", -27)], None),
        ([("tower", 400)], None),
        ([("", 0), (" ", 3)], None),
        ([], None),
    ],
)
def test_the_first_answer_that_stands_there_is_found(answers, place):
    assert find_answer(answers, CONTEXT) == place


def test_a_folder_of_squad_files(tmp_path):
    for name in ("train-v1.1.json", "dev-v1.1.json", "README.md", "evaluate.py", "test.jsonl"):
        (tmp_path / name).write_text("x")
    (tmp_path / "predict").mkdir()
    found = open_question_splits(tmp_path)
    assert {split: path.name for split, path in found.items()} == {
        "train": "train-v1.1.json",
        "validation": "dev-v1.1.json",
        "test": "test.jsonl",
    }
    (tmp_path / "dev-v2.0.json").write_text("x")
    with pytest.raises(DistillationError, match=r"more than one file for 'validation': dev-v1.1.json, dev-v2.0.json"):
        open_question_splits(tmp_path)


def test_a_folder_without_a_split_and_other_sources(tmp_path):
    (tmp_path / "notes.json").write_text("{}")
    with pytest.raises(DistillationError, match="has no file named after a split"):
        open_question_splits(tmp_path)
    assert open_question_splits(tmp_path / "notes.json") == {"train": tmp_path / "notes.json"}
    assert list(open_question_splits({"dev": [("who?", "me")]})) == ["validation"]
