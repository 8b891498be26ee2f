from __future__ import annotations

import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import BertConfig, BertForTokenClassification

import lightning_distilbert
from lightning_distilbert import TokenClassification
from lightning_distilbert.deploy.graph import Graph
from lightning_distilbert.deploy.torch_export import TorchEngine, trace, write_torch
from lightning_distilbert.errors import DistillationError

SIZES = {"vocab_size": 80, "hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 8}


@pytest.fixture
def graph() -> Graph:
    config = BertConfig(**SIZES, max_position_embeddings=40, num_labels=3, initializer_range=0.3)
    return Graph(TokenClassification(3), BertForTokenClassification(config), ["input_ids", "attention_mask"])


def test_program_runs_rows_of_any_size(graph: Graph, tmp_path: Path):
    facts = {"inputs": [{"name": name} for name in graph.inputs], "outputs": [{"name": "logits"}]}
    engine = TorchEngine(tmp_path / write_torch(graph, tmp_path), facts, threads=1)
    for shape in ((1, 1), (1, 40), (9, 5)):
        ids = np.random.default_rng(0).integers(0, 80, size=shape)
        batch = {"input_ids": ids, "attention_mask": (ids > 10).astype(np.int64)}
        batch["attention_mask"][:, 0] = 1
        found = engine.run(batch)["logits"]
        with torch.no_grad():
            (wanted,) = graph(**{name: torch.from_numpy(array) for name, array in batch.items()})
        np.testing.assert_allclose(found, wanted.numpy(), atol=1e-5)


def test_program_does_not_tell_where_files_lie(graph: Graph, tmp_path: Path):
    with zipfile.ZipFile(tmp_path / write_torch(graph, tmp_path)) as program:
        parts = {name: program.read(name) for name in program.namelist()}
    assert any(b"BertForTokenClassification" in part for part in parts.values())  # notes of the model itself stay
    own = str(Path(lightning_distilbert.__file__).parent).encode()
    assert [name for name, part in parts.items() if own in part or b"site-packages" in part] == []


def test_program_of_one_row_at_a_time_has_a_limit(graph: Graph):
    program = trace(graph, longest=40)
    first = next(node for node in program.graph.nodes if node.name == "input_ids")
    assert first.meta["val"].shape[0] == 1
    assert [limit.upper for limit in program.range_constraints.values()] == [40]


def test_failures_are_one_error(graph: Graph, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    (tmp_path / "model.pt2").write_bytes(b"half")
    with pytest.raises(DistillationError, match="cannot be loaded by torch"):
        TorchEngine(tmp_path / "model.pt2", {"inputs": [], "outputs": []})

    def fail(*args: object, **kwargs: object) -> None:
        raise RuntimeError("data-dependent")

    monkeypatch.setattr(torch.export, "export", fail)
    with pytest.raises(DistillationError, match=r"cannot export a BertFor.* \(RuntimeError: data-dependent\)"):
        trace(graph)
