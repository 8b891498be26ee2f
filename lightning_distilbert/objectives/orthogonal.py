"""A projection between spaces of different widths that keeps angles and lengths."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class OrthogonalLinear(nn.Linear):
    r"""A linear map without a bias whose matrix is the orthogonal factor of its weight.

    With :math:`V = Q R` the QR factorisation of the weight (of its transpose where the map makes vectors narrower), and
    :math:`R` of a positive diagonal, it computes :math:`Q x`. Into a wider space all scalar products stay what they
    are, so that cosines after it are those before it. Miles et al. 2024 (https://arxiv.org/abs/2403.06213) distil
    features over such maps. It is computed in float32 at least.

    Args:
        in_features: The width of what goes in.
        out_features: The width of what comes out.

    Example:
        >>> ours = torch.randn(5, 2)
        >>> theirs = OrthogonalLinear(2, 3)(ours)
        >>> torch.allclose(theirs @ theirs.T, ours @ ours.T, atol=1e-5)
        True
    """

    def __init__(self, in_features: int, out_features: int) -> None:
        super().__init__(in_features, out_features, bias=False)

    def reset_parameters(self) -> None:
        """Draw the weight; its scale says only how far a step of the optimizer turns the matrix."""
        nn.init.normal_(self.weight, std=0.01)

    def forward(self, input: Tensor) -> Tensor:
        """Return vectors of shape ``(..., out_features)`` for those of shape ``(..., in_features)``."""
        weight = self.weight.to(torch.promote_types(self.weight.dtype, torch.float32))
        narrower = self.out_features < self.in_features
        factor, triangle = torch.linalg.qr(weight.T if narrower else weight)
        # the factors are unique, and do not jump between steps, where the diagonal is positive
        factor = factor * torch.where(triangle.diagonal() < 0, -1.0, 1.0)
        return F.linear(input.to(factor.dtype), factor.T if narrower else factor)
