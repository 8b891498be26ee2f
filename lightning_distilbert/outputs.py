"""What a model's output holds: logits, spans, sentence vectors."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from lightning_distilbert.architectures import unwrap
from lightning_distilbert.errors import DistillationError
from lightning_distilbert.functional import span_mask


def find_spans(module: nn.Module, output: Any) -> tuple[Tensor, Tensor] | None:
    """Return ``start_logits`` and ``end_logits`` of a head that points into the text; None of any other.

    Args:
        module: What gave the output: a tuple alone does not tell what it holds.
        output: The output.

    Example:
        >>> find_spans(nn.Linear(1, 2), {"logits": torch.zeros(1, 2)}) is None
        True
    """
    found: list[Any]
    if isinstance(output, tuple) and type(unwrap(module)).__name__.endswith("ForQuestionAnswering"):
        found = [item for item in output if isinstance(item, Tensor) and item.dim() == 2][:2]
    elif isinstance(output, Mapping):
        found = [output.get("start_logits"), output.get("end_logits")]
    else:
        found = [getattr(output, "start_logits", None), getattr(output, "end_logits", None)]
    return (found[0], found[1]) if len(found) == 2 and all(isinstance(item, Tensor) for item in found) else None


def span_classes(logits: Tensor, inputs: Mapping[str, Any]) -> Tensor:
    """Return where an answer may start and, below that, where it may end: boolean, ``(2 * batch, sequence)``.

    Args:
        logits: The logits of the start, of shape ``(batch, sequence)``.
        inputs: What the model was called with, and what stands beside it in the batch.

    Raises:
        DistillationError: If the batch tells it of another shape.
    """
    mask = span_mask(inputs)
    mask = torch.ones_like(logits, dtype=torch.bool) if mask is None else mask
    if mask.shape != logits.shape:
        raise DistillationError(
            f"The batch says of {tuple(mask.shape)} tokens whether an answer may start or end there, and the start "
            f"logits are of shape {tuple(logits.shape)}: span_mask has to be (batch, sequence), as input_ids."
        )
    return mask.repeat(2, 1)


def find_logits(output: Any) -> Tensor:
    """Return the logits in a model's output: the tensor itself, or the one named ``logits``.

    Raises:
        DistillationError: If there are none.
    """
    if isinstance(output, Mapping):
        output = output.get("logits")
    elif isinstance(output, tuple):
        output = next((item for item in output if isinstance(item, Tensor) and item.dim() >= 2), None)
    else:
        output = getattr(output, "logits", output)
    if isinstance(output, Tensor) and output.dim() >= 2:
        return output
    raise DistillationError(
        f"No logits in the output ({type(output).__name__}): a module that gives logits returns a tensor of two or "
        "more axes, or an output with a field named logits. Name the path of the head, as in {'logits': 'classifier'}."
    )


def find_embedding(output: Any) -> Tensor:
    """Return the sentence vectors in a module's output: the tensor itself, or the one named ``sentence_embedding``.

    Raises:
        DistillationError: If there are none.
    """
    if isinstance(output, Mapping):
        output = output.get("sentence_embedding")
    if isinstance(output, Tensor) and output.dim() == 2:
        return output
    raise DistillationError(
        f"No sentence embedding in the output ({type(output).__name__}): name a module that returns one vector per "
        "sentence, of shape (batch, width), or a transformers encoder whose last hidden state can be pooled."
    )
