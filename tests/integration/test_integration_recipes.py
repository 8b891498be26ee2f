"""Every recipe trains two steps on a tiny model, from the command line as a user runs it."""

from __future__ import annotations

import inspect
import json
import shutil
import signal
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from transformers import AutoConfig, AutoModel, AutoModelForSeq2SeqLM, AutoModelForSequenceClassification

import lightning_distilbert
from lightning_distilbert import DistillationError, DistillationModule, load
from lightning_distilbert.cli import RECIPES, main
from lightning_distilbert.data.masked_words import MaskedWords
from lightning_distilbert.objectives import resolve_objectives
from tests.parallel_texts import TEXTS, save_parallel
from tests.squad_files import save_squad

CLASSIFIER = ["--data.source", "data", "--data.text", "sentence"]
RAW = ["--data.source", "text", "--data.max_length", "32", "--data.cache_dir", "cache"]
NARROW = ["--model.student.layers", "2", "--model.student.hidden_size", "16", "--model.student.intermediate_size", "24"]
ARGUMENTS = {
    "distilbert-finetune": ["--model.teacher", "teacher", "--model.student.source", "mlm", *CLASSIFIER],
    "distilbert-pretrain": ["--model.teacher", "mlm", "--model.student.layers", "2", *RAW],
    "finetune": ["--model.student.source", "mlm", *CLASSIFIER],
    "intents": ["--model.teacher", "intents", "--model.student.layers", "2", *CLASSIFIER],
    "minilm": ["--model.teacher", "mlm", "--model.objectives.heads", "2", *NARROW, *RAW],
    "question-answering": [
        *("--model.teacher", "reader", "--data.source", "squad", "--data.max_length", "32"),
        *("--model.task.doc_stride", "4"),
    ],
    "reranking": ["--model.student.source", "encoder", "--data.source", "mined"],
    "retrieval": ["--model.teacher", "encoder", "--data.source", "pairs"],
    "text-classification": ["--model.teacher", "teacher", "--model.student.layers", "2", *CLASSIFIER],
    "textbrewer-style": ["--model.teacher", "teacher", "--model.student.layers", "2", *CLASSIFIER],
    "tinybert-general": ["--model.teacher", "mlm", *NARROW, *RAW],
    "tinybert-intermediate": ["--model.teacher", "teacher", "--model.student.source", "mlm", *CLASSIFIER],
    "tinybert-prediction": ["--model.teacher", "teacher", "--model.student.source", "mlm", *CLASSIFIER],
    "token-classification": ["--model.teacher", "tagger", "--model.student.layers", "2", "--data.source", "ner"],
    "translation": [
        *("--model.student.encoder.source", "encoder", "--data.source", "parallel", "--data.languages", "[en, de]"),
        *("--model.student.vocab_size", "80", "--model.student.decoder_layers", "1"),
    ],
}
HEADS = {
    "retrieval": "DistilBertModel",
    "distilbert-pretrain": "DistilBertForMaskedLM",
    # a head that no loss trains is not saved
    "minilm": "DistilBertModel",
    "tinybert-general": "BertModel",
    "distilbert-finetune": "BertForSequenceClassification",
    "finetune": "BertForSequenceClassification",
    "question-answering": "DistilBertForQuestionAnswering",
    "reranking": "BertForSequenceClassification",
    "tinybert-intermediate": "BertModel",
    "tinybert-prediction": "BertForSequenceClassification",
    "token-classification": "DistilBertForTokenClassification",
    "translation": "EncoderDecoderModel",
}

# what trains no head has no score by which an epoch could be the best
HEADLESS = {"minilm", "tinybert-general", "tinybert-intermediate"}


# -- what each recipe trains with, as its paper or its published code has it, or as its page says ----------------------

ADAM = {"weight_decay": 0.01, "betas": (0.9, 0.999), "eps": 1e-8, "trainer.gradient_clip_val": 1.0}
ADAM |= {"trainer.accumulate_grad_batches": 1}
TASK_ROWS = {"data.batch_size": 32, "data.max_length": 128}
MASKING = {"data.mask_share": 0.15, "data.smoothing": 0.7, "data.whole_word": False}
MASKING |= {"data.min_length": 12, "data.max_unknown": 0.5}
HALF_SIZE = {
    "objectives": [
        ("SoftTargets", {"temperature": 2.0, "weight": 1.0}),
        ("HiddenStates", {"layers": "auto", "metric": "mse", "weight": 10.0}),
    ],
    "task_weight": 1.0, "student.layers": None, "warmup": 0.06, "trainer.max_epochs": 3,
}  # fmt: skip
LOGITS = {"objectives": [("SoftTargets", {"temperature": 2.0, "weight": 0.5})], "task_weight": 0.5}
FINETUNING = {"learning_rate": 3e-5, "warmup": 0.1, "trainer.max_epochs": 3}
ALL_LAYERS = ("HiddenStates", {"layers": "auto", "metric": "mse", "embeddings": True, "weight": 1.0})
TINYBERT = {
    "objectives": [("Attention", {"layers": "auto", "metric": "mse", "weight": 1.0}), ALL_LAYERS],
    "task_weight": 0.0, "warmup": 0.1,
}  # fmt: skip
PUBLISHED: dict[str, dict[str, Any]] = {
    "distilbert-pretrain": ADAM | MASKING | {
        "objectives": [
            ("SoftTargets", {"temperature": 2.0, "weight": 5.0}),
            ("HiddenStates", {"layers": "last", "metric": "cosine", "weight": 1.0}),
        ],
        "task_weight": 2.0, "task.positions": "all", "student.layers": 6, "student.rule": "uniform",
        "learning_rate": 5e-4, "weight_decay": 0.0, "betas": (0.9, 0.98), "eps": 1e-6, "warmup": 0.05,
        "data.batch_size": 8, "data.max_length": 512, "data.pack": False,
        "trainer.accumulate_grad_batches": 32, "trainer.gradient_clip_val": 5.0, "trainer.max_epochs": 3,
    },
    "distilbert-finetune": ADAM | LOGITS | FINETUNING | TASK_ROWS,
    "finetune": ADAM | FINETUNING | TASK_ROWS | {"teacher": None},
    "minilm": ADAM | MASKING | {
        "objectives": [("Relations", {"heads": 48, "teacher_layer": "last"})], "task_weight": 0.0,
        "student.layers": 6, "student.hidden_size": 384, "student.intermediate_size": 1536,
        "learning_rate": 6e-4, "warmup": 0.01, "data.batch_size": 64, "data.max_length": 128,
        "trainer.accumulate_grad_batches": 4, "trainer.max_epochs": 3,
    },
    "textbrewer-style": ADAM | TASK_ROWS | {
        "objectives": [("SoftTargets", {"temperature": 8.0, "weight": 1 / 64}), ALL_LAYERS], "task_weight": 0.0,
        "student.layers": 6, "learning_rate": 1e-4, "warmup": 0.1, "trainer.max_epochs": 30,
    },
    "tinybert-general": ADAM | MASKING | TINYBERT | {
        "student.layers": 4, "student.rule": "every", "student.hidden_size": 312, "student.intermediate_size": 1200,
        "student.architecture": "same", "learning_rate": 1e-4, "data.batch_size": 64, "data.max_length": 128,
        "trainer.accumulate_grad_batches": 4, "trainer.max_epochs": 3,
    },
    "tinybert-intermediate": ADAM | TINYBERT | TASK_ROWS | {"learning_rate": 5e-5, "trainer.max_epochs": 10},
    "tinybert-prediction": ADAM | FINETUNING | TASK_ROWS | {
        "objectives": [("SoftTargets", {"temperature": 1.0, "weight": 1.0})], "task_weight": 0.0,
    },
    "text-classification": ADAM | HALF_SIZE | TASK_ROWS | {"student.dropout": 0.0, "learning_rate": 5e-5},
    "token-classification": ADAM | HALF_SIZE | TASK_ROWS | {"learning_rate": 1e-4},
    "question-answering": ADAM | HALF_SIZE | {
        "learning_rate": 1e-4, "data.batch_size": 32, "data.max_length": 384,
        "task.doc_stride": 128, "task.max_answer_length": 30, "task.max_question_length": 64, "task.no_answer": False,
    },
    "intents": ADAM | HALF_SIZE | {
        "learning_rate": 1e-4, "data.batch_size": 32, "data.max_length": 64, "trainer.max_epochs": 5,
        "task.criterion": "balanced",
    },
    "retrieval": ADAM | {
        "objectives": [
            ("SentenceEmbedding", {"metric": "cosine", "weight": 20.0}),
            ("Similarity", {"temperature": 0.05, "weight": 4.0}),
            ("HiddenStates", {"layers": "auto", "metric": "mse", "weight": 10.0}),
        ],
        "task_weight": 0.0, "task.pooling": "mean", "task.temperature": 0.05, "task.gather": False,
        "student.dropout": 0.0, "learning_rate": 2e-4, "warmup": 0.06, "data.num_negatives": 1,
        "data.batch_size": 64, "data.max_length": 256,
        "trainer.max_epochs": 3,
    },
    "reranking": ADAM | LOGITS | FINETUNING | {
        "task.criterion": "listwise", "data.num_negatives": 4, "data.batch_size": 8, "data.max_length": 256,
        "trainer.max_epochs": 2,
    },
    "translation": ADAM | LOGITS | {
        "task.num_beams": 4, "task.label_smoothing": 0.0, "task.evaluation_beams": 1, "task.evaluation_length": 64,
        "task.encoder_rate": 0.2,
        "student.decoder_layers": 3, "student.max_target_positions": 128, "learning_rate": 5e-4, "warmup": 0.1,
        "data.batch_size": 64, "data.max_length": 128, "trainer.max_epochs": 10,
    },
}  # fmt: skip


def settings(recipe: str) -> dict[str, Any]:
    """Return what a recipe trains with: its own values, those of its preset, and the defaults of what it leaves out."""
    values = yaml.safe_load((RECIPES / f"{recipe}.yaml").read_text(encoding="utf-8"))
    model = values["model"]
    preset = resolve_objectives(model.get("objectives", "logits"))
    found = {f"trainer.{name}": value for name, value in values["trainer"].items()}
    found.setdefault("trainer.accumulate_grad_batches", 1)
    for prefix, part in (("task.", model["task"]), ("student.", model["student"]), ("data.", values["data"])):
        cls = getattr(lightning_distilbert, part["class_path"].removeprefix("lightning_distilbert."))
        found |= {f"{prefix}{name}": value for name, value in (defaults(cls) | part["init_args"]).items()}
    found |= defaults(DistillationModule) | model
    found["objectives"] = [(type(one).__name__, one.to_config()["init_args"]) for one in preset.objectives]
    found["betas"] = tuple(found["betas"])
    if found["task_weight"] is None:
        found["task_weight"] = preset.task_weight
    return found


def defaults(cls: type) -> dict[str, Any]:
    return {name: parameter.default for name, parameter in inspect.signature(cls).parameters.items()}


@pytest.mark.parametrize("recipe", sorted(ARGUMENTS))
def test_a_recipe_trains_with_what_is_published(recipe: str):
    found = settings(recipe)
    assert {name: found[name] for name in PUBLISHED[recipe]} == PUBLISHED[recipe]


@pytest.fixture
def workplace(
    tmp_path: Path,
    tiny_teacher_dir: Path,
    tiny_mlm_dir: Path,
    tiny_bert_dir: Path,
    tiny_reader_dir: Path,
    tiny_tagger_dir: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> Path:
    for name, source in (("teacher", tiny_teacher_dir), ("mlm", tiny_mlm_dir), ("encoder", tiny_bert_dir)):
        shutil.copytree(source, tmp_path / name)
    shutil.copytree(tiny_reader_dir, tmp_path / "reader")
    save_squad(tmp_path / "squad")
    save_parallel(tmp_path / "parallel")
    shutil.copytree(tiny_tagger_dir, tmp_path / "tagger")
    shutil.copytree(tiny_bert_dir, tmp_path / "intents")
    names = dict(enumerate(["0", "1", "oos"]))
    AutoModelForSequenceClassification.from_pretrained(tiny_bert_dir, id2label=names).save_pretrained(
        tmp_path / "intents"
    )
    for name in ("data", "text", "pairs", "mined", "ner"):
        (tmp_path / name).mkdir()
    for split in ("train", "dev"):
        rows = [f"the {'great' if row % 2 else 'dull'} movie is number {row}\t{row % 2}" for row in range(64)]
        (tmp_path / "data" / f"{split}.tsv").write_text("\n".join(["sentence\tlabel", *rows, ""]))
        pairs = [{"query": f"movie {row}", "document": f"the story of movie {row}"} for row in range(64)]
        (tmp_path / "pairs" / f"{split}.jsonl").write_text("\n".join(map(json.dumps, pairs)))
        (tmp_path / "ner" / f"{split}.txt").write_text("the O\nold I-PER\nman I-PER\n\nin O\nRome I-LOC\n\n" * 16)
        mined = [pair | {"negatives": ["the big house", "a tree"]} for pair in pairs]
        (tmp_path / "mined" / f"{split}.jsonl").write_text("\n".join(map(json.dumps, mined)))
    words = "the man in the big city is old and the story of his child is very long and good"
    (tmp_path / "text" / "raw.txt").write_text("\n".join(f"{words} {row}" for row in range(160)))
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_every_recipe_is_tested():
    assert sorted(ARGUMENTS) == sorted(path.stem for path in RECIPES.glob("*.yaml"))


def fit(recipe: str, *more: str, config: str | None = None, **limits: Any) -> None:
    limits = {"max_epochs": 1, "limit_train_batches": 2, "limit_val_batches": 1, "accumulate_grad_batches": 1} | limits
    flags = [word for name, value in limits.items() for word in (f"--trainer.{name}", str(value))]
    quiet = ["--trainer.enable_progress_bar", "false", "--trainer.enable_model_summary", "false"]
    sizes = ["--data.batch_size", "8", "--student_dir", "student", "--trainer.default_root_dir", "runs"]
    file = config or f"recipes/{recipe}.yaml"
    main(["fit", "--config", file, *ARGUMENTS[recipe], *sizes, *flags, *quiet, *more])


@pytest.mark.parametrize("recipe", sorted(ARGUMENTS))
def test_recipe_trains_two_steps_and_saves_a_student(recipe: str, workplace: Path, monkeypatch: pytest.MonkeyPatch):
    losses: list[float] = []
    weights: dict[str, torch.Tensor] = {}

    def step(module: DistillationModule, batch: Any, batch_idx: int) -> torch.Tensor:
        if not losses:
            weights.update({name: value.clone() for name, value in module.state_dict().items()})
        loss = training_step(module, batch, batch_idx)
        losses.append(loss.item())
        return loss

    training_step = DistillationModule.training_step
    monkeypatch.setattr(DistillationModule, "training_step", step)
    fit(recipe, "--data.batch_size", "4")
    assert len(losses) == 2
    assert all(0 < loss < float("inf") for loss in losses)
    (last,) = workplace.glob("runs/**/last.ckpt")
    trained = torch.load(last)
    assert trained["global_step"] == 2
    matrices = [name for name, value in weights.items() if name.endswith("weight") and value.dim() == 2]
    moved = [name for name in matrices if not torch.equal(trained["state_dict"][name], weights[name])]
    assert len(moved) > len(matrices) / 2, set(matrices) - set(moved)
    assert all(value.isfinite().all() for value in trained["state_dict"].values())
    config = AutoConfig.from_pretrained(workplace / "student")
    assert config.architectures == [HEADS.get(recipe, "DistilBertForSequenceClassification")]
    loader = AutoModelForSeq2SeqLM if recipe == "translation" else AutoModel
    assert loader.from_pretrained(workplace / "student").num_parameters() > 0
    checkpoints = sorted(path.name for path in workplace.glob("runs/**/*.ckpt"))
    assert checkpoints == (["last.ckpt"] if recipe in HEADLESS else ["best.ckpt", "last.ckpt"])


@pytest.mark.parametrize("recipe", ["distilbert-pretrain", "minilm", "tinybert-general"])
def test_pretraining_that_is_interrupted_in_its_first_epoch_can_be_resumed(
    recipe: str, workplace: Path, monkeypatch: pytest.MonkeyPatch
):
    values = yaml.safe_load((RECIPES / f"{recipe}.yaml").read_text(encoding="utf-8"))
    often = [one["init_args"] for one in values["trainer"]["callbacks"] if "every_n_train_steps" in one["init_args"]]
    assert len(often) == 1
    assert 0 < often[0]["every_n_train_steps"] <= 500
    often[0]["every_n_train_steps"] = 2
    Path("mine.yaml").write_text(yaml.safe_dump(values), encoding="utf-8")
    done: list[int] = []

    def step(module: DistillationModule, batch: Any, batch_idx: int) -> torch.Tensor:
        if len(done) == 3:
            raise KeyboardInterrupt
        done.append(batch_idx)
        return training_step(module, batch, batch_idx)

    training_step, handler = DistillationModule.training_step, signal.getsignal(signal.SIGINT)
    with monkeypatch.context() as patch:
        patch.setattr(DistillationModule, "training_step", step)
        with pytest.raises(SystemExit):
            fit(recipe, config="mine.yaml", limit_train_batches=5)
    signal.signal(signal.SIGINT, handler)  # Lightning leaves it ignored
    (latest,) = workplace.glob("runs/**/*.ckpt")
    assert (latest.name, torch.load(latest)["global_step"]) == ("latest.ckpt", 2)
    assert not (workplace / "student").exists()
    fit(recipe, "--ckpt_path", str(latest), config="mine.yaml", limit_train_batches=5)
    assert {torch.load(path)["global_step"] for path in workplace.glob("runs/**/last.ckpt")} == {5}
    assert (workplace / "student" / "config.json").is_file()


def test_a_tagger_without_a_teacher(workplace: Path):
    names = "[O, B-PER, I-PER, B-LOC, I-LOC]"
    source = ["--model.student.source", "encoder", "--model.student.layers", "null", "--model.task.labels", names]
    fit("token-classification", "--model.teacher", "null", *source)
    config = AutoConfig.from_pretrained("student")
    assert config.architectures == ["BertForTokenClassification"]
    assert config.id2label[1] == "B-PER"


def test_a_translator_of_the_recipe_teaches_a_smaller_one(workplace: Path):
    fit("translation")
    shutil.move("student", "translator")
    half = ["--model.student.encoder", "null", "--model.student.vocab_size", "null"]
    fit("translation", "--model.teacher", "translator", *half)
    found = load("student")
    assert (found.student.config.encoder.n_layers, found.student.config.decoder.vocab_size) == (2, 80)
    assert len(found.predict(TEXTS)) == len(TEXTS)


def test_a_student_of_relations_does_not_pose_as_a_masked_language_model(workplace: Path):
    fit("minilm")
    with pytest.raises(DistillationError, match=r"weights of the head are missing .* would be random"):
        MaskedWords("student")
    fit("distilbert-pretrain")  # which trains it
    assert MaskedWords("student", n=1).variants(["the good story"], [(0, 0)])


@pytest.mark.parametrize(("source", "kept"), [("mlm", False), ("cut", True)])
def test_the_first_phase_of_tinybert_saves_a_head_only_if_it_is_its_teachers(source: str, kept: bool, workplace: Path):
    more = ["--model.student.source", "null", "--model.student.layers", "2", "--model.student.architecture", "same"]
    fit("tinybert-intermediate", *(more if source == "cut" else []))
    found = AutoConfig.from_pretrained("student").architectures
    assert found == ["BertForSequenceClassification" if kept else "BertModel"]
    shutil.move("student", "mlm-intermediate")
    fit("tinybert-prediction", "--model.student.source", "mlm-intermediate")
    assert AutoConfig.from_pretrained("student").architectures == ["BertForSequenceClassification"]
