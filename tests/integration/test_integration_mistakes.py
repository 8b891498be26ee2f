"""Mistakes that a Trainer meets late: each is said in one sentence before the first step, and what is right passes."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from pytorch_lightning import Callback, Trainer
from pytorch_lightning.callbacks import EarlyStopping, ModelCheckpoint

import lightning_distilbert
from lightning_distilbert import (
    DistillationError,
    DistillationModule,
    HiddenStates,
    MaskedLM,
    MaskedLMData,
    Retrieval,
    RetrievalData,
    Student,
    TextClassification,
    TextClassificationData,
)
from lightning_distilbert import tasks as tasks_module
from lightning_distilbert.data import corpus
from lightning_distilbert.tasks.base import Task, call_model

pytestmark = pytest.mark.filterwarnings("ignore:.*does not have many workers:UserWarning")

ROWS = [{"text": f"the {'great' if i % 2 else 'dull'} movie number {i}", "label": i % 2} for i in range(16)]
TEXTS = [{"text": "the man in the big city is old and the story of his child is very long and good"}] * 16
PAIRS = [(f"movie {i}", f"the story of movie {i}") for i in range(16)]


class Steps(Callback):
    """Counts the batches that training began with, and the validations in it."""

    def __init__(self) -> None:
        self.begun = self.validations = 0

    def on_train_batch_start(self, *args: Any) -> None:
        self.begun += 1

    def on_validation_start(self, trainer: Trainer, module: Any) -> None:
        self.validations += not trainer.sanity_checking


def make_trainer(*callbacks: Callback, **options: Any) -> Trainer:
    saving = any(isinstance(callback, ModelCheckpoint) for callback in callbacks)
    return Trainer(
        **{"max_epochs": 1, "accelerator": "cpu", "devices": 1, "logger": False, "num_sanity_val_steps": 0, **options},
        callbacks=list(callbacks),
        enable_checkpointing=saving,
        enable_progress_bar=False,
        enable_model_summary=False,
    )


def refused(module: Any, data: Any, match: str, *callbacks: Callback, run: str = "fit", **options: Any) -> None:
    steps, ckpt_path = Steps(), options.pop("ckpt_path", None)
    trainer = make_trainer(steps, *callbacks, **options)
    with pytest.raises(DistillationError, match=match):
        getattr(trainer, run)(module, data, ckpt_path=ckpt_path)
    assert steps.begun == 0


def classifier(teacher: Path, layers: int = 1, **options: Any) -> DistillationModule:
    return DistillationModule(TextClassification(num_labels=2), teacher, Student(layers=layers), **options)


def classes(**options: Any) -> TextClassificationData:
    return TextClassificationData({"train": ROWS, "dev": ROWS}, batch_size=4, **options)


def raw(tmp_path: Path, **options: Any) -> MaskedLMData:
    return MaskedLMData({"train": TEXTS, "dev": TEXTS}, cache_dir=tmp_path / "cache", batch_size=4, **options)


def search(**options: Any) -> RetrievalData:
    return RetrievalData({"train": PAIRS, "dev": PAIRS}, batch_size=4, **options)


# -- data of another task ----------------------------------------------------------------------------------------------


def tasks(tmp_path: Path) -> dict[str, tuple[Callable[[], Task], Callable[[], Any]]]:
    return {
        "classification": (lambda: TextClassification(num_labels=2), classes),
        "masked": (MaskedLM, lambda: raw(tmp_path)),
        "retrieval": (Retrieval, search),
    }


@pytest.mark.parametrize("data", ["classification", "masked", "retrieval"])
@pytest.mark.parametrize("task", ["classification", "masked", "retrieval"])
def test_data_of_another_task_are_refused_before_they_are_tokenised(
    task: str, data: str, tiny_mlm_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    make_task, make_data = tasks(tmp_path)[task][0], tasks(tmp_path)[data][1]
    module = DistillationModule(make_task(), student=Student(source=str(tiny_mlm_dir)))
    if task == data:
        steps = Steps()
        make_trainer(steps, max_steps=1).fit(module, make_data())
        assert steps.begun == 1
        return

    def never(*_: Any, **__: Any) -> None:
        raise AssertionError("the data are tokenised")

    monkeypatch.setattr("lightning_distilbert.data.base.encode", never)
    monkeypatch.setattr("lightning_distilbert.data.masked_lm.build_corpus", never)
    names = f"{type(module.task).__name__} learns from .*{module.task.data[0]}, and the data are a"
    for run in ("fit", "validate"):
        refused(module, make_data(), f"{names} {type(make_data()).__name__}", run=run)


def test_each_task_of_the_package_names_its_data_modules():
    own = [getattr(tasks_module, name) for name in tasks_module.__all__ if name != "Task"]
    assert all(task.data for task in own)
    assert {name for task in own for name in task.data} == {
        name for name in lightning_distilbert.__all__ if name.endswith("Data")
    }


def test_texts_to_be_answered_may_come_from_any_data_module(tiny_mlm_dir: Path):
    module = DistillationModule(Retrieval(), student=Student(source=str(tiny_mlm_dir)))
    data = TextClassificationData({"predict": ROWS[:3]}, label=None)
    answers = make_trainer().predict(module, data)
    assert [len(vector) for batch in answers for vector in batch] == [32, 32, 32]


class OwnData(TextClassificationData):
    """Makes batches for another task than what it inherits from."""

    def _collate(self, train: bool = False) -> Any:
        pad = super()._collate(train)

        def collate(rows: Any) -> Any:
            batch = pad(rows)
            return {**batch, "labels": torch.where(batch["input_ids"] > 20, batch["input_ids"], -100)}

        return collate


class OwnTask(Task):
    """Reads any batch with texts in it."""

    def run(self, model: torch.nn.Module, batch: Any) -> Any:
        return {"sum": call_model(model, batch).last_hidden_state.sum()}

    def loss(self, outputs: Any, batch: Any) -> Any:
        return outputs["sum"]

    def new_metrics(self) -> Any:
        return MaskedLM().new_metrics()

    def update_metrics(self, metrics: Any, outputs: Any, batch: Any) -> None:
        """Count nothing."""


@pytest.mark.filterwarnings("ignore:The ``compute`` method:UserWarning")
def test_data_and_tasks_of_a_users_own_are_never_refused(tiny_mlm_dir: Path):
    for task, data in (
        (MaskedLM(), OwnData({"train": ROWS}, batch_size=4)),
        (OwnTask(), classes()),
    ):
        steps = Steps()
        module = DistillationModule(task, student=Student(source=str(tiny_mlm_dir)))
        make_trainer(steps, max_steps=2, limit_val_batches=0).fit(module, data)
        assert steps.begun == 2


@pytest.mark.parametrize(
    ("batch", "match"),
    [
        ({"tokens": torch.ones(2, 3)}, r"takes attention_mask, input_ids.* and the batch holds \['tokens'\]"),
        ((torch.ones(2, 3), torch.ones(2)), "the batch is a list"),
        (
            {"input_ids": torch.ones(2, 3, dtype=torch.int64), "labels": torch.ones(2, 3, dtype=torch.int64)},
            r"labels have the shape \(2, 3\) and the logits \(2, 2\): for single_label_.* one label",
        ),
    ],
    ids=["other names", "a tuple", "labels of tokens"],
)
def test_batches_of_a_loader_of_ones_own_are_explained(batch: Any, match: str, tiny_teacher_dir: Path):
    module = DistillationModule(TextClassification(num_labels=2), student=Student(source=str(tiny_teacher_dir)))
    loader = torch.utils.data.DataLoader([batch], batch_size=None)
    with pytest.raises(DistillationError, match=match):
        make_trainer().fit(module, loader, loader)


# -- teachers without the head -----------------------------------------------------------------------------------------


def test_a_teacher_without_the_head_is_refused_before_the_corpus_is_read(
    tiny_bert_dir: Path, tiny_teacher_dir: Path, tiny_mlm_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    def module(teacher: Path, **options: Any) -> DistillationModule:
        return DistillationModule(MaskedLM(), teacher, Student(source=str(tiny_mlm_dir)), **options)

    # without logits no head is needed
    last = [HiddenStates(layers="last")]
    make_trainer(max_steps=1).fit(module(tiny_bert_dir, objectives=last), raw(tmp_path / "first"))
    make_trainer(max_steps=1).fit(module(tiny_mlm_dir), raw(tmp_path / "first"))

    def never(*_: Any, **__: Any) -> None:
        raise AssertionError("the corpus is tokenised")

    monkeypatch.setattr(corpus, "build_corpus", never)
    monkeypatch.setattr("lightning_distilbert.data.masked_lm.build_corpus", never)
    refused(module(tiny_bert_dir), raw(tmp_path), r"bert is a BertModel, a bare encoder: here it has .* ForMaskedLM")
    match = r"teacher is a BertForSequenceClassification: here it has to be a model ForMaskedLM"
    refused(module(tiny_teacher_dir), raw(tmp_path), match)
    elsewhere = DistillationModule(
        TextClassification(num_labels=2), tiny_mlm_dir, Student(source=str(tiny_mlm_dir)), objectives="logits"
    )
    refused(elsewhere, classes(), "mlm is a BertForMaskedLM: here it has to be a model ForSequenceClassification")


# -- checkpoints -------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def checkpoints(tiny_teacher_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with a checkpoint and with files that are none."""
    folder = tmp_path_factory.mktemp("checkpoints")
    module, trainer = classifier(tiny_teacher_dir), make_trainer(max_steps=1)
    trainer.fit(module, classes())
    trainer.save_checkpoint(folder / "good.ckpt")
    module.save_student(folder / "student")
    (folder / "text.ckpt").write_text("no checkpoint\n", encoding="utf-8")
    (folder / "empty.ckpt").touch()
    (folder / "cut.ckpt").write_bytes((folder / "good.ckpt").read_bytes()[:5000])
    torch.save(module.student.state_dict(), folder / "weights.ckpt")
    torch.save([1, 2], folder / "list.ckpt")
    projected = classifier(tiny_teacher_dir, objectives=[HiddenStates(layers="last", projection="always")])
    trainer = make_trainer(max_steps=1)
    trainer.fit(projected, classes())
    trainer.save_checkpoint(folder / "projected.ckpt")
    return folder


@pytest.mark.parametrize("run", ["fit", "validate"])
@pytest.mark.parametrize(
    ("name", "match"),
    [
        ("text.ckpt", r"text\.ckpt' is no checkpoint of the Trainer\. Give the path"),
        ("empty.ckpt", r"empty\.ckpt' is no checkpoint of the Trainer"),
        ("cut.ckpt", r"cut\.ckpt' is cut off"),
        ("weights.ckpt", r"weights\.ckpt' is no checkpoint .* no 'state_dict', it holds \['distilbert\.emb.*Student\("),
        ("list.ckpt", r"list\.ckpt' is no checkpoint .* it holds a list"),
        ("student/model.safetensors", r"is no checkpoint of the Trainer\. To start from a saved student.*Student\("),
        ("student", r"student' is a folder and no checkpoint\. To start from a saved student, give its folder"),
    ],
)
def test_a_file_that_is_no_checkpoint(name: str, match: str, run: str, checkpoints: Path, tiny_teacher_dir: Path):
    refused(classifier(tiny_teacher_dir), classes(), match, run=run, ckpt_path=str(checkpoints / name))


def test_a_checkpoint_of_another_model(checkpoints: Path, tiny_teacher_dir: Path, tiny_mlm_dir: Path, tmp_path: Path):
    good = checkpoints / "good.ckpt"
    options: dict[str, Any] = {"ckpt_path": good, "max_epochs": 2}
    make_trainer(max_epochs=2).fit(classifier(tiny_teacher_dir), classes(), ckpt_path=good)
    deeper = r"another module \(missing in it: 16 \('student\.distilbert\.transformer\.layer\.1\.[^)]*\)\)\. Build the"
    refused(classifier(tiny_teacher_dir, layers=2), classes(), deeper, **options)
    refused(classifier(tiny_teacher_dir, layers=2), classes(), deeper, run="validate", **options)
    narrow = DistillationModule(
        TextClassification(num_labels=2), tiny_teacher_dir, Student(layers=1, hidden_size=16), objectives="logits"
    )
    refused(
        narrow, classes(), r"of another shape: \d+ \('student\..*': \(\d+, 32\) in the.*, \(\d+, 16\) here", **options
    )
    other = DistillationModule(MaskedLM(), student=Student(source=str(tiny_mlm_dir)))
    match = r"missing in it: \d+ \('student\.bert\..*in it alone: \d+ \('student\.distilbert"
    refused(other, raw(tmp_path), match, **options)
    projected = classifier(tiny_teacher_dir, objectives=[HiddenStates(layers="last", projection="always")])
    refused(projected, classes(), r"missing in it: 2 \('objectives\.0\.projections", **options)
    match = r"one of other objectives: it holds 2 weights of projections .*'objectives\.0"
    refused(classifier(tiny_teacher_dir), classes(), match, **options | {"ckpt_path": checkpoints / "projected.ckpt"})
    # an evaluation needs none of them
    make_trainer().validate(
        classifier(tiny_teacher_dir), classes(), ckpt_path=checkpoints / "projected.ckpt", verbose=False
    )
    assert DistillationModule.load_from_checkpoint(good).student.config.n_layers == 1


def test_weights_may_still_be_loaded_in_part(tiny_teacher_dir: Path):
    module = classifier(tiny_teacher_dir)
    given = dict(list(module.state_dict().items())[:3]) | {"more": torch.ones(1)}
    found = module.load_state_dict(given, strict=False)
    assert found.unexpected_keys == ["more"]
    assert len(found.missing_keys) == len(module.state_dict()) - 3
    with pytest.raises(DistillationError, match=r"in it alone: 1 \('more'\)"):
        module.load_state_dict(given)


# -- validations that do not come --------------------------------------------------------------------------------------

SCHEDULES: list[dict[str, Any]] = [
    {"max_steps": 2}, {"max_steps": 3}, {"max_steps": 4}, {"max_steps": 2, "val_check_interval": 2},
    {"max_steps": 1, "val_check_interval": 2}, {"max_steps": 1, "accumulate_grad_batches": 2},
    {"max_steps": 2, "accumulate_grad_batches": 2}, {"max_steps": 2, "accumulate_grad_batches": 3},
    {"max_epochs": 1, "check_val_every_n_epoch": 2}, {"max_epochs": 2, "check_val_every_n_epoch": 2},
    {"max_steps": 7, "check_val_every_n_epoch": 2}, {"max_steps": 8, "check_val_every_n_epoch": 2},
    {"max_steps": 5, "val_check_interval": 6, "check_val_every_n_epoch": None},
    {"max_steps": 6, "val_check_interval": 6, "check_val_every_n_epoch": None},
    {"max_epochs": 1, "val_check_interval": 6, "check_val_every_n_epoch": None},
    {"max_steps": 3, "val_check_interval": 6, "check_val_every_n_epoch": None, "accumulate_grad_batches": 3},
    {"max_steps": 4, "val_check_interval": 6, "check_val_every_n_epoch": None, "accumulate_grad_batches": 3},
    {"max_epochs": 1, "limit_val_batches": 0}, {"max_steps": 3, "limit_train_batches": 3},
    {"max_steps": 2, "val_check_interval": 0.5},
]  # fmt: skip


def run(teacher: Path, *callbacks: Callback, **options: Any) -> tuple[int, list[str]]:
    """Return how often a fit validates, and what it said of that."""
    options = {"max_epochs": -1, **options} if "max_steps" in options else options
    module = DistillationModule(TextClassification(num_labels=2), student=Student(source=str(teacher)))
    steps = Steps()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        make_trainer(steps, *callbacks, **options).fit(module, classes())
    return steps.validations, [str(one.message) for one in caught if "will see no score" in str(one.message)]


@pytest.mark.parametrize("options", SCHEDULES, ids=str)
def test_a_validation_that_does_not_come_is_said_before_training(
    options: dict[str, Any], tiny_teacher_dir: Path, tmp_path: Path
):
    """The prediction is compared with what the Trainer does then."""
    best = ModelCheckpoint(dirpath=tmp_path, monitor="val/accuracy", mode="max")
    validations, said = run(tiny_teacher_dir, best, **options)
    assert len(said) == (0 if validations else 1)
    if said:
        assert "ModelCheckpoint(monitor='val/accuracy') will see no score: " in said[0]
        assert ("val_check_interval" in said[0]) is ("limit_val_batches" not in options)
        with pytest.raises(DistillationError, match=r"EarlyStopping\(monitor='val/accuracy'\) will see no score"):
            run(tiny_teacher_dir, EarlyStopping("val/accuracy"), **options)


def test_nothing_is_said_where_nobody_waits_for_a_validation(tiny_teacher_dir: Path, tmp_path: Path):
    for callbacks in ([], [ModelCheckpoint(dirpath=tmp_path, monitor="train/loss")]):
        assert run(tiny_teacher_dir, *callbacks, max_steps=1) == (0, [])


def test_a_step_is_named_that_would_be_enough(tiny_teacher_dir: Path):
    waiting = EarlyStopping("val/accuracy")
    match = r"the first validation comes with step 4, and training ends at max_steps=2, .* Set val_check_interval to"
    refused(classifier(tiny_teacher_dir), classes(), match, waiting, max_steps=2, max_epochs=-1)


def test_nobody_knows_the_end_of_a_stream(tiny_mlm_dir: Path, tmp_path: Path):
    data = MaskedLMData({"train": TEXTS, "dev": TEXTS}, streaming=True, batch_size=4, cache_dir=tmp_path / "cache")
    module = DistillationModule(MaskedLM(), student=Student(source=str(tiny_mlm_dir)))
    best = ModelCheckpoint(dirpath=tmp_path, monitor="val/loss")
    steps = Steps()
    make_trainer(best, steps, max_steps=4, max_epochs=-1).fit(module, data)  # a warning would be an error here
    assert steps.validations == 1
