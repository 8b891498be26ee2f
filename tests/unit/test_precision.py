from __future__ import annotations

from pathlib import Path

import pytest
import torch

from lightning_distilbert.precision import auto_precision


@pytest.fixture
def no_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)


@pytest.mark.parametrize(
    ("flags", "precision"),
    [
        ("flags : fpu sse2 amx_bf16 amx_tile", "bf16-mixed"),
        ("flags : fpu avx512f avx512_bf16", "bf16-mixed"),
        ("flags : fpu sse2 avx512f avx2", "32-true"),
        ("", "32-true"),
    ],
)
def test_processor_decides(flags: str, precision: str, no_gpu: None, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(Path, "read_text", lambda self, encoding: flags)
    assert auto_precision() == precision


def test_elsewhere_than_on_linux_it_is_float32(no_gpu: None, monkeypatch: pytest.MonkeyPatch):
    def missing(self: Path, encoding: str) -> str:
        raise FileNotFoundError(self)

    monkeypatch.setattr(Path, "read_text", missing)
    assert auto_precision() == "32-true"


@pytest.mark.parametrize(("supported", "precision"), [(True, "bf16-mixed"), (False, "32-true")])
def test_gpu_that_only_emulates_bfloat16_computes_in_float32(supported, precision, monkeypatch: pytest.MonkeyPatch):
    asked = []

    def is_bf16_supported(including_emulation: bool = True) -> bool:
        asked.append(including_emulation)
        return supported

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", is_bf16_supported)
    assert auto_precision() == precision
    assert asked == [False]
