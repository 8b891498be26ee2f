"""What an artefact's folder says of itself: its files by hash, its graph, and what was measured."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lightning_distilbert.errors import DistillationError

MANIFEST = "manifest.json"
VERSION = 1
REQUIRED = ("format", "task", "model", "files", "inputs", "outputs")


def is_artefact(folder: Path) -> bool:
    """Tell whether a folder holds what an export wrote.

    Args:
        folder: The folder.
    """
    return (folder / MANIFEST).is_file()


def runs_alone(manifest: Mapping[str, Any]) -> bool:
    """Tell whether an artefact is one for `lightning_distilbert.deploy.runtime`, which needs no torch.

    Args:
        manifest: Its manifest.

    Example:
        >>> runs_alone({"format": "onnx-int8"}), runs_alone({"format": "openvino"})
        (True, False)
    """
    return str(manifest.get("format")).startswith("onnx")


def hash_file(path: Path) -> str:
    """Return the SHA-256 of a file in hexadecimal digits.

    Args:
        path: The file.
    """
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def write_manifest(folder: Path, facts: Mapping[str, Any]) -> dict[str, Any]:
    """Write the manifest of a folder that is complete otherwise.

    Args:
        folder: The folder; all files in it and in its sub-folders are listed with their hash and size.
        facts: What else the manifest says; plain values.

    Returns:
        What was written.

    Example:
        >>> import tempfile
        >>> folder = Path(tempfile.mkdtemp())
        >>> _ = (folder / "model.onnx").write_bytes(b"graph")
        >>> facts = {"format": "onnx", "task": "Retrieval", "model": "model.onnx", "inputs": [], "outputs": []}
        >>> write_manifest(folder, facts)["files"]["model.onnx"]["bytes"], read_manifest(folder)["task"]
        (5, 'Retrieval')
    """
    files = {
        path.relative_to(folder).as_posix(): {"sha256": hash_file(path), "bytes": path.stat().st_size}
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path != folder / MANIFEST
    }
    manifest: dict[str, Any] = {"manifest_version": VERSION, **facts, "files": files}
    text = json.dumps(manifest, indent=2, ensure_ascii=False, allow_nan=False)
    (folder / MANIFEST).write_text(text + "\n", encoding="utf-8")
    return manifest


def read_manifest(folder: str | Path, verify: bool = True) -> dict[str, Any]:
    """Read the manifest of an artefact.

    Args:
        folder: The folder.
        verify: Whether its files are compared with the manifest, by size and hash.

    Returns:
        The manifest.

    Raises:
        DistillationError: If there is none, it is damaged or of a later version, it does not list the model's files,
            or a file is missing or another one.

    Example:
        >>> read_manifest("/no/such/folder")
        Traceback (most recent call last):
        ...
        lightning_distilbert.errors.DistillationError: There is no folder '/no/such/folder'. ...
    """
    folder = Path(folder).expanduser()
    path = folder / MANIFEST
    if not folder.is_dir():
        raise DistillationError(f"There is no folder {str(folder)!r}. Give the folder that an export wrote.")
    if not path.is_file():
        raise DistillationError(
            f"The folder {str(folder)!r} has no {MANIFEST}, so it is no artefact. Make one with: lightning-distilbert "
            "export --model DIR --format onnx --output DIR"
        )
    try:
        manifest = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:  # not JSON, or not UTF-8
        raise DistillationError(f"{path} cannot be read: {error}. Export the student again.") from error
    if not isinstance(manifest, dict) or any(name not in manifest for name in REQUIRED):
        raise DistillationError(f"{path} is no manifest of an artefact: it needs {', '.join(REQUIRED)}.")
    if not isinstance(manifest["model"], str) or not _lists_files(manifest["files"]):
        raise DistillationError(
            f"{path} names no model, or lists no files by name with their size and hash. Export the student again."
        )
    if manifest.get("manifest_version") != VERSION:
        raise DistillationError(
            f"{path} is of version {manifest.get('manifest_version')!r}, and this package reads {VERSION}. "
            "Update lightning-distilbert, or export the student again."
        )
    needed = model_files(folder, manifest)
    if needed[0].endswith(".xml"):  # of OpenVINO, which has the weights beside it
        needed += (f"{needed[0].removesuffix('.xml')}.bin",)
    missing = [name for name in needed if name not in manifest["files"]]
    if missing:
        raise DistillationError(f"{path} does not list {missing[0]!r}, a file of the model. Export the student again.")
    if verify:
        verify_files(folder, manifest["files"])
    return manifest


def _lists_files(files: Any) -> bool:
    return isinstance(files, Mapping) and all(
        isinstance(told, Mapping) and type(told.get("bytes")) is int and isinstance(told.get("sha256"), str)
        for told in files.values()
    )


def model_files(folder: Path, manifest: Mapping[str, Any]) -> tuple[str, ...]:
    """Return the names of the files that are run: one, or encoder and decoder.

    Args:
        folder: The folder.
        manifest: Its manifest.

    Raises:
        DistillationError: If the manifest names no decoder where it tells of one.
    """
    if "decoder" not in manifest:
        return (str(manifest["model"]),)
    decoder = manifest["decoder"]
    if not isinstance(decoder, Mapping) or not isinstance(decoder.get("model"), str):
        raise DistillationError(f"The manifest of {str(folder)!r} names no file of the decoder. Export it again.")
    return str(manifest["model"]), decoder["model"]


def verify_files(folder: Path, files: Mapping[str, Any]) -> None:
    """Compare files with what a manifest says of them.

    Args:
        folder: Where they are.
        files: The size and the hash of each, by name, as `read_manifest` returns them.

    Raises:
        DistillationError: If one is missing or another one.
    """
    for name, told in files.items():
        path = folder / name
        inside = not {"", ".", ".."} & {*str(name).split("/")} and "\\" not in str(name)  # no name of ours leads out
        if not inside or not path.is_file():
            raise DistillationError(f"{folder / MANIFEST} lists {name!r}, which is not there. Export or copy it again.")
        size = path.stat().st_size
        if size != told["bytes"]:
            raise DistillationError(
                f"{str(path)!r} is not whole: it has {size:,} bytes, and was exported with {told['bytes']:,}. Copy "
                "it or export the student again."
            )
        found = hash_file(path)
        if found != told["sha256"]:
            raise DistillationError(
                f"{str(path)!r} is not the file that was exported: its SHA-256 begins with {found[:12]}, and the "
                f"manifest says {told['sha256'][:12]}. Copy it or export the student again."
            )
