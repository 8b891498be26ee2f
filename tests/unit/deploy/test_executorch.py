"""Most of these need the extra executorch: `make test-executorch` installs it into an environment of its own."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from lightning_distilbert import load
from lightning_distilbert.deploy.engines import load_artefact
from lightning_distilbert.deploy.executorch import ExecuTorchEngine, write_executorch
from lightning_distilbert.deploy.export import export
from lightning_distilbert.deploy.graph import Graph
from lightning_distilbert.errors import DistillationError, MissingExtraError
from tests.students import FILMS, QUESTION, TASKS

# executorch and torchao warn of their own code when they are imported
pytestmark = pytest.mark.filterwarnings("ignore")


def executorch() -> Any:
    return pytest.importorskip("executorch.runtime", reason="needs the extra executorch (make test-executorch)")


def test_phone_artefact_answers_as_the_student(classifier: Path, films: list[dict[str, Any]], tmp_path: Path):
    executorch()
    done = export(classifier, tmp_path / "a", "executorch", films)
    assert done.manifest["inputs"][0]["shape"] == [1, "sequence"]
    assert done.retention == 1.0
    assert load_artefact(done.folder).predict(FILMS[:1])[0]["label"] == films[0]["label"]
    (tmp_path / "half.pte").write_bytes((done.folder / "model.pte").read_bytes()[:100])
    with pytest.raises(DistillationError, match="cannot be run by ExecuTorch"):
        ExecuTorchEngine(tmp_path / "half.pte", done.manifest)


def test_questions_of_any_length(tmp_path: Path):
    executorch()
    save, _ = TASKS["questions"]
    folder = save(tmp_path)
    done = export(folder, tmp_path / "a", "executorch")
    found, wanted = load_artefact(done.folder).predict([QUESTION])[0], load(folder).predict([QUESTION])[0]
    assert (found["start"], found["end"]) == (wanted["start"], wanted["end"])


def test_missing_package_names_the_extra(classifier: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    import sys

    monkeypatch.setitem(sys.modules, "executorch.exir", None)
    module = load(classifier)
    graph = Graph(module.task, module.student, module.tokenizer.model_input_names)
    with pytest.raises(MissingExtraError, match=r"lightning-distilbert\[executorch\]"):
        write_executorch(graph, tmp_path, 64)
