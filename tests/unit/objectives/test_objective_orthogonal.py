"""OrthogonalLinear: its matrix is orthogonal, whatever its weight, and its gradient that of Gram and Schmidt."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor

from lightning_distilbert.objectives.orthogonal import OrthogonalLinear
from tests.gradients import assert_same_gradients


def gram_schmidt(matrix: Tensor) -> Tensor:
    """Make columns orthonormal, one after another."""
    columns: list[Tensor] = []
    for column in matrix.T:
        rest = column - sum(((done @ column) * done for done in columns), torch.zeros_like(column))
        columns.append(rest / rest.norm())
    return torch.stack(columns, dim=1)


def layer_of(ours: int, theirs: int) -> OrthogonalLinear:
    torch.manual_seed(0)
    return OrthogonalLinear(ours, theirs)


@pytest.mark.parametrize(("ours", "theirs"), [(4, 6), (4, 4), (6, 4)])
def test_the_matrix_is_orthogonal_and_its_gradient_that_of_gram_and_schmidt(ours: int, theirs: int):
    layer = layer_of(ours, theirs)
    layer.weight.data.mul_(100.0)  # so that its gradient, which falls with it, is not far from 1
    vectors = torch.randn(3, ours, requires_grad=True)
    twins = [x.detach().double().requires_grad_() for x in (vectors, layer.weight)]
    matrix = gram_schmidt(twins[1]) if theirs >= ours else gram_schmidt(twins[1].T).T
    narrow = matrix.T @ matrix if theirs >= ours else matrix @ matrix.T
    torch.testing.assert_close(narrow, torch.eye(min(ours, theirs), dtype=torch.float64))
    target = torch.randn(3, theirs)
    expected = ((twins[0] @ matrix.T - target.double()) ** 2).sum()
    found = ((layer(vectors) - target) ** 2).sum()
    assert_same_gradients(found, expected, [vectors, layer.weight], twins)


def test_into_a_wider_space_all_scalar_products_stay():
    vectors = torch.randn(5, 4)
    sent = layer_of(4, 9)(vectors)
    torch.testing.assert_close(sent @ sent.T, vectors @ vectors.T)


def test_the_scale_of_the_weight_changes_nothing():
    layer, vectors = layer_of(4, 6), torch.randn(3, 4)
    larger = copy.deepcopy(layer)
    larger.weight.data.mul_(7.0)
    torch.testing.assert_close(larger(vectors), layer(vectors))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_other_types_are_computed_in_float32_at_least(dtype: torch.dtype):
    layer = layer_of(4, 6).to(dtype)
    vectors = torch.randn(3, 4, dtype=dtype, requires_grad=True)
    sent = layer(vectors)
    assert sent.dtype is (torch.float64 if dtype is torch.float64 else torch.float32)
    sent = sent.double()
    torch.testing.assert_close(sent @ sent.T, vectors.double() @ vectors.double().T, rtol=1e-4, atol=1e-5)
    sent.sum().backward()
    assert layer.weight.grad.isfinite().all()
    assert vectors.grad.isfinite().all()
