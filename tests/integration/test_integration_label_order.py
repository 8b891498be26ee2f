"""A teacher with the student's labels in another order teaches what one with permuted head rows would."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from pytorch_lightning import Callback, LightningDataModule, LightningModule, Trainer
from torch.utils.data import DataLoader
from transformers import (
    AutoModelForSequenceClassification,
    AutoModelForTokenClassification,
    AutoTokenizer,
    BertForMaskedLM,
    BertForQuestionAnswering,
    BertForSequenceClassification,
    BertForTokenClassification,
)

from lightning_distilbert import (
    DistillationError,
    DistillationLoss,
    DistillationModule,
    HiddenStates,
    SoftTargets,
    Student,
    TextClassification,
    TextClassificationData,
    TokenClassification,
    TokenClassificationData,
)

TOPICS = ["world", "sports", "science"]
TAGS = ["O", "B-PER", "I-PER"]
KINDS = {
    "one label": (BertForSequenceClassification, TOPICS, lambda names: TextClassification(labels=names)),
    "several labels": (
        BertForSequenceClassification, TOPICS,
        lambda names: TextClassification(labels=names, problem_type="multi_label_classification"),
    ),
    "tags": (BertForTokenClassification, TAGS, lambda names: TokenClassification(labels=names)),
}  # fmt: skip
ORDER = [2, 0, 1]  # the teacher's output for each label of the student


def save_teacher(folder: Path, kind: str, source: Path, permuted: bool) -> Path:
    """Save a teacher with its labels in an order of its own, or the same one with its head's rows in the student's."""
    torch.manual_seed(0)
    cls, names, task = KINDS[kind]
    theirs = [names[ORDER.index(place)] for place in range(3)]
    problem = {"problem_type": getattr(task(names), "problem_type", None)}
    model = cls.from_pretrained(str(source), num_labels=3, **problem)
    torch.nn.init.normal_(model.classifier.weight, std=2.0)
    torch.nn.init.normal_(model.classifier.bias)
    if permuted:
        model.classifier.weight.data = model.classifier.weight.data[ORDER]
        model.classifier.bias.data = model.classifier.bias.data[ORDER]
        theirs = names
    model.config.id2label = dict(enumerate(theirs))
    model.config.label2id = {name: number for number, name in enumerate(theirs)}
    model.save_pretrained(folder)
    AutoTokenizer.from_pretrained(source).save_pretrained(folder)
    return folder


def rows_of(kind: str) -> Any:
    if kind == "tags":
        rows = [
            {"tokens": ["the", "old", "man"], "tags": ["O", "B-PER", "I-PER"]},
            {"tokens": ["houses"], "tags": ["O"]},
        ]
        return TokenClassificationData(rows * 2, batch_size=2)
    labels = TOPICS if kind == "one label" else [["world"], [], ["sports", "science"]]
    return TextClassificationData([{"text": f"the {n} man", "label": labels[n % 3]} for n in range(4)], batch_size=2)


class Losses(Callback):
    """Notes what every step logs."""

    def __init__(self) -> None:
        self.found: list[dict[str, float]] = []

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        self.found.append({name: value.item() for name, value in trainer.callback_metrics.items()})


def fit(module: LightningModule, data: Any, *callbacks: Callback) -> list[dict[str, float]]:
    torch.manual_seed(0)
    losses = Losses()
    Trainer(
        max_epochs=2, accelerator="cpu", devices=1, logger=False, enable_checkpointing=False,
        enable_progress_bar=False, enable_model_summary=False, callbacks=[*callbacks, losses],
    ).fit(module, data)  # fmt: skip
    return losses.found


@pytest.mark.parametrize("kind", KINDS)
def test_the_loss_is_that_of_a_teacher_whose_head_was_permuted_by_hand(kind: str, tmp_path: Path, tiny_bert_dir: Path):
    found = []
    for permuted in (False, True):
        teacher = save_teacher(tmp_path / str(permuted), kind, tiny_bert_dir, permuted)
        torch.manual_seed(0)
        module = DistillationModule(
            KINDS[kind][2](KINDS[kind][1]), teacher=str(teacher), student=Student(source=str(tiny_bert_dir)),
            objectives=[SoftTargets()],
        )  # fmt: skip
        found.append(fit(module, rows_of(kind)))
        assert module.distiller.label_order == (None if permuted else ORDER)
        assert module.student.config.id2label == dict(enumerate(KINDS[kind][1]))  # what the student saves is its own
    assert len(found[0]) == 4
    for ours, theirs in zip(*found, strict=True):
        assert ours == pytest.approx(theirs, rel=1e-5)
    assert found[0][0]["distill/soft_targets"] > 0.1
    # and it is not the loss of the outputs number by number
    module.distiller.label_order = ORDER
    batch = next(iter(rows_of_batches(module, kind)))
    module.eval()
    with module.watch(batch) as taps:
        module(batch)
    wrong = module.distiller.terms(taps.records)["soft_targets"]
    module.distiller.label_order = None
    assert abs(wrong - module.distiller.terms(taps.records)["soft_targets"]) > 0.1


def rows_of_batches(module: Any, kind: str) -> Any:
    data = rows_of(kind)
    data.trainer = module.trainer
    data.setup("fit")
    return data.train_dataloader()


class Foreign(LightningModule):
    """Knows nothing of distillation."""

    def __init__(self, model: torch.nn.Module) -> None:
        super().__init__()
        self.model = model

    def training_step(self, batch, batch_idx):
        inputs = {name: batch[name] for name in ("input_ids", "attention_mask", "labels")}
        return self.model(**inputs).loss

    def validation_step(self, batch, batch_idx):
        """Nothing: that Lightning says nothing of its absence."""

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.01)


@pytest.mark.parametrize("named_by", ["config", "data"])
@pytest.mark.parametrize("kind", ["one label", "tags"])
def test_the_callback_aligns_labels_that_the_student_s_config_or_the_data_names(
    kind: str, named_by: str, tmp_path: Path, tiny_bert_dir: Path
):
    names = KINDS[kind][1]
    auto = AutoModelForTokenClassification if kind == "tags" else AutoModelForSequenceClassification
    found, orders = [], []
    for permuted in (False, True):
        teacher = save_teacher(tmp_path / str(permuted), kind, tiny_bert_dir, permuted)
        torch.manual_seed(0)
        student = auto.from_pretrained(str(tiny_bert_dir), num_labels=3)
        if named_by == "config":
            student.config.id2label = dict(enumerate(names))
        data = rows_of(kind)
        data.tokenizer, data.labels = str(teacher), names
        source: Any = data if named_by == "data" else Batches(data)
        callback = DistillationLoss(teacher, objectives=[SoftTargets()])
        found.append(fit(Foreign(student), source, callback))
        orders.append(callback.distiller.label_order)
    assert orders == [ORDER, None]
    for ours, theirs in zip(*found, strict=True):
        assert ours == pytest.approx(theirs, rel=1e-5)
    assert found[0][0]["distill/soft_targets"] > 0.1


class Batches(LightningDataModule):
    """The batches of another data module, without the names of its labels."""

    def __init__(self, data: Any) -> None:
        super().__init__()
        self.data = data

    def train_dataloader(self) -> DataLoader:
        self.data.setup("fit")
        return self.data.train_dataloader()

    def val_dataloader(self) -> list[DataLoader]:
        return self.data.val_dataloader()


def test_a_config_and_data_that_name_the_labels_in_two_orders_are_refused(tmp_path: Path, tiny_bert_dir: Path):
    teacher = save_teacher(tmp_path / "teacher", "one label", tiny_bert_dir, permuted=True)
    student = AutoModelForSequenceClassification.from_pretrained(str(teacher))
    data = rows_of("one label")
    data.tokenizer, data.labels = str(teacher), TOPICS[::-1]
    with pytest.raises(
        DistillationError, match=r"config has the labels \['world', .* data \['science', .* another order"
    ):
        fit(Foreign(student), data, DistillationLoss(teacher, objectives=[SoftTargets()]))


@pytest.mark.parametrize("kind", KINDS)
def test_other_labels_matter_to_objectives_on_logits_alone(kind: str, tmp_path: Path, tiny_bert_dir: Path):
    teacher = save_teacher(tmp_path / "teacher", kind, tiny_bert_dir, permuted=True)
    config = json.loads((teacher / "config.json").read_text())
    config["id2label"] = {"0": "O", "1": "B-X", "2": "I-X"}
    (teacher / "config.json").write_text(json.dumps(config))
    for objectives in ([HiddenStates()], [HiddenStates(), SoftTargets()]):
        module = DistillationModule(
            KINDS[kind][2](KINDS[kind][1]), teacher=str(teacher), student=Student(source=str(tiny_bert_dir)),
            objectives=objectives,
        )  # fmt: skip
        if len(objectives) == 1:
            assert fit(module, rows_of(kind))[0]["distill/hidden_states"] > 0
            assert module.labels == tuple(KINDS[kind][1])
        else:
            with pytest.raises(DistillationError, match="Use the teacher's names"):
                fit(module, rows_of(kind))


@pytest.mark.parametrize("kind", [BertForMaskedLM, BertForQuestionAnswering])
def test_names_that_a_config_kept_from_a_former_head_order_nothing(kind: Any, tiny_bert_dir: Path):
    """They would take two columns out of a vocabulary, or two of the positions of an answer."""
    teacher, student = kind.from_pretrained(tiny_bert_dir), kind.from_pretrained(tiny_bert_dir)
    teacher.config.id2label, student.config.id2label = {0: "bad", 1: "good"}, {0: "good", 1: "bad"}
    ids = torch.arange(5, 17).view(2, 6)
    ends = dict.fromkeys(["start_positions", "end_positions"], torch.tensor([1, 2]))
    targets = {"labels": ids} if kind is BertForMaskedLM else ends

    class Mine(Foreign):
        def training_step(self, batch, batch_idx):
            return self.model(**batch).loss

    callback = DistillationLoss(teacher, objectives=[SoftTargets()])
    batches = DataLoader([{"input_ids": ids, "attention_mask": torch.ones_like(ids), **targets}], batch_size=None)
    trainer = Trainer(max_steps=1, callbacks=[callback], logger=False, enable_checkpointing=False, accelerator="cpu")
    trainer.fit(Mine(student), batches, batches)
    assert callback.distiller.label_order is None
    assert trainer.callback_metrics["distill/soft_targets"] > 0


def test_a_second_fit_with_another_teacher_forgets_the_order(tmp_path: Path, tiny_bert_dir: Path):
    teacher = save_teacher(tmp_path / "teacher", "one label", tiny_bert_dir, permuted=False)
    callback = DistillationLoss(teacher, objectives=[SoftTargets()])
    student = AutoModelForSequenceClassification.from_pretrained(str(tiny_bert_dir), num_labels=3)
    data = rows_of("one label")
    data.tokenizer, data.labels = str(teacher), TOPICS
    fit(Foreign(student), data, callback)
    assert callback.distiller.label_order == ORDER
    theirs = json.loads((teacher / "config.json").read_text())["id2label"]
    student.config.id2label = {int(number): name for number, name in theirs.items()}
    data = rows_of("one label")
    data.tokenizer, data.labels = str(teacher), list(theirs.values())
    fit(Foreign(student), data, callback)
    assert callback.distiller.label_order is None
