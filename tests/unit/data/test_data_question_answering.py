from __future__ import annotations

import json
import warnings
from types import SimpleNamespace

import pytest
import torch

from lightning_distilbert import DistillationError, QuestionAnswering, QuestionAnsweringData
from tests.tokenizers_of_kinds import make_tokenizers

TOKENIZER = make_tokenizers()["bert-uncased"]
CONTEXT = "the tower was built in the city"


def row(question="who", context=CONTEXT, text="tower", start=4, **more):
    return {"question": question, "context": context, "answers": [{"text": text, "answer_start": start}], **more}


def make(source, **options):
    options = {"max_length": 64, "doc_stride": 8, "tokenizer": TOKENIZER, "batch_size": 4, **options}
    return QuestionAnsweringData(source, **options)


def attached(data, **task):
    """Put the data in the Trainer of a module with a task, which is not run here."""
    module = SimpleNamespace(task=QuestionAnswering(**task), distiller=SimpleNamespace(), tokenizer=TOKENIZER)
    data.trainer = SimpleNamespace(lightning_module=module, distributed_sampler_kwargs=None, overfit_batches=0)
    return data


def answers_in(batch):
    """The text between the labelled tokens of each row."""
    places = zip(batch["input_ids"], batch["start_positions"].tolist(), batch["end_positions"].tolist(), strict=True)
    return [TOKENIZER.decode(ids[start : end + 1]) if start >= 0 else None for ids, start, end in places]


def test_training_batches_have_the_answers_as_places_and_no_texts():
    rows = [row(), row("where", text="the city", start=23), row("what", text="built", start=14)]
    data = make({"train": rows})
    (batch,) = data.train_dataloader()
    assert set(batch) == {
        "input_ids", "attention_mask", "token_type_ids", "span_mask", "example", "start_positions", "end_positions",
    }  # fmt: skip
    assert {name: value.dtype for name, value in batch.items() if name.endswith("positions")} == {
        "start_positions": torch.int64,
        "end_positions": torch.int64,
    }
    assert sorted(answers_in(batch)) == ["built", "the city", "tower"]


def test_evaluation_batches_bring_what_texts_are_made_of():
    rows = [row(), row("where", context="the city " * 60, text="city", start=4)]
    rows[0]["answers"].append({"text": "the tower", "answer_start": 0})
    data = make({"train": rows, "dev": rows}, eval_batch_size=100)
    (batch,) = data.val_dataloader()
    assert {"offsets", "context", "answers", "example"} <= set(batch)
    counts = torch.bincount(batch["example"]).tolist()
    assert counts[0] == 1 < counts[1]
    for number, context, answers in zip(batch["example"].tolist(), batch["context"], batch["answers"], strict=True):
        assert context == rows[number]["context"]
        assert answers == [answer["text"] for answer in rows[number]["answers"]]


def test_squad_files_and_the_layout_of_datasets_give_the_same_rows(tmp_path):
    rows = [row(), row("where", text="the city", start=23)]
    tree = {"data": [{"paragraphs": [{"context": r["context"], "qas": [r]} for r in rows]}]}
    (tmp_path / "train-v1.1.json").write_text(json.dumps(tree))
    columns = [
        {**r, "answers": {name: [a[name] for a in r["answers"]] for name in ("text", "answer_start")}} for r in rows
    ]
    batches = [next(iter(make(source).train_dataloader())) for source in (tmp_path, rows, columns)]
    for batch in batches[1:]:
        for name, value in batches[0].items():
            assert torch.equal(batch[name], value)


def test_a_data_set_of_the_library():
    datasets = pytest.importorskip("datasets")
    rows = [row() | {"answers": {"text": ["tower"], "answer_start": [4]}}]
    split = datasets.Dataset.from_list(rows)
    data = make(datasets.DatasetDict({"train": split, "validation": split}))
    assert answers_in(next(iter(data.train_dataloader()))) == ["tower"]
    assert next(iter(data.val_dataloader()))["answers"] == [["tower"]]


def test_other_columns():
    rows = [{"q": "who", "text": CONTEXT, "gold": [{"text": "tower", "answer_start": 4}]}]
    data = make({"train": rows}, question="q", context="text", answers="gold")
    assert answers_in(next(iter(data.train_dataloader()))) == ["tower"]


def test_the_windows_follow_the_task_unless_the_data_say_otherwise():
    rows = [row(context="city " * 400, text="city", start=0)]
    counts = {}
    for given in (None, 40):
        for task in (4, 30):
            data = attached(make({"train": rows}, doc_stride=given), doc_stride=task)
            data.setup("fit")
            counts[given, task] = len(data._encoded["train"])
    assert counts[None, 4] < counts[None, 30] < counts[40, 4] == counts[40, 30]
    data = attached(make({"train": [row("who " * 30)]}), max_question_length=9)
    with pytest.warns(UserWarning, match="more than 9 tokens were cut"):
        data.setup("fit")
    # a module of another task in the same Trainer makes the rows anew
    data = attached(make({"train": rows}, doc_stride=None), doc_stride=4)
    data.setup("fit")
    before = data._encoded["train"]
    data.trainer.lightning_module.task = QuestionAnswering(doc_stride=30)
    data.setup("fit")
    assert len(data._encoded["train"]) > len(before)


def test_questions_without_a_label_have_none_and_those_without_an_answer_the_first_token():
    rows = [row(), row() | {"answers": None}, row() | {"answers": []}]
    with pytest.warns(UserWarning, match="1 of 3 questions have no label; they count for distillation"):
        (batch,) = make({"train": rows}).train_dataloader()
    by_example = dict(zip(batch["example"].tolist(), batch["start_positions"].tolist(), strict=True))
    assert by_example == {0: 4, 1: -100, 2: 0}
    with pytest.warns(UserWarning, match="do not count in the metrics"):
        (batch,) = make({"train": rows, "dev": rows}).val_dataloader()
    assert sorted(batch["answers"], key=str) == [None, ["tower"], []]


def test_questions_without_an_answer_are_announced_to_a_task_that_answers_all():
    rows = [row(), row() | {"answers": []}]
    with pytest.warns(UserWarning, match=r"1 of 2 questions have no answer.*no_answer=True"):
        attached(make({"train": rows})).setup("fit")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        attached(make({"train": rows}), no_answer=True).setup("fit")


def test_data_without_answers():
    rows = [{"question": "who", "context": CONTEXT}]
    data = make({"train": rows, "dev": rows}, answers=None)
    (batch,) = data.train_dataloader()
    assert "start_positions" not in batch
    assert "offsets" not in batch
    (batch,) = data.val_dataloader()
    assert {"offsets", "context"} <= set(batch)
    assert "answers" not in batch
    with pytest.raises(DistillationError, match="no column 'answers'"):
        make({"train": rows}).setup("fit")
    with pytest.raises(DistillationError, match=r"row 2: there is no 'answers'"):
        make({"train": [row(), *rows]}).setup("fit")


@pytest.mark.parametrize("as_file", [False, True])
def test_unlabelled_questions_are_mixed_in(tmp_path, as_file):
    more = [("when", "the city"), ("what", CONTEXT)]
    if as_file:
        tree = {"data": [{"paragraphs": [{"context": c, "qas": [{"question": q}]} for q, c in more]}]}
        (tmp_path / "more.json").write_text(json.dumps(tree))
        more = tmp_path / "more.json"
    (batch,) = make({"train": [row()]}, unlabelled=more).train_dataloader()
    assert sorted(batch["start_positions"].tolist()) == [-100, -100, 4]
    (alone,) = make({"dev": [row()]}, unlabelled=more).train_dataloader()
    assert len(alone["input_ids"]) == 2
    assert "start_positions" not in alone
    with pytest.raises(DistillationError, match=r"unlabelled: .* has only the splits \['test'\]"):
        make({"train": [row()]}, unlabelled={"test": [row()]}).setup("fit")
    (tmp_path / "more.txt").write_text("who built the tower\n")
    with pytest.raises(DistillationError, match=r"more\.txt is plain text, and a question is asked of a context"):
        make({"train": [row()]}, unlabelled=str(tmp_path / "more.txt")).setup("fit")


BAD = [row(), row("where", text="city", start=3), row("what", text="bridge", start=4), row("when")]


def test_answers_that_are_not_where_they_say_are_counted_and_the_first_is_named():
    expected = r"2 of 4 answers do not stand.*The first is row 2, 'where': 'city' at 3, where the context has ' tow'"
    with pytest.warns(UserWarning, match=f"{expected}.*left out"):
        (batch,) = make({"train": BAD}).train_dataloader()
    assert answers_in(batch) == ["tower", "tower"]
    with pytest.raises(DistillationError, match=f"{expected}.*on_bad_answer='skip'"):
        make({"train": BAD}, on_bad_answer="error").setup("fit")
    with (
        pytest.warns(UserWarning, match="1 of 1 answers"),
        pytest.raises(DistillationError, match="no row is left to train on"),
    ):
        make({"train": BAD[1:2]}).setup("fit")


def test_evaluation_needs_the_texts_of_answers_only():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        batches = list(make({"train": BAD[:1], "dev": BAD}, eval_batch_size=9, on_bad_answer="error").val_dataloader())
    (batch,) = batches
    places = dict(zip(batch["example"].tolist(), batch["start_positions"].tolist(), strict=True))
    assert {number for number, place in places.items() if place == -100} == {1, 2}
    assert ["bridge"] in batch["answers"]


def test_an_answer_that_fits_no_window_is_announced():
    context = "city " * 100
    long = row("what", context, text=context.strip(), start=0)
    with pytest.warns(UserWarning, match=r"1 answers are in no window as a whole.*'what'.*Raise doc_stride"):
        (batch, *_) = make({"train": [long, row()]}, batch_size=50).train_dataloader()
    assert sorted(set(batch["start_positions"].tolist())) == [-100, 4]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"on_bad_answer": "ignore"}, "on_bad_answer"),
        ({"doc_stride": -1}, "doc_stride=-1"),
        ({"max_question_length": 0}, "max_question_length=0"),
        ({"max_length": 0}, "max_length=0"),
    ],
)
def test_options_out_of_range(options, message):
    with pytest.raises(DistillationError, match=message):
        make({"train": [row()]}, **options)


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([{"context": CONTEXT, "answers": []}], "no column 'question'"),
        ([{"question": "who", "answers": []}], "no column 'context'"),
        ([row(), row() | {"context": None}], r"row 2: 'context' is None"),
        ([row() | {"question": 3}], r"row 1: 'question' is 3"),
        ([row(), row() | {"answers": ["tower"]}], r"The train split, row 2: the answer 'tower' at None"),
    ],
)
def test_bad_rows_are_named(rows, message):
    with pytest.raises(DistillationError, match=message):
        make({"train": rows}).setup("fit")


def test_a_window_too_small_is_refused():
    rows = [row(), row(context="the tower was built in the city " * 20)]
    with pytest.raises(DistillationError, match=r"train, row 2: .*max_length=64 has room for 60 .*doc_stride=60"):
        make({"train": rows}, doc_stride=60).setup("fit")


def test_a_teacher_of_another_tokenizer_is_refused():
    data = attached(make({"train": [row()]}))
    data.trainer.lightning_module.teacher_tokenizer = make_tokenizers()["roberta"]
    with pytest.raises(DistillationError, match="both have to share one"):
        data.setup("fit")


def test_predictions_need_no_answers_and_hold_all_windows_of_a_question():
    data = make({"predict": [("who", "city " * 100), ("what", "city")]}, eval_batch_size=1)
    batches = list(data.predict_dataloader())
    assert [set(batch["example"].tolist()) for batch in batches] == [{0}, {1}]
    assert len(batches[0]["input_ids"]) > 1
    assert {"offsets", "context", "span_mask"} <= set(batches[0])
    assert "answers" not in batches[0]


def test_an_empty_context_is_a_row_like_any_other():
    rows = [row(context="") | {"answers": []}, row()]
    (batch,) = make({"train": rows}).train_dataloader()
    place = batch["example"].tolist().index(0)
    assert batch["span_mask"][place].sum() == 1
    assert batch["start_positions"][place] == 0
