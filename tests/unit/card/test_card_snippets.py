"""The code in a card, run as a reader of the hub runs it: both ways give the same answers, for each task."""

from __future__ import annotations

import contextlib
import io
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from lightning_distilbert import (
    DistillationModule,
    IntentClassification,
    QuestionAnswering,
    Retrieval,
    Student,
    TextClassification,
    TextClassificationData,
    load,
)
from lightning_distilbert.card import write_card
from tests.conftest import save_tiny_bert
from tests.parallel_texts import save_translator, trainer
from tests.students import TASKS


def blocks(folder: Path) -> list[str]:
    """Return the code blocks of a folder's card."""
    return re.findall(r"```python\n(.*?)```", (folder / "README.md").read_text(encoding="utf-8"), flags=re.DOTALL)


def run(code: str) -> tuple[dict[str, Any], str]:
    """Run code in the working folder, and return its names and what it printed."""
    names: dict[str, Any] = {}
    with contextlib.redirect_stdout(io.StringIO()) as out:
        exec(compile(code, "README.md", "exec"), names)
    return names, out.getvalue()


def value(text: str) -> Any:
    """Return what was printed as a Python value."""
    return eval(text, {"tensor": np.array, "array": np.array, "np": np})


@pytest.fixture
def both(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[Path], tuple[Any, str]]:
    """Return a function that runs both blocks of a student's card: what ours returned, and what the other printed."""

    def go(folder: Path) -> tuple[Any, str]:
        monkeypatch.chdir(folder.parent)
        ours, alone = blocks(folder)
        assert "lightning_distilbert" not in alone
        return value(run(ours)[1]), run(alone)[1]

    return go


def make(tmp_path: Path, task: Any, **kind: Any) -> Path:
    teacher = save_tiny_bert(tmp_path / "teacher", **kind)
    module = DistillationModule(task, student=Student(source=str(teacher), layers=2))
    torch.nn.init.normal_(module.student.classifier.weight, std=2.0)
    return module.save_student(tmp_path / "student")


def test_classification(tmp_path: Path, both):
    ours, alone = both(TASKS["classification"][0](tmp_path))
    assert [row["label"] for row in value(alone)] == [row["label"] for row in ours]
    assert [row["score"] for row in value(alone)] == pytest.approx([row["score"] for row in ours], abs=1e-4)


def test_several_labels(tmp_path: Path, both):
    task = TextClassification(labels=["old", "new", "long"], problem_type="multi_label_classification")
    ours, alone = both(make(tmp_path, task, num_labels=3))
    above = [{one["label"]: one["score"] for one in row if one["score"] > 0.5} for row in value(alone)]
    assert any(above)
    assert above == [pytest.approx({one["label"]: one["score"] for one in row["labels"]}, abs=1e-4) for row in ours]


def test_several_labels_of_pairs(tmp_path: Path, both):
    task = TextClassification(labels=["old", "new", "long"], problem_type="multi_label_classification")
    module = load(make(tmp_path, task, num_labels=3))
    module.fits = [{"data": {"pairs": True}}]
    ours, alone = both(module.save_student(tmp_path / "student"))
    above = [{one["label"]: one["score"] for one in row if one["score"] > 0.5} for row in value(alone)]
    assert any(above)
    assert above == [pytest.approx({one["label"]: one["score"] for one in row["labels"]}, abs=1e-4) for row in ours]


def test_regression(tmp_path: Path, both):
    ours, alone = both(make(tmp_path, TextClassification(problem_type="regression"), num_labels=1))
    assert [row["score"] for row in value(alone)] == pytest.approx([row["score"] for row in ours], abs=1e-4)
    assert abs(ours[0]["score"] - 0.5) > 1e-3


def test_intents_say_what_transformers_does_not_know(tmp_path: Path, both):
    folder = make(tmp_path, IntentClassification(labels=["play", "stop", "oos"]), num_labels=3)
    ours, alone = both(folder)
    assert [row["label"] for row in value(alone)] == [row["label"] for row in ours]
    assert "knows neither the threshold" in (folder / "README.md").read_text()


def test_pairs(tmp_path: Path, both, trained_on_pairs):
    ours, alone = both(trained_on_pairs)
    assert "text_pair" in blocks(trained_on_pairs)[1]
    assert [row["label"] for row in value(alone)] == [f"LABEL_{row['label']}" for row in ours]
    assert "label 0 is `LABEL_0` for transformers" in (trained_on_pairs / "README.md").read_text()
    assert [row["score"] for row in value(alone)] == pytest.approx([row["score"] for row in ours], abs=1e-4)


@pytest.fixture
def trained_on_pairs(tmp_path: Path) -> Path:
    teacher = save_tiny_bert(tmp_path / "teacher", num_labels=2)
    module = DistillationModule(TextClassification(2), student=Student(source=str(teacher), layers=2))
    rows = [{"a": "a good film", "b": "the film was fine", "label": row % 2} for row in range(4)]
    trainer(max_steps=1).fit(module, TextClassificationData(rows, text=["a", "b"], batch_size=4))
    return module.save_student(tmp_path / "student")


def test_tokens(tmp_path: Path, both):
    folder = TASKS["tokens"][0](tmp_path)
    module = load(folder)
    torch.nn.init.normal_(module.student.classifier.weight, std=2.0)
    module.save_student(folder)
    ours, alone = both(folder)
    found = [[(one["entity_group"], one["start"], one["end"]) for one in row] for row in value(alone)]
    assert ours[0]
    assert found == [[(one["label"], one["start"], one["end"]) for one in row] for row in ours]


def test_questions(tmp_path: Path, both):
    ours, alone = both(TASKS["questions"][0](tmp_path))
    assert ours["answer"]
    assert alone.strip() == ours["answer"].strip()


@pytest.mark.parametrize("threshold", [-50.0, 50.0])
def test_questions_without_an_answer(threshold: float, tmp_path: Path, both):
    teacher = save_tiny_bert(tmp_path / "teacher", spans=True)
    module = DistillationModule(QuestionAnswering(no_answer=True), student=Student(source=str(teacher), layers=2))
    module.thresholds = {"no_answer": threshold}
    ours, alone = both(module.save_student(tmp_path / "student"))
    assert (ours["answer"] == "") == (threshold < 0)
    assert alone.strip() == (ours["answer"] or "no answer")


def test_retrieval(tmp_path: Path, both):
    pytest.importorskip("sentence_transformers")
    ours, alone = both(TASKS["retrieval"][0](tmp_path))
    vectors = np.array(ours)
    np.testing.assert_allclose(value(alone), vectors @ vectors.T, atol=1e-3)


def test_reranking(tmp_path: Path, both):
    pytest.importorskip("sentence_transformers")
    folder = TASKS["reranking"][0](tmp_path)
    ours, alone = both(folder)
    scores = [float(number) for number in re.findall(r"-?\d+\.\d+", alone)]
    assert scores == pytest.approx([row["score"] for row in ours], abs=1e-4)


def test_masked_words(tmp_path: Path, both):
    ours, alone = both(TASKS["mlm"][0](tmp_path))
    first = [one["token"] for one in (ours[0][0] if isinstance(ours[0][0], list) else ours[0])]
    assert [one["token_str"] for one in value(alone)] == first


def test_translation(tiny_mlm_dir: Path, tmp_path: Path, both):
    pytest.importorskip("sacrebleu")
    ours, alone = both(save_translator(tiny_mlm_dir, tmp_path / "student", epochs=4))
    assert [text.strip() for text in value(alone)] == ours


def test_encoder_without_a_head(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    teacher = save_tiny_bert(tmp_path / "teacher")
    folder = DistillationModule(
        TextClassification(2), teacher=str(teacher), student=Student(layers=2), objectives="minilm"
    ).save_student(tmp_path / "student")
    monkeypatch.chdir(tmp_path)
    ours, alone = (run(code) for code in blocks(folder))
    assert ours[0]["module"].task.num_labels == 2
    assert alone[1].startswith("torch.Size([2, ")
    assert "it has no head yet" in (folder / "README.md").read_text()


def test_code_of_a_repository_downloads_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    folder = TASKS["classification"][0](tmp_path)
    write_card(folder, repo_id="jane/films")
    ours, alone = blocks(folder)
    monkeypatch.setattr("huggingface_hub.snapshot_download", lambda name: {"jane/films": str(folder)}[name])
    assert run(ours)[1].count("label") == 2
    assert 'model="jane/films"' in alone


def test_retrieval_of_other_pooling_is_told_by_its_files(tmp_path: Path, both):
    pytest.importorskip("sentence_transformers")
    teacher = save_tiny_bert(tmp_path / "teacher")
    module = DistillationModule(Retrieval(pooling="cls", normalize=False), student=Student(source=str(teacher)))
    ours, alone = both(module.save_student(tmp_path / "student"))
    vectors = np.array(ours)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    np.testing.assert_allclose(value(alone), vectors @ vectors.T, atol=1e-3)
