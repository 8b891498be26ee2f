from __future__ import annotations

import math
import subprocess
import sys
from pathlib import Path

import pytest
import pytrec_eval
import torch
from sklearn.metrics import ndcg_score
from torch import Tensor
from torchmetrics.functional.retrieval import retrieval_recall, retrieval_reciprocal_rank

from lightning_distilbert import metrics
from lightning_distilbert.errors import DistillationError
from lightning_distilbert.metrics import RetrievalScores, ranking_scores
from lightning_distilbert.retrieval.search import search

WORKER = """
import sys, torch, torch.distributed as dist
from lightning_distilbert.metrics import RetrievalScores
rank, store, only_first_has_queries = int(sys.argv[1]), sys.argv[2], sys.argv[3] == "True"
dist.init_process_group("gloo", init_method="file://" + store, rank=rank, world_size=2)
torch.manual_seed(0)
documents, queries = torch.randn(31, 8), torch.randn(12, 8)
relevant = torch.randint(0, 31, (12, 1))
metric = RetrievalScores(ndcg_at=5, mrr_at=5, recall_at=5)
for start in range(rank, 31, 2):
    metric.update(documents[start : start + 1], torch.tensor([start]))
for row in range(12) if only_first_has_queries else range(rank, 12, 2):
    if rank == 0 or not only_first_has_queries:
        metric.update(queries[row : row + 1], torch.tensor([row]), relevant=relevant[row : row + 1])
print(" ".join(f"{value.item():.8f}" for value in metric.compute().values()), metric.per_query["query"].tolist())
"""


@pytest.fixture
def judged() -> dict[str, Tensor]:
    """Twenty queries with up to four graded documents among sixty."""
    generator = torch.Generator().manual_seed(0)
    relevant = torch.stack([torch.randperm(60, generator=generator)[:4] for _ in range(20)])
    relevant[3:9, 2:] = -1
    return {
        "documents": torch.randn(60, 16, generator=generator),
        "queries": torch.randn(20, 16, generator=generator),
        "relevant": relevant,
        "grades": torch.randint(1, 4, (20, 4), generator=generator).float(),
    }


def by_hand(data: dict[str, Tensor], k_ndcg: int, k_mrr: int, k_recall: int) -> dict[str, float]:
    """Rank and score with loops in double precision."""
    ndcg, mrr, recall = [], [], []
    for query, rows, row_grades in zip(data["queries"], data["relevant"], data["grades"], strict=True):
        grades = {int(r): float(g) for r, g in zip(rows, row_grades, strict=True) if r >= 0}
        scores = [float(query.double() @ d.double() / d.double().norm()) for d in data["documents"]]
        order = sorted(range(len(scores)), key=lambda i: -scores[i])
        dcg = sum(grades.get(i, 0.0) / math.log2(rank + 2) for rank, i in enumerate(order[:k_ndcg]))
        best = sorted(grades.values(), reverse=True)[:k_ndcg]
        ndcg.append(dcg / sum(g / math.log2(rank + 2) for rank, g in enumerate(best)))
        mrr.append(max([1 / (rank + 1) for rank, i in enumerate(order[:k_mrr]) if i in grades], default=0.0))
        recall.append(len(set(order[:k_recall]) & set(grades)) / len(grades))
    return {
        f"ndcg@{k_ndcg}": sum(ndcg) / len(ndcg),
        f"mrr@{k_mrr}": sum(mrr) / len(mrr),
        f"recall@{k_recall}": sum(recall) / len(recall),
    }


def filled(data: dict[str, Tensor], batch: int = 7, **kwargs: object) -> RetrievalScores:
    metric = RetrievalScores(**kwargs)
    for rows in torch.arange(len(data["queries"])).split(batch):
        # as a collator pads: only as wide as this batch needs
        width = int((data["relevant"][rows] >= 0).sum(1).max())
        metric.update(data["queries"][rows], rows, data["relevant"][rows, :width], data["grades"][rows, :width])
    for rows in torch.arange(len(data["documents"])).split(batch):
        metric.update(data["documents"][rows], rows)
    return metric


def test_scores_agree_with_loops(judged: dict[str, Tensor]) -> None:
    found = filled(judged, ndcg_at=5, mrr_at=4, recall_at=20).compute()
    expected = by_hand(judged, 5, 4, 20)
    assert {name: value.item() for name, value in found.items()} == pytest.approx(expected, abs=1e-6)
    assert 0 < expected["mrr@4"] < 1


@pytest.mark.parametrize("decimals", [0, 5])
def test_scores_agree_with_trec_eval_where_documents_tie(judged: dict[str, Tensor], decimals: int) -> None:
    """Whole numbers make many documents score alike; of these the metric takes the lower row, trec_eval the last id."""
    judged["queries"], judged["documents"] = judged["queries"].round(decimals=decimals), judged["documents"].sign()
    metric = filled(judged, similarity="dot", ndcg_at=5, mrr_at=4, recall_at=7)
    found = metric.compute()
    scores = judged["queries"] @ judged["documents"].T
    assert (scores.unique(dim=1).shape[1] < 60 or len(scores[0].unique()) < 60) == (decimals == 0)
    name = [f"{59 - row:02}" for row in range(60)]
    run = {f"q{q}": {name[d]: float(scores[q, d]) for d in range(60)} for q in range(20)}
    qrels = {
        f"q{q}": {name[d]: int(g) for d, g in zip(rows, grades, strict=True) if d >= 0}
        for q, (rows, grades) in enumerate(zip(judged["relevant"].tolist(), judged["grades"].tolist(), strict=True))
    }
    values = pytrec_eval.RelevanceEvaluator(qrels, {"ndcg_cut.5", "recall.7", "recip_rank"}).evaluate(run)
    expected = {
        "ndcg@5": [values[f"q{q}"]["ndcg_cut_5"] for q in range(20)],
        "recall@7": [values[f"q{q}"]["recall_7"] for q in range(20)],
        # trec_eval cuts no reciprocal rank: one below 1/4 was not found among four
        "mrr@4": [rr if (rr := values[f"q{q}"]["recip_rank"]) >= 0.25 else 0.0 for q in range(20)],
    }
    for key, column in expected.items():
        assert metric.per_query[key].tolist() == pytest.approx(column, abs=1e-6)
        assert found[key].item() == pytest.approx(sum(column) / 20, abs=1e-6)


def test_ragged_judgements_do_not_depend_on_the_batches(judged: dict[str, Tensor]) -> None:
    assert filled(judged, batch=3).compute() == filled(judged, batch=20).compute()


def test_ndcg_agrees_with_sklearn_and_the_others_with_torchmetrics(judged: dict[str, Tensor]) -> None:
    scores, ranked = search(judged["queries"], judged["documents"], top_k=60)
    found = ranking_scores(ranked, judged["relevant"], judged["grades"], ndcg_at=10, mrr_at=10, recall_at=15)
    dense = torch.zeros(20, 61)
    dense.scatter_(1, judged["relevant"].where(judged["relevant"] >= 0, 60), judged["grades"])
    dense, by_document = dense[:, :60], torch.empty(20, 60).scatter_(1, ranked, scores)
    for row in range(20):
        assert found["ndcg@10"][row].item() == pytest.approx(ndcg_score(dense[row, None], by_document[row, None], k=10))
        hits = dense[row] > 0
        assert found["mrr@10"][row] == retrieval_reciprocal_rank(by_document[row], hits, top_k=10)
        assert found["recall@15"][row] == retrieval_recall(by_document[row], hits, top_k=15)


def test_similarity_changes_the_ranking(judged: dict[str, Tensor]) -> None:
    judged["documents"] *= torch.linspace(0.1, 10, 60)[:, None]
    assert filled(judged, similarity="dot").compute() != filled(judged, similarity="cosine").compute()


def test_rows_seen_twice_count_once(judged: dict[str, Tensor]) -> None:
    expected = filled(judged).compute()
    metric = filled(judged)
    metric.update(judged["documents"][:5], torch.arange(5))
    metric.update(judged["queries"][2:4], torch.tensor([2, 3]), judged["relevant"][2:4], judged["grades"][2:4])
    assert metric.compute() == expected


def test_queries_without_a_relevant_document_are_left_out(judged: dict[str, Tensor]) -> None:
    expected = filled(judged).compute()
    metric = filled(judged)
    metric.update(torch.randn(2, 16), torch.tensor([20, 21]), torch.tensor([[-1], [5]]), torch.tensor([[1.0], [0.0]]))
    assert metric.compute() == expected
    assert metric.per_query["query"].tolist() == list(range(20))


def test_per_query_values_are_those_behind_the_mean_in_row_order(judged: dict[str, Tensor]) -> None:
    metric = RetrievalScores()
    metric.update(judged["documents"], torch.arange(60))
    order = torch.randperm(20, generator=torch.Generator().manual_seed(1))
    metric.update(judged["queries"][order], order, judged["relevant"][order], judged["grades"][order])
    mean = metric.compute()
    _, ranked = search(judged["queries"], judged["documents"], top_k=100)
    for name, value in ranking_scores(ranked, judged["relevant"], judged["grades"]).items():
        torch.testing.assert_close(metric.per_query[name], value)
        torch.testing.assert_close(mean[name], value.mean())


def test_document_rows_need_not_be_positions() -> None:
    metric = RetrievalScores()
    metric.update(torch.eye(2), torch.tensor([900, 40]))
    metric.update(torch.eye(2), torch.tensor([7, 3]), relevant=torch.tensor([[900], [900]]))
    metric.compute()
    assert metric.per_query["query"].tolist() == [3, 7]
    assert metric.per_query["mrr@10"].tolist() == [0.5, 1.0]


def test_missing_ranks_are_no_hits_and_padding_is_not_judged() -> None:
    scores = ranking_scores(torch.tensor([[-1, 4]]), torch.tensor([[-1, 4]]))
    assert scores["mrr@10"].item() == 0.5


def test_negative_grades_are_not_relevant() -> None:
    scores = ranking_scores(torch.tensor([[1, 2]]), torch.tensor([[1, 2]]), torch.tensor([[-1.0, 1.0]]))
    assert scores["mrr@10"].item() == 0.5
    assert scores["ndcg@10"].item() == pytest.approx(1 / math.log2(3))


def test_judgements_are_matched_in_blocks_alike(judged: dict[str, Tensor], monkeypatch: pytest.MonkeyPatch) -> None:
    _, ranked = search(judged["queries"], judged["documents"], top_k=10)
    expected = ranking_scores(ranked, judged["relevant"], judged["grades"])
    monkeypatch.setattr(metrics, "MAX_COMPARISONS", 90)
    for name, value in ranking_scores(ranked, judged["relevant"], judged["grades"]).items():
        torch.testing.assert_close(value, expected[name])


@pytest.mark.filterwarnings("ignore:The ``compute`` method of metric RetrievalScores was called before")
def test_reset_forgets(judged: dict[str, Tensor]) -> None:
    metric = filled(judged)
    metric.compute()
    metric.reset()
    with pytest.raises(DistillationError, match="only after compute"):
        _ = metric.per_query
    with pytest.raises(DistillationError, match="0 queries and 0 documents"):
        metric.compute()


@pytest.mark.parametrize("only_first_has_queries", [False, True])
def test_two_processes_score_as_one(tmp_path: Path, only_first_has_queries: bool) -> None:
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", WORKER, str(rank), str(tmp_path / "store"), str(only_first_has_queries)],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(2)
    ]
    try:
        results = [process.communicate(timeout=120) for process in processes]
    finally:
        for process in processes:
            process.kill()
    assert [process.returncode for process in processes] == [0, 0], results
    torch.manual_seed(0)
    documents, queries = torch.randn(31, 8), torch.randn(12, 8)
    metric = RetrievalScores(ndcg_at=5, mrr_at=5, recall_at=5)
    metric.update(documents, torch.arange(31))
    metric.update(queries, torch.arange(12), relevant=torch.randint(0, 31, (12, 1)))
    expected = [value.item() for value in metric.compute().values()]
    for output, _ in results:
        values, rows = output.strip().split(" [")
        assert [float(value) for value in values.split()] == pytest.approx(expected, abs=1e-6)
        assert rows == ", ".join(map(str, range(12))) + "]"


@pytest.mark.parametrize(
    ("kwargs", "match"),
    [
        ({"ndcg_at": 0}, "ndcg_at=0"),
        ({"mrr_at": 0}, "mrr_at=0"),
        ({"recall_at": -1}, "recall_at=-1"),
        ({"block": 0}, "block=0"),
        ({"similarity": "euclid"}, "'euclid' is unknown"),
    ],
)
def test_settings_are_checked(kwargs: dict[str, object], match: str) -> None:
    with pytest.raises(DistillationError, match=match):
        RetrievalScores(**kwargs)


@pytest.mark.parametrize(
    ("update", "match"),
    [
        ({"embeddings": torch.ones(2, 3), "index": torch.arange(3)}, "do not fit together"),
        ({"embeddings": torch.full((1, 3), torch.nan), "index": torch.arange(1)}, "NaN or infinite"),
        ({"embeddings": torch.ones(1, 3), "index": torch.arange(1), "grades": torch.ones(1, 1)}, "without relevant"),
        (
            {
                "embeddings": torch.ones(1, 3),
                "index": torch.arange(1),
                "relevant": torch.zeros(1, 2),
                "grades": torch.ones(1, 1),
            },
            r"relevant \(1, 2\) and grades \(1, 1\)",
        ),
    ],
)
def test_batches_are_checked(update: dict[str, Tensor], match: str) -> None:
    with pytest.raises(DistillationError, match=match):
        RetrievalScores().update(**update)


def test_a_refused_batch_leaves_no_trace() -> None:
    metric = RetrievalScores()
    with pytest.raises(DistillationError, match="without relevant"):
        metric.update(torch.ones(1, 3), torch.arange(1), grades=torch.ones(1, 1))
    assert sum(len(rows) for rows in metric.document_rows) == 0


def test_all_vectors_must_be_of_one_width() -> None:
    metric = RetrievalScores()
    metric.update(torch.ones(2, 3), torch.arange(2))
    with pytest.raises(DistillationError, match="4 wide, those before it 3"):
        metric.update(torch.ones(1, 4), torch.arange(1), relevant=torch.zeros(1, 1))


def test_no_query_and_no_judgement_are_errors() -> None:
    metric = RetrievalScores()
    metric.update(torch.ones(2, 3), torch.arange(2))
    with pytest.raises(DistillationError, match="0 queries and 2 documents"):
        metric.compute()
    metric.update(torch.ones(2, 3), torch.arange(2), relevant=torch.full((2, 1), -1))
    with pytest.raises(DistillationError, match="None of the 2 queries"):
        metric.compute()


def test_ranking_checks_its_input() -> None:
    with pytest.raises(DistillationError, match="do not fit"):
        ranking_scores(torch.zeros(2, 2), torch.zeros(1, 2))
    with pytest.raises(DistillationError, match="mrr_at=0"):
        ranking_scores(torch.zeros(1, 2), torch.zeros(1, 2), mrr_at=0)
