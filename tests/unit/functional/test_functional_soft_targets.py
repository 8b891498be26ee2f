"""Soft targets against scipy, with masked classes and at the ends of the temperature."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from scipy.special import expit, rel_entr, softmax

from lightning_distilbert.errors import DistillationError
from lightning_distilbert.functional import forward_kl, soft_targets

NEVER = -math.inf


def logits(*shape, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return 3 * torch.randn(*shape, generator=generator), 3 * torch.randn(*shape, generator=generator)


def reference(student, teacher, temperature, activation):
    """The formulas of the docstring, in float64 by scipy; rows are the first axis."""
    student, teacher = student.double().numpy(), teacher.double().numpy()
    if activation == "identity":
        return np.mean((student - teacher) ** 2)
    if activation == "softmax":
        p, q = softmax(teacher / temperature, axis=-1), softmax(student / temperature, axis=-1)
        return temperature**2 * rel_entr(p, q).sum(-1).mean()
    p, q = expit(teacher / temperature), expit(student / temperature)
    return temperature**2 * (rel_entr(p, q) + rel_entr(1 - p, 1 - q)).sum(-1).mean()


@pytest.mark.parametrize("activation", ["softmax", "sigmoid", "identity"])
@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.0, 10.0])
def test_agrees_with_scipy(activation, temperature):
    student, teacher = logits(7, 5)
    found = soft_targets(student, teacher, temperature, activation=activation)
    assert found.item() == pytest.approx(reference(student, teacher, temperature, activation), rel=1e-5)
    assert found.dtype == torch.float32


@pytest.mark.parametrize("activation", ["softmax", "sigmoid", "identity"])
def test_only_masked_in_rows_count(activation):
    student, teacher = logits(4, 6, 5)
    mask = torch.rand(4, 6, generator=torch.Generator().manual_seed(1)) < 0.5
    student[~mask] = float("nan")
    student.requires_grad_()
    found = soft_targets(student, teacher, 2.0, mask=mask, activation=activation)
    found.backward()
    expected = reference(student.detach()[mask], teacher[mask], 2.0, activation)
    assert found.item() == pytest.approx(expected, rel=1e-5)
    assert student.grad[mask].abs().sum() > 0
    assert torch.equal(student.grad[~mask], torch.zeros_like(student.grad[~mask]))


@pytest.mark.parametrize("activation", ["softmax", "sigmoid", "identity"])
def test_a_student_that_equals_the_teacher_costs_nothing(activation):
    student, _ = logits(7, 5)
    student.requires_grad_()
    loss = soft_targets(student, student.detach().clone(), 2.0, activation=activation)
    loss.backward()
    assert abs(loss.item()) < 1e-6
    assert student.grad.abs().max() < 1e-6


@pytest.mark.parametrize("activation", ["softmax", "sigmoid", "identity"])
def test_classes_masked_out_in_both_add_nothing(activation):
    student, teacher = logits(6, 4)
    blocked_student, blocked_teacher = (torch.cat([x, torch.full((6, 2), NEVER)], dim=1) for x in (student, teacher))
    blocked_student.requires_grad_()
    student.requires_grad_()
    loss = soft_targets(blocked_student, blocked_teacher, 2.0, activation=activation)
    plain = soft_targets(student, teacher, 2.0, activation=activation)
    (loss + plain).backward()
    scale = 4 / 6 if activation == "identity" else 1.0  # a mean over classes counts the two as equal ones
    assert loss.item() == pytest.approx(scale * plain.item(), rel=1e-5)
    torch.testing.assert_close(blocked_student.grad[:, :4], scale * student.grad)
    assert torch.equal(blocked_student.grad[:, 4:], torch.zeros(6, 2))


def test_a_one_hot_teacher_is_cross_entropy():
    student, _ = logits(6, 4)
    student.requires_grad_()
    labels = torch.tensor([0, 1, 2, 3, 0, 1])
    # exp(-1000) is an exact zero in float32
    teacher = 1000.0 * torch.nn.functional.one_hot(labels, 4)
    soft_targets(student, teacher).backward()
    found, student.grad = student.grad, None
    torch.nn.functional.cross_entropy(student, labels).backward()
    torch.testing.assert_close(found, student.grad)


def test_the_limit_at_a_high_temperature_is_half_the_mean_square_of_the_centred_difference():
    student, teacher = logits(50, 5)
    difference = (student - teacher).double()
    expected = 0.5 * (difference - difference.mean(-1, keepdim=True)).square().mean()
    assert soft_targets(student, teacher, 300.0).item() == pytest.approx(expected.item(), rel=0.02)


def test_the_gradient_does_not_vanish_with_the_temperature():
    norms = []
    for temperature in (5.0, 50.0):
        student, teacher = logits(50, 5)
        student.requires_grad_()
        soft_targets(student, teacher, temperature).backward()
        norms.append(student.grad.norm().item())
    assert 0.5 < norms[0] / norms[1] < 2


def test_temperature_and_activation_change_the_loss_and_identity_ignores_the_temperature():
    student, teacher = logits(7, 5)
    found = {soft_targets(student, teacher, t, activation=a).item() for t in (1.0, 2.0) for a in ("softmax", "sigmoid")}
    assert len(found) == 4
    identity = [soft_targets(student, teacher, t, activation="identity").item() for t in (1.0, 2.0)]
    assert identity[0] == identity[1]
    assert identity[0] not in found


@pytest.mark.parametrize("activation", ["softmax", "sigmoid", "identity"])
def test_half_precision_under_autocast_is_computed_in_float32(activation):
    student, teacher = (x.bfloat16() for x in logits(7, 5))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = soft_targets(student, teacher, 2.0, activation=activation)
    assert found.dtype == torch.float32
    assert found.item() == pytest.approx(reference(student.float(), teacher.float(), 2.0, activation), rel=1e-5)


@pytest.mark.parametrize("activation", ["softmax", "sigmoid", "identity"])
def test_nothing_counts_gives_zero_with_a_graph(activation):
    student = torch.full((2, 3, 5), float("nan"), requires_grad=True)
    loss = soft_targets(student, torch.zeros(2, 3, 5), mask=torch.zeros(2, 3), activation=activation)
    loss.backward()
    assert loss.item() == 0.0
    assert torch.equal(student.grad, torch.zeros(2, 3, 5))


def test_no_gradient_reaches_the_teacher():
    student, teacher = logits(3, 2)
    teacher.requires_grad_()
    soft_targets(student.requires_grad_(), teacher).backward()
    assert teacher.grad is None


def test_the_divergence_is_from_the_teacher_and_not_to_it():
    p, q = np.array([0.9, 0.1]), np.array([0.5, 0.5])
    found = forward_kl(torch.tensor(q).log(), torch.tensor(p).log()).item()
    assert found == pytest.approx(rel_entr(p, q).sum())
    assert found != pytest.approx(rel_entr(q, p).sum())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"temperature": 0.0}, r"temperature=0.0\)"),
        ({"temperature": math.nan}, r"temperature=nan\)"),
        ({"activation": "tanh"}, "was given 'tanh': choose one of 'softmax', 'sigmoid', 'identity'"),
        ({"mask": torch.ones(4)}, r"mask of shape \(4,\) cannot select"),
        ({"mask": torch.ones(3, 2)}, r"mask of shape \(3, 2\) does not say which rows"),
        ({"teacher_logits": torch.zeros(3, 1)}, r"student's logits have the shape \(3, 2\)"),
        ({"student_logits": torch.zeros(3, 1), "teacher_logits": torch.zeros(3, 1)}, "softmax over the single logit"),
    ],
)
def test_bad_arguments_are_refused(arguments, message):
    with pytest.raises(DistillationError, match=message):
        soft_targets(**({"student_logits": torch.zeros(3, 2), "teacher_logits": torch.zeros(3, 2)} | arguments))
