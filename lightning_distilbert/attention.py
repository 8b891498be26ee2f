r"""Where an encoder projects its queries, keys and values, and the attention scores that these make.

Forward hooks on the projections see the same under eager and SDPA attention. ``output_attentions=True`` gives an empty
tuple under SDPA, without an error, and never the scores before softmax.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, overload

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from lightning_distilbert.architectures import backbone, layers_of
from lightning_distilbert.errors import DistillationError
from lightning_distilbert.functional.masking import full_precision

PROJECTED = ("queries", "keys", "values")
ATTENTION_SIGNALS = (*PROJECTED, "attention_scores")

# below a layer: its attention module, and there the projections in the order of PROJECTED, or the one that fuses them
LAYOUTS: tuple[tuple[str, tuple[str, ...]], ...] = (
    ("attention.self", ("query", "key", "value")),  # BERT, RoBERTa, ELECTRA
    ("attention", ("q_lin", "k_lin", "v_lin")),  # DistilBERT
    ("attention.attn", ("q", "k", "v")),  # MPNet
    ("attention.self", ("query_proj", "key_proj", "value_proj")),  # DeBERTa-v2
    ("attn", ("Wqkv",)),  # ModernBERT
)
# by the config's model_type: others may add position terms to their scores, or rotate what the projections give
PLAIN_SCORES = frozenset({"bert", "roberta", "electra", "distilbert", "xlm-roberta", "camembert"})
ROTARY_SCORES = frozenset({"modernbert"})
Rotation = tuple[Tensor, Tensor]


@dataclass(frozen=True)
class AttentionLayer:
    """The attention of one transformer block.

    Attributes:
        module: The module that holds the projections.
        projections: Those of queries, keys and values, or the one that gives all three side by side.
        num_heads: The number of heads.
        rotary: Whether queries and keys are rotated by their positions before they meet.
    """

    module: nn.Module
    projections: tuple[nn.Module, ...]
    num_heads: int
    rotary: bool = False

    def named(self) -> Iterator[tuple[tuple[str, ...], nn.Module]]:
        """Yield each projection with the names of the signals that it gives."""
        if len(self.projections) == 1:
            yield PROJECTED, self.projections[0]
        else:
            yield from (((name,), module) for name, module in zip(PROJECTED, self.projections, strict=True))


def attention_layers(model: nn.Module, scores: bool = False) -> list[AttentionLayer]:
    """Find the query, key and value projections in each transformer block of an encoder.

    Args:
        model: A transformers model, wrapped or not, or a module whose blocks are built like one's.
        scores: Whether the attention scores are needed, and not the projections alone.

    Returns:
        One entry a layer, in order.

    Raises:
        DistillationError: If the projections or the number of heads cannot be found, or if scores are needed of a model
            whose scores are more than products of queries and keys.

    Example:
        >>> from transformers import DistilBertConfig, DistilBertModel
        >>> model = DistilBertModel(DistilBertConfig(vocab_size=9, dim=4, n_layers=2, n_heads=2, hidden_dim=4))
        >>> [layer.num_heads for layer in attention_layers(model)]
        [2, 2]
    """
    model = backbone(model)
    transformer = next((part for part in model.modules() if isinstance(part, PreTrainedModel)), None)
    config: Any = getattr(transformer if transformer is not None else model, "config", None)
    kind, model_type = type(model).__name__, getattr(config, "model_type", None)
    if scores and model_type not in PLAIN_SCORES | ROTARY_SCORES:
        raise DistillationError(
            f"The attention scores of {kind} (model type {model_type!r}) are not known to be products of queries and "
            "keys alone, as those of BERT, RoBERTa, ELECTRA, DistilBERT and ModernBERT are; MPNet and DeBERTa-v2 add "
            "terms of position. Use Relations, which needs queries, keys and values only."
        )
    found = []
    for block in layers_of(model):
        module, projections = _projections(block, kind)
        heads = getattr(config, "num_attention_heads", None) or getattr(module, "num_attention_heads", None)
        if not isinstance(heads, int):
            raise DistillationError(
                f"The number of attention heads of {kind} is not known: give the model a config with "
                "num_attention_heads, or its attention modules an attribute of this name."
            )
        found.append(AttentionLayer(module, projections, heads, model_type in ROTARY_SCORES))
    return found


def _projections(block: nn.Module, kind: str) -> tuple[nn.Module, tuple[nn.Module, ...]]:
    """Find the attention module of a block and its projections."""
    modules = dict(block.named_modules())
    for path, names in LAYOUTS:
        parts = [modules.get(f"{path}.{name}") for name in names]
        if all(part is not None for part in parts):
            return modules[path], tuple(part for part in parts if part is not None)
    held = [name for name, module in modules.items() if name and not [*module.children()]]
    known = ", ".join(f"{path}.{{{','.join(names)}}}" for path, names in LAYOUTS)
    raise DistillationError(
        f"No query, key and value projections were found in the blocks of {kind} ({type(block).__name__}), which hold "
        f"{held}. Known are {known}. Use objectives on hidden states, or give the blocks sub-modules of these names."
    )


def split_heads(projected: Tensor, num_heads: int, parts: int = 1) -> tuple[Tensor, ...]:
    """Split what a projection gives into heads, without a copy.

    Args:
        projected: Of shape ``(batch, sequence, parts * width)``.
        num_heads: The number of heads in one part.
        parts: How many signals stand side by side.

    Returns:
        One tensor of shape ``(batch, heads, sequence, head_width)`` for each part.

    Raises:
        DistillationError: If the shape is another one.

    Example:
        >>> import torch
        >>> [part.shape for part in split_heads(torch.zeros(2, 5, 24), num_heads=4, parts=3)][0]
        torch.Size([2, 4, 5, 2])
    """
    if projected.dim() != 3 or projected.shape[-1] % (parts * num_heads):
        raise DistillationError(
            f"A projection of queries, keys or values gave the shape {tuple(projected.shape)}, which is no (batch, "
            f"sequence, width) for {num_heads} heads. Take an attention implementation that keeps the padding, such as "
            "attn_implementation='sdpa'."
        )
    return tuple(part.transpose(1, 2) for part in projected.unflatten(-1, (parts, num_heads, -1)).unbind(-3))


class AttentionScores(Sequence[Tensor]):
    r"""The attention scores of each layer, computed when a layer is asked for and not kept.

    .. math:: S_i = Q_i K_i^\top / \sqrt{d}

    of shape ``(batch, heads, sequence, sequence)``, before softmax and without any mask: not that of padding, and not
    that of a local window. Queries and keys in half precision meet in float32.

    Args:
        queries: One tensor of shape ``(batch, heads, sequence, head_width)`` a layer.
        keys: The same.
        rotations: For rotary embeddings the cosines and sines that each layer turns queries and keys by.
        mask: Where there are tokens, if scores of padding are to be zeros; see `at_tokens`.

    Example:
        >>> import torch
        >>> scores = AttentionScores([torch.ones(1, 1, 2, 4)] * 3, [torch.ones(1, 1, 2, 4)] * 3)
        >>> len(scores), scores[-1].tolist()
        (3, [[[[2.0, 2.0], [2.0, 2.0]]]])
    """

    def __init__(
        self,
        queries: Sequence[Tensor],
        keys: Sequence[Tensor],
        rotations: Sequence[Rotation] | None = None,
        mask: Tensor | None = None,
    ) -> None:
        self.queries = queries
        self.keys = keys
        self.rotations = rotations
        self.mask = mask

    def at_tokens(self, mask: Tensor | None) -> AttentionScores:
        """Return the same scores with zeros where query or key is padding.

        Args:
            mask: Of shape ``(batch, sequence)``, True at real tokens. None changes nothing.
        """
        return AttentionScores(self.queries, self.keys, self.rotations, mask)

    def __len__(self) -> int:
        """Return the number of layers."""
        return len(self.queries)

    @overload
    def __getitem__(self, index: int) -> Tensor: ...

    @overload
    def __getitem__(self, index: slice) -> list[Tensor]: ...

    def __getitem__(self, index: int | slice) -> Tensor | list[Tensor]:
        """Return the scores of a layer, or of several."""
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        queries, keys = (_single(side[index]) for side in (self.queries, self.keys))
        with full_precision(queries):
            if self.mask is not None:
                # a NaN in the padding would reach real tokens in the backward of the product, as 0 times NaN
                padding = ~self.mask.bool()[:, None, :, None]
                queries, keys = queries.masked_fill(padding, 0.0), keys.masked_fill(padding, 0.0)
            if self.rotations is not None:
                queries, keys = rotate(queries, keys, self.rotations[index])
            return (queries * queries.shape[-1] ** -0.5) @ keys.transpose(-1, -2)


def _single(tensor: Tensor) -> Tensor:
    """Return half precision as float32: a student near its teacher differs from it by less than half rounds off."""
    return tensor.float() if tensor.dtype in (torch.float16, torch.bfloat16) else tensor


def rotate(queries: Tensor, keys: Tensor, rotation: Rotation) -> tuple[Tensor, Tensor]:
    """Turn queries and keys by their positions, as ModernBERT does.

    Args:
        queries: Of shape ``(batch, heads, sequence, head_width)``.
        keys: The same.
        rotation: Cosines and sines, each of shape ``(batch or 1, sequence, head_width)``.

    Returns:
        Both, turned.

    Example:
        >>> import torch
        >>> turn = torch.zeros(1, 1, 2), torch.ones(1, 1, 2)
        >>> rotate(torch.tensor([[[[1.0, 2.0]]]]), torch.tensor([[[[3.0, 4.0]]]]), turn)[0].tolist()
        [[[[-2.0, 1.0]]]]
    """
    from transformers.models.modernbert.modeling_modernbert import apply_rotary_pos_emb

    return apply_rotary_pos_emb(queries, keys, *rotation)
