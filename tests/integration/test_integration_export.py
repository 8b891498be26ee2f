"""A student of each task, exported, answers as it did, through each runtime."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from lightning_distilbert import load
from lightning_distilbert.deploy import export, load_artefact, runtime
from tests.students import TASKS

pytest.importorskip("onnxscript")
pytest.importorskip("onnxruntime")


def same(mine: Any, theirs: Any) -> bool:
    """Tell whether two answers are equal, numbers within 1e-3."""
    if isinstance(mine, float) or isinstance(theirs, float):
        return abs(float(mine) - float(theirs)) < 1e-3
    if isinstance(mine, dict):
        return mine.keys() == theirs.keys() and all(same(mine[name], theirs[name]) for name in mine)
    if isinstance(mine, (list, tuple)):
        return len(mine) == len(theirs) and all(same(*pair) for pair in zip(mine, theirs, strict=True))
    return mine == theirs


@pytest.mark.parametrize("task", TASKS)
def test_each_task_answers_as_before(task: str, tmp_path: Path):
    save, questions = TASKS[task]
    student = save(tmp_path)
    wanted = load(student).predict(questions)
    done = export(student, tmp_path / "artefact")
    assert done.manifest["verification"]["max_difference"] < 1e-3 * done.manifest["verification"]["output_spread"]
    assert same(load_artefact(done.folder).predict(questions), wanted)
    assert same(runtime.load(done.folder).predict(questions), wanted)
