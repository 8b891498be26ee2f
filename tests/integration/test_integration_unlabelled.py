"""Labelled and unlabelled rows in one fit: what the task counts, and what the teacher teaches."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from pytorch_lightning import Callback, Trainer
from torch.nn import functional as F

from lightning_distilbert import (
    DistillationError,
    DistillationModule,
    Retrieval,
    RetrievalData,
    SoftTargets,
    Student,
    TextClassification,
    TextClassificationData,
)

LABELLED = [{"text": "a great movie", "label": 1}, {"text": "the dull plot of it", "label": 0}]
MORE = ["a long story", "good", "the best of all the movies"]
PAIRS = [("great", "a great movie"), ("dull", "the dull story")]


class Losses(Callback):
    """Keeps what each step logged, and the batch."""

    def __init__(self) -> None:
        self.steps: list[tuple[dict[str, Any], Any]] = []

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        self.steps.append(({name: float(value) for name, value in trainer.callback_metrics.items()}, batch))


def fit(module: Any, data: Any, epochs: int = 1) -> list[tuple[dict[str, Any], Any]]:
    losses = Losses()
    trainer = Trainer(
        max_epochs=epochs,
        accelerator="cpu",
        devices=1,
        logger=False,
        callbacks=[losses],
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(module, data)
    return losses.steps


def without_dropout(module: DistillationModule) -> DistillationModule:
    for part in module.modules():
        if isinstance(part, torch.nn.Dropout):
            part.p = 0.0
    return module


def classifier(teacher: Path | None, **options: Any) -> DistillationModule:
    torch.manual_seed(0)
    task, student = TextClassification(num_labels=2), Student(layers=2)
    return without_dropout(DistillationModule(task, teacher, student, objectives=[SoftTargets()], **options))


def test_the_task_counts_labelled_rows_and_the_teacher_all(tiny_teacher_dir: Path):
    module = classifier(tiny_teacher_dir, learning_rate=0.0)
    data = TextClassificationData({"train": LABELLED}, unlabelled=MORE, batch_size=5)
    ((logged, batch),) = fit(module, data)
    assert sorted(batch["labels"].tolist()) == [-100, -100, -100, 0, 1]
    known = batch["labels"] >= 0
    assert module.distiller is not None
    with torch.no_grad():
        student = module({name: value for name, value in batch.items() if name != "labels"})["logits"]
        tokens = {name: value for name, value in batch.items() if name != "labels"}
        teacher = module.distiller.teacher.model(**tokens).logits
    expected = F.cross_entropy(student[known], batch["labels"][known])
    assert logged["train/task_loss"] == pytest.approx(expected.item(), rel=1e-5)
    temperature = SoftTargets().temperature
    assert isinstance(temperature, float)
    divergence = F.kl_div(
        F.log_softmax(student / temperature, -1),
        F.log_softmax(teacher / temperature, -1),
        log_target=True,
        reduction="none",
    )
    assert logged["distill/soft_targets"] == pytest.approx(divergence.sum(-1).mean().item() * temperature**2, rel=1e-4)


def test_a_batch_without_any_label_trains_on_the_teacher_alone(tiny_teacher_dir: Path):
    module = classifier(tiny_teacher_dir, learning_rate=1e-2)
    before = {name: value.clone() for name, value in module.student.named_parameters()}
    data = TextClassificationData({"train": LABELLED}, unlabelled=MORE, batch_size=1)
    steps = fit(module, data)
    assert len(steps) == 5
    losses = [logged["train/task_loss"] for logged, batch in steps if (batch["labels"] == -100).all()]
    assert losses == [0.0] * 3
    assert all(parameter.isfinite().all() for parameter in module.parameters())
    assert all(not torch.equal(value, before[name]) for name, value in module.student.named_parameters())


def test_without_any_labels_the_head_takes_part_all_the_same(tiny_teacher_dir: Path):
    # as DDP has it, which takes a parameter without a gradient for a mistake
    module = DistillationModule(
        TextClassification(num_labels=2), tiny_teacher_dir, Student(layers=2, architecture="same"), "tinybert"
    )
    gradients: list[dict[str, Any]] = []
    module.on_after_backward = lambda: gradients.append({name: p.grad for name, p in module.named_parameters()})
    fit(module, TextClassificationData({"train": [{"text": text} for text in MORE]}, label=None, batch_size=3))
    assert [name for name, gradient in gradients[0].items() if gradient is None] == []
    assert not gradients[0]["student.classifier.weight"].any()


def test_unlabelled_rows_change_what_is_learnt(tiny_teacher_dir: Path):
    plain, more = classifier(tiny_teacher_dir), classifier(tiny_teacher_dir)
    fit(plain, TextClassificationData({"train": LABELLED}))
    fit(more, TextClassificationData({"train": LABELLED}, unlabelled=MORE))
    first, second = plain.state_dict(), more.state_dict()
    assert any(not torch.equal(first[name], second[name]) for name in first)


def test_unlabelled_rows_need_a_teacher(tiny_teacher_dir: Path):
    torch.manual_seed(0)
    module = DistillationModule(TextClassification(num_labels=2), student=str(tiny_teacher_dir))
    with pytest.raises(DistillationError, match="There are unlabelled rows and no teacher"):
        fit(module, TextClassificationData({"train": LABELLED}, unlabelled=MORE))


def test_documents_without_queries_are_taught_by_the_embedding_alone(tiny_bert_dir: Path):
    torch.manual_seed(0)
    module = DistillationModule(Retrieval(), teacher=tiny_bert_dir, student=Student(layers=2), learning_rate=0.0)
    without_dropout(module)
    data = RetrievalData({"train": PAIRS}, unlabelled=MORE, batch_size=5)
    ((logged, _),) = fit(module, data)
    (whole,) = fit(module, RetrievalData({"train": PAIRS}, batch_size=5))
    # the contrastive loss is that of the pairs, and the other terms count the documents too
    assert logged["train/task_loss"] == pytest.approx(whole[0]["train/task_loss"], rel=1e-5)
    terms = [name for name in logged if name.startswith("distill/")]
    assert terms
    assert any(logged[name] != pytest.approx(whole[0][name], rel=1e-3) for name in terms)
    # documents alone: no query anywhere, and still something to learn
    before = {name: value.clone() for name, value in module.student.named_parameters()}
    module.hparams["learning_rate"] = 1e-3
    steps = fit(module, RetrievalData({"dev": PAIRS}, unlabelled=MORE, batch_size=2))
    assert [logged["train/task_loss"] for logged, _ in steps] == [0.0, 0.0]
    assert all(value.isfinite().all() for value in module.parameters())
    assert any(not torch.equal(value, before[name]) for name, value in module.student.named_parameters())
