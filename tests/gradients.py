"""Gradients of an objective against those of a plain loop in float64."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import torch
from torch import Tensor


def assert_same_gradients(found: Tensor, expected: Tensor, leaves: Sequence[Tensor], twins: Sequence[Tensor]) -> None:
    """Go back through both costs, and compare them and the gradients of their leaves."""
    found.backward()
    expected.backward()
    assert found.item() == pytest.approx(expected.item(), rel=1e-5)
    for leaf, twin in zip(leaves, twins, strict=True):
        rtol = 1e-4 if leaf.dtype == torch.float32 else 2**-8  # the gradient of a bfloat16 tensor is one itself
        torch.testing.assert_close(leaf.grad.double(), twin.grad, rtol=rtol, atol=1e-6)
