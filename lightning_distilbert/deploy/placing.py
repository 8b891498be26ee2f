"""Whether an artefact can be put where it is wanted."""

from __future__ import annotations

import shutil
from pathlib import Path

from lightning_distilbert.deploy.manifest import MANIFEST
from lightning_distilbert.errors import DistillationError
from lightning_distilbert.placing import check_writable


def check_target(path: str | Path, overwrite: bool = False, needed: int = 0) -> Path:
    """Refuse a target before any work is done.

    Args:
        path: The folder to be written.
        overwrite: Whether an artefact that is there may be replaced.
        needed: Bytes that the export will write, at least.

    Returns:
        The folder; a link stays a link, and what it points to is replaced.

    Raises:
        DistillationError: If it is a file, holds something else than an artefact, holds one that may not be replaced,
            cannot be written to, or the disk has too little room.

    Example:
        >>> check_target("/proc/artefact")
        Traceback (most recent call last):
        ...
        lightning_distilbert.errors.DistillationError: The artefact cannot be saved in '/proc/artefact': ...
    """
    target = Path(path).expanduser().resolve()
    if target.exists() and not target.is_dir():
        raise DistillationError(f"The target {str(target)!r} is a file. Give the name of a folder.")
    inside = sorted(item.name for item in target.iterdir()) if target.exists() else []
    if inside and MANIFEST not in inside:
        raise DistillationError(
            f"The target {str(target)!r} holds {', '.join(inside[:3])} and no {MANIFEST}: it is no artefact, and is "
            "not replaced. Choose a new or an empty folder."
        )
    if inside and not overwrite:
        raise DistillationError(
            f"The target {str(target)!r} holds an artefact already. Name another folder, or say that it may be "
            "replaced: --overwrite, or overwrite=True."
        )
    check_writable(target, "The artefact", "--output")
    above = next(folder for folder in target.parents if folder.exists())
    free = shutil.disk_usage(above).free
    if free < needed:
        raise DistillationError(
            f"The disk of {str(above)!r} has {free / 1e6:,.0f} MB left, and the export needs about "
            f"{needed / 1e6:,.0f} MB while it works. Make room, or choose another --output."
        )
    return target
