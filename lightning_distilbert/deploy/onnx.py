"""A student's graph as an ONNX file in float32."""

from __future__ import annotations

import contextlib
import logging
import re
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from lightning_distilbert.errors import DistillationError, require
from lightning_distilbert.loading import short
from lightning_distilbert.placing import is_disk_error

FLOAT_FILE = "model.onnx"
# the first that has GELU as one operator; layer normalisation is one since 17. onnxruntime runs it from 1.17 on
OPSET = 20
LIMIT = 2 * 1024**3  # of a file of protocol buffers


def write_onnx(graph: Any, path: Path, opset: int = OPSET) -> None:
    """Export a graph with batch and sequence of any size.

    Nodes are called by the part of the model that they come from (``encoder.layer.0.output.dense/node_MatMul_9``).
    What the exporter notes about the machine, such as paths of source files, is left out.

    Args:
        graph: A `Graph`, or one of the two of a `Seq2SeqGraph`.
        path: The file to write.
        opset: The version of ONNX's operator set.

    Raises:
        DistillationError: If the exporter fails or does not know the operator set, or the weights are too large for one
            file.
    """
    onnx = require("onnx", "onnx")
    require("onnxscript", "onnx")
    size = sum(tensor.numel() * tensor.element_size() for tensor in graph.state_dict().values())
    if size >= LIMIT:
        raise DistillationError(f"The weights have {size / 1e9:.1f} GB, and an ONNX file holds 2 GB at most.")
    inputs = graph.example()
    try:
        with quietly():
            program = torch.onnx.export(
                graph,
                kwargs=inputs,
                input_names=list(graph.inputs),
                output_names=list(graph.outputs),
                dynamic_shapes=graph.axes(),
                opset_version=opset,
                dynamo=True,
                external_data=False,
                verbose=False,
            )
        assert program is not None
        model = program.model_proto
    except Exception as error:  # each stage of the exporter has errors of its own
        if is_disk_error(error):
            raise
        raise DistillationError(
            f"torch {torch.__version__} cannot export a {type(graph.model).__name__} to ONNX with opset {opset} "
            f"({type(error).__name__}: {_cause(error)})."
        ) from error
    if (written := _opset(model)) != opset:  # the exporter tells it in a warning alone, and its file may not even run
        raise DistillationError(
            f"torch {torch.__version__} cannot write a {type(graph.model).__name__} in ONNX's opset {opset}: it stays "
            f"at {written}. Choose another --opset; the default is {OPSET}."
        )
    _tidy(model)
    onnx.save(model, str(path))


def opset_of(path: Path) -> int:
    """Return the version of ONNX's own operator set that a file asks for.

    Args:
        path: The file.
    """
    return _opset(require("onnx", "onnx").load(str(path), load_external_data=False))


def _opset(model: Any) -> int:
    return next(int(item.version) for item in model.opset_import if item.domain in ("", "ai.onnx"))


def _tidy(model: Any) -> None:
    for node in model.graph.node:
        notes = {item.key: item.value for item in node.metadata_props}
        scopes = re.findall(r"'([^']*)'", notes.get("pkg.torch.onnx.name_scopes", ""))
        # the last one is the operator; the first, the graph itself
        scope = scopes[-2].removeprefix("model").removeprefix(".") if len(scopes) > 1 else ""
        node.name = f"{scope}/{node.name}" if scope else node.name
        del node.metadata_props[:]
        node.doc_string = ""
    for item in [*model.graph.initializer, *model.graph.value_info, *model.graph.input, *model.graph.output]:
        del item.metadata_props[:]
        item.doc_string = ""
    del model.metadata_props[:]
    del model.graph.metadata_props[:]
    model.graph.doc_string = ""


def _cause(error: BaseException) -> str:
    """Return what the first of a chain of errors says: the later ones tell where it happened."""
    while error.__cause__ is not None:
        error = error.__cause__
    return short(error) if isinstance(error, Exception) else type(error).__name__


@contextlib.contextmanager
def quietly() -> Iterator[None]:
    """Silence the warnings and notes of exporters and quantisers, which are about their own code."""
    disabled = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(disabled)
