"""Translation to the device: exported in eight bits from the command line, and kept from losing too much."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from lightning_distilbert import DistillationError, Translation, load
from lightning_distilbert.cli import main
from lightning_distilbert.deploy import export, read_manifest, runtime, verify
from tests.parallel_texts import PAIRS, ROWS, TEXTS, save_parallel, save_translator

pytest.importorskip("onnxscript")
pytest.importorskip("onnxruntime")

WANTED = [translation for _, translation in PAIRS]


@pytest.fixture(scope="module")
def translator(tiny_bert_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_translator(tiny_bert_dir, tmp_path_factory.mktemp("tiny") / "translator")


def test_eight_bits_from_the_command_line(translator: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    files, target = save_parallel(tmp_path / "texts"), tmp_path / "artefact"
    command = ["export", "--model", str(translator), "--format", "onnx-int8", "--output", str(target)]
    main([*command, "--evaluate", str(files / "val"), "--languages", "en", "de", "--min_retention", "0.9"])
    said = capsys.readouterr().out
    assert "onnx-int8" in said
    assert "bleu on val (validation): student 100.0000, artefact" in said
    manifest = read_manifest(target)
    models = {"encoder_model_int8.onnx", "decoder_model_int8.onnx"}
    assert models == {name for name in manifest["files"] if name.endswith(".onnx")}
    assert manifest["quantization"]["left_in_float"] == []
    assert 1e-4 < manifest["verification"]["max_difference"] < 0.2 * manifest["verification"]["output_spread"]
    size = sum((target / name).stat().st_size for name in models)
    assert f"{size / 1e6:.1f} MB" in said
    assert runtime.load(target).translate(TEXTS) == WANTED
    assert sorted(item.name for item in tmp_path.iterdir()) == ["artefact", "texts"]
    # two columns of rows are no pair of texts
    with pytest.raises(DistillationError, match="and text names"):
        export(translator, tmp_path / "b", evaluation=ROWS, reading={"text": ["source", "target"]})


def test_what_loses_too_much_is_not_kept(translator: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    kept = verify.retention

    def strict(own: float, student: float, mode: str) -> float:
        return kept(own, student, mode) if calls.pop(0) else 0.5

    calls: list[Any] = [False, True]
    monkeypatch.setattr(verify, "retention", strict)
    monkeypatch.setattr("lightning_distilbert.deploy.sensitivity.mixtures", lambda ranked: moved.extend(ranked) or [])
    moved: list[str] = []
    # another search than that of the folder goes along with the module
    module = load(translator, task=Translation(num_beams=1, max_length=2))
    with pytest.raises(DistillationError, match=r"onnx-int8 keeps 50.00% of the student's bleu .* The onnx artefact"):
        export(module, tmp_path / "a", "onnx-int8", ROWS)
    # each part of both graphs was quantised alone
    assert sorted(moved) == [
        *("decoder embeddings", "decoder head", "decoder layer 0"),
        *("encoder embeddings", "encoder layer 0", "encoder layer 1"),
    ]
    manifest = read_manifest(tmp_path / "a")
    assert (manifest["format"], manifest["model"]) == ("onnx", "encoder_model.onnx")
    assert manifest["decoder"]["model"] == "decoder_model.onnx"
    assert not list((tmp_path / "a").glob("*int8*"))
    assert runtime.load(tmp_path / "a").translate(TEXTS) == module.predict(TEXTS) != WANTED
