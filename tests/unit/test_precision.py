from __future__ import annotations

from pathlib import Path

import pytest
import torch
from transformers import AutoModel

from lightning_distilbert.precision import auto_precision, choose_attention
from tests.encoders import model_of


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


@pytest.mark.parametrize("name", ["bert", "distilbert", "roberta", "electra"])
def test_attention_is_plain_only_where_the_fused_one_cannot_serve(name):
    cpu, model = torch.device("cpu"), model_of(name, AutoModel)
    assert choose_attention(model, torch.device("cuda"), "bf16-mixed") is None
    assert choose_attention(model, cpu, "32-true") is None
    assert model.config._attn_implementation == "sdpa"
    assert choose_attention(model, cpu, "bf16-mixed") == "sdpa"
    assert model.config._attn_implementation == "eager"
    assert choose_attention(model, cpu, "bf16-mixed") is None  # it is as it should be
    model.set_attn_implementation("sdpa")
    model.config.attention_probs_dropout_prob = model.config.attention_dropout = 0.0
    assert choose_attention(model, cpu, "bf16-mixed") is None
    assert choose_attention(torch.nn.Linear(1, 1), cpu, "bf16-mixed") is None
