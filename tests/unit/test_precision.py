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
    assert choose_attention(model, cpu, "bf16-mixed") == "sdpa"
    assert model.config._attn_implementation == "sdpa_float32"
    assert choose_attention(torch.nn.Linear(1, 1), cpu, "bf16-mixed") is None


@pytest.mark.parametrize("name", ["bert", "distilbert", "roberta", "electra", "modernbert"])
@pytest.mark.parametrize("padded", [True, False])
def test_attention_in_float32_computes_what_the_fused_one_does(name, padded):
    model = model_of(name, AutoModel).train()
    for part in model.modules():
        if isinstance(part, torch.nn.Dropout):
            part.p = 0.0
    ids, mask = torch.arange(10, 34).view(2, 12), torch.ones(2, 12, dtype=torch.long)
    mask[1, 7:] = 1 - padded
    found = {}
    for attention in ("sdpa", "sdpa_float32"):
        model.set_attn_implementation(attention)
        with torch.autocast("cpu", torch.bfloat16):
            hidden = model(input_ids=ids, attention_mask=mask).last_hidden_state
        assert hidden.isfinite().all()
        found[attention] = hidden[mask.bool()].float()
    found["sdpa_float32"].sum().backward()
    assert all(p.grad is None or p.grad.isfinite().all() for p in model.parameters())
    torch.testing.assert_close(found["sdpa_float32"], found["sdpa"], atol=0.03, rtol=0.03)


def test_attention_in_float32_leaves_bfloat16_at_the_kernel(monkeypatch: pytest.MonkeyPatch):
    seen, kernel = [], torch.nn.functional.scaled_dot_product_attention

    def spy(query, *arguments, **options):
        seen.append((query.dtype, options["attn_mask"] is not None))
        return kernel(query, *arguments, **options)

    model = model_of("bert", AutoModel)
    model.set_attn_implementation("sdpa_float32")
    monkeypatch.setattr(torch.nn.functional, "scaled_dot_product_attention", spy)
    mask = torch.tensor([[1, 1, 1, 0]])
    with torch.autocast("cpu", torch.bfloat16):
        model(input_ids=torch.tensor([[5, 6, 7, 0]]), attention_mask=mask)
    assert set(seen) == {(torch.float32, True)}
