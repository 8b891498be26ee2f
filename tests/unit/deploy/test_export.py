from __future__ import annotations

import errno
import json
import shutil
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from lightning_distilbert import (
    DistillationModule,
    IntentClassification,
    Student,
    TextClassification,
    TextClassificationData,
    load,
)
from lightning_distilbert.deploy import job, runtime, sensitivity
from lightning_distilbert.deploy import onnx as onnx_files
from lightning_distilbert.deploy.engines import load_artefact
from lightning_distilbert.deploy.export import export
from lightning_distilbert.deploy.manifest import read_manifest
from lightning_distilbert.errors import DistillationError
from tests.students import FILMS, labelled, save_classifier

pytest.importorskip("onnxscript")
pytest.importorskip("onnxruntime")


@pytest.fixture(scope="module")
def outlier(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a student whose table of embeddings does not fit 8 bits."""
    return save_classifier(tmp_path_factory.mktemp("outlier"), outlier=True)


def test_the_folder_holds_what_a_runtime_needs(exported: Path, classifier: Path):
    assert sorted(item.name for item in exported.iterdir()) == [
        *("config.json", "manifest.json", "model.onnx", "tokenizer.json", "tokenizer_config.json")
    ]
    config = json.loads((exported / "config.json").read_text())
    assert config["architectures"] == ["DistilBertForSequenceClassification"]
    assert config["id2label"] == {"0": "bad", "1": "good"}
    details = config["lightning_distilbert"]
    assert details["task"]["class_path"].endswith(".TextClassification")
    assert (details["labels"], details["thresholds"]) == (["bad", "good"], {})
    assert json.loads((exported / "tokenizer_config.json").read_text())["model_max_length"] == 64
    manifest = read_manifest(exported)
    assert (manifest["format"], manifest["task"], manifest["opset"]) == ("onnx", "TextClassification", 20)
    assert [item["name"] for item in manifest["inputs"]] == ["input_ids", "attention_mask"]
    assert manifest["outputs"] == [{"name": "logits", "dtype": "float32", "shape": ["batch", "labels"]}]
    assert {"torch", "transformers", "onnx", "onnxruntime", "lightning_distilbert"} <= set(manifest["versions"])
    assert manifest["verification"]["max_difference"] < 1e-4
    assert manifest["verification"]["evaluation"]["retention"] == 1.0
    assert manifest["parameters"] == sum(weight.numel() for weight in load(classifier).student.parameters())


def test_the_artefact_answers_as_the_student(exported: Path, classifier: Path):
    mine, theirs = load_artefact(exported).predict(FILMS), load(classifier).predict(FILMS)
    assert [answer["label"] for answer in mine] == [answer["label"] for answer in theirs]
    np.testing.assert_allclose([a["score"] for a in mine], [a["score"] for a in theirs], atol=1e-4)


def test_int8_of_a_module_in_memory(classifier: Path, films: list[dict[str, Any]], tmp_path: Path):
    student = load(classifier)
    student.train()
    done = export(student, tmp_path / "a", "onnx-int8", films, min_retention=0.5, reduce_range=True)
    assert student.training
    assert not student.metrics["val"]["accuracy"].update_called
    quantization = done.manifest["quantization"]
    assert (quantization["method"], quantization["reduce_range"], quantization["left_in_float"]) == (
        "dynamic",
        True,
        [],
    )
    assert done.manifest["model"] == "model_int8.onnx"
    assert done.size == (done.folder / "model_int8.onnx").stat().st_size
    assert done.retention is not None
    assert done.retention >= 0.5
    assert done.manifest["verification"]["max_difference"] > 1e-4


def test_what_does_not_bear_8_bits_stays_in_float(outlier: Path, tmp_path: Path):
    rows = labelled(load(outlier))
    done = export(outlier, tmp_path / "a", "onnx-int8", rows, min_retention=0.95)
    assert done.manifest["quantization"]["left_in_float"] == ["embeddings"]
    first, last = done.manifest["quantization"]["attempts"]
    assert first["left_in_float"] == []
    assert first["retention"] < 0.8
    assert last["retention"] == done.retention >= 0.95
    assert not (done.folder / ".scratch").exists()


def test_gate_that_is_not_met_keeps_the_float_artefact(outlier: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(sensitivity, "mixtures", lambda ranked: [])
    rows = labelled(load(outlier))
    with pytest.raises(DistillationError) as caught:
        export(outlier, tmp_path / "a", "onnx-int8", rows, min_retention=0.95)
    said = str(caught.value)
    assert "onnx-int8 keeps " in said
    assert "of the student's accuracy on the list passed in (1.0000 became 0." in said
    assert "at least 95.00% was asked for. The onnx artefact was kept in" in said
    manifest = read_manifest(tmp_path / "a")
    assert (manifest["format"], manifest["model"], manifest["quantization"]) == ("onnx", "model.onnx", None)
    assert manifest["verification"]["evaluation"]["retention"] == 1.0
    assert not (tmp_path / "a" / "model_int8.onnx").exists()
    assert load_artefact(tmp_path / "a").predict(FILMS[:3])
    assert [item.name for item in tmp_path.iterdir()] == ["a"]


def test_gate_that_is_not_met_leaves_an_older_artefact(
    outlier: Path, artefact: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(sensitivity, "mixtures", lambda ranked: [])
    before = {item.name: item.read_bytes() for item in artefact.iterdir()}
    rows = labelled(load(outlier))
    said = r"at least 95.00% was asked for. The artefact that was in '.*' stays as it was. Export into a new folder"
    with pytest.raises(DistillationError, match=said):
        export(outlier, artefact, "onnx-int8", rows, min_retention=0.95, overwrite=True)
    assert {item.name: item.read_bytes() for item in artefact.iterdir()} == before
    assert [item.name for item in tmp_path.iterdir()] == [artefact.name]


def test_float_artefact_that_loses_leaves_nothing(
    classifier: Path, films: list[dict[str, Any]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr("lightning_distilbert.deploy.verify.retention", lambda own, student, mode: 0.5)
    with pytest.raises(DistillationError, match=r"torch-export keeps 50.00% .* Nothing was kept"):
        export(classifier, tmp_path / "a", "torch-export", films)
    assert not any(tmp_path.iterdir())


def test_evaluation_takes_any_data_module(classifier: Path, films: list[dict[str, Any]], tmp_path: Path):
    wrong = [row | {"label": "bad"} for row in films]
    data = TextClassificationData({"validation": films, "test": wrong}, batch_size=4)
    done = export(classifier, tmp_path / "a", "torch-export", data, split="test")
    found = done.manifest["verification"]["evaluation"]
    assert found["split"] == "test"
    assert found["student"]["accuracy"] < 1.0
    assert data.trainer is None


def test_unmeasured_export_says_so(classifier: Path, tmp_path: Path):
    done = export(classifier, tmp_path / "a", "torch-export")
    assert done.retention is None
    assert done.manifest["verification"]["rows_from"] == "random tokens"
    with pytest.raises(DistillationError, match="holds an artefact already"):
        export(classifier, tmp_path / "a", "torch-export")
    again = export(classifier, tmp_path / "a", "torch-export", overwrite=True)
    assert again.manifest["files"]["config.json"] == done.manifest["files"]["config.json"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"format": "onxx"}, "choose one of 'onnx', 'onnx-int8'"),
        ({"format": "onnx-int8"}, "only its task's score tells how much"),
        ({"min_retention": 99.0}, "it is a share, from 0 to 1"),
        ({"format": "openvino-int8", "min_retention": 0.0}, "needs rows that show which values"),
        ({"format": "onnx-int8", "min_retention": 0.0, "static": True}, "needs rows that show which values"),
        ({"static": True, "calibration": ["a"]}, "static=True is for onnx-int8, and the format is onnx"),
        ({"reduce_range": False}, "reduce_range=False is for onnx-int8, and the format is onnx"),
        ({"opset": 18, "format": "torch-export"}, "opset=18 is for formats that go through ONNX, and torch-export"),
        ({"calibration": ["a"]}, "onnx takes no calibration rows. Leave"),
        (
            {"format": "onnx-int8", "min_retention": 0, "calibration": ["a"]},
            "no calibration rows, unless static is set",
        ),
        ({"evaluation": [{"text": "a film"}]}, "label"),
        ({"evaluation": "nowhere.jsonl"}, "nowhere.jsonl"),
        ({"evaluation": [{"text": "a", "label": "good"}], "split": "train"}, "choose one of 'validation', 'test'"),
    ],
)
def test_bad_options_are_refused(classifier: Path, tmp_path: Path, options: dict[str, Any], message: str):
    with pytest.raises(DistillationError, match=message):
        export(classifier, tmp_path / "a", **options)
    assert not any(tmp_path.iterdir())


def test_thresholds_of_intents_ship(tiny_teacher_dir: Path, tmp_path: Path):
    task = IntentClassification(labels=["buy", "oos", "see"])
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        module = DistillationModule(task, student=Student(source=str(tiny_teacher_dir), layers=2)).eval()
        torch.nn.init.normal_(module.student.classifier.weight, std=1.0)
        encoded = module.tokenizer(FILMS, padding=True, return_tensors="pt")
        with torch.no_grad():  # so that no label is that of all
            logits = module.student(encoded["input_ids"], encoded["attention_mask"]).logits
            module.student.classifier.bias -= logits.mean(dim=0)
    module.thresholds = {"out_of_scope": 0.5, "temperature": 0.3}
    student = load(module.save_student(tmp_path / "student"))
    artefact = runtime.load(export(student, tmp_path / "a").folder)
    assert artefact.thresholds == student.thresholds == {"out_of_scope": 0.5, "temperature": 0.3}
    mine, theirs = artefact.predict(FILMS), student.predict(FILMS)
    assert [(answer["label"], answer["nearest"]) for answer in mine] == [(a["label"], a["nearest"]) for a in theirs]
    np.testing.assert_allclose([a["score"] for a in mine], [a["score"] for a in theirs], atol=1e-4)
    artefact.thresholds = {}
    assert [answer["label"] for answer in artefact.predict(FILMS)] != [answer["label"] for answer in mine]


def test_bad_models_are_refused(exported: Path, tiny_teacher_dir: Path, tmp_path: Path):
    with pytest.raises(DistillationError, match="There is no folder"):
        export(tmp_path / "nothing", tmp_path / "a")
    with pytest.raises(DistillationError, match="so it holds no model"):
        export(tmp_path, tmp_path / "a")
    with pytest.raises(DistillationError, match="is an artefact of lightning-distilbert export"):
        export(exported, tmp_path / "a")
    with pytest.raises(DistillationError, match="give a folder, or a DistillationModule"):
        export(3, tmp_path / "a")
    untrained = DistillationModule(TextClassification(num_labels=3), student=Student(source=str(tiny_teacher_dir)))
    untrained.student.config.fresh_head = True
    with pytest.raises(DistillationError, match="was never trained"):
        export(untrained, tmp_path / "a")
    spoilt = Path(shutil.copytree(tiny_teacher_dir, tmp_path / "spoilt"))
    config = json.loads((spoilt / "config.json").read_text())
    task = {"class_path": "lightning_distilbert.tasks.question_answering.QuestionAnswering", "init_args": {}}
    (spoilt / "config.json").write_text(json.dumps(config | {"lightning_distilbert": {"task": task}}))
    with pytest.raises(DistillationError, match="names the task QuestionAnswering"):
        export(spoilt, tmp_path / "a")
    assert [item.name for item in tmp_path.iterdir()] == ["spoilt"]


def test_full_disk_leaves_nothing(classifier: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    def full(*args: object) -> None:
        (next(tmp_path.glob(".a.*")) / "model.onnx").write_bytes(b"half")
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(job, "write_onnx", full)
    with pytest.raises(DistillationError, match=r"could not be written \(.*No space left on device\)\. Nothing of it"):
        export(classifier, tmp_path / "a")
    assert not any(tmp_path.iterdir())
    monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=1000))
    with pytest.raises(DistillationError, match="Make room"):
        export(classifier, tmp_path / "a")


def test_full_disk_under_each_writer(full_disk: Callable[..., dict[str, list[Any]]]):
    formats = ["onnx", "torch-export", *(["openvino"] if find_spec("openvino") else [])]
    found = full_disk(*formats)
    assert list(found) == formats
    for code, lines in found.values():
        assert code == 2
        assert len(lines) == 1
        assert lines[0].startswith("error: The artefact ")
        assert "could not be written (" in lines[0]


def test_full_disk_within_the_writers(classifier: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    def full(*args: object, **kwargs: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(onnx_files.torch.onnx, "export", full)
    with pytest.raises(DistillationError, match="could not be written"):
        export(classifier, tmp_path / "a")
    assert not any(tmp_path.iterdir())


def test_truncated_model_is_one_error(artefact: Path):
    data = (artefact / "model.onnx").read_bytes()
    (artefact / "model.onnx").write_bytes(data[: len(data) // 2])
    with pytest.raises(DistillationError, match="is not whole"):
        load_artefact(artefact)
