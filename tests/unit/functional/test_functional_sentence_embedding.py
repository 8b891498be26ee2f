"""The distance of sentence embeddings, against scipy."""

from __future__ import annotations

import pytest
import torch
from scipy.spatial.distance import cdist

from lightning_distilbert.errors import DistillationError
from lightning_distilbert.functional import embedding_distance


def embeddings(*shape, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator), torch.randn(*shape, generator=generator)


def reference(student, teacher, metric):
    """The mean over rows, by scipy in float64: the diagonal of all distances."""
    name, scale = ("cosine", 1) if metric == "cosine" else ("sqeuclidean", student.shape[-1])
    return cdist(student.double(), teacher.double(), name).diagonal().mean() / scale


@pytest.mark.parametrize("metric", ["cosine", "mse"])
def test_agrees_with_scipy_over_the_counting_rows(metric):
    student, teacher = embeddings(5, 6)
    rows = torch.tensor([True, False, True, True, False])
    expected = reference(student[rows], teacher[rows], metric), reference(student, teacher, metric)
    assert embedding_distance(student, teacher, None, metric).item() == pytest.approx(expected[1], rel=1e-5)
    student[~rows] = float("nan")
    student.requires_grad_()
    found = embedding_distance(student, teacher, rows, metric)
    found.backward()
    assert found.item() == pytest.approx(expected[0], rel=1e-5)
    assert student.grad[~rows].abs().sum() == 0
    assert student.grad[rows].abs().sum() > 0


def test_the_metric_changes_the_loss_and_is_checked():
    student, teacher = embeddings(5, 6)
    assert embedding_distance(student, teacher) != embedding_distance(student, teacher, metric="mse")
    with pytest.raises(DistillationError, match="was given 'dot': choose one of 'cosine', 'mse'"):
        embedding_distance(student, teacher, metric="dot")


def test_no_row_counts_gives_zero_with_a_graph():
    student, teacher = embeddings(5, 6)
    student.requires_grad_()
    loss = embedding_distance(student, teacher, torch.zeros(5, dtype=torch.bool))
    loss.backward()
    assert loss.item() == 0.0
    assert torch.equal(student.grad, torch.zeros(5, 6))
