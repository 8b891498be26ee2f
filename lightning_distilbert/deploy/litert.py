"""A Keras model for phones: LiteRT (TensorFlow Lite), in float32."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from lightning_distilbert.deploy.graph import Graph
from lightning_distilbert.deploy.keras_model import INPUTS
from lightning_distilbert.deploy.onnx import quietly
from lightning_distilbert.errors import DistillationError, require
from lightning_distilbert.loading import short
from lightning_distilbert.placing import is_disk_error

LITERT_FILE = "model.tflite"


def write_litert(model: Any, graph: Graph, folder: Path) -> str:
    """Convert a Keras model; batch and sequence may be of any size.

    The file holds operators of LiteRT alone, none of TensorFlow's, which a phone would need a larger runtime for. Its
    one signature has the names of the graph's inputs and outputs.

    Args:
        model: What `build_keras` built.
        graph: The graph that it was built of.
        folder: Where to.

    Returns:
        The file's name.

    Raises:
        DistillationError: If Keras runs on another backend than TensorFlow, or the converter fails.
        MissingExtraError: If a package is missing.
    """
    keras, tensorflow = require("keras", "keras"), require("tensorflow", "keras")
    if (backend := keras.backend.backend()) != "tensorflow":
        raise DistillationError(
            f"Keras runs on {backend} here, and the way to LiteRT is by TensorFlow. Set KERAS_BACKEND=tensorflow in "
            "the environment before Python starts."
        )
    named = {name: keras.Input((None,), dtype="int32", name=name) for name in INPUTS}
    found = model({theirs: named[name] for name, theirs in INPUTS.items()})
    outputs = found if isinstance(found, Mapping) else {next(iter(graph.outputs)): found}
    try:
        with quietly():
            keras.Model(named, dict(outputs)).export(
                str(folder / LITERT_FILE),
                format="litert",
                target_spec={"supported_ops": [tensorflow.lite.OpsSet.TFLITE_BUILTINS]},
                verbose=False,
            )
    except Exception as error:  # of many kinds
        if is_disk_error(error):
            raise
        raise DistillationError(
            f"TensorFlow {tensorflow.__version__} cannot convert a {type(graph.model).__name__} to LiteRT "
            f"({type(error).__name__}: {short(error)})."
        ) from error
    return LITERT_FILE


class LiteRTEngine:
    """A file of LiteRT; it needs no TensorFlow.

    Args:
        path: The file.
        facts: The manifest: ``inputs`` and ``outputs``.
        threads: Threads of one call; None leaves it to the runtime.

    Raises:
        DistillationError: If the file cannot be loaded.
        MissingExtraError: If LiteRT is missing.
    """

    def __init__(self, path: Path, facts: Mapping[str, Any], threads: int | None = None) -> None:
        runtime = require("ai_edge_litert.interpreter", "keras")
        self.inputs = [item["name"] for item in facts["inputs"]]
        self.outputs = [item["name"] for item in facts["outputs"]]
        try:
            self._interpreter = runtime.Interpreter(str(path), num_threads=threads)
            self._run = self._interpreter.get_signature_runner()
        except Exception as error:  # of many kinds
            raise DistillationError(
                f"{str(path)!r} cannot be run by LiteRT ({short(error)}). Is the file whole? Export the student again."
            ) from error

    def run(self, batch: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Run a batch.

        Args:
            batch: int64 arrays by the names of the inputs.
        """
        found = self._run(**{name: batch[name].astype(np.int32) for name in self.inputs})
        return {name: np.array(found[name], dtype=np.float32) for name in self.outputs}
