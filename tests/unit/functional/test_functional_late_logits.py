"""Late logits: the number and the gradients of the whole product, from parts of it."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F

from lightning_distilbert.errors import DistillationError
from lightning_distilbert.functional import LateLogits, late_forward_kl, late_logits

WIDTH, VOCABULARY = 8, 50


def sides(rows: int = 21, dtype: torch.dtype = torch.float32, bias: bool = True, seed: int = 0) -> list[LateLogits]:
    generator = torch.Generator().manual_seed(seed)

    def random(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator).to(dtype)

    made = [
        LateLogits(random(rows, width), random(VOCABULARY, width), random(VOCABULARY) if bias else None)
        for width in (WIDTH, WIDTH + 4)  # a teacher has a width of its own
    ]
    for tensor in (made[0].hidden, made[0].weight, made[0].bias):
        if tensor is not None:
            tensor.requires_grad_()
    return made


def reference(student: LateLogits, teacher: LateLogits, temperature: float) -> torch.Tensor:
    ours, theirs = (side.compute().float() / temperature for side in (student, teacher))
    return F.kl_div(ours.log_softmax(-1), theirs.log_softmax(-1).detach(), reduction="batchmean", log_target=True)


def gradients(side: LateLogits) -> list[torch.Tensor]:
    return [tensor.grad for tensor in (side.hidden, side.weight, side.bias) if tensor is not None]


@pytest.mark.parametrize("at_once", [1, 7, 21, 1000])
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("temperature", [1.0, 2.5])
def test_value_and_gradients_are_those_of_the_whole(monkeypatch, at_once: int, bias: bool, temperature: float):
    monkeypatch.setattr(late_logits, "LATE_ELEMENTS", at_once * VOCABULARY)
    (student, teacher), (other, _) = sides(bias=bias), sides(bias=bias)
    loss, expected = late_forward_kl(student, teacher, temperature), reference(other, teacher, temperature)
    torch.testing.assert_close(loss, expected)
    (3.0 * loss).backward()
    (3.0 * expected).backward()
    assert len(gradients(student)) == 2 + bias
    for ours, theirs in zip(gradients(student), gradients(other), strict=True):
        torch.testing.assert_close(ours, theirs)


def test_no_part_is_larger_than_it_says(monkeypatch):
    monkeypatch.setattr(late_logits, "LATE_ELEMENTS", 4 * VOCABULARY)
    seen = []
    linear = F.linear
    monkeypatch.setattr(late_logits.F, "linear", lambda *args: seen.append(len(args[0])) or linear(*args))
    late_forward_kl(*sides(rows=10))
    assert seen == [4, 4, 4, 4, 2, 2]  # student and teacher in turn


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_keeps_the_gradient(monkeypatch, dtype: torch.dtype):
    """Also a weak one: the error is the rounding of the products, with no gradient lost for being small."""
    monkeypatch.setattr(late_logits, "LATE_ELEMENTS", 7 * VOCABULARY)
    (student, teacher), (other, _) = sides(), sides()
    with torch.autocast("cpu", dtype):
        loss = late_forward_kl(student, teacher, 2.0)
    assert loss.dtype == torch.float32
    loss.backward()
    expected = reference(other, teacher, 2.0)
    expected.backward()
    torch.testing.assert_close(loss, expected, rtol=0.02, atol=0.0)
    for ours, theirs in zip(gradients(student), gradients(other), strict=True):
        assert ours.dtype == torch.float32
        assert (ours - theirs).norm() < 0.02 * theirs.norm()


def test_float16_loses_no_gradient_over_many_rows():
    """Each row has a 4,096th of the gradient: times a factor in float16 a third of it would be zero."""
    (student, teacher), (other, _) = sides(rows=4096), sides(rows=4096)
    with torch.no_grad():
        for side in (student, other):
            side.weight.mul_(0.02)  # the usual spread
    with torch.autocast("cpu", torch.float16):
        (2.0**16 * late_forward_kl(student, teacher, 2.0)).backward()
    (2.0**16 * reference(other, teacher, 2.0)).backward()
    for ours, theirs in zip(gradients(student), gradients(other), strict=True):
        assert (ours - theirs).norm() < 0.01 * theirs.norm()


def test_float16_does_not_overflow_where_the_last_part_is_one_row(monkeypatch):
    monkeypatch.setattr(late_logits, "LATE_ELEMENTS", 20 * VOCABULARY)
    student, teacher = sides(rows=21)
    with torch.no_grad():
        student.hidden[:, 3] = 500.0  # of the size that norms before a projection let through
        student.weight[:, 3] = 0.0
        teacher.bias[7] += 30.0
    with torch.autocast("cpu", torch.float16):
        late_forward_kl(student, teacher).backward()
    assert all(gradient.isfinite().all() for gradient in gradients(student))
    assert student.weight.grad[7, 3] < -400.0


def test_all_at_once_they_are_of_the_weights_type():
    late = LateLogits(torch.ones(2, 3, dtype=torch.bfloat16), torch.ones(5, 3), torch.ones(5))
    assert late.compute().dtype == torch.float32


def test_weights_in_half_precision_are_taken_as_they_are():
    student, teacher = sides(dtype=torch.bfloat16)
    loss = late_forward_kl(student, teacher)
    loss.backward()
    assert [gradient.dtype for gradient in gradients(student)] == [torch.bfloat16] * 3
    assert all(gradient.abs().sum() > 0 for gradient in gradients(student))


def test_what_is_frozen_gets_no_gradient_and_nothing_is_kept_without_one():
    student, teacher = sides()
    student.weight.requires_grad_(False)
    late_forward_kl(student, teacher).backward()
    assert student.weight.grad is None
    assert student.hidden.grad is not None
    with torch.no_grad():
        assert not late_forward_kl(student, teacher).requires_grad


def test_a_graph_that_is_kept_gives_the_same_gradient_twice():
    student, teacher = sides()
    loss = late_forward_kl(student, teacher)
    once = torch.autograd.grad(loss, student.weight, retain_graph=True)[0]
    torch.testing.assert_close(torch.autograd.grad(loss, student.weight)[0], once)


def test_no_rows_give_zero_with_a_graph():
    student, teacher = sides(rows=0)
    loss = late_forward_kl(student, teacher)
    assert loss.item() == 0.0
    loss.backward()
    assert student.weight.grad.abs().sum() == 0


def test_other_shapes_are_refused():
    (student, _), (_, teacher) = sides(rows=3), sides(rows=4)
    with pytest.raises(DistillationError, match=r"shape \(3, 50\) and the teacher's \(4, 50\)"):
        late_forward_kl(student, teacher)
