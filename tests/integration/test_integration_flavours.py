"""``pytorch_lightning`` and ``lightning.pytorch``: the callback works under both, modules follow the one imported."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from lightning_distilbert._compat import choose_flavour
from lightning_distilbert.errors import DistillationError

ROOT = Path(__file__).resolve().parents[2]

# what each process begins with: hiding a package as if it were not installed, and what is then trained
PRELUDE = '''
import sys
from importlib.machinery import PathFinder

def hide(package):
    class Hiding(PathFinder):
        @classmethod
        def find_spec(cls, name, path=None, target=None):
            return None if name.partition(".")[0] == package else PathFinder.find_spec(name, path, target)
    sys.meta_path[sys.meta_path.index(PathFinder)] = Hiding

def quiet(L):
    return L.Trainer(
        max_epochs=1, accelerator="cpu", devices=1, logger=False, enable_checkpointing=False,
        enable_progress_bar=False, enable_model_summary=False, num_sanity_val_steps=0,
    )

def data():
    from lightning_distilbert import TextClassificationData
    rows = [{"text": f"a {'great' if i % 2 else 'dull'} movie", "label": i % 2} for i in range(8)]
    return TextClassificationData({"train": rows, "validation": rows}, batch_size=4, tokenizer=TEACHER)

def train_callback(L):
    """Fit a foreign module of this package with the callback."""
    import torch
    from torch.utils.data import DataLoader
    from lightning_distilbert import DistillationLoss, build_student

    class Foreign(L.LightningModule):
        def __init__(self):
            super().__init__()
            self.model = build_student(TEACHER, 2, auto_class="AutoModelForSequenceClassification")
        def training_step(self, batch, batch_idx):
            return self.model(batch["input_ids"], labels=batch["labels"]).loss
        def configure_optimizers(self):
            return torch.optim.AdamW(self.parameters(), lr=1e-3)

    trainer = quiet(L)
    callback = DistillationLoss(TEACHER)
    assert isinstance(callback, L.Callback)
    trainer.callbacks.append(callback)
    batches = [{"input_ids": torch.randint(5, 100, (4, 6)), "labels": torch.tensor([0, 1, 0, 1])}] * 2
    trainer.fit(Foreign(), DataLoader(batches, batch_size=None))
    assert float(trainer.callback_metrics["distill/soft_targets"]) > 0
    print("callback", L.__name__)

def train_module(L):
    """Fit our module and data under this package."""
    from lightning_distilbert import DistillationModule, Student, TextClassification, TextClassificationData
    assert issubclass(DistillationModule, L.LightningModule)
    assert issubclass(TextClassificationData, L.LightningDataModule)
    module = DistillationModule(TextClassification(num_labels=2), teacher=TEACHER, student=Student(layers=1))
    trainer = quiet(L)
    trainer.fit(module, data())
    assert "val/accuracy" in trainer.callback_metrics and "distill/soft_targets" in trainer.callback_metrics
    from lightning_distilbert.commands.training import DistillationCLI, LightningCLI
    assert issubclass(DistillationCLI, LightningCLI) and LightningCLI.__module__ == L.__name__ + ".cli"
    print("module", L.__name__)
'''

CASES = {
    "only pytorch_lightning is installed": (
        "hide('lightning')\nimport pytorch_lightning as L\ntrain_callback(L)\ntrain_module(L)",
        {},
        ["callback pytorch_lightning", "module pytorch_lightning"],
    ),
    "only lightning is installed": (
        "hide('pytorch_lightning')\nimport lightning_distilbert.callback\nimport lightning.pytorch as L\n"
        "train_callback(L)\ntrain_module(L)",
        {},
        ["callback lightning.pytorch", "module lightning.pytorch"],
    ),
    "the program imports lightning.pytorch": (
        "import lightning.pytorch as L\nimport lightning_distilbert\ntrain_module(L)\ntrain_callback(L)\n"
        "import pytorch_lightning as other\ntrain_callback(other)",
        {},
        ["module lightning.pytorch", "callback lightning.pytorch", "callback pytorch_lightning"],
    ),
    "both are imported and the environment decides": (
        "import pytorch_lightning as other, lightning.pytorch as L\ntrain_callback(other)\ntrain_callback(L)\n"
        "train_module(L)",
        {"LIGHTNING_DISTILBERT_BACKEND": "lightning"},
        ["callback pytorch_lightning", "callback lightning.pytorch", "module lightning.pytorch"],
    ),
    "both are imported and nothing decides": (
        "import lightning.pytorch as other, pytorch_lightning as L\ntrain_callback(other)\ntrain_module(L)",
        {},
        ["callback lightning.pytorch", "module pytorch_lightning"],
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_flavour(case: str, tiny_teacher_dir: Path, tmp_path: Path):
    pytest.importorskip("lightning")
    code, extra, expected = CASES[case]
    environment = {name: value for name, value in os.environ.items() if name != "LIGHTNING_DISTILBERT_BACKEND"}
    environment |= {"PYTHONPATH": str(ROOT), **extra}
    script = f"TEACHER = {str(tiny_teacher_dir)!r}\n{PRELUDE}\n{code}"
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", script],
        cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=280,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == expected


def test_unknown_backend_is_refused(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("LIGHTNING_DISTILBERT_BACKEND", "jax")
    with pytest.raises(DistillationError, match=r"LIGHTNING_DISTILBERT_BACKEND='jax': it is one of \['lightning', 'py"):
        choose_flavour()


@pytest.mark.parametrize(("name", "package"), [("lightning", "lightning.pytorch"), ("pytorch_lightning",) * 2])
def test_environment_names_the_package(name: str, package: str, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("LIGHTNING_DISTILBERT_BACKEND", name)
    assert choose_flavour() == package


def test_no_package_at_all_is_refused(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.delenv("LIGHTNING_DISTILBERT_BACKEND", raising=False)
    monkeypatch.setattr("lightning_distilbert._compat.find_spec", lambda package: None)
    monkeypatch.setattr("lightning_distilbert._compat.sys", type("NoModules", (), {"modules": {}}))
    with pytest.raises(DistillationError, match="pip install pytorch-lightning"):
        choose_flavour()
