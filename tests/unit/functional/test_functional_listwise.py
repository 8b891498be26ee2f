"""The listwise loss against a loop in float64."""

from __future__ import annotations

import math

import pytest
import torch

from lightning_distilbert.errors import DistillationError
from lightning_distilbert.functional import listwise_cross_entropy

NAN = float("nan")
QUERIES = torch.tensor([7, 3, 3, 7, 3, 9, 9, 5])
RELEVANCE = torch.tensor([1.0, 0.0, 2.0, 0.0, 1.0, 0.0, 0.0, 1.0])


def scores():
    return torch.randn(8, generator=torch.Generator().manual_seed(0))


def reference(values, relevance, queries):
    """The mean over queries with an answer and more than one candidate."""
    losses = []
    for query in set(queries.tolist()):
        rows = [i for i in range(len(queries)) if queries[i] == query and not math.isnan(relevance[i])]
        gains = [float(relevance[i]) for i in rows]
        if len(rows) < 2 or sum(gains) == 0:
            continue
        total = torch.logsumexp(values[rows].double(), 0)
        losses.append(-sum(g / sum(gains) * (values[i].double() - total) for g, i in zip(gains, rows, strict=True)))
    return torch.stack(losses).mean()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_loss_and_gradient_agree_with_a_loop(dtype):
    values = scores().to(dtype).requires_grad_()
    twin = values.detach().double().requires_grad_()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = listwise_cross_entropy(values, RELEVANCE, QUERIES)
    expected = reference(twin, RELEVANCE, QUERIES)
    found.backward()
    expected.backward()
    assert found.dtype == torch.float32
    assert found.item() == pytest.approx(expected.item(), rel=1e-5)
    torch.testing.assert_close(
        values.grad.double(), twin.grad, rtol=1e-2 if dtype == torch.bfloat16 else 1e-5, atol=1e-6
    )
    assert values.grad[5:].abs().sum() == 0  # no answer; one candidate


def test_pairs_that_do_not_count_leave():
    values, relevance = scores(), RELEVANCE.clone()
    relevance[1] = NAN
    rows = torch.tensor([1, 1, 1, 1, 0, 1, 1, 1])
    values[4] = NAN
    values.requires_grad_()
    found = listwise_cross_entropy(values, relevance, QUERIES, rows)
    found.backward()
    assert found.item() == pytest.approx(
        reference(scores()[[0, 3]], RELEVANCE[[0, 3]], QUERIES[[0, 3]]).item(), rel=1e-5
    )
    assert values.grad.isfinite().all()
    assert values.grad[[1, 2, 4, 5, 6, 7]].abs().sum() == 0


def test_large_scores_do_not_overflow():
    found = listwise_cross_entropy(torch.tensor([1000.0, 0.0]), torch.tensor([0.0, 1.0]), torch.tensor([0, 0]))
    assert found.item() == 1000.0


def test_nothing_to_rank_gives_zero_with_a_graph():
    values = scores().requires_grad_()
    for relevance, queries in ((torch.zeros(8), QUERIES), (torch.ones(8), torch.arange(8)), (RELEVANCE * NAN, QUERIES)):
        loss = listwise_cross_entropy(values, relevance, queries)
        loss.backward()
        assert loss.item() == 0.0
    assert values.grad.abs().sum() == 0


def test_bad_arguments_are_refused():
    with pytest.raises(DistillationError, match=r"scores of shape \(8, 1\)"):
        listwise_cross_entropy(scores().unsqueeze(-1), RELEVANCE, QUERIES)
    with pytest.raises(DistillationError, match=r"and queries of \(7,\)"):
        listwise_cross_entropy(scores(), RELEVANCE, QUERIES[:7])
    with pytest.raises(DistillationError, match=r"negative \(-1.0\)"):
        listwise_cross_entropy(scores(), -RELEVANCE.clamp(max=1), QUERIES)
