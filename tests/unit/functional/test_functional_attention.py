"""Attention distances against loops in float64: one sequence, head and query after another."""

from __future__ import annotations

import pytest
import torch

from lightning_distilbert.errors import DistillationError
from lightning_distilbert.functional import attention_distance

# padding on the right, none, on the left, and a sequence without any token
MASK = torch.tensor([[1, 1, 1, 0, 0], [1, 1, 1, 1, 1], [0, 0, 1, 1, 1], [0, 0, 0, 0, 0]]).bool()
metrics = pytest.mark.parametrize("metric", ["mse", "kl"])


def scores(seed=0, heads=3):
    generator = torch.Generator().manual_seed(seed)
    values = 2 * torch.randn(len(MASK), heads, 5, 5, generator=generator)
    # whatever stands in the padding, of queries or of keys
    return values.masked_fill(~(MASK[:, None, :, None] & MASK[:, None, None, :]), float("nan"))


def reference(student, teacher, mask, metric):
    """The formulas of the docstring; autograd gives the gradient."""
    total, count = torch.zeros((), dtype=torch.float64), 0
    for ours, theirs, real in zip(student, teacher.double(), mask, strict=True):
        places = real.nonzero().flatten().tolist()
        for head in range(len(ours)):
            for query in places:
                a, b = (torch.stack([side[head, query, key] for key in places]) for side in (ours, theirs))
                if metric == "mse":
                    total, count = total + ((a - b) ** 2).sum(), count + len(places)
                else:
                    p, q = b.exp() / b.exp().sum(), a.exp() / a.exp().sum()
                    total, count = total + (p * (p / q).log()).sum(), count + 1
    return total / count


@metrics
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_loss_and_gradient_agree_with_a_loop(metric, dtype):
    student, teacher = scores().to(dtype).requires_grad_(), scores(1).to(dtype)
    twin = student.detach().double().requires_grad_()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = attention_distance(student, teacher, MASK, metric)
    expected = reference(twin, teacher, MASK, metric)
    found.backward()
    expected.backward()
    assert found.dtype == torch.float32
    assert found.item() == pytest.approx(expected.item(), rel=1e-5)
    tolerance = 1e-6 if dtype == torch.float32 else 1e-2 * twin.grad.abs().max().item()
    torch.testing.assert_close(student.grad.double(), twin.grad, rtol=1e-5, atol=tolerance)


@metrics
def test_without_a_mask_all_tokens_count(metric):
    student, teacher = scores()[1:2], scores(1)[1:2]
    expected = reference(student.double(), teacher, MASK[1:2], metric).item()
    assert attention_distance(student, teacher, metric=metric).item() == pytest.approx(expected, rel=1e-5)


def test_the_metric_changes_the_loss_and_kl_does_not_see_a_constant_of_a_query():
    student, teacher = scores()[1:2], scores(1)[1:2]
    shifted = student + torch.arange(5.0)[:, None]
    assert attention_distance(student, teacher) != attention_distance(student, teacher, metric="kl")
    torch.testing.assert_close(
        attention_distance(shifted, teacher, metric="kl"), attention_distance(student, teacher, metric="kl")
    )
    assert attention_distance(shifted, teacher) > attention_distance(student, teacher) + 1


@metrics
def test_padded_queries_do_not_count_as_they_do_in_tinyberts_own_code(metric):
    """Its MSELoss runs over all queries, so that the cost of the same tokens depends on the padding beside them."""
    real = scores()[1:2, :, :3, :3], scores(1)[1:2, :, :3, :3]
    padded = [torch.nn.functional.pad(side, (0, 2, 0, 2), value=7.0 + index) for index, side in enumerate(real)]
    mask = torch.tensor([[1, 1, 1, 0, 0]]).bool()
    torch.testing.assert_close(
        attention_distance(*padded, mask, metric=metric), attention_distance(*real, metric=metric)
    )


@metrics
def test_equal_scores_cost_nothing(metric):
    student = scores().requires_grad_()
    loss = attention_distance(student, scores(), MASK, metric)
    loss.backward()
    assert abs(loss.item()) < 1e-6
    assert student.grad.abs().max() < 1e-6


@metrics
def test_nothing_counts_gives_zero_with_a_graph(metric):
    student = scores().requires_grad_()
    loss = attention_distance(student, scores(1), torch.zeros_like(MASK), metric)
    loss.backward()
    assert loss.item() == 0.0
    assert torch.equal(student.grad, torch.zeros_like(student))


def test_no_gradient_reaches_the_teacher():
    student, teacher = scores().requires_grad_(), scores(1).requires_grad_()
    (attention_distance(student, teacher, MASK) + attention_distance(student, teacher, MASK, "kl")).backward()
    assert teacher.grad is None


def test_bad_arguments_are_refused():
    student, teacher = scores(), scores(1)
    with pytest.raises(DistillationError, match="was given 'cosine': choose one of 'mse', 'kl'"):
        attention_distance(student, teacher, MASK, metric="cosine")
    with pytest.raises(DistillationError, match=r"shape \(4, 3, 5, 5\) and the teacher's \(4, 2, 5, 5\)"):
        attention_distance(student, teacher[:, :2], MASK)
    with pytest.raises(DistillationError, match=r"shape \(4, 3, 5, 5\) with a mask of shape \(4, 4\)"):
        attention_distance(student, teacher, MASK[:, :4])
    with pytest.raises(DistillationError, match=r"shape \(4, 3, 5, 4\) with a mask of shape None"):
        attention_distance(student[..., :4], teacher[..., :4])
