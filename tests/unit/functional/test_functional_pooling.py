"""Pooling against a loop, and against whatever stands in the padding."""

from __future__ import annotations

import pytest
import torch

from lightning_distilbert.errors import DistillationError
from lightning_distilbert.functional import pool

MASK = torch.tensor([[1, 1, 0, 0], [1, 1, 1, 1], [0, 0, 0, 0], [0, 0, 1, 1]])


def hidden(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def reference(states, mask, mode):
    rows = []
    for vectors, real in zip(states.double(), mask.bool(), strict=True):
        kept = vectors[real]
        rows.append(
            torch.zeros(6, dtype=torch.float64) if len(kept) == 0 else kept.mean(0) if mode == "mean" else kept[0]
        )
    return torch.stack(rows).float()


@pytest.mark.parametrize("mode", ["mean", "cls"])
@pytest.mark.parametrize("dtype", [torch.bool, torch.int64])
def test_agrees_with_a_loop_also_for_left_padding_and_empty_rows(mode, dtype):
    states = hidden(4, 4, 6)
    torch.testing.assert_close(pool(states, MASK.to(dtype), mode), reference(states, MASK, mode))


@pytest.mark.parametrize("mode", ["mean", "cls"])
def test_padding_reaches_neither_result_nor_gradient(mode):
    states, real = hidden(4, 4, 6), MASK.bool()
    longer = torch.cat([states, torch.full((4, 3, 6), float("nan"))], dim=1)
    longer[:, :4][~real] = float("inf")
    longer_mask = torch.cat([MASK, torch.zeros(4, 3, dtype=MASK.dtype)], dim=1)
    states.requires_grad_()
    longer.requires_grad_()
    first, second = pool(states, MASK, mode), pool(longer, longer_mask, mode)
    torch.testing.assert_close(first, second)
    first.square().sum().backward()
    second.square().sum().backward()
    torch.testing.assert_close(longer.grad[:, :4], states.grad)
    assert longer.grad[:, 4:].abs().sum() == 0


def test_a_row_without_a_token_is_zero_with_a_graph():
    states = hidden(4, 4, 6).requires_grad_()
    pooled = pool(states, MASK)
    assert pooled[2].tolist() == [0.0] * 6
    pooled[2].sum().backward()
    assert states.grad.abs().sum() == 0


def test_the_mode_changes_the_result_and_no_mask_means_that_all_count():
    states = hidden(4, 4, 6)
    assert not torch.allclose(pool(states, MASK, "mean"), pool(states, MASK, "cls"))
    torch.testing.assert_close(pool(states), states.mean(1))
    torch.testing.assert_close(pool(states, mode="cls"), states[:, 0])


def test_half_precision_is_summed_in_float32():
    # 300 ones: bfloat16 counts no further than 256
    states = torch.ones(1, 300, 2, dtype=torch.bfloat16)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        pooled = pool(states, torch.ones(1, 300))
    assert pooled.dtype == torch.float32
    assert pooled.tolist() == [[1.0, 1.0]]


def test_bad_arguments_are_refused():
    with pytest.raises(DistillationError, match="was given 'max': choose one of 'mean', 'cls'"):
        pool(hidden(4, 4, 6), MASK, "max")
    with pytest.raises(DistillationError, match=r"mask of shape \(4, 3\)"):
        pool(hidden(4, 4, 6), MASK[:, :3])
    with pytest.raises(DistillationError, match=r"hidden states of shape \(4, 4\)"):
        pool(hidden(4, 4), MASK)
