from __future__ import annotations

import logging
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import BertConfig, BertForSequenceClassification

from lightning_distilbert import TextClassification
from lightning_distilbert.deploy import onnx as module
from lightning_distilbert.deploy.graph import Graph
from lightning_distilbert.deploy.onnx import opset_of, quietly, write_onnx
from lightning_distilbert.deploy.runtime.session import Session
from lightning_distilbert.errors import DistillationError

onnx = pytest.importorskip("onnx")
pytest.importorskip("onnxscript")

SIZES = {"vocab_size": 80, "hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 8}


def graph_of() -> Graph:
    config = BertConfig(**SIZES, max_position_embeddings=40, initializer_range=0.3)
    return Graph(TextClassification(2), BertForSequenceClassification(config), ["input_ids", "token_type_ids"])


def test_axes_are_of_any_size_and_padding_does_not_count(tmp_path: Path):
    graph = graph_of()
    write_onnx(graph, tmp_path / "model.onnx")
    session = Session(tmp_path / "model.onnx")
    assert session.inputs == ["input_ids", "attention_mask", "token_type_ids"]
    draw = np.random.default_rng(0)
    for rows, length in ((1, 1), (1, 40), (13, 9)):
        mask = (np.arange(length) < draw.integers(1, length + 1, size=(rows, 1))).astype(np.int64)
        ids = draw.integers(0, 80, size=(rows, length))
        batch = {"input_ids": ids, "attention_mask": mask, "token_type_ids": ids % 2}
        found = session.run(batch)["logits"]
        with torch.no_grad():
            (wanted,) = graph(**{name: torch.from_numpy(array) for name, array in batch.items()})
        np.testing.assert_allclose(found, wanted.numpy(), rtol=0, atol=1e-5)
        for row in range(rows):
            one = {name: array[row : row + 1, : mask[row].sum()] for name, array in batch.items()}
            np.testing.assert_allclose(session.run(one)["logits"][0], found[row], rtol=0, atol=1e-5)


def test_the_file_tells_parts_and_nothing_of_this_machine(exported: Path):
    model = onnx.load(exported / "model.onnx")
    names = [node.name for node in model.graph.node]
    assert any(name.startswith("distilbert.transformer.layer.1.ffn.lin1/") for name in names)
    kinds = {node.op_type for node in model.graph.node}
    assert {"LayerNormalization", "Gelu"} <= kinds  # as one operator each
    assert opset_of(exported / "model.onnx") == 20
    assert str(Path(torch.__file__).parents[1]).encode() not in (exported / "model.onnx").read_bytes()


def test_an_opset_that_the_exporter_does_not_write_is_refused(tmp_path: Path):
    with pytest.raises(DistillationError, match=r"cannot write a \w+ in ONNX's opset 13: it stays at 18"):
        write_onnx(graph_of(), tmp_path / "model.onnx", opset=13)
    assert not any(tmp_path.iterdir())


def test_another_opset(tmp_path: Path):
    write_onnx(graph_of(), tmp_path / "model.onnx", opset=18)
    assert opset_of(tmp_path / "model.onnx") == 18
    assert "Gelu" not in {node.op_type for node in onnx.load(tmp_path / "model.onnx").graph.node}
    Session(tmp_path / "model.onnx")


def test_failing_exporter_is_one_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    def fail(*args: object, **kwargs: object) -> None:
        try:
            raise ValueError("data-dependent\nand more")
        except ValueError as error:
            raise RuntimeError("This is step 1/3 of exporting the model") from error

    monkeypatch.setattr(torch.onnx, "export", fail)
    with pytest.raises(
        DistillationError, match=r"cannot export a Bert.* with opset 20 \(RuntimeError: data-dependent\)"
    ):
        write_onnx(graph_of(), tmp_path / "model.onnx")
    monkeypatch.setattr(module, "LIMIT", 1000)
    with pytest.raises(DistillationError, match="holds 2 GB at most"):
        write_onnx(graph_of(), tmp_path / "model.onnx")
    assert not any(tmp_path.iterdir())


def test_quiet_ends(caplog: pytest.LogCaptureFixture):
    with quietly():
        logging.warning("hidden")
    logging.warning("heard")
    assert caplog.messages == ["heard"]
