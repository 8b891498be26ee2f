"""Names of a package that are imported when they are first used: some of its modules must work where torch is not."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable, Mapping
from typing import Any


def attach(package: str, homes: Mapping[str, str]) -> tuple[Callable[[str], Any], Callable[[], list[str]]]:
    """Return a package's ``__getattr__`` and ``__dir__``, as PEP 562 has them.

    Args:
        package: Its ``__name__``.
        homes: The module in it that each public name comes from.

    Example:
        >>> get, names = attach("json", {"JSONDecoder": "decoder"})
        >>> get("JSONDecoder").__name__, "JSONDecoder" in names()
        ('JSONDecoder', True)
    """

    def get(name: str) -> Any:
        if name not in homes:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        return getattr(importlib.import_module(f"{package}.{homes[name]}"), name)

    def names() -> list[str]:
        return sorted({*vars(sys.modules[package]), *homes})

    return get, names
