"""Students as artefacts: exported, verified, and run where they are used.

Names are imported when they are first used: `lightning_distilbert.deploy.runtime` has to work where there is no torch.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from lightning_distilbert.deploy.engines import load_artefact
    from lightning_distilbert.deploy.export import Exported, export
    from lightning_distilbert.deploy.manifest import read_manifest

_HOME = {"Exported": "export", "export": "export", "load_artefact": "engines", "read_manifest": "manifest"}

__all__ = ["Exported", "export", "load_artefact", "read_manifest"]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(f"{__name__}.{_HOME[name]}"), name)
    globals()[name] = value  # the import of its module put that under the same name
    return value


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
