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
    corpus = [*CORPUS, {"_id": "d4", "text": "dogs  bark".replace("  ", " ")}]
    folder = write(tmp_path, corpus=corpus, qrels=[("q2", "d2", 1), ("q2", "d4", 2)])
    with pytest.warns(UserWarning, match="1 of 4 documents have the text of another"):
        split = read_beir(folder)
    assert len(split.documents) == 3
    assert split.relevant == [{1: 2.0}]


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
