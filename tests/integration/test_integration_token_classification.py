"""Token classification through the Trainer: fit, evaluate, save, load, and find entities."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import seqeval.metrics
import torch
from pytorch_lightning import LightningDataModule, LightningModule, Trainer
from torch.utils.data import DataLoader
from transformers import AutoModelForTokenClassification, BertForTokenClassification

from lightning_distilbert import (
    DistillationError,
    DistillationLoss,
    DistillationModule,
    HiddenStates,
    SoftTargets,
    Student,
    TokenClassification,
    TokenClassificationData,
    load,
)
from lightning_distilbert.data.alignment import WordBatches
from lightning_distilbert.data.encoding import Padding

NAMES = ["O", "B-PER", "I-PER", "B-LOC", "I-LOC"]
ROWS = [
    {"tokens": "the man in old city took a book".split(), "tags": "O B-PER O B-LOC I-LOC O O O".split()},
    {"tokens": "old city is good .".split(), "tags": "B-LOC I-LOC O O O".split()},
    {"tokens": "Women give the child water".split(), "tags": "B-PER O O B-PER O".split()},
    {"tokens": ["dog"] * 70 + ["old", "city"], "tags": ["O"] * 70 + ["B-LOC", "I-LOC"]},
]


def trainer(**limits: Any) -> Trainer:
    quiet = {
        "logger": False,
        "enable_checkpointing": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
    }
    return Trainer(accelerator="cpu", devices=1, **quiet, **limits)


def data(rows: Any = ROWS, **options: Any) -> TokenClassificationData:
    return TokenClassificationData({"train": rows, "validation": rows}, batch_size=4, **options)


@pytest.fixture(scope="module")
def tagger(tiny_bert_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A teacher that has learnt the rows."""
    torch.manual_seed(0)
    module = DistillationModule(TokenClassification(labels=NAMES), student=str(tiny_bert_dir), learning_rate=3e-3)
    fitted = trainer(max_epochs=30)
    fitted.fit(module, data())
    assert fitted.callback_metrics["val/f1"] > 0.9
    return module.save_student(tmp_path_factory.mktemp("tagger") / "teacher")


def test_a_student_of_a_tagger_keeps_its_entities(tagger: Path, tmp_path: Path):
    module = DistillationModule(
        TokenClassification(), teacher=str(tagger), student=Student(layers=2), objectives=[SoftTargets()],
        learning_rate=3e-3,
    )  # fmt: skip
    assert module.labels == tuple(NAMES)  # of the teacher's config
    fitted = trainer(max_epochs=20)
    fitted.fit(module, data())
    assert fitted.callback_metrics["val/f1"] > 0.9
    words = ["the", "man", "\u200b", "in", "old", "city", "took", "a", "book"]
    texts = ["The man in old city took  a book", words, "", [], "\u200b"]
    found = module.predict(texts)
    assert [(e["label"], e["text"], e["start"], e["end"]) for e in found[0]] == [
        ("PER", "man", 4, 7), ("LOC", "old city", 11, 19),
    ]  # fmt: skip
    assert [(e["label"], e["text"], e["start"], e["end"]) for e in found[1]] == [
        ("PER", "man", 1, 2), ("LOC", "old city", 4, 6),
    ]  # fmt: skip
    assert found[2:] == [[], [], []]
    folder = module.save_student(tmp_path / "student")
    assert AutoModelForTokenClassification.from_pretrained(folder).config.id2label == dict(enumerate(NAMES))
    loaded = load(folder)
    assert loaded.task.labels == tuple(NAMES)
    assert loaded.predict(texts) == found
    checkpoint = tmp_path / "last.ckpt"
    fitted.save_checkpoint(checkpoint)
    assert DistillationModule.load_from_checkpoint(checkpoint, teacher=None).task.labels == tuple(NAMES)


def test_entities_of_long_texts_are_found_in_any_window(tagger: Path):
    module = load(tagger)
    text = "dog " * 70 + "old city . " + "dog " * 90 + "old city"  # the student reads 64 tokens
    (found,) = module.predict([text])
    assert [(e["label"], text[e["start"] : e["end"]]) for e in found] == [("LOC", "old city")] * 2
    assert found[0]["start"] == 280
    both = module.predict([text, "old city", text.split()], batch_size=2)
    assert both[0] == found
    assert [(e["start"], e["end"]) for e in both[2]] == [(70, 72), (163, 165)]
    assert module.predict([text], max_length=20)[0] != found  # another window, other probabilities


def test_the_scores_are_seqeval_s_of_the_predictions(tagger: Path):
    module = load(tagger)
    rows = [{**row, "tokens": row["tokens"][::-1]} for row in ROWS]  # out of order, so that there are mistakes
    (scores,) = trainer().validate(module, data(rows, max_length=40), verbose=False)
    tags = [["O"] * len(row["tokens"]) for row in rows]
    # the same windows: what a word's neighbours are changes what it is taken for
    for row, entities in zip(tags, module.predict([row["tokens"] for row in rows], max_length=40), strict=True):
        for entity in entities:
            size = entity["end"] - entity["start"]
            row[entity["start"] : entity["end"]] = [f"{letter}-{entity['label']}" for letter in "B" + "I" * (size - 1)]
    gold = [row["tags"] for row in rows]
    assert 0 < scores["val/f1"] < 1
    for name in ("precision", "recall", "f1"):
        wanted = getattr(seqeval.metrics, f"{name}_score")(gold, tags)
        assert scores[f"val/{name}"] == pytest.approx(wanted)


def test_a_trainer_predicts_sentence_by_sentence(tagger: Path):
    module = load(tagger)
    rows = [{"tokens": row["tokens"]} for row in ROWS]
    batches = trainer().predict(module, TokenClassificationData({"predict": rows}, eval_batch_size=3))
    assert [len(batch) for batch in batches] == [3, 1]
    found = [entities for batch in batches for entities in batch]
    direct = module.predict([row["tokens"] for row in rows])
    for mine, theirs in zip(found, direct, strict=True):
        assert [{**e, "score": pytest.approx(e["score"], abs=1e-5)} for e in theirs] == mine


def test_soft_targets_are_compared_where_words_begin_and_nowhere_else(tagger: Path, tiny_bert_dir: Path):
    torch.manual_seed(1)
    student = BertForTokenClassification.from_pretrained(str(tiny_bert_dir), num_labels=5)
    module = DistillationModule(
        TokenClassification(labels=NAMES), teacher=str(tagger), student=student, tokenizer=str(tagger),
        objectives=[SoftTargets(temperature=1.0)],
    )  # fmt: skip
    source = data()
    trainer(max_steps=1, limit_val_batches=0).fit(module, source)
    batch = next(iter(source.train_dataloader()))
    module.eval()
    with module.watch(batch) as taps:
        module(batch)
    _, logs = module.distiller.total(None, taps.records)
    teacher = BertForTokenClassification.from_pretrained(tagger).eval()
    inputs = {name: batch[name] for name in ("input_ids", "attention_mask", "token_type_ids")}
    with torch.no_grad():
        ours, theirs = (model.eval()(**inputs).logits[batch["first_subword"]] for model in (student, teacher))
    rows = torch.nn.functional.kl_div(
        ours.double().log_softmax(-1), theirs.double().log_softmax(-1), log_target=True, reduction="none"
    ).sum(-1)  # fmt: skip
    assert len(rows) == batch["first_subword"].sum() < batch["attention_mask"].sum()
    assert logs["distill/soft_targets"].item() == pytest.approx(rows.mean().item(), rel=1e-4)


class Own(LightningModule):
    """A tagger that knows nothing of this package, and calls its model on the whole sequence."""

    def __init__(self, model: torch.nn.Module) -> None:
        super().__init__()
        self.model = model

    def training_step(self, batch, batch_idx):
        return self.model(**{name: batch[name] for name in ("input_ids", "attention_mask", "labels")}).loss

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.0)


@pytest.mark.parametrize("told", [True, False])
def test_the_callback_compares_where_words_begin_if_the_batch_tells(tagger: Path, tiny_bert_dir: Path, told: bool):
    rows = data(tokenizer=str(tagger), labels=NAMES)
    module = Own(AutoModelForTokenClassification.from_pretrained(tiny_bert_dir, num_labels=5))
    rows.setup("fit")
    batch = next(iter(rows.train_dataloader()))
    words, real = batch["first_subword"], batch["attention_mask"].bool()
    assert 0 < words.sum() < real.sum()
    if not told:
        del batch["first_subword"]
    teacher = AutoModelForTokenClassification.from_pretrained(tagger).eval()
    for part in module.model.modules():
        if isinstance(part, torch.nn.Dropout):
            part.p = 0.0
    module.model.train()
    callback = DistillationLoss(str(tagger), objectives=[SoftTargets(temperature=1.0)])
    fitted = trainer(max_steps=1, callbacks=[callback])
    fitted.fit(module, DataLoader([batch], batch_size=None))
    inputs = {name: batch[name] for name in ("input_ids", "attention_mask")}
    with torch.no_grad():
        ours, theirs = (model(**inputs).logits[words if told else real] for model in (module.model, teacher))
    expected = torch.nn.functional.kl_div(ours.log_softmax(-1), theirs.softmax(-1), reduction="batchmean")
    assert fitted.callback_metrics["distill/soft_targets"].item() == pytest.approx(expected.item(), rel=1e-4)


def test_unlabelled_sentences_are_learnt_from_the_teacher_alone(tagger: Path):
    def build() -> DistillationModule:
        torch.manual_seed(0)
        return DistillationModule(
            TokenClassification(), teacher=str(tagger), student=Student(layers=1), learning_rate=3e-3, task_weight=1.0,
            objectives=[SoftTargets(), HiddenStates(weight=0.1)],
        )  # fmt: skip

    texts = [" ".join(row["tokens"]) for row in ROWS]
    module = build()
    alone = trainer(max_epochs=15)
    alone.fit(module, TokenClassificationData({"validation": ROWS}, unlabelled=texts, batch_size=4))
    assert alone.callback_metrics["val/f1"] > 0.8
    assert "train/task_loss" not in alone.callback_metrics
    with pytest.raises(DistillationError, match="unlabelled rows and no teacher"):
        trainer(max_epochs=1).fit(
            DistillationModule(TokenClassification(labels=NAMES), student=str(tagger)),
            TokenClassificationData({"train": ROWS}, unlabelled=texts),
        )


def test_names_that_only_the_data_knows_are_scored_and_saved(tiny_bert_dir: Path, tmp_path: Path):
    module = DistillationModule(TokenClassification(num_labels=5), student=str(tiny_bert_dir))
    fitted = trainer(max_epochs=1)
    fitted.fit(module, data())
    assert "val/f1" in fitted.callback_metrics
    assert module.labels == ("O", "B-LOC", "I-LOC", "B-PER", "I-PER")
    folder = module.save_student(tmp_path / "student")
    assert load(folder).labels == module.labels
    assert isinstance(load(folder).predict(["old city"])[0], list)


def test_labels_that_nobody_names_are_refused_when_the_module_is_built(tiny_bert_dir: Path):
    with pytest.raises(DistillationError, match="neither labels nor num_labels"):
        DistillationModule(TokenClassification(), student=str(tiny_bert_dir))
    with pytest.raises(DistillationError, match="neither labels nor num_labels"):
        DistillationModule(TokenClassification(), teacher=str(tiny_bert_dir))


def test_batches_of_a_user_s_own_are_trained_on_and_scored(tagger: Path, tiny_bert_dir: Path):
    class Own(LightningDataModule):
        """Gives what transformers' collator gives: no sentences and no words, only labels."""

        def loader(self) -> DataLoader:
            source = data(tokenizer=str(tiny_bert_dir), labels=NAMES)
            source.setup("fit")
            rows = source._encoded["train"]

            def collate(part: list[Any]) -> dict[str, torch.Tensor]:
                batch = WordBatches(Padding(0))(part)
                return {name: batch[name] for name in ("input_ids", "attention_mask", "token_type_ids", "labels")}

            return DataLoader(rows, batch_size=3, collate_fn=collate)

        train_dataloader = val_dataloader = loader

    module = DistillationModule(TokenClassification(labels=NAMES), teacher=str(tagger), student=str(tagger))
    fitted = trainer(max_epochs=1)
    fitted.fit(module, Own())
    assert fitted.callback_metrics["val/f1"] > 0.5
    with pytest.raises(DistillationError, match="labels have no names"):
        trainer(max_epochs=1).fit(
            DistillationModule(TokenClassification(num_labels=5), student=str(tiny_bert_dir)), Own()
        )
