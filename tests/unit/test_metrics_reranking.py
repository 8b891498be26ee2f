"""nDCG and MRR of given candidates, against sklearn and loops, over batches and processes."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from sklearn.metrics import ndcg_score

from lightning_distilbert.errors import DistillationError
from lightning_distilbert.metrics_reranking import RerankingScores

WORKER = """
import sys, torch, torch.distributed as dist
from lightning_distilbert import Reranking
rank, store = int(sys.argv[1]), sys.argv[2]
dist.init_process_group("gloo", init_method="file://" + store, rank=rank, world_size=2)
torch.manual_seed(0)
scores, grades = torch.randn(40) - 3, torch.randint(0, 2, (40,)).float()
task = Reranking()
metrics = task.new_metrics()
for query in range(8):
    rows = slice(5 * query, 5 * query + 5)
    # the second process gets queries of which nobody knows anything
    labels = grades[rows] if rank == 0 else grades[rows] * float("nan")
    batch = {"labels": labels, "query_index": torch.full((5,), query)}
    if rank == 0 or query < 3:
        task.update_metrics(metrics, {"logits": scores[rows, None]}, batch)
print(*(f"{value.item():.8f}" for value in metrics.compute().values()))
"""


def pairs(queries: int = 8, each: int = 15) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    scores = torch.randn(queries * each, generator=generator) - 3
    grades = torch.randint(0, 3, (queries * each,), generator=generator).float()
    return scores, grades, torch.arange(queries).repeat(each)


def test_values_are_those_of_sklearn_and_of_loops_in_any_order_and_batches():
    scores, grades, queries = pairs()
    grades[queries == 5] = 0.0  # without an answer: left out
    ndcg, rank = [], []
    for query in sorted(set(queries.tolist()) - {5}):
        s, g = scores[queries == query], grades[queries == query]
        ndcg.append(ndcg_score(g[None].numpy(), s[None].numpy(), k=4))
        order = s.argsort(descending=True)[:3].tolist()
        rank.append(max([1 / (place + 1) for place, row in enumerate(order) if g[row] > 0], default=0.0))
    for order in (torch.arange(len(scores)), torch.randperm(len(scores))):
        metric = RerankingScores(ndcg_at=4, mrr_at=3)
        for rows in order.split(11):
            metric.update(scores[rows], grades[rows], queries[rows])
        found = {name: value.item() for name, value in metric.compute().items()}
        wanted = {"ndcg@4": sum(ndcg) / 7, "mrr@3": sum(rank) / 7}
        assert found == pytest.approx(wanted, rel=1e-5)
    metric.reset()
    metric.update(scores[:2], grades[:2] * float("nan"), queries[:2])
    assert all(value.isnan() for value in metric.compute().values())


@pytest.mark.parametrize("answer", [0, 1, 2])
def test_equal_scores_gain_nothing_from_the_order_in_the_data(answer: int):
    metric = RerankingScores()
    metric.update(torch.zeros(3), torch.eye(3)[answer], torch.zeros(3, dtype=torch.long))
    assert {name: value.item() for name, value in metric.compute().items()} == {
        "ndcg@10": pytest.approx(0.5), "mrr@10": pytest.approx(1 / 3)
    }  # fmt: skip


def test_pairs_of_which_nobody_knows_do_not_count():
    metric = RerankingScores()
    nan = float("nan")
    metric.update(torch.tensor([5.0, nan, 1.0, 0.0]), torch.tensor([nan, nan, 1.0, 0.0]), torch.zeros(4).long())
    assert {name: value.item() for name, value in metric.compute().items()} == {"ndcg@10": 1.0, "mrr@10": 1.0}


def test_two_processes_score_as_one_even_if_one_has_nothing_to_judge(tmp_path: Path):
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", WORKER, str(rank), str(tmp_path / "store")], stdout=subprocess.PIPE, text=True
        )
        for rank in range(2)
    ]
    try:
        results = [process.communicate(timeout=120)[0] for process in processes]
    finally:
        for process in processes:
            process.kill()
    assert [process.returncode for process in processes] == [0, 0], results
    torch.manual_seed(0)
    scores, grades = torch.randn(40) - 3, torch.randint(0, 2, (40,)).float()
    metric = RerankingScores()
    metric.update(scores, grades, torch.arange(8).repeat_interleave(5))
    expected = [value.item() for value in metric.compute().values()]
    for output in results:
        assert [float(value) for value in output.split()] == pytest.approx(expected, abs=1e-6)


def test_bad_input_is_refused():
    with pytest.raises(DistillationError, match="ndcg_at=0"):
        RerankingScores(ndcg_at=0)
    with pytest.raises(DistillationError, match=r"scores \(2,\), grades \(2,\) and queries \(3,\)"):
        RerankingScores().update(torch.zeros(2), torch.zeros(2), torch.zeros(3).long())
    with pytest.raises(DistillationError, match="NaN or infinite"):
        RerankingScores().update(torch.tensor([float("nan")]), torch.zeros(1), torch.zeros(1).long())
