"""Scores that are made of rows: equal to the task's metric on all rows, and to other libraries on drawn ones."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import scipy.stats
import torch
from sklearn import metrics as sklearn_metrics
from torch import Tensor

from lightning_distilbert import IntentClassification, MaskedLM, Reranking, Retrieval, TextClassification
from lightning_distilbert.errors import DistillationError
from lightning_distilbert.metrics_translation import TranslationScores
from lightning_distilbert.report.row_kinds import Rows, kind_of
from lightning_distilbert.tasks import QuestionAnswering, TokenClassification

ROWS = 40


@pytest.fixture
def draw() -> Tensor:
    """Rows drawn with replacement."""
    return torch.randint(ROWS, (ROWS,), generator=torch.Generator().manual_seed(1))


def rows_of(task: Any, outputs: Any, batch: Any, metric: str, metrics: Any = None) -> tuple[Rows, Any]:
    """Return the rows of one batch, and the metrics that saw it."""
    metrics = metrics if metrics is not None else task.new_metrics()
    task.update_metrics(metrics, outputs, batch)
    kind = kind_of(task)
    pieces = []
    if kind.gather is not None:
        size = len(batch["input_ids"])
        pieces = [*kind.gather(task, metrics, outputs, batch), torch.arange(size)]
    return kind.finish(task, metrics, pieces, metric), metrics


def on(rows: Rows, draw: Tensor | None = None) -> float:
    """Return the score of all rows, or of those drawn."""
    return float(rows.statistic(*(column if draw is None else column[draw] for column in rows.columns)))


def texts(labels: Tensor) -> dict[str, Tensor]:
    return {"input_ids": torch.zeros(len(labels), 1), "labels": labels}


SKLEARN = {
    "accuracy": sklearn_metrics.accuracy_score,
    "f1": lambda y, p: sklearn_metrics.f1_score(y, p, average="macro"),
    "mcc": sklearn_metrics.matthews_corrcoef,
}


@pytest.mark.parametrize("metric", SKLEARN)
def test_one_label(metric: str, draw: Tensor):
    logits, labels = torch.randn(ROWS + 2, 3), torch.randint(3, (ROWS + 2,))
    labels[[3, 7]] = -100  # of two rows nobody knows the label
    rows, metrics = rows_of(TextClassification(3), {"logits": logits}, texts(labels), metric)
    known = labels >= 0
    predicted, true = logits.argmax(dim=1)[known], labels[known]
    assert on(rows) == pytest.approx(float(metrics.compute()[metric]))
    assert on(rows, draw) == pytest.approx(SKLEARN[metric](true[draw].numpy(), predicted[draw].numpy()), abs=1e-6)
    assert on(rows) == pytest.approx(float(metrics.compute()[metric]))  # a draw leaves nothing behind
    assert rows.keys.tolist() == known.nonzero().flatten().tolist()


def test_several_labels(draw: Tensor):
    logits, labels = torch.randn(ROWS, 4), torch.randint(2, (ROWS, 4)).float()
    task = TextClassification(4, problem_type="multi_label_classification")
    rows, metrics = rows_of(task, {"logits": logits}, texts(labels), "f1")
    expected = sklearn_metrics.f1_score(labels[draw].numpy(), (logits[draw] > 0).numpy(), average="micro")
    assert on(rows, draw) == pytest.approx(expected)
    rows, metrics = rows_of(task, {"logits": logits}, texts(labels), "map")
    expected = sklearn_metrics.average_precision_score(labels[draw].numpy(), logits[draw].sigmoid().numpy())
    assert on(rows, draw) == pytest.approx(expected, abs=1e-5)
    assert on(rows) == pytest.approx(float(metrics.compute()["map"]))


@pytest.mark.parametrize("metric", ["pearson", "spearman"])
def test_scores(metric: str, draw: Tensor):
    scores = torch.randn(ROWS, 1)
    labels = scores.flatten() + torch.randn(ROWS)
    task = TextClassification(problem_type="regression")
    rows, metrics = rows_of(task, {"logits": scores}, texts(labels), metric)
    reference = {"pearson": scipy.stats.pearsonr, "spearman": scipy.stats.spearmanr}[metric]
    expected = reference(scores.flatten()[draw].numpy(), labels[draw].numpy()).statistic
    assert on(rows, draw) == pytest.approx(expected, abs=1e-4)
    assert on(rows) == pytest.approx(float(metrics.compute()[metric]), abs=1e-5)


@pytest.mark.parametrize("thresholds", [{}, {"out_of_scope": 0.6, "temperature": 1.7}])
@pytest.mark.parametrize("metric", ["balanced", "accuracy", "in_scope_accuracy", "oos_recall", "oos_auroc"])
def test_intents(metric: str, thresholds: dict[str, float], draw: Tensor):
    task = IntentClassification(labels=["a", "oos", "b", "c"])
    logits, labels = 2 * torch.randn(ROWS, 4), torch.randint(4, (ROWS,))
    metrics = task.new_metrics()
    metrics.thresholds = thresholds
    rows, _ = rows_of(task, {"logits": logits}, texts(labels), metric, metrics)
    assert on(rows) == pytest.approx(float(metrics.compute()[metric]))
    again = task.new_metrics()
    again.thresholds = thresholds
    again.update(logits[draw], labels[draw])
    assert on(rows, draw) == pytest.approx(float(again.compute()[metric]))


def test_drawn_texts_of_one_kind_alone_have_no_auroc():
    task = IntentClassification(labels=["a", "oos", "b"])
    rows, _ = rows_of(task, {"logits": torch.randn(4, 3)}, texts(torch.tensor([0, 1, 2, 0])), "oos_auroc")
    assert np.isnan(on(rows, torch.tensor([0, 0, 3])))


TAGS = ["O", "B-PER", "I-PER", "B-LOC"]


@pytest.mark.parametrize("metric", ["precision", "recall", "f1", "accuracy", "exact"])
def test_entities(metric: str, draw: Tensor):
    seqeval = pytest.importorskip("seqeval.metrics")
    words = 6
    labels, predicted = torch.randint(4, (2, ROWS, words))
    predicted = torch.where(torch.rand(ROWS, words) < 0.6, labels, predicted)
    predicted[5], labels[5] = 0, 0  # a sentence with nothing to find
    sentences = torch.arange(ROWS).flip(0)  # batches bring them in any order
    places = torch.arange(words).repeat(ROWS, 1)
    batch = {"input_ids": places, "labels": labels[sentences], "sentence": sentences, "word": places}
    outputs = {"logits": torch.nn.functional.one_hot(predicted[sentences].flatten(), 4).float()}
    rows, metrics = rows_of(TokenClassification(labels=TAGS), outputs, batch, metric)
    assert on(rows) == pytest.approx(float(metrics.compute()[metric]))
    assert rows.keys.tolist() == list(range(ROWS))
    true, ours = ([[TAGS[tag] for tag in row] for row in part[draw].tolist()] for part in (labels, predicted))
    same = [[a == b for a, b in zip(x, y, strict=True)] for x, y in zip(true, ours, strict=True)]
    entities = [seqeval.f1_score([x], [y], zero_division=1) == 1 for x, y in zip(true, ours, strict=True)]
    expected = {
        "precision": lambda: seqeval.precision_score(true, ours),
        "recall": lambda: seqeval.recall_score(true, ours),
        "f1": lambda: seqeval.f1_score(true, ours),
        "accuracy": lambda: np.mean(same),
        "exact": lambda: np.mean(entities),
    }[metric]()
    assert on(rows, draw) == pytest.approx(float(expected))


def test_nothing_to_find_and_nothing_found_is_zero_as_in_the_metric():
    batch = {"input_ids": torch.zeros(2, 3), "labels": torch.zeros(2, 3, dtype=torch.long)}
    outputs = {"logits": torch.tensor([[1.0, 0.0, 0.0, 0.0]]).repeat(6, 1)}
    for metric in ("precision", "recall", "f1"):
        rows, metrics = rows_of(TokenClassification(labels=TAGS), outputs, batch, metric)
        assert on(rows) == float(metrics.compute()[metric]) == 0.0


@pytest.mark.parametrize("metric", ["em", "f1"])
def test_questions(metric: str):
    metrics = QuestionAnswering(no_answer=True).new_metrics()
    metrics.thresholds = {"no_answer": 1.0}
    texts, truths = ["the old man", "a city", "water", ""], [["old man"], ["the town"], [], ["tree"]]
    metrics.update(torch.tensor([2, 0, 1, 3]), torch.tensor([3.0, 2.0, 1.0, 2.0]), torch.full((4,), 2.5), texts, truths)
    rows = kind_of(QuestionAnswering()).finish(None, metrics, [], metric)
    assert on(rows) == pytest.approx(float(metrics.compute()[metric]))
    assert rows.keys.tolist() == [0, 1, 2, 3]
    # an answer is left out where it scores more than 1 below no answer; of the third question that is right
    assert rows.columns[0].tolist() == pytest.approx([0.0, 1.0, 1.0, 0.0])


def test_queries():
    metrics = Retrieval().new_metrics()
    metrics.update(torch.eye(3), index=torch.arange(3))
    queries = torch.tensor([[1.0, 0.5, 0.0], [0.0, 1.0, 0.4], [0.0, 1.0, 0.4]])
    metrics.update(queries, torch.tensor([4, 7, 9]), relevant=torch.tensor([[0], [2], [-1]]))
    rows = kind_of(Retrieval()).finish(None, metrics, [], "ndcg@10")
    assert rows.keys.tolist() == [4, 7]  # the last query has no relevant document
    assert rows.columns[0].tolist() == pytest.approx([1.0, 1 / np.log2(3)])
    assert on(rows) == pytest.approx(float(metrics.compute()["ndcg@10"]))


@pytest.mark.parametrize("metric", ["ndcg@10", "mrr@10"])
def test_candidates(metric: str):
    metrics = Reranking().new_metrics()
    queries, grades = torch.arange(8).repeat_interleave(5), torch.randint(2, (40,)).float()
    grades[queries == 3] = 0  # a query without an answer among its candidates
    grades[queries == 4] = 1
    metrics.update(torch.randn(40), grades, queries)
    rows = kind_of(Reranking()).finish(None, metrics, [], metric)
    assert rows.keys.tolist() == [n for n in range(8) if grades[queries == n].any()]
    assert on(rows) == pytest.approx(float(metrics.compute()[metric]))


def test_masked_tokens(draw: Tensor):
    labels = torch.randint(9, (ROWS, 5))
    labels[torch.rand(ROWS, 5) < 0.4] = -100
    labels[:, 0] = 3
    logits = torch.randn(int((labels >= 0).sum()), 9)
    batch, outputs = {"input_ids": labels, "labels": labels}, {"logits": logits}
    losses = torch.nn.functional.cross_entropy(logits.double(), labels[labels >= 0], reduction="none")
    row = (labels >= 0).nonzero()[:, 0]
    drawn = torch.cat([(row == number).nonzero().flatten() for number in draw])
    rows, metrics = rows_of(MaskedLM(), outputs, batch, "loss")
    assert on(rows) == pytest.approx(float(losses.mean()), rel=1e-6)
    assert on(rows, draw) == pytest.approx(float(losses[drawn].mean()), rel=1e-6)
    rows, metrics = rows_of(MaskedLM(), outputs, batch, "perplexity")
    assert on(rows) == pytest.approx(float(metrics.compute()["perplexity"]), rel=1e-5)
    rows, metrics = rows_of(MaskedLM(), outputs, batch, "accuracy")
    right = (logits.argmax(dim=1) == labels[labels >= 0]).double()
    assert on(rows, draw) == pytest.approx(float(right[drawn].mean()))


@pytest.mark.parametrize("metric", ["bleu", "chrf"])
def test_translations(metric: str):
    sacrebleu = pytest.importorskip("sacrebleu")
    ours = ["der alte Mann ging in die Stadt", "ein Hund", "das Wasser ist kalt heute", "nichts als Worte hier"]
    true = ["der alte Mann lief in die Stadt", "ein kleiner Hund", "das Wasser ist kalt heute", "etwas anderes"]
    task = SimpleNamespace(
        new_metrics=TranslationScores,
        update_metrics=lambda metrics, outputs, batch: metrics.update(outputs["translations"], batch["reference"]),
    )
    batch = {"input_ids": torch.zeros(4, 1), "reference": true}
    rows, metrics = rows_of(task, {"translations": ours}, batch, metric)
    drawn = torch.tensor([0, 2, 2, 1])
    corpus = {"bleu": sacrebleu.corpus_bleu, "chrf": sacrebleu.corpus_chrf}[metric]
    assert on(rows) == pytest.approx(float(metrics.compute()[metric]), rel=1e-5)
    expected = corpus([ours[n] for n in drawn], [[true[n] for n in drawn]]).score
    assert on(rows, drawn) == pytest.approx(expected)
    with pytest.raises(DistillationError, match="texts without a translation to compare with"):
        rows_of(task, {"translations": ours[:2]}, {**batch, "reference": true[:2]}, metric)


def test_task_of_unknown_metrics_is_refused():
    task = SimpleNamespace(new_metrics=lambda: torch.nn.Linear(1, 1))
    with pytest.raises(DistillationError, match="is scored by a Linear, of whose rows nothing is known"):
        kind_of(task)
