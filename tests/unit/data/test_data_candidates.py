"""Rows with hard negatives, scores or labels as places of texts."""

from __future__ import annotations

import json

import numpy as np
import pytest

from lightning_distilbert.data.beir import BeirFolder, RetrievalSplit
from lightning_distilbert.data.candidates import NOBODY, CandidateSplit, with_texts
from lightning_distilbert.errors import DistillationError

ROWS = [
    {"query": "a", "document": "x", "negatives": ["y", "z", "y"], "scores": [3.0, 2.0, 1.0, 0.5]},
    {"query": "b", "document": "z", "negatives": ["w"], "scores": [1, None]},
    {"query": "b", "document": "v", "negatives": [], "scores": [4]},
]


def plain(split):
    return split.queries, split.documents, split.pairs.tolist(), [places.tolist() for places in split.negatives]


def test_rows_become_places_of_texts():
    split = CandidateSplit.from_rows(ROWS)
    assert plain(split) == (["a", "b"], ["x", "z", "v", "y", "w"], [[0, 0], [1, 1], [1, 2]], [[3, 1], [4], []])
    # a text that comes twice keeps its first score
    assert [values.tolist()[:3] for values in split.scores] == [
        [3.0, 2.0, 1.0],
        [1.0, pytest.approx(np.nan, nan_ok=True)],
        [4.0],
    ]
    assert split.relevant == [{0: 1.0}, {1: 1.0, 2: 1.0}]
    assert split.most == 2


def test_rows_without_negatives_or_scores():
    rows = [{"query": "a", "document": "x"}, {"query": "a", "document": "y", "negatives": None, "scores": None}]
    split = CandidateSplit.from_rows(rows)
    assert (split.most, split.scores) == (0, [])
    assert plain(split)[3] == [[], []]


def test_negatives_that_answer_their_query_are_left_out_with_their_score():
    rows = [
        {"query": "a", "document": "x", "negatives": ["y", "x", "z"], "scores": [9, 8, 7, 6]},
        {"query": "a", "document": "y"},
        {"query": "b", "document": "z", "negatives": ["y"]},
    ]
    with (
        pytest.warns(UserWarning, match="2 of 3 rows have no scores"),
        pytest.warns(UserWarning, match="2 negatives answer"),
    ):
        split = CandidateSplit.from_rows(rows)
    assert plain(split)[3] == [[2], [], [1]]
    assert split.scores[0].tolist() == [9.0, 6.0]
    assert np.isnan(split.scores[2]).all()


def test_empty_texts_are_kept_and_counted():
    with (
        pytest.warns(UserWarning, match="1 of 2 queries are empty"),
        pytest.warns(UserWarning, match="2 of 2 documents are empty"),
    ):
        split = CandidateSplit.from_rows([{"query": "a", "document": " "}, {"query": "", "document": ""}])
    assert split.documents == [" ", ""]


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"negatives": "y"}, "row 1: 'negatives' holds 'y', and has to be a list of strings"),
        ({"negatives": ["y", 4]}, "row 1: 'negatives' holds 4, and"),
        ({"negatives": ["y"], "scores": [1.0]}, "row 1: there are 1 'scores' for the document and 1 negatives"),
        ({"scores": 4.0}, "row 1: there are 0 'scores'"),
        ({"scores": ["high"]}, "row 1: 'scores' are not numbers"),
        ({"scores": [float("inf")]}, "row 1: a score is infinite"),
        ({"document": 3}, "row 1: 'document' is 3"),
    ],
)
def test_bad_rows_are_named(row, message):
    with pytest.raises(DistillationError, match=message):
        CandidateSplit.from_rows([{"query": "a", "document": "x"} | row])


LABELLED = [
    {"query": "a", "document": "x", "label": "2"},
    {"query": "b", "document": "x", "label": 0},
    {"query": "a", "document": "y", "label": 0},
    {"query": "a", "document": "z", "label": None},
    {"query": "b", "document": "w", "label": 0.0},
    {"query": "a", "document": "y", "label": ""},
]


def test_labelled_rows_become_a_row_for_each_answer():
    split = CandidateSplit.from_labels(LABELLED, "query", "document", "label")
    assert plain(split) == (
        ["a", "b"], ["x", "y", "z", "w"], [[0, 0], [0, 2], [1, NOBODY]], [[1], [1], [0, 3]],
    )  # fmt: skip
    assert split.relevant[0] == {0: 2.0, 1: 0.0, 2: pytest.approx(np.nan, nan_ok=True)}
    assert split.relevant[1] == {0: 0.0, 3: 0.0}


@pytest.mark.parametrize("label", [-1, "yes", float("inf"), [1]])
def test_bad_labels_are_named(label):
    with pytest.raises(DistillationError, match=r"row 2: the label .* is no number of at least 0"):
        CandidateSplit.from_labels([LABELLED[0], {**LABELLED[0], "label": label}], "query", "document", "label")


def test_further_pairs_of_which_nobody_knows():
    split = CandidateSplit.from_rows(ROWS)
    alone = split.with_pairs([], ["x", "new"])
    assert alone.pairs[3:].tolist() == [[NOBODY, 0], [NOBODY, 5]]
    assert [values.tolist() for values in alone.scores[3:]] == [[pytest.approx(np.nan, nan_ok=True)]] * 2
    pairs = split.with_pairs(["c", "a", "a"], ["x", "x", "w"])
    assert pairs.queries == ["a", "b", "c"]
    assert pairs.pairs[3:].tolist() == [[2, 0], [0, 0], [0, 4]]
    # what is known stays
    assert pairs.relevant[0] == {0: 1.0, 4: pytest.approx(np.nan, nan_ok=True)}
    assert (len(split.pairs), split.queries, len(split.relevant)) == (3, ["a", "b"], 2)


def test_further_pairs_leave_one_text_under_several_ids_at_its_places():
    relevant = [{0: 1.0}, {1: 1.0}, {2: 1.0}]
    split = CandidateSplit.of(RetrievalSplit(["a", "a", "b"], ["x", "x", "y"], relevant))
    more = split.with_pairs(["b", "a", "c"], ["new", "x", "y"])
    assert (more.queries, more.documents) == (["a", "a", "b", "c"], ["x", "x", "y", "new"])
    assert more.pairs.tolist() == [[0, 0], [1, 1], [2, 2], [2, 3], [0, 0], [3, 2]]
    assert more.relevant[:2] == [{0: 1.0}, {1: 1.0}]
    assert split.with_pairs([], ["x", "z"]).documents == ["x", "x", "y", "z"]


def test_documents_in_no_row_are_left_out():
    split = CandidateSplit.of(RetrievalSplit(["a", "b"], ["u", "v", "w", "x"], [{3: 1.0}, {1: 2.0, 3: 1.0}]))
    used = split.used()
    assert used.documents == ["v", "x"]
    assert used.pairs.tolist() == [[0, 1], [1, 0], [1, 1]]
    assert used.relevant == [{1: 1.0}, {0: 2.0, 1: 1.0}]
    labelled = CandidateSplit.from_labels(LABELLED, "query", "document", "label").used()
    assert labelled.pairs[2].tolist() == [1, NOBODY]
    assert labelled.documents == ["x", "y", "z", "w"]


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "qrels").mkdir()
    texts = [{"_id": f"d{i}", "title": "The", "text": f"text {i}"} for i in range(4)]
    (tmp_path / "corpus.jsonl").write_text("\n".join(map(json.dumps, texts)))
    (tmp_path / "queries.jsonl").write_text(json.dumps({"_id": "7", "text": "who"}))
    (tmp_path / "qrels" / "test.tsv").write_text("query-id\tcorpus-id\tscore\n7\td0\t1\n")
    return BeirFolder(tmp_path)


def test_ids_become_the_texts_of_a_folder(folder):
    rows = [
        {"query_id": 7, "document_id": "d1", "negative_ids": ["d3", "d0"], "scores": [1, 2, 3]},
        {"query": "own", "document_id": "d2", "negatives": ["given"], "negative_ids": ["d1"]},
    ]
    found = with_texts(rows, folder, "query", "document", "here")
    assert (found[0]["query"], found[0]["document"], found[0]["negatives"]) == (
        "who",
        "The text 1",
        ["The text 3", "The text 0"],
    )
    assert (found[1]["query"], found[1]["document"], found[1]["negatives"]) == ("own", "The text 2", ["given"])
    assert found[0]["scores"] == [1, 2, 3]


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"query_id": "8"}, r"here, row 1: query_id names '8', which is not in .*queries\.jsonl"),
        ({"negative_ids": ["d0", "d9"]}, r"negative_ids names 'd9', which is not in .*corpus\.jsonl"),
        ({"negative_ids": "d0"}, "'negative_ids' is 'd0', and has to be a list"),
    ],
)
def test_unknown_ids_are_named(folder, row, message):
    rows = [{"query_id": "7", "document_id": "d0"} | row]
    with pytest.raises(DistillationError, match=message):
        with_texts(rows, folder, "query", "document", "here")


def test_ids_need_a_folder():
    with pytest.raises(DistillationError, match=r"no 'query' and 'document' but only ids .* no BEIR folder among"):
        with_texts([{"query_id": "7", "document_id": "d0"}], None, "query", "document", "here")
    rows = [{"query": "a", "document": "b", "query_id": "7"}]
    assert with_texts(rows, None, "query", "document", "here") == rows
