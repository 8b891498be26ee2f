"""A folder that is no whole artefact of this runtime is refused, each with its reason."""

from __future__ import annotations

import inspect
import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from lightning_distilbert import DistillationError, DistillationModule, Student, folder, load, tasks
from lightning_distilbert.deploy import runtime
from lightning_distilbert.deploy.runtime.folder import DEFAULTS, OFFSET_POSITIONS, describe
from tests.artefacts import make_artefact, seal


@pytest.fixture(scope="module")
def student(tiny_teacher_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("students") / "student"
    task = tasks.TextClassification(labels=["bad", "good"])
    DistillationModule(task, student=Student(source=str(tiny_teacher_dir), layers=1)).save_student(path)
    return path


@pytest.fixture(scope="module")
def made(student: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_artefact(student, tmp_path_factory.mktemp("artefacts") / "whole")


@pytest.fixture
def artefact(made: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(made, tmp_path / "artefact"))


def change(artefact: Path, name: str = "config.json", **values: Any) -> Path:
    """Change a file of JSON; what is None is dropped."""
    told = json.loads((artefact / name).read_text()) | values
    (artefact / name).write_text(json.dumps({key: value for key, value in told.items() if value is not None}))
    return artefact


def changed_task(artefact: Path, **values: Any) -> Path:
    details = json.loads((artefact / "config.json").read_text())["lightning_distilbert"]
    return change(artefact, lightning_distilbert=details | values)


def test_a_whole_artefact_loads_however_it_is_verified(artefact: Path, student: Path):
    wanted = load(student).predict(["a great film"])
    for verify in ("model", "all", "none"):
        assert runtime.load(artefact, verify=verify).predict(["a great film"])[0]["label"] == wanted[0]["label"]
    assert runtime.load(str(artefact), threads=1).labels == ("bad", "good")
    assert repr(runtime.load(artefact)) == "Artefact(TextClassification, labels=('bad', 'good'), max_length=64)"


def test_what_is_no_artefact_is_refused(artefact: Path, student: Path, tmp_path: Path):
    with pytest.raises(DistillationError, match="There is no folder"):
        runtime.load(tmp_path / "nothing")
    with pytest.raises(DistillationError, match="There is no folder"):
        runtime.load(artefact / "model.onnx")
    with pytest.raises(DistillationError, match=r"no manifest\.json, so it is no artefact"):
        runtime.load(student)
    with pytest.raises(DistillationError, match=r"verify=.* 'some': choose one of 'model', 'all', 'none'"):
        runtime.load(artefact, verify="some")


@pytest.mark.parametrize("name", ["model.onnx", "tokenizer.json", "tokenizer_config.json", "config.json"])
def test_a_missing_file_is_named(artefact: Path, name: str):
    (artefact / name).unlink()
    for verify in ("model", "all", "none"):
        with pytest.raises(DistillationError, match=name.replace(".", r"\.")):
            runtime.load(artefact, verify=verify)


def test_a_changed_model_is_not_run(artefact: Path):
    data = bytearray((artefact / "model.onnx").read_bytes())
    data[len(data) // 2] ^= 1
    (artefact / "model.onnx").write_bytes(data)
    for verify in ("model", "all"):
        with pytest.raises(DistillationError, match=r"model\.onnx' is not the file that was exported: its SHA-256"):
            runtime.load(artefact, verify=verify)
    runtime.load(artefact, verify="none")


def test_a_changed_tokenizer_is_found_where_all_files_are_verified(artefact: Path):
    with (artefact / "tokenizer.json").open("a") as file:
        file.write("\n")
    runtime.load(artefact)
    with pytest.raises(DistillationError, match=r"tokenizer\.json' is not whole"):
        runtime.load(artefact, verify="all")


@pytest.mark.parametrize("share", [0.0, 0.001, 0.5, 0.99])
def test_a_truncated_model_is_refused(artefact: Path, share: float):
    data = (artefact / "model.onnx").read_bytes()
    (artefact / "model.onnx").write_bytes(data[: int(share * len(data))])
    with pytest.raises(DistillationError, match=r"model\.onnx' is not whole"):
        runtime.load(artefact)
    with pytest.raises(DistillationError, match=r"model\.onnx' cannot be run by onnxruntime .*Is the file whole\?"):
        runtime.load(seal(artefact))


def test_weights_in_a_file_of_their_own_are_verified_with_the_model(artefact: Path):
    (artefact / "model.onnx.data").write_bytes(b"weights")
    runtime.load(seal(artefact))
    (artefact / "model.onnx.data").write_bytes(b"weighty")
    with pytest.raises(DistillationError, match=r"model\.onnx\.data' is not the file"):
        runtime.load(artefact)


def test_the_model_is_the_one_that_the_manifest_names(artefact: Path):
    (artefact / "model.onnx").rename(artefact / "model_int8.onnx")
    assert describe(seal(artefact, model="model_int8.onnx")).model.name == "model_int8.onnx"
    for name in ("openvino_model.xml", "openvino_model.bin"):
        (artefact / name).write_text("")
    with pytest.raises(DistillationError, match=r"format 'openvino', and this runtime runs ONNX"):
        runtime.load(seal(artefact, model="openvino_model.xml", format="openvino"))
    change(artefact, "manifest.json", model="model_int8.onnx", files={})
    with pytest.raises(DistillationError, match=r"does not list 'model_int8\.onnx'"):
        runtime.load(artefact)


@pytest.mark.parametrize("content", ["{", "[]", "\xff"])
def test_a_damaged_config_is_refused(artefact: Path, content: str):
    (artefact / "config.json").write_bytes(content.encode("latin-1"))
    with pytest.raises(DistillationError, match=r"config\.json (cannot be read|holds no JSON object)"):
        runtime.load(artefact)


@pytest.mark.parametrize("name", ["my_package.Task", "lightning_distilbert.tasks.base.Task", "os.system"])
def test_a_task_of_another_kind_is_refused(artefact: Path, name: str):
    with pytest.raises(DistillationError, match=f"names the task '{name}', which this runtime does not know"):
        runtime.load(changed_task(artefact, task={"class_path": name}))


def test_a_task_of_two_graphs_is_no_task_of_one(artefact: Path):
    told = {"class_path": "lightning_distilbert.tasks.translation.Translation"}
    with pytest.raises(DistillationError, match=r"holds model\.onnx, and its task is Translation"):
        runtime.load(changed_task(artefact, task=told))


def test_a_folder_without_a_task_is_refused(artefact: Path):
    with pytest.raises(DistillationError, match="names no task of lightning_distilbert"):
        runtime.load(change(artefact, lightning_distilbert=None))


@pytest.mark.parametrize("values", [{"no_answer": "0.5"}, {"no_answer": True}, [0.5]])
def test_thresholds_are_numbers(artefact: Path, values: Any):
    with pytest.raises(DistillationError, match="they are numbers by name"):
        runtime.load(changed_task(artefact, thresholds=values))


def test_a_model_of_another_task_is_refused(artefact: Path):
    path = "lightning_distilbert.tasks.question_answering.QuestionAnswering"
    with pytest.raises(DistillationError, match=r"reads 'start_logits' .* which gives logits \(2 axes\)"):
        runtime.load(changed_task(artefact, task={"class_path": path})).predict([("a", "b")])


def test_labels_come_from_the_config_where_the_task_names_none(artefact: Path):
    path = "lightning_distilbert.tasks.text_classification.TextClassification"
    changed_task(artefact, task={"class_path": path, "init_args": {"num_labels": 2}})
    assert runtime.load(artefact).labels == ("bad", "good")
    change(artefact, id2label={"0": "LABEL_0", "1": "LABEL_1"})
    assert runtime.load(artefact).labels is None
    assert runtime.load(artefact).predict(["a film"])[0]["label"] in ("0", "1")


def test_the_model_s_positions_limit_texts_too(artefact: Path):
    change(artefact, "tokenizer_config.json", model_max_length=10**30)
    assert runtime.load(artefact).max_length == 64
    assert len(runtime.load(artefact).predict(["a film " * 100])) == 1
    assert describe(change(artefact, model_type="roberta", pad_token_id=1)).positions == 62
    change(artefact, "tokenizer_config.json", model_max_length=20)
    assert runtime.load(artefact).max_length == 20


def test_what_is_known_here_is_what_the_package_knows():
    assert OFFSET_POSITIONS == folder.OFFSET_POSITIONS
    assert set(DEFAULTS) == set(tasks.__all__) - {"Task"}
    for name, options in DEFAULTS.items():
        parameters = inspect.signature(getattr(tasks, name)).parameters
        assert {key: parameters[key].default for key in options} == options


@pytest.mark.parametrize("threads", [0, -1, "two"])
def test_bad_threads_are_refused(artefact: Path, threads: Any):
    with pytest.raises(DistillationError, match="threads="):
        runtime.load(artefact, threads=threads)
