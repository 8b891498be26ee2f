"""One vector per sentence from the hidden states of its tokens."""

from __future__ import annotations

from typing import Literal, get_args

import torch
from torch import Tensor

from lightning_distilbert.errors import DistillationError, check_choice
from lightning_distilbert.functional.masking import first_tokens, full_precision

Pooling = Literal["mean", "cls"]


def pool(hidden_states: Tensor, mask: Tensor | None = None, mode: str = "mean") -> Tensor:
    r"""Pool hidden states into one vector per sequence, as sentence-transformers does.

    With :math:`R` the real tokens of a sequence, ``mean`` (Reimers and Gurevych 2019, "Sentence-BERT",
    https://arxiv.org/abs/1908.10084, section 3) is

    .. math:: e = \frac{1}{|R|} \sum_{i \in R} h_i

    and ``cls`` is the vector of the first real token, also where padding stands on the left.

    Args:
        hidden_states: Of shape ``(batch, sequence, width)``. What stands in the padding does not matter, even NaN.
        mask: Of shape ``(batch, sequence)``, True (or 1) at real tokens. None means that all are real.
        mode: ``mean`` or ``cls``.

    Returns:
        A tensor of shape ``(batch, width)`` in float32, not normalised; zeros for a sequence without a real token.

    Raises:
        DistillationError: If the mask does not have the shape ``(batch, sequence)`` or the mode is unknown.

    Example:
        >>> hidden = torch.tensor([[[1.0], [3.0], [100.0]]])
        >>> mask = torch.tensor([[True, True, False]])
        >>> pool(hidden, mask), pool(hidden, mask, mode="cls")
        (tensor([[2.]]), tensor([[1.]]))
    """
    check_choice("pool(mode=...)", mode, get_args(Pooling))
    mask = torch.ones(hidden_states.shape[:2], device=hidden_states.device) if mask is None else mask
    if hidden_states.dim() != 3 or mask.shape != hidden_states.shape[:2]:
        raise DistillationError(
            f"pool() was given hidden states of shape {tuple(hidden_states.shape)} and a mask of shape "
            f"{tuple(mask.shape)}: it needs (batch, sequence, width) and (batch, sequence)."
        )
    real = mask.bool()
    if mode == "cls":
        return first_tokens(hidden_states, real).float().masked_fill(~real.any(dim=1, keepdim=True), 0.0)
    with full_precision(hidden_states):
        total = hidden_states.float().masked_fill(~real.unsqueeze(-1), 0.0).sum(dim=1)
        return total / real.sum(dim=1, keepdim=True).clamp(min=1)
