from __future__ import annotations

import json
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from lightning_distilbert import DistillationError, DistillationModule, Retrieval, load
from lightning_distilbert.assistant import Knowledge, Passage
from lightning_distilbert.data.readers import read_rows
from lightning_distilbert.retrieval import encode

LETTERS = "abcdefgh"


class Encoder:
    """Texts are near where they share letters."""

    def __init__(self, thresholds: dict[str, float] | None = None) -> None:
        self.thresholds = thresholds or {}

    def predict(self, texts: list[str]) -> list[list[float]]:
        return [[text.count(letter) + 0.001 for letter in LETTERS] for text in texts]


ROWS = [{"text": "aaa", "source": "first"}, {"text": "bb", "title": "b", "_id": 7}, {"text": "cc", "answer": "Yes."}]


def test_nearest_come_first_with_their_sources():
    knowledge = Knowledge(Encoder(), ROWS)
    found = knowledge.search("bbc", top_k=2)
    assert [item.passage for item in found] == [Passage("bb", "7", "b"), Passage("cc", "3", "", "Yes.")]
    assert found[0].score == pytest.approx(2 / 5**0.5, abs=1e-3)
    assert [row[0].passage.source for row in knowledge.search_all(["a", "b"])] == ["first", "7"]


def test_passages_are_compared_as_the_encoder_s_task_says():
    encoder = Encoder()
    rows = [{"text": "ab", "source": "near"}, {"text": "aaaccc", "source": "long"}]
    assert Knowledge(encoder, rows).search("aab")[0].passage.source == "near"
    encoder.task = Retrieval(normalize=False, similarity="dot")
    found = Knowledge(encoder, rows).search("aab")[0]
    assert (found.passage.source, found.score) == ("long", pytest.approx(6, abs=0.1))


def test_threshold_is_the_one_given_the_one_saved_or_a_half():
    thresholds = [
        Knowledge(Encoder(saved), ROWS, given).threshold
        for saved, given in (({"knowledge": 0.3}, 0.0), ({"knowledge": 0.3}, None), ({}, None))
    ]
    assert thresholds == [0.0, 0.3, 0.5]


def test_duplicates_are_one():
    with pytest.warns(UserWarning, match="2 of 4 passages twice"):
        knowledge = Knowledge(Encoder(), [{"text": "a"}, {"text": " a "}, {"text": "b"}, {"text": "a", "title": ""}])
    assert [passage.source for passage in knowledge.passages] == ["1", "3"]
    assert knowledge.choose_threshold(["a", "c"], ["2", None]) == pytest.approx(0.5, abs=0.02)


def test_a_passage_that_two_sources_share_leaves_their_others_right():
    rows = [{"text": "a", "source": "A"}, {"text": "a", "source": "B"}, {"text": "b", "source": "B"}]
    with pytest.warns(UserWarning, match="1 of 4 passages twice"):
        knowledge = Knowledge(Encoder(), [*rows, {"text": "c", "source": "A"}])
    sources = ["B", "B", "B", None, None]
    # answering all but the last is best, although the fourth is answered then
    assert knowledge.choose_threshold(["a", "bg", "bh", "bbg", "gh"], sources) < knowledge.search("bg")[0].score
    # not so where "cg" and "ch" find what is A's alone, and are answered wrongly
    assert knowledge.choose_threshold(["a", "cg", "ch", "ccg", "gh"], sources) > knowledge.search("ccg")[0].score


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([], "The knowledge is empty"),
        ([{"text": "a"}, {"text": " "}], "Passage 2 has no text"),
        ([{"title": "a"}], "Passage 1 has no text"),
        ([{"text": 3}], "Passage 1: text is '3', which is no text"),
        (["a"], "Passage 1 is a str"),
    ],
)
def test_bad_passages(rows, message: str):
    with pytest.raises(DistillationError, match=message):
        Knowledge(Encoder(), rows)


def test_a_question_with_its_answer_needs_no_text():
    assert Knowledge(Encoder(), [{"title": "How?", "answer": "So."}]).passages[0].searched == "How?"


def test_threshold_parts_what_has_an_answer():
    knowledge = Knowledge(Encoder(), ROWS)
    questions = ["a", "ab", "b", "ch", "dh", "bd"]  # the nearest to "ab" is as near as two, and wrong
    threshold = knowledge.choose_threshold(questions, ["first", "7", "7", "3", None, None])
    assert knowledge.threshold == threshold
    scores = {question: knowledge.search(question)[0].score for question in questions}
    assert scores["bd"] < threshold < scores["b"]
    with pytest.raises(DistillationError, match="no passage of the source 'nowhere'"):
        knowledge.choose_threshold(["a", "b"], ["nowhere", None])
    with pytest.raises(DistillationError, match="2 questions and 1 sources"):
        knowledge.choose_threshold(["a", "b"], ["first"])
    with pytest.raises(DistillationError, match="each of the 1 rows"):
        knowledge.choose_threshold(["a"], ["first"])


def test_threshold_may_count_questions_instead_of_kinds():
    knowledge = Knowledge(Encoder(), ROWS)
    questions, sources = ["a", "b", "c", "ah", "bh", "ag"], ["first", "7", "3", "first", "7", None]
    balanced = knowledge.choose_threshold(questions, sources)
    assert knowledge.choose_threshold(questions, sources, balanced=False) < balanced


@pytest.fixture
def saved(tmp_path: Path, tiny_bert_dir: Path) -> Path:
    module = DistillationModule(Retrieval(), student=str(tiny_bert_dir))
    rows = [{"text": "the house in the city", "source": "a"}, {"text": "the great movie", "answer": "Yes."}]
    return Knowledge(module, rows, threshold=0.25).save(tmp_path / "knowledge")


def test_saved_knowledge_is_a_student_that_comes_back(saved: Path):
    assert load(saved).thresholds == {"knowledge": 0.25}
    knowledge = Knowledge.open(saved)
    assert knowledge.threshold == 0.25
    assert [passage.source for passage in knowledge.passages] == ["a", "2"]
    (found, _) = knowledge.search("the house in the city")
    assert (found.passage.source, round(found.score, 4)) == ("a", 1.0)


def test_vectors_are_kept_and_made_anew_for_other_passages(saved: Path):
    Knowledge.open(saved)
    first = np.load(saved / "passages.npy")
    again = Knowledge.open(saved)
    assert isinstance(again._vectors, np.memmap)
    (saved / "passages.jsonl").write_text(json.dumps({"text": "one two three"}) + "\n")
    assert [passage.text for passage in Knowledge.open(saved).passages] == ["one two three"]
    assert np.load(saved / "passages.npy").shape == (1, first.shape[1])


@pytest.mark.parametrize("left", [0, 150], ids=["empty", "cut"])
def test_damaged_vectors_are_made_anew(saved: Path, left: int):
    wanted = np.array(Knowledge.open(saved)._vectors)
    (saved / "passages.npy").write_bytes((saved / "passages.npy").read_bytes()[:left])
    with pytest.warns(UserWarning, match=r"passages\.npy is damaged, and is made anew"):
        knowledge = Knowledge.open(saved)
    np.testing.assert_array_equal(knowledge._vectors, wanted)
    np.testing.assert_array_equal(np.load(saved / "passages.npy"), wanted)


def test_workers_that_open_one_folder_at_once_share_the_vectors(saved: Path, monkeypatch: pytest.MonkeyPatch):
    encoded, begun, encode_rows = [], threading.Barrier(3), encode.encode_rows

    def slowly(module, rows, *options):
        encoded.append(len(rows))
        time.sleep(0.2)
        return encode_rows(module, rows, *options)

    def opened(encoder: DistillationModule) -> Knowledge:
        begun.wait(60)
        return Knowledge(encoder, read_rows(saved / "passages.jsonl"), vectors=saved / "passages.npy")

    monkeypatch.setattr(encode, "encode_rows", slowly)
    with ThreadPoolExecutor(3) as workers:
        # loaded before: transformers patches its own classes while it loads, for all threads
        found = list(workers.map(opened, [load(saved) for _ in range(3)]))
    assert encoded == [2]
    for knowledge in found:
        np.testing.assert_array_equal(knowledge._vectors, np.load(saved / "passages.npy"))
    assert not list(saved.glob(".*"))


def test_passages_of_another_file(saved: Path, tmp_path: Path):
    (tmp_path / "faq.tsv").write_text("title\tanswer\nhow old\tvery old\n")
    knowledge = Knowledge.open(saved, tmp_path / "faq.tsv")
    assert knowledge.passages == [Passage("", "1", "how old", "very old")]
    assert not (saved / "passages.npy").exists()


def test_folder_without_passages(saved: Path):
    (saved / "passages.jsonl").unlink()
    with pytest.raises(DistillationError, match=r"There are no passages .*passages\.jsonl"):
        Knowledge.open(saved)
    (saved / "passages.jsonl").write_text("")
    with pytest.raises(DistillationError, match="holds no rows"):
        Knowledge.open(saved)


def test_what_is_no_retrieval(tiny_teacher_dir: Path, tmp_path: Path):
    with pytest.raises(DistillationError, match="cannot be saved"):
        Knowledge(Encoder(), ROWS).save(tmp_path / "x")
