from __future__ import annotations

import math
import warnings
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from lightning_distilbert import DistillationModule, MaskedLM, QuestionAnswering, TextClassification, load
from lightning_distilbert.deploy import verify
from lightning_distilbert.deploy.evaluation_data import Evaluation, open_evaluation
from lightning_distilbert.deploy.graph import Graph
from lightning_distilbert.deploy.verify import Verifier, plain, primary, random_batches, real_batches, retention, scores
from lightning_distilbert.errors import DistillationError


class FakeEngine:
    """Runs the student itself, and changes what it gives."""

    def __init__(self, graph: Graph, change: Any) -> None:
        self.graph, self.change, self.inputs = graph, change, list(graph.inputs)

    def run(self, batch: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        found = [tensor.detach().numpy() for tensor in self.graph(**verify.tensors(batch))]
        return {name: self.change(batch, array) for name, array in zip(self.graph.outputs, found, strict=True)}


@pytest.fixture
def module(classifier: Path) -> DistillationModule:
    return load(classifier)


@pytest.fixture
def check(module: DistillationModule, films: list[dict[str, Any]], monkeypatch: pytest.MonkeyPatch):
    """Return a function that checks an engine which changes the student's outputs."""
    graph = Graph(module.task, module.student, module.tokenizer.model_input_names)
    verifier = Verifier(module, graph, open_evaluation(module, films), 0.99)

    def run(change: Any, kind: str = "onnx") -> verify.Checked:
        monkeypatch.setattr(verify, "open_engine", lambda folder, facts: FakeEngine(graph, change))
        return verifier.check(Path(), {"format": kind})

    return run


def test_what_is_equal_passes_with_all_of_the_score(check, films: list[dict[str, Any]]):
    found = check(lambda batch, logits: logits)
    assert found.passed
    assert found.retention == 1.0
    assert found.facts["max_difference"] == found.facts["mean_difference"] == 0.0
    assert found.facts["padding_difference"] < 1e-5
    assert found.facts["rows"] == len(films)
    assert found.facts["evaluation"]["student"]["accuracy"] == 1.0


def test_differences_are_those_of_the_outputs(check):
    found = check(lambda batch, logits: logits + np.array([0.0, 0.001], dtype=np.float32), "onnx-int8")
    assert found.facts["max_difference"] == pytest.approx(0.001, rel=1e-2)
    assert found.facts["mean_difference"] == pytest.approx(0.0005, rel=1e-2)


def test_lost_score_fails_the_gate(check):
    found = check(lambda batch, logits: -logits, "onnx-int8")
    assert not found.passed
    assert found.retention == 0.0
    found = check(lambda batch, logits: np.where(batch["input_ids"][:, 3:4] % 2, -logits, logits), "onnx-int8")
    assert 0 < found.retention == found.facts["evaluation"]["artefact"]["accuracy"] < 1


def test_a_score_of_zero_is_no_gate(module: DistillationModule, films: list[dict[str, Any]]):
    graph = Graph(module.task, module.student, module.tokenizer.model_input_names)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        Verifier(module, graph, open_evaluation(module, films), 0.99)
    wrong = [row | {"label": {"bad": "good", "good": "bad"}[row["label"]]} for row in films]
    with pytest.warns(UserWarning, match=r"accuracy on the list passed in is 0\.0000, .* keeps all"):
        Verifier(module, graph, open_evaluation(module, wrong), 0.99)


def test_float_graph_that_computes_something_else_is_refused_at_any_score(check):
    with pytest.raises(DistillationError, match="does not compute what the student does: outputs differ by up to"):
        check(lambda batch, logits: logits * 1.1)
    with pytest.raises(DistillationError, match="outputs that are not finite, on the list passed in"):
        check(lambda batch, logits: logits * np.nan, "onnx-int8")


def test_graph_that_depends_on_padding_is_refused(check):
    def change(batch: dict[str, np.ndarray], logits: np.ndarray) -> np.ndarray:
        # the rows of the comparison lie in batches of their own padding, and alone in none
        return logits if len(logits) > 8 else logits + (batch["attention_mask"] == 0).sum(axis=1, keepdims=True)

    with pytest.raises(DistillationError, match="depends on padding"):
        check(change)


def test_without_rows_random_tokens_of_unequal_lengths_are_compared(module: DistillationModule):
    graph = Graph(module.task, module.student, module.tokenizer.model_input_names)
    lengths = np.concatenate([batch["attention_mask"].sum(axis=1) for batch in random_batches(graph)])
    assert len(lengths) == 64
    assert lengths.min() == 2 < lengths.max() <= 32
    assert [a["input_ids"].tolist() for a in random_batches(graph)] == [
        a["input_ids"].tolist() for a in random_batches(graph)
    ]


def test_scores_take_the_thresholds_that_ship(tiny_reader_dir: Path, tmp_path: Path):
    module = load(tiny_reader_dir, task=QuestionAnswering(no_answer=True))
    rows = [{"question": "who", "context": "the man", "answers": {"text": [], "answer_start": []}}] * 3
    evaluation = open_evaluation(module, rows)
    module.thresholds = {"no_answer": -1e9}  # never an answer, which is right
    assert scores(module, evaluation, "x")["f1"] == 1.0
    module.thresholds = {"no_answer": 1e9}
    found = scores(module, evaluation, "x")
    assert found["f1"] == 0.0
    assert not any(name.startswith("threshold") for name in found)


def test_student_without_a_score_is_refused(module: DistillationModule, films: list[dict[str, Any]]):
    graph = Graph(module.task, module.student, module.tokenizer.model_input_names)
    evaluation = open_evaluation(module, films)
    module.task.monitor = "val/elegance"
    with pytest.raises(DistillationError, match="The student has no elegance"):
        Verifier(module, graph, evaluation, 0.9)


def test_metric_is_the_one_that_training_watches():
    assert primary(TextClassification(2)) == ("accuracy", "max")
    assert primary(TextClassification(2, monitor="mcc")) == ("mcc", "max")
    assert primary(QuestionAnswering(no_answer=True)) == ("f1", "max")
    assert primary(MaskedLM()) == ("loss", "min")


@pytest.mark.parametrize(
    ("own", "student", "mode", "expected"),
    [
        (0.9, 0.9, "max", 1.0),
        (0.95, 0.9, "max", 1.0),
        (0.45, 0.9, "max", 0.5),
        (4.0, 2.0, "min", 0.5),
        (1.0, 2.0, "min", 1.0),
        (0.0, 0.0, "max", 1.0),
        (-0.2, -0.1, "max", 0.0),
        (-0.1, 0.5, "max", 0.0),
        (math.nan, 0.5, "max", 0.0),
        (math.inf, 2.0, "min", 0.0),
    ],
)
def test_retention(own: float, student: float, mode: str, expected: float):
    assert retention(own, student, mode) == expected


def test_plain_scores():
    assert plain({"f1": 0.5, "map": math.nan}) == {"f1": 0.5, "map": None}


@pytest.mark.parametrize(("axis", "rows"), [("labels", 64), ("vocabulary", 8)])
def test_fewer_rows_of_logits_over_a_vocabulary_are_compared(axis: str, rows: int):
    readers = {"": SimpleNamespace(vocab_size=30_000)}
    graph = SimpleNamespace(inputs=("input_ids",), outputs={"logits": ["batch", "sequence", axis]}, readers=readers)
    for size in (2, 64):
        batch = {"input_ids": torch.zeros(size, 512, dtype=torch.long)}
        found = real_batches(graph, Evaluation([[batch] * 40], "rows", "test"))
        assert sum(len(part["input_ids"]) for part in found) == rows
