from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from lightning_distilbert import DistillationError
from lightning_distilbert.deploy.runtime.session import Session


def make_graph(folder: Path, name: str = "input_ids", output: str = "logits", kind: int = TensorProto.INT64) -> Path:
    """Write a graph that looks tokens up in a table of five rows."""
    table = helper.make_tensor("table", TensorProto.FLOAT, [5, 2], list(range(10)))
    graph = helper.make_graph(
        [helper.make_node("Gather", ["table", name], [output])],
        "graph",
        [helper.make_tensor_value_info(name, kind, ["batch", "sequence"])],
        [helper.make_tensor_value_info(output, TensorProto.FLOAT, ["batch", "sequence", 2])],
        [table],
    )
    path = folder / "model.onnx"
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9), path)
    return path


def pad(rows: Any) -> dict[str, np.ndarray]:
    longest = max(len(row["input_ids"]) for row in rows)
    return {"input_ids": np.array([[*row["input_ids"], *[0] * (longest - len(row["input_ids"]))] for row in rows])}


TOKENIZER: Any = SimpleNamespace(pad=pad)
ROWS = [{"input_ids": np.ones(size, dtype=np.int64)} for size in (3, 1, 40, 2, 9, 8, 1)]


def test_rows_go_through_in_batches_of_similar_length_that_keep_the_budget(tmp_path: Path):
    session = Session(make_graph(tmp_path), threads=1)
    parts = [part for part, _, _ in session.run_rows(TOKENIZER, ROWS, budget=20)]
    assert parts == [[2], [4, 5], [0, 3, 1, 6]]
    assert [part for part, _, _ in session.run_rows(TOKENIZER, ROWS, batch_size=5)] == [[2, 4, 5, 0, 3], [1, 6]]
    shapes = [outputs["logits"].shape for _, _, outputs in session.run_rows(TOKENIZER, ROWS, budget=20)]
    assert shapes == [(1, 40, 2), (2, 9, 2), (4, 3, 2)]
    assert list(session.run_rows(TOKENIZER, [])) == []
    with pytest.raises(DistillationError, match="batch_size=True"):
        list(session.run_rows(TOKENIZER, ROWS, batch_size=True))


def test_a_failing_batch_says_how_large_it_was(tmp_path: Path):
    session = Session(make_graph(tmp_path))
    with pytest.raises(DistillationError, match=r"batch of 2 texts of up to 3 tokens .*element out of data bounds"):
        session.run({"input_ids": np.full((2, 3), 99)})


def test_the_output_is_the_named_one_or_the_only_one(tmp_path: Path):
    session = Session(make_graph(tmp_path, output="result"))
    assert session.output(("logits", "output"), rank=3) == "result"
    assert session.width("result") == 2
    with pytest.raises(DistillationError, match=r"reads 'logits' with 2 axes .* gives result \(3 axes\)"):
        session.output(("logits", "output"), rank=2)
    with pytest.raises(DistillationError, match="reads 'start_logits'"):
        session.output(("start_logits",), rank=3)


def test_a_graph_of_something_else_is_refused(tmp_path: Path):
    with pytest.raises(DistillationError, match="takes pixels, and there are input_ids"):
        Session(make_graph(tmp_path, name="pixels"))
