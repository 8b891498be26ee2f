"""A comparison as `compare` returns it, without having measured anything."""

from __future__ import annotations

from typing import Any

from lightning_distilbert.report.bootstrap import Difference, Interval
from lightning_distilbert.report.compared import Comparison, Measured

LENGTHS = (16, 64, 128)


def measured(name: str, score: float, gap: Difference | None = None, longest: int = 128, **other: Any) -> Measured:
    """Return a model, of which only what matters is given."""
    values: dict[str, Any] = {
        "name": name,
        "folder": f"folder-of-{name}",
        "format": "transformers",
        "parameters": 22_700_000,
        "size_mb": 90.9,
        "cold_start_s": 4.25,
        "cold_start_parts": {"python": 0.25, "import": 3.0, "load": 0.5, "answer": 0.5},
        "peak_memory_mb": 512.5,
        "score": Interval(score, score - 0.02, score + 0.02),
        "difference": gap,
        "retention": score / 0.9,
        "scores": {"accuracy": score, "f1": None},
        "latency_ms": {
            length: {"p50": length / 4, "p95": length / 3, "p99": length / 2} for length in LENGTHS if length <= longest
        },
        "throughput": 40.0 if longest >= 128 else None,
    }
    return Measured(**{**values, **other})


def comparison(*models: Measured, **other: Any) -> Comparison:
    """Return a comparison of a teacher and two others, or of the models given."""
    found = models or (
        measured("teacher", 0.9),
        measured("student", 0.88, Difference(-0.02, -0.031, -0.009, 0.002), size_mb=45.0),
        measured("int8", 0.87, Difference(-0.03, -0.05, 0.01, 0.25), 64, format="onnx-int8", cold_start_s=None,
                 cold_start_parts={}, peak_memory_mb=None, size_mb=17.0),
    )  # fmt: skip
    values: dict[str, Any] = {
        "task": "TextClassification",
        "metric": "accuracy",
        "mode": "max",
        "rows": 872,
        "unit": "texts",
        "evaluation": "dev.tsv",
        "split": "validation",
        "reference": found[0].name,
        "confidence": 0.95,
        "resamples": 1000,
        "seed": 0,
        "lengths": LENGTHS,
        "main_length": 64,
        "batch_size": 32,
        "repeats": 100,
        "starts": 3,
        "threads": 2,
        "machine": {"processor": "Some Processor", "processors": "2", "memory": "25 GB", "system": "Linux x86_64"},
        "versions": {"lightning_distilbert": "0.1.0", "torch": "2.13.0"},
        "created": "2026-05-01T10:00:00+00:00",
        "command": "lightning-distilbert compare --models a=b",
        "notes": ("int8 reads 64 tokens at most",),
        "models": found,
    }
    return Comparison(**{**values, **other})
