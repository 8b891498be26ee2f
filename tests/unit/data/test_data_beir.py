import gzip
import json
import os
from pathlib import Path

import pytest

from lightning_distilbert.data.beir import BeirFolder, RetrievalSplit, read_beir
from lightning_distilbert.errors import DistillationError

REAL = os.environ.get("LIGHTNING_DISTILBERT_DATA")
CORPUS = [
    {"_id": "d1", "title": "Cats", "text": "sleep all day"},
    {"_id": "d2", "text": "dogs bark"},
    {"_id": "d3", "title": "", "text": "trees grow"},
]
QUERIES = [{"_id": "q1", "text": "who sleeps"}, {"_id": "q2", "text": "who barks"}, {"_id": "q3", "text": "none"}]
QRELS = [("q2", "d2", 2), ("q1", "d1", 1), ("q1", "d3", 1), ("q2", "d3", 0)]


def write(folder: Path, corpus=CORPUS, queries=QUERIES, qrels=QRELS, name="test", zipped=False) -> Path:
    (folder / "qrels").mkdir(exist_ok=True)
    lines = "\n".join(map(json.dumps, corpus)).encode()
    (folder / ("corpus.jsonl.gz" if zipped else "corpus.jsonl")).write_bytes(gzip.compress(lines) if zipped else lines)
    (folder / "queries.jsonl").write_text("\n".join(map(json.dumps, queries)))
    table = ["query-id\tcorpus-id\tscore", *("\t".join(map(str, row)) for row in qrels)]
    (folder / "qrels" / f"{name}.tsv").write_text("\n".join(table) + "\n")
    return folder


@pytest.mark.parametrize("zipped", [True, False])
def test_a_folder_is_read_with_titles_and_grades(tmp_path, zipped):
    split = read_beir(write(tmp_path, zipped=zipped))
    assert split.documents == ["Cats sleep all day", "dogs bark", "trees grow"]
    assert split.queries == ["who barks", "who sleeps"]
    assert split.relevant == [{1: 2.0}, {0: 1.0, 2: 1.0}]
    assert split.pairs() == [(0, 1), (1, 0), (1, 2)]


@pytest.mark.parametrize(("name", "split"), [("dev", "validation"), ("train", "train"), ("all", "test")])
def test_qrels_are_splits(tmp_path, name, split):
    folder = BeirFolder(write(tmp_path, name=name))
    assert list(folder.qrels) == [split]
    with pytest.raises(DistillationError, match="no qrels for 'predict', only for"):
        folder.split("predict")


def test_equal_documents_become_one(tmp_path):
    corpus = [*CORPUS[:2], {"_id": "d4", "text": "dogs  bark".replace("  ", " ")}, CORPUS[2]]
    folder = write(tmp_path, corpus=corpus, qrels=[("q2", "d2", 1), ("q2", "d4", 2), ("q2", "d3", 1)])
    with pytest.warns(UserWarning, match="1 of 4 documents have the text of another"):
        split = read_beir(folder)
    assert len(split.documents) == 3
    assert split.relevant == [{1: 2.0, 2: 1.0}]
    assert split.document_ids == ["d1", "d2", "d3"]


def test_ids_are_those_of_the_folder_in_the_order_of_the_texts(tmp_path):
    split = read_beir(write(tmp_path))
    assert split.query_ids == ["q2", "q1"]
    assert split.document_ids == ["d1", "d2", "d3"]


def test_texts_without_ids_are_numbered():
    split = RetrievalSplit.from_pairs([("a", "x"), ("b", "x"), ("a", "y")])
    assert (split.query_ids, split.document_ids) == (["q0", "q1"], ["d0", "d1"])
    assert RetrievalSplit(["a"], ["x"], [{}], ["first"], ["second"]).document_ids == ["second"]
    with pytest.raises(DistillationError, match="2 document_ids are given for 1 texts"):
        RetrievalSplit(["a"], ["x"], [{}], ["q"], ["d", "e"])


def test_judgements_without_a_header_lose_no_line(tmp_path):
    folder = write(tmp_path)
    path = folder / "qrels" / "test.tsv"
    expected = read_beir(folder)
    path.write_text(path.read_text().partition("\n")[2])
    assert read_beir(folder) == expected
    path.write_text("q1\td1\t1\nq1\td9\t1\n")
    with pytest.raises(DistillationError, match=r"1 lines name a document .* the first 'd9' \(line 2\)"):
        read_beir(folder)


def test_of_a_judgement_that_comes_twice_the_higher_counts(tmp_path):
    folder = write(tmp_path, qrels=[("q1", "d1", 1), ("q1", "d1", 2), ("q1", "d1", 0)])
    assert read_beir(folder).relevant == [{0: 2.0}]


def test_queries_without_relevant_documents_are_left_out_with_their_number(tmp_path):
    folder = write(tmp_path, qrels=[("q1", "d1", 1), ("q3", "d1", 0), ("q2", "d1", -1)])
    with pytest.warns(UserWarning, match="2 of 3 queries have no relevant document"):
        assert read_beir(folder).queries == ["who sleeps"]


def test_empty_texts_are_kept_and_counted(tmp_path):
    with pytest.warns(UserWarning, match=r"corpus\.jsonl: 1 of 4 texts are empty"):
        assert read_beir(write(tmp_path, corpus=[*CORPUS, {"_id": "d4", "text": " "}])).documents[3] == ""


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"qrels": [("q1", "d1", 1), ("q1", "d8", 1), ("q2", "d9", 1)]},
            r"test\.tsv: 2 lines name a document that is not in corpus\.jsonl, the first 'd8' \(line 3\)",
        ),
        (
            {"qrels": [("q9", "d1", 1)]},
            r"1 lines name a query that is not in queries\.jsonl, the first 'q9' \(line 2\)",
        ),
        ({"qrels": [("q1", "d1", "high")]}, r"test\.tsv, line 2: the score 'high' is not a whole number"),
        ({"qrels": [("q1", "d1", 0)]}, "no query has a relevant document"),
        ({"qrels": []}, "holds no rows"),
        ({"corpus": [{"id": "d1", "text": "a"}]}, r"corpus\.jsonl, row 1: it needs '_id' and 'text', and has \['id'"),
        ({"corpus": [*CORPUS, CORPUS[0]]}, r"corpus\.jsonl, row 4: the _id 'd1' comes twice"),
        ({"queries": [*QUERIES, QUERIES[1]]}, r"queries\.jsonl, row 4: the _id 'q2' comes twice"),
        ({"queries": []}, r"queries\.jsonl holds no rows"),
        ({"qrels": [("q1", "d1", "")]}, r"test\.tsv, line 2: the score '' is not a whole number"),
        ({"corpus": [{"_id": "d1", "text": 4}]}, "row 1: title '' or text 4 is not a string"),
        ({"corpus": []}, r"corpus\.jsonl holds no rows"),
    ],
)
def test_bad_content(tmp_path, changes, message):
    with pytest.raises(DistillationError, match=message):
        read_beir(write(tmp_path, **changes))


def test_missing_parts(tmp_path):
    with pytest.raises(DistillationError, match=r"has no corpus\.jsonl \(nor corpus\.jsonl\.gz\)"):
        BeirFolder(tmp_path)
    write(tmp_path)
    (tmp_path / "qrels" / "test.tsv").unlink()
    with pytest.raises(DistillationError, match=r"has no qrels/train\.tsv"):
        BeirFolder(tmp_path)


@pytest.mark.parametrize("pair", [("a", 1), ("a", "b", "c"), {"query": "a"}, "ab"])
def test_a_bad_pair_is_named(pair):
    with pytest.raises(DistillationError, match=r"The pairs, row 2: .* is not a query and a document"):
        RetrievalSplit.from_pairs([("a", "b"), pair])


def test_no_pairs():
    with pytest.raises(DistillationError, match="there is not one pair"):
        RetrievalSplit.from_pairs([])


@pytest.mark.skipif(REAL is None, reason="LIGHTNING_DISTILBERT_DATA is not set")
def test_scifact_has_the_counts_that_its_readme_says():
    folder = BeirFolder(Path(REAL) / "scifact" / "beir")
    train, test = folder.split("train"), folder.split("test")
    assert len(test.documents) == 5_183
    assert (len(train.queries), len(train.pairs())) == (809, 919)
    assert (len(test.queries), len(test.pairs())) == (300, 339)


def test_a_bad_score_in_the_first_line_is_no_header(tmp_path):
    folder = write(tmp_path)
    (folder / "qrels" / "test.tsv").write_text("q1\td1\t1.0\nq1\td2\t1\n")
    with pytest.raises(DistillationError, match=r"line 1: the score '1\.0' is not a whole number"):
        read_beir(folder)


@pytest.mark.parametrize(
    ("relevant", "message"),
    [
        ([{0: 1.0, 1: 0.0}], r"'q0' has the grade 0\.0 for document 1 of 2"),
        ([{2: 1.0}], "'q0' has the grade 1.0 for document 2 of 2"),
        ([{0: 1.0}, {}], "relevant has 2 entries for 1 queries"),
    ],
)
def test_what_answers_no_query_is_refused(relevant, message):
    with pytest.raises(DistillationError, match=message):
        RetrievalSplit(["a"], ["x", "y"], relevant)
