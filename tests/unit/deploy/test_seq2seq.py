"""The two graphs compute together what the student computes, in whatever parts a translation is read."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from transformers import (
    BartConfig,
    BartForConditionalGeneration,
    BertConfig,
    BertLMHeadModel,
    BertModel,
    DistilBertConfig,
    DistilBertModel,
    EncoderDecoderConfig,
    EncoderDecoderModel,
    MarianConfig,
    MarianMTModel,
)

from lightning_distilbert import MaskedLM, Translation
from lightning_distilbert.deploy import verify
from lightning_distilbert.deploy.seq2seq import Seq2SeqGraph
from lightning_distilbert.deploy.verify import Verifier, random_batches
from lightning_distilbert.errors import DistillationError

TOKENS = {"decoder_start_token_id": 2, "eos_token_id": 3, "pad_token_id": 0}
BERT = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 16}


def pair(encoder: Any, width: int = 16) -> EncoderDecoderModel:
    """A random encoder with a BERT decoder."""
    torch.manual_seed(0)
    config = BertConfig(
        **BERT | {"hidden_size": width, "vocab_size": 30, "max_position_embeddings": 20}, is_decoder=True,
        add_cross_attention=True, initializer_range=0.5,
    )  # fmt: skip
    joined = EncoderDecoderConfig.from_encoder_decoder_configs(encoder.config, config, **TOKENS)
    return EncoderDecoderModel(config=joined, encoder=encoder, decoder=BertLMHeadModel(config)).eval()


def seq2seq(kind: Any, config: Any) -> Any:
    torch.manual_seed(0)
    sizes = {"encoder_attention_heads": 2, "decoder_attention_heads": 4, "encoder_layers": 1, "decoder_layers": 2}
    sizes |= {"d_model": 16, "encoder_ffn_dim": 16, "decoder_ffn_dim": 16, "max_position_embeddings": 20}
    told = {"vocab_size": 30, "forced_eos_token_id": None, "bad_words_ids": None, "init_std": 0.5, **sizes, **TOKENS}
    return kind(config(**told)).eval()


def distilbert(width: int) -> EncoderDecoderModel:
    sizes = {"vocab_size": 40, "dim": 16, "n_layers": 1, "n_heads": 2, "hidden_dim": 16, "initializer_range": 0.5}
    return pair(DistilBertModel(DistilBertConfig(**sizes)), width)


MODELS = {
    "distilbert": lambda: distilbert(16),
    "projected": lambda: distilbert(24),
    "bert": lambda: pair(BertModel(BertConfig(**BERT, vocab_size=40))),
    "marian": lambda: seq2seq(MarianMTModel, MarianConfig),
    "bart": lambda: seq2seq(BartForConditionalGeneration, BartConfig),
}


@pytest.mark.parametrize("kind", MODELS)
def test_the_parts_compute_what_the_whole_does(kind: str):
    model = MODELS[kind]()
    graph = Seq2SeqGraph(Translation(max_length=9), model)
    example = graph.encoder.example()
    target = torch.arange(35).remainder(29).view(7, 5) + 1
    with torch.no_grad():
        wanted = model(**example, decoder_input_ids=target).logits
        (whole,) = graph(**example, decoder_input_ids=target)
        cross = list(graph.encoder(**example))
        torch.testing.assert_close(whole, wanted, rtol=1e-4, atol=1e-4)
        for cuts in ([5], [1, 1, 1, 1, 1], [2, 3]):
            past, found = [tensor[:, :, :0] for tensor in graph.decoder.example()["past"]], []
            for part in target.split(cuts, dim=1):
                logits, *past = graph.decoder(part, example["attention_mask"], cross, past)
                found.append(logits)
            torch.testing.assert_close(torch.cat(found, dim=1), wanted, rtol=1e-4, atol=1e-4)
    assert not torch.allclose(wanted[:, 1], wanted[:, 2])


def test_each_graph_says_what_it_takes_and_gives():
    graph = Seq2SeqGraph(Translation(), distilbert(24))
    assert graph.encoder.inputs == ("input_ids", "attention_mask")
    names = ["cross_key_0", "cross_value_0", "cross_key_1", "cross_value_1"]
    assert graph.encoder.outputs == {name: ["batch", 2, "sequence", 12] for name in names}
    example, signature = graph.decoder.example(), graph.decoder.signature()
    assert list(signature) == list(graph.decoder.inputs)
    flat = [example["input_ids"], example["encoder_attention_mask"], *example["cross"], *example["past"]]
    sizes = {"batch": 7, "target": 3, "sequence": 11, "past": 5, "past + target": 8, "vocabulary": 30}
    for tensor, (dtype, axes) in zip(flat, signature.values(), strict=True):
        assert (str(tensor.dtype), list(tensor.shape)) == (f"torch.{dtype}", [sizes.get(axis, axis) for axis in axes])
    with torch.no_grad():
        found = graph.decoder(**example)
    assert [list(tensor.shape) for tensor in found] == [
        [sizes.get(axis, axis) for axis in axes] for axes in graph.decoder.outputs.values()
    ]
    assert graph.settings is not None
    assert (graph.settings["num_beams"], graph.settings["max_length"]) == (4, 21)


def test_random_rows_have_both_sides_and_padding_is_found_out(monkeypatch: pytest.MonkeyPatch):
    module = SimpleNamespace(task=Translation())
    graph = Seq2SeqGraph(module.task, distilbert(16))
    rows = random_batches(graph)
    assert set(rows[0]) == set(graph.inputs)
    assert max(batch["input_ids"].max() for batch in rows) == 39
    assert max(batch["decoder_input_ids"].max() for batch in rows) == 29
    assert rows[0]["decoder_input_ids"].shape[1] == 10  # half of what the decoder has positions for
    assert (rows[0]["attention_mask"].sum(axis=1) != rows[0]["decoder_attention_mask"].sum(axis=1)).any()

    class Engine:
        """Runs the student itself, and adds a share of how wide a batch is."""

        def __init__(self, share: float) -> None:
            self.share = share

        def run(self, batch: dict[str, Any]) -> dict[str, Any]:
            with torch.no_grad():
                (logits,) = graph(**verify.tensors(batch))
            # what stands in the padding is nobody's business
            logits[torch.from_numpy(batch["decoder_attention_mask"] == 0)] = 1e6
            return {"logits": logits.numpy() + self.share * batch["decoder_input_ids"].shape[1]}

    verifier = Verifier(module, graph, None, 0.99)
    monkeypatch.setattr(verify, "open_engine", lambda folder, facts: Engine(0.0))
    found = verifier.check(Path(), {"format": "onnx"}).facts
    assert (found["max_difference"], found["rows"]) == (0.0, 64)
    assert found["padding_difference"] < 2e-4 * verifier.spread
    monkeypatch.setattr(verify, "open_engine", lambda folder, facts: Engine(1e-4 * verifier.spread))
    assert verifier.check(Path(), {"format": "onnx-int8"}).facts["padding_difference"] > 2e-4 * verifier.spread
    monkeypatch.setattr(verify, "open_engine", lambda folder, facts: Engine(1e-3 * verifier.spread))
    with pytest.raises(DistillationError, match="does not compute what the student does"):
        verifier.check(Path(), {"format": "onnx"})


def test_the_student_is_left_as_it_is():
    model = distilbert(16).bfloat16().train()
    graph = Seq2SeqGraph(Translation(), model)
    assert model.training
    assert model.dtype == torch.bfloat16
    assert model.decoder.config._attn_implementation == "sdpa"
    assert not graph.model.training
    assert graph.model.decoder.config._attn_implementation == "eager"


def test_what_the_runtime_would_do_otherwise_is_refused():
    model = distilbert(16)
    model.generation_config.no_repeat_ngram_size = 2
    with pytest.raises(DistillationError, match="no_repeat_ngram_size=2 is none that is applied here"):
        Seq2SeqGraph(Translation(), model)
    with pytest.raises(DistillationError, match="with the task MaskedLM cannot be exported"):
        Seq2SeqGraph(MaskedLM(), model)
    other = distilbert(16)
    other.forward = lambda **batch: SimpleNamespace(past_key_values=None)  # type: ignore[method-assign]
    with pytest.raises(DistillationError, match="in a cache that is known"):
        Seq2SeqGraph(Translation(), other)
