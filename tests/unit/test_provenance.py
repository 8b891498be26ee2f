"""Notes of fits: exact, small, plain, kept through checkpoints and folders, and without the names of folders above."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from pytorch_lightning import Trainer, seed_everything
from pytorch_lightning.callbacks import ModelCheckpoint

from lightning_distilbert import DistillationError, DistillationModule, Student, TextClassification, load
from lightning_distilbert.data import TextClassificationData
from lightning_distilbert.module import CHECKPOINT_KEY
from lightning_distilbert.provenance import checked, named, note

ROWS = [{"text": f"the {'great' if i % 2 else 'dull'} movie number {i}", "label": i % 2} for i in range(12)]


def trainer(folder: Path, **options: Any) -> Trainer:
    quiet = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False, "accelerator": "cpu"}
    return Trainer(default_root_dir=folder, devices=1, **(quiet | {"enable_checkpointing": False} | options))


def data(**options: Any) -> TextClassificationData:
    return TextClassificationData({"train": ROWS, "validation": ROWS[:6]}, **({"batch_size": 4, "seed": 5} | options))


@pytest.fixture
def module(tiny_teacher_dir: Path) -> DistillationModule:
    return DistillationModule(TextClassification(2), str(tiny_teacher_dir), Student(layers=1), learning_rate=1e-3)


def test_fit_is_noted(module: DistillationModule, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("PL_GLOBAL_SEED", "")
    monkeypatch.setenv("PL_SEED_WORKERS", "0")
    seed_everything(7, verbose=False)
    trainer(tmp_path, max_epochs=2, accumulate_grad_batches=2).fit(module, data())
    (fit,) = module.fits
    assert fit["teacher"] == {
        "path": "teacher",
        "architecture": "BertForSequenceClassification",
        "layers": 4,
        "parameters": sum(parameter.numel() for parameter in module.distiller.teacher.model.parameters()),
    }
    assert fit["data"] == {
        "module": "TextClassificationData",
        "source": {"train": {"object": "list"}, "validation": {"object": "list"}},
        "unlabelled": None,
        "languages": None,
        "pairs": False,
        "rows": 12,
        "batch_size": 4,
        "max_length": 128,
        "seed": 5,
    }
    # three batches an epoch: one step of two, and one of the last
    assert (fit["steps"], fit["epochs"], fit["accumulated"]) == (4, 2.0, 2)
    assert (fit["seed"], fit["optimizer"], fit["learning_rate"], fit["precision"]) == (7, "AdamW", 1e-3, "32-true")
    assert fit["versions"]["torch"] == torch.__version__
    assert len(json.dumps(module.fits)) < 1500


def test_folder_keeps_it(module: DistillationModule, tmp_path: Path):
    trainer(tmp_path, max_steps=1).fit(module, data())
    folder = module.save_student(tmp_path / "student")
    kept = json.loads((folder / "config.json").read_text())["lightning_distilbert"]["fits"]
    assert kept == module.fits == load(folder).fits
    again = load(folder)
    assert again.save_student(tmp_path / "again")
    assert load(tmp_path / "again").fits == kept


def test_checkpoint_keeps_how_far_it_was(module: DistillationModule, tmp_path: Path):
    checkpoint = ModelCheckpoint(tmp_path, filename="{step}", every_n_train_steps=2, save_top_k=-1)
    options = {"enable_checkpointing": True, "callbacks": [checkpoint]}
    trainer(tmp_path, max_steps=5, **options).fit(module, data())
    assert module.fits[0]["steps"] == 5
    early = DistillationModule.load_from_checkpoint(tmp_path / "step=2.ckpt")
    assert [(fit["steps"], fit["epochs"]) for fit in early.fits] == [(2, 0.67)]


def test_resumed_fit_is_one(module: DistillationModule, tiny_teacher_dir: Path, tmp_path: Path):
    first = trainer(tmp_path, max_epochs=1)
    first.fit(module, data())
    first.save_checkpoint(tmp_path / "one.ckpt")
    again = DistillationModule(TextClassification(2), str(tiny_teacher_dir), Student(layers=1), learning_rate=1e-3)
    trainer(tmp_path, max_epochs=2).fit(again, data(), ckpt_path=tmp_path / "one.ckpt")
    assert [(fit["steps"], fit["epochs"]) for fit in again.fits] == [(6, 2.0)]


def test_second_fit_is_another(module: DistillationModule, tmp_path: Path):
    trainer(tmp_path, max_steps=1).fit(module, data())
    trainer(tmp_path, max_steps=2).fit(module, data(batch_size=3))
    assert [(fit["steps"], fit["data"]["batch_size"]) for fit in module.fits] == [(1, 4), (2, 3)]


def test_loaded_student_that_is_trained_further_keeps_both(module: DistillationModule, tmp_path: Path):
    trainer(tmp_path, max_steps=1).fit(module, data())
    loaded = load(module.save_student(tmp_path / "student")).train()
    trainer(tmp_path, max_steps=2).fit(loaded, data())
    assert [fit["teacher"] is None for fit in loaded.fits] == [False, True]


def test_evaluation_changes_nothing(module: DistillationModule, tmp_path: Path):
    trainer(tmp_path, max_steps=2).fit(module, data())
    before = json.dumps(module.fits)
    trainer(tmp_path).validate(module, data(), verbose=False)
    note(module)
    assert json.dumps(module.fits) == before


def test_monitor_is_noted(module: DistillationModule, tmp_path: Path):
    checkpoint = ModelCheckpoint(tmp_path, monitor="val/accuracy")
    trainer(tmp_path, max_epochs=1, enable_checkpointing=True, callbacks=[checkpoint]).fit(module, data())
    assert module.fits[0]["monitor"] == "val/accuracy"


def test_paths_lose_the_folders_above(tmp_path: Path):
    assert named(tmp_path / "secret" / "train.tsv") == {"path": "train.tsv"}
    assert named("nyu-mll/glue:sst2") == {"hub": "nyu-mll/glue:sst2"}
    (tmp_path / "films").mkdir()
    assert named(str(tmp_path / "films")) == {"path": "films"}
    assert named(None) is None
    downloaded = tmp_path / "models--google-bert--bert-base-uncased" / "snapshots" / "86b5e0934494bd15c9632b12f734a8a6"
    assert named(downloaded) == {"hub": "google-bert/bert-base-uncased"}


def test_files_by_split_and_pairs_of_columns(module: DistillationModule, tmp_path: Path):
    file = tmp_path / "rows.tsv"
    file.write_text("a\tb\tlabel\n" + "one\ttwo\t1\n" * 4)
    trainer(tmp_path, max_steps=1, limit_val_batches=0).fit(
        module, TextClassificationData({"train": file}, text=["a", "b"], batch_size=2)
    )
    assert module.fits[0]["data"]["source"] == {"train": {"path": "rows.tsv"}}
    assert module.fits[0]["data"]["pairs"] is True


@pytest.mark.parametrize("kept", [{"steps": 1}, ["first"], 3])
def test_damaged_notes_are_refused(kept: Any):
    with pytest.raises(DistillationError, match="have to be a list of mappings"):
        checked(kept)


def test_folders_from_before_have_none(module: DistillationModule, tmp_path: Path):
    folder = module.save_student(tmp_path / "student")
    config = json.loads((folder / "config.json").read_text())
    del config["lightning_distilbert"]["fits"]
    (folder / "config.json").write_text(json.dumps(config))
    assert load(folder).fits == []


def test_optimizer_of_ones_own(tiny_teacher_dir: Path, tmp_path: Path):
    class Mine(DistillationModule):
        def configure_optimizers(self) -> Any:
            return torch.optim.SGD(self.parameters(), lr=0.25)

    module = Mine(TextClassification(2), student=Student(source=str(tiny_teacher_dir), layers=1))
    loader = torch.utils.data.DataLoader(_Batches(), batch_size=None)
    trainer(tmp_path, max_steps=1, limit_val_batches=0).fit(module, loader, loader)
    (fit,) = module.fits
    assert (fit["optimizer"], fit["learning_rate"], fit["teacher"]) == ("SGD", 0.25, None)
    assert fit["student"] == {"path": "teacher"}
    assert (fit["data"]["module"], fit["data"]["source"], fit["data"]["rows"]) == (None, None, 3)


class _Batches(torch.utils.data.Dataset):
    def __len__(self) -> int:
        return 3

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        return {"input_ids": torch.full((2, 3), 7), "attention_mask": torch.ones(2, 3), "labels": torch.tensor([0, 1])}


def test_plain_values_pass_a_weights_only_load(module: DistillationModule, tmp_path: Path):
    fitted = trainer(tmp_path, max_steps=1)
    fitted.fit(module, data())
    fitted.save_checkpoint(tmp_path / "one.ckpt")
    kept = torch.load(tmp_path / "one.ckpt", weights_only=True)[CHECKPOINT_KEY]["fits"]
    assert kept == module.fits
