from __future__ import annotations

import json
import math
import os
import sys
from pathlib import Path

import pytest
import pytrec_eval
import torch

from lightning_distilbert import DistillationModule, Retrieval
from lightning_distilbert.data.beir import RetrievalSplit, read_beir
from lightning_distilbert.errors import DistillationError, MissingExtraError
from lightning_distilbert.metrics import ranking_scores
from lightning_distilbert.report.bootstrap import bootstrap_interval
from lightning_distilbert.retrieval.bm25 import BM25
from lightning_distilbert.retrieval.encode import encode_corpus
from lightning_distilbert.retrieval.evaluate import evaluate_retrieval, in_order, run_of, score_run
from lightning_distilbert.retrieval.search import search

REAL = os.environ.get("LIGHTNING_DISTILBERT_DATA")
WORDS = "cat dog house tree water city day night man woman child people world time year life".split()


@pytest.fixture
def data() -> RetrievalSplit:
    """Return forty documents of three words, and twelve queries of one word with up to three graded documents."""
    documents = [f"{WORDS[i % 16]} {WORDS[(i * 5 + 1) % 16]} {WORDS[(i * 7 + i // 16) % 16]}" for i in range(40)]
    relevant = [{(i * 3 + j * 11) % 40: float(1 + (i + j) % 3) for j in range(1 + i % 3)} for i in range(12)]
    queries = [WORDS[i] for i in range(12)]
    return RetrievalSplit(queries, documents, relevant, [f"q{i}" for i in range(12)], [f"d{i:02}" for i in range(40)])


@pytest.fixture
def encoder(tiny_bert_dir: Path) -> DistillationModule:
    """Return a module with an untrained student."""
    return DistillationModule(Retrieval(), student=str(tiny_bert_dir))


def by_hand(data: RetrievalSplit, run: dict[str, dict[str, float]], k_ndcg: int, k_mrr: int, k_recall: int):
    """Score with loops."""
    found = {"ndcg": [], "mrr": [], "recall": []}
    for query, grades in zip(data.query_ids, data.relevant, strict=True):
        judged = {data.document_ids[place]: grade for place, grade in grades.items()}
        order = in_order(run[query])
        gain = sum(judged.get(d, 0) / math.log2(r + 2) for r, d in enumerate(order[:k_ndcg]))
        ideal = sum(g / math.log2(r + 2) for r, g in enumerate(sorted(judged.values(), reverse=True)[:k_ndcg]))
        found["ndcg"].append(gain / ideal)
        found["mrr"].append(max([1 / (r + 1) for r, d in enumerate(order[:k_mrr]) if d in judged], default=0.0))
        found["recall"].append(len(set(order[:k_recall]) & set(judged)) / len(judged))
    return found


@pytest.mark.parametrize("ranker", ["bm25", "encoder"])
def test_scores_are_those_of_loops_over_the_ranking(data: RetrievalSplit, ranker: str, request: pytest.FixtureRequest):
    system = ranker if ranker == "bm25" else request.getfixturevalue("encoder")
    results = evaluate_retrieval(data, system, ndcg_at=4, mrr_at=3, recall_at=7)
    assert {len(found) for found in results.run.values()} <= set(range(8))
    expected = by_hand(data, results.run, 4, 3, 7)
    for key, column in expected.items():
        name = f"{key}@{ {'ndcg': 4, 'mrr': 3, 'recall': 7}[key] }"
        assert results.per_query[name].tolist() == pytest.approx(column)
        assert results.scores[name] == pytest.approx(sum(column) / 12)
        assert results.intervals(resamples=50)[name] == bootstrap_interval(results.per_query[name], resamples=50)
    assert 0 < results.scores["mrr@3"] < 1
    assert results.query_ids == data.query_ids


def test_an_encoder_searches_exactly(data: RetrievalSplit, encoder: DistillationModule):
    run = evaluate_retrieval(data, encoder).run
    queries, documents = encode_corpus(encoder, data.queries), encode_corpus(encoder, data.documents)
    scores, positions = search(queries, documents, 100)
    assert run == run_of(data, scores, positions, 100)
    # without ties these are the metrics that the Trainer logs
    relevant = torch.tensor([[*grades, *[-1] * (3 - len(grades))] for grades in data.relevant])
    grades = torch.tensor([[*grades.values(), *[0.0] * (3 - len(grades))] for grades in data.relevant])
    for name, values in ranking_scores(positions, relevant, grades).items():
        assert evaluate_retrieval(data, encoder).per_query[name].tolist() == pytest.approx(values.tolist(), abs=1e-6)


def test_options_change_the_ranking(data: RetrievalSplit, encoder: DistillationModule):
    encoder.task = Retrieval(normalize=False)
    base = evaluate_retrieval(data, encoder).run
    assert evaluate_retrieval(data, encoder, similarity="dot").run != base
    assert evaluate_retrieval(data, encoder, max_length=3).run != base
    assert evaluate_retrieval(data, encoder, precision="bf16-mixed").run != base
    assert evaluate_retrieval(data, "bm25").run != base


def test_an_encoder_s_own_similarity_is_taken_unless_another_is_named(
    data: RetrievalSplit, encoder: DistillationModule, tmp_path: Path
):
    runs = {}
    for similarity in ("cosine", "dot"):
        encoder.task = Retrieval(normalize=False, similarity=similarity)
        runs[similarity] = evaluate_retrieval(data, encoder).run
        encoder.save_student(tmp_path / similarity)
        assert evaluate_retrieval(data, tmp_path / similarity).run == runs[similarity]
    assert runs["cosine"] == evaluate_retrieval(data, encoder, similarity="cosine").run != runs["dot"]


def test_the_vectors_of_the_corpus_are_kept(data: RetrievalSplit, encoder: DistillationModule, tmp_path: Path):
    first = evaluate_retrieval(data, encoder, vectors=tmp_path / "corpus.npy")
    assert (tmp_path / "corpus.npy").is_file()
    lengths = []
    encoder.student.register_forward_pre_hook(
        lambda module, args, kwargs: lengths.append(len(kwargs["input_ids"])), with_kwargs=True
    )
    assert evaluate_retrieval(data, encoder, vectors=tmp_path / "corpus.npy").run == first.run
    assert sum(lengths) == len(data.queries)


def test_documents_with_the_id_of_the_query_are_passed_over(data: RetrievalSplit):
    same = RetrievalSplit(data.documents[:5], data.documents, [{9: 1.0}] * 5, data.document_ids[:5], data.document_ids)
    found = evaluate_retrieval(same, "bm25", ndcg_at=2, mrr_at=2, recall_at=2).run
    assert all(next(iter(row)) == query for query, row in found.items())
    found = evaluate_retrieval(same, "bm25", ndcg_at=2, mrr_at=2, recall_at=2, ignore_identical_ids=True).run
    assert all(query not in row and len(row) == 2 for query, row in found.items())


def test_a_run_file_scores_the_same_in_trec_eval(data: RetrievalSplit, encoder: DistillationModule, tmp_path: Path):
    results = evaluate_retrieval(data, encoder, recall_at=20)
    path = results.write_run(tmp_path / "new" / "run.trec", tag="mine")
    lines = [line.split(" ") for line in path.read_text().splitlines()]
    assert {(line[1], line[5]) for line in lines} == {("Q0", "mine")}
    assert [int(line[3]) for line in lines] == list(range(1, 21)) * 12
    with path.open() as file:
        run = pytrec_eval.parse_run(file)
    assert score_run(data, run, recall_at=20)["ndcg@10"].tolist() == results.per_query["ndcg@10"].tolist()
    assert [line[2] for line in lines] == [d for q in data.query_ids for d in in_order(run[q])]


def test_ties_are_broken_as_trec_eval_does(tmp_path: Path):
    split = RetrievalSplit(["a"], ["x", "y", "z"], [{1: 1.0}], ["q"], ["d1", "d2", "d3"])
    for scores, rank in (([1.0, 1.0, 1.0], 2), ([1.0, 1.0 - 1e-9, 1.0 - 1e-9], 2), ([1.0, 1.0, 0.5], 1)):
        found = score_run(split, {"q": dict(zip(split.document_ids, scores, strict=True))}, mrr_at=2)
        assert found["mrr@2"].item() == 1 / rank
        assert found["ndcg@10"].item() == pytest.approx(1 / math.log2(rank + 1))
    assert score_run(split, {"q": dict.fromkeys(split.document_ids, 1.0)}, mrr_at=1)["mrr@1"].item() == 0


def test_a_query_that_finds_nothing_scores_nothing(data: RetrievalSplit):
    results = score_run(data, {"q0": {"d00": 1.0}})
    assert results["mrr@10"].tolist() == [1.0] + [0.0] * 11
    _, positions = BM25(data.documents).search(["zebra"], 3)
    one = RetrievalSplit(["zebra"], data.documents, [{0: 1.0}])
    assert run_of(one, torch.zeros(1, 3), positions, 3) == {"q0": {}}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"query_ids": ["a"] * 12}, "11 of 12 query ids come more than once"),
        ({"document_ids": ["a"] * 40}, "39 of 40 document ids come more than once"),
        ({"relevant": [{0: 0.5}] * 12}, "The query 'q0' has a grade 0.5"),
    ],
)
def test_judgements_are_checked(data: RetrievalSplit, changes: dict, message: str):
    split = RetrievalSplit(**{**vars(data), **changes})
    with pytest.raises(DistillationError, match=message):
        evaluate_retrieval(split, "no such folder")  # before an encoder is loaded


def test_settings_are_checked(data: RetrievalSplit, encoder: DistillationModule, tmp_path: Path):
    for name in ("ndcg_at", "mrr_at", "recall_at"):
        with pytest.raises(DistillationError, match=f"{name}=0"):
            evaluate_retrieval(data, "bm25", **{name: 0})
    with pytest.raises(DistillationError, match="'l2' is unknown"):
        evaluate_retrieval(data, "no such folder", similarity="l2")
    results = evaluate_retrieval(data, "bm25")
    for tag in ("my run", "", "a\n"):
        with pytest.raises(DistillationError, match="cannot stand in a TREC run"):
            results.write_run(tmp_path / "run", tag=tag)
    assert list(tmp_path.iterdir()) == []


def test_the_missing_package_is_named_with_its_extra(data: RetrievalSplit, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, "pytrec_eval", None)
    with pytest.raises(MissingExtraError, match=r"lightning-distilbert\[retrieval\]"):
        evaluate_retrieval(data, "no folder: this is said before anything is loaded")


def test_a_beir_folder_is_scored_with_its_own_ids(data: RetrievalSplit, tmp_path: Path):
    (tmp_path / "qrels").mkdir()
    corpus = [{"_id": i, "text": t} for i, t in zip(data.document_ids, data.documents, strict=True)]
    queries = [{"_id": i, "text": t} for i, t in zip(data.query_ids, data.queries, strict=True)]
    (tmp_path / "corpus.jsonl").write_text("\n".join(map(json.dumps, corpus)))
    (tmp_path / "queries.jsonl").write_text("\n".join(map(json.dumps, queries)))
    lines = [
        f"{query}\t{data.document_ids[place]}\t{grade:.0f}"
        for query, grades in zip(data.query_ids, data.relevant, strict=True) for place, grade in grades.items()
    ]  # fmt: skip
    (tmp_path / "qrels" / "test.tsv").write_text("\n".join(["query-id\tcorpus-id\tscore", *lines]))
    assert len(set(data.documents)) == 40
    assert evaluate_retrieval(tmp_path, "bm25").run == evaluate_retrieval(data, "bm25").run
    with pytest.raises(DistillationError, match="no split 'train', only test"):
        evaluate_retrieval(tmp_path, "bm25", split="train")


@pytest.mark.skipif(REAL is None, reason="LIGHTNING_DISTILBERT_DATA is not set")
def test_bm25_on_scifact_scores_what_others_have_measured():
    results = evaluate_retrieval(read_beir(Path(REAL) / "scifact" / "beir"), "bm25")
    assert results.scores["ndcg@10"] == pytest.approx(0.6605, abs=0.01)  # see the data set's README
    assert results.scores["recall@100"] == pytest.approx(0.876, abs=0.01)


def test_a_query_without_a_relevant_document_is_named():
    split = RetrievalSplit(["sort rows", "plot"], ["rows sort", "plot a line"], [{0: 1.0}, {}])
    with pytest.raises(DistillationError, match="1 of 2 queries have no relevant document, the first is 'q1'"):
        evaluate_retrieval(split, "bm25")
