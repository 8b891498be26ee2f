"""A tiny student and an artefact of it, made once."""

from __future__ import annotations

import contextlib
import importlib.util
import json
import os
import resource
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from lightning_distilbert import load
from lightning_distilbert.deploy.export import export
from tests.students import labelled, save_classifier

ROOT = Path(__file__).resolve().parents[3]
# exports to each format, and ends the room as its writer begins: of an abort the code would be a signal's
FULL_DISK = """
import contextlib, io, json, resource, sys
from lightning_distilbert.cli import main
from lightning_distilbert.deploy import job

names = {"torch-export": "write_torch"}
room, most = resource.getrlimit(resource.RLIMIT_FSIZE)
for format in sys.argv[2:]:
    name = names.get(format, f"write_{format}")
    write = getattr(job, name)

    def full(*arguments):
        resource.setrlimit(resource.RLIMIT_FSIZE, (4096, most))
        return write(*arguments)

    setattr(job, name, full)
    code, said = 0, io.StringIO()
    with contextlib.redirect_stderr(said):
        try:
            main(["export", "--model", sys.argv[1], "--output", f"new/{format}", "--format", format])
        except SystemExit as error:
            code = error.code
    resource.setrlimit(resource.RLIMIT_FSIZE, (room, most))
    setattr(job, name, write)
    print(json.dumps([format, code, said.getvalue().splitlines()]))
"""


@pytest.fixture
def full_disk(classifier: Path, tmp_path: Path) -> Callable[..., dict[str, list[Any]]]:
    """Return what exports to a full disk say, by format: exit code and lines of stderr. Nothing is left of them."""

    def run(*formats: str) -> dict[str, list[Any]]:
        disk = tmp_path / "disk"
        disk.mkdir()
        result = subprocess.run(
            [sys.executable, "-c", FULL_DISK, str(classifier), *formats],
            capture_output=True, text=True, cwd=disk, env=os.environ | {"PYTHONPATH": str(ROOT)}, timeout=280,
        )  # fmt: skip
        assert result.returncode == 0, result.stderr[-3000:]
        found = [json.loads(line) for line in result.stdout.splitlines() if line.startswith('["')]
        assert [item.name for item in disk.iterdir()] == []
        return {format: rest for format, *rest in found}

    return run


@pytest.fixture
def room_for() -> Callable[[int], contextlib.AbstractContextManager[None]]:
    """Return a context in which no file grows beyond so many bytes, as if the disk ended there."""

    @contextlib.contextmanager
    def limited(size: int) -> Iterator[None]:
        soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
        try:
            yield
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))

    return limited


@pytest.fixture(scope="session")
def device(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder of packages as docs/deploy.md installs them where there is no torch, and no others."""
    site = tmp_path_factory.mktemp("device")
    (site / "lightning_distilbert").symlink_to(ROOT / "lightning_distilbert")
    for name in ("numpy", "onnxruntime", "tokenizers"):
        pytest.importorskip(name)
        place = Path(str(importlib.util.find_spec(name).origin)).parent
        for part in (place, *place.parent.glob(f"{name}.libs")):  # with the libraries that its wheel brings
            (site / part.name).symlink_to(part)
    return site


@pytest.fixture(scope="session")
def classifier(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the folder of a saved classifier."""
    return save_classifier(tmp_path_factory.mktemp("classifier"))


@pytest.fixture(scope="session")
def films(classifier: Path) -> list[dict[str, Any]]:
    """Return rows of which the classifier is right about all."""
    return labelled(load(classifier))


@pytest.fixture(scope="session")
def exported(classifier: Path, films: list[dict[str, Any]], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return an ONNX artefact of the classifier, which no test may change."""
    pytest.importorskip("onnxscript")
    pytest.importorskip("onnxruntime")
    return export(classifier, tmp_path_factory.mktemp("exported") / "onnx", evaluation=films).folder


@pytest.fixture
def artefact(exported: Path, tmp_path: Path) -> Path:
    """Return a copy of it."""
    return Path(shutil.copytree(exported, tmp_path / "artefact"))
