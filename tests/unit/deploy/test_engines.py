from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from lightning_distilbert.deploy.engines import load_artefact, open_engine, to_arrays
from lightning_distilbert.deploy.manifest import read_manifest, write_manifest
from lightning_distilbert.errors import DistillationError
from tests.students import FILMS


def test_inputs_that_are_missing_are_made_up():
    batch = {"input_ids": torch.tensor([[5, 6]]), "labels": torch.tensor([1])}
    found = to_arrays(batch, ["input_ids", "attention_mask", "token_type_ids"])
    assert {name: array.tolist() for name, array in found.items()} == {
        "input_ids": [[5, 6]],
        "attention_mask": [[1, 1]],
        "token_type_ids": [[0, 0]],
    }
    assert {array.dtype.name for array in found.values()} == {"int64"}


def test_threads_change_no_answer(artefact: Path):
    one, two = (load_artefact(artefact, threads=number).predict(FILMS[:4]) for number in (1, 2))
    assert [answer["label"] for answer in one] == [answer["label"] for answer in two]
    assert load_artefact(artefact).student.engine.inputs == ["input_ids", "attention_mask"]


def spoil(artefact: Path, name: str, text: str) -> None:
    (artefact / name).write_text(text)
    facts = read_manifest(artefact, verify=False)
    write_manifest(artefact, {name: value for name, value in facts.items() if name != "files"})


def test_unknown_format_is_refused(artefact: Path):
    with pytest.raises(DistillationError, match="The format 'tflite' is unknown"):
        open_engine(artefact, {"format": "tflite", "model": "model.tflite"})


def test_file_that_is_no_graph_is_one_error(artefact: Path):
    spoil(artefact, "model.onnx", "no graph")
    with pytest.raises(DistillationError, match="cannot be run by onnxruntime"):
        load_artefact(artefact)


def test_only_tasks_of_this_package_are_built(artefact: Path):
    config = json.loads((artefact / "config.json").read_text())
    details = config.pop("lightning_distilbert")
    details["task"]["class_path"] = "somebody.Task"
    spoil(artefact, "config.json", json.dumps(config | {"lightning_distilbert": details}))
    with pytest.raises(DistillationError, match="somebody"):
        load_artefact(artefact)
    spoil(artefact, "config.json", json.dumps(config))
    with pytest.raises(DistillationError, match="names no task"):
        load_artefact(artefact)
