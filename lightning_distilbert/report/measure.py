"""What a model costs: parameters, megabytes, milliseconds and sentences per second."""

from __future__ import annotations

import os
import statistics
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from lightning_distilbert.errors import DistillationError

# the first kind that a folder has: one that holds both formats would count twice
WEIGHTS = ("*.safetensors", "*.onnx", "*.pt2", "*.pt", "*.bin")


def count_parameters(model: nn.Module) -> int:
    """Count a model's parameters, each tied one once.

    Args:
        model: The model.

    Returns:
        The number of parameters, trainable or not.

    Example:
        >>> count_parameters(nn.Linear(3, 2))
        8
    """
    return sum(parameter.numel() for parameter in model.parameters())


def size_in_mb(path: str | os.PathLike[str]) -> float:
    """Measure the weights on disk.

    Args:
        path: A weights file, or a folder that holds some: the tokenizer and the configs beside them do not count.

    Returns:
        Megabytes of 1,000,000 bytes.

    Raises:
        DistillationError: If there is no such file, or no weights file in the folder.
    """
    path = Path(path)
    if path.is_file():
        return path.stat().st_size / 1e6
    for pattern in WEIGHTS:
        if files := list(path.glob(pattern)):
            return sum(file.stat().st_size for file in files) / 1e6
    raise DistillationError(
        f"{str(path)!r} is not a file, nor a folder with weights in it ({', '.join(WEIGHTS)}): it has no size."
    )


def latency(
    functions: Mapping[str, Callable[[], Any]], repeats: int = 50, warmup: int = 5
) -> dict[str, dict[str, float]]:
    """Time some functions in turn, so that a machine that slows down meanwhile slows all of them.

    Args:
        functions: What to time, each without arguments.
        repeats: How often to time each.
        warmup: How often to call each before that, untimed.

    Returns:
        ``{"p50_ms": ..., "p95_ms": ...}`` for each name: median and 95th percentile, in milliseconds.

    Raises:
        DistillationError: If there is no function, ``repeats`` is below 1 or ``warmup`` below 0.

    Example:
        >>> sorted(latency({"nothing": lambda: None}, repeats=3)["nothing"])
        ['p50_ms', 'p95_ms']
    """
    seconds = interleaved(functions, repeats, warmup)
    return {
        name: {"p50_ms": 1e3 * percentile(values, 0.50), "p95_ms": 1e3 * percentile(values, 0.95)}
        for name, values in seconds.items()
    }


def throughput(
    functions: Mapping[str, Callable[[], Any]], sentences: int, repeats: int = 3, warmup: int = 1
) -> dict[str, float]:
    """Measure how many sentences a second some functions get through, called in turn.

    Args:
        functions: What to time, each without arguments; one call goes through all ``sentences``.
        sentences: How many sentences one call goes through.
        repeats: How often to time each; the median counts.
        warmup: How often to call each before that, untimed.

    Returns:
        Sentences per second for each name.

    Raises:
        DistillationError: If there is no function, ``sentences`` or ``repeats`` is below 1, or ``warmup`` below 0.
    """
    if sentences < 1:
        raise DistillationError(f"sentences={sentences}: one call must go through at least one sentence.")
    seconds = interleaved(functions, repeats, warmup)
    return {name: sentences / statistics.median(values) for name, values in seconds.items()}


def interleaved(functions: Mapping[str, Callable[[], Any]], repeats: int, warmup: int) -> dict[str, list[float]]:
    """Call the functions in turn and return the seconds that each call took."""
    if not functions or repeats < 1 or warmup < 0:
        raise DistillationError(
            f"{len(functions)} functions, repeats={repeats}, warmup={warmup}: there must be something to time, at "
            "least once."
        )
    seconds: dict[str, list[float]] = {name: [] for name in functions}
    for turn in range(warmup + repeats):
        for name, function in functions.items():
            start = time.perf_counter()
            function()
            if torch.cuda.is_initialized():
                torch.cuda.synchronize()  # a GPU call returns before the GPU is done
            if turn >= warmup:
                seconds[name].append(time.perf_counter() - start)
    return seconds


def percentile(values: list[float], share: float) -> float:
    """Return the value below which this share of the values lies, interpolated.

    Example:
        >>> percentile([3.0, 1.0, 2.0], 0.5)
        2.0
    """
    return torch.tensor(values, dtype=torch.double).quantile(share).item()
