"""Every recipe trains two steps on a tiny model, from the command line as a user runs it."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from transformers import AutoConfig, AutoModel

from lightning_distilbert.cli import RECIPES, main

CLASSIFIER = ["--data.source", "data", "--data.text", "sentence"]
RAW = ["--data.source", "text", "--data.max_length", "32", "--data.cache_dir", "cache"]
NARROW = ["--model.student.layers", "2", "--model.student.hidden_size", "16", "--model.student.intermediate_size", "24"]
ARGUMENTS = {
    "distilbert-finetune": ["--model.teacher", "teacher", "--model.student.source", "mlm", *CLASSIFIER],
    "distilbert-pretrain": ["--model.teacher", "mlm", "--model.student.layers", "2", *RAW],
    "finetune": ["--model.student.source", "mlm", *CLASSIFIER],
    "minilm": ["--model.teacher", "mlm", "--model.objectives.heads", "2", *NARROW, *RAW],
    "retrieval": ["--model.teacher", "encoder", "--data.source", "pairs"],
    "text-classification": ["--model.teacher", "teacher", "--model.student.layers", "2", *CLASSIFIER],
    "textbrewer-style": ["--model.teacher", "teacher", "--model.student.layers", "2", *CLASSIFIER],
    "tinybert-general": ["--model.teacher", "mlm", *NARROW, *RAW],
    "tinybert-intermediate": ["--model.teacher", "teacher", "--model.student.source", "mlm", *CLASSIFIER],
    "tinybert-prediction": ["--model.teacher", "teacher", "--model.student.source", "mlm", *CLASSIFIER],
}
HEADS = {
    "retrieval": "DistilBertModel",
    "distilbert-pretrain": "DistilBertForMaskedLM",
    "minilm": "DistilBertForMaskedLM",
    "tinybert-general": "BertForMaskedLM",
    "distilbert-finetune": "BertForSequenceClassification",
    "finetune": "BertForSequenceClassification",
    "tinybert-intermediate": "BertForSequenceClassification",
    "tinybert-prediction": "BertForSequenceClassification",
}

# what trains no head has no score by which an epoch could be the best
HEADLESS = {"minilm", "tinybert-general", "tinybert-intermediate"}


@pytest.fixture
def workplace(
    tmp_path: Path,
    tiny_teacher_dir: Path,
    tiny_mlm_dir: Path,
    tiny_bert_dir: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> Path:
    for name, source in (("teacher", tiny_teacher_dir), ("mlm", tiny_mlm_dir), ("encoder", tiny_bert_dir)):
        shutil.copytree(source, tmp_path / name)
    for name in ("data", "text", "pairs"):
        (tmp_path / name).mkdir()
    for split in ("train", "dev"):
        rows = [f"the {'great' if row % 2 else 'dull'} movie is number {row}\t{row % 2}" for row in range(64)]
        (tmp_path / "data" / f"{split}.tsv").write_text("\n".join(["sentence\tlabel", *rows, ""]))
        pairs = [{"query": f"movie {row}", "document": f"the story of movie {row}"} for row in range(64)]
        (tmp_path / "pairs" / f"{split}.jsonl").write_text("\n".join(map(json.dumps, pairs)))
    words = "the man in the big city is old and the story of his child is very long and good"
    (tmp_path / "text" / "raw.txt").write_text("\n".join(f"{words} {row}" for row in range(160)))
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_every_recipe_is_tested():
    assert sorted(ARGUMENTS) == sorted(path.stem for path in RECIPES.glob("*.yaml"))


@pytest.mark.parametrize("recipe", sorted(ARGUMENTS))
def test_recipe_trains_two_steps_and_saves_a_student(recipe: str, workplace: Path):
    limits = {"max_epochs": 1, "limit_train_batches": 2, "limit_val_batches": 1, "accumulate_grad_batches": 1}
    flags = [word for name, value in limits.items() for word in (f"--trainer.{name}", str(value))]
    quiet = ["--trainer.enable_progress_bar", "false", "--trainer.enable_model_summary", "false"]
    sizes = ["--data.batch_size", "8", "--student_dir", "student", "--trainer.default_root_dir", "runs"]
    main(["fit", "--config", f"recipes/{recipe}.yaml", *ARGUMENTS[recipe], *sizes, *flags, *quiet])
    config = AutoConfig.from_pretrained(workplace / "student")
    assert config.architectures == [HEADS.get(recipe, "DistilBertForSequenceClassification")]
    assert AutoModel.from_pretrained(workplace / "student").num_parameters() > 0
    checkpoints = sorted(path.name for path in workplace.glob("runs/**/*.ckpt"))
    assert checkpoints == (["last.ckpt"] if recipe in HEADLESS else ["best.ckpt", "last.ckpt"])
