from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path

import pytest
from torch import nn

from lightning_distilbert.errors import DistillationError
from lightning_distilbert.report import measure
from lightning_distilbert.report.measure import count_parameters, latency, percentile, size_in_mb, throughput


def test_tied_and_frozen_parameters_count_once() -> None:
    model = nn.Sequential(nn.Embedding(10, 4), nn.Linear(4, 10, bias=False))
    assert count_parameters(model) == 80
    model[1].weight = model[0].weight
    model[0].weight.requires_grad_(False)
    assert count_parameters(model) == 40


def test_size_is_that_of_the_weights_alone(tmp_path: Path) -> None:
    (tmp_path / "tokenizer.json").write_bytes(b"x" * 999)
    (tmp_path / "pytorch_model.bin").write_bytes(b"x" * 5_000)
    assert size_in_mb(tmp_path) == 0.005
    (tmp_path / "a.safetensors").write_bytes(b"x" * 1_000)
    (tmp_path / "b.safetensors").write_bytes(b"x" * 2_000)
    assert size_in_mb(tmp_path) == 0.003
    assert size_in_mb(tmp_path / "a.safetensors") == 0.001


@pytest.mark.parametrize("name", ["", "missing"])
def test_no_weights_is_an_error(tmp_path: Path, name: str) -> None:
    with pytest.raises(DistillationError, match="is not a file, nor a folder with weights"):
        size_in_mb(tmp_path / name)


def test_functions_are_called_in_turn_and_warmup_is_not_timed() -> None:
    calls: list[str] = []
    found = latency({"a": lambda: calls.append("a"), "b": lambda: calls.append("b")}, repeats=3, warmup=2)
    assert calls == ["a", "b"] * 5
    assert list(found) == ["a", "b"]
    assert len(measure.interleaved({"a": lambda: None}, repeats=3, warmup=2)["a"]) == 3


class Clock:
    """A clock that only the timed functions move, so that a busy machine fails no test."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 0.0
        monkeypatch.setattr(measure.time, "perf_counter", lambda: self.now)

    def wait(self, seconds: Iterable[float]) -> Callable[[], None]:
        pending = iter(seconds)

        def function() -> None:
            self.now += next(pending)

        return function


def test_latency_is_in_milliseconds_without_the_warmup(monkeypatch: pytest.MonkeyPatch) -> None:
    wait = Clock(monkeypatch).wait
    found = latency({"a": wait([9.0, 0.01, 0.03, 0.02]), "b": wait([9.0, 1.0, 1.0, 1.0])}, repeats=3, warmup=1)
    assert found["a"] == pytest.approx({"p50_ms": 20.0, "p95_ms": 29.0})
    assert found["b"] == pytest.approx({"p50_ms": 1000.0, "p95_ms": 1000.0})


def test_throughput_is_sentences_per_second_of_the_median_call(monkeypatch: pytest.MonkeyPatch) -> None:
    wait = Clock(monkeypatch).wait
    assert throughput({"a": wait([9.0, 0.5, 0.25, 2.0])}, sentences=10) == {"a": pytest.approx(20.0)}


def test_percentile_interpolates() -> None:
    assert percentile([float(value) for value in range(101)], 0.95) == pytest.approx(95.0)
    assert percentile([1.0, 2.0], 0.95) == pytest.approx(1.95)


def test_settings_are_checked() -> None:
    with pytest.raises(DistillationError, match="0 functions"):
        latency({})
    with pytest.raises(DistillationError, match="repeats=0"):
        latency({"a": lambda: None}, repeats=0)
    with pytest.raises(DistillationError, match="warmup=-1"):
        throughput({"a": lambda: None}, sentences=1, warmup=-1)
    with pytest.raises(DistillationError, match="sentences=0"):
        throughput({"a": lambda: None}, sentences=0)
