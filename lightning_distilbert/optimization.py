"""The default optimizer of a `DistillationModule`, and gradient clipping that goes with its fused kernel."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from typing import Any

import torch

from lightning_distilbert.errors import DistillationError

WRAPPER = re.compile(r"\b(_orig_mod|_fsdp_wrapped_module)\.")  # of torch.compile and FSDP


def adamw_with_warmup(
    module: Any,
    learning_rate: float,
    weight_decay: float = 0.01,
    warmup: float = 0.06,
    betas: tuple[float, float] = (0.9, 0.999),
    eps: float = 1e-8,
    factors: Mapping[str, float] | None = None,
) -> Any:
    """Return AdamW with decay on weight matrices only, and a rate that rises linearly and then falls to 0 per step.

    A module that wants other rates for some of its parts overrides ``configure_optimizers`` and returns, for instance,
    ``adamw_with_warmup(self, 5e-5, factors={"student.classifier": 10})``: a new head learns faster than the rest.

    Args:
        module: A LightningModule with its Trainer.
        learning_rate: The peak rate.
        weight_decay: The decay of weights with two axes or more; biases and norms have none.
        warmup: The share of the steps over which the rate rises, in [0, 1).
        betas: AdamW's two decay rates of its averages.
        eps: AdamW's term for numerical stability.
        factors: What the rate is multiplied by for the parameters of some parts, by the path of the part. Of several
            paths that lead to a parameter, the first counts.

    Returns:
        What Lightning's ``configure_optimizers`` may return. Without a foreseeable end of training the rate stays.

    Raises:
        DistillationError: If no parameter lies under one of the paths.
    """
    trainer = module.trainer
    left = {WRAPPER.sub("", name): parameter for name, parameter in module.named_parameters()}
    groups = []
    for path, factor in {**(factors or {}), "": 1.0}.items():
        under = [left.pop(name) for name in list(left) if not path or name.startswith(f"{path}.")]
        if path and not under:
            raise DistillationError(f"factors={dict(factors or {})}: no parameter lies under {path!r}.")
        own = [parameter for parameter in under if parameter.requires_grad]
        for matrices, decay in ((True, weight_decay), (False, 0.0)):
            params = [p for p in own if (p.dim() >= 2) == matrices]
            groups.append({"params": params, "weight_decay": decay, "lr": factor * learning_rate})
    scaler = getattr(trainer.precision_plugin, "scaler", None)
    fused = module.device.type in ("cpu", "cuda") and not (scaler and trainer.gradient_clip_val)
    # a recipe's YAML gives a list
    optimizer = torch.optim.AdamW(groups, lr=learning_rate, betas=(betas[0], betas[1]), eps=eps, fused=fused)
    steps = trainer.estimated_stepping_batches
    if not 0 < steps < math.inf:  # -1 of a stream that only max_epochs ends
        return optimizer
    rising = max(1, round(steps * warmup))

    def rate(step: int) -> float:
        return min((step + 1) / rising, max(0.0, (steps - step) / max(1, steps - rising)))

    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, rate)
    return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}


def clip_gradients(module: Any, optimizer: Any, value: float | None, algorithm: str | None) -> None:
    """Clip as Lightning does, but for a fused optimizer under bf16-mixed too.

    Lightning refuses that pair for the sake of a gradient scaler, which only 16-mixed has; without the fused kernel
    AdamW takes longer than the backward of a small student.

    Args:
        module: A LightningModule with its Trainer.
        optimizer: The optimizer.
        value: The Trainer's ``gradient_clip_val``.
        algorithm: The Trainer's ``gradient_clip_algorithm``, ``"norm"`` or ``"value"``.
    """
    precision = module.trainer.precision_plugin
    # one of 0 or less clips nothing in Lightning, and would turn the gradient round in torch
    # by name: there is one such class in each Lightning package; others may clip in a way of their own
    mixed = type(precision).__name__ == "MixedPrecision" and precision.scaler is None
    if value is None or value <= 0 or not mixed:
        module.clip_gradients(optimizer, value, algorithm)
    elif algorithm == "value":
        precision.clip_grad_by_value(optimizer, value)
    else:
        precision.clip_grad_by_norm(optimizer, value)
