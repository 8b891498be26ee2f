from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from pytorch_lightning import Trainer

from lightning_distilbert import (
    DistillationError,
    DistillationModule,
    IntentClassification,
    SoftTargets,
    Student,
    TextClassificationData,
    load,
)

LABELS = ["film", "house", "oos"]
TASK = IntentClassification(labels=LABELS)
TEXTS = {"film": "the great movie and the actor", "house": "the big house in the city", "oos": "one two three"}
FLAGS = {
    "logger": False, "accelerator": "cpu", "enable_checkpointing": False, "enable_progress_bar": False,
    "enable_model_summary": False,
}  # fmt: skip


def rows(labels: list[str] = LABELS, times: int = 6) -> list[dict[str, str]]:
    return [{"text": f"{TEXTS[label]} {i}", "label": label} for i in range(times) for label in labels]


def data_of(**splits) -> TextClassificationData:
    return TextClassificationData(splits or {"train": rows(), "validation": rows(times=3)}, batch_size=9)


def outputs(*logits: list[float]) -> dict[str, torch.Tensor]:
    return {"logits": torch.tensor(logits)}


@pytest.mark.parametrize(
    ("thresholds", "expected"),
    [
        (None, ["film", "oos"]),  # the label of highest probability
        ({"out_of_scope": 0.7}, ["oos", "oos"]),
        ({"out_of_scope": 0.1}, ["film", "house"]),  # out of scope is told by the threshold alone
        ({"out_of_scope": 0.7, "temperature": 0.5}, ["film", "oos"]),
    ],
)
def test_thresholds_decide_the_answers(thresholds: dict[str, float] | None, expected: list[str]):
    found = TASK.decode(outputs([1.0, 0.0, 0.0], [0.0, 0.5, 2.0]), thresholds=thresholds)
    assert [answer["label"] for answer in found] == expected
    assert [answer["nearest"] for answer in found] == ["film", "house"]
    p = (torch.tensor([1.0, 0.0, 0.0]) / (thresholds or {}).get("temperature", 1.0)).softmax(0)[0].item()
    assert found[0]["score"] == pytest.approx(1 - p if expected[0] == "oos" else p)
    json.dumps(found)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"labels": ["a", "b", "c"]}, "out_of_scope='oos' has to be one of the labels"),
        ({"labels": ["a", "b", "b", "oos"]}, "each of them named once"),
        ({"labels": ["a", "oos"]}, "two intents to choose from"),
        ({"labels": LABELS, "criterion": "f1"}, r"criterion=.*'f1'"),
        ({"labels": LABELS, "monitor": "best_accuracy"}, r"monitor=.*'best_accuracy'"),
    ],
)
def test_bad_options(options, message: str):
    with pytest.raises(DistillationError, match=message):
        IntentClassification(**options)


def test_options_are_kept_and_told():
    task = IntentClassification(labels=["a", "b", "none"], out_of_scope="none", criterion="accuracy")
    assert task.monitor == "val/best_accuracy"
    metric = task.new_metrics()
    assert (metric.out_of_scope, metric.criterion, metric.num_labels) == (2, "accuracy", 3)
    assert IntentClassification(LABELS, monitor="oos_auroc").monitor == "val/oos_auroc"
    with pytest.raises(DistillationError, match="no teacher's or student's config names them"):
        IntentClassification().with_labels(None)
    with pytest.raises(DistillationError, match="out_of_scope='oos'"):
        IntentClassification().with_labels(["a", "b", "c"])
    assert IntentClassification(criterion="accuracy").with_labels(LABELS).monitor == "val/best_accuracy"


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory):
    from tests.conftest import save_tiny_bert

    folder = tmp_path_factory.mktemp("intents")
    torch.manual_seed(0)
    module = DistillationModule(TASK, student=str(save_tiny_bert(folder / "bert")), learning_rate=3e-3)
    trainer = Trainer(max_epochs=6, **FLAGS)
    trainer.fit(module, data_of())
    module.save_student(folder / "teacher")
    return module, folder / "teacher", {name: float(value) for name, value in trainer.callback_metrics.items()}


def test_validation_chooses_what_the_saved_student_answers_by(trained):
    module, folder, scores = trained
    assert module.thresholds.keys() == {"out_of_scope", "temperature"}
    assert scores["val/best_balanced"] == 1.0
    assert not any("threshold" in name for name in scores)
    again = load(folder)
    assert again.thresholds == module.thresholds
    assert type(again.task) is IntentClassification
    answers = again.predict([row["text"] for row in rows(times=3)])
    assert [answer["label"] for answer in answers] == [row["label"] for row in rows(times=3)]
    again.thresholds["out_of_scope"] = 1.1
    assert {answer["label"] for answer in again.predict(list(TEXTS.values()))} == {"oos"}


def test_test_split_is_scored_by_what_validation_chose(trained):
    module, folder, _ = trained
    module = load(folder)
    trainer = Trainer(**FLAGS)
    data = data_of(test=rows(times=2))
    (first,) = trainer.test(module, data, verbose=False)
    module.thresholds["out_of_scope"] = 1.1
    (second,) = trainer.test(module, data, verbose=False)
    assert (first["test/balanced"], second["test/balanced"]) == (1.0, 0.5)
    assert (second["test/oos_recall"], second["test/in_scope_accuracy"]) == (1.0, 0.0)


def test_student_takes_labels_of_its_teacher(trained):
    _, folder, _ = trained
    module = DistillationModule(
        IntentClassification(), teacher=str(folder), student=Student(layers=2), objectives=[SoftTargets()]
    )
    assert module.labels == tuple(LABELS)
    trainer = Trainer(max_steps=2, num_sanity_val_steps=0, **FLAGS)
    trainer.fit(module, data_of())
    assert trainer.callback_metrics["distill/soft_targets"] > 0
    assert module.task.to_config()["init_args"]["labels"] == LABELS


def test_intent_that_the_labels_do_not_know_is_refused(trained, tiny_bert_dir: Path):
    module = DistillationModule(TASK, student=str(tiny_bert_dir))
    bad = [*rows(), {"text": "who knows", "label": "fim"}]
    with pytest.raises(DistillationError, match="row 19: the label 'fim' is not one of the 3 known"):
        Trainer(max_steps=1, **FLAGS).fit(module, data_of(train=bad))


def test_no_thresholds_without_texts_out_of_scope(trained):
    _, folder, _ = trained
    module = load(folder)
    module.thresholds.clear()
    Trainer(**FLAGS).validate(module, data_of(validation=rows(["film", "house"])), verbose=False)
    assert module.thresholds.keys() == {"temperature"}
    assert [answer["label"] for answer in module.predict(list(TEXTS.values()))] == list(TEXTS)


@pytest.mark.parametrize("text", ["", "\U0001f600\U0001f600", "the house " * 5000])
def test_any_text_has_an_answer(trained, text: str):
    _, folder, _ = trained
    (answer,) = load(folder).predict([text])
    assert answer["label"] in LABELS
    assert 0 <= answer["score"] <= 1


def test_loss_and_metrics_are_those_of_labels():
    batch = {"labels": torch.tensor([0, -100])}
    metric = TASK.new_metrics()
    TASK.update_metrics(metric, outputs([1.0, 0, 0], [1.0, 0, 0]), batch)
    assert len(torch.cat(metric.labels)) == 1
    TASK.update_metrics(metric, outputs([1.0, 0, 0]), {})
    assert len(torch.cat(metric.labels)) == 1
