from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from scipy.special import expit, log_softmax
from scipy.stats import pearsonr, spearmanr
from sklearn.metrics import accuracy_score, average_precision_score, f1_score, matthews_corrcoef
from torch import nn

from lightning_distilbert import DistillationError, TextClassification

SINGLE, MULTI, REGRESSION = "single_label_classification", "multi_label_classification", "regression"


def outputs_and_labels(kind: str, rows: int = 40) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    width = 1 if kind == REGRESSION else 3
    logits = torch.randn(rows, width, generator=generator)
    if kind == SINGLE:
        return logits, torch.randint(0, 3, (rows,), generator=generator)
    if kind == MULTI:
        return logits, (torch.rand(rows, 3, generator=generator) > 0.5).float()
    return logits, logits[:, 0] + torch.randn(rows, generator=generator)


def make_task(kind: str, **arguments) -> TextClassification:
    return TextClassification(num_labels=None if kind == REGRESSION else 3, problem_type=kind, **arguments)


def loss_by_hand(kind: str, logits: torch.Tensor, labels: torch.Tensor) -> float:
    x, y = logits.double().numpy(), labels.double().numpy()
    if kind == SINGLE:
        rows = [-log_softmax(row)[int(label)] for row, label in zip(x, y, strict=True) if label != -100]
    elif kind == MULTI:
        known = ~np.isnan(y)
        p, y = expit(x[known]), y[known]
        rows = list(-(y * np.log(p) + (1 - y) * np.log(1 - p)))
    else:
        rows = [(row[0] - label) ** 2 for row, label in zip(x, y, strict=True) if not math.isnan(label)]
    return float(np.mean(rows))


@pytest.mark.parametrize("kind", [SINGLE, MULTI, REGRESSION])
def test_loss_equals_a_float64_loop_over_labelled_rows(kind: str):
    task = make_task(kind)
    logits, labels = outputs_and_labels(kind)
    assert task.loss({"logits": logits}, {"labels": labels}).item() == pytest.approx(loss_by_hand(kind, logits, labels))
    # unlabelled rows among labelled ones: neither the loss nor a gradient knows them
    labels[5:9] = -100 if kind == SINGLE else math.nan
    logits[5:9] = 1e4
    logits.requires_grad_()
    loss = task.loss({"logits": logits}, {"labels": labels})
    assert loss.item() == pytest.approx(loss_by_hand(kind, logits.detach(), labels))
    loss.backward()
    assert logits.grad[5:9].eq(0).all()
    assert logits.grad[:5].ne(0).all()


@pytest.mark.parametrize("kind", [SINGLE, MULTI, REGRESSION])
def test_batch_without_any_label_has_a_zero_loss_with_a_graph(kind: str):
    logits, labels = outputs_and_labels(kind, rows=4)
    labels = torch.full_like(labels, -100 if kind == SINGLE else math.nan)
    logits.requires_grad_()
    loss = make_task(kind).loss({"logits": logits}, {"labels": labels})
    assert loss.item() == 0.0
    loss.backward()
    assert logits.grad.eq(0).all()
    assert make_task(kind).loss({"logits": logits}, {"input_ids": torch.zeros(4, 2)}) is None


def test_single_cells_of_several_labels_may_be_unknown():
    logits, labels = outputs_and_labels(MULTI)
    labels[::2, 1] = math.nan
    loss = make_task(MULTI).loss({"logits": logits}, {"labels": labels})
    assert loss.item() == pytest.approx(loss_by_hand(MULTI, logits, labels))


def test_loss_is_float32_under_half_precision():
    logits, labels = outputs_and_labels(SINGLE)
    assert make_task(SINGLE).loss({"logits": logits.bfloat16()}, {"labels": labels}).dtype == torch.float32


def reference(kind: str, logits: torch.Tensor, labels: torch.Tensor) -> dict[str, float]:
    x, y = logits.numpy(), labels.numpy()
    if kind == SINGLE:
        best = x.argmax(-1)
        return {
            "accuracy": accuracy_score(y, best),
            "f1": f1_score(y, best, average="macro"),
            "mcc": matthews_corrcoef(y, best),
        }
    if kind == MULTI:
        return {
            "f1": f1_score(y, expit(x) > 0.5, average="micro"),
            "map": average_precision_score(y, expit(x), average="macro"),
        }
    return {"pearson": pearsonr(x[:, 0], y).statistic, "spearman": spearmanr(x[:, 0], y).statistic}


@pytest.mark.parametrize("kind", [SINGLE, MULTI, REGRESSION])
def test_metrics_equal_sklearn_and_scipy_on_the_labelled_rows(kind: str):
    task = make_task(kind)
    metrics = task.new_metrics()
    logits, labels = outputs_and_labels(kind)
    for part in (slice(0, 7), slice(7, 30), slice(30, 40)):
        task.update_metrics(metrics, {"logits": logits[part]}, {"labels": labels[part]})
    unknown = torch.full_like(labels[:3], -100 if kind == SINGLE else math.nan)
    task.update_metrics(metrics, {"logits": logits[:3]}, {"labels": unknown})
    found = {name: value.item() for name, value in metrics.compute().items()}
    assert found == pytest.approx(reference(kind, logits, labels), rel=1e-4)
    assert task.monitor.removeprefix("val/") in found


def test_metrics_of_one_split_do_not_share_state():
    task = make_task(SINGLE)
    first, second = task.new_metrics(), task.new_metrics()
    task.update_metrics(first, {"logits": torch.eye(3)}, {"labels": torch.arange(3)})
    task.update_metrics(second, {"logits": torch.eye(3)}, {"labels": torch.tensor([1, 2, 0])})
    assert (first.compute()["accuracy"], second.compute()["accuracy"]) == (1.0, 0.0)


def test_monitor_is_chosen():
    assert make_task(SINGLE).monitor == "val/accuracy"
    assert make_task(SINGLE, monitor="mcc").monitor == "val/mcc"
    assert make_task(MULTI).monitor == "val/f1"
    assert make_task(REGRESSION).monitor == "val/spearman"
    assert make_task(REGRESSION).mode == "max"


def test_decode_one_label():
    task = TextClassification(labels=["no", "yes"])
    answers = task.decode({"logits": torch.tensor([[0.0, math.log(3)], [5.0, 5.0 - math.log(4)]])})
    assert [answer["label"] for answer in answers] == ["yes", "no"]
    assert [answer["score"] for answer in answers] == pytest.approx([0.75, 0.8])


def test_decode_takes_names_from_the_task_then_those_given_then_numbers():
    logits = {"logits": torch.tensor([[0.0, 1.0]])}
    named, bare = TextClassification(labels=["no", "yes"]), TextClassification(num_labels=2)
    assert named.decode(logits, ("a", "b"))[0]["label"] == "yes"
    assert bare.decode(logits, ("a", "b"))[0]["label"] == "b"
    assert bare.decode(logits)[0]["label"] == "1"


def test_decode_several_labels_and_scores():
    task = TextClassification(labels=["a", "b", "c"], problem_type=MULTI)
    (first, second) = task.decode({"logits": torch.tensor([[2.0, -1.0, 1.0], [-1.0, -1.0, -1.0]])})
    assert [(item["label"], item["score"]) for item in first["labels"]] == [
        ("a", pytest.approx(expit(2.0))),
        ("c", pytest.approx(expit(1.0))),
    ]
    assert second == {"labels": []}
    assert make_task(REGRESSION).decode({"logits": torch.tensor([[0.5], [-2.0]])}) == [{"score": 0.5}, {"score": -2.0}]


def test_model_config():
    named = TextClassification(labels=["no", "yes"]).model_config()
    assert named["id2label"] == {0: "no", 1: "yes"}
    assert named["label2id"] == {"no": 0, "yes": 1}
    assert make_task(REGRESSION).model_config() == {"num_labels": 1, "problem_type": REGRESSION}


def test_run_leaves_out_what_the_model_does_not_take():
    class Model(nn.Module):
        def forward(self, input_ids, attention_mask=None):
            return type("Output", (), {"logits": input_ids.float()})()

    batch = {"input_ids": torch.ones(2, 3), "token_type_ids": torch.ones(2, 3), "labels": torch.ones(2)}
    assert make_task(SINGLE).run(Model(), batch)["logits"].shape == (2, 3)


@pytest.mark.parametrize(
    ("arguments", "match"),
    [
        ({}, "needs num_labels, or the names"),
        ({"num_labels": 3, "labels": ["a", "b"]}, r"num_labels=3, but 2 labels are named: \['a', 'b'\]"),
        ({"num_labels": 2, "problem_type": "tagging"}, "problem_type='tagging': it is one of"),
        ({"num_labels": 2, "problem_type": REGRESSION}, "one output, not num_labels=2"),
        ({"num_labels": 1}, "num_labels=1 is no choice"),
        ({"num_labels": 2, "monitor": "spearman"}, r"monitor='spearman': .* one of \['accuracy', 'f1', 'mcc'\]"),
    ],
)
def test_options_that_contradict_each_other_are_refused(arguments, match: str):
    with pytest.raises(DistillationError, match=match):
        TextClassification(**arguments)
