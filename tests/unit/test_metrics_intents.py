from __future__ import annotations

import numpy as np
import pytest
import torch
from sklearn.metrics import roc_auc_score

from lightning_distilbert.metrics_intents import IntentScores

OOS = 3


def rows(number: int = 300) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    labels = torch.randint(0, 4, (number,), generator=generator)
    logits = torch.randn(number, 4, generator=generator)
    inside = labels != OOS
    logits[inside, labels[inside]] += 3.0
    return logits, labels


def computed(logits: torch.Tensor, labels: torch.Tensor, thresholds: dict[str, float] | None = None, **options):
    metric = IntentScores(4, OOS, **options)
    metric.thresholds = thresholds or {}
    for part in zip(logits.split(64), labels.split(64), strict=True):
        metric.update(*part)
    return {name: value.item() for name, value in metric.compute().items()}


def reference_ece(probabilities: np.ndarray, labels: np.ndarray, bins: int = 15) -> float:
    sure, found = probabilities.max(axis=1), probabilities.argmax(axis=1)
    places = np.minimum((sure * bins).astype(int), bins - 1)
    parts = [(places == place) for place in range(bins) if (places == place).any()]
    return sum(part.mean() * abs(sure[part].mean() - (found[part] == labels[part]).mean()) for part in parts)


@pytest.mark.parametrize("thresholds", [{"out_of_scope": 0.6, "temperature": 2.0}, {}])
def test_scores_are_those_of_a_loop(thresholds: dict[str, float]):
    logits, labels = rows()
    found = computed(logits, labels, thresholds)
    p = (logits.double() / thresholds.get("temperature", 1.0)).softmax(dim=1).numpy()
    y = labels.numpy()
    inside = y != OOS
    best, nearest = p[:, :OOS].max(axis=1), p[:, :OOS].argmax(axis=1)
    answers = np.where(best < thresholds.get("out_of_scope", p[:, OOS]), OOS, nearest)
    assert found["accuracy"] == pytest.approx((answers == y).mean())
    assert found["in_scope_accuracy"] == pytest.approx((answers == y)[inside].mean())
    assert found["oos_recall"] == pytest.approx((answers == y)[~inside].mean())
    assert found["balanced"] == pytest.approx((found["in_scope_accuracy"] + found["oos_recall"]) / 2)
    assert found["oos_auroc"] == pytest.approx(roc_auc_score(~inside, -best), abs=1e-5)
    assert found["ece"] == pytest.approx(reference_ece(p[inside], y[inside]), abs=1e-5)
    assert 0 < found["oos_recall"] < 1


@pytest.mark.parametrize("criterion", ["balanced", "accuracy"])
def test_chosen_thresholds_give_the_best_score_that_was_promised(criterion: str):
    logits, labels = rows()
    first = computed(logits, labels, criterion=criterion)
    chosen = {name: first[f"threshold/{name}"] for name in ("out_of_scope", "temperature")}
    second = computed(logits, labels, chosen, criterion=criterion)
    assert second[criterion] == pytest.approx(first[f"best_{criterion}"])
    assert second["ece"] == pytest.approx(first["best_ece"])
    assert second[criterion] > first[criterion]
    assert second["threshold/out_of_scope"] == first["threshold/out_of_scope"]


def test_criteria_choose_different_thresholds():
    logits, labels = rows()
    keep = (labels != OOS) | (torch.arange(len(labels)) % 8 == 0)
    found = {name: computed(logits[keep], labels[keep], criterion=name) for name in ("balanced", "accuracy")}
    assert found["balanced"]["threshold/out_of_scope"] > found["accuracy"]["threshold/out_of_scope"]


def test_rows_of_one_kind_choose_no_threshold():
    logits, labels = rows()
    found = computed(logits[labels != OOS], labels[labels != OOS])
    assert not {"oos_recall", "oos_auroc", "threshold/out_of_scope"} & found.keys()
    assert found["best_balanced"] == found["balanced"] == found["in_scope_accuracy"]
    assert "threshold/temperature" in found
    found = computed(logits[labels == OOS], labels[labels == OOS])
    assert found["balanced"] == found["oos_recall"]
    assert not {"ece", "in_scope_accuracy", "threshold/temperature"} & found.keys()


def test_rows_without_a_label_do_not_count():
    logits, labels = rows()
    more = torch.cat([logits, 9 * torch.ones(5, 4)]), torch.cat([labels, torch.full((5,), -100)])
    assert computed(*more) == computed(logits, labels)


def test_reset_forgets():
    metric = IntentScores(4, OOS)
    metric.update(*rows())
    metric.reset()
    metric.update(torch.ones(2, 4), torch.full((2,), -100))
    assert metric.compute()["accuracy"].isnan()
