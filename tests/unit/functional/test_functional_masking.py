"""Selection of positions, and the zero that keeps a graph."""

from __future__ import annotations

import pytest
import torch

from lightning_distilbert.errors import DistillationError
from lightning_distilbert.functional.masking import (
    both,
    check_same_shape,
    first_tokens,
    full_precision,
    mean_or_zero,
    select,
)


@pytest.mark.parametrize("dtype", [torch.bool, torch.int64, torch.float32])
def test_select_takes_any_kind_of_mask_for_a_mask(dtype):
    values = torch.arange(12.0).reshape(2, 3, 2)
    mask = torch.tensor([[1, 0, 1], [0, 0, 1]]).to(dtype)
    assert select(values, mask).tolist() == [[0, 1], [4, 5], [10, 11]]


def test_select_of_rows_keeps_the_other_axes_and_without_a_mask_flattens():
    values = torch.arange(12.0).reshape(2, 3, 2)
    assert select(values, torch.tensor([False, True])).shape == (1, 3, 2)
    assert torch.equal(select(values, None), values.reshape(6, 2))


def test_select_refuses_a_mask_of_another_shape():
    with pytest.raises(
        DistillationError, match=r"mask of shape \(2, 4\) cannot select from values of shape \(2, 3, 2\)"
    ):
        select(torch.zeros(2, 3, 2), torch.ones(2, 4))


def test_nan_in_the_padding_reaches_neither_value_nor_gradient():
    values = torch.tensor([[[1.0], [float("nan")]]], requires_grad=True)
    loss = mean_or_zero(select(values, torch.tensor([[True, False]])).square(), graph_of=values)
    loss.backward()
    assert loss.item() == 1.0
    assert values.grad.tolist() == [[[2.0], [0.0]]]


@pytest.mark.parametrize("dtype", [torch.bool, torch.int64, torch.float32])
def test_the_first_token_is_the_first_real_one_and_takes_all_the_gradient(dtype):
    values = torch.arange(18.0).reshape(3, 3, 2).requires_grad_()
    mask = torch.tensor([[1, 1, 0], [0, 1, 1], [0, 0, 0]])
    found = first_tokens(values, mask.to(dtype))
    assert found.tolist()[:2] == [[0, 1], [8, 9]]
    found[:2].sum().backward()
    assert values.grad.sum(-1).tolist() == [[2, 0, 0], [0, 2, 0], [0, 0, 0]]
    assert torch.equal(first_tokens(values, None), values[:, 0])


def test_mean_or_zero_is_the_mean_where_something_counts():
    costs = torch.tensor([1.0, 4.0])
    assert mean_or_zero(costs, graph_of=costs).item() == 2.5


def test_mean_or_zero_of_nothing_has_a_graph_to_its_source():
    source = torch.full((3, 2), float("inf"), requires_grad=True)
    zero = mean_or_zero(torch.zeros(0), graph_of=source)
    assert zero.item() == 0.0
    assert zero.requires_grad
    zero.backward()
    assert source.grad.tolist() == [[0.0, 0.0]] * 3


def test_both_is_the_intersection_and_none_means_all():
    mask = torch.tensor([1, 0])
    assert both(None, None) is None
    assert both(mask, None) is mask
    assert both(None, mask) is mask
    assert both(mask, torch.tensor([1, 1])).tolist() == [True, False]
    with pytest.raises(DistillationError, match=r"student's mask has the shape \(2,\) and the teacher's \(3,\)"):
        both(mask, torch.ones(3))


def test_full_precision_turns_autocast_off():
    left = torch.full((1, 1), 1.001)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert (left @ left).dtype == torch.bfloat16
        with full_precision(left):
            assert (left @ left).dtype == torch.float32


def test_shapes_that_would_broadcast_are_refused():
    with pytest.raises(DistillationError, match=r"student's logits have the shape \(2, 1\) and the teacher's \(2, 3\)"):
        check_same_shape("logits", torch.zeros(2, 1), torch.zeros(2, 3))
    check_same_shape("embeddings", torch.zeros(2, 1), torch.zeros(2, 3), leading=True)
    with pytest.raises(DistillationError, match="but for the last axis"):
        check_same_shape("embeddings", torch.zeros(2, 1), torch.zeros(1, 3), leading=True)
    with pytest.raises(DistillationError, match="must agree"):
        check_same_shape("embeddings", torch.zeros(2), torch.zeros(2, 3), leading=True)
