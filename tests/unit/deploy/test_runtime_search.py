"""The search in numpy finds what transformers' ``generate`` finds, with the same scores."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from transformers import (
    BertConfig,
    BertLMHeadModel,
    DistilBertConfig,
    DistilBertModel,
    DynamicCache,
    EncoderDecoderCache,
    EncoderDecoderConfig,
    EncoderDecoderModel,
    GenerationConfig,
)

from lightning_distilbert.deploy.runtime.search import Search, beam_search, greedy, log_softmax, search, top
from lightning_distilbert.errors import DistillationError

START, END, PAD = 2, 3, 0
TOLD = {"decoder_start_token_id": START, "eos_token_id": END, "pad_token_id": PAD}


@pytest.fixture(scope="module")
def model() -> EncoderDecoderModel:
    torch.manual_seed(0)
    encoder = DistilBertConfig(vocab_size=40, dim=16, n_layers=1, n_heads=2, hidden_dim=16, initializer_range=0.5)
    decoder = BertConfig(
        vocab_size=30, hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=16,
        max_position_embeddings=32, is_decoder=True, add_cross_attention=True, initializer_range=0.5,
    )  # fmt: skip
    config = EncoderDecoderConfig.from_encoder_decoder_configs(encoder, decoder, **TOLD)
    return EncoderDecoderModel(config=config, encoder=DistilBertModel(encoder), decoder=BertLMHeadModel(decoder)).eval()


class TorchSteps:
    """A decoder in torch in the midst of some translations; it counts the rows that it reads."""

    def __init__(self, model: EncoderDecoderModel, batch: dict[str, torch.Tensor]) -> None:
        self.model, self.mask, self.rows = model, batch["attention_mask"], list[int]()
        self.states = model.encoder(**batch).last_hidden_state
        self.cache = EncoderDecoderCache(DynamicCache(), DynamicCache())

    def step(self, tokens: np.ndarray) -> np.ndarray:
        self.rows.append(len(tokens))
        found = self.model(
            encoder_outputs=(self.states,), attention_mask=self.mask, past_key_values=self.cache, use_cache=True,
            decoder_input_ids=torch.from_numpy(tokens)[:, None],
        )  # fmt: skip
        self.cache = found.past_key_values
        return found.logits[:, -1].numpy()

    def take(self, rows: np.ndarray) -> None:
        index = torch.from_numpy(rows)
        self.states, self.mask = self.states[index], self.mask[index]
        if self.rows:
            self.cache.reorder_cache(index)


def batch_of(texts: int = 7) -> dict[str, torch.Tensor]:
    """Texts of all lengths from 9 down, padded."""
    ids = torch.randint(1, 40, (texts, 9), generator=torch.Generator().manual_seed(1))
    mask = (torch.arange(9) < torch.tensor([max(1, 9 - 2 * row) for row in range(texts)])[:, None]).long()
    return {"input_ids": ids * mask, "attention_mask": mask}


def until_end(row: Any) -> list[int]:
    """Return the tokens of a translation up to its end."""
    tokens = [int(token) for token in row]
    return tokens[: tokens.index(END) + 1] if END in tokens else tokens


def compared(model: Any, **options: Any) -> tuple[list[list[int]], list[list[int]], list[int]]:
    """Search both ways, compare the scores, and return both translations and the rows of each step of ours."""
    settings = TOLD | {"max_new_tokens": 12} | options
    batch = batch_of()
    rules = Search.read(settings)
    with torch.no_grad():
        steps = TorchSteps(model, batch)
        mine = search(steps, len(batch["input_ids"]), rules)
        theirs = model.generate(
            **batch, generation_config=GenerationConfig(**settings), return_dict_in_generate=True, output_scores=True
        )
    wanted = [until_end(row) for row in theirs.sequences[:, 1:]]
    if rules.beams > 1:
        scores = theirs.sequences_scores.numpy()
    else:
        each = model.compute_transition_scores(theirs.sequences, theirs.scores, normalize_logits=True).numpy()
        scores = np.array([row[: len(tokens)].sum() for row, tokens in zip(each, wanted, strict=True)])
    np.testing.assert_allclose(mine.scores, scores, rtol=2e-5, atol=2e-5)
    return [until_end(row) for row in mine.tokens], wanted, steps.rows


@pytest.fixture
def ending(model: EncoderDecoderModel):
    """Let translations end sooner, by a bias for the end; return the function that sets it."""
    bias = model.decoder.cls.predictions.bias
    before = bias.detach().clone()

    def set_to(value: float) -> EncoderDecoderModel:
        with torch.no_grad():
            bias[END] = value
        return model

    yield set_to
    with torch.no_grad():
        bias.copy_(before)


@pytest.mark.parametrize("bias", [-50.0, 0.0, 4.0, 50.0])
def test_greedy_is_that_of_transformers(ending: Any, bias: float):
    mine, wanted, rows = compared(ending(bias))
    assert mine == wanted
    lengths = [len(row) for row in wanted]
    assert {-50.0: min(lengths) == 12, 50.0: max(lengths) == 1}.get(bias, True)
    # what has ended is not computed any more
    assert rows == [sum(length > step for length in lengths) for step in range(max(lengths))]


@pytest.mark.parametrize("bias", [-50.0, 1.0, 3.0, 50.0])
@pytest.mark.parametrize("penalty", [0.0, 1.0, 2.0, -1.0])
@pytest.mark.parametrize("early", [True, False, "never"])
def test_beams_are_those_of_transformers(ending: Any, bias: float, penalty: float, early: bool | str):
    mine, wanted, rows = compared(ending(bias), num_beams=4, length_penalty=penalty, early_stopping=early)
    assert mine == wanted
    assert rows[0] == 28
    if bias == -50.0:
        assert len(rows) == 12


def test_options_change_what_is_found(ending: Any):
    model = ending(3.0)

    def lengths(**options: Any) -> list[int]:
        return [len(row) for row in compared(model, **options)[0]]

    assert sum(lengths(num_beams=4, length_penalty=2.0)) > sum(lengths(num_beams=4, length_penalty=-1.0))
    assert max(lengths(num_beams=4, max_new_tokens=3)) == 3
    assert compared(model, num_beams=4)[0] != compared(model)[0]
    assert compared(model, num_beams=2)[0] != compared(model, num_beams=6)[0]


def test_searches_that_are_over_leave_the_batch(ending: Any):
    _, wanted, rows = compared(ending(3.0), num_beams=4, early_stopping=True)
    assert len({len(row) for row in wanted}) > 1
    assert rows == sorted(rows, reverse=True)
    assert rows[-1] < rows[0]
    assert all(row % 4 == 0 for row in rows)


def test_several_tokens_may_end_a_translation(model: EncoderDecoderModel):
    for beams in (1, 3):
        rules = Search.read(TOLD | {"eos_token_id": [END, 7], "max_new_tokens": 12, "num_beams": beams})
        batch = batch_of()
        with torch.no_grad():
            mine = search(TorchSteps(model, batch), 7, rules).tokens
            options = {"eos_token_id": [END, 7], "max_new_tokens": 12, "num_beams": beams, "length_penalty": 1.0}
            theirs = model.generate(**batch, **TOLD | options)[:, 1:]
        for own, other in zip(mine.tolist(), theirs.tolist(), strict=True):
            end = next((place + 1 for place, token in enumerate(own) if token in (END, 7)), len(own))
            assert own[:end] == other[:end]
            assert set(own[end:]) <= {PAD}


def test_no_texts_have_no_translations(model: EncoderDecoderModel):
    rules = Search.read(TOLD | {"max_new_tokens": 5})

    class Nothing:
        def take(self, rows: np.ndarray) -> None:
            assert not len(rows)

    for find in (greedy, beam_search):
        assert len(find(Nothing(), 0, rules).tokens) == 0  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"no_repeat_ngram_size": 3}, "no_repeat_ngram_size=3 is none that is applied here"),
        ({"forced_eos_token_id": 3}, "forced_eos_token_id=3"),
        ({"forced_eos_token_id": 0}, "forced_eos_token_id=0"),  # as Marian's models have it
        ({"bad_words_ids": [[5]]}, "bad_words_ids"),
        ({"do_sample": True}, "do_sample=True"),
        ({"eos_token_id": None}, "does not say how translations are searched for"),
        ({"max_new_tokens": None}, "does not say how"),
        ({"max_new_tokens": 0}, "does not say how"),
        ({"num_beams": "four"}, "does not say how"),
        ({"length_penalty": "long"}, "does not say how"),
        ({"early_stopping": "soon"}, "does not say how"),
    ],
)
def test_rules_that_are_not_applied_are_refused(settings: dict[str, Any], message: str):
    with pytest.raises(DistillationError, match=message):
        Search.read(TOLD | {"max_new_tokens": 9} | settings)


def test_settings_are_read_as_transformers_writes_them():
    told = GenerationConfig(**TOLD, max_length=10, num_beams=3, early_stopping=True, use_cache=True).to_diff_dict()
    assert Search.read(told) == Search(START, (END,), PAD, 9, 3, 1.0, True)


def test_logarithms_and_places():
    logits = np.random.default_rng(0).normal(size=(3, 9)).astype(np.float32)
    np.testing.assert_allclose(log_softmax(logits), torch.from_numpy(logits).log_softmax(-1).numpy(), rtol=1e-5)
    values, places = top(logits, 4)
    theirs = torch.from_numpy(logits).topk(4)
    assert np.array_equal(places, theirs.indices.numpy())
    assert np.array_equal(values, theirs.values.numpy())
    assert top(logits, 20)[0].shape == (3, 9)
