"""Whether a student's head was trained: a random one must not be saved as if it were."""

from __future__ import annotations

from typing import Any

from torch import nn

from lightning_distilbert.architectures import backbone


def trains_head(module: Any) -> bool:
    """Tell whether a loss of a module looks at what its student's head computes.

    Args:
        module: A `DistillationModule`.
    """
    distiller = module.distiller
    # a schedule is not 0 all the time
    return distiller is None or module.task_weight != 0 or "logits" in distiller.requires


def trained_part(module: Any) -> nn.Module:
    """Return what of a module's student may be saved: the whole, or the encoder without a head that learnt nothing.

    The head stays where a loss looks at it. It also stays where it is the whole head of another model, as the student
    was built, and hidden states are distilled: it then reads what it was trained on. Otherwise it is random, or meets
    hidden states that it does not know, and is left out. transformers then says of the folder what it lacks.

    Args:
        module: A `DistillationModule`.
    """
    student = module.student
    if trains_head(module):
        return student
    fresh = getattr(getattr(student, "config", None), "fresh_head", False)
    return student if "hidden_states" in module.distiller.requires and not fresh else backbone(student)


def note_training(module: Any) -> None:
    """Forget that a head was random when it was built, once it is trained.

    Args:
        module: A `DistillationModule`.
    """
    config: Any = getattr(module.student, "config", None)
    if getattr(config, "fresh_head", False) and trains_head(module):
        config.fresh_head = False
