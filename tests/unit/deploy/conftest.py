"""A tiny student and an artefact of it, made once."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest

from lightning_distilbert import load
from lightning_distilbert.deploy.export import export
from tests.students import labelled, save_classifier


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
