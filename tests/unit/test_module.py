from __future__ import annotations

import copy
import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from pytorch_lightning import Callback, LightningModule, Trainer
from pytorch_lightning.plugins.precision import Precision
from torch import nn
from torch.nn import functional as F
from transformers import AutoModel, AutoModelForSequenceClassification, AutoTokenizer

from lightning_distilbert import (
    DistillationError,
    DistillationModule,
    HiddenStates,
    Linear,
    Retrieval,
    RetrievalData,
    SoftTargets,
    Student,
    Teacher,
    TextClassification,
    TextClassificationData,
)
from lightning_distilbert.module import plain_argument
from lightning_distilbert.optimization import clip_gradients

ROWS = [{"text": f"the {'great' if i % 2 else 'dull'} movie number {i}", "label": i % 2} for i in range(20)]
PAIRS = [(f"movie {i}", f"the story of movie {i} is good") for i in range(8)]


def make(teacher: Any, **arguments: Any) -> DistillationModule:
    defaults = {"task": TextClassification(num_labels=2), "student": Student(layers=1)}
    return DistillationModule(teacher=teacher, **(defaults | arguments))


def without_dropout(module: DistillationModule) -> DistillationModule:
    for part in module.student.modules():
        if isinstance(part, nn.Dropout):
            part.p = 0.0
        if hasattr(part, "dropout_prob"):
            part.dropout_prob = 0.0
    return module


def train(module: DistillationModule, data: Any, *callbacks: Callback, **arguments: Any) -> Trainer:
    quiet = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False, "num_sanity_val_steps": 0}
    settings = {"max_epochs": 1, "accelerator": "cpu", "devices": 1, "enable_model_summary": False} | quiet | arguments
    trainer = Trainer(callbacks=list(callbacks), **settings)
    trainer.fit(module, data)
    return trainer


def text_data(rows: Any = ROWS, validation: Any = ROWS, **arguments: Any) -> TextClassificationData:
    return TextClassificationData({"train": rows, "validation": validation}, **({"batch_size": 2} | arguments))


# -- construction ------------------------------------------------------------------------------------------------------


def test_neither_teacher_nor_student_is_refused():
    with pytest.raises(DistillationError, match="Give a teacher to distil, or a student"):
        DistillationModule(TextClassification(num_labels=2))


@pytest.mark.parametrize("warmup", [-0.1, 1.0, 6])
def test_warmup_is_a_share(warmup: float, tiny_teacher_dir: Path):
    with pytest.raises(DistillationError, match=f"warmup={warmup} is the share"):
        make(tiny_teacher_dir, warmup=warmup)


def test_default_objectives_are_the_tasks_own(tiny_teacher_dir: Path, tiny_bert_dir: Path):
    text, search = make(tiny_teacher_dir), make(tiny_bert_dir, task=Retrieval())
    assert [type(part).__name__ for part in text.objectives] == ["SoftTargets", "HiddenStates"]
    assert (text.objectives[1].layers, text.task_weight) == ("auto", 1.0)
    assert [type(part).__name__ for part in search.objectives] == ["SentenceEmbedding", "Similarity"]
    assert search.task_weight == 0.0
    assert make(tiny_teacher_dir, task_weight=0.3).task_weight == 0.3
    assert make(tiny_teacher_dir, objectives="logits").task_weight == 0.5


def test_student_in_each_form(tiny_teacher_dir: Path, tiny_bert_dir: Path):
    finished = AutoModelForSequenceClassification.from_pretrained(tiny_teacher_dir)
    assert make(tiny_teacher_dir, student=None).student.config.num_hidden_layers == 2  # half of four
    assert make(tiny_teacher_dir, student=str(tiny_bert_dir)).student.config.num_hidden_layers == 4
    assert make(tiny_teacher_dir, student=tiny_bert_dir).student.config.model_type == "bert"
    assert make(tiny_teacher_dir, student=finished).student is finished


def test_hyper_parameters_are_plain(tiny_teacher_dir: Path):
    teacher = Teacher(tiny_teacher_dir, dtype="bfloat16")
    module = make(teacher, objectives=[SoftTargets(weight=Linear(1.0, 0.0))], warmup=0.25)
    assert module.hparams["teacher"]["init_args"] == {"source": str(tiny_teacher_dir), "dtype": "bfloat16"}
    assert make(tiny_teacher_dir).hparams["teacher"] == str(tiny_teacher_dir)
    assert module.hparams["warmup"] == 0.25
    assert module.hparams["objectives"][0]["init_args"]["weight"]["class_path"].endswith("Linear")
    assert json.loads(json.dumps(dict(module.hparams))) == dict(module.hparams)
    assert plain_argument("student", nn.Linear(1, 1)) is None
    assert plain_argument("teacher", Teacher(nn.Linear(1, 1))) is None
    with pytest.raises(DistillationError, match=r"DistillationModule\(tokenizer=\.\.\.\) is a object"):
        plain_argument("tokenizer", object())


def test_tokenizer_is_the_named_one_then_the_students_then_the_teachers(tiny_teacher_dir: Path, tmp_path: Path):
    folders = {}
    for name in ("named", "student"):
        folders[name] = tmp_path / name
        AutoModelForSequenceClassification.from_pretrained(tiny_teacher_dir).save_pretrained(folders[name])
        words = AutoTokenizer.from_pretrained(tiny_teacher_dir)
        words.model_max_length = 20 if name == "named" else 30
        words.save_pretrained(folders[name])
    student = Student(source=str(folders["student"]))
    assert make(tiny_teacher_dir, student=student, tokenizer=folders["named"]).tokenizer.model_max_length == 20
    assert make(tiny_teacher_dir, student=student).tokenizer.model_max_length == 30
    assert make(tiny_teacher_dir).tokenizer.model_max_length == 64
    models = [AutoModelForSequenceClassification.from_pretrained(tiny_teacher_dir) for _ in range(2)]
    with pytest.raises(DistillationError, match=r"no tokenizer.*Pass tokenizer=\.\.\. to DistillationModule"):
        _ = make(models[0], student=models[1]).tokenizer


# -- optimizer ---------------------------------------------------------------------------------------------------------


def stub_trainer(steps: float = 10, clip: float | None = None, scaler: Any = None) -> Any:
    precision = SimpleNamespace(scaler=scaler)
    return SimpleNamespace(estimated_stepping_batches=steps, gradient_clip_val=clip, precision_plugin=precision)


def test_weight_matrices_alone_decay_and_frozen_parameters_are_left_out(tiny_bert_dir: Path):
    student = Student(layers=2, architecture="same")
    module = make(tiny_bert_dir, task=Retrieval(), student=student, weight_decay=0.3, learning_rate=0.2)
    module.trainer = stub_trainer()
    optimizer = module.configure_optimizers()["optimizer"]
    decayed, others = optimizer.param_groups
    assert (decayed["weight_decay"], others["weight_decay"]) == (0.3, 0.0)
    assert all(p.dim() >= 2 for p in decayed["params"])
    assert all(p.dim() == 1 for p in others["params"])
    held = {id(p) for group in optimizer.param_groups for p in group["params"]}
    trained = {name: p for name, p in module.named_parameters() if "pooler" not in name}
    assert len(trained) < len(list(module.parameters()))
    assert held == {id(p) for p in trained.values()}


@pytest.mark.parametrize(
    ("clip", "scaler", "fused"), [(None, None, True), (1.0, None, True), (None, object(), True), (1.0, object(), False)]
)
def test_fused_unless_scaled_gradients_are_clipped(clip, scaler, fused: bool, tiny_teacher_dir: Path):
    module = make(tiny_teacher_dir)
    module.trainer = stub_trainer(clip=clip, scaler=scaler)
    assert module.configure_optimizers()["optimizer"].defaults["fused"] is fused


@pytest.mark.parametrize("steps", [float("inf"), -1])  # the latter of a stream that only max_epochs ends
def test_endless_training_keeps_the_learning_rate(steps: float, tiny_teacher_dir: Path):
    module = make(tiny_teacher_dir, learning_rate=0.25)
    module.trainer = stub_trainer(steps)
    optimizer = module.configure_optimizers()
    assert isinstance(optimizer, torch.optim.AdamW)
    assert optimizer.param_groups[0]["lr"] == 0.25


class Rates(Callback):
    def __init__(self) -> None:
        self.seen: list[float] = []

    def on_before_optimizer_step(self, trainer, pl_module, optimizer):
        self.seen.append(optimizer.param_groups[0]["lr"])


@pytest.mark.parametrize(
    ("warmup", "expected"),
    [
        (0.0, [1.0, 1.0, 8 / 9, 7 / 9, 6 / 9, 5 / 9, 4 / 9, 3 / 9, 2 / 9, 1 / 9]),
        (0.3, [1 / 3, 2 / 3, 1.0, 1.0, 6 / 7, 5 / 7, 4 / 7, 3 / 7, 2 / 7, 1 / 7]),
    ],
)
def test_rate_rises_and_falls_once_per_optimizer_step(warmup: float, expected: list[float], tiny_teacher_dir: Path):
    rates = Rates()
    module = make(tiny_teacher_dir, warmup=warmup, learning_rate=0.01)
    train(module, text_data(batch_size=1), rates, accumulate_grad_batches=2)  # 20 batches, 10 steps
    assert rates.seen == pytest.approx([0.01 * factor for factor in expected])


@pytest.mark.parametrize("algorithm", ["norm", "value"])
def test_gradients_are_clipped_under_mixed_precision(algorithm: str, tiny_teacher_dir: Path):
    largest = []

    class Norms(Callback):
        def on_before_zero_grad(self, trainer, pl_module, optimizer):
            grads = [p.grad.flatten() for p in pl_module.parameters() if p.grad is not None]
            if grads:
                flat = torch.cat(grads)
                largest.append(float(flat.norm() if algorithm == "norm" else flat.abs().max()))

    module = make(tiny_teacher_dir)
    train(
        module, text_data(), Norms(), max_steps=3, precision="bf16-mixed", gradient_clip_val=1e-3,
        gradient_clip_algorithm=algorithm,
    )  # fmt: skip
    assert largest
    assert max(largest) == pytest.approx(1e-3, rel=1e-2)


@pytest.mark.parametrize("clip", [None, 0.0, -1.0])
def test_without_a_positive_limit_nothing_is_clipped(clip: float | None):
    parameter = nn.Parameter(torch.zeros(2))
    parameter.grad = torch.tensor([3.0, 4.0])
    module = LightningModule()
    module.trainer = SimpleNamespace(
        precision_plugin=Precision(), gradient_clip_val=clip, gradient_clip_algorithm=None, optimizers=[]
    )
    clip_gradients(module, torch.optim.SGD([parameter], lr=1.0), clip, None)
    assert parameter.grad.tolist() == [3.0, 4.0]


# -- training ----------------------------------------------------------------------------------------------------------


class Losses(Callback):
    def __init__(self) -> None:
        self.losses: list[float] = []
        self.logged: list[dict[str, float]] = []

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        self.losses.append(float(outputs["loss"]))
        self.logged.append({name: float(value) for name, value in trainer.callback_metrics.items()})


def test_logged_names_with_a_teacher(tiny_teacher_dir: Path):
    trainer = train(make(tiny_teacher_dir, objectives=[SoftTargets(), HiddenStates(), SoftTargets()]), text_data())
    assert set(trainer.callback_metrics) == {
        "train/loss", "train/task_loss", "distill/soft_targets", "distill/soft_targets_2", "distill/hidden_states",
        "val/loss", "val/accuracy", "val/f1", "val/mcc",
    }  # fmt: skip


def test_test_metrics_and_predictions(tiny_teacher_dir: Path):
    module = make(tiny_teacher_dir)
    data = TextClassificationData({"test": ROWS}, batch_size=3)
    trainer = Trainer(accelerator="cpu", devices=1, logger=False, enable_checkpointing=False, enable_progress_bar=False)
    (scores,) = trainer.test(module, data, verbose=False)
    assert scores.keys() == {"test/loss", "test/accuracy", "test/f1", "test/mcc"}
    answers = [answer for batch in trainer.predict(module, data) for answer in batch]
    right = [int(answer["label"]) == row["label"] for answer, row in zip(answers, ROWS, strict=True)]
    assert scores["test/accuracy"] == pytest.approx(sum(right) / len(right))


def test_loss_is_the_weighted_sum_of_what_is_logged(tiny_teacher_dir: Path):
    seen = Losses()
    objectives = [SoftTargets(weight=3.0), HiddenStates(weight=0.25)]
    train(make(tiny_teacher_dir, objectives=objectives, task_weight=0.5), text_data(), seen)
    for loss, logged in zip(seen.losses, seen.logged, strict=True):
        parts = (logged["train/task_loss"], logged["distill/soft_targets"], logged["distill/hidden_states"])
        assert all(part > 0 for part in parts)
        assert loss == pytest.approx(0.5 * parts[0] + 3.0 * parts[1] + 0.25 * parts[2], rel=1e-5)
        assert logged["train/loss"] == pytest.approx(loss, rel=1e-5)


@pytest.mark.filterwarnings("ignore:.* rows have no label:UserWarning")
def test_labelled_and_unlabelled_rows_in_one_batch(tiny_teacher_dir: Path):
    rows = [row | ({"label": None} if i % 3 else {}) for i, row in enumerate(ROWS[:6])]
    module = without_dropout(make(tiny_teacher_dir, objectives=[SoftTargets(temperature=2.0)], task_weight=1.0))
    before = copy.deepcopy(module.student)
    seen = Losses()
    train(module, text_data(rows, batch_size=6), seen, max_steps=1, limit_val_batches=0)

    words = module.tokenizer([row["text"] for row in rows], padding=True, return_tensors="pt")
    teacher = AutoModelForSequenceClassification.from_pretrained(tiny_teacher_dir).eval()
    with torch.no_grad():
        theirs = teacher(**words).logits.double()
        ours = before(words["input_ids"], attention_mask=words["attention_mask"]).logits.double()
    labelled = torch.tensor([row["label"] is not None for row in rows])
    labels = torch.tensor([row["label"] for row in rows if row["label"] is not None])
    assert labelled.sum() == 2
    assert seen.logged[0]["train/task_loss"] == pytest.approx(F.cross_entropy(ours[labelled], labels).item(), rel=1e-4)
    target, log_ours = (theirs / 2).softmax(-1), (ours / 2).log_softmax(-1)
    divergence = (target * (target.log() - log_ours)).sum(-1)
    assert seen.logged[0]["distill/soft_targets"] == pytest.approx(4.0 * divergence.mean().item(), rel=1e-3)


@pytest.mark.parametrize("with_teacher", [True, False])
def test_names_that_only_the_data_knows_are_the_answers_and_saved(with_teacher: bool, tiny_teacher_dir: Path):
    named = [{"text": row["text"], "label": ("dull", "great")[row["label"]]} for row in ROWS]
    # a teacher whose logits are compared has to name them itself
    more = {"objectives": [HiddenStates()]} if with_teacher else {"student": Student(1, source=str(tiny_teacher_dir))}
    module = make(str(tiny_teacher_dir) if with_teacher else None, **more)
    train(module, text_data(named, named))
    assert module.labels == ("dull", "great")
    assert module.student.config.id2label == {0: "dull", 1: "great"}
    assert {answer["label"] for answer in module.predict(["a great movie", "a dull movie"])} <= {"dull", "great"}


def test_data_without_labels_trains_on_the_teacher_alone(tiny_teacher_dir: Path):
    rows = [{"text": row["text"]} for row in ROWS]
    data = text_data(rows, rows, label=None)
    trainer = train(make(tiny_teacher_dir), data, limit_val_batches=0)
    assert trainer.global_step == 10
    assert "train/task_loss" not in trainer.callback_metrics
    assert trainer.callback_metrics["distill/soft_targets"] > 0


def test_training_without_a_teacher_learns(tiny_teacher_dir: Path):
    seen = Losses()
    module = make(None, student=str(tiny_teacher_dir), learning_rate=2e-3)
    trainer = train(module, text_data(batch_size=10), seen, max_epochs=15)
    assert sum(seen.losses[-4:]) < 0.5 * sum(seen.losses[:4])
    assert not any("distill" in name for name in trainer.callback_metrics)
    assert trainer.callback_metrics["val/accuracy"] > 0.9


def test_without_teacher_and_labels_there_is_nothing_to_learn(tiny_teacher_dir: Path):
    module = make(None, student=str(tiny_teacher_dir))
    data = text_data([{"text": "a movie"}] * 4, label=None)
    with pytest.raises(DistillationError, match="no labels, and without a teacher"):
        train(module, data, limit_val_batches=0)
    with pytest.raises(DistillationError, match="nothing to watch"):
        module.watch({})
    with pytest.raises(DistillationError, match="nothing to distil"):
        module.distillation_loss(None, None)  # type: ignore[arg-type]


def test_schedule_without_an_end_is_refused(tiny_teacher_dir: Path):
    module = make(tiny_teacher_dir, objectives=[SoftTargets(weight=Linear(1.0, 0.0))])
    with pytest.raises(DistillationError, match="Trainer plans inf optimizer steps"):
        train(module, text_data(), max_epochs=-1)


def test_student_from_pretrained_is_put_into_train_mode(tiny_teacher_dir: Path):
    student = AutoModelForSequenceClassification.from_pretrained(tiny_teacher_dir).eval()
    modes = []

    class Modes(Callback):
        def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
            modes.append((student.training, pl_module.distiller.teacher.model.training))

    train(make(tiny_teacher_dir, student=student), text_data(), Modes(), max_steps=1)
    assert modes == [(True, False)]


def test_retrieval_trains_and_finds(tiny_bert_dir: Path):
    module = make(tiny_bert_dir, task=Retrieval(), task_weight=1.0)
    data = RetrievalData({"train": PAIRS, "validation": PAIRS}, batch_size=4)
    trainer = train(module, data)
    assert {"val/ndcg@10", "distill/sentence_embedding", "distill/similarity", "train/task_loss"} <= set(
        trainer.callback_metrics
    )
    assert "val/loss" not in trainer.callback_metrics  # there is none without pairs


# -- predict -----------------------------------------------------------------------------------------------------------


def test_predict_answers_in_the_order_of_the_texts(tiny_teacher_dir: Path):
    module = make(tiny_teacher_dir)
    texts = ["a good film", "the dull and very long story of a man in the city", "great", "", "best movie of the year"]
    alone = [module.predict([text])[0] for text in texts]
    for batch_size in (1, 2, 32):
        together = module.predict(texts, batch_size=batch_size)
        assert [answer["label"] for answer in together] == [answer["label"] for answer in alone]
        assert [a["score"] for a in together] == pytest.approx([a["score"] for a in alone], rel=1e-5)
    assert len({answer["score"] for answer in alone}) == len(texts)
    assert module.predict([]) == []


def test_predict_of_pairs_equals_the_model_called_on_pairs(tiny_teacher_dir: Path):
    module = make(tiny_teacher_dir, student=Student(layers=2, architecture="same"))
    pairs = [("a cat", "a dog in the house"), ("the long story of a man", "great")]
    student = copy.deepcopy(module.student).eval()
    for pair, answer in zip(pairs, module.predict(pairs), strict=True):
        with torch.no_grad():
            scores = student(**module.tokenizer(*pair, return_tensors="pt")).logits.softmax(-1)[0]
        assert answer["score"] == pytest.approx(scores.max().item(), rel=1e-5)
        assert answer["label"] == str(int(scores.argmax()))


def test_predict_cuts_long_texts(tiny_teacher_dir: Path):
    module = make(tiny_teacher_dir)
    long = "the cat and the dog " * 40  # far more than the 64 positions
    assert module.predict([long]) == module.predict([long], max_length=9999)
    assert module.predict([long], max_length=5) == module.predict(["the cat and"])
    assert module.predict([long], max_length=5) != module.predict([long])


def test_predict_restores_each_modules_mode_even_after_an_error(tiny_teacher_dir: Path, monkeypatch):
    module = make(tiny_teacher_dir)
    module.student.classifier.eval()  # the user's own choice
    before = [part.training for part in module.modules()]
    seen = []
    run = module.task.run

    def recording(model: nn.Module, batch: Any) -> Any:
        seen.append((any(part.training for part in model.modules()), torch.is_grad_enabled()))
        if len(seen) == 2:
            raise RuntimeError("out of memory")
        return run(model, batch)

    monkeypatch.setattr(module.task, "run", recording)
    module.predict(["great"])
    assert [part.training for part in module.modules()] == before
    with pytest.raises(RuntimeError, match="out of memory"):
        module.predict(["great"])
    assert [part.training for part in module.modules()] == before
    assert seen == [(False, False)] * 2


def test_predict_of_retrieval_gives_vectors(tiny_bert_dir: Path):
    module = make(tiny_bert_dir, task=Retrieval())
    vectors = module.predict(["a cat", "the dog and the house"])
    assert [len(vector) for vector in vectors] == [32, 32]
    assert sum(value**2 for value in vectors[0]) == pytest.approx(1.0, rel=1e-5)


@pytest.mark.parametrize(
    ("texts", "match"),
    [
        ("a movie", "single text was given, 'a movie'"),
        (["a", 3], "Entry 1 is 3: it has to be a string"),
        ([("a", "b", "c")], "a tuple of two strings"),
        (["a", ("b", "c")], "Entry 1 is .* cannot be mixed"),
    ],
)
def test_predict_refuses_what_is_no_text(texts: Any, match: str, tiny_teacher_dir: Path):
    with pytest.raises(DistillationError, match=match):
        make(tiny_teacher_dir).predict(texts)


# -- the saved student -------------------------------------------------------------------------------------------------


def test_saved_student_says_how_it_was_made(tiny_teacher_dir: Path, tmp_path: Path):
    objectives = [SoftTargets(temperature=3.0), HiddenStates(weight=0.5)]
    module = make(tiny_teacher_dir, objectives=objectives, task_weight=Linear(1.0, 0.0))
    folder = module.save_student(tmp_path / "student", max_length=40)
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    details = config["lightning_distilbert"]
    assert details["teacher"] == tiny_teacher_dir.name  # and not where it lies
    assert details["task"] == {
        "class_path": "lightning_distilbert.tasks.text_classification.TextClassification",
        "init_args": {"num_labels": 2},
    }
    assert [part["init_args"] for part in details["objectives"]] == [{"temperature": 3.0}, {"weight": 0.5}]
    assert details["task_weight"]["init_args"] == {"start": 1.0, "end": 0.0}
    assert json.loads((folder / "tokenizer_config.json").read_text(encoding="utf-8"))["model_max_length"] == 40
    assert not (folder / "modules.json").exists()
    loaded = AutoModelForSequenceClassification.from_pretrained(folder).state_dict()
    assert all(torch.equal(value, loaded[name]) for name, value in module.student.state_dict().items())


def test_saved_sentence_encoder_says_how_it_pools(tiny_bert_dir: Path, tmp_path: Path):
    module = make(tiny_bert_dir, task=Retrieval(pooling="cls", normalize=False))
    folder = module.save_student(tmp_path / "student")
    assert json.loads((folder / "1_Pooling" / "config.json").read_text())["pooling_mode_cls_token"] is True
    assert [part["name"] for part in json.loads((folder / "modules.json").read_text())] == ["0", "1"]  # no norm
    assert AutoModel.from_pretrained(folder).config.num_hidden_layers == 1


def test_student_made_without_a_teacher_names_none(tiny_teacher_dir: Path, tmp_path: Path):
    folder = make(None, student=str(tiny_teacher_dir)).save_student(tmp_path / "student")
    details = json.loads((folder / "config.json").read_text(encoding="utf-8"))["lightning_distilbert"]
    assert (details["teacher"], details["objectives"]) == (None, [])


def test_a_student_attends_as_before_after_an_error_too(tiny_teacher_dir: Path):
    class Failing(Callback):
        def on_train_batch_end(self, *_: Any) -> None:
            raise RuntimeError("stop")

    module = make(tiny_teacher_dir, student=Student(layers=1, dropout=0.1))
    for precision, within in (("bf16-mixed", "eager"), ("32-true", "sdpa")):
        with pytest.raises(RuntimeError, match="stop"):
            train(module, text_data(), Failing(), precision=precision)
        assert module.student.config._attn_implementation == within
    train(module, text_data(), precision="bf16-mixed", max_steps=1)
    assert module.student.config._attn_implementation == "sdpa"


@pytest.mark.parametrize(("precision", "within"), [("bf16-mixed", "eager"), ("32-true", "sdpa")])
def test_a_fit_attends_in_the_faster_way(tiny_teacher_dir: Path, tmp_path: Path, precision: str, within: str):
    found = []

    class Look(Callback):
        def on_train_batch_start(self, trainer, module, batch, batch_idx):
            found.append(module.student.config._attn_implementation)

    for spec in (Student(layers=1, dropout=0.1), Student(layers=1, dropout=0.1, attn_implementation="sdpa")):
        module = DistillationModule(TextClassification(num_labels=2), str(tiny_teacher_dir), spec)
        trainer = Trainer(
            max_steps=1, accelerator="cpu", precision=precision, callbacks=[Look()], logger=False,
            enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False,
            default_root_dir=tmp_path,
        )  # fmt: skip
        trainer.fit(module, TextClassificationData({"train": [{"text": "good", "label": 1}] * 2}))
        assert module.student.config._attn_implementation == "sdpa"
    assert found == [within, "sdpa"]
