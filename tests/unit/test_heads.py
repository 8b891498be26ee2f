"""A head that learnt nothing is not saved as if it had."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from pytorch_lightning import Trainer
from transformers import AutoConfig, BertConfig, BertForMaskedLM, BertForSequenceClassification, BertModel

from lightning_distilbert import (
    DistillationError,
    DistillationModule,
    Linear,
    MaskedLM,
    Student,
    TextClassification,
    build_student,
)
from lightning_distilbert.data.masked_words import MaskedWords
from lightning_distilbert.heads import note_training, trained_part
from lightning_distilbert.loading import load_model

MLM, CLASSIFIER = "AutoModelForMaskedLM", "AutoModelForSequenceClassification"


def model(cls: Any, **options: Any) -> Any:
    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "num_hidden_layers": 4, "num_attention_heads": 2, "intermediate_size": 24}
    return cls(BertConfig(vocab_size=30, **sizes, **options))


# -- where a head comes from -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("teacher", "auto_class", "options", "fresh"),
    [
        (BertForMaskedLM, MLM, {}, False),
        (BertForMaskedLM, MLM, {"architecture": "same"}, False),
        (BertForMaskedLM, MLM, {"intermediate_size": 8}, False),
        (BertForMaskedLM, MLM, {"hidden_size": 8}, True),
        (BertForMaskedLM, MLM, {"hidden_size": 8, "architecture": "same"}, True),
        (BertModel, MLM, {}, True),
        (BertForMaskedLM, CLASSIFIER, {}, True),
        (BertForSequenceClassification, CLASSIFIER, {"num_labels": 2}, False),
        (BertForSequenceClassification, CLASSIFIER, {"num_labels": 3}, True),
        (BertModel, "AutoModel", {}, False),  # there is none
    ],
)
def test_students_say_whether_their_head_is_fresh(teacher: Any, auto_class: str, options: Any, fresh: bool):
    student = build_student(model(teacher), 2, auto_class=auto_class, **options)
    assert getattr(student.config, "fresh_head", False) is fresh
    # a student of a student with a random head has one too, cut or loaded
    if auto_class == MLM and "hidden_size" not in options:
        assert getattr(build_student(student, 1, auto_class=MLM).config, "fresh_head", False) is fresh


def test_students_of_folders_say_it_too(tiny_bert_dir: Path, tiny_mlm_dir: Path, tmp_path: Path):
    for folder, fresh in ((tiny_bert_dir, True), (tiny_mlm_dir, False)):
        for layers in (None, 2):
            student = Student(source=str(folder), layers=layers).build(auto_class=MLM)
            assert getattr(student.config, "fresh_head", False) is fresh
    random = Student(source=str(tiny_bert_dir)).build(auto_class=MLM)
    random.save_pretrained(tmp_path)  # by hand; what is in a folder was trained for all that anyone knows
    assert load_model(tmp_path, MLM, whole=True).config.fresh_head is False
    config = model(BertForMaskedLM).config.to_dict()
    assert Student(config=config).build(auto_class=MLM).config.fresh_head is True
    assert Student(config=config | {"fresh_head": False}).build(auto_class=MLM).config.fresh_head is False


# -- what is saved of it -----------------------------------------------------------------------------------------------

WHOLE, ENCODER = "DistilBertForMaskedLM", "DistilBertModel"


@pytest.mark.parametrize(
    ("objectives", "weight", "options", "saved"),
    [
        ("distilbert", None, {}, WHOLE),
        ("logits", 0.0, {"hidden_size": 8}, WHOLE),
        ("minilm", None, {}, ENCODER),
        ("minilm", None, {"hidden_size": 16}, ENCODER),
        ("minilm", 0.1, {"hidden_size": 16}, WHOLE),
        ("minilm", Linear(1.0, 0.0), {"hidden_size": 16}, WHOLE),
        # the teacher's own head, on hidden states that become the teacher's
        ("tinybert", None, {}, WHOLE),
        ("tinybert", None, {"hidden_size": 16}, ENCODER),
    ],
)
def test_what_is_saved(objectives: str, weight: Any, options: Any, saved: str, tiny_mlm_dir: Path, tmp_path: Path):
    module = DistillationModule(MaskedLM(), tiny_mlm_dir, Student(2, **options), objectives, task_weight=weight)
    folder = module.save_student(tmp_path / "student")
    config = AutoConfig.from_pretrained(folder)
    assert config.architectures == [saved]
    assert not hasattr(config, "fresh_head")
    encoder = load_model(folder).state_dict()
    for name, value in module.student.distilbert.state_dict().items():
        assert torch.equal(encoder[name], value)
    if saved == ENCODER:
        with pytest.raises(DistillationError, match=r"weights of the head are missing .* they would be random"):
            load_model(folder, MLM, whole=True)


def test_a_finished_model_keeps_its_head_unless_it_meets_other_hidden_states(tiny_mlm_dir: Path):
    student = load_model(tiny_mlm_dir, MLM)
    for objectives, kept in (("tinybert", True), ("minilm", False)):
        module = DistillationModule(MaskedLM(), tiny_mlm_dir, student, objectives)
        assert (trained_part(module) is student) is kept
    assert trained_part(DistillationModule(MaskedLM(), student=student)) is student


def test_a_checkpoint_remembers_a_fresh_head_until_it_is_trained(tiny_bert_dir: Path, tmp_path: Path):
    data = torch.utils.data.DataLoader(
        [{"input_ids": torch.ones(2, 4, dtype=torch.int64), "labels": torch.tensor([0, 1])}], batch_size=None
    )

    def restored(objectives: str) -> DistillationModule:
        module = DistillationModule(
            TextClassification(num_labels=2), str(tiny_bert_dir), Student(2), objectives, tokenizer=str(tiny_bert_dir)
        )
        assert module.student.config.fresh_head is True
        trainer = Trainer(
            max_steps=1, accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False,
            enable_model_summary=False, limit_val_batches=0,
        )  # fmt: skip
        trainer.fit(module, data, data)
        trainer.save_checkpoint(tmp_path / "one.ckpt")
        return DistillationModule.load_from_checkpoint(tmp_path / "one.ckpt")

    assert restored("tinybert").student.config.fresh_head is True
    assert restored("tinybert").save_student(tmp_path / "encoder").joinpath("config.json").is_file()
    assert AutoConfig.from_pretrained(tmp_path / "encoder").architectures == [ENCODER]


def test_training_makes_a_head_one_that_is_trained(tiny_bert_dir: Path):
    student = Student(source=str(tiny_bert_dir)).build(auto_class=MLM)
    module = DistillationModule(MaskedLM(), student=student)
    note_training(module)
    assert student.config.fresh_head is False
    other = DistillationModule(MaskedLM(), tiny_bert_dir, Student(2), "minilm")
    note_training(other)
    assert other.student.config.fresh_head is True


def test_augmentation_refuses_a_random_head(tiny_bert_dir: Path):
    student = Student(source=str(tiny_bert_dir)).build(auto_class=MLM)
    tokenizer = DistillationModule(MaskedLM(), student=student, tokenizer=tiny_bert_dir).tokenizer
    with pytest.raises(DistillationError, match="head of this model was never trained"):
        MaskedWords(student, tokenizer)
