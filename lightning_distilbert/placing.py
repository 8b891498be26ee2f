"""Folders that appear whole or not at all."""

from __future__ import annotations

import contextlib
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

from lightning_distilbert.errors import DistillationError


def check_writable(target: Path, what: str, option: str) -> None:
    """Refuse a place where nothing can be written, before hours of work rather than after them.

    Args:
        target: The file or folder to be written.
        what: What it is to hold, such as ``"The student"``.
        option: The option that names it.

    Raises:
        DistillationError: If the folder that it is to lie in is none, or may not be written to.

    Example:
        >>> check_writable(Path("/tmp/new/student"), "The student", "--student_dir")
    """
    above = next(folder for folder in target.expanduser().absolute().parents if folder.exists())
    if not above.is_dir() or not os.access(above, os.W_OK | os.X_OK) or not _takes_files(above):
        raise DistillationError(
            f"{what} cannot be saved in {str(target)!r}: {str(above)!r} is no folder that you may write to. "
            f"Choose another {option}."
        )


def _takes_files(folder: Path) -> bool:
    """Tell whether a file can be made in a folder: root may do what a read-only file system still refuses."""
    try:
        with tempfile.TemporaryFile(dir=folder):
            return True
    except OSError:
        return False


@contextlib.contextmanager
def placed(target: Path, what: str, carried: Callable[[str], bool] = lambda name: False) -> Iterator[Path]:
    """Give a folder beside the target to write into, and put it in the target's place if all went well.

    Args:
        target: The folder that is to appear; one that is there is replaced.
        what: What it holds, such as ``"artefact"``.
        carried: Tells by its name whether something in the replaced folder is copied into the new one.

    Yields:
        The folder, empty.

    Raises:
        DistillationError: If something cannot be written. Nothing is left of it then, and an older folder stays.
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
        _swap(work, target, carried)
    except BaseException as error:  # Ctrl-C must leave nothing behind either
        if work is not None:
            shutil.rmtree(work, ignore_errors=True)
        for parent in reversed(made):
            with contextlib.suppress(OSError):
                parent.rmdir()
        if is_disk_error(error):
            reason = (str(error).strip() or type(error).__name__).splitlines()[0][:200]
            raise DistillationError(
                f"The {what} {str(target)!r} could not be written ({reason}). Nothing of it was left there. "
                "Choose a folder that you may write to, on a disk with room."
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
    # libraries in C++ and Rust have errors of their own for it, with the system's words or about their writer
    said = str(error)
    return isinstance(error, OSError) or (
        type(error).__name__ == "SafetensorError"
        or any(part in said for part in ("No space left", "Read-only file system", "PytorchStreamWriter failed"))
    )


def _open_permissions(folder: Path) -> None:
    """Give what `mkdtemp` and safetensors made for the owner alone the usual permissions."""
    mask = os.umask(0)
    os.umask(mask)
    folder.chmod(0o777 & ~mask)
    for item in folder.rglob("*"):
        item.chmod((0o777 if item.is_dir() else 0o666) & ~mask)


def _swap(work: Path, target: Path, carried: Callable[[str], bool]) -> None:
    if not target.exists():
        os.replace(work, target)
        return
    old = Path(tempfile.mkdtemp(prefix=f".{target.name}.", suffix=".old", dir=target.parent))
    moved = old / target.name
    try:
        # copied and not moved, so that the old folder is whole if it has to stay
        for item in filter(lambda item: carried(item.name), target.iterdir()):
            if item.is_dir() and not item.is_symlink():
                shutil.copytree(item, work / item.name, symlinks=True)
            else:
                shutil.copy2(item, work / item.name, follow_symlinks=False)
        os.replace(target, moved)
        os.replace(work, target)
    except BaseException:
        if moved.exists() and not target.exists():
            os.replace(moved, target)
        with contextlib.suppress(OSError):
            old.rmdir()
        raise
    shutil.rmtree(old, ignore_errors=True)
