"""Students as artefacts: exported, verified, and run where they are used.

Names are imported when they are first used: `lightning_distilbert.deploy.runtime` has to work where there is no torch.
"""

from __future__ import annotations

import sys
from types import ModuleType
from typing import TYPE_CHECKING, Any

from lightning_distilbert._lazy import attach

if TYPE_CHECKING:
    from lightning_distilbert.deploy.engines import load_artefact
    from lightning_distilbert.deploy.export import Exported, export
    from lightning_distilbert.deploy.keras import to_keras
    from lightning_distilbert.deploy.manifest import read_manifest

_HOME = {
    "Exported": "export",
    "export": "export",
    "load_artefact": "engines",
    "read_manifest": "manifest",
    "to_keras": "keras",
}

__all__ = ["Exported", "export", "load_artefact", "read_manifest", "to_keras"]


__getattr__, __dir__ = attach(__name__, _HOME)


class _Package(ModuleType):
    """This package: its `export` stays the function when Python puts the module of that name in its place."""

    def __setattr__(self, name: str, value: Any) -> None:
        super().__setattr__(name, getattr(value, name) if name in _HOME and isinstance(value, ModuleType) else value)


sys.modules[__name__].__class__ = _Package
