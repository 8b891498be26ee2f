"""What is written of a student that translates, and in which formats it is refused."""

from __future__ import annotations

from pathlib import Path

import pytest

from lightning_distilbert import DistillationModule, Translation
from lightning_distilbert.deploy.job import FORMATS, TRANSLATING, Job
from lightning_distilbert.errors import DistillationError
from lightning_distilbert.target_tokenizer import train_target_tokenizer
from tests.parallel_texts import student


@pytest.fixture
def module(tiny_bert_dir: Path) -> DistillationModule:
    made = DistillationModule(Translation(), student=student(tiny_bert_dir))
    made._target_tokenizer = train_target_tokenizer(["ein Hund"], 40)
    return made


@pytest.mark.parametrize("format", [name for name in FORMATS if name not in TRANSLATING])
def test_formats_that_hold_one_graph_are_refused(module: DistillationModule, format: str):
    with pytest.raises(DistillationError, match=rf"which {format} does not hold. The formats onnx and onnx-int8 do"):
        Job(module, format, 20)


def test_ranges_are_not_fixed_in_advance(module: DistillationModule):
    with pytest.raises(DistillationError, match="static=True is not for a student that translates"):
        Job(module, "onnx-int8", 20, static=True)


def test_a_target_tokenizer_is_needed(module: DistillationModule, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(Translation, "state", lambda task, module: {"target_tokenizer": "some/marian"})
    with pytest.raises(DistillationError, match=r"'some/marian' has no tokenizer.json"):
        Job(module, "onnx", 20)
    monkeypatch.undo()
    del module._target_tokenizer
    with pytest.raises(DistillationError, match="has no target tokenizer"):
        Job(module, "onnx", 20)


def test_both_graphs_are_told(module: DistillationModule):
    job = Job(module, "onnx", 20)
    assert list(job.graphs) == ["encoder_model.onnx", "decoder_model.onnx"]
    facts = job.facts("onnx-int8", "encoder_model_int8.onnx")
    assert (facts["model"], facts["decoder"]["model"]) == ("encoder_model_int8.onnx", "decoder_model_int8.onnx")
    assert facts["inputs"][0] == {"name": "input_ids", "dtype": "int64", "shape": ["batch", "sequence"]}
    assert facts["decoder"]["inputs"][-1] == {
        "name": "past_value_0",
        "dtype": "float32",
        "shape": ["batch", 1, "past", 32],
    }


def test_texts_are_written_beside_them(module: DistillationModule, tmp_path: Path):
    Job(module, "onnx", 20).write_texts(tmp_path)
    assert sorted(path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*.json")) == [
        *("config.json", "generation_config.json", "target_tokenizer/tokenizer.json"),
        *("target_tokenizer/tokenizer_config.json", "tokenizer.json", "tokenizer_config.json"),
    ]
