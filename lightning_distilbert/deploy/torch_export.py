"""A student's graph as a program of torch.export, which torch alone runs."""

from __future__ import annotations

import io
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch

from lightning_distilbert.deploy.graph import Graph
from lightning_distilbert.deploy.onnx import quietly
from lightning_distilbert.errors import DistillationError
from lightning_distilbert.loading import short

TORCH_FILE = "model.pt2"


def trace(graph: Graph, longest: int | None = None) -> torch.export.ExportedProgram:
    """Trace a graph.

    Args:
        graph: The graph.
        longest: For a runtime that plans its memory ahead: one row at a time, of so many tokens at most. None is any
            number of rows of any length.

    Raises:
        DistillationError: If torch cannot.
    """
    inputs = graph.example()
    axes: dict[int, Any] = {0: torch.export.Dim.DYNAMIC, 1: torch.export.Dim.DYNAMIC}
    if longest is not None:
        inputs = {name: tensor[:1] for name, tensor in inputs.items()}
        axes = {1: torch.export.Dim("sequence", min=1, max=longest)}
    try:
        with torch.no_grad(), quietly():
            return torch.export.export(graph, (), kwargs=inputs, dynamic_shapes=dict.fromkeys(inputs, axes))
    except Exception as error:  # of many kinds
        raise DistillationError(
            f"torch {torch.__version__} cannot export a {type(graph.model).__name__} ({type(error).__name__}: "
            f"{short(error)})."
        ) from error


def write_torch(graph: Graph, folder: Path) -> str:
    """Write the program of a graph, without the exporter's notes of where source files lie on this machine.

    Args:
        graph: The graph.
        folder: Where to.

    Returns:
        The file's name.
    """
    program = trace(graph)
    for part in program.graph_module.modules():
        for node in part.graph.nodes if isinstance(part, torch.fx.GraphModule) else ():
            node.meta.pop("stack_trace", None)
    data = io.BytesIO()  # on a full disk torch's own writer of files ends the process
    with quietly():
        torch.export.save(program, data)
    (folder / TORCH_FILE).write_bytes(data.getbuffer())
    return TORCH_FILE


class TorchEngine:
    """A program of torch.export.

    Args:
        path: The file. Loading it runs no code of its own, but only torch's operators.
        facts: The manifest: ``inputs`` and ``outputs``.
        threads: Threads of a call; None leaves torch's, which are one setting for the process.

    Raises:
        DistillationError: If the file cannot be loaded.
    """

    def __init__(self, path: Path, facts: Mapping[str, Any], threads: int | None = None) -> None:
        self.inputs = [item["name"] for item in facts["inputs"]]
        self.outputs = [item["name"] for item in facts["outputs"]]
        self.threads = threads
        try:
            with quietly():
                self._module = torch.export.load(path).module()
        except Exception as error:  # of many kinds
            raise DistillationError(
                f"{str(path)!r} cannot be loaded by torch {torch.__version__} ({short(error)}). Is the file whole? "
                "Export the student again."
            ) from error

    def run(self, batch: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Run a batch.

        Args:
            batch: int64 arrays by the names of the inputs.
        """
        before = torch.get_num_threads()
        torch.set_num_threads(self.threads or before)
        try:
            with torch.no_grad():
                found = self._module(**{name: torch.from_numpy(batch[name]) for name in self.inputs})
        finally:
            torch.set_num_threads(before)
        return {name: tensor.float().numpy() for name, tensor in zip(self.outputs, found, strict=True)}
