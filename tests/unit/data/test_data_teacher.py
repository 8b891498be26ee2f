"""What data do for a teacher that reads, names or holds other things than the student."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace

import pytest
from transformers import AutoTokenizer, BertForSequenceClassification

from lightning_distilbert import (
    DistillationModule,
    HiddenStates,
    QuestionAnswering,
    QuestionAnsweringData,
    SoftTargets,
    Student,
    TextClassification,
    TextClassificationData,
    load,
)
from lightning_distilbert.deploy.evaluation_data import open_evaluation
from lightning_distilbert.errors import DistillationError
from tests.conftest import save_tiny_bert

PAIRS = [{"a": "good film", "b": "the best", "label": 1}, {"a": "bad", "b": "not good", "label": 0}]


def attached(data, module, fn="fit"):
    data.trainer = SimpleNamespace(lightning_module=module, state=SimpleNamespace(fn=fn), callbacks=[])
    return data


def batch_of(data):
    data.setup("fit")
    data.trainer.state.fn = None  # there are no counts of batches to go on from
    return next(iter(data.train_dataloader()))


@pytest.fixture
def small(tiny_teacher_dir, tmp_path):
    """A DistilBERT's folder, whose tokenizer gives no token types."""
    module = DistillationModule(TextClassification(num_labels=2), tiny_teacher_dir, Student(layers=1))
    folder = module.save_student(tmp_path / "small")
    assert "token_type_ids" not in AutoTokenizer.from_pretrained(folder).model_input_names
    return str(folder)


def test_a_bert_is_told_the_parts_of_a_pair_though_the_student_reads_none(tiny_teacher_dir, small):
    def batch(teacher, **options):
        module = DistillationModule(TextClassification(num_labels=2), teacher, Student(source=small), **options)
        data = attached(TextClassificationData(PAIRS, text=["a", "b"]), module)
        return batch_of(data), module

    given, module = batch(str(tiny_teacher_dir))
    expected = AutoTokenizer.from_pretrained(tiny_teacher_dir)
    order = [0, 1] if given["labels"].tolist() == [1, 0] else [1, 0]
    types = expected(*([PAIRS[i][name] for i in order] for name in "ab"), padding=True)["token_type_ids"]
    assert given["token_type_ids"].tolist() == types
    assert "token_type_ids" not in module.tokenizer.model_input_names  # the student's own is saved with it
    model = BertForSequenceClassification.from_pretrained(tiny_teacher_dir)  # a finished module has no tokenizer
    assert batch(model)[0]["token_type_ids"].tolist() == types
    # nobody reads them
    assert "token_type_ids" not in batch(None)[0]
    assert "token_type_ids" not in batch(small)[0]


def test_a_bert_is_told_question_from_context(tmp_path):
    teacher = str(save_tiny_bert(tmp_path / "reader", spans=True))
    module = DistillationModule(QuestionAnswering(), teacher, Student(layers=1))
    source = str(module.save_student(tmp_path / "small"))
    rows = [{"question": "who", "context": "the man", "answers": {"text": ["man"], "answer_start": [4]}}]
    module = DistillationModule(QuestionAnswering(), teacher, Student(source=source))
    batch = batch_of(attached(QuestionAnsweringData(rows), module))
    expected = AutoTokenizer.from_pretrained(teacher)("who", "the man")
    assert batch["input_ids"].tolist() == [expected["input_ids"]]
    assert batch["token_type_ids"].tolist() == [expected["token_type_ids"]]


def test_rows_that_are_longer_than_the_teacher_reads_are_refused(tiny_teacher_dir, small, tmp_path):
    config = json.loads((Path(tiny_teacher_dir) / "config.json").read_text()) | {"max_position_embeddings": 8}
    short = tmp_path / "short"
    short.mkdir()
    for file in Path(tiny_teacher_dir).iterdir():
        (short / file.name).write_bytes(file.read_bytes())
    (short / "config.json").write_text(json.dumps(config))
    module = DistillationModule(TextClassification(num_labels=2), str(short), Student(source=small))
    rows = [{"text": "good film " * 10, "label": 1}, {"text": "bad", "label": 0}]
    with pytest.raises(DistillationError, match=r"row has 22 tokens, and the teacher reads 8 .*max_length=8"):
        attached(TextClassificationData(rows), module).setup("fit")
    assert batch_of(attached(TextClassificationData(rows, max_length=8), module))["input_ids"].shape == (2, 8)
    assert batch_of(attached(TextClassificationData(rows[1:] * 2), module))["input_ids"].shape == (2, 3)


NAMED = [{"text": "good film", "label": "positive"}, {"text": "bad", "label": "negative"}]


def test_names_are_not_guessed_for_the_outputs_of_a_teacher_that_has_none(tiny_teacher_dir):
    def setup(objectives, **options):
        task = TextClassification(num_labels=2)
        module = DistillationModule(task, tiny_teacher_dir, Student(layers=1), objectives)
        data = attached(TextClassificationData(NAMED, **options), module)
        data.setup("fit")
        return data.label_set.names

    with pytest.raises(DistillationError, match=r"\['negative', 'positive'\], and the outputs of .*teacher have none"):
        setup([SoftTargets()])
    assert setup([SoftTargets()], labels=["positive", "negative"]) == ("positive", "negative")
    assert setup([HiddenStates()]) == ("negative", "positive")  # its outputs are compared with nothing


def test_names_are_not_guessed_in_an_evaluation(tiny_teacher_dir):
    module = load(tiny_teacher_dir)
    with pytest.raises(DistillationError, match="the outputs of the model have none"):
        open_evaluation(module, NAMED)
    assert open_evaluation(module, NAMED, reading={"labels": ["positive", "negative"]}).split == "validation"
