"""The metadata of a card: read back by huggingface_hub's own parser."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import ModelCard

from lightning_distilbert import DistillationError
from lightning_distilbert.card.facts import read_facts
from lightning_distilbert.card.metadata import (
    LICENCES,
    METRICS,
    card_data,
    data_name,
    hub_names,
    licence_fields,
    metric_words,
)
from lightning_distilbert.tasks import IntentClassification, QuestionAnswering, TextClassification
from tests.students import TASKS, save_classifier

EXPECTED = {
    "classification": ("text-classification", "transformers"),
    "tokens": ("token-classification", "transformers"),
    "questions": ("question-answering", "transformers"),
    "retrieval": ("sentence-similarity", "sentence-transformers"),
    "reranking": ("text-ranking", "sentence-transformers"),
    "mlm": ("fill-mask", "transformers"),
}


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_classifier(tmp_path_factory.mktemp("metadata"))


@pytest.fixture
def student(saved: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(saved, tmp_path / "student"))


def tell(folder: Path, **details: Any) -> Path:
    """Let a folder's config say more under our key."""
    config = json.loads((folder / "config.json").read_text())
    config["lightning_distilbert"] |= details
    (folder / "config.json").write_text(json.dumps(config))
    return folder


@pytest.mark.parametrize("name", TASKS)
def test_each_task_has_its_place_on_the_hub(name: str, tmp_path: Path):
    folder = TASKS[name][0](tmp_path)
    data = ModelCard.load(folder / "README.md").data
    assert (data.pipeline_tag, data.library_name) == EXPECTED[name]
    assert "lightning-distilbert" in data.tags


def test_results_come_back_as_they_were(student: Path):
    fits = [{"data": {"source": {"hub": "nyu-mll/glue:sst2"}}}]
    tell(student, fits=fits, metrics={"val/accuracy": 0.123456789, "val/mcc": None, "test/f1": 0.5, "val/loss": 0.1})
    data = card_data(read_facts(student), "films", {})
    read = ModelCard(f"---\n{data.to_yaml()}\n---\n").data
    assert read.model_name == "films"
    assert read.datasets == ["nyu-mll/glue"]
    found = [(one.metric_type, one.metric_value, one.dataset_split, one.dataset_config) for one in read.eval_results]
    assert found == [("accuracy", 0.123457, "validation", "sst2"), ("f1", 0.5, "test", "sst2")]
    assert read.metrics == ["accuracy", "f1"]
    assert {one.task_type for one in read.eval_results} == {"text-classification"}


def test_data_that_are_not_on_the_hub(student: Path):
    tell(student, fits=[{"data": {"source": {"path": "films"}}}], metrics={"val/accuracy": 0.5})
    data = card_data(read_facts(student), "films", {})
    assert data.datasets is None
    assert [(one.dataset_type, one.dataset_name) for one in data.eval_results] == [("unknown", "films")]


@pytest.mark.parametrize(
    ("source", "name"),
    [
        ({"train": {"path": "a.tsv"}, "validation": {"path": "b.tsv"}}, "b.tsv"),
        ([{"path": "a.txt"}, {"path": "b.txt"}], "a.txt, b.txt"),
        ({"object": "list"}, "unnamed data"),
        (None, "unnamed data"),
    ],
)
def test_names_of_data(student: Path, source: Any, name: str):
    assert data_name(read_facts(tell(student, fits=[{"data": {"source": source}}]))) == name


@pytest.mark.parametrize(
    ("fit", "base"),
    [
        ({"student": None, "teacher": {"hub": "a/teacher"}}, "a/teacher"),
        ({"student": {"hub": "a/start"}, "teacher": {"hub": "a/teacher"}}, "a/start"),
        ({"student": {"path": "start"}, "teacher": {"hub": "a/teacher"}}, None),
        ({"student": None, "teacher": {"path": "teacher"}}, None),
        ({}, None),
    ],
)
def test_base_model_is_never_guessed(student: Path, fit: dict[str, Any], base: str | None):
    tell(student, fits=[fit], teacher="some/teacher")
    data = card_data(read_facts(student), "films", {})
    assert data.base_model == base
    assert data.tags[0] == "knowledge-distillation"
    assert card_data(read_facts(student), "films", {"base_model": "a/other"}).base_model == "a/other"


@pytest.mark.parametrize("licence", LICENCES)
def test_every_licence_of_the_hub_is_taken(licence: str):
    link = "LICENSE" if licence == "other" else None
    assert licence_fields(licence, link)["license"] == licence


def test_names_on_the_hub():
    assert hub_names("datasets", ["a/b:c", "squad"]) == ["a/b", "squad"]
    assert hub_names("datasets", None) == []
    with pytest.raises(DistillationError, match="datasets='a b'"):
        hub_names("datasets", "a b")


def test_metrics_of_all_tasks_have_words():
    names = {"precision", "recall", "f1", "accuracy", "exact", "bleu", "chrf", "perplexity", "em", "loss", "ece"}
    for task in (TextClassification(2), TextClassification(2, problem_type="multi_label_classification")):
        names |= set(task.new_metrics())
    names |= set(TextClassification(problem_type="regression").new_metrics())
    for task in (IntentClassification(["a", "b", "oos"]), QuestionAnswering(no_answer=True)):
        names.add(task.monitor.removeprefix("val/"))
    assert all(metric_words(name)[0] != name or name in METRICS for name in names)
    assert metric_words("best_f1") == ("f1", "F1 at the chosen threshold")
    assert metric_words("has_answer_em") == ("exact_match", "exact match of questions that have an answer")
