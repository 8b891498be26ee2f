"""Soft targets where each row has classes of its own, as the tokens that may start an answer."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from scipy.special import expit, rel_entr, softmax

from lightning_distilbert.errors import DistillationError
from lightning_distilbert.functional import soft_targets
from lightning_distilbert.functional import soft_targets as function
from lightning_distilbert.objectives import SoftTargets
from lightning_distilbert.signals import Signals

DIVERGENCES = ["forward", "reverse", "js"]


def logits(rows=7, width=9, seed=0):
    generator = torch.Generator().manual_seed(seed)
    student, teacher = 3 * torch.randn(2, rows, width, generator=generator)
    classes = torch.rand(rows, width, generator=generator) < 0.6
    classes[:, :2] = True
    return student, teacher, classes


def divergence_by_hand(p, q, divergence, beta=0.3):
    if divergence == "forward":
        return rel_entr(p, q).sum()
    if divergence == "reverse":
        return rel_entr(q, p).sum()
    m = beta * p + (1 - beta) * q
    return beta * rel_entr(p, m).sum() + (1 - beta) * rel_entr(q, m).sum()


def lumped(p, q, k):
    best = np.argsort(-p)[:k]
    rest = np.setdiff1d(np.arange(len(p)), best)
    return np.append(p[best], p[rest].sum()), np.append(q[best], q[rest].sum())


@pytest.mark.parametrize("divergence", DIVERGENCES)
@pytest.mark.parametrize("top_k", [None, 1, 3])
@pytest.mark.parametrize("temperature", [1.0, 8.0])
def test_each_row_is_a_softmax_over_its_own_classes(divergence, top_k, temperature):
    student, teacher, classes = logits()
    rows = []
    for s, t, own in zip(student.double().numpy(), teacher.double().numpy(), classes.numpy(), strict=True):
        p, q = softmax(t[own] / temperature), softmax(s[own] / temperature)
        if top_k is not None:
            p, q = lumped(p, q, top_k)
        rows.append(divergence_by_hand(p, q, divergence))
    found = soft_targets(student, teacher, temperature, divergence=divergence, beta=0.3, top_k=top_k, classes=classes)
    assert found.item() == pytest.approx(temperature**2 * np.mean(rows), rel=1e-4)


def test_the_other_activations_count_their_own_classes_too():
    student, teacher, classes = logits()
    s, t, own = student.double().numpy(), teacher.double().numpy(), classes.numpy()
    p, q = expit(t / 2), expit(s / 2)
    cells = (rel_entr(p, q) + rel_entr(1 - p, 1 - q)) * own
    found = soft_targets(student, teacher, 2.0, activation="sigmoid", classes=classes)
    assert found.item() == pytest.approx(4 * cells.sum(1).mean(), rel=1e-5)
    found = soft_targets(student, teacher, activation="identity", classes=classes)
    assert found.item() == pytest.approx(((s - t)[own] ** 2).mean(), rel=1e-5)


@pytest.mark.parametrize("divergence", DIVERGENCES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("garbage", [float("nan"), float("inf"), 1e6])
def test_what_stands_at_other_classes_reaches_neither_loss_nor_gradient(divergence, dtype, garbage):
    student, teacher, classes = (part if part.dtype == torch.bool else part.to(dtype) for part in logits())
    options = {"temperature": 2.0, "divergence": divergence, "classes": classes}
    expected = soft_targets(student, teacher, **options)
    student[~classes] = teacher[~classes] = garbage
    student.requires_grad_()
    loss = soft_targets(student, teacher, **options)
    loss.backward()
    assert torch.equal(loss.detach(), expected)
    assert student.grad[~classes].eq(0).all()
    assert student.grad[classes].isfinite().all()
    assert student.grad[classes].ne(0).any()


@pytest.mark.parametrize("activation", ["softmax", "sigmoid", "identity"])
def test_a_row_without_a_class_counts_nowhere(activation):
    student, teacher, classes = logits()
    expected = soft_targets(student[1:], teacher[1:], activation=activation, classes=classes[1:])
    classes[0] = False
    student.requires_grad_()
    loss = soft_targets(student, teacher, activation=activation, classes=classes)
    loss.backward()
    torch.testing.assert_close(loss.detach(), expected)
    assert student.grad[0].eq(0).all()
    nothing = soft_targets(student, teacher, activation=activation, classes=torch.zeros_like(classes))
    nothing.backward()
    assert nothing.item() == 0.0


def test_a_mask_of_rows_and_classes_both_count():
    student, teacher, classes = logits()
    mask = torch.tensor([True, False, True, True, False, True, True])
    found = soft_targets(student, teacher, mask=mask, classes=classes)
    assert torch.equal(found, soft_targets(student[mask], teacher[mask], classes=classes[mask]))


def test_more_classes_that_do_not_count_change_nothing():
    student, teacher, classes = logits()
    expected = soft_targets(student, teacher, classes=classes)
    wider = [torch.cat([part, torch.ones(7, 5)], dim=1) for part in (student, teacher)]
    found = soft_targets(*wider, classes=torch.cat([classes, torch.zeros(7, 5, dtype=torch.bool)], dim=1))
    torch.testing.assert_close(found, expected)


def test_long_texts_go_the_same_way(monkeypatch):
    student, teacher, classes = logits(rows=3, width=2048)
    expected = soft_targets(student, teacher, classes=classes)
    for name, value in (("LARGE_ELEMENTS", 1), ("LARGE_CLASSES", 1)):
        monkeypatch.setitem(function.__globals__, name, value)
    assert torch.equal(soft_targets(student, teacher, classes=classes), expected)


def test_classes_of_another_shape_are_refused():
    student, teacher, classes = logits()
    with pytest.raises(DistillationError, match="logits and their classes"):
        soft_targets(student, teacher, classes=classes[:, :4])


@pytest.mark.parametrize(
    "options", [{}, {"temperature": 8.0}, {"divergence": "reverse"}, {"divergence": "js", "beta": 0.2}, {"top_k": 2}]
)
def test_the_objective_hands_the_classes_on_with_all_its_options(options):
    student, teacher, classes = logits(rows=6)
    mask = torch.ones(3, 9, dtype=torch.bool)
    objective = SoftTargets(**options)
    options = {"temperature": 2.0, **options}
    expected = soft_targets(student, teacher, classes=classes, **options)
    both = Signals(logits=student, mask=mask, classes=classes), Signals(logits=teacher, mask=mask, classes=classes)
    assert torch.equal(objective(*both), expected)
    # the student's are nearer to the data; without them the teacher's serve
    both[1].classes = torch.ones_like(classes)
    assert torch.equal(objective(*both), expected)
    both[0].classes, both[1].classes = None, classes
    found = objective(Signals(logits=student, mask=None), both[1])
    assert torch.equal(found, expected)
    assert not math.isclose(soft_targets(student, teacher, **options).item(), expected.item())
