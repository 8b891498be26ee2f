from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from lightning_distilbert import RetrievalData, load
from lightning_distilbert.deploy.evaluation_data import make_data, open_calibration, open_evaluation
from lightning_distilbert.errors import DistillationError
from tests.students import FILMS, TASKS


@pytest.fixture
def module(classifier: Path) -> Any:
    return load(classifier)


def test_file_is_one_split_with_columns_of_any_name(module: Any, tmp_path: Path):
    (tmp_path / "held-out.tsv").write_text("good\ta film\nbad\ta long film\n")
    reading = {"columns": ["mark", "review"], "text": ["review"], "label": "mark", "header": None}
    evaluation = open_evaluation(module, tmp_path / "held-out.tsv", reading=reading)
    assert (evaluation.source, evaluation.split) == ("held-out.tsv", "validation")
    (batch,) = evaluation.loaders[0]
    assert batch["labels"].tolist() == [0, 1]  # the longest first


def test_split_of_a_folder(module: Any, tmp_path: Path):
    for name, count in (("dev", 2), ("test", 3)):
        rows = [{"text": "a film", "label": "good"}] * count
        (tmp_path / f"{name}.jsonl").write_text("\n".join(map(json.dumps, rows)))

    def rows_of(split: str | None) -> int:
        return sum(len(batch["labels"]) for batch in open_evaluation(module, tmp_path, split).loaders[0])

    assert [rows_of(None), rows_of("validation"), rows_of("test")] == [2, 2, 3]


def test_data_of_another_task_are_refused(module: Any):
    data = RetrievalData({"validation": [{"query": "a", "document": "b"}]})
    with pytest.raises(DistillationError, match="TextClassification learns from the batches of"):
        open_evaluation(module, data)
    with pytest.raises(DistillationError, match="knows how it is read: leave label out"):
        open_evaluation(module, data, reading={"label": "x"})


@pytest.mark.parametrize(
    ("task", "reading", "message"),
    [
        ("questions", {"text": ["q"]}, r"reads question and context, and text names \['q'\]"),
        ("questions", {"delimiter": ";"}, "QuestionAnsweringData has no option 'delimiter'"),
        ("retrieval", {"label": "x"}, "RetrievalData reads no column of labels"),
    ],
)
def test_options_that_a_task_has_not_are_refused(tmp_path: Path, task: str, reading: dict[str, Any], message: str):
    with pytest.raises(DistillationError, match=message):
        make_data(load(TASKS[task][0](tmp_path)), {"validation": []}, reading)


def test_columns_of_each_task(tmp_path: Path):
    module = load(TASKS["questions"][0](tmp_path))
    data = make_data(module, {"validation": []}, {"text": ["q", "c"], "label": "a"})
    assert (data.question, data.context, data.answers, data.max_length) == ("q", "c", "a", 64)


def test_batches_whose_logits_are_over_a_vocabulary_are_small(tmp_path: Path):
    module = load(TASKS["mlm"][0](tmp_path))
    assert make_data(module, {"validation": []}).eval_batch_size == 8
    assert make_data(module, {"validation": []}, {"eval_batch_size": 3}).eval_batch_size == 3


def test_calibration_rows_stand_alone(module: Any, tmp_path: Path):
    rows = open_calibration(module, [*FILMS, *FILMS] * 8)
    assert len(rows) == 256
    assert all(row["input_ids"].shape[0] == 1 and row["attention_mask"].all() for row in rows)
    assert len({row["input_ids"].shape[1] for row in rows}) > 1
    assert len(open_calibration(module, [{"text": "a film"}, {"text": "a very long film"}])) == 2
    with pytest.raises(DistillationError):
        open_calibration(module, [])


def test_calibration_of_retrieval_takes_queries_and_documents(tmp_path: Path):
    module = load(TASKS["retrieval"][0](tmp_path))
    rows = open_calibration(module, [{"query": "a", "document": "the old house"}])
    assert sorted(row["input_ids"].shape[1] for row in rows) == [3, 5]
    assert len(open_calibration(module, ["one text", "two"])) == 2
