"""An artefact's folder that appears whole or not at all."""

from __future__ import annotations

import contextlib
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

from lightning_distilbert.deploy.manifest import MANIFEST
from lightning_distilbert.errors import DistillationError


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
    above = next(folder for folder in target.parents if folder.exists())
    writable = above.is_dir() and os.access(above, os.W_OK | os.X_OK)
    if not writable or not _takes_files(above):
        raise DistillationError(
            f"The artefact cannot be saved in {str(target)!r}: {str(above)!r} is no folder that you may write to. "
            "Choose another --output."
        )
    free = shutil.disk_usage(above).free
    if free < needed:
        raise DistillationError(
            f"The disk of {str(above)!r} has {free / 1e6:,.0f} MB left, and the export needs about "
            f"{needed / 1e6:,.0f} MB while it works. Make room, or choose another --output."
        )
    return target


def _takes_files(folder: Path) -> bool:
    """Tell whether a file can be made in a folder: root may do what a read-only file system still refuses."""
    try:
        with tempfile.TemporaryFile(dir=folder):
            return True
    except OSError:
        return False


@contextlib.contextmanager
def placed(target: Path) -> Iterator[Path]:
    """Give a folder beside the target to write into, and put it in the target's place if all went well.

    Args:
        target: What `check_target` returned.

    Yields:
        The folder, empty.

    Raises:
        DistillationError: If something cannot be written. Nothing is left of it then, and an older artefact stays.
    """
    made: list[Path] = []
    work: Path | None = None
    try:
        for parent in reversed([folder for folder in target.parents if not folder.exists()]):
            parent.mkdir()
            made.append(parent)
        work = Path(tempfile.mkdtemp(prefix=f".{target.name}.", suffix=".tmp", dir=target.parent))
        yield work
        _open_permissions(work)
        _swap(work, target)
    except BaseException as error:  # Ctrl-C must leave nothing behind either
        if work is not None:
            shutil.rmtree(work, ignore_errors=True)
        for parent in reversed(made):
            with contextlib.suppress(OSError):
                parent.rmdir()
        if is_disk_error(error):
            raise DistillationError(
                f"The artefact {str(target)!r} could not be written ({str(error).strip().splitlines()[0][:200]}). "
                "Nothing of it was left there. Choose a folder that you may write to, on a disk with room."
            ) from error
        raise


def is_disk_error(error: BaseException) -> bool:
    """Tell whether an error is one of the disk, whatever library reports it.

    Args:
        error: The error.

    Example:
        >>> is_disk_error(OSError(28, "No space left on device")), is_disk_error(RuntimeError("shapes differ"))
        (True, False)
    """
    if isinstance(error, DistillationError):
        return False
    # libraries in C++ have errors of their own for it, with the system's words or with words about their writer
    said = str(error)
    return isinstance(error, OSError) or any(
        part in said for part in ("No space left", "Read-only file system", "PytorchStreamWriter failed")
    )


def _open_permissions(folder: Path) -> None:
    """Give what `mkdtemp` made for the owner alone the usual permissions."""
    mask = os.umask(0)
    os.umask(mask)
    folder.chmod(0o777 & ~mask)
    for item in folder.iterdir():
        item.chmod(0o666 & ~mask)


def _swap(work: Path, target: Path) -> None:
    if not target.exists():
        os.replace(work, target)
        return
    old = Path(tempfile.mkdtemp(prefix=f".{target.name}.", suffix=".old", dir=target.parent))
    moved = old / target.name
    try:
        os.replace(target, moved)
        os.replace(work, target)
    except BaseException:
        if moved.exists() and not target.exists():
            os.replace(moved, target)
        with contextlib.suppress(OSError):
            old.rmdir()
        raise
    shutil.rmtree(old, ignore_errors=True)
