"""On what something was measured: the machine, its processor, and the versions of packages."""

from __future__ import annotations

import os
import platform
from collections.abc import Iterable
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path


def processors() -> int:
    """Return how many processors this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def describe_machine() -> dict[str, str]:
    """Describe the machine in words.

    Returns:
        ``processor``, ``processors`` (how many this process may use), ``memory`` where it is known, and ``system``. No
        name of the machine or of its user is among them.

    Example:
        >>> sorted(describe_machine())[-2:]
        ['processors', 'system']
    """
    found = {"processor": processor_name(), "processors": str(processors())}
    memory = total_memory()
    if memory:
        found["memory"] = f"{memory / 1e9:.0f} GB"
    return found | {"system": f"{platform.system()} {platform.machine()}"}


def processor_name(path: str = "/proc/cpuinfo") -> str:
    """Return the name of the processor.

    Args:
        path: Where Linux tells it.
    """
    try:
        for line in Path(path).read_text(encoding="utf-8", errors="replace").splitlines():
            key, _, value = line.partition(":")
            if key.strip() == "model name" and value.strip():
                return value.strip()
    except OSError:
        pass
    return platform.processor() or platform.machine() or "unknown"


def total_memory() -> int | None:
    """Return the bytes of the machine's memory; None where the system does not tell."""
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, ValueError, OSError):
        return None


def versions(packages: Iterable[str]) -> dict[str, str]:
    """Return the versions of Python and of packages, less those that are not installed.

    Args:
        packages: Their names.

    Example:
        >>> list(versions(["torch", "no-such-package"]))
        ['python', 'torch']
    """
    found = {"python": platform.python_version()}
    for name in packages:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found
