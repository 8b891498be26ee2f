"""Those that convert need the extra keras: `make test-keras` installs it into an environment of its own."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from lightning_distilbert import load
from lightning_distilbert.deploy import export, load_artefact
from lightning_distilbert.deploy.litert import LiteRTEngine
from lightning_distilbert.errors import DistillationError, MissingExtraError
from tests.students import FILMS, QUESTION, TASKS

# keras, keras_hub and tensorflow warn of their own code
pytestmark = [pytest.mark.keras, pytest.mark.filterwarnings("ignore")]

ALONE = """
import sys
import numpy as np
from ai_edge_litert.interpreter import Interpreter
run = Interpreter(sys.argv[1]).get_signature_runner()
ids = np.ones((3, 5), dtype=np.int32)
print(run(input_ids=ids, attention_mask=ids)["logits"].shape, [name for name in sys.modules if "tensorflow" == name])
"""


def packages() -> None:
    pytest.importorskip("keras_hub", reason="needs the extra keras (make test-keras)")
    pytest.importorskip("ai_edge_litert", reason="needs the extra keras (make test-keras)")


def test_phone_artefact_answers_as_the_student(classifier: Path, films: list[dict[str, Any]], tmp_path: Path):
    packages()
    done = export(classifier, tmp_path / "a", "litert", films)
    assert done.manifest["inputs"][1] == {"name": "attention_mask", "dtype": "int32", "shape": ["batch", "sequence"]}
    assert {"keras", "keras-hub", "tensorflow", "ai-edge-litert"} <= set(done.manifest["versions"])
    assert done.retention == 1.0
    wanted = [item["label"] for item in load(classifier).predict(FILMS)]
    assert [item["label"] for item in load_artefact(done.folder, threads=1).predict(FILMS)] == wanted
    # any batch of any length, by the runtime alone
    said = subprocess.run(
        [sys.executable, "-c", ALONE, done.folder / "model.tflite"], capture_output=True, text=True, check=True
    )
    assert said.stdout.strip() == "(3, 2) []"
    (tmp_path / "half.tflite").write_bytes((done.folder / "model.tflite").read_bytes()[:100])
    with pytest.raises(DistillationError, match="cannot be run by LiteRT"):
        LiteRTEngine(tmp_path / "half.tflite", done.manifest)


def test_full_disk_under_its_writer(full_disk: Callable[..., dict[str, list[Any]]]):
    packages()
    code, lines = full_disk("litert")["litert"]
    assert (code, len(lines)) == (2, 1)
    assert "File too large" in lines[0]  # TensorFlow's own words: it writes to its own folder first


def test_outputs_go_by_their_names(tmp_path: Path):
    packages()
    save, _ = TASKS["questions"]
    folder = save(tmp_path)
    done = export(folder, tmp_path / "a", "litert")
    found, wanted = load_artefact(done.folder).predict([QUESTION])[0], load(folder).predict([QUESTION])[0]
    assert (found["start"], found["end"]) == (wanted["start"], wanted["end"])


def test_other_backends_are_refused(classifier: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    packages()
    import keras

    monkeypatch.setattr(keras.backend, "backend", lambda: "jax")
    with pytest.raises(DistillationError, match="Keras runs on jax here"):
        export(classifier, tmp_path / "a", "litert")
    assert not (tmp_path / "a").exists()


def test_converter_that_fails_is_one_error(classifier: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    packages()
    import keras

    def fail(*args: Any, **kwargs: Any) -> None:
        raise RuntimeError("some ops are not supported\nmany lines")

    monkeypatch.setattr(keras.Model, "export", fail)
    with pytest.raises(DistillationError, match=r"cannot convert a DistilBertFor.*RuntimeError: some ops are not supp"):
        export(classifier, tmp_path / "a", "litert")
    assert not (tmp_path / "a").exists()


def test_missing_package_names_the_extra(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, "ai_edge_litert.interpreter", None)
    with pytest.raises(MissingExtraError, match=r"lightning-distilbert\[keras\]"):
        LiteRTEngine(tmp_path / "model.tflite", {"inputs": [], "outputs": []})
