"""Translation: its loss, its search, and what it refuses."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning_utilities.core import rank_zero

from lightning_distilbert import DistillationError, DistillationModule, Translation, TranslationData, load
from lightning_distilbert.functional import mean_or_zero
from lightning_distilbert.taps import Taps
from lightning_distilbert.tasks.translation import IGNORED
from tests.parallel_texts import PAIRS, ROWS, TEXTS, save_translator, student, trainer


@pytest.fixture(scope="module")
def translator(tiny_bert_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_translator(tiny_bert_dir, tmp_path_factory.mktemp("tiny") / "translator")


def batch_of(module: Any, evaluation: bool = True) -> dict[str, Any]:
    data = TranslationData(
        {"train": ROWS, "validation": ROWS},
        tokenizer=module.tokenizer,
        target_tokenizer=module._target_tokenizer,
        batch_size=5,
    )
    data.setup("fit")
    return next(iter(data.val_dataloader() if evaluation else data.train_dataloader()))


def test_the_loss_is_that_of_the_real_tokens_alone(translator: Path):
    module = load(translator)
    batch = batch_of(module)
    assert (batch["labels"] == IGNORED).any()
    with torch.no_grad():
        outputs = module.task.run(module.student, batch)
        loss = module.task.loss(outputs, batch)
        whole = module.student(**{n: batch[n] for n in ("input_ids", "attention_mask", "decoder_input_ids")}).logits
    rows = []
    for labels, logits in zip(batch["labels"], whole.double(), strict=True):
        for label, row in zip(labels.tolist(), logits, strict=True):
            if label != IGNORED:
                rows.append(torch.logsumexp(row, 0) - row[label])
    assert len(rows) == (batch["labels"] != IGNORED).sum() == len(outputs["logits"])
    assert loss.item() == pytest.approx(torch.stack(rows).mean().item(), rel=1e-5)
    # what stands where the decoder reads padding changes nothing
    other = batch["decoder_input_ids"].clone()
    other[:, 1:][batch["labels"][:, :-1] == IGNORED] = 7
    again = module.task.loss(module.task.run(module.student, {**batch, "decoder_input_ids": other}), batch)
    assert again.item() == pytest.approx(loss.item(), rel=1e-5)
    assert module.task.loss(outputs, {}) is None


def test_a_batch_without_a_real_token_costs_nothing_and_keeps_its_graph():
    logits = torch.zeros(0, 5, requires_grad=True)
    loss = Translation().loss({"logits": logits}, {"labels": torch.full((2, 3), IGNORED)})
    assert loss.item() == 0
    loss.backward()
    assert mean_or_zero(torch.zeros(0), logits).item() == 0


def test_labels_are_smoothed_in_training_alone():
    torch.manual_seed(0)
    logits, labels = torch.randn(4, 9, requires_grad=True), torch.tensor([[1, 2, 3, 4]])
    batch, outputs = {"labels": labels}, {"logits": logits}
    plain, smooth = (Translation(label_smoothing=share).loss(outputs, batch) for share in (0.0, 0.2))
    log = logits.detach().double().log_softmax(-1)
    wanted = -(0.8 * log[torch.arange(4), labels[0]] + 0.2 * log.mean(-1)).mean()
    assert smooth.item() == pytest.approx(wanted.item(), rel=1e-5)
    with torch.no_grad():
        assert Translation(label_smoothing=0.2).loss(outputs, batch).item() == pytest.approx(plain.item())


def test_data_that_leave_the_decoder_s_input_to_the_model_are_learnt_from(translator: Path):
    module = load(translator)
    batch = batch_of(module, evaluation=False)
    bare = {name: batch[name] for name in ("input_ids", "attention_mask", "labels")}
    with torch.no_grad():
        first, second = (module.task.run(module.student, one)["logits"] for one in (batch, bare))
    assert torch.equal(first, second)


def test_evaluation_translates_without_a_search_and_training_does_not(translator: Path):
    module = load(translator)
    batch = batch_of(module)
    with torch.no_grad():
        assert set(module.task.run(module.student, batch)) == {"logits", "translations"}
        module.student.train()
        assert set(module.task.run(module.student, batch)) == {"logits"}
        module.student.eval()
        short = Translation(evaluation_length=2).run(module.student, batch)["translations"]
        assert short.shape == (5, 2)
        assert set(module.task.run(module.student, {"input_ids": batch["input_ids"]})) == {"translations"}
        # taps would take each step of a search for a forward; what else looks on does not count
        handle = module.student.decoder.register_forward_hook(lambda *_: None)
        assert set(module.task.run(module.student, batch)) == {"logits", "translations"}
        handle.remove()
        for requires in ({"logits"}, {"hidden_states"}):
            with Taps(module.student, "", requires):
                assert set(module.task.run(module.student, batch)) == {"logits"}
        calls = []
        handle = module.student.decoder.register_forward_pre_hook(lambda *_: calls.append(1))
        Translation(evaluation_beams=3).run(module.student, batch)
        handle.remove()
    assert calls


def test_how_translations_are_scored_is_logged(
    translator: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
):
    caplog.set_level("INFO", logger=rank_zero.log.name)
    monkeypatch.setattr(rank_zero.log, "handlers", [caplog.handler])
    monkeypatch.setattr(rank_zero.log, "propagate", False)  # whether Lightning's reach the root depends on the imports
    module = load(translator)
    module.setup("predict")
    assert "sacrebleu" not in caplog.text
    module.setup("validate")
    (told,) = [message for message in caplog.messages if "sacrebleu" in message]
    for name, signature in module.metrics["val"].signatures.items():
        assert f"{name} nrefs:1|" in told
        assert signature in told


def test_the_encoder_learns_at_a_rate_of_its_own(translator: Path):
    for options, expected in (({}, 0.2), ({"encoder_rate": 1}, 1.0)):
        module = DistillationModule(Translation(**options), student=str(translator), learning_rate=1e-2)
        start = {name: value.clone() for name, value in module.student.state_dict().items()}
        found = trainer(max_steps=1)
        found.fit(module, TranslationData({"train": ROWS}, batch_size=5))
        rates = {p: group["initial_lr"] for group in found.optimizers[0].param_groups for p in group["params"]}
        of_encoder = {rates[p] for p in module.student.encoder.parameters() if p in rates}
        of_decoder = {rates[p] for p in module.student.decoder.parameters() if p in rates}
        assert (of_encoder, of_decoder) == ({expected * 1e-2}, {1e-2})
        assert any(not torch.equal(start[name], value) for name, value in module.student.state_dict().items())


def test_a_search_with_more_beams_finds_what_is_likelier(translator: Path):
    torch.manual_seed(0)
    module = load(translator)
    with torch.no_grad():
        for parameter in module.student.decoder.parameters():
            parameter.add_(0.15 * torch.randn_like(parameter))
        inputs = dict(module.tokenizer(TEXTS, return_tensors="pt", padding=True))
        found = {}
        for beams in (1, 6):
            tokens = Translation(num_beams=beams, length_penalty=0.0).generate(module.student, inputs, most=8)
            starts = torch.full((5, 1), 2)
            read = torch.cat([starts, tokens[:, :-1]], dim=1)
            log = module.student(**inputs, decoder_input_ids=read).logits.log_softmax(-1)
            each = log.gather(2, tokens.unsqueeze(-1)).squeeze(-1)
            ended = (tokens == 3).cumsum(1) - (tokens == 3).long()
            found[beams] = each.masked_fill(ended > 0, 0).sum().item()
    assert found[6] > found[1]


def test_texts_are_translated_in_order_and_nothing_is_nothing(translator: Path):
    module = load(translator)
    wanted = [translation for _, translation in PAIRS]
    assert module.predict([*TEXTS, "", " \n"], batch_size=2) == [*wanted, "", ""]
    assert module.predict([]) == []
    module.task.max_length = 2
    assert module.predict(TEXTS[:1])[0] != wanted[0]
    assert wanted[0].startswith(module.predict(TEXTS[:1])[0][:2])
    with pytest.raises(DistillationError, match="is a pair of texts"):
        module.predict([("a", "b")])
    assert module.predict(iter(TEXTS[:2])) == module.predict(TEXTS[:2])


def test_a_module_without_a_target_tokenizer_says_so(tiny_bert_dir: Path, tmp_path: Path):
    module = DistillationModule(Translation(), student=student(tiny_bert_dir))
    with pytest.raises(DistillationError, match="no target tokenizer yet"):
        module.predict(["a"])
    with pytest.raises(DistillationError, match="no target tokenizer yet"):
        module.save_student(tmp_path / "student")
    assert not (tmp_path / "student").exists()


@pytest.mark.parametrize(
    "options",
    [
        {"num_beams": 0},
        {"max_length": 0},
        {"evaluation_beams": 0},
        {"evaluation_length": 0},
        {"label_smoothing": 1.0},
        {"encoder_rate": 0},
        {"encoder_rate": math.inf},
    ],
)
def test_options_out_of_range_are_refused(options: dict[str, Any]):
    with pytest.raises(DistillationError, match=next(iter(options))):
        Translation(**options)


def test_missing_sacrebleu_is_said_before_training(tiny_bert_dir: Path, monkeypatch: pytest.MonkeyPatch):
    import sys

    monkeypatch.setitem(sys.modules, "sacrebleu.metrics", None)
    module = DistillationModule(Translation(), student=student(tiny_bert_dir))
    with pytest.raises(ImportError, match=r"lightning-distilbert\[translation\]"):
        trainer(max_steps=1).fit(module, TranslationData({"train": ROWS}))
