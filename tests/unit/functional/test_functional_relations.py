"""MiniLM relations against loops in float64: one sequence, relation head and token after another."""

from __future__ import annotations

import pytest
import torch

from lightning_distilbert.errors import DistillationError
from lightning_distilbert.functional import relation_divergence
from lightning_distilbert.functional.relations import split_heads

MASK = torch.tensor([[1, 1, 1, 0, 0], [1, 1, 1, 1, 1], [0, 0, 1, 1, 1], [0, 0, 0, 0, 0]]).bool()


def vectors(heads, head_width, seed=0):
    generator = torch.Generator().manual_seed(seed)
    values = torch.randn(len(MASK), heads, 5, head_width, generator=generator)
    return values.masked_fill(~MASK[:, None, :, None], float("nan"))


def reference(student, teacher, heads, mask):
    """The formula of the docstring; autograd gives the gradient."""
    total, count = torch.zeros((), dtype=torch.float64), 0
    for ours, theirs, real in zip(student, teacher.double(), mask, strict=True):
        places = real.nonzero().flatten().tolist()
        # the heads of one token side by side
        left, right = ([torch.cat([head[place] for head in side]) for place in places] for side in (ours, theirs))
        for head in range(heads):
            for i in range(len(places)):
                rows = []
                for side in (left, right):
                    width = len(side[0]) // heads
                    part = slice(head * width, (head + 1) * width)
                    row = torch.stack([(side[i][part] * other[part]).sum() / width**0.5 for other in side])
                    rows.append(row.exp() / row.exp().sum())
                q, p = rows
                total, count = total + (p * (p / q).log()).sum(), count + 1
    return total / count


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(
    ("shape", "teacher_shape", "heads"), [((2, 4), (3, 4), 4), ((2, 4), (2, 4), 2), ((4, 2), (2, 6), 1)]
)
def test_loss_and_gradient_agree_with_a_loop(shape, teacher_shape, heads, dtype):
    student, teacher = vectors(*shape).to(dtype).requires_grad_(), vectors(*teacher_shape, seed=1).to(dtype)
    twin = student.detach().double().requires_grad_()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = relation_divergence(student, teacher, heads, MASK)
    expected = reference(twin, teacher, heads, MASK)
    found.backward()
    expected.backward()
    assert found.dtype == torch.float32
    assert found.item() == pytest.approx(expected.item(), rel=1e-5)
    tolerance = 1e-6 if dtype == torch.float32 else 1e-2 * twin.grad.abs().max().item()
    torch.testing.assert_close(student.grad.double(), twin.grad, rtol=1e-4, atol=tolerance)


def test_without_a_mask_all_tokens_count():
    student, teacher = vectors(2, 4)[1:2], vectors(3, 4, seed=1)[1:2]
    expected = reference(student.double(), teacher, 4, MASK[1:2]).item()
    assert relation_divergence(student, teacher, 4).item() == pytest.approx(expected, rel=1e-5)


def test_heads_are_joined_in_the_order_of_the_projection_and_cut_again():
    flat = torch.arange(24.0).reshape(1, 2, 12)  # (batch, sequence, width), as a projection gives it
    attention_heads = flat.unflatten(-1, (3, 4)).transpose(1, 2)
    assert torch.equal(split_heads(attention_heads, 6), flat.unflatten(-1, (6, 2)).transpose(1, 2))
    assert torch.equal(split_heads(attention_heads, 3), attention_heads)


def test_the_number_of_heads_changes_the_loss():
    student, teacher = vectors(2, 4), vectors(3, 4, seed=1)
    assert len({relation_divergence(student, teacher, heads, MASK).item() for heads in (1, 2, 4)}) == 3


def test_a_rotation_within_each_relation_head_costs_nothing():
    teacher = vectors(2, 4)
    rotation, _ = torch.linalg.qr(torch.randn(4, 4))
    student = (teacher @ rotation).requires_grad_()
    loss = relation_divergence(student, teacher, 2, MASK)
    loss.backward()
    assert abs(loss.item()) < 1e-6
    assert student.grad.abs().max() < 1e-5


def test_nothing_counts_gives_zero_with_a_graph():
    student = vectors(2, 4).requires_grad_()
    loss = relation_divergence(student, vectors(2, 4, seed=1), 2, torch.zeros_like(MASK))
    loss.backward()
    assert loss.item() == 0.0
    assert torch.equal(student.grad, torch.zeros_like(student))


def test_no_gradient_reaches_the_teacher():
    student, teacher = vectors(2, 4).requires_grad_(), vectors(2, 4, seed=1).requires_grad_()
    relation_divergence(student, teacher, 2, MASK).backward()
    assert teacher.grad is None


def test_bad_arguments_are_refused():
    student, teacher = vectors(2, 4), vectors(3, 4)
    with pytest.raises(DistillationError, match="width of 8 cannot be cut into 3 relation heads"):
        relation_divergence(student, teacher, 3, MASK)
    with pytest.raises(DistillationError, match="width of 12 cannot be cut into 8 relation heads"):
        relation_divergence(student, teacher, 8, MASK)
    with pytest.raises(DistillationError, match="cannot be cut into 0 relation heads"):
        relation_divergence(student, teacher, 0, MASK)
    with pytest.raises(DistillationError, match=r"\(4, 2, 5, 4\) \(student\) and \(4, 3, 4, 4\) \(teacher\)"):
        relation_divergence(student, teacher[:, :, :4], 4)
    with pytest.raises(DistillationError, match=r"and a mask of shape \(3, 5\)"):
        relation_divergence(student, teacher, 4, MASK[:3])
