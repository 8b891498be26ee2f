"""A student's graph for OpenVINO, in float and, by NNCF, in 8 bits."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from lightning_distilbert.deploy.onnx import quietly
from lightning_distilbert.deploy.quantization import block_of
from lightning_distilbert.errors import DistillationError, require
from lightning_distilbert.loading import short

OPENVINO_FILE = "openvino_model.xml"


@cache
def _core() -> Any:
    """Return the one ``Core`` of this process, with its plugin for the processor loaded.

    The plugin sets a stack for signals and, at its end, sets again the one that it found. Where two of them end out of
    order that one is freed memory, and the process dies of its next signal, such as a child's end
    (seen in openvino 2026.4): so the first one never ends.
    """
    core = require("openvino", "openvino").Core()
    core.get_property("CPU", "FULL_DEVICE_NAME")
    return core


def write_openvino(source: Path, folder: Path) -> str:
    """Write an ONNX file in OpenVINO's format: a graph in XML, and its weights, in float32, in a file beside it.

    Args:
        source: The ONNX file.
        folder: Where to.

    Returns:
        The name of the graph's file.
    """
    openvino = require("openvino", "openvino")
    with quietly():
        _save(openvino, openvino.convert_model(str(source)), folder / OPENVINO_FILE)
    return OPENVINO_FILE


def _save(openvino: Any, model: Any, path: Path) -> None:
    try:
        openvino.save_model(model, str(path), compress_to_fp16=False)
    except RuntimeError as error:
        if "iostream" not in str(error):  # what C++ says of a disk that takes no more
            raise
        raise OSError(f"OpenVINO could not write {path.name}: {short(error)}") from error


class OpenVINOQuantizer:
    """Makes int8 models of an ONNX file with NNCF, which sees on rows of text which ranges activations have.

    Args:
        source: The float file.
        calibration: Batches of arrays by the names of the inputs.

    Attributes:
        blocks: The parts of the model that hold something to quantise, in their order.
    """

    file = OPENVINO_FILE

    def __init__(self, source: Path, calibration: Sequence[dict[str, np.ndarray]]) -> None:
        self._openvino, self._nncf = require("openvino", "openvino"), require("nncf", "openvino")
        _core()  # before NNCF makes its own
        self.source = source
        self.calibration = calibration
        kinds = {"MatMul", "Gather"}
        names = [
            node.get_friendly_name()
            for node in self._openvino.convert_model(str(source)).get_ordered_ops()
            if node.get_type_name() in kinds
        ]
        self._names: dict[str, list[str]] = {}
        for name in names:
            if "/" in name:
                self._names.setdefault(block_of(name), []).append(name)
        self.blocks = list(self._names)

    def describe(self, left_in_float: Collection[str] = ()) -> dict[str, Any]:
        """Return the choices as plain values, for the manifest."""
        return {
            "method": "static",
            "weights": "int8, per output channel",
            "left_in_float": [block for block in self.blocks if block in left_in_float],
            "calibration_rows": sum(len(batch["input_ids"]) for batch in self.calibration),
        }

    def write(self, folder: Path, left_in_float: Collection[str] = ()) -> str:
        """Write an int8 model.

        Args:
            folder: Where to.
            left_in_float: The blocks that are not quantised.

        Returns:
            The name of the graph's file.
        """
        nncf = self._nncf
        model = self._openvino.convert_model(str(self.source))
        scopes = {name.rpartition("/")[0] for block in left_in_float for name in self._names[block]}
        patterns = [f"{re.escape(scope)}/.*" for scope in sorted(scopes)]
        with quietly():
            quantized = nncf.quantize(
                model,
                nncf.Dataset(list(self.calibration)),
                model_type=nncf.ModelType.TRANSFORMER,
                subset_size=len(self.calibration),
                ignored_scope=nncf.IgnoredScope(patterns=patterns, validate=False) if patterns else None,
            )
            _save(self._openvino, quantized, folder / self.file)
        return self.file


class OpenVINOEngine:
    """A model compiled by OpenVINO for the processor, which computes in bfloat16 where that is faster there.

    Args:
        path: The graph's file.
        facts: The manifest: ``inputs`` and ``outputs``.
        threads: Threads of a call; None leaves it to OpenVINO.
        precision: ``"f32"`` computes in float32 all the same; None is OpenVINO's own choice.

    Attributes:
        precision: What it computes in, as OpenVINO says it.

    Raises:
        DistillationError: If the files cannot be loaded.
    """

    def __init__(
        self, path: Path, facts: Mapping[str, Any], threads: int | None = None, precision: str | None = None
    ) -> None:
        openvino = require("openvino", "openvino")
        self.inputs = [item["name"] for item in facts["inputs"]]
        self.outputs = [item["name"] for item in facts["outputs"]]
        options: dict[str, Any] = {"PERFORMANCE_HINT": "LATENCY"}
        options |= {} if threads is None else {"INFERENCE_NUM_THREADS": threads}
        options |= {} if precision is None else {"INFERENCE_PRECISION_HINT": precision}
        try:
            self._model = _core().compile_model(str(path), "CPU", options)
        except Exception as error:  # RuntimeError, with pages of text
            raise DistillationError(
                f"{str(path)!r} cannot be run by OpenVINO {openvino.__version__} ({short(error)}). Are both files "
                "whole? Export the student again."
            ) from error
        self.precision = self._model.get_property("INFERENCE_PRECISION_HINT").get_type_name()

    def run(self, batch: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Run a batch.

        Args:
            batch: int64 arrays by the names of the inputs.
        """
        found = self._model({name: batch[name] for name in self.inputs})
        return {name: np.array(found[name], dtype=np.float32) for name in self.outputs}
