"""A student of each task, exported to each format, answers as it did, through each runtime."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from lightning_distilbert import load
from lightning_distilbert.deploy import export, job, load_artefact, runtime
from tests.students import TASKS

pytest.importorskip("onnxscript")
pytest.importorskip("onnxruntime")

# the packages that a format needs beside these, and its options
FORMATS: dict[str, tuple[tuple[str, ...], dict[str, Any]]] = {
    "onnx": ((), {}),
    "torch-export": ((), {}),
    "openvino": (("openvino",), {}),
    "onnx-int8": ((), {"min_retention": 0}),
    "onnx-int8 static": ((), {"min_retention": 0, "static": True}),
    "openvino-int8": (("openvino", "nncf"), {"min_retention": 0}),
}


def same(mine: Any, theirs: Any, names: bool = True) -> bool:
    """Tell whether two answers are equal, numbers within 1e-3, and filled-in tokens too if they are asked for."""
    if isinstance(mine, float) or isinstance(theirs, float):
        return abs(float(mine) - float(theirs)) < 1e-3
    if isinstance(mine, dict):
        told = [name for name in mine if names or name != "token"]
        return mine.keys() == theirs.keys() and all(same(mine[name], theirs[name], names) for name in told)
    if isinstance(mine, (list, tuple)):
        return len(mine) == len(theirs) and all(same(*pair, names) for pair in zip(mine, theirs, strict=True))
    if isinstance(mine, np.ndarray):
        return same(mine.tolist(), np.asarray(theirs).tolist())
    return bool(mine == theirs)


def kind(answer: Any) -> Any:
    """Return what stays of an answer whatever it says: its names, or the size of a vector."""
    if isinstance(answer, dict):
        return sorted(answer)
    return len(answer) if isinstance(answer, np.ndarray) else type(answer)


class Students:
    """Saved students, each with the ONNX file of its graph, which is the same for all formats, made once."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.made: dict[str, Path] = {}
        self.task = ""

    def __call__(self, task: str) -> Path:
        self.task = task
        if task not in self.made:
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(0)
                self.made[task] = TASKS[task][0](self.folder / task)
        return self.made[task]

    def write_onnx(self, graph: Any, path: Path, opset: int) -> None:
        kept = self.folder / self.task / "model.onnx"
        if not kept.exists():
            write_onnx(graph, kept, opset)
        shutil.copy(kept, path)


write_onnx = job.write_onnx


@pytest.fixture(scope="module")
def students(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Students]:
    made = Students(tmp_path_factory.mktemp("students"))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(job, "write_onnx", made.write_onnx)
        yield made


def cases() -> list[Any]:
    """Return each task with each format; reranking has the output of classification, and is slow in all but one."""
    slow = {("reranking", format) for format in FORMATS} - {("reranking", "onnx")}
    pairs = [(task, format) for task in TASKS for format in FORMATS]
    return [pytest.param(*pair, marks=[pytest.mark.slow] if pair in slow else []) for pair in pairs]


@pytest.mark.parametrize(("task", "format"), cases())
def test_each_task_answers_as_before(task: str, format: str, tmp_path: Path, students: Students):
    packages, options = FORMATS[format]
    for package in packages:
        pytest.importorskip(package)
    questions, student = TASKS[task][1], students(task)
    if options.get("static") or format == "openvino-int8":
        options = options | {"calibration": questions}
    done = export(student, tmp_path / "artefact", format.split()[0], **options)
    if format == "openvino":  # in which of its precisions it runs is the processor's choice
        (done.folder / "manifest.json").write_text(json.dumps(done.manifest | {"precision": "f32"}))
    artefact, wanted = load_artefact(done.folder), load(student).predict(questions)
    found, measured = artefact.predict(questions), done.manifest["verification"]
    if "min_retention" not in options:
        assert same(found, wanted)
    else:  # answers of random weights change in eight bits: that they are those of the file is what can be told
        assert [kind(answer) for answer in found] == [kind(answer) for answer in wanted]
        limit = 1 if format == "openvino-int8" else 0.2  # its ranges are those of the few questions
        assert 1e-4 < measured["mean_difference"] / measured["output_spread"] < limit
        assert done.manifest["quantization"]["method"] == ("dynamic" if format == "onnx-int8" else "static")
    if format.startswith("onnx"):
        alone = runtime.load(done.folder)
        for question in questions:  # alone, since ranges of a batch are those of all its rows
            mine, theirs = alone.predict([question]), artefact.predict([question])
            # fixed ranges give many tokens one and the same score, and then any of them may be the fifth
            assert same(mine, list(theirs), names="static" not in format)
