"""A student's graph for phones: ExecuTorch with XNNPACK, in float32."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch

from lightning_distilbert.deploy.graph import Graph
from lightning_distilbert.deploy.onnx import quietly
from lightning_distilbert.deploy.torch_export import trace
from lightning_distilbert.errors import DistillationError, require
from lightning_distilbert.loading import short
from lightning_distilbert.placing import is_disk_error

EXECUTORCH_FILE = "model.pte"


def write_executorch(graph: Graph, folder: Path, positions: int) -> str:
    """Write the program of a graph, which takes one row at a time.

    ExecuTorch plans its memory ahead, so that the length needs a limit. Of several rows it would take for question
    answering only as many as were traced: its lowering (1.5.1, torch 2.13) fixes the axis without a word.

    Args:
        graph: The graph.
        folder: Where to.
        positions: The longest row in tokens.

    Returns:
        The file's name.

    Raises:
        DistillationError: If ExecuTorch cannot lower it.
    """
    exir = require("executorch.exir", "executorch")
    xnnpack = require("executorch.backends.xnnpack.partition.xnnpack_partitioner", "executorch")
    program = trace(graph, positions)
    try:
        with quietly():
            lowered = exir.to_edge_transform_and_lower(program, partitioner=[xnnpack.XnnpackPartitioner()])
            data = lowered.to_executorch().buffer
    except Exception as error:  # of many kinds
        if is_disk_error(error):
            raise
        raise DistillationError(
            f"ExecuTorch cannot lower a {type(graph.model).__name__} ({type(error).__name__}: {short(error)})."
        ) from error
    (folder / EXECUTORCH_FILE).write_bytes(data)
    return EXECUTORCH_FILE


class ExecuTorchEngine:
    """A program of ExecuTorch, run from Python.

    Args:
        path: The file.
        facts: The manifest: ``inputs`` and ``outputs``.
        threads: Not used: the runtime has one setting for the process, and none in Python.

    Raises:
        DistillationError: If the file cannot be loaded.
    """

    def __init__(self, path: Path, facts: Mapping[str, Any], threads: int | None = None) -> None:
        runtime = require("executorch.runtime", "executorch")
        self.inputs = [item["name"] for item in facts["inputs"]]
        self.outputs = [item["name"] for item in facts["outputs"]]
        try:
            self._program = runtime.Runtime.get().load_program(
                path, verification=runtime.Verification.InternalConsistency
            )
            self._method = self._program.load_method("forward")
        except Exception as error:  # of many kinds
            raise DistillationError(
                f"{str(path)!r} cannot be run by ExecuTorch ({short(error)}). Is the file whole? Export the student "
                "again."
            ) from error

    def run(self, batch: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Run a batch, row by row.

        Args:
            batch: int64 arrays by the names of the inputs.
        """
        parts: dict[str, list[np.ndarray]] = {name: [] for name in self.outputs}
        for row in range(len(batch["input_ids"])):
            inputs = [torch.from_numpy(batch[name][row : row + 1].copy()) for name in self.inputs]
            for name, tensor in zip(self.outputs, self._method.execute(inputs), strict=True):
                parts[name].append(tensor.float().numpy().copy())  # the runtime writes there again
        return {name: np.concatenate(arrays) for name, arrays in parts.items()}
