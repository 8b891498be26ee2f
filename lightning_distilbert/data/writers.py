"""Files that appear when they are complete, and replace none unasked."""

from __future__ import annotations

import json
import math
import uuid
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from lightning_distilbert.data.readers import JSON_SUFFIXES
from lightning_distilbert.errors import DistillationError


def check_output(
    output: str | Path, overwrite: bool = False, suffixes: Sequence[str] = JSON_SUFFIXES, source: Any = None
) -> Path:
    """Return the path of a file to be written, and refuse a bad one before any work is done.

    Args:
        output: The file.
        overwrite: Whether a file that is there may be replaced.
        suffixes: What it may end in.
        source: The input, which the output may not be.

    Raises:
        DistillationError: If the suffix is another, the file is the input or a folder, or is there already.

    Example:
        >>> check_output("new.jsonl").name
        'new.jsonl'
    """
    path = Path(output).expanduser()
    if path.suffix.lower() not in suffixes:
        kind = "JSON lines: give it the suffix .jsonl" if ".jsonl" in suffixes else f"JSON: give it {suffixes[0]}"
        arrays = ", or vectors with the suffix .npy" if ".npy" in suffixes else ""
        raise DistillationError(f"The output {str(output)!r} holds {kind}{arrays}.")
    if path.is_dir():
        raise DistillationError(f"The output {str(output)!r} is a folder. Name a file in it.")
    if isinstance(source, (str, Path)) and path.exists() and Path(source).expanduser().resolve() == path.resolve():
        raise DistillationError(f"The output {str(output)!r} is the input, which would be lost. Name another file.")
    if path.exists() and not overwrite:
        raise DistillationError(
            f"The output {str(output)!r} is there already. Name another file, or say that it may be replaced: "
            "--overwrite, or overwrite=True."
        )
    return path


@contextmanager
def complete(path: Path) -> Iterator[Path]:
    """Give a path to write to, and put the file in its place if all went well.

    Args:
        path: The file; its folder is made where it is missing.

    Yields:
        A path beside it.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    # a name of its own: of two runs that write the same file the last one wins, as a whole
    partial = path.with_name(f".{path.name}.{uuid.uuid4().hex[:12]}.partial")
    try:
        yield partial
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


def write_rows(rows: Iterable[Mapping[str, Any]], output: str | Path) -> int:
    r"""Write rows as JSON lines; the file appears when it is complete, in the place of one that is there.

    Args:
        rows: The rows. What JSON has no word for, such as a date, is written as text, and NaN as null.
        output: The file.

    Returns:
        How many rows there are.

    Example:
        >>> import tempfile
        >>> path = Path(tempfile.mkdtemp()) / "new.jsonl"
        >>> write_rows([{"text": "a film", "label": None}], path), path.read_text()
        (1, '{"text": "a film", "label": null}\n')
    """
    count = 0
    with complete(Path(output).expanduser()) as partial, partial.open("w", encoding="utf-8", newline="\n") as file:
        for row in rows:
            known = row if finite(row) else _without_nan(row)
            file.write(json.dumps(known, ensure_ascii=False, default=str) + "\n")
            count += 1
    return count


def finite(value: Any) -> bool:
    """Tell whether all numbers in a value, its lists and its dicts are finite.

    Example:
        >>> finite({"a": [1, "nan", None]}), finite([float("nan")])
        (True, False)
    """
    if isinstance(value, float):
        return math.isfinite(value)
    if isinstance(value, Mapping):
        return all(map(finite, value.values()))
    return not isinstance(value, (list, tuple)) or all(map(finite, value))


def _without_nan(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {name: _without_nan(item) for name, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_without_nan(item) for item in value]
    return value if finite(value) else None
