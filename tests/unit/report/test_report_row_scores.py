from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from lightning_distilbert import IntentClassification, TextClassification
from lightning_distilbert.errors import DistillationError
from lightning_distilbert.report.bootstrap import paired_bootstrap
from lightning_distilbert.report.row_scores import check_metric, row_numbers, row_scores

LABELS = torch.tensor([0, 1, 1, 0, 1, 0])


class Said(nn.Module):
    """A module that answers what its rows say."""

    def __init__(self, task: Any) -> None:
        super().__init__()
        self.task, self.labels, self.thresholds = task, task.labels, {}
        self.modes: list[bool] = []

    def forward(self, batch: Any) -> dict[str, Tensor]:
        self.modes.append(self.training or torch.is_grad_enabled())
        return {"logits": batch["logits"]}


class Batches(Dataset):
    def __init__(self, logits: Tensor, labels: Tensor | None) -> None:
        self.rows = {"logits": logits, "input_ids": torch.arange(len(logits))[:, None]}
        if labels is not None:
            self.rows["labels"] = labels

    def __len__(self) -> int:
        return len(self.rows["logits"])

    def __getitem__(self, rows: list[int]) -> dict[str, Tensor]:
        return {name: values[rows] for name, values in self.rows.items()}


def loader(logits: Tensor, sampler: Any, labels: Tensor | None = LABELS) -> Any:
    return DataLoader(Batches(logits, labels), batch_size=None, sampler=sampler)


def logits_for(predicted: list[int]) -> Tensor:
    return nn.functional.one_hot(torch.tensor(predicted), 2).float()


def test_rows_of_two_models_meet_whatever_the_order_of_their_batches():
    task = TextClassification(2)
    a = row_scores(Said(task), [loader(logits_for([0, 1, 0, 0, 1, 1]), [[5, 0, 2], [1, 3, 4]])], "accuracy")
    b = row_scores(Said(task), [loader(logits_for([0, 1, 0, 0, 1, 1]), [[3, 2], [0, 1], [5, 4]])], "accuracy")
    assert a.columns[0].tolist() == b.columns[0].tolist() == [1, 1, 0, 1, 1, 0]
    assert a.keys.tolist() == b.keys.tolist() == [0, 1, 2, 3, 4, 5]
    assert paired_bootstrap(a.columns, b.columns).high == 0.0
    assert a.scores == pytest.approx({"accuracy": 4 / 6, "f1": b.scores["f1"], "mcc": b.scores["mcc"]})


def test_module_is_evaluated_and_gets_its_mode_back():
    module = Said(TextClassification(2)).train()
    row_scores(module, [loader(logits_for([0] * 6), [[0, 1, 2, 3, 4, 5]])], "accuracy")
    assert module.modes == [False]
    assert module.training


def test_thresholds_that_ship_are_used():
    task = IntentClassification(labels=["a", "b", "oos"])
    logits = torch.tensor([[1.0, 0.0, 0.0]] * 6)
    module = Said(task)
    before = row_scores(module, [loader(logits, [[0, 1, 2, 3, 4, 5]])], "accuracy").scores["accuracy"]
    module.thresholds = {"out_of_scope": 0.99}
    found = row_scores(module, [loader(logits, [[0, 1, 2, 3, 4, 5]])], "accuracy")
    assert (before, found.scores["accuracy"]) == (0.5, 0.0)
    assert not any(name.startswith("threshold/") for name in found.scores)


@pytest.mark.parametrize("labels", [None, torch.full((6,), -100)])
def test_rows_without_labels_are_an_error(labels: Tensor | None):
    with pytest.raises(DistillationError, match=r"None of the texts has what accuracy is measured by"):
        row_scores(Said(TextClassification(2)), [loader(logits_for([0] * 6), [[0, 1, 2, 3, 4, 5]], labels)], "accuracy")


def test_shuffled_loader_is_refused():
    rows = Batches(logits_for([0] * 6), LABELS)
    with pytest.raises(DistillationError, match="in another order each time"):
        row_scores(Said(TextClassification(2)), [DataLoader(rows, shuffle=True, batch_size=2)], "accuracy")


def test_row_numbers_of_plain_loaders_and_streams():
    assert row_numbers(DataLoader(range(5), batch_size=2)).tolist() == [0, 1, 2, 3, 4]

    class Stream(torch.utils.data.IterableDataset):
        def __iter__(self):
            return iter(range(3))

    assert row_numbers(DataLoader(Stream())) is None


def test_metric_that_a_task_has_not_is_refused():
    with pytest.raises(DistillationError, match=r"of TextClassification was given 'bleu': choose one of 'accuracy'"):
        check_metric(TextClassification(2), "bleu")
    assert check_metric(TextClassification(2), "mcc") == "max"
