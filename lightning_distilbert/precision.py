"""The precision that is fastest on this machine and safe for distillation."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

FLOAT32_ATTENTION = "sdpa_float32"  # transformers' name for it, once this file is imported


def auto_precision() -> str:
    """Return ``"bf16-mixed"`` where the processor computes in bfloat16, else ``"32-true"``.

    For the Trainer's ``precision`` argument, which takes no "auto". On a CPU with AMX, bfloat16 is several times as
    fast as float32; on one without any bfloat16 instructions it is emulated and slower.

    Returns:
        A value for ``Trainer(precision=...)``.

    Example:
        >>> auto_precision() in ("bf16-mixed", "32-true")
        True
    """
    if torch.cuda.is_available():
        return "bf16-mixed" if torch.cuda.is_bf16_supported(including_emulation=False) else "32-true"
    try:
        flags = Path("/proc/cpuinfo").read_text(encoding="utf-8")
    except OSError:  # not Linux
        return "32-true"
    return "bf16-mixed" if "amx_bf16" in flags or "avx512_bf16" in flags else "32-true"


def _sdpa_float32(
    module: nn.Module, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None, **options: Any
) -> tuple[Tensor, Tensor | None]:
    """Transformers' attention by PyTorch's fused kernel, in float32 whatever the precision around it."""
    if attention_mask is not None and attention_mask.is_floating_point():
        attention_mask = attention_mask.float()
    with torch.autocast(query.device.type, enabled=False):
        found, weights = ALL_ATTENTION_FUNCTIONS["sdpa"](
            module, query.float(), key.float(), value.float(), attention_mask, **options
        )
    return found.to(query.dtype), weights


ALL_ATTENTION_FUNCTIONS.register(FLOAT32_ATTENTION, _sdpa_float32)
ALL_MASK_ATTENTION_FUNCTIONS.register(FLOAT32_ATTENTION, ALL_MASK_ATTENTION_FUNCTIONS["sdpa"])


def choose_attention(model: nn.Module, device: torch.device, precision: str | None) -> str | None:
    """Let a model attend in the way that trains it faster; what it computes stays.

    On a CPU, in bfloat16, the backward of PyTorch's fused attention is slower than in float32, so that attention alone
    is taken up to float32 (``"sdpa_float32"``). Where attention has dropout the fused kernel does not serve at all, and
    plain matrix products are faster than what stands in for it (``"eager"``). ``python -m benchmarks.attention``
    measures both. Everything else is left as it is.

    Args:
        model: A model.
        device: Where it trains.
        precision: The Trainer's ``precision``.

    Returns:
        How it attended before, or None if nothing was changed.

    Example:
        >>> from transformers import BertConfig, BertModel
        >>> model = BertModel(BertConfig(hidden_size=8, num_attention_heads=2, intermediate_size=8, vocab_size=9))
        >>> choose_attention(model, torch.device("cpu"), "bf16-mixed"), model.config._attn_implementation
        ('sdpa', 'eager')
    """
    config = getattr(model, "config", None)
    # a model that translates has two of them
    parts = [config, getattr(config, "encoder", None), getattr(config, "decoder", None)]
    names = ("attention_probs_dropout_prob", "attention_dropout")
    dropout = any(getattr(part, name, 0.0) for part in parts for name in names)
    if device.type != "cpu" or precision != "bf16-mixed":
        return None
    if not isinstance(model, PreTrainedModel) or model.config._attn_implementation != "sdpa":
        return None
    model.set_attn_implementation("eager" if dropout else FLOAT32_ATTENTION)
    return "sdpa"
