"""Spans in a text: which tokens may bound an answer, and which span scores best."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from lightning_distilbert.errors import DistillationError
from lightning_distilbert.functional.masking import full_precision, mean_or_zero


def span_mask(inputs: Mapping[str, Any]) -> Tensor | None:
    """Return where an answer may start or end, and the first token, which stands for no answer.

    What the data says (``span_mask``) is taken as it is. Without it, the tokens of the second text count, which the
    token types tell; in a row without such tokens (RoBERTa has no types) all real tokens do.

    Args:
        inputs: Tensors under transformers' names.

    Returns:
        Boolean, of shape ``(batch, sequence)``; None if the inputs hold none of ``span_mask``, ``token_type_ids`` and
        ``attention_mask``.

    Example:
        >>> types, mask = torch.tensor([[0, 0, 1, 1, 0]]), torch.tensor([[1, 1, 1, 1, 0]])
        >>> span_mask({"token_type_ids": types, "attention_mask": mask})
        tensor([[ True, False,  True,  True, False]])
    """
    given, types, attended = (inputs.get(name) for name in ("span_mask", "token_type_ids", "attention_mask"))
    if given is not None:
        return given.bool()
    if types is None:
        return None if attended is None else attended.bool()
    real = torch.ones_like(types, dtype=torch.bool) if attended is None else attended.bool()
    second = (types == 1) & real
    return torch.where(second.any(dim=1, keepdim=True), second | first_of(real), real)


def first_of(mask: Tensor) -> Tensor:
    """Keep the first True of each row only.

    Args:
        mask: Boolean, of shape ``(batch, sequence)``.

    Example:
        >>> first_of(torch.tensor([[False, True, True]]))
        tensor([[False,  True, False]])
    """
    return mask & (mask.cumsum(dim=1) == 1)


def span_cross_entropy(start_logits: Tensor, end_logits: Tensor, starts: Tensor, ends: Tensor, mask: Tensor) -> Tensor:
    r"""Cross-entropy of the true start and end, each over the tokens where an answer may start or end.

    .. math:: \mathcal{L} = -\frac{1}{2N} \sum_{n} \left( \log \mathrm{softmax}_{i \in M_n}(s_n)_{a_n} +
        \log \mathrm{softmax}_{i \in M_n}(e_n)_{b_n} \right)

    This is the loss of BERT (Devlin et al. 2019, section 4.2, https://arxiv.org/abs/1810.04805), whose softmax also
    runs over question and padding.

    Args:
        start_logits: :math:`s`, of shape ``(batch, sequence)``.
        end_logits: :math:`e`, of that shape.
        starts: :math:`a`, int64 of shape ``(batch,)``. A row counts if start and end are both places of the mask; -100
            is none.
        ends: :math:`b`, of that shape.
        mask: :math:`M`, boolean, of shape ``(batch, sequence)``.

    Returns:
        A float32 scalar in :math:`[0, \infty)`; zero with a graph if no row counts.

    Example:
        >>> logits, place = torch.zeros(1, 3), torch.tensor([1])
        >>> span_cross_entropy(logits, logits, place, place, torch.tensor([[False, True, True]]))
        tensor(0.6931)
    """
    length = mask.shape[1]
    known = torch.ones_like(starts, dtype=torch.bool)
    for places in (starts, ends):
        inside = mask.gather(1, places.clamp(0, length - 1).unsqueeze(1)).squeeze(1)
        known &= inside & (places >= 0) & (places < length)
    costs = []
    with full_precision(start_logits):
        for logits, places in ((start_logits, starts), (end_logits, ends)):
            allowed = logits[known].float().masked_fill(~mask[known], -math.inf)
            costs.append(F.cross_entropy(allowed, places[known], reduction="none"))
        return mean_or_zero(torch.cat(costs), graph_of=torch.cat([start_logits, end_logits]))


def best_spans(
    start_logits: Tensor, end_logits: Tensor, mask: Tensor, max_length: int = 30
) -> tuple[Tensor, Tensor, Tensor]:
    r"""Find the span of each row whose start and end score best together, exactly.

    .. math:: \max_{i \in M, \; j \in M, \; i \le j < i + L} \; s_i + e_j

    Args:
        start_logits: :math:`s`, of shape ``(batch, sequence)``.
        end_logits: :math:`e`, of that shape.
        mask: :math:`M`, boolean, of that shape: the tokens of the context.
        max_length: :math:`L`, the most tokens of an answer.

    Returns:
        The scores in float32, and the places of the first and the last token, int64, all of shape ``(batch,)``. A row
        without a token in the mask has the score ``-inf`` and places that mean nothing.

    Raises:
        DistillationError: If the length is below 1.

    Example:
        >>> starts, ends = torch.tensor([[5.0, 0.0, 2.0]]), torch.tensor([[0.0, 1.0, 3.0]])
        >>> best_spans(starts, ends, torch.tensor([[True, True, True]]), max_length=2)
        (tensor([6.]), tensor([0]), tensor([1]))
    """
    if max_length < 1:
        raise DistillationError(f"best_spans(max_length={max_length}): an answer has at least 1 token.")
    starts, ends = (logits.float().masked_fill(~mask, -math.inf) for logits in (start_logits, end_logits))
    reach = min(max_length, starts.shape[1])
    # windows[b, i, k] is the score of the end k tokens after i
    windows = F.pad(ends, (0, reach - 1), value=-math.inf).unfold(1, reach, 1)
    best_end, ahead = windows.max(dim=-1)
    scores, first = (starts + best_end).max(dim=1)
    last = first + ahead.gather(1, first.unsqueeze(1)).squeeze(1)
    return scores, first, last
