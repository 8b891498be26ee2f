from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from lightning_distilbert import MaskedLM
from lightning_distilbert.deploy import quantization
from lightning_distilbert.deploy.quantization import OnnxQuantizer, has_vnni
from lightning_distilbert.deploy.runtime.session import Session

onnx = pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")

BATCH = {
    "input_ids": np.array([[2, 50, 60, 70, 3], [2, 80, 3, 0, 0]]),
    "attention_mask": np.array([[1] * 5, [1, 1, 1, 0, 0]]),
}


@pytest.mark.parametrize(
    ("machine", "text", "expected"),
    [
        ("x86_64", "flags : sse avx2 avx512f avx512_vnni", True),
        ("AMD64", "flags : avx2 avx_vnni", True),
        ("x86_64", "flags : sse avx2 avx512f", False),
        ("x86_64", None, False),
        ("aarch64", None, True),
    ],
)
def test_vnni_is_read_off_the_processor(
    machine: str, text: str | None, expected: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    if text is not None:
        (tmp_path / "cpuinfo").write_text(text)
    monkeypatch.setattr(quantization, "CPUINFO", tmp_path / "cpuinfo")
    monkeypatch.setattr(quantization.platform, "machine", lambda: machine)
    assert has_vnni() is expected


def weights(path: Path) -> list[np.ndarray]:
    arrays = [onnx.numpy_helper.to_array(item) for item in onnx.load(path).graph.initializer]
    return [array for array in arrays if array.dtype in (np.int8, np.uint8) and array.ndim == 2]


def test_products_and_tables_are_quantised_per_channel(exported: Path, tmp_path: Path):
    quantizer = OnnxQuantizer(exported / "model.onnx", reduce_range=False)
    assert quantizer.blocks == ["embeddings", "layer 0", "layer 1"]
    graph = onnx.load(tmp_path / quantizer.write(tmp_path)).graph
    kinds = [node.op_type for node in graph.node]
    assert kinds.count("MatMulInteger") == 2 * 6  # query, key, value, output and two of the feed-forward part
    scales = [item for item in graph.initializer if item.name.endswith("_scale") and max(item.dims, default=1) > 1]
    assert len(scales) == 2 * 6
    assert len(weights(tmp_path / "model_int8.onnx")) == 2 * 6 + 2
    assert (tmp_path / "model_int8.onnx").stat().st_size < 0.6 * (exported / "model.onnx").stat().st_size


def test_reduced_range_is_7_bits(exported: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(quantization, "has_vnni", lambda: False)
    largest = {}
    for reduce_range in (None, False):
        quantizer = OnnxQuantizer(exported / "model.onnx", reduce_range)
        products = [array for array in weights(tmp_path / quantizer.write(tmp_path)) if array.dtype == np.int8]
        largest[quantizer.reduce_range] = max(np.abs(array.astype(int)).max() for array in products)
    assert largest == {True: 64, False: 127}


def test_a_block_left_in_float_is_that_of_the_float_graph(exported: Path, tmp_path: Path):
    quantizer = OnnxQuantizer(exported / "model.onnx")
    quantizer.write(tmp_path, ["embeddings", "layer 1"])
    graph = onnx.load(tmp_path / quantizer.file).graph
    names = [node.name for node in graph.node if node.op_type == "MatMulInteger"]
    assert len(names) == 6
    assert all("layer.0" in name for name in names)
    assert quantizer.describe(["layer 1", "embeddings"])["left_in_float"] == ["embeddings", "layer 1"]


def test_static_ranges_make_rows_independent_of_their_batch(exported: Path, tmp_path: Path):
    def apart(quantizer: OnnxQuantizer) -> float:
        session = Session(tmp_path / quantizer.write(tmp_path))
        together = session.run(BATCH)["logits"][1]
        alone = session.run({name: array[1:, :3] for name, array in BATCH.items()})["logits"][0]
        return float(np.abs(together - alone).max())

    dynamic = OnnxQuantizer(exported / "model.onnx")
    static = OnnxQuantizer(exported / "model.onnx", calibration=[BATCH])
    assert static.describe()["method"] == "static"
    assert static.describe()["calibration_rows"] == 2
    assert apart(static) < 1e-5 < apart(dynamic)


def test_tied_weights_of_a_masked_language_model_are_quantised_in_both_places(tmp_path: Path):
    from transformers import DistilBertConfig, DistilBertForMaskedLM

    from lightning_distilbert.deploy.graph import Graph
    from lightning_distilbert.deploy.onnx import write_onnx

    # large enough that the exporter does not fold the transposed table itself
    config = DistilBertConfig(
        vocab_size=20000, dim=32, n_layers=1, n_heads=2, hidden_dim=32, max_position_embeddings=32
    )
    graph = Graph(MaskedLM(), DistilBertForMaskedLM(config), ["input_ids", "attention_mask"])
    write_onnx(graph, tmp_path / "model.onnx")
    quantizer = OnnxQuantizer(tmp_path / "model.onnx")
    quantizer.write(tmp_path)
    assert quantizer.blocks == ["embeddings", "layer 0", "head"]
    shapes = [array.shape for array in weights(tmp_path / quantizer.file)]
    assert (20000, 32) in shapes
    assert (32, 20000) in shapes
    mine = Session(tmp_path / quantizer.file).run(BATCH)["logits"]
    theirs = Session(tmp_path / "model.onnx").run(BATCH)["logits"]
    assert np.abs(mine - theirs).max() < 0.2 * theirs.std()
