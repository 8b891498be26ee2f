"""A few translations, and tiny models that write them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from pytorch_lightning import Trainer

from lightning_distilbert import DistillationModule, Student, Translation, TranslationData, TranslationStudent

PAIRS = [
    ("the dog and the cat", "der Hund und die Katze"),
    ("the man in the house", "der Mann in dem Haus"),
    ("a good film", "ein guter Film"),
    ("an old man", "ein alter Mann."),
    ("water and trees", "Wasser und Bäume"),
]
ROWS = [{"source": text, "target": translation} for text, translation in PAIRS]
TEXTS = [text for text, _ in PAIRS]
TINY_DECODER: dict[str, Any] = {"decoder_layers": 1, "max_target_positions": 24}


def trainer(**limits: Any) -> Trainer:
    """Return a quiet Trainer on one CPU."""
    quiet = ("logger", "enable_checkpointing", "enable_progress_bar", "enable_model_summary")
    return Trainer(accelerator="cpu", devices=1, **(dict.fromkeys(quiet, False) | limits))


def student(encoder: Path, **options: Any) -> TranslationStudent:
    """Return a description of a tiny student with two layers of an encoder."""
    sizes = {"vocab_size": 90, **TINY_DECODER, **options}
    return TranslationStudent(Student(source=str(encoder), layers=2), **sizes)


def save_parallel(folder: Path) -> Path:
    """Write the translations as two files a split, and return the folder."""
    folder.mkdir(parents=True)
    for split in ("train", "val"):
        for side, language in enumerate(("en", "de")):
            lines = "".join(f"{pair[side]}\n" for pair in PAIRS)
            (folder / f"{split}.{language}").write_text(lines, encoding="utf-8")
    return folder


def save_translator(encoder: Path, folder: Path, epochs: int = 130) -> Path:
    """Train a tiny model that knows the translations, and save it."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        module = DistillationModule(Translation(num_beams=2), student=student(encoder), learning_rate=5e-3)
        data = TranslationData({"train": ROWS, "validation": ROWS}, batch_size=5)
        trainer(max_epochs=epochs, limit_val_batches=0).fit(module, data)
    return module.save_student(folder)
