"""Batches of translations, and what data with bad lengths, tokenizers or options say."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from lightning_distilbert import (
    DistillationError,
    DistillationModule,
    Translation,
    TranslationData,
    train_target_tokenizer,
)
from lightning_distilbert.folder import load_tokenizer
from tests.parallel_texts import PAIRS, ROWS, save_parallel, student, trainer

GERMAN = train_target_tokenizer([translation for _, translation in PAIRS], 90)


@pytest.fixture
def english(tokenizer_dir: Path) -> Any:
    return load_tokenizer(tokenizer_dir)


def data(source: Any, english: Any, **options: Any) -> TranslationData:
    return TranslationData(source, tokenizer=english, **{"target_tokenizer": GERMAN, "batch_size": 8, **options})


def texts_of(batch: dict[str, Any]) -> set[str]:
    return set(GERMAN.batch_decode(batch["labels"].clamp(min=0), skip_special_tokens=True))


def test_a_batch_holds_both_sides(english: Any):
    batch = next(iter(data({"train": ROWS}, english).train_dataloader()))
    assert set(batch) == {"input_ids", "attention_mask", "token_type_ids", "labels", "decoder_input_ids"}
    assert batch["labels"].shape == batch["decoder_input_ids"].shape
    for labels, read in zip(batch["labels"].tolist(), batch["decoder_input_ids"].tolist(), strict=True):
        tokens = [token for token in labels if token != -100]
        assert tokens[-1] == GERMAN.eos_token_id
        assert read == [GERMAN.bos_token_id, *tokens, *[0] * len(labels)][: len(labels)]
        assert labels[len(tokens) :] == [-100] * (len(labels) - len(tokens))
    assert texts_of(batch) == {translation for _, translation in PAIRS}


def test_evaluation_brings_the_texts_as_they_were_written(english: Any):
    rows = [{"source": "a dog", "target": "  ein\u00a0Hund \u4e2d"}, *ROWS]
    source = data({"validation": rows, "predict": [{"source": "a dog"}, {"source": ""}]}, english)
    batch = next(iter(source.val_dataloader()))
    assert "  ein\u00a0Hund \u4e2d" in batch["reference"]
    by_text = dict(zip(batch["reference"], english.batch_decode(batch["input_ids"]), strict=True))
    assert by_text["ein guter Film"].startswith("[CLS] a good film")
    source.setup("predict")
    (found,) = source.predict_dataloader()
    assert set(found) == {"input_ids", "attention_mask", "token_type_ids"}
    assert len(found["input_ids"]) == 2


def test_files_folders_columns_and_lengths_are_options(english: Any, tmp_path: Path):
    folder = save_parallel(tmp_path / "texts")
    wanted = {translation for _, translation in PAIRS}
    for source, options in (
        (folder, {"languages": ["en", "de"]}),
        ([str(folder / "train.en"), str(folder / "train.de")], {}),
        ({"train": str(folder / "train")}, {"languages": ["en", "de"]}),
        ([{"en": text, "de": translation} for text, translation in PAIRS], {"text": "en", "target": "de"}),
        ([{"translation": dict(zip(("en", "de"), pair, strict=True))} for pair in PAIRS], {"languages": ["en", "de"]}),
    ):
        assert texts_of(next(iter(data(source, english, **options).train_dataloader()))) == wanted
    tables = "\n".join("\t".join(pair) for pair in PAIRS)
    (tmp_path / "train.tsv").write_text(tables, encoding="utf-8")
    table = data(str(tmp_path / "train.tsv"), english, columns=["source", "target"])
    assert texts_of(next(iter(table.train_dataloader()))) == wanted
    batch = next(iter(data(ROWS, english, pad_to_multiple_of=8).train_dataloader()))
    assert batch["labels"].shape[1] % 8 == batch["input_ids"].shape[1] % 8 == 0


def test_training_pairs_that_are_too_long_are_left_out_and_counted(english: Any):
    rows = [*ROWS, {"source": "a " * 40, "target": "kurz"}, {"source": "short", "target": "Hund " * 30}]
    source = data({"train": rows}, english, max_length=16, max_target_length=20)
    message = r"2 of 7 pairs are too long .*: 1 translations have more than 20 tokens, the other .* 16\. .* number 6"
    with pytest.warns(UserWarning, match=message):
        source.setup("fit")
    assert len(source._encoded["train"]) == 5
    batch = next(iter(source.train_dataloader()))
    assert texts_of(batch) == {translation for _, translation in PAIRS}
    with pytest.raises(DistillationError, match="None is left"):
        data({"train": rows[-1:]}, english, max_target_length=20).setup("fit")
    # a score is that of all sentences, however long
    test = data({"test": rows}, english, max_length=16, max_target_length=20)
    test.setup("test")
    assert len(test._encoded["test"]) == 7
    batch = next(iter(test.test_dataloader()))
    assert (batch["labels"].shape[1], batch["input_ids"].shape[1]) == (20, 16)


def test_the_decoder_s_positions_are_the_limit(tiny_bert_dir: Path):
    module = DistillationModule(Translation(), student=student(tiny_bert_dir, max_target_positions=12))
    rows = [*ROWS, {"source": "short", "target": "Hund und Katze " * 6}]
    with pytest.warns(UserWarning, match=r"1 of 6 pairs are too long .* 1 translations have more than 12 tokens"):
        trainer(max_epochs=1).fit(module, TranslationData({"train": rows}, batch_size=8))
    with pytest.raises(DistillationError, match="max_target_length=13, and the decoder has positions for 12"):
        trainer(max_epochs=1).fit(module, TranslationData({"train": ROWS}, max_target_length=13))
    # translations that fill all positions can be read and written
    assert isinstance(module.predict(["the dog"])[0], str)


def test_unequal_files_and_empty_sides_stop_or_are_counted(english: Any, tmp_path: Path):
    folder = save_parallel(tmp_path / "texts")
    (folder / "train.de").write_text("ein Hund\n", encoding="utf-8")
    with pytest.raises(DistillationError, match=r"train\.en has 5 lines and .*train\.de 1"):
        data(folder, english, languages=["en", "de"]).setup("fit")
    rows = [*ROWS, {"source": "", "target": "nichts"}, {"source": "nothing", "target": " "}]
    source = data({"train": rows}, english)
    with pytest.warns(UserWarning, match="2 of 7 pairs have an empty side"):
        source.setup("fit")
    assert len(source._encoded["train"]) == 5


def test_the_target_tokenizer_is_trained_on_the_training_split_for_the_decoder(tiny_bert_dir: Path):
    module = DistillationModule(Translation(), student=student(tiny_bert_dir, vocab_size=60))
    source = TranslationData({"train": ROWS, "validation": [{"source": "a", "target": "Zebra"}]}, batch_size=8)
    trainer(max_epochs=1, limit_val_batches=0).fit(module, source)
    tokenizer = module._target_tokenizer
    assert len(tokenizer) == 60
    assert tokenizer.model_max_length == 24
    assert tokenizer.unk_token_id in tokenizer("Zebra")["input_ids"]  # of the training split no word has a Z
    assert torch.isfinite(trainer().validate(module, source, verbose=False)[0]["val/loss"] * torch.ones(()))


def test_a_target_tokenizer_that_is_missing_or_another_is_refused(tiny_bert_dir: Path, english: Any):
    with pytest.raises(DistillationError, match="no module with a student is attached"):
        TranslationData({"train": ROWS}, tokenizer=english).setup("fit")
    with pytest.raises(DistillationError, match="no target tokenizer to read the translations of the test split"):
        TranslationData({"test": ROWS}, tokenizer=english).setup("test")
    module = DistillationModule(Translation(), student=student(tiny_bert_dir))
    trainer(max_epochs=1).fit(module, TranslationData({"train": ROWS}, target_tokenizer=GERMAN))
    assert module._target_tokenizer is GERMAN
    other = train_target_tokenizer(["ganz andere Wörter"], 60)
    with pytest.raises(DistillationError, match="a target tokenizer of its own"):
        trainer(max_epochs=1).fit(module, TranslationData({"train": ROWS}, target_tokenizer=other))
    small = DistillationModule(Translation(), student=student(tiny_bert_dir, vocab_size=30))
    with pytest.raises(DistillationError, match="decoder only 30"):
        trainer(max_epochs=1).fit(small, TranslationData({"train": ROWS}, target_tokenizer=GERMAN))


def test_bad_options_are_refused():
    with pytest.raises(DistillationError, match="max_target_length=1"):
        TranslationData(ROWS, max_target_length=1)
    with pytest.raises(DistillationError, match="they are two"):
        TranslationData(ROWS, languages=["en"]).splits()
