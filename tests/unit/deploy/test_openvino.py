from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from lightning_distilbert.deploy.engines import load_artefact
from lightning_distilbert.deploy.export import export
from lightning_distilbert.deploy.openvino import OpenVINOEngine, OpenVINOQuantizer, write_openvino
from lightning_distilbert.errors import DistillationError
from tests.students import FILMS

pytest.importorskip("openvino")
FACTS = {"inputs": [{"name": "input_ids"}, {"name": "attention_mask"}], "outputs": [{"name": "logits"}]}


def test_float_artefact(classifier: Path, films: list[dict[str, Any]], tmp_path: Path):
    done = export(classifier, tmp_path / "a", "openvino", films, min_retention=0.9)
    assert {"openvino_model.xml", "openvino_model.bin"} <= set(done.manifest["files"])
    assert done.size > 4 * done.manifest["parameters"]
    assert done.manifest["verification"]["computed_in"] in ("f32", "bf16", "f16")
    answers = load_artefact(done.folder, threads=1).predict(FILMS)
    assert sum(a["label"] == row["label"] for a, row in zip(answers, films, strict=True)) >= 0.9 * len(films)
    exact = OpenVINOEngine(done.folder / "openvino_model.xml", FACTS, threads=1, precision="f32")
    assert exact.precision == "f32"
    (done.folder / "openvino_model.bin").unlink()
    with pytest.raises(DistillationError, match="cannot be run by OpenVINO"):
        OpenVINOEngine(done.folder / "openvino_model.xml", FACTS)


def test_int8_artefact_by_calibration(classifier: Path, films: list[dict[str, Any]], tmp_path: Path):
    pytest.importorskip("nncf")
    done = export(classifier, tmp_path / "a", "openvino-int8", films, min_retention=0.3, calibration=FILMS[:10])
    assert done.manifest["quantization"]["calibration_rows"] == 10
    assert done.manifest["quantization"]["left_in_float"] == []
    assert 'element_type="i8"' in (done.folder / "openvino_model.xml").read_text()
    assert done.manifest["verification"]["max_difference"] > 1e-3


def test_blocks_in_float_are_not_quantised(exported: Path, tmp_path: Path):
    pytest.importorskip("nncf")
    row = {"input_ids": np.array([[2, 50, 3]]), "attention_mask": np.ones((1, 3), dtype=np.int64)}
    quantizer = OpenVINOQuantizer(exported / "model.onnx", [row] * 4)
    assert quantizer.blocks == ["embeddings", "layer 0", "layer 1", "head"]
    counts = []
    for left in ([], ["layer 1"]):
        quantizer.write(tmp_path, left)
        counts.append((tmp_path / "openvino_model.xml").read_text().count('type="FakeQuantize"'))
    assert counts[1] < counts[0]


def test_full_disk_is_an_error_of_the_disk(
    exported: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, room_for: Callable[..., AbstractContextManager]
):
    import openvino

    pytest.importorskip("nncf")
    row = {"input_ids": np.array([[2, 50, 3]]), "attention_mask": np.ones((1, 3), dtype=np.int64)}
    quantizer, save = OpenVINOQuantizer(exported / "model.onnx", [row] * 4), openvino.save_model

    def full(*arguments: Any, **options: Any) -> None:
        with room_for(1000):
            save(*arguments, **options)

    monkeypatch.setattr(openvino, "save_model", full)
    for write in (lambda: write_openvino(exported / "model.onnx", tmp_path), lambda: quantizer.write(tmp_path)):
        with pytest.raises(OSError, match=r"OpenVINO could not write openvino_model\.xml: .*iostream error"):
            write()

    def fail(*arguments: Any, **options: Any) -> None:
        raise RuntimeError("no such operator")

    monkeypatch.setattr(openvino, "save_model", fail)
    with pytest.raises(RuntimeError, match="no such operator"):
        write_openvino(exported / "model.onnx", tmp_path)


def test_room_is_asked_for_the_onnx_file_too(classifier: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    free = 2 * (classifier / "model.safetensors").stat().st_size
    monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=free))
    with pytest.raises(DistillationError, match="Make room"):
        export(classifier, tmp_path / "a", "openvino")


ENDS = """
import gc, signal, subprocess, sys
from pathlib import Path
from lightning_distilbert.deploy.openvino import OpenVINOEngine
facts = {"inputs": [{"name": "input_ids"}, {"name": "attention_mask"}], "outputs": [{"name": "logits"}]}
engines = [OpenVINOEngine(Path(sys.argv[1]), facts, threads=1) for _ in range(2)]
while engines:
    engines.pop(0)
    gc.collect()
signal.signal(signal.SIGCHLD, lambda *_: print("a child ended"))
subprocess.run([sys.executable, "-c", ""], timeout=60)
"""


def test_a_signal_after_engines_ended_does_not_kill_the_process(exported: Path, tmp_path: Path):
    graph = write_openvino(exported / "model.onnx", tmp_path)
    result = subprocess.run(
        [sys.executable, "-c", ENDS, str(tmp_path / graph)], capture_output=True, text=True, timeout=200
    )
    assert (result.returncode, result.stdout) == (0, "a child ended\n"), result.stderr[-2000:]
