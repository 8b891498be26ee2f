"""Soft targets over a vocabulary in chunks: the same loss and gradient as in one piece, in less memory."""

from __future__ import annotations

import math

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from lightning_distilbert.functional import (
    chunked,
    chunked_cross_entropy,
    chunked_forward_kl,
    forward_kl,
    soft_targets,
)

VOCABULARY = 30_522
NEVER = -math.inf


def logits(*shape, seed=0, dtype=torch.float32):
    return (3 * torch.randn(*shape, generator=torch.Generator().manual_seed(seed))).to(dtype)


def plain(student, teacher, temperature):
    """The formula in float64, written with torch's own operations."""
    student_log, teacher_log = ((x.double() / temperature).log_softmax(-1) for x in (student, teacher))
    return temperature**2 * forward_kl(student_log, teacher_log).mean()


def close(found, expected, dtype):
    # bfloat16 has 8 bits; the gradient is rounded when it is stored and when it is weighted
    tolerance = {torch.float32: 1e-5, torch.bfloat16: 1e-2, torch.float16: 2e-3}[dtype]
    torch.testing.assert_close(
        found.double(), expected, rtol=tolerance, atol=tolerance * 1e-2 * expected.abs().max().item()
    )


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("temperature", [1.0, 2.0, 0.5])
@pytest.mark.parametrize("masked", [False, True])
def test_a_vocabulary_gives_the_same_loss_and_gradient(dtype, temperature, masked):
    shape = (4, 10, VOCABULARY) if masked else (40, VOCABULARY)
    mask = torch.rand(4, 10, generator=torch.Generator().manual_seed(5)) < 0.6 if masked else None
    student, teacher = logits(*shape, dtype=dtype), logits(*shape, seed=1, dtype=dtype)
    # classes that neither model may take, and one that the teacher alone excludes
    student[..., 7:9], teacher[..., 7:10] = NEVER, NEVER
    if mask is not None:
        student[~mask], teacher[~mask] = float("nan"), float("nan")
    student.requires_grad_()
    twin = student.detach().double().requires_grad_()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = soft_targets(student, teacher, temperature, mask)
    assert "Chunked" in type(found.grad_fn.next_functions[0][0]).__name__
    rows = (twin, teacher) if mask is None else (twin[mask], teacher[mask])
    expected = plain(*rows, temperature)
    assert found.dtype == torch.float32
    assert found.item() == pytest.approx(expected.item(), rel=1e-5)
    (5.0 * found).backward()
    (5.0 * expected).backward()
    close(student.grad, twin.grad, dtype)
    assert student.grad[..., 7:9].abs().sum() == 0
    assert student.grad[..., 9].abs().sum() > 0
    if mask is not None:
        assert student.grad[~mask].abs().sum() == 0


def test_chunks_and_one_piece_are_the_same_whatever_the_size_of_a_chunk(monkeypatch):
    student, teacher = logits(7, 50), logits(7, 50, seed=1)
    expected = forward_kl(student.log_softmax(-1), teacher.log_softmax(-1)).mean()
    for elements in (1, 50, 150, 10_000):
        monkeypatch.setattr(chunked, "CHUNK_ELEMENTS", elements)
        torch.testing.assert_close(chunked_forward_kl(student, teacher), expected)
        torch.testing.assert_close(
            chunked_forward_kl(student, teacher, rows=torch.tensor([5, 1])),
            forward_kl(student[[5, 1]].log_softmax(-1), teacher[[5, 1]].log_softmax(-1)).mean(),
        )


@pytest.mark.parametrize(
    "options", [{"divergence": "reverse"}, {"divergence": "js"}, {"top_k": 5}, {"activation": "sigmoid"}]
)
def test_only_the_forward_divergence_of_a_softmax_is_chunked(options):
    student, teacher = logits(40, VOCABULARY).requires_grad_(), logits(40, VOCABULARY, seed=1)
    found = soft_targets(student, teacher, **options)
    assert "Chunked" not in type(found.grad_fn.next_functions[0][0]).__name__


def test_small_logits_are_computed_in_one_piece():
    for shape in ((3, 2000), (400_000, 3)):
        found = soft_targets(logits(*shape).requires_grad_(), logits(*shape, seed=1))
        assert "Chunked" not in type(found.grad_fn.next_functions[0][0]).__name__


def test_the_graph_can_be_walked_twice_and_the_gradients_add_up():
    student, teacher = logits(40, VOCABULARY).requires_grad_(), logits(40, VOCABULARY, seed=1)
    loss = soft_targets(student, teacher)
    loss.backward(retain_graph=True)
    once = student.grad.clone()
    loss.backward()
    torch.testing.assert_close(student.grad, 2 * once)


def test_float16_keeps_gradients_that_its_own_range_would_lose():
    """Of sure predictions most gradients are below 6e-8, until the scaler of mixed precision multiplies them."""
    student, teacher = (2 * logits(40, VOCABULARY, seed=seed, dtype=torch.float16) for seed in (0, 1))
    twin = student.double().requires_grad_()
    student.requires_grad_()
    (2.0**16 * soft_targets(student, teacher)).backward()
    (2.0**16 * plain(twin, teacher, 1.0)).backward()
    close(student.grad, twin.grad, torch.float16)
    assert (twin.grad.abs() / 2**16 < 6e-8).double().mean() > 0.5
    kept = twin.grad.abs() > 1e-6  # what float16 can hold with two digits
    assert kept.double().mean() > 0.3
    torch.testing.assert_close(student.grad[kept].double(), twin.grad[kept], rtol=0.05, atol=0.0)


def test_without_a_gradient_none_is_stored():
    student, teacher = logits(40, VOCABULARY), logits(40, VOCABULARY, seed=1)
    expected = soft_targets(student.clone().requires_grad_(), teacher).item()
    assert soft_targets(student, teacher).grad_fn is None
    with torch.no_grad():
        found = soft_targets(student.requires_grad_(), teacher)
    assert found.grad_fn is None
    assert found.item() == expected


def test_no_gradient_reaches_the_teacher():
    student, teacher = logits(40, VOCABULARY).requires_grad_(), logits(40, VOCABULARY, seed=1).requires_grad_()
    soft_targets(student, teacher).backward()
    assert teacher.grad is None


@pytest.mark.parametrize("shape", [(0, VOCABULARY), (4, 10, VOCABULARY)])
def test_nothing_counts_gives_zero_with_a_graph(shape):
    student = torch.full(shape, float("nan"), requires_grad=True)
    mask = torch.zeros(shape[:-1]) if len(shape) == 3 else None
    loss = soft_targets(student, torch.zeros(shape), mask=mask)
    loss.backward()
    assert loss.item() == 0.0
    assert torch.equal(student.grad, torch.zeros(shape))


def test_a_student_that_equals_the_teacher_costs_nothing():
    student = logits(40, VOCABULARY).requires_grad_()
    loss = soft_targets(student, student.detach().clone(), 2.0)
    loss.backward()
    assert abs(loss.item()) < 1e-6
    assert student.grad.abs().max() < 1e-8


class Largest(TorchDispatchMode):
    """Keeps the size of the largest float32 tensor that any operation returns, forward or backward."""

    elements = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        if isinstance(result, torch.Tensor) and result.dtype == torch.float32:
            self.elements = max(self.elements, result.numel())
        return result


def test_the_float32_copies_never_stand_in_memory():
    student, teacher = (logits(300, VOCABULARY, seed=seed, dtype=torch.bfloat16) for seed in (0, 1))
    student.requires_grad_()
    with Largest() as chunks:
        soft_targets(student, teacher).backward()
    assert 0 < chunks.elements <= chunked.CHUNK_ELEMENTS
    with Largest() as whole:
        soft_targets(student, teacher, divergence="reverse").backward()
    assert whole.elements == student.numel()


# -- cross-entropy -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_cross_entropy_is_torch_s_with_another_weight_for_each_row(dtype):
    student = logits(40, VOCABULARY, dtype=dtype)
    student[:, 7:9] = NEVER
    targets = torch.randint(100, VOCABULARY, (40,), generator=torch.Generator().manual_seed(2))
    weights = torch.linspace(-1.0, 3.0, 40)
    student.requires_grad_()
    twin = student.detach().double().requires_grad_()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = chunked_cross_entropy(student, targets)
    expected = torch.nn.functional.cross_entropy(twin, targets, reduction="none")
    assert found.dtype == torch.float32
    torch.testing.assert_close(found.double(), expected, rtol=1e-5, atol=1e-6)
    (found * weights).sum().backward(retain_graph=True)
    (expected * weights).sum().backward()
    close(student.grad, twin.grad, dtype)
    first = student.grad.clone()
    (found * weights).sum().backward()  # what is kept for it is not changed by it
    torch.testing.assert_close(student.grad, 2 * first)


@pytest.mark.parametrize("elements", [1, 50, 64, 10_000])
def test_cross_entropy_of_any_size_of_chunk(elements: int, monkeypatch: pytest.MonkeyPatch):
    student, targets = logits(13, 11).requires_grad_(), torch.arange(13) % 11
    expected = torch.nn.functional.cross_entropy(student, targets)
    (wanted,) = torch.autograd.grad(expected, student)
    monkeypatch.setattr(chunked, "CHUNK_ELEMENTS", elements)
    found = chunked_cross_entropy(student, targets).mean()
    torch.testing.assert_close(found, expected)
    torch.testing.assert_close(torch.autograd.grad(found, student)[0], wanted)


def test_cross_entropy_without_gradients_and_without_rows():
    student, targets = logits(3, 5), torch.tensor([0, 4, 2])
    assert not chunked_cross_entropy(student, targets).requires_grad
    with torch.no_grad():
        assert not chunked_cross_entropy(student.requires_grad_(), targets).requires_grad
    nothing = chunked_cross_entropy(student[:0], targets[:0])
    assert nothing.shape == (0,)
    nothing.sum().backward()
    assert torch.equal(student.grad, torch.zeros(3, 5))
    with pytest.raises((IndexError, RuntimeError)):
        chunked_cross_entropy(student, torch.tensor([0, 5, 2]))


def test_cross_entropy_needs_the_memory_of_the_gradient_and_one_chunk():
    """Nothing of the logits' size is made but the gradient, in their own type."""
    made: list[tuple[torch.dtype, int]] = []

    class Watch(TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            result = func(*args, **(kwargs or {}))
            for item in result if isinstance(result, (tuple, list)) else (result,):
                if isinstance(item, torch.Tensor) and item.numel() > chunked.CHUNK_ELEMENTS:
                    made.append((item.dtype, item.numel()))
            return result

    student = logits(40, VOCABULARY, dtype=torch.bfloat16).requires_grad_()
    with Watch():
        chunked_cross_entropy(student, torch.arange(40))
    assert {dtype for dtype, _ in made} == {torch.bfloat16}
