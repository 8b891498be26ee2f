"""Which of the two Lightning packages this process uses.

``lightning.pytorch`` and ``pytorch_lightning`` are two class hierarchies with the same code. A callback may have both
bases and works in both Trainers. A module may not: it follows the package that the process imported, and
``pytorch_lightning`` where that does not tell. ``LIGHTNING_DISTILBERT_BACKEND=lightning`` decides it by hand.
"""

from __future__ import annotations

import importlib
import os
import sys
from importlib.util import find_spec
from types import ModuleType
from typing import TYPE_CHECKING

from lightning_distilbert.errors import DistillationError

FLAVOURS = {"pytorch_lightning": "pytorch_lightning", "lightning": "lightning.pytorch"}


def choose_flavour() -> str:
    """Return the import name of the Lightning package that modules and data modules follow.

    Raises:
        DistillationError: If the environment names an unknown package, or none is installed.
    """
    named = os.environ.get("LIGHTNING_DISTILBERT_BACKEND")
    if named is not None:
        if named not in FLAVOURS:
            raise DistillationError(f"LIGHTNING_DISTILBERT_BACKEND={named!r}: it is one of {sorted(FLAVOURS)}.")
        return FLAVOURS[named]
    imported = [name for name in FLAVOURS.values() if name in sys.modules]
    if len(imported) == 1:
        return imported[0]
    installed = [name for package, name in FLAVOURS.items() if find_spec(package) is not None]
    if not installed:
        raise DistillationError("No Lightning package is installed. Install one with: pip install pytorch-lightning")
    return installed[0]


FLAVOUR = choose_flavour()

if TYPE_CHECKING:
    import pytorch_lightning as lightning_package
    from pytorch_lightning import Callback as CallbackBase
    from pytorch_lightning import LightningDataModule, LightningModule, Trainer
else:
    lightning_package: ModuleType = importlib.import_module(FLAVOUR)
    LightningModule = lightning_package.LightningModule
    LightningDataModule = lightning_package.LightningDataModule
    Trainer = lightning_package.Trainer
    CallbackBase = type(
        "CallbackBase",
        tuple(importlib.import_module(name).Callback for package, name in FLAVOURS.items() if find_spec(package)),
        {"__doc__": "A callback of every Lightning package that is installed."},
    )

__all__ = ["FLAVOUR", "CallbackBase", "LightningDataModule", "LightningModule", "Trainer", "lightning_package"]
