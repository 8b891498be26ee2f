"""Soft targets against scipy, with masked classes and at the ends of the temperature."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from scipy.special import expit, rel_entr, softmax

from lightning_distilbert.errors import DistillationError
from lightning_distilbert.functional import forward_kl, masked_kl, soft_targets

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


def divergence_reference(p, q, divergence, beta):
    """Over the last axis, in float64 by scipy."""
    if divergence == "forward":
        return rel_entr(p, q).sum(-1)
    if divergence == "reverse":
        return rel_entr(q, p).sum(-1)
    m = beta * p + (1 - beta) * q
    return beta * rel_entr(p, m).sum(-1) + (1 - beta) * rel_entr(q, m).sum(-1)


def lumped(probabilities, order, top_k):
    """The classes at the first places of each row's order, and the sum of the others."""
    return np.stack(
        [
            np.append(row[places[:top_k]], row[places[top_k:]].sum())
            for row, places in zip(probabilities, order, strict=True)
        ]
    )


DIVERGENCES = [("forward", 0.5), ("reverse", 0.5), ("js", 0.5), ("js", 0.1), ("js", 0.9)]


@pytest.mark.parametrize(("divergence", "beta"), DIVERGENCES)
@pytest.mark.parametrize("top_k", [None, 1, 2, 5, 6])
@pytest.mark.parametrize("temperature", [1.0, 4.0])
def test_divergences_over_all_or_the_best_classes_agree_with_scipy(divergence, beta, top_k, temperature):
    student, teacher = logits(7, 6)
    found = soft_targets(student, teacher, temperature, divergence=divergence, beta=beta, top_k=top_k)
    p, q = (softmax(x.double().numpy() / temperature, axis=-1) for x in (teacher, student))
    if top_k is not None:
        order = np.argsort(-p, axis=-1)
        p, q = lumped(p, order, top_k), lumped(q, order, top_k)
    expected = temperature**2 * divergence_reference(p, q, divergence, beta).mean()
    assert found.item() == pytest.approx(expected, rel=1e-4)
    assert found.dtype == torch.float32


@pytest.mark.parametrize(("divergence", "beta"), DIVERGENCES)
def test_divergences_of_labels_agree_with_scipy(divergence, beta):
    student, teacher = logits(7, 5)
    found = soft_targets(student, teacher, 2.0, activation="sigmoid", divergence=divergence, beta=beta)
    p, q = (
        np.stack([expit(x), expit(-x)], axis=-1) for x in (teacher.double().numpy() / 2, student.double().numpy() / 2)
    )
    assert found.item() == pytest.approx(4 * divergence_reference(p, q, divergence, beta).sum(-1).mean(), rel=1e-4)


@pytest.mark.parametrize(("divergence", "beta"), DIVERGENCES)
@pytest.mark.parametrize("top_k", [None, 2, 4])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_gradients_of_divergences_agree_with_the_formula_in_float64(divergence, beta, top_k, dtype):
    """Rows and classes out: NaN in a row that does not count, two classes that neither model may take."""
    student, teacher = (x.to(dtype) for x in logits(6, 7))
    student[:, 5:], teacher[:, 5:] = NEVER, NEVER
    mask = torch.tensor([1, 0, 1, 1, 1, 1]).bool()
    twin = student[mask][:, :5].double().requires_grad_()
    student[1] = float("nan")
    student.requires_grad_()
    found = soft_targets(student, teacher, 2.0, mask, divergence=divergence, beta=beta, top_k=top_k)
    p, q = (teacher[mask][:, :5].double() / 2).softmax(-1), (twin / 2).softmax(-1)
    if top_k is not None:
        best = p.topk(top_k).indices
        p, q = (torch.cat([x.gather(-1, best), 1 - x.gather(-1, best).sum(-1, keepdim=True)], dim=-1) for x in (p, q))
    m = beta * p + (1 - beta) * q
    terms = {
        "forward": p * (p / q).log(),
        "reverse": q * (q / p).log(),
        "js": beta * p * (p / m).log() + (1 - beta) * q * (q / m).log(),
    }
    expected = 4 * terms[divergence].sum(-1).mean()
    found.backward()
    expected.backward()
    assert found.item() == pytest.approx(expected.item(), rel=1e-4)
    tolerance = (1e-5 if dtype == torch.float32 else 1e-2) * twin.grad.abs().max().item()
    torch.testing.assert_close(student.grad[mask][:, :5].double(), twin.grad, rtol=1e-4, atol=tolerance)
    assert student.grad[1].abs().sum() == 0
    assert student.grad[:, 5:].abs().sum() == 0


@pytest.mark.parametrize("activation", ["sigmoid", "identity"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_gradients_of_labels_and_of_regression_agree_with_a_loop(activation, dtype):
    """The formulas in float64, one logit after another: NaN in rows that do not count."""
    student, teacher = (x.to(dtype) for x in logits(2, 3, 4))
    mask = torch.tensor([[1, 1, 0], [1, 0, 0]]).bool()
    twin = student.double().requires_grad_()
    student[~mask], teacher[~mask] = float("nan"), float("nan")
    student.requires_grad_()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = soft_targets(student, teacher, 2.0, mask, activation=activation)
    terms = []
    for ours, theirs in zip(twin[mask].flatten(), teacher[mask].double().flatten(), strict=True):
        if activation == "identity":
            terms.append((ours - theirs) ** 2 / 4)
        else:
            p, q = 1 / (1 + (-theirs / 2).exp()), 1 / (1 + (-ours / 2).exp())
            terms.append(4 * (p * (p / q).log() + (1 - p) * ((1 - p) / (1 - q)).log()))
    expected = sum(terms) / 3
    found.backward()
    expected.backward()
    assert found.item() == pytest.approx(expected.item(), rel=1e-5)
    rtol = 1e-5 if dtype == torch.float32 else 2**-8  # the gradient of a bfloat16 tensor is one itself
    torch.testing.assert_close(student.grad.double(), twin.grad, rtol=rtol, atol=1e-6)


def test_the_best_classes_are_the_teachers_at_each_position():
    student, teacher = torch.tensor([[0.0, 5.0, 1.0]]), torch.tensor([[3.0, 0.0, 1.0]])
    p, q = softmax(teacher.numpy()[0]), softmax(student.numpy()[0])
    expected = rel_entr([p[0], 1 - p[0]], [q[0], 1 - q[0]]).sum()
    assert soft_targets(student, teacher, top_k=1).item() == pytest.approx(expected, rel=1e-5)
    # what is lumped cannot cost more than what it is made of, and one class fewer than all is all of them
    losses = [soft_targets(student, teacher, top_k=k).item() for k in (1, 2, 3)]
    assert losses[0] < losses[1] == pytest.approx(losses[2]) == pytest.approx(soft_targets(student, teacher).item())


def test_the_best_classes_with_none_possible_besides():
    student, teacher = logits(4, 5)
    student[:, 2:], teacher[:, 2:] = NEVER, NEVER
    expected = soft_targets(student[:, :2], teacher[:, :2])
    student.requires_grad_()
    for divergence in ("forward", "reverse", "js"):
        loss = soft_targets(student, teacher, divergence=divergence, top_k=2)
        loss.backward()
        assert torch.isfinite(student.grad).all()
        if divergence == "forward":
            torch.testing.assert_close(loss, expected)


def test_js_lies_between_and_tends_to_both():
    student, teacher = (x / 3 for x in logits(7, 5))
    forward, reverse = (soft_targets(student, teacher, divergence=d).item() for d in ("forward", "reverse"))
    near = {beta: soft_targets(student, teacher, divergence="js", beta=beta).item() for beta in (1e-3, 0.5, 0.999)}
    assert near[1e-3] / 1e-3 == pytest.approx(forward, rel=0.05)
    assert near[0.999] / 1e-3 == pytest.approx(reverse, rel=0.05)
    assert 0 < near[0.5] < math.log(2)
    one, other = torch.tensor([[50.0, 0.0]]), torch.tensor([[0.0, 50.0]])
    assert soft_targets(one, other, divergence="js").item() == pytest.approx(math.log(2), rel=1e-5)


@pytest.mark.parametrize("options", [{"divergence": "reverse"}, {"divergence": "js"}, {"top_k": 2}])
def test_other_divergences_of_equal_or_no_rows_are_zero_with_a_graph(options):
    student, _ = logits(4, 5)
    student.requires_grad_()
    loss = soft_targets(student, student.detach().clone(), 2.0, **options)
    nothing = soft_targets(student, student.detach(), 2.0, mask=torch.zeros(4), **options)
    assert abs(loss.item()) < 1e-6
    assert nothing.item() == 0.0
    (loss + nothing).backward()
    assert student.grad.abs().max() < 1e-6


def test_masked_kl_is_the_divergence_over_what_counts():
    student, teacher = logits(3, 4, 6)
    mask = torch.rand(3, 1, 6, generator=torch.Generator().manual_seed(1)) < 0.6
    mask[2] = False  # rows of which nothing counts are no rows
    terms = [
        rel_entr(
            softmax(teacher[i, j, mask[i, 0]].double().numpy()), softmax(student[i, j, mask[i, 0]].double().numpy())
        ).sum()
        for i in range(2)
        for j in range(4)
    ]
    student, teacher = (x.masked_fill(~mask, float("nan")).requires_grad_() for x in (student, teacher))
    found = masked_kl(student, teacher, mask)
    found.backward()
    assert found.item() == pytest.approx(np.mean(terms), rel=1e-5)
    assert torch.isfinite(student.grad).all()
    assert student.grad.masked_select(~mask).abs().sum() == 0
    assert teacher.grad is None


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"divergence": "jeffreys"}, "was given 'jeffreys': choose one of 'forward', 'reverse', 'js'"),
        ({"divergence": "js", "beta": 0.0}, r"beta=0.0\): it is a share"),
        ({"divergence": "js", "beta": 1}, r"beta=1\): it is a share"),
        ({"top_k": 0}, r"top_k=0\): it is a number of classes"),
        ({"top_k": 1.0}, r"top_k=1.0\): it is a number of classes"),
        ({"top_k": 1, "activation": "sigmoid"}, "'sigmoid': each label is a distribution of its own"),
        ({"divergence": "js", "activation": "identity"}, "'identity': a mean squared error compares no distributions"),
        ({"top_k": 1, "activation": "identity"}, "'identity': a mean squared error compares no distributions"),
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
