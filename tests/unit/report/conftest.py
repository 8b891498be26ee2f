"""Tiny models to be compared, made once."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from lightning_distilbert import load
from tests.artefacts import make_artefact, seal
from tests.students import labelled, save_classifier

LABELS = {"id2label": {"0": "good", "1": "bad"}, "label2id": {"good": 0, "bad": 1}}


@pytest.fixture(scope="session")
def student(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the folder of a saved classifier of the labels bad and good."""
    return save_classifier(tmp_path_factory.mktemp("compared"))


@pytest.fixture(scope="session")
def rows(student: Path) -> list[dict[str, Any]]:
    """Return rows of which the classifier is right about all but the first."""
    found = labelled(load(student))
    found[0]["label"] = "good" if found[0]["label"] == "bad" else "bad"
    return found


@pytest.fixture(scope="session")
def teacher(student: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a plain transformers folder, whose labels stand in another order and which names no task."""
    folder = Path(shutil.copytree(student.parent / "teacher", tmp_path_factory.mktemp("compared") / "teacher"))
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | LABELS))
    return folder


@pytest.fixture(scope="session")
def onnx(student: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return an ONNX artefact of the classifier."""
    pytest.importorskip("onnx")
    pytest.importorskip("onnxruntime")
    folder = make_artefact(student, tmp_path_factory.mktemp("compared") / "onnx")
    inputs = [{"name": name} for name in ("input_ids", "attention_mask")]
    module = load(student)
    number = sum(parameter.numel() for parameter in module.student.parameters())
    versions = {"torch": "0", "onnxruntime": "0", "lightning_distilbert": "0"}
    return seal(folder, inputs=inputs, outputs=[{"name": "logits"}], parameters=number, versions=versions)
