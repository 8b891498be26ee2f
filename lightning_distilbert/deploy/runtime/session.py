"""An ONNX file that runs, and rows of tokens put through it in batches of similar length."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from lightning_distilbert.deploy.runtime.tokens import TextTokenizer
from lightning_distilbert.errors import DistillationError, require
from lightning_distilbert.report.machine import processors

INPUTS = ("input_ids", "attention_mask", "token_type_ids")
# tokens in a batch: activations that fit a processor's cache; the fastest for 8-bit weights of those measured
BUDGET = 1024
Row = dict[str, np.ndarray]


class Session:
    """An ONNX file in onnxruntime.

    Args:
        path: The file.
        threads: Threads of one call; None is as many as this process may use.
        known: The inputs that it may take.

    Attributes:
        inputs: The names of its inputs.
        outputs: The names of its outputs.
        shapes: The axes of its inputs by name: a number, or a name where any size will do.

    Raises:
        DistillationError: If it cannot be run, or takes something else than tokens.
    """

    def __init__(self, path: Path, threads: int | None = None, known: Sequence[str] = INPUTS) -> None:
        if threads is not None and (type(threads) is not int or threads < 1):
            raise DistillationError(f"threads={threads!r}: it has to be 1 or more, or None for as many as there are.")
        onnxruntime = require("onnxruntime", "onnx")
        options = onnxruntime.SessionOptions()
        # given a number, onnxruntime binds no thread to a core, which containers may forbid
        options.intra_op_num_threads = threads or processors()
        options.inter_op_num_threads = 1
        options.log_severity_level = 3  # its warnings are for those who make graphs
        try:
            self._session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
        except Exception as error:  # a class of its own for every kind of failure
            raise DistillationError(
                f"{str(path)!r} cannot be run by onnxruntime {onnxruntime.__version__} ({_short(error)}). Is the file "
                "whole? Export the student again, or update onnxruntime."
            ) from error
        self.inputs = [item.name for item in self._session.get_inputs()]
        self.outputs = [item.name for item in self._session.get_outputs()]
        self.shapes = {item.name: item.shape for item in self._session.get_inputs()}
        self._ranks = {item.name: len(item.shape) for item in self._session.get_outputs()}
        self._widths = {item.name: item.shape[-1:] for item in self._session.get_outputs()}
        unknown = [name for name in self.inputs if name not in known]
        if unknown or "input_ids" not in self.inputs:
            raise DistillationError(
                f"{str(path)!r} takes {', '.join(self.inputs)}, and there are {', '.join(known)}. It was not made by "
                "lightning_distilbert's export."
            )

    def output(self, wanted: Sequence[str], rank: int) -> str:
        """Return the name of the output that a task reads: the first of some names, or the only one there is.

        Args:
            wanted: The names.
            rank: How many axes it has.

        Raises:
            DistillationError: If there is none.
        """
        named = next((name for name in wanted if name in self.outputs), None)
        name = named or (self.outputs[0] if len(self.outputs) == 1 and len(wanted) > 1 else None)
        if name is None or self._ranks[name] != rank:
            there = ", ".join(f"{name} ({self._ranks[name]} axes)" for name in self.outputs)
            raise DistillationError(
                f"The task reads {wanted[0]!r} with {rank} axes off the model, which gives {there}: config.json and "
                "the model do not belong together. Export the student again."
            )
        return name

    def width(self, name: str) -> int | None:
        """Return the size of the last axis of an output, or None if the file does not say it."""
        size = next(iter(self._widths[name]), None)
        return size if isinstance(size, int) else None

    def run(self, batch: Row) -> Row:
        """Run a batch, as `TextTokenizer.pad` makes it.

        Returns:
            The outputs by name, in float32.

        Raises:
            DistillationError: If onnxruntime fails.
        """
        try:
            found = self._session.run(None, {name: batch[name] for name in self.inputs})
        except Exception as error:
            raise DistillationError(
                f"The model failed on a batch of {len(batch['input_ids'])} texts of up to "
                f"{batch['input_ids'].shape[1]} tokens ({_short(error)}). Take a smaller batch_size, or a lower "
                "max_length."
            ) from error
        return {name: np.asarray(value, dtype=np.float32) for name, value in zip(self.outputs, found, strict=True)}

    def run_rows(
        self, tokenizer: TextTokenizer, rows: Sequence[Row], batch_size: int | None = None, budget: int = BUDGET
    ) -> Iterator[tuple[list[int], Row, Row]]:
        """Run rows in batches of similar length, the longest first.

        Args:
            tokenizer: The tokenizer, which pads them.
            rows: The rows.
            batch_size: Rows in a batch; None is as many as make the budget.
            budget: Tokens in a batch, padding included; a longer row is a batch by itself.

        Yields:
            The places of the rows, their batch, and the outputs.

        Raises:
            DistillationError: If the batch size is below 1, or onnxruntime fails.
        """
        for part, batch in batches(tokenizer, rows, batch_size, budget):
            yield part, batch, self.run(batch)


def batches(
    tokenizer: TextTokenizer, rows: Sequence[Row], batch_size: int | None = None, budget: int = BUDGET
) -> Iterator[tuple[list[int], Row]]:
    """Make batches of rows of similar length, the longest first; arguments and errors as in `Session.run_rows`.

    Yields:
        The places of the rows, and their batch.
    """
    if batch_size is not None and (type(batch_size) is not int or batch_size < 1):
        raise DistillationError(f"batch_size={batch_size!r}: it has to be 1 or more.")
    order = sorted(range(len(rows)), key=lambda place: len(rows[place]["input_ids"]), reverse=True)
    while order:
        size = batch_size or max(1, budget // max(1, len(rows[order[0]]["input_ids"])))
        part, order = order[:size], order[size:]
        yield part, tokenizer.pad([rows[place] for place in part])


def _short(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0][:200]}" if lines else type(error).__name__
