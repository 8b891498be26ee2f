"""A file of vectors that is written part by part, survives an interruption, and knows what it was made of."""

from __future__ import annotations

import contextlib
import hashlib
import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from filelock import FileLock, Timeout
from lightning_utilities.core.rank_zero import rank_zero_warn
from torch import nn

from lightning_distilbert.errors import DistillationError

PATIENCE = 10.0  # seconds after which the user is told what is waited for


class VectorFile:
    """A ``.npy`` file of vectors, and beside it ``.npy.json`` with what they were made of.

    Until it is complete, both have other names. Rows are appended, so that a full disk is an error and no crash. One
    process or thread writes at a time: `resume` waits for any other, and takes what that one has finished.

    Args:
        path: The file.
        overwrite: Whether a finished file that is damaged or was made of something else may be replaced.

    Raises:
        DistillationError: If the suffix is another, or the path is a folder.
    """

    def __init__(self, path: str | Path, overwrite: bool = False) -> None:
        self.path = Path(path).expanduser()
        self.overwrite = overwrite
        if self.path.suffix != ".npy" or self.path.is_dir():
            raise DistillationError(f"The output {str(path)!r} is a file of vectors: give it the suffix .npy.")
        self.about = self.path.with_name(f"{self.path.name}.json")
        self.partial = self.path.with_name(f".{self.path.name}.partial")
        self.partial_about = self.path.with_name(f".{self.path.name}.partial.json")
        # one for each path: a run that failed and lives on in its traceback does not lock its own thread out
        self._lock = FileLock(self.path.with_name(f".{self.path.name}.lock"), is_singleton=True)
        self._made_of: Any = None
        self._writing = False

    def finished(self, made_of: Mapping[str, Any]) -> bool:
        """Tell whether the file is there and whole.

        Args:
            made_of: What the vectors are to be made of, as plain values.

        Raises:
            DistillationError: If it is there and was made of something else, or is damaged, and may not be replaced.
        """
        if not self.path.exists():
            return False
        known = read_json(self.about)
        other = [key for key in made_of if known is None or known.get(key) != made_of[key]]
        if other and self.overwrite:
            return False
        if known is None:
            raise DistillationError(
                f"{self.path} exists and was not made here (there is no {self.about.name}). Name another file."
            )
        if other:
            raise DistillationError(
                f"{self.path} holds vectors made with another {', '.join(other)}. Name another file, or say that it "
                "may be replaced: overwrite=True."
            )
        try:
            self.vectors()
        except FileNotFoundError:  # another process replaces it just now
            return False
        except DistillationError:
            if not self.overwrite:
                raise
            rank_zero_warn(f"{self.path} is damaged, and is made anew.")
            return False
        return True

    def vectors(self) -> np.ndarray:
        """Map the finished file into memory, read-only.

        Raises:
            DistillationError: If it is shorter than it says.
        """
        try:
            vectors: np.ndarray = np.load(self.path, mmap_mode="r")
        except (ValueError, EOFError) as error:  # EOFError: it is empty
            raise DistillationError(f"{self.path} is damaged ({error}). Delete it and run again.") from error
        return vectors

    def resume(self, made_of: Mapping[str, Any], step: int) -> int:
        """Prepare to append rows, once no other run does.

        Args:
            made_of: What the vectors are to be made of, as plain values.
            step: Rows that are appended at a time.

        Returns:
            How many rows an interrupted run has left, in whole steps; 0 if it was another; all if the file is finished.

        Raises:
            DistillationError: As `finished` does.
        """
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self._made_of = json.loads(json.dumps(made_of))
        try:
            self._lock.acquire(timeout=PATIENCE)
        except Timeout:
            rank_zero_warn(f"Waiting for {self.path}, which another process or thread makes.")
            self._lock.acquire()
        try:
            # again: the run that was waited for may have made it
            whole = len(self.vectors()) if self.finished(self._made_of) else None
        except BaseException:
            self._free()
            raise
        if whole is not None:
            self._free()
            return whole
        self._writing = True
        if read_json(self.partial_about) == self._made_of and self.partial.exists():
            with self.partial.open("r+b") as file:
                try:
                    shape, _, dtype = read_header(file)
                except ValueError:  # interrupted within the header
                    pass
                else:
                    start, row = file.tell(), dtype.itemsize * shape[1]
                    rows = (file.seek(0, 2) - start) // row
                    rows = rows if rows == shape[0] else rows - rows % step
                    file.truncate(start + rows * row)
                    return int(rows)
        self.partial.unlink(missing_ok=True)
        write_json(self.partial_about, self._made_of)
        return 0

    def append(self, vectors: np.ndarray, total: int) -> None:
        """Append rows.

        Args:
            vectors: The rows.
            total: How many there will be in the end, which the file says from the beginning.
        """
        new = not self.partial.exists()
        with self.partial.open("ab") as file:
            if new:
                header = {"descr": vectors.dtype.str, "fortran_order": False, "shape": (total, vectors.shape[1])}
                np.lib.format.write_array_header_1_0(file, header)
            file.write(np.ascontiguousarray(vectors).tobytes())

    def finish(self) -> None:
        """Give the complete file its name, if no other run has."""
        if not self._writing:
            return
        # in this order a run that is killed in between leaves all rows for the next one, and no false description
        self.path.unlink(missing_ok=True)
        write_json(self.about, self._made_of)
        self.partial.replace(self.path)
        self.partial_about.unlink()
        self._free()

    def _free(self) -> None:
        self._writing = False
        with contextlib.suppress(OSError):  # Windows does not delete what is open; an empty file harms nobody
            Path(self._lock.lock_file).unlink()
        self._lock.release(force=True)


def read_header(file: Any) -> tuple[tuple[int, ...], bool, np.dtype]:
    """Read the header of a ``.npy`` file of version 1.0."""
    np.lib.format.read_magic(file)
    return np.lib.format.read_array_header_1_0(file)


def read_json(path: Path) -> Any:
    """Return what a JSON file holds, or None if it is missing or damaged."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None


def write_json(path: Path, value: Any) -> None:
    """Write a JSON file, at once or not at all."""
    partial = path.with_name(f"{path.name}.new")
    partial.write_text(json.dumps(value, sort_keys=True) + "\n", encoding="utf-8")
    partial.replace(path)


def hash_texts(texts: Iterable[str]) -> str:
    """Return a hash of texts in their order.

    Example:
        >>> hash_texts(["ab", "c"]) == hash_texts(["a", "bc"])
        False
    """
    digest = hashlib.blake2b(digest_size=16)
    for text in texts:
        content = text.encode("utf-8", "surrogatepass")
        digest.update(len(content).to_bytes(8, "little") + content)
    return digest.hexdigest()


def hash_weights(model: nn.Module) -> str:
    """Return a hash of a model's weights and their names.

    Example:
        >>> hash_weights(nn.Linear(2, 2)) == hash_weights(nn.Linear(2, 2))
        False
    """
    digest = hashlib.blake2b(digest_size=16)
    for name, value in sorted(model.state_dict().items()):
        if isinstance(value, torch.Tensor):
            digest.update(f"{name} {value.dtype} {tuple(value.shape)}".encode())
            digest.update(value.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()
