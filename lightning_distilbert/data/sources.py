"""Which splits a source has: a folder, files, rows in memory, or a data set of the `datasets` library."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from lightning_distilbert.data.readers import SUFFIXES, describe, kind_of
from lightning_distilbert.data.text_files import COMPRESSED, TEXT_SUFFIXES, kind_of_text
from lightning_distilbert.errors import DistillationError, MissingExtraError, require

SPLIT_NAMES: dict[str, tuple[str, ...]] = {
    "train": ("train",),
    "validation": ("validation", "valid", "val", "dev"),
    "test": ("test",),
    "predict": ("predict",),
}
HUB_NAME = re.compile(r"[\w.-]+(/[\w.-]+)?(:[\w.-]+)?")


def split_name(name: str) -> str | None:
    """Return the usual name of a split, or None if the name is not known.

    Example:
        >>> split_name("dev"), split_name("extra")
        ('validation', None)
    """
    return next((split for split, names in SPLIT_NAMES.items() if name in names), None)


def open_splits(source: Any) -> dict[str, Any]:
    """Find the splits of a source without reading their rows.

    Args:
        source: One of: a folder with ``train.*``, ``dev.*`` (or ``validation``, ``valid``, ``val``) and ``test.*``; a
            file, which is then the training split; a mapping from split to a file or to rows; a list of dicts or a
            `datasets.Dataset` (the training split); a `datasets.DatasetDict`; or the name of a data set on the hub,
            as ``"owner/name"`` or ``"owner/name:config"`` (such as ``"nyu-mll/glue:sst2"``). What exists locally wins
            over a name on the hub.

    Returns:
        A mapping from ``train``, ``validation``, ``test`` and ``predict``, as far as present, to what `read_rows`
        takes.

    Raises:
        DistillationError: If there is nothing at the path, or no split is found.

    Example:
        >>> open_splits({"dev": [{"text": "a"}]})
        {'validation': [{'text': 'a'}]}
    """
    if isinstance(source, (str, Path)):
        path = Path(source).expanduser()
        if path.is_dir():
            return _open_folder(path)
        if path.is_file():
            return {"train": path}
        return open_splits(load_hub(str(source)))
    if isinstance(source, Mapping):
        splits = {}
        for name, rows in source.items():
            split = split_name(str(name))
            if split is None:
                # data sets of the library have splits of their own making, such as "unsupervised"; a user's are typos
                if hasattr(rows, "column_names"):
                    continue
                raise DistillationError(f"{name!r} is not a split; they are {_known_names()}.")
            if split in splits:
                raise DistillationError(f"The split {split!r} is given twice: {list(source)}.")
            if rows is None:
                continue
            splits[split] = rows
        if not splits:
            raise DistillationError(f"{describe(source)} has none of the splits {_known_names()}: {list(source)}.")
        return {split: splits[split] for split in SPLIT_NAMES if split in splits}
    if hasattr(source, "column_names") or (isinstance(source, Sequence) and not isinstance(source, bytes)):
        return {"train": source}
    raise DistillationError(
        f"A {type(source).__name__} is no source of data. Pass a folder, a file, a mapping from split to file or rows, "
        "a list of dicts, a datasets object, or a name on the hub."
    )


def is_hub_name(source: Any) -> bool:
    """Tell whether a source is a name on the hub: a string that is no local path and does not look like one.

    Example:
        >>> is_hub_name("nyu-mll/glue:sst2"), is_hub_name("./sst2"), is_hub_name("sst2/train.tsv")
        (True, False, False)
    """
    if not isinstance(source, str) or Path(source).expanduser().exists():
        return False
    known = kind_of_text(Path(source)) in (*SUFFIXES, *TEXT_SUFFIXES)
    looks_like_path = known or source.startswith(("~", ".")) or source.endswith(COMPRESSED)
    return not looks_like_path and HUB_NAME.fullmatch(source) is not None


def load_hub(name: str, streaming: bool = False) -> Any:
    """Load a data set by its hub name through `datasets`.

    Args:
        name: ``"owner/name"`` or ``"owner/name:config"``.
        streaming: Whether rows are fetched only when they are read.

    Returns:
        A `datasets.DatasetDict`, or an `IterableDatasetDict`.

    Raises:
        DistillationError: If it cannot be loaded.
    """
    missing = f"There is no file or folder {name!r} (working folder: {Path.cwd()})"
    if not is_hub_name(name):
        raise DistillationError(f"{missing}.")
    dataset, _, config = name.partition(":")
    try:
        load_dataset = require("datasets", extra="data").load_dataset
    except MissingExtraError as error:
        raise DistillationError(f"{missing}, and to read it from the hub: {error}") from error
    try:
        return load_dataset(dataset, config or None, streaming=streaming)
    # the library raises OSError, ValueError, its own and huggingface_hub's errors for an unknown name or no network
    except Exception as error:
        first_line = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise DistillationError(
            f"{missing}, and it could not be loaded from the hub (a name is 'owner/name' or 'owner/name:config'): "
            f"{first_line}"
        ) from error


def _known_names() -> str:
    return ", ".join(name for names in SPLIT_NAMES.values() for name in names)


def _open_folder(folder: Path) -> dict[str, Any]:
    found: dict[str, list[Path]] = {}
    for path in sorted(folder.iterdir()):
        if path.is_file() and kind_of(path) in SUFFIXES:
            # "train-00000-of-00001.parquet" is how files on the hub are named
            split = split_name(re.sub(r"-\d+-of-\d+$", "", path.name.split(".")[0]))
            if split is not None:
                found.setdefault(split, []).append(path)
    return one_file_each(folder, found, f"({_known_names()}) with one of the suffixes {', '.join(SUFFIXES)}")


def one_file_each(folder: Path, found: Mapping[str, Sequence[Path]], kinds: str) -> dict[str, Path]:
    """Return the file of each split of a folder, in the usual order of splits.

    Args:
        folder: The folder.
        found: The files of each split.
        kinds: Which files count, for the error.

    Raises:
        DistillationError: If there is no file, or more than one of a split.
    """
    for split, paths in found.items():
        if len(paths) > 1:
            raise DistillationError(
                f"{folder} has more than one file for {split!r}: {[path.name for path in paths]}. "
                "Pass a mapping from split to file instead of the folder."
            )
    if not found:
        content = sorted(path.name for path in folder.iterdir())
        raise DistillationError(
            f"{folder} has no file named after a split {kinds}. It has {content[:10]}. "
            "Pass a mapping from split to file."
        )
    return {split: found[split][0] for split in SPLIT_NAMES if split in found}
