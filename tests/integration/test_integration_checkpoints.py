"""Checkpoints of a foreign module with the callback and of `DistillationModule`, under weights-only loading."""

from __future__ import annotations

import importlib.util
import os
import shutil
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from pytorch_lightning import Callback, Trainer
from pytorch_lightning.callbacks import ModelCheckpoint
from transformers import AutoConfig, AutoTokenizer, BertForSequenceClassification

from lightning_distilbert import (
    DistillationError,
    DistillationLoss,
    DistillationModule,
    HiddenStates,
    Linear,
    Retrieval,
    RetrievalData,
    SoftTargets,
    Student,
    TextClassification,
    TextClassificationData,
)

# a module of its own file, so that a process without our package can import it
FOREIGN = """
import torch
from pytorch_lightning import LightningModule
from torch.utils.data import DataLoader
from transformers import DistilBertConfig, DistilBertForSequenceClassification


class Foreign(LightningModule):
    def __init__(self, vocabulary: int, width: int = 16) -> None:
        super().__init__()
        self.save_hyperparameters()
        config = DistilBertConfig(
            vocab_size=vocabulary, dim=width, n_heads=2, n_layers=2, hidden_dim=32, max_position_embeddings=64,
            dropout=0.0, attention_dropout=0.0, seq_classif_dropout=0.0, num_labels=2,
        )
        self.model = DistilBertForSequenceClassification(config)

    def training_step(self, batch, batch_idx):
        return self.model(batch["input_ids"], attention_mask=batch["attention_mask"], labels=batch["labels"]).loss

    def configure_optimizers(self):
        optimizer = torch.optim.AdamW(self.parameters(), lr=1e-2)
        schedule = torch.optim.lr_scheduler.StepLR(optimizer, step_size=3, gamma=0.7)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    def train_dataloader(self):
        generator = torch.Generator().manual_seed(7)
        batches = [
            {
                "input_ids": torch.randint(5, self.hparams.vocabulary, (4, 8), generator=generator),
                "attention_mask": torch.ones(4, 8, dtype=torch.int64),
                "labels": torch.randint(0, 2, (4,), generator=generator),
            }
            for _ in range(4)
        ]
        return DataLoader(batches, batch_size=None)
"""
STEPS = 16  # four epochs of four batches


class Watch(Callback):
    """Notes progress and learning rate at each step."""

    def __init__(self, distillation: DistillationLoss) -> None:
        self.distillation = distillation
        self.seen: list[tuple[float, float]] = []

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        self.seen.append((self.distillation.distiller.progress, trainer.optimizers[0].param_groups[0]["lr"]))


@pytest.fixture
def foreign(tmp_path: Path) -> ModuleType:
    path = tmp_path / "foreign.py"
    path.write_text(FOREIGN, encoding="utf-8")
    spec = importlib.util.spec_from_file_location("foreign", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def make_trainer(folder: Path, **arguments: Any) -> Trainer:
    defaults = {"accelerator": "cpu", "devices": 1, "logger": False, "enable_progress_bar": False}
    return Trainer(**defaults, enable_model_summary=False, default_root_dir=folder, **arguments)


def fit_foreign(
    foreign: ModuleType, teacher: Path, vocabulary: list[str], folder: Path, ckpt_path: str | None = None, seed: int = 0
) -> tuple[Any, DistillationLoss, Watch, Trainer]:
    torch.manual_seed(seed)
    module = foreign.Foreign(len(vocabulary))
    objectives = [SoftTargets(weight=Linear(2.0, 0.5)), HiddenStates(layers="last", metric="mse")]
    callback = DistillationLoss(teacher, student="model", objectives=objectives)
    watch = Watch(callback)
    checkpoints = ModelCheckpoint(dirpath=folder, filename="{epoch}", save_top_k=-1)
    trainer = make_trainer(folder, max_epochs=4, callbacks=[callback, watch, checkpoints])
    trainer.fit(module, ckpt_path=ckpt_path)
    return module, callback, watch, trainer


def states_equal(first: dict[str, Any], second: dict[str, Any]) -> bool:
    return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


# -- the callback on a foreign module ----------------------------------------------------------------------------------


def test_foreign_checkpoint_loads_where_our_package_cannot_be_imported(
    foreign, tiny_teacher_dir: Path, vocabulary: list[str], tmp_path: Path
):
    module, _, _, _ = fit_foreign(foreign, tiny_teacher_dir, vocabulary, tmp_path / "run")
    path = tmp_path / "run" / "epoch=3.ckpt"
    checkpoint = torch.load(path, weights_only=True)
    assert checkpoint["state_dict"].keys() == foreign.Foreign(len(vocabulary)).state_dict().keys()
    torch.save(module.state_dict(), tmp_path / "expected.pt")
    code = f"""
import sys
sys.modules["lightning_distilbert"] = None
import torch
from foreign import Foreign
module = Foreign.load_from_checkpoint({str(path)!r}, weights_only=True)
expected = torch.load({str(tmp_path / "expected.pt")!r})
assert module.state_dict().keys() == expected.keys()
assert all(torch.equal(value, expected[name]) for name, value in module.state_dict().items())
try:
    import lightning_distilbert
except ImportError:
    print("loaded without it")
"""
    environment = os.environ | {"PYTHONPATH": str(tmp_path)}
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", code], cwd=tmp_path, env=environment, capture_output=True, text=True
    )
    assert "loaded without it" in done.stdout, done.stderr


def test_resumed_run_is_bit_equal_to_an_uninterrupted_one(
    foreign, tiny_teacher_dir: Path, vocabulary: list[str], tmp_path: Path
):
    whole, callback, watch, trainer = fit_foreign(foreign, tiny_teacher_dir, vocabulary, tmp_path / "whole")
    assert any(True for _ in callback.distiller.objectives.parameters())
    assert [progress for progress, _ in watch.seen] == pytest.approx([step / STEPS for step in range(STEPS)])

    # another seed: whatever is not restored differs
    resumed, again, later, trainer_again = fit_foreign(
        foreign, tiny_teacher_dir, vocabulary, tmp_path / "again", str(tmp_path / "whole" / "epoch=1.ckpt"), seed=99
    )
    assert later.seen == watch.seen[8:]
    assert states_equal(whole.state_dict(), resumed.state_dict())
    assert states_equal(callback.distiller.objectives.state_dict(), again.distiller.objectives.state_dict())
    ours, theirs = (t.optimizers[0].state_dict()["state"] for t in (trainer, trainer_again))
    assert len(ours) == len(list(whole.parameters())) + len(list(callback.distiller.objectives.parameters()))
    for index, state in ours.items():
        assert states_equal(state, theirs[index])


def test_projections_are_restored_before_the_first_step(
    foreign, tiny_teacher_dir: Path, vocabulary: list[str], tmp_path: Path
):
    fit_foreign(foreign, tiny_teacher_dir, vocabulary, tmp_path / "run")
    path = tmp_path / "run" / "epoch=1.ckpt"
    stored = torch.load(path, weights_only=True)["callbacks"]
    (projections,) = [state["objectives"] for name, state in stored.items() if name.startswith("DistillationLoss")]
    assert projections
    seen = {}

    class First(Callback):
        def on_train_start(self, trainer, pl_module):
            seen.update({name: value.clone() for name, value in callback.distiller.objectives.state_dict().items()})

    callback = DistillationLoss(
        tiny_teacher_dir, student="model", objectives=[SoftTargets(), HiddenStates(layers="last", metric="mse")]
    )
    make_trainer(tmp_path, max_epochs=3, callbacks=[callback, First()]).fit(
        foreign.Foreign(len(vocabulary)), ckpt_path=str(path)
    )
    assert states_equal(seen, projections)
    assert not states_equal(callback.distiller.objectives.state_dict(), projections)  # and then they go on learning


def test_other_missing_keys_still_raise(foreign, tiny_teacher_dir: Path, vocabulary: list[str], tmp_path: Path):
    fit_foreign(foreign, tiny_teacher_dir, vocabulary, tmp_path / "run")
    path = tmp_path / "run" / "epoch=1.ckpt"
    checkpoint = torch.load(path, weights_only=True)
    del checkpoint["state_dict"]["model.classifier.bias"]
    torch.save(checkpoint, path)
    with pytest.raises(RuntimeError, match=r"Missing key\(s\) in state_dict: \"model.classifier.bias\"\. "):
        fit_foreign(foreign, tiny_teacher_dir, vocabulary, tmp_path / "again", str(path))


def test_foreign_module_is_as_before_after_the_fit(
    foreign, tiny_teacher_dir: Path, vocabulary: list[str], tmp_path: Path
):
    module, _, _, _ = fit_foreign(foreign, tiny_teacher_dir, vocabulary, tmp_path / "run")
    assert "training_step" not in vars(module)
    assert module.state_dict().keys() == foreign.Foreign(len(vocabulary)).state_dict().keys()
    # without the callback a missing key is an error again, whatever its name
    with pytest.raises(RuntimeError, match="Missing key"):
        module.load_state_dict({})


# -- DistillationModule ------------------------------------------------------------------------------------------------


def save_teacher(tiny: Path, folder: Path, **config: Any) -> Path:
    """Save a random classifier with the tiny tokenizer."""
    settings = AutoConfig.from_pretrained(tiny, **config)
    BertForSequenceClassification(settings).save_pretrained(folder)
    AutoTokenizer.from_pretrained(tiny).save_pretrained(folder)
    return folder


def rows(kind: str, count: int = 12) -> list[dict[str, Any]]:
    labels = {"single_label_classification": 0, "multi_label_classification": [0, 1, 1], "regression": 0.5}
    made = []
    for row in range(count):
        label: Any = labels[kind]
        if kind == "single_label_classification":
            label = row % 2
        elif kind == "regression":
            label = row / count
        elif row % 2:
            label = [1, 0, 1]
        made.append({"text": f"the {'great' if row % 2 else 'dull'} movie is number {row}", "label": label})
    return made


KINDS = {"single_label_classification": 2, "multi_label_classification": 3, "regression": 1}


def make_case(kind: str, tiny_bert: Path, folder: Path) -> tuple[DistillationModule, Any]:
    """Return a module and its data for one kind of task, with a teacher in `folder`."""
    if kind == "retrieval":
        shutil.copytree(tiny_bert, folder)
        pairs = [(f"great movie number {i}", f"the story of movie {i} is good") for i in range(12)]
        module = DistillationModule(Retrieval(), teacher=folder, student=Student(layers=2), task_weight=0.5)
        return module, RetrievalData({"train": pairs, "validation": pairs}, batch_size=4)
    teacher = save_teacher(tiny_bert, folder, num_labels=KINDS[kind], problem_type=kind)
    module = DistillationModule(
        TextClassification(num_labels=KINDS[kind], problem_type=kind),
        teacher=teacher,
        student=Student(layers=2),
        objectives=[SoftTargets(weight=Linear(1.0, 0.5)), HiddenStates(layers="last", weight=0.1)],
    )
    return module, TextClassificationData({"train": rows(kind), "validation": rows(kind)}, batch_size=4)


def is_plain(value: Any) -> bool:
    if isinstance(value, dict):
        return type(value) is dict and all(type(key) in (str, int) and is_plain(item) for key, item in value.items())
    if isinstance(value, list):
        return all(map(is_plain, value))
    return type(value) in (str, int, float, bool, type(None))


@pytest.mark.parametrize("kind", [*KINDS, "retrieval"])
def test_module_loads_and_resumes_for_every_task(kind: str, tiny_bert_dir: Path, tmp_path: Path):
    module, data = make_case(kind, tiny_bert_dir, tmp_path / "teacher")
    checkpoints = ModelCheckpoint(dirpath=tmp_path / "run", filename="{epoch}", save_top_k=-1)
    trainer = make_trainer(tmp_path, max_epochs=2, callbacks=[checkpoints], num_sanity_val_steps=0)
    trainer.fit(module, data)
    path = tmp_path / "run" / "epoch=1.ckpt"
    checkpoint = torch.load(path, weights_only=True)
    assert is_plain(dict(checkpoint["hyper_parameters"]))
    assert not any("teacher" in name for name in checkpoint["state_dict"])

    loaded = DistillationModule.load_from_checkpoint(path, weights_only=True)
    assert states_equal(loaded.state_dict(), module.state_dict())
    texts = ["a good film", "the dull and very long story of a man", "great"]
    assert loaded.predict(texts) == module.predict(texts)
    assert loaded.tokenizer.get_vocab() == module.tokenizer.get_vocab()
    assert loaded.task.to_config() == module.task.to_config()

    # the interrupted run goes on exactly where it was
    again, data_again = make_case(kind, tiny_bert_dir, tmp_path / "teacher2")
    shutil.rmtree(tmp_path / "teacher2")
    shutil.copytree(tmp_path / "teacher", tmp_path / "teacher2")
    more = {"max_epochs": 3, "num_sanity_val_steps": 0}
    resumed = make_trainer(tmp_path, callbacks=[ModelCheckpoint(dirpath=tmp_path / "again")], **more)
    resumed.fit(again, data_again, ckpt_path=path)
    assert (trainer.global_step, resumed.global_step) == (6, 9)
    assert not states_equal(again.state_dict(), module.state_dict())

    # and so does a loaded one, without being told anything
    further = make_trainer(tmp_path, callbacks=[ModelCheckpoint(dirpath=tmp_path / "further")], **more)
    further.fit(loaded, data, ckpt_path=path)
    assert further.global_step == 9


def test_interrupted_module_run_is_bit_equal_to_an_uninterrupted_one(tiny_teacher_dir: Path, tmp_path: Path):
    still = AutoConfig.from_pretrained(tiny_teacher_dir, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0)
    shutil.copytree(tiny_teacher_dir, tmp_path / "teacher")
    still.save_pretrained(tmp_path / "teacher")
    kind = "single_label_classification"

    def run(folder: str, ckpt_path: Path | None, seed: int) -> DistillationModule:
        torch.manual_seed(seed)
        module = DistillationModule(
            TextClassification(num_labels=2),
            teacher=tmp_path / "teacher",
            student=Student(layers=2),
            objectives=[SoftTargets(weight=Linear(2.0, 0.0)), HiddenStates(projection="always", metric="mse")],
            learning_rate=1e-3,
        )
        module.student.dropout.p = 0.0  # of the head; the encoder has the teacher's
        checkpoints = ModelCheckpoint(dirpath=tmp_path / folder, filename="{epoch}", save_top_k=-1)
        trainer = make_trainer(tmp_path, max_epochs=4, callbacks=[checkpoints], num_sanity_val_steps=0)
        splits = dict.fromkeys(("train", "validation"), rows(kind))
        trainer.fit(module, TextClassificationData(splits, batch_size=4, seed=3), ckpt_path=ckpt_path)
        return module

    whole = run("whole", None, seed=0)
    assert any(name.startswith("objectives.") for name in whole.state_dict())
    resumed = run("again", tmp_path / "whole" / "epoch=1.ckpt", seed=5)
    assert states_equal(whole.state_dict(), resumed.state_dict())


@pytest.mark.parametrize("kind", ["single_label_classification", "retrieval"])
def test_loading_for_inference_needs_no_teacher_folder(kind: str, tiny_bert_dir: Path, tmp_path: Path):
    module, data = make_case(kind, tiny_bert_dir, tmp_path / "teacher")
    trainer = make_trainer(tmp_path, max_steps=2, num_sanity_val_steps=0, limit_val_batches=0)
    trainer.fit(module, data)
    path = trainer.checkpoint_callback.best_model_path
    expected = module.predict(["the great movie", "a dull plot"])
    ids = module.tokenizer("a great movie")["input_ids"]
    shutil.rmtree(tmp_path / "teacher")

    loaded = DistillationModule.load_from_checkpoint(path)
    assert loaded.predict(["the great movie", "a dull plot"]) == expected
    assert loaded.tokenizer("a great movie")["input_ids"] == ids
    scores = make_trainer(tmp_path).validate(loaded, data, verbose=False)
    assert loaded.task.monitor in scores[0]
    assert (loaded.save_student(tmp_path / "student") / "tokenizer_config.json").is_file()
    with pytest.raises(DistillationError, match=r"teacher.*does not exist"):
        make_trainer(tmp_path, max_epochs=1).fit(loaded, data)


class Smoothed(DistillationModule):
    def __init__(self, smoothing: float = 0.1, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.save_hyperparameters("smoothing")


class Passing(DistillationModule):
    def __init__(self, *, note: str = "", **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.hparams["note"] = note


class Spelt(DistillationModule):
    def __init__(self, task: Any, teacher: Any = None, student: Any = None, extra: list[int] | None = None) -> None:
        super().__init__(task, teacher=teacher, student=student)
        self.save_hyperparameters("extra")


@pytest.mark.parametrize(
    ("cls", "argument", "value"),
    [(Smoothed, "smoothing", 0.4), (Passing, "note", "mine"), (Spelt, "extra", [1, 2])],
    ids=["kwargs", "passing", "spelt"],
)
def test_subclass_with_an_argument_of_its_own_loads(cls, argument, value, tiny_teacher_dir: Path, tmp_path: Path):
    module = cls(
        task=TextClassification(num_labels=2),
        teacher=str(tiny_teacher_dir),
        student=Student(layers=1),
        **{argument: value},
    )
    splits = dict.fromkeys(("train", "validation"), rows("single_label_classification"))
    data = TextClassificationData(splits, batch_size=4)
    trainer = make_trainer(tmp_path, max_steps=1)
    trainer.fit(module, data)
    loaded = cls.load_from_checkpoint(trainer.checkpoint_callback.best_model_path, weights_only=True)
    assert loaded.hparams[argument] == value
    assert loaded.task.num_labels == 2
    assert states_equal(loaded.state_dict(), module.state_dict())


HOSTILE = {"class_path": "subprocess.Popen", "init_args": {"args": ["touch", "MARK"]}}


@pytest.mark.parametrize("argument", ["task", "teacher", "student", "objectives", "task_weight"])
def test_hostile_class_path_is_refused(argument: str, tiny_teacher_dir: Path, tmp_path: Path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    module, data = make_case("single_label_classification", tiny_teacher_dir, tmp_path / "teacher")
    trainer = make_trainer(tmp_path, max_steps=1, limit_val_batches=0, num_sanity_val_steps=0)
    trainer.fit(module, data)
    path = trainer.checkpoint_callback.best_model_path
    checkpoint = torch.load(path, weights_only=True)
    checkpoint["hyper_parameters"][argument] = [HOSTILE] if argument == "objectives" else HOSTILE
    torch.save(checkpoint, path)
    with pytest.raises(DistillationError, match=r"'subprocess\.Popen' leads to no task"):
        DistillationModule.load_from_checkpoint(path)
    assert not (tmp_path / "MARK").exists()


def test_checkpoint_cannot_ask_for_remote_code(tiny_teacher_dir: Path, tmp_path: Path):
    module, data = make_case("single_label_classification", tiny_teacher_dir, tmp_path / "teacher")
    trainer = make_trainer(tmp_path, max_steps=1, limit_val_batches=0, num_sanity_val_steps=0)
    trainer.fit(module, data)
    path = trainer.checkpoint_callback.best_model_path
    checkpoint = torch.load(path, weights_only=True)
    student = {"source": str(tmp_path / "teacher"), "trust_remote_code": True}
    checkpoint["hyper_parameters"]["student"] = Student().to_config() | {"init_args": student}
    torch.save(checkpoint, path)
    with pytest.raises(DistillationError, match="asks for trust_remote_code=True"):
        DistillationModule.load_from_checkpoint(path)


def test_projections_begin_anew_for_a_teacher_of_another_width(tiny_teacher_dir: Path, tmp_path: Path):
    module = DistillationModule(
        TextClassification(num_labels=2),
        teacher=str(tiny_teacher_dir),
        student=Student(layers=1),
        objectives=[HiddenStates(layers="last", projection="always")],
    )
    data = TextClassificationData(
        {split: rows("single_label_classification") for split in ("train", "validation")},
        tokenizer=str(tiny_teacher_dir),
        batch_size=4,
    )
    trainer = make_trainer(tmp_path, max_steps=1)
    trainer.fit(module, data)
    trainer.save_checkpoint(tmp_path / "narrow.ckpt")
    config = AutoConfig.from_pretrained(tiny_teacher_dir, hidden_size=48)
    BertForSequenceClassification(config).save_pretrained(tmp_path / "wider")
    AutoTokenizer.from_pretrained(tiny_teacher_dir).save_pretrained(tmp_path / "wider")
    loaded = DistillationModule.load_from_checkpoint(tmp_path / "narrow.ckpt", teacher=str(tmp_path / "wider"))
    with pytest.warns(UserWarning, match=r"1 projections that do not fit .* of shape \(32, 32\): they are left out"):
        make_trainer(tmp_path, max_steps=1).fit(loaded, data)
    assert loaded.objectives[0].projections[0].weight.shape == (48, 32)


def test_projections_of_a_checkpoint_wait_until_a_fit_builds_them(tiny_teacher_dir: Path, tmp_path: Path):
    def new_module() -> DistillationModule:
        return DistillationModule(
            TextClassification(num_labels=2),
            teacher=str(tiny_teacher_dir),
            student=Student(layers=2),
            objectives=[HiddenStates(layers="last", projection="always")],
        )

    splits = {split: rows("single_label_classification") for split in ("train", "validation")}
    data = TextClassificationData(splits, tokenizer=str(tiny_teacher_dir), batch_size=4)
    trainer = make_trainer(tmp_path, max_epochs=1)
    module = new_module()
    trainer.fit(module, data)
    trainer.save_checkpoint(tmp_path / "projected.ckpt")
    trained = {name: value.clone() for name, value in module.objectives.state_dict().items()}
    assert trained

    loaded = DistillationModule.load_from_checkpoint(tmp_path / "projected.ckpt")
    assert not loaded.objectives.state_dict()  # nothing of them is needed for an answer
    student = {name: value for name, value in loaded.state_dict().items() if name.startswith("student.")}
    assert states_equal(student, {name: module.state_dict()[name] for name in student})

    loaded.setup("fit")
    assert states_equal(dict(loaded.objectives.state_dict()), trained)
