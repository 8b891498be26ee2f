from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch

from lightning_distilbert import DistillationModule, Retrieval, Student, TextClassification, load
from lightning_distilbert.errors import DistillationError
from lightning_distilbert.report.contenders import load_contenders
from tests.conftest import save_tiny_bert
from tests.students import FILMS, TASKS


def test_students_teachers_and_artefacts_get_one_task(student: Path, teacher: Path, onnx: Path):
    found = load_contenders({"teacher": teacher, "student": student, "onnx": onnx}, threads=1)
    assert [one.name for one in found] == ["teacher", "student", "onnx"]
    assert [one.format for one in found] == ["transformers", "transformers", "onnx"]
    assert [one.declared for one in found] == [False, True, True]
    assert {one.module.labels for one in found} == {("bad", "good")}
    assert [one.longest for one in found] == [64, 64, 64]
    assert found[1].parameters == found[2].parameters < found[0].parameters
    assert found[1].size_mb == pytest.approx((student / "model.safetensors").stat().st_size / 1e6)
    assert found[2].size_mb == pytest.approx((onnx / "model.onnx").stat().st_size / 1e6)
    assert "onnxruntime" in found[2].packages
    assert not any(one.notes for one in found)
    answers = [one.module.predict(FILMS) for one in found]
    assert [row["label"] for row in answers[1]] == [row["label"] for row in answers[2]]


def test_outputs_of_another_order_are_put_into_that_of_the_labels(student: Path, teacher: Path):
    alone = load(teacher).predict(FILMS)
    given = load_contenders({"teacher": teacher, "student": student})[0].module
    assert alone == given.predict(FILMS)
    batch = {"input_ids": torch.tensor([[2, 40, 3]]), "attention_mask": torch.ones(1, 3, dtype=torch.long)}
    own = load(teacher).eval()(batch)["logits"]
    assert torch.allclose(given(batch)["logits"], own.flip(-1))


def test_model_without_label_names_is_taken_in_order_and_says_so(student: Path):
    teacher, _ = load_contenders({"teacher": student.parent / "teacher", "student": student})
    assert teacher.module.labels == ("bad", "good")
    assert teacher.notes == ("names no labels: its outputs are taken in the order bad, good",)


def test_models_that_all_name_no_task_have_the_one_that_their_architecture_suggests(teacher: Path):
    (one,) = load_contenders({"a": teacher})
    assert type(one.module.task) is TextClassification
    assert one.module.labels == ("good", "bad")


def test_vectors_are_pooled_as_each_model_has_it(tmp_path: Path):
    teacher = save_tiny_bert(tmp_path / "teacher")
    for pooling in ("mean", "cls"):
        module = DistillationModule(Retrieval(pooling=pooling), student=Student(source=str(teacher), layers=2))
        module.save_student(tmp_path / pooling)
    found = load_contenders({name: tmp_path / name for name in ("cls", "mean", "teacher")})
    assert [one.module.task.pooling for one in found] == ["cls", "mean", "mean"]


def test_different_tasks_are_refused(student: Path, tmp_path: Path):
    other = TASKS["questions"][0](tmp_path)
    with pytest.raises(DistillationError, match="b is a model of QuestionAnswering, and a one of TextClassification"):
        load_contenders({"a": student, "b": other})
    with pytest.raises(DistillationError, match="b is a model of QuestionAnswering"):  # a plain transformers folder
        load_contenders({"a": student, "b": tmp_path / "teacher"})


def test_different_labels_are_refused(student: Path, teacher: Path, tmp_path: Path):
    other = Path(shutil.copytree(teacher, tmp_path / "other"))
    config = json.loads((other / "config.json").read_text())
    names = {"id2label": {"0": "good", "1": "awful"}, "label2id": {"good": 0, "awful": 1}}
    (other / "config.json").write_text(json.dumps(config | names))
    with pytest.raises(
        DistillationError, match=r"other has the labels \['good', 'awful'\], and student \['bad', 'good'\]"
    ):
        load_contenders({"student": student, "other": other})
    three = save_tiny_bert(tmp_path / "three", num_labels=3)
    with pytest.raises(DistillationError, match="three has 3 labels, and student 2"):
        load_contenders({"student": student, "three": three})


def test_bad_folders_are_named_before_any_model_is_loaded(
    student: Path, onnx: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr("lightning_distilbert.report.contenders.load", lambda *_: pytest.fail("it was loaded"))
    with pytest.raises(DistillationError, match=r"^b: There is no folder '/no/such/folder'"):
        load_contenders({"a": student, "b": "/no/such/folder"})
    with pytest.raises(DistillationError, match=r"^b: The folder .* has no config.json"):
        load_contenders({"a": student, "b": tmp_path})
    broken = Path(shutil.copytree(onnx, tmp_path / "broken"))
    (broken / "manifest.json").write_text("{}")
    with pytest.raises(DistillationError, match=r"^b: .*manifest.json is no manifest of an artefact"):
        load_contenders({"a": student, "b": broken})


def test_damaged_artefact_is_one_error(student: Path, onnx: Path, tmp_path: Path):
    broken = Path(shutil.copytree(onnx, tmp_path / "broken"))
    (broken / "model.onnx").write_bytes(b"cut")
    with pytest.raises(DistillationError, match=r"^b: .*model.onnx' is not whole"):
        load_contenders({"a": student, "b": broken})
