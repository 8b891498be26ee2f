"""The last product of a head over a vocabulary, and where it is computed."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule, FullyShardedDataParallel
from transformers import PreTrainedModel

from lightning_distilbert.architectures import unwrap
from lightning_distilbert.functional import late_logits


def projection_of(model: nn.Module) -> nn.Linear | None:
    """Return the linear layer that gives a model's logits over its vocabulary, if others may compute its product.

    Args:
        model: A transformers model, wrapped or not.

    Returns:
        The layer. None of any other module, of a head that computes its product in another way (DeBERTa-v2's newer
        one), and of a sharded model, whose weights are whole within its own forward alone.

    Example:
        >>> from transformers import BertConfig, BertForMaskedLM
        >>> config = BertConfig(vocab_size=9, hidden_size=4, num_hidden_layers=1, num_attention_heads=1)
        >>> projection_of(BertForMaskedLM(config))
        Linear(in_features=4, out_features=9, bias=True)
    """
    model = unwrap(model)
    if not isinstance(model, PreTrainedModel):
        return None
    found = model.get_output_embeddings()
    sharded = any(isinstance(part, (FSDPModule, FullyShardedDataParallel)) for part in model.modules())
    if type(found) is not nn.Linear or found.out_features != getattr(model.config, "vocab_size", None) or sharded:
        return None
    return found


def many_logits(model: nn.Module, positions: Tensor) -> bool:
    """Tell whether logits at so many positions should not stand in memory all at once, and need not.

    Args:
        model: A transformers model, wrapped or not.
        positions: Boolean, True where its head is evaluated.

    Example:
        >>> from transformers import BertConfig, BertForMaskedLM
        >>> config = BertConfig(vocab_size=9, hidden_size=4, num_hidden_layers=1, num_attention_heads=1)
        >>> many_logits(BertForMaskedLM(config), torch.tensor([[True, True]]))
        False
    """
    projection = projection_of(model)
    return projection is not None and int(positions.sum()) * projection.out_features > late_logits.LATE_ELEMENTS


@contextlib.contextmanager
def projected_at(model: nn.Module, rows: Tensor | Sequence[int] | None) -> Iterator[None]:
    """Compute logits at some rows only of those that a head was evaluated at, for the time of a ``with`` block.

    Args:
        model: A transformers model, wrapped or not. One that has no such layer (`projection_of`) is left as it is.
        rows: The places of these rows, integers. None changes nothing.

    Example:
        >>> from transformers import BertConfig, BertForMaskedLM
        >>> from lightning_distilbert.architectures import logits_at
        >>> config = BertConfig(vocab_size=9, hidden_size=4, num_hidden_layers=1, num_attention_heads=1)
        >>> model, ids = BertForMaskedLM(config), torch.tensor([[1, 2, 3]])
        >>> with logits_at(model, torch.tensor([[True, False, True]])), projected_at(model, [1]):
        ...     model(ids).logits.shape
        torch.Size([1, 9])
    """
    projection = None if rows is None else projection_of(model)
    if projection is None:
        yield
        return

    def narrow(module: nn.Module, args: tuple[Any, ...]) -> tuple[Tensor]:
        return (args[0][torch.as_tensor(rows, dtype=torch.long, device=args[0].device)],)

    handle = projection.register_forward_pre_hook(narrow)
    try:
        yield
    finally:
        handle.remove()
