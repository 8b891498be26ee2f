from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
import torch

from lightning_distilbert import TextClassificationData, TranslationData, load
from lightning_distilbert.deploy.evaluation_data import open_evaluation
from lightning_distilbert.deploy.verify import scores
from lightning_distilbert.errors import DistillationError
from lightning_distilbert.report import comparison, costs
from lightning_distilbert.report.bootstrap import paired_bootstrap
from lightning_distilbert.report.compared import Comparison
from lightning_distilbert.report.comparison import compare, retained
from lightning_distilbert.report.costs import Start
from tests.parallel_texts import ROWS as PAIRED
from tests.parallel_texts import save_translator
from tests.students import TASKS

FAST: dict[str, Any] = {"repeats": 2, "batch_size": 2, "starts": 0, "lengths": [4, 8], "resamples": 50, "threads": 1}


@pytest.fixture(scope="module")
def found(teacher: Path, student: Path, onnx: Path, rows: list[dict[str, Any]]) -> Comparison:
    return compare({"teacher": teacher, "student": student, "onnx": onnx}, rows, command="the command", **FAST)


def test_scores_are_those_of_the_task(found: Comparison, teacher: Path, student: Path, rows: list[dict[str, Any]]):
    assert (found.task, found.metric, found.mode, found.unit, found.rows) == (
        "TextClassification", "accuracy", "max", "texts", len(rows),
    )  # fmt: skip
    assert found["student"].score.value == pytest.approx(1 - 1 / len(rows))
    for name, folder in (("teacher", teacher), ("student", student)):
        module = load(folder)
        own = scores(module, open_evaluation(module, rows), name)
        expected = {metric: own[metric] for metric in ("accuracy", "f1")}
        assert {metric: found[name].scores[metric] for metric in expected} == pytest.approx(expected)
    assert found["onnx"].scores == pytest.approx(found["student"].scores)
    for one in found.models:
        assert one.score.low <= one.score.value <= one.score.high
        assert one.score.low < one.score.high


def test_difference_is_paired_with_the_reference(found: Comparison, teacher: Path, student: Path, rows: Any):
    assert found.reference == "teacher"
    assert found["teacher"].difference is None
    assert found["teacher"].retention == 1.0
    right = []
    for folder in (student, teacher):
        answers = load(folder).predict([row["text"] for row in rows])
        right.append(torch.tensor([a["label"] == r["label"] for a, r in zip(answers, rows, strict=True)]).double())
    expected = paired_bootstrap(*right, resamples=50)
    assert found["student"].difference == pytest.approx(expected)
    assert found["student"].retention == pytest.approx(float(right[0].mean() / right[1].mean()))


def test_costs_are_measured(found: Comparison, student: Path):
    assert found.lengths == (4, 8)
    assert found.main_length == 8
    for one in found.models:
        assert list(one.latency_ms) == [4, 8]
        assert one.throughput > 0
        assert one.size_mb > 0
        assert (one.cold_start_s, one.peak_memory_mb, one.cold_start_parts) == (None, None, {})
    assert found["student"].folder == "student"
    assert found["onnx"].format == "onnx"


def test_it_says_how_it_was_made(found: Comparison, rows: list[dict[str, Any]]):
    assert (found.threads, found.command, found.split) == (1, "the command", "validation")
    assert {"lightning_distilbert", "python", "torch", "transformers", "onnxruntime"} <= found.versions.keys()
    assert found.machine["processor"]
    assert Comparison.from_dict(found.to_dict()) == found
    assert found.to_html().count("<svg") == 4


def test_cold_starts_are_the_medians_of_turns(student: Path, rows: Any, monkeypatch: pytest.MonkeyPatch):
    turns: list[tuple[Path, str, str, int]] = []

    def start(folder: Path, task: str, format: str, threads: int, config: Any) -> Start:
        assert config is None  # the folders name their task
        turns.append((folder, task, format, threads))
        return Start(float(len(turns)), {"load": 1.0}, 10.0 * len(turns))

    monkeypatch.setattr(comparison, "measure_start", start)
    found = compare({"a": student, "b": student}, rows, **{**FAST, "starts": 3})
    assert [turn[0] for turn in turns] == [student, student] * 3
    assert turns[0][1:] == ("TextClassification", "transformers", 1)
    assert (found["a"].cold_start_s, found["b"].cold_start_s, found["b"].peak_memory_mb) == (3.0, 4.0, 40.0)


def test_the_process_that_starts_cold_is_told_what_a_folder_does_not_say(tmp_path: Path, capsys):
    tagger = TASKS["tokens"][0](tmp_path)
    module = load(tagger)
    bare = tmp_path / "bare"
    config = module.student.config
    config.id2label = {number: f"LABEL_{number}" for number in range(config.num_labels)}
    module.student.save_pretrained(bare)
    module.tokenizer.save_pretrained(bare)
    facts = {"folder": str(bare), "task": "TokenClassification", "format": "transformers", "threads": 1, "began": 0.0}
    with pytest.raises(DistillationError, match="names"):
        costs.main(facts)
    costs.main({**facts, "config": comparison._described(load(tagger).task)})
    assert json.loads(capsys.readouterr().out)["seconds"] > 0


def test_options_change_the_result(student: Path, teacher: Path, rows: list[dict[str, Any]]):
    models = {"teacher": teacher, "student": student}
    one = compare(models, rows, reference="student", metric="mcc", **{**FAST, "seed": 3, "confidence": 0.5})
    assert one["student"].difference is None
    assert one["teacher"].difference.value < 0
    assert one["student"].score.value == pytest.approx(one["student"].scores["mcc"])
    same = {**FAST, "seed": 3, "reference": "student", "metric": "mcc"}
    wider = compare(models, TextClassificationData({"test": rows}), split="test", **same)
    assert wider.split == "test"
    assert wider["student"].score.value == one["student"].score.value
    assert wider["student"].score.low < one["student"].score.low
    other = compare(models, rows, **{**same, "seed": 4})
    assert other["teacher"].difference != wider["teacher"].difference


def test_threads_of_torch_are_given_back(student: Path, rows: list[dict[str, Any]], monkeypatch: pytest.MonkeyPatch):
    seen = []
    real = comparison.latencies
    monkeypatch.setattr(comparison, "latencies", lambda *given: seen.append(torch.get_num_threads()) or real(*given))
    before = torch.get_num_threads()
    compare({"a": student}, rows, **{**FAST, "threads": 2})
    assert seen == [2]
    assert torch.get_num_threads() == before


ROWS: dict[str, list[dict[str, Any]]] = {
    "tokens": [{"tokens": ["the", "man", "in", "the", "city"], "tags": ["O", "B-PER", "O", "O", "B-LOC"]}] * 4,
    "questions": [
        {"question": "who made it", "context": "the old man made it", "answers": {"text": [text], "answer_start": [at]}}
        for text, at in (("the old man", 0), ("man", 8))
    ],
    "retrieval": [{"query": "the old man", "document": "a man"}, {"query": "water", "document": "the city and water"}],
    "reranking": [
        {"query": query, "document": document, "label": label}
        for query in ("a man", "the city")
        for document, label in (("the man", 1), ("the water", 0))
    ],
    "mlm": [{"text": "the old man in the city and the cat and the dog and the tree in the water"}] * 3,
}


@pytest.mark.parametrize("task", ROWS)
def test_each_task_is_compared(task: str, tmp_path: Path):
    if task == "tokens":
        pytest.importorskip("seqeval")
    student = TASKS[task][0](tmp_path)
    found = compare({"a": student, "b": student}, ROWS[task], **FAST)
    assert found.rows == {"tokens": 4, "questions": 2, "retrieval": 2, "reranking": 2, "mlm": 3}[task]
    assert found["b"].difference == pytest.approx((0.0, 0.0, 0.0, 1.0))
    assert found["a"].score.value == pytest.approx(found["a"].scores[found.metric])
    module = load(student)
    if task != "mlm":  # there it is the mean over tokens, and elsewhere over batches
        expected = scores(module, open_evaluation(module, ROWS[task]), "a")[found.metric]
        assert found["a"].score.value == pytest.approx(expected)


def test_translations_are_compared(tiny_bert_dir: Path, tmp_path: Path):
    pytest.importorskip("sacrebleu")
    student = save_translator(tiny_bert_dir, tmp_path / "student", epochs=2)
    data = TranslationData({"validation": PAIRED})
    found = compare({"a": student, "b": student}, data, metric="chrf", **FAST)
    assert (found.metric, found.rows, found["b"].difference.value) == ("chrf", len(PAIRED), 0.0)
    assert all(times["p50"] > 0 for times in found["a"].latency_ms.values())
    assert compare({"a": student}, data, **FAST).metric == "bleu"


def test_scores_of_which_lower_is_better_are_kept_the_other_way_round():
    assert (retained(2.0, 3.0), retained(2.0, 3.0, "min")) == (2 / 3, 1.5)
    assert retained(0.5, -0.1) is None
    assert retained(float("nan"), 0.5) is None


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"reference": "bert"}, "reference='bert' is none of the models a"),
        ({"repeats": 0}, "repeats=0: it has to be 1 or more"),
        ({"starts": -1}, "starts=-1: it has to be 0 or more"),
        ({"threads": 0}, "threads=0: it has to be 1 or more"),
        ({"resamples": 1.5}, "resamples=1.5: it has to be 1 or more"),
        ({"confidence": 1.0}, r"confidence=1.0 must lie between 0 and 1"),
        ({"metric": "bleu"}, r"compare\(metric=...\) of TextClassification was given 'bleu': choose one of 'accuracy'"),
        ({"lengths": [65]}, "No model reads 65 tokens: a 64"),
        ({"split": "dev"}, "split=.* was given 'dev'"),
        ({"reading": {"label": "mark"}}, "mark"),
    ],
)
def test_bad_options_are_refused_before_anything_runs(
    student: Path, rows: Any, monkeypatch: pytest.MonkeyPatch, options: dict[str, Any], message: str
):
    monkeypatch.setattr(comparison, "row_scores", lambda *_: pytest.fail("a model ran"))
    with pytest.raises(DistillationError, match=message):
        compare({"a": student}, rows, **{**FAST, **options})


@pytest.mark.parametrize("models", [{}, ["folder"], {"": "folder"}, {"a\nb": "folder"}])
def test_models_need_names(models: Any):
    with pytest.raises(DistillationError, match=r"there is nothing to compare|is no name of a model"):
        compare(models, [], **FAST)


def test_rows_without_labels_are_an_error(student: Path):
    rows = [{"text": "a good film", "label": None}, {"text": "a film", "label": None}]
    with (
        pytest.warns(UserWarning, match="2 of 2 rows have no label"),
        pytest.raises(DistillationError, match="None of the texts has what accuracy is measured by"),
    ):
        compare({"a": student}, rows, **FAST)


def test_metric_that_is_not_defined_on_the_rows_is_an_error(found: Comparison, student: Path):
    with pytest.raises(DistillationError, match="a has no mcc on these rows"):
        comparison._check_rows({"a": dataclasses.replace(_no_score(student), scores={"mcc": float("nan")})}, "mcc", "a")


def _no_score(student: Path) -> Any:
    module = load(student)
    data = open_evaluation(module, [{"text": "a film", "label": "good"}])
    return comparison.row_scores(module, data.loaders, "accuracy")


def test_models_that_saw_other_rows_are_refused(student: Path):
    one = _no_score(student)
    other = dataclasses.replace(one, keys=one.keys + 1)
    with pytest.raises(DistillationError, match="b was scored on 1 rows and a on 1, or on others"):
        comparison._check_rows({"a": one, "b": other}, "accuracy", "a")
