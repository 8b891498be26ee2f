from __future__ import annotations

import hashlib
import json
from pathlib import Path

import pytest

from lightning_distilbert.deploy.manifest import MANIFEST, hash_file, read_manifest, verify_files, write_manifest
from lightning_distilbert.errors import DistillationError

FACTS = {"format": "onnx", "task": "Retrieval", "model": "model.onnx", "inputs": [], "outputs": []}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "model.onnx").write_bytes(b"a graph of some bytes")
    (tmp_path / "config.json").write_text("{}")
    write_manifest(tmp_path, FACTS)
    return tmp_path


def test_every_file_is_listed_with_its_hash_and_size(folder: Path):
    files = read_manifest(folder)["files"]
    assert sorted(files) == ["config.json", "model.onnx"]
    data = b"a graph of some bytes"
    assert files["model.onnx"] == {"sha256": hashlib.sha256(data).hexdigest(), "bytes": len(data)}
    assert hash_file(folder / "config.json") == files["config.json"]["sha256"]


def test_writing_again_does_not_list_the_manifest(folder: Path):
    assert MANIFEST not in write_manifest(folder, FACTS)["files"]


WHOLE = {"bytes": 2, "sha256": hashlib.sha256(b"{}").hexdigest()}


def relist(folder: Path, name: str, **told: object) -> None:
    change(folder, files=json.loads((folder / MANIFEST).read_text())["files"] | {name: told})


def change(folder: Path, **values: object) -> None:
    told = json.loads((folder / MANIFEST).read_text())
    (folder / MANIFEST).write_text(json.dumps(told | values))


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (
            lambda f: (f / "model.onnx").write_bytes(b"a graph"),
            "is not whole: it has 7 bytes, and was exported with 21",
        ),
        (lambda f: (f / "model.onnx").write_bytes(b"a graph of some Bytes"), "is not the file that was exported"),
        (lambda f: (f / "model.onnx").unlink(), "lists 'model.onnx', which is not there"),
        (lambda f: (f / MANIFEST).unlink(), "has no manifest.json, so it is no artefact"),
        (lambda f: (f / MANIFEST).write_text("{"), "cannot be read"),
        (lambda f: (f / MANIFEST).write_text("[]"), "is no manifest"),
        (lambda f: (f / MANIFEST).write_text('{"format": "onnx"}'), "it needs format, task, model"),
        (lambda f: change(f, manifest_version=2), "is of version 2"),
        (lambda f: change(f, files=["model.onnx"]), "lists no files by name"),
        (lambda f: change(f, files={"model.onnx": "whole"}), "lists no files by name"),
        (lambda f: change(f, model=None), "names no model"),
        (lambda f: relist(f, "../x", **WHOLE), "lists '../x', which is not there"),
        (lambda f: relist(f, "config.json", sha256="0" * 64), "lists no files by name with their size and hash"),
        (lambda f: relist(f, "config.json", **WHOLE | {"bytes": "2"}), "lists no files by name with their size"),
        (lambda f: relist(f, "config.json", **WHOLE | {"bytes": True}), "lists no files by name with their size"),
        (lambda f: relist(f, "config.json", bytes=2), "lists no files by name with their size and hash"),
        (lambda f: relist(f, "config.json", **WHOLE | {"sha256": 5}), "lists no files by name with their size and"),
        (lambda f: change(f, files={}), "does not list 'model.onnx', a file of the model"),
        (lambda f: change(f, decoder={"model": "decoder.onnx"}), "does not list 'decoder.onnx', a file of the model"),
        (lambda f: change(f, decoder={}), "names no file of the decoder"),
    ],
)
def test_damaged_artefact_is_refused(folder: Path, spoil, message: str):
    spoil(folder)
    with pytest.raises(DistillationError, match=message):
        read_manifest(folder)


def test_a_manifest_of_another_kind_is_refused_whatever_is_verified(folder: Path):
    change(folder, files=["model.onnx"])
    with pytest.raises(DistillationError, match="lists no files by name"):
        read_manifest(folder, verify=False)


def test_the_weights_of_openvino_are_listed_too(tmp_path: Path):
    (tmp_path / "openvino_model.xml").write_text("<net/>")
    write_manifest(tmp_path, FACTS | {"format": "openvino", "model": "openvino_model.xml"})
    for verify in (True, False):
        with pytest.raises(DistillationError, match=r"does not list 'openvino_model\.bin', a file of the model"):
            read_manifest(tmp_path, verify)


def test_files_are_not_looked_at_unasked(folder: Path):
    (folder / "model.onnx").write_bytes(b"")
    assert read_manifest(folder, verify=False)["model"] == "model.onnx"


def test_files_in_folders_are_listed_and_verified(tmp_path: Path):
    (tmp_path / "inner").mkdir()
    (tmp_path / "inner" / "a.json").write_text("{}")
    facts = FACTS | {"model": "inner/a.json"}
    assert list(write_manifest(tmp_path, facts)["files"]) == ["inner/a.json"]
    read_manifest(tmp_path)
    (tmp_path / "inner" / "a.json").write_text("[]")
    with pytest.raises(DistillationError, match=r"a\.json' is not the file that was exported"):
        read_manifest(tmp_path)


@pytest.mark.parametrize("name", ["../a.json", "inner/../../a.json", "/etc/passwd", "inner//a.json", "..\\a.json", "."])
def test_names_that_lead_out_of_the_folder_are_refused(tmp_path: Path, name: str):
    (tmp_path / "artefact" / "inner").mkdir(parents=True)
    (tmp_path / "a.json").write_text("{}")
    told = {name: {"bytes": 2, "sha256": hash_file(tmp_path / "a.json")}}
    with pytest.raises(DistillationError, match="which is not there"):
        verify_files(tmp_path / "artefact", told)
