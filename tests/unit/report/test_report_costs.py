from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from lightning_distilbert.errors import DistillationError
from lightning_distilbert.report import costs
from lightning_distilbert.report.costs import Start, main, measure_start, median_start, peak_memory
from tests.artefacts import make_artefact
from tests.students import TASKS


def test_artefact_answers_in_a_process_of_its_own_without_torch(onnx: Path):
    before = time.perf_counter()
    found = measure_start(onnx, "TextClassification", "onnx", 1)
    assert 0 < found.seconds < time.perf_counter() - before
    assert list(found.parts) == ["python", "import", "load", "answer"]
    assert sum(found.parts.values()) == pytest.approx(found.seconds)
    assert all(part >= 0 for part in found.parts.values())
    assert 20 < found.peak_mb < 250  # torch alone takes more


@pytest.mark.parametrize("task", ["classification", "questions", "reranking", "mlm", "retrieval", "tokens"])
def test_model_of_each_task_answers(task: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    student = TASKS[task][0](tmp_path)
    name = json.loads((student / "config.json").read_text())["lightning_distilbert"]["task"]["class_path"]
    facts = {"folder": str(student), "task": name.rpartition(".")[2], "threads": 1, "began": time.time()}
    main({**facts, "format": "transformers"})
    found = Start(**json.loads(capsys.readouterr().out))
    assert found.seconds == pytest.approx(sum(found.parts.values()))
    pytest.importorskip("onnx")
    pytest.importorskip("onnxruntime")
    main({**facts, "format": "onnx", "folder": str(make_artefact(student, tmp_path / "onnx"))})
    assert Start(**json.loads(capsys.readouterr().out)).peak_mb > 0


def test_artefact_that_needs_torch_is_run_by_its_engine(onnx: Path, monkeypatch: pytest.MonkeyPatch, capsys):
    seen = []
    from lightning_distilbert import deploy

    real = deploy.load_artefact
    monkeypatch.setattr(deploy, "load_artefact", lambda *given: seen.append(given) or real(*given))
    facts = {"folder": str(onnx), "task": "TextClassification", "format": "torch-export", "threads": 1}
    main({**facts, "began": time.time()})
    assert seen == [(str(onnx), 1)]
    assert json.loads(capsys.readouterr().out)["seconds"] > 0


def test_process_that_fails_is_one_error(tmp_path: Path):
    with pytest.raises(
        DistillationError, match=r"'.*nothing' gave no answer .*exit status 1: .*no folder.* --starts 0"
    ):
        measure_start(tmp_path / "nothing", "TextClassification", "onnx", 1)


def test_memory_is_not_that_of_the_process_that_started_it():
    big = bytearray(300_000_000)
    big[::4096] = b"x" * len(big[::4096])
    code = "from lightning_distilbert.report.costs import peak_memory; print(peak_memory())"
    path = str(Path(costs.__file__).parents[2])
    run = subprocess.run([sys.executable, "-c", code], env={**os.environ, "PYTHONPATH": path}, capture_output=True)
    assert float(run.stdout) < 100
    assert peak_memory() > 300


def test_medians():
    starts = [Start(3.0, {"load": 1.0}, 100.0), Start(9.0, {"load": 5.0}, 300.0), Start(4.0, {"load": 2.0}, 90.0)]
    assert median_start(starts) == Start(4.0, {"load": 2.0}, 100.0)
