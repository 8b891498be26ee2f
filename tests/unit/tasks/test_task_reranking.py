"""The cross-encoder's losses and metrics, by hand."""

from __future__ import annotations

import math

import pytest
import torch
from sklearn.metrics import ndcg_score
from torch.nn import functional as F

from lightning_distilbert import DistillationError, Reranking, Student

SCORES = torch.tensor([2.0, 0.5, -1.0, 3.0, 1.0, 0.25])
LABELS = torch.tensor([0.0, 1.0, 2.0, 0.0, 1.0, float("nan")])
QUERIES = torch.tensor([4, 4, 4, 9, 9, 9])


def batch(**changes):
    mask = torch.ones(6, 3, dtype=torch.long)
    return {"labels": LABELS, "query_index": QUERIES, "attention_mask": mask} | changes


def outputs():
    return {"logits": SCORES.unsqueeze(-1)}


def test_the_listwise_loss_compares_the_candidates_of_each_query():
    loss = Reranking().loss(outputs(), batch())
    first, second = (SCORES[rows].double().log_softmax(0) for rows in ([0, 1, 2], [3, 4]))
    expected = (-(first[1] / 3 + first[2] * 2 / 3) - second[1]) / 2
    assert loss.item() == pytest.approx(expected.item(), rel=1e-5)


def test_the_binary_loss_takes_each_pair_by_itself():
    loss = Reranking(criterion="binary").loss(outputs(), batch())
    expected = F.binary_cross_entropy_with_logits(SCORES[:5].double(), (LABELS[:5] > 0).double())
    assert loss.item() == pytest.approx(expected.item(), rel=1e-5)
    assert loss.item() != pytest.approx(Reranking().loss(outputs(), batch()).item(), rel=1e-3)
    # it needs no queries
    alone = {name: value for name, value in batch().items() if name != "query_index"}
    assert Reranking(criterion="binary").loss(outputs(), alone) == loss


@pytest.mark.parametrize("criterion", ["listwise", "binary"])
def test_pairs_without_a_token_count_nowhere(criterion):
    mask = torch.ones(6, 3, dtype=torch.long)
    mask[0] = 0
    logits = SCORES.clone().unsqueeze(-1)
    logits[0] = float("nan")
    logits.requires_grad_()
    loss = Reranking(criterion).loss({"logits": logits}, batch(attention_mask=mask))
    loss.backward()
    rows = [1, 2, 3, 4, 5]
    kept = {"labels": LABELS[rows], "query_index": QUERIES[rows]}
    expected = Reranking(criterion).loss({"logits": SCORES[rows].unsqueeze(-1)}, kept)
    assert loss.item() == pytest.approx(expected.item(), rel=1e-6)
    assert logits.grad.isfinite().all()
    assert logits.grad[0].item() == 0.0
    everything = Reranking(criterion).loss({"logits": logits}, batch(attention_mask=0 * mask))
    assert everything.item() == 0.0


def test_no_labels_no_loss():
    assert Reranking().loss(outputs(), {"query_index": QUERIES}) is None
    metrics = Reranking().new_metrics()
    Reranking().update_metrics(metrics, outputs(), {})
    Reranking().update_metrics(metrics, outputs(), batch(labels=LABELS * float("nan")))
    assert all(value.isnan() for value in metrics.compute().values())  # and no error in the middle of a fit


@pytest.mark.parametrize("shift", [0.0, 9.0])  # a logit may be negative, and says nothing by itself
def test_metrics_rank_the_candidates_of_each_query_over_batches(shift):
    task = Reranking()
    metrics = task.new_metrics()
    generator = torch.Generator().manual_seed(0)
    scores = torch.randn(90, generator=generator) - shift
    grades = torch.randint(0, 3, (90,), generator=generator).float()
    queries = torch.randint(0, 4, (90,), generator=generator)
    grades[queries == 3] = 0.0  # a query without an answer is left out
    for rows in torch.arange(90).split(7):
        task.update_metrics(
            metrics, {"logits": scores[rows, None]}, {"labels": grades[rows], "query_index": queries[rows]}
        )
    found = {name: value.item() for name, value in metrics.compute().items()}
    ndcg, mrr = [], []
    for query in range(3):
        s, g = scores[queries == query], grades[queries == query]
        assert len(s) > 10
        ndcg.append(ndcg_score(g[None].numpy(), s[None].numpy(), k=10))
        order = s.argsort(descending=True)[:10].tolist()
        mrr.append(max([1 / (rank + 1) for rank, row in enumerate(order) if g[row] > 0], default=0.0))
    assert found == {"ndcg@10": pytest.approx(sum(ndcg) / 3, rel=1e-5), "mrr@10": pytest.approx(sum(mrr) / 3, rel=1e-5)}
    assert math.isclose(found[task.monitor.removeprefix("val/")], found["ndcg@10"])


def test_the_student_has_one_output(tiny_bert_dir):
    task = Reranking()
    student = Student(layers=2).build(tiny_bert_dir, task.auto_class, **task.model_config())
    ids = torch.randint(5, 100, (3, 6))
    assert task.run(student, {"input_ids": ids, "labels": LABELS[:3]})["logits"].shape == (3, 1)
    assert (type(student).__name__, student.config.num_labels) == ("DistilBertForSequenceClassification", 1)


def test_answers_are_scores():
    assert Reranking().decode({"logits": torch.tensor([[0.5], [-2.0]], dtype=torch.bfloat16)}) == [
        {"score": 0.5},
        {"score": -2.0},
    ]


def test_bad_options_and_batches_are_refused():
    with pytest.raises(DistillationError, match=r"Reranking\(criterion=\.\.\.\) was given 'pairwise'"):
        Reranking(criterion="pairwise")
    with pytest.raises(DistillationError, match="which pairs belong to one query, and this batch holds"):
        Reranking().loss(outputs(), {"labels": LABELS})
