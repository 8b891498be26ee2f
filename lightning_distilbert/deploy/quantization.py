"""Weights and products in 8 bits, by onnxruntime: which, how, and what stays in float."""

from __future__ import annotations

import copy
import platform
import re
from collections.abc import Collection, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from lightning_distilbert.deploy.onnx import quietly
from lightning_distilbert.errors import require

LAYER = re.compile(r"(?:^|\.)(\d+)(?=[./]|$)")
CPUINFO = Path("/proc/cpuinfo")


def has_vnni() -> bool:
    """Tell whether this processor adds 8-bit products without overflow, as those with VNNI and ARM's do.

    Others add pairs of products of unsigned and signed bytes in 16 bits, which saturate: weights of 7 bits do not.
    """
    if platform.machine().lower() not in ("x86_64", "amd64", "i686", "x86"):
        return True
    try:
        return "vnni" in CPUINFO.read_text(encoding="utf-8", errors="replace")
    except OSError:  # not Linux: the careful choice
        return False


def block_of(name: str) -> str:
    """Return the part of a model that a node belongs to: ``"embeddings"``, a layer, or ``"head"``.

    Args:
        name: The node's name, with the path of its module before a slash.

    Example:
        >>> block_of("bert.encoder.layer.3.output.dense/node_MatMul_9"), block_of("bert.embeddings/node_embedding")
        ('layer 3', 'embeddings')
        >>> block_of("classifier/node_linear")
        'head'
    """
    scope = name.rpartition("/")[0]
    found = LAYER.search(scope)
    if found:
        return f"layer {found[1]}"
    return "embeddings" if "embedding" in scope else "head"


class OnnxQuantizer:
    """Makes int8 files of a float file: products with weights (per output channel) and the tables of embeddings.

    Args:
        source: The float file.
        reduce_range: Whether weights have 7 bits; None decides by `has_vnni`.
        calibration: Batches of arrays by the names of the inputs, for static quantisation: the ranges of activations
            are then those seen there. None is dynamic quantisation, where they are measured as the model runs.

    Attributes:
        blocks: The parts of the model that hold something to quantise, in their order.
        file: The name of the int8 file: ``model_int8.onnx`` of ``model.onnx``.
    """

    def __init__(
        self,
        source: Path,
        reduce_range: bool | None = None,
        calibration: Sequence[dict[str, np.ndarray]] | None = None,
    ) -> None:
        require("onnxruntime", "onnx")
        self._model = require("onnx", "onnx").load(str(source))
        _fold_transposed(self._model.graph)
        self.file = f"{source.stem}_int8.onnx"
        self.calibration = calibration
        self.reduce_range = not has_vnni() if reduce_range is None else reduce_range
        self._nodes: dict[str, list[str]] = {}
        for block, name in _quantizable(self._model.graph):
            self._nodes.setdefault(block, []).append(name)
        self.blocks = list(self._nodes)

    def describe(self, left_in_float: Collection[str] = ()) -> dict[str, Any]:
        """Return the choices as plain values, for the manifest."""
        return {
            "method": "dynamic" if self.calibration is None else "static",
            "weights": "int8, per output channel; tables of embeddings per table",
            "reduce_range": self.reduce_range,
            "left_in_float": [block for block in self.blocks if block in left_in_float],
            "calibration_rows": sum(len(batch["input_ids"]) for batch in self.calibration or ()),
        }

    def write(self, folder: Path, left_in_float: Collection[str] = ()) -> str:
        """Write an int8 file.

        Args:
            folder: Where to.
            left_in_float: The blocks that are not quantised.

        Returns:
            The file's name.
        """
        tools = require("onnxruntime.quantization", "onnx")
        float32 = require("onnx", "onnx").TensorProto.FLOAT
        chosen = [name for block, names in self._nodes.items() if block not in left_in_float for name in names]
        options: dict[str, Any] = {
            "op_types_to_quantize": ["MatMul", "Gather"],
            "nodes_to_quantize": chosen,
            "per_channel": True,
            "reduce_range": self.reduce_range,
            "weight_type": tools.QuantType.QInt8,
            # operators of which shape inference knows no type would make the quantiser stop
            "extra_options": {"DefaultTensorType": float32, "MatMulConstBOnly": True},
        }
        model, path = copy.deepcopy(self._model), str(folder / self.file)  # the quantisers change what they are given
        with quietly():
            if self.calibration is None:
                tools.quantize_dynamic(model, path, **options)
            else:
                options["activation_type"] = tools.QuantType.QUInt8
                tools.quantize_static(model, path, _reader(tools, self.calibration), **options)
        return self.file


class PairQuantizer:
    """Makes int8 files of the two graphs of a student that translates.

    Args:
        encoder: The quantiser of the first graph.
        decoder: That of the second.

    Attributes:
        blocks: The parts of both, in their order: ``"encoder layer 0"``, ``"decoder head"`` and so on. Keys and values
            of the decoder's attention to the text are computed in the first graph, with the layer of that number.
        file: The name of the first int8 file.
    """

    def __init__(self, encoder: OnnxQuantizer, decoder: OnnxQuantizer) -> None:
        self._parts = {"encoder": encoder, "decoder": decoder}
        self.blocks = [f"{name} {block}" for name, part in self._parts.items() for block in part.blocks]
        self.file = encoder.file

    def describe(self, left_in_float: Collection[str] = ()) -> dict[str, Any]:
        """Return the choices as plain values, for the manifest."""
        left = [block for block in self.blocks if block in left_in_float]
        return self._parts["encoder"].describe() | {"left_in_float": left}

    def write(self, folder: Path, left_in_float: Collection[str] = ()) -> str:
        """Write both int8 files; see `OnnxQuantizer.write`."""
        for name, part in self._parts.items():
            left = [block.removeprefix(f"{name} ") for block in left_in_float if block.startswith(f"{name} ")]
            part.write(folder, left)
        return self.file


def _quantizable(graph: Any) -> Iterator[tuple[str, str]]:
    """Yield block and name of each product with a matrix of weights, and of each look-up in a table of them."""
    weights = {item.name for item in graph.initializer if len(item.dims) == 2 and item.data_type == 1}
    for node in graph.node:
        at = {"MatMul": 1, "Gather": 0}.get(node.op_type)
        if at is not None and node.input[at] in weights:
            yield block_of(node.name), node.name


def _fold_transposed(graph: Any) -> None:
    """Put transposed copies in the place of weights that are transposed as the model runs.

    So the exporter writes the tied weights of a masked language model, which are a table of embeddings too. A product
    with them would not be taken for one with weights.
    """
    numpy_helper = require("onnx.numpy_helper", "onnx")
    weights = {item.name: item for item in graph.initializer}
    for node in [node for node in graph.node if node.op_type == "Transpose" and node.input[0] in weights]:
        order = next(list(item.ints) for item in node.attribute if item.name == "perm")
        array = numpy_helper.to_array(weights[node.input[0]]).transpose(order)
        graph.initializer.append(numpy_helper.from_array(np.ascontiguousarray(array), node.output[0]))
        graph.node.remove(node)


def _reader(tools: Any, batches: Sequence[dict[str, np.ndarray]]) -> Any:
    class Reader(tools.CalibrationDataReader):
        """Hands out the batches, one by one and again after a rewind."""

        def __init__(self) -> None:
            self.rewind()

        def rewind(self) -> None:
            self.left = iter(batches)

        def get_next(self) -> dict[str, np.ndarray] | None:
            return next(self.left, None)

    return Reader()
