"""The distance of hidden states, against loops in float64."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.spatial.distance import cosine, sqeuclidean

from lightning_distilbert.errors import DistillationError
from lightning_distilbert.functional import hidden_state_distance

metrics = pytest.mark.parametrize("metric", ["cosine", "mse", "normalized_mse"])


def states(*shape, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator), torch.randn(*shape, generator=generator)


def reference(student, teacher, metric):
    """The mean over vectors, by scipy in float64."""
    vectors = list(zip(student.double().numpy(), teacher.double().numpy(), strict=True))
    one = {
        "cosine": cosine,
        "mse": lambda a, b: sqeuclidean(a, b) / len(a),
        "normalized_mse": lambda a, b: sqeuclidean(a / np.linalg.norm(a), b / np.linalg.norm(b)) / len(a),
    }[metric]
    return sum(one(a, b) for a, b in vectors) / len(vectors)


@metrics
def test_agrees_with_scipy_over_the_real_tokens(metric):
    student, teacher = states(3, 4, 6)
    mask = torch.tensor([[1, 1, 0, 0], [1, 1, 1, 1], [0, 0, 0, 0]]).bool()
    expected = reference(student[mask], teacher[mask], metric)
    student[~mask], teacher[~mask] = float("nan"), float("nan")
    student.requires_grad_()
    found = hidden_state_distance(student, teacher, mask, metric)
    found.backward()
    assert found.item() == pytest.approx(expected, rel=1e-5)
    assert torch.isfinite(student.grad).all()
    assert student.grad[~mask].abs().sum() == 0


def by_loop(student, teacher, mask, metric):
    """The formulas of the papers in float64, one real token after another; autograd gives the gradient."""
    terms = []
    for ours, theirs in zip(student[mask], teacher.double()[mask], strict=True):
        lengths = (ours * ours).sum().sqrt(), (theirs * theirs).sum().sqrt()
        if metric == "cosine":
            terms.append(1 - (ours * theirs).sum() / (lengths[0] * lengths[1]))
        else:
            if metric == "normalized_mse":
                ours, theirs = ours / lengths[0], theirs / lengths[1]
            terms.append(((ours - theirs) ** 2).sum() / len(ours))
    return sum(terms) / len(terms)


@metrics
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_loss_and_gradient_agree_with_a_loop(metric, dtype):
    student, teacher = (x.to(dtype) for x in states(3, 4, 6))
    mask = torch.tensor([[1, 1, 0, 0], [1, 1, 1, 1], [0, 0, 0, 0]]).bool()
    student[~mask], teacher[~mask] = float("nan"), float("nan")
    twin = student.double().requires_grad_()
    student.requires_grad_()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = hidden_state_distance(student, teacher, mask, metric)
    expected = by_loop(twin, teacher, mask, metric)
    found.backward()
    expected.backward()
    assert found.item() == pytest.approx(expected.item(), rel=1e-5)
    # the gradient of a bfloat16 tensor is one itself
    rtol = 1e-5 if dtype == torch.float32 else 2**-8
    torch.testing.assert_close(student.grad.double(), twin.grad, rtol=rtol, atol=1e-7)


def test_the_metric_changes_the_loss_and_cosine_does_not_see_lengths():
    student, teacher = states(2, 3, 6)
    assert hidden_state_distance(student, teacher) != hidden_state_distance(student, teacher, metric="mse")
    torch.testing.assert_close(hidden_state_distance(7 * student, teacher), hidden_state_distance(student, teacher))


@metrics
def test_equal_states_cost_nothing_and_opposite_ones_the_most(metric):
    student, _ = states(2, 3, 6)
    assert abs(hidden_state_distance(student, student.clone(), metric=metric).item()) < 1e-6
    opposite = hidden_state_distance(student, -student, metric=metric).item()
    most = {"cosine": 2.0, "mse": 4 * student.square().mean().item(), "normalized_mse": 4 / 6}
    assert opposite == pytest.approx(most[metric], rel=1e-5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_normalized_distance_is_the_cosine_one_with_its_gradient_and_keeps_its_digits_near_zero(dtype):
    student, teacher = (x.to(dtype) for x in states(2, 3, 6))
    gradients = []
    for metric, factor in (("cosine", 2 / 6), ("normalized_mse", 1.0)):
        leaf = student.clone().requires_grad_()
        (factor * hidden_state_distance(leaf, teacher, metric=metric)).backward()
        gradients.append(leaf.grad)
    torch.testing.assert_close(*gradients)
    near = student.float() + 1e-4 * teacher.float()
    expected = reference(near.reshape(-1, 6), student.float().reshape(-1, 6), "normalized_mse")
    found = hidden_state_distance(near, student.float(), metric="normalized_mse").item()
    assert found == pytest.approx(expected, rel=1e-2)


def test_each_vector_is_normalized_by_itself_whatever_else_is_in_the_batch():
    """The seq2seq script takes one layer norm over batch, sequence and width, padding included."""
    student, teacher = states(2, 3, 6)
    mask = torch.tensor([[1, 1, 0], [0, 0, 0]]).bool()
    alone = hidden_state_distance(student[:1, :2], teacher[:1, :2], metric="normalized_mse")
    student[~mask] *= 1e3
    torch.testing.assert_close(hidden_state_distance(student, teacher, mask, "normalized_mse"), alone)


@metrics
def test_half_precision_under_autocast_is_computed_in_float32(metric):
    student, teacher = (x.bfloat16() for x in states(2, 3, 6))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = hidden_state_distance(student, teacher, metric=metric)
    assert found.dtype == torch.float32
    expected = reference(student.float().reshape(-1, 6), teacher.float().reshape(-1, 6), metric)
    assert found.item() == pytest.approx(expected, rel=1e-5)


@metrics
def test_nothing_counts_gives_zero_with_a_graph(metric):
    student = torch.full((2, 3, 4), float("nan"), requires_grad=True)
    loss = hidden_state_distance(student, torch.zeros(2, 3, 4), torch.zeros(2, 3), metric)
    loss.backward()
    assert loss.item() == 0.0
    assert student.grad.abs().sum() == 0


@pytest.mark.parametrize(("metric", "expected"), [("cosine", 1.0), ("normalized_mse", 0.25)])
def test_a_zero_vector_has_a_finite_gradient(metric, expected):
    student = torch.zeros(1, 1, 4, requires_grad=True)
    loss = hidden_state_distance(student, torch.ones(1, 1, 4), metric=metric)
    loss.backward()
    assert loss.item() == expected
    assert torch.isfinite(student.grad).all()


def test_bad_arguments_are_refused():
    student, teacher = states(2, 3, 6)
    with pytest.raises(DistillationError, match="was given 'l1': choose one of 'cosine', 'mse', 'normalized_mse'"):
        hidden_state_distance(student, teacher, metric="l1")
    with pytest.raises(DistillationError, match=r"shape \(2, 3, 6\) and the teacher's \(2, 3, 1\)"):
        hidden_state_distance(student, teacher[..., :1])
    with pytest.raises(DistillationError, match="the mask needs the shape of their leading axes"):
        hidden_state_distance(student, teacher, torch.ones(3, 2))
