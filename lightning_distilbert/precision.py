"""The precision that is fastest on this machine and safe for distillation."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import nn
from transformers import PreTrainedModel


def auto_precision() -> str:
    """Return ``"bf16-mixed"`` where the processor has bfloat16 matrix units, else ``"32-true"``.

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


def choose_attention(model: nn.Module, device: torch.device, precision: str | None) -> str | None:
    """Let a model attend in the way that trains it faster; what it computes stays.

    Where attention has dropout PyTorch's fused kernel does not serve on a CPU, and what stands in for it takes the
    bfloat16 of mixed precision up to float32: plain matrix products take as much memory and half to nine tenths of the
    time (``python -m benchmarks.attention``). Everything else is left as it is.

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
    rates = [getattr(part, name, 0.0) for part in parts for name in names]
    if device.type != "cpu" or precision != "bf16-mixed" or not any(rates):
        return None
    if not isinstance(model, PreTrainedModel) or model.config._attn_implementation != "sdpa":
        return None
    model.set_attn_implementation("eager")
    return "sdpa"
