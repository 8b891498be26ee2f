"""Similarity matrices against loops with scipy in float64."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from scipy.spatial.distance import cdist
from scipy.special import rel_entr, softmax

from lightning_distilbert.errors import DistillationError
from lightning_distilbert.functional import similarity_divergence


def vectors(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def reference(student_left, teacher_left, student_right=None, teacher_right=None, temperature=0.05):
    """One row after another; within one set the row itself is left out of the list."""
    within = student_right is None
    scores = []
    for left, right in ((student_left, student_right), (teacher_left, teacher_right)):
        scores.append(1 - cdist(left.double(), (left if within else right).double(), "cosine"))
    total = 0.0
    for index, (ours, theirs) in enumerate(zip(*scores, strict=True)):
        if within:
            ours, theirs = np.delete(ours, index), np.delete(theirs, index)
        total += rel_entr(softmax(theirs / temperature), softmax(ours / temperature)).sum()
    return total / len(student_left)


@pytest.mark.parametrize("temperature", [0.05, 0.5])
def test_within_one_set_agrees_with_scipy(temperature):
    student, teacher = vectors(6, 3), vectors(6, 5, seed=1)
    found = similarity_divergence(student, teacher, temperature=temperature)
    assert found.item() == pytest.approx(reference(student, teacher, temperature=temperature), rel=1e-4)


@pytest.mark.parametrize("temperature", [0.05, 0.5])
def test_across_two_sets_agrees_with_scipy(temperature):
    sets = vectors(6, 3), vectors(6, 5, seed=1), vectors(4, 3, seed=2), vectors(4, 5, seed=3)
    found = similarity_divergence(*sets, temperature=temperature)
    assert found.item() == pytest.approx(reference(*sets, temperature=temperature), rel=1e-4)


def test_rows_that_do_not_count_leave_both_axes():
    student, teacher = vectors(6, 3), vectors(6, 5, seed=1)
    rows = torch.tensor([1, 0, 1, 1, 0, 1]).bool()
    expected = reference(student[rows], teacher[rows])
    student[~rows], teacher[~rows] = float("nan"), float("nan")
    student.requires_grad_()
    found = similarity_divergence(student, teacher, rows=rows)
    found.backward()
    assert found.item() == pytest.approx(expected, rel=1e-4)
    assert torch.isfinite(student.grad).all()
    assert student.grad[~rows].abs().sum() == 0


def test_left_and_right_rows_are_separate():
    left, teacher_left, right, teacher_right = (vectors(4, 3, seed=i) for i in range(4))
    rows, rows_right = torch.tensor([1, 1, 0, 1]).bool(), torch.tensor([0, 1, 1, 1]).bool()
    found = similarity_divergence(left, teacher_left, right, teacher_right, rows, rows_right)
    expected = reference(left[rows], teacher_left[rows], right[rows_right], teacher_right[rows_right])
    assert found.item() == pytest.approx(expected, rel=1e-4)


def by_loop(left, teacher_left, right, teacher_right, temperature):
    """SEED's formula in float64, one sentence after another; autograd gives the gradient."""
    total = torch.zeros((), dtype=torch.float64)
    for i in range(len(left)):
        others = [j for j in range(len(right)) if right is not left or j != i]
        logs = []
        for one, many in ((teacher_left, teacher_right), (left, right)):
            cosines = [one[i] @ many[j] / ((one[i] @ one[i]) * (many[j] @ many[j])).sqrt() for j in others]
            weights = (torch.stack(cosines) / temperature).exp()
            logs.append((weights / weights.sum()).log())
        total = total + (logs[0].exp() * (logs[0] - logs[1])).sum()
    return total / len(left)


@pytest.mark.parametrize("across", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_loss_and_gradient_agree_with_a_loop(across, dtype):
    rows, rows_right = torch.tensor([1, 0, 1, 1, 0, 1]).bool(), torch.tensor([1, 1, 0, 1]).bool()
    sets = [vectors(size, width, seed=size + width).to(dtype) for size in (6, 4) for width in (3, 5)]
    kept = [rows, rows, rows_right, rows_right]
    twins = [x[real].double() for x, real in zip(sets, kept, strict=True)]
    for x, real in zip(sets, kept, strict=True):
        x[~real] = float("nan")
    for x in (*sets, *twins):
        x.requires_grad_()
    options = {"rows": rows, "temperature": 0.2}
    with torch.autocast("cpu", dtype=torch.bfloat16):
        if across:
            found = similarity_divergence(*sets, rows_right=rows_right, **options)
        else:
            found = similarity_divergence(*sets[:2], **options)
    left, teacher_left, right, teacher_right = twins
    expected = by_loop(left, teacher_left, *((right, teacher_right) if across else (left, teacher_left)), 0.2)
    found.backward()
    expected.backward()
    assert found.item() == pytest.approx(expected.item(), rel=1e-5)
    for place in (0, 2) if across else (0,):
        gradient, twin = sets[place].grad, twins[place].grad
        # that of a bfloat16 tensor is one itself
        rtol = 1e-4 if dtype == torch.float32 else 2**-8
        torch.testing.assert_close(gradient[kept[place]].double(), twin, rtol=rtol, atol=1e-6 * twin.abs().max().item())
        assert gradient[~kept[place]].abs().sum() == 0


def test_any_rotation_and_scale_of_the_teacher_costs_nothing():
    teacher = vectors(6, 5)
    rotation, _ = torch.linalg.qr(vectors(5, 5, seed=1))
    student = (3 * teacher @ rotation).requires_grad_()
    loss = similarity_divergence(student, teacher, temperature=0.5)
    loss.backward()
    assert abs(loss.item()) < 1e-5
    assert student.grad.abs().max() < 1e-5


def test_the_loss_is_in_nats_so_that_a_high_temperature_brings_it_to_zero():
    student, teacher = vectors(6, 3), vectors(6, 5, seed=1)
    losses = [similarity_divergence(student, teacher, temperature=t).item() for t in (0.05, 1.0, 100.0)]
    assert losses[0] > losses[1] > losses[2]
    assert losses[2] < 1e-4


@pytest.mark.parametrize("count", [0, 1])
@pytest.mark.parametrize("across", [False, True])
def test_nothing_to_rank_gives_zero_with_a_graph(count, across):
    student = vectors(4, 3).requires_grad_()
    right = vectors(4, 3, seed=1).requires_grad_()
    rows = torch.arange(4) < count
    if across:  # count right rows, none or one, are no ranking
        loss = similarity_divergence(student, vectors(4, 5, seed=2), right, vectors(4, 5, seed=3), None, rows)
    else:
        loss = similarity_divergence(student, vectors(4, 5, seed=2), rows=rows)
    loss.backward()
    assert loss.item() == 0.0
    assert torch.equal(student.grad, torch.zeros(4, 3))
    if across:
        assert torch.equal(right.grad, torch.zeros(4, 3))


def test_half_precision_under_autocast_is_computed_in_float32():
    student, teacher = vectors(6, 3).bfloat16(), vectors(6, 5, seed=1).bfloat16()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = similarity_divergence(student, teacher)
    assert found.dtype == torch.float32
    assert found.item() == pytest.approx(reference(student.float(), teacher.float()), rel=1e-4)


def test_no_gradient_reaches_the_teacher():
    teacher, teacher_right = (vectors(4, 5, seed=i).requires_grad_() for i in (1, 2))
    student = vectors(4, 3).requires_grad_()
    similarity_divergence(student, teacher, student, teacher_right).backward()
    assert teacher.grad is None
    assert teacher_right.grad is None


@pytest.mark.parametrize("temperature", [0.0, -1.0, math.inf])
def test_a_bad_temperature_is_refused(temperature):
    with pytest.raises(DistillationError, match=f"temperature={temperature}"):
        similarity_divergence(vectors(4, 3), vectors(4, 3), temperature=temperature)


def test_bad_sets_are_refused():
    student, teacher = vectors(4, 3), vectors(4, 5)
    with pytest.raises(DistillationError, match=r"student_right=\(4, 3\), teacher_right=None"):
        similarity_divergence(student, teacher, student)
    with pytest.raises(DistillationError, match=r"rows_right=\(4,\)"):
        similarity_divergence(student, teacher, rows_right=torch.ones(4))
    with pytest.raises(DistillationError, match=r"\(4, 3\) and the teacher's \(3, 5\)"):
        similarity_divergence(student, teacher[:3])
    with pytest.raises(DistillationError, match=r"\(4, 3\) and the teacher's \(3, 5\)"):
        similarity_divergence(student, teacher, student, teacher[:3])
