import json
import math
from types import SimpleNamespace

import pytest
import torch
from transformers import AutoTokenizer

from lightning_distilbert.data import TextClassificationData
from lightning_distilbert.data.labels import LabelSet
from lightning_distilbert.errors import DistillationError

PAIRS = [{"a": "good film", "b": "the best", "label": "yes"}, {"a": "bad", "b": "not good", "label": "no"}]


@pytest.fixture
def tokenizer(tokenizer_dir):
    return AutoTokenizer.from_pretrained(tokenizer_dir)


def attach(data, **task):
    """Give the data a trainer with a task, as Lightning does."""
    data.trainer = SimpleNamespace(lightning_module=SimpleNamespace(task=SimpleNamespace(**task)))
    return data


def batch_of(data, stage="fit"):
    data.setup(stage)
    return next(iter(data.train_dataloader() if stage == "fit" else data.predict_dataloader()))


def rows(*labels):
    return [{"text": "good film", "label": label} for label in labels]


def labels_of(data):
    """Return the labels in the order of the rows."""
    data.setup("fit")
    return data._encoded["train"].extras["labels"].tolist()


def test_pairs_are_encoded_as_the_tokenizer_does_with_types_for_the_teacher(tokenizer):
    data = TextClassificationData(PAIRS, text=["a", "b"], tokenizer=tokenizer)
    batch = batch_of(data)
    order = [0, 1] if batch["labels"].tolist() == [1, 0] else [1, 0]
    first, second = ([PAIRS[i][name] for i in order] for name in ("a", "b"))
    expected = tokenizer(first, second, padding=True, return_tensors="pt")
    for name, values in expected.items():
        assert torch.equal(batch[name], values)
    assert batch["token_type_ids"].sum() > 0
    single = TextClassificationData(PAIRS, text="a", tokenizer=tokenizer)
    assert batch_of(single)["input_ids"].shape[1] < batch["input_ids"].shape[1]


def test_the_order_of_labels_comes_from_the_option_then_the_task_then_the_rows(tokenizer):
    train = rows("b", "a", "b")
    assert labels_of(TextClassificationData(train, tokenizer=tokenizer)) == [1, 0, 1]
    task = {"labels": ("b", "a"), "num_labels": 2}
    assert labels_of(attach(TextClassificationData(train, tokenizer=tokenizer), **task)) == [0, 1, 0]
    assert labels_of(TextClassificationData(train, labels=["b", "a"], tokenizer=tokenizer)) == [0, 1, 0]
    data = TextClassificationData({"train": train, "dev": rows("b")}, tokenizer=tokenizer)
    data.setup("validate")  # one label only there: the order is that of the training split
    assert data._encoded["validation"].extras["labels"].tolist() == [1]


@pytest.mark.filterwarnings("ignore:.* have no label:UserWarning")
def test_the_kind_of_labels_comes_from_the_option_or_the_task(tokenizer):
    multi = TextClassificationData(rows(["a"], ["b", "a"], None), tokenizer=tokenizer)
    encoded = labels_of(attach(multi, problem_type="multi_label_classification", labels=("a", "b"), num_labels=2))
    assert encoded[:2] == [[1, 0], [1, 1]]
    assert all(map(math.isnan, encoded[2]))
    scores = TextClassificationData(rows("1.5", None), problem_type="regression", tokenizer=tokenizer)
    assert batch_of(scores)["labels"].dtype == torch.float32
    assert labels_of(scores)[0] == 1.5
    assert labels_of(TextClassificationData(rows(1, None), tokenizer=tokenizer)) == [1, -100]


def test_labels_follow_a_second_task(tokenizer):
    data = TextClassificationData(rows("a", "b"), tokenizer=tokenizer)
    assert labels_of(attach(data, labels=("a", "b"), num_labels=2)) == [0, 1]
    assert labels_of(attach(data, labels=("b", "a"), num_labels=2)) == [1, 0]


@pytest.mark.parametrize(
    ("task", "options", "message"),
    [
        ({"labels": ("b", "a")}, {"labels": ["a", "b"]}, r"labels \['a', 'b'\] are not the task's, or in another"),
        ({"num_labels": 3}, {"labels": ["a", "b"]}, r"names 2 labels, \['a', 'b'\], and the task has num_labels=3"),
        ({"num_labels": 3}, {}, "has 2 labels where the task has num_labels=3"),
        ({"problem_type": "regression"}, {"problem_type": "single_label_classification"}, "and the task 'regression'"),
        ({"problem_type": "regression"}, {}, "row 1: the label 'a' is not a finite number"),
        ({"labels": ("a", "c"), "num_labels": 2}, {}, "row 2: the label 'b' is not one of the 2 known: 'a', 'c'"),
    ],
)
def test_data_unlike_the_task(tokenizer, task, options, message):
    data = attach(TextClassificationData(rows("a", "b"), tokenizer=tokenizer, **options), **task)
    with pytest.raises(DistillationError, match=message):
        data.setup("fit")


@pytest.mark.parametrize(
    ("train", "options", "message"),
    [
        ([{"text": "a"}], {}, r"The train split has no column 'label'. Its columns are \['text'\]"),
        ([{"label": 1}], {}, "no column 'text'"),
        ([{"text": 5, "label": 1}], {}, "row 1: 'text' is 5, a int and not a string"),
        ([], {}, "holds no rows"),
        ([{"text": "a", "label": math.nan}], {"problem_type": "regression"}, "row 1: the label nan is not a finite"),
        ([{"text": "a", "label": 1}, {"text": "a"}], {}, "row 2: there is no 'label'"),
    ],
)
def test_bad_rows(tokenizer, train, options, message):
    with pytest.raises(DistillationError, match=message):
        TextClassificationData({"train": train}, tokenizer=tokenizer, **options).setup("fit")


def test_a_bad_row_of_a_file_names_the_file(tokenizer, tmp_path):
    path = tmp_path / "train.jsonl"
    path.write_text("\n".join(json.dumps({"text": "a", "label": label}) for label in (1.0, math.nan)))
    data = TextClassificationData(path, problem_type="regression", tokenizer=tokenizer)
    with pytest.raises(DistillationError, match=r"train\.jsonl, row 2: the label nan"):
        data.setup("fit")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"text": ["a", "b", "c"]}, "one column, or the two columns"),
        ({"problem_type": "ranking"}, "problem_type='ranking'"),
        ({"labels": ["a", "a"]}, "names a label twice"),
    ],
)
def test_bad_options(options, message):
    with pytest.raises(DistillationError, match=message):
        TextClassificationData(PAIRS, **options)


def test_predictions_need_no_labels_and_testing_does(tokenizer):
    data = TextClassificationData({"train": rows("a", "b"), "test": [{"text": "bad"}]}, tokenizer=tokenizer)
    assert "labels" not in batch_of(data, "predict")
    with pytest.raises(DistillationError, match="The test split has no column 'label'"):
        data.setup("test")
    alone = TextClassificationData({"predict": [{"text": "bad"}]}, tokenizer=tokenizer)
    assert batch_of(alone, "predict")["input_ids"].shape == (1, 3)


def test_data_without_labels_can_be_trained_on(tokenizer):
    assert "labels" not in batch_of(TextClassificationData(rows("x"), label=None, tokenizer=tokenizer))


def class_data(names, values):
    datasets = pytest.importorskip("datasets")
    features = datasets.Features({"text": datasets.Value("string"), "label": datasets.ClassLabel(names=names)})
    return datasets.Dataset.from_dict({"text": ["a"] * len(values), "label": values}, features=features)


@pytest.mark.filterwarnings("ignore:.* have no label:UserWarning")
def test_a_datasets_column_brings_its_names(tokenizer):
    train = class_data(["world", "business"], [0, 1, -1])
    plain = TextClassificationData(train, tokenizer=tokenizer)
    assert labels_of(plain) == [0, 1, -100]
    assert plain.label_set == LabelSet("single_label_classification", ("world", "business"), 2)
    # asked for in another order, its numbers follow the names
    assert labels_of(TextClassificationData(train, labels=["Business", "World"], tokenizer=tokenizer)) == [1, 0, -100]
    assert labels_of(TextClassificationData(train, labels=["LABEL_0", "LABEL_1"], tokenizer=tokenizer)) == [0, 1, -100]
    with pytest.raises(DistillationError, match=r"has the labels \['world', 'business'\], and \['x', 'y'\] are asked"):
        TextClassificationData(train, labels=["x", "y"], tokenizer=tokenizer).setup("fit")


# -- rows without labels -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("label", "problem_type", "expected"),
    [
        ("a", "single_label_classification", [0, -100, -100]),
        (["a"], "multi_label_classification", [[1, 0], [None, None], [None, None]]),
        (0.5, "regression", [0.5, None, None]),
    ],
)
def test_unlabelled_rows_join_the_training_rows(tokenizer, label, problem_type, expected):
    more = [{"text": "a dull story"}, {"text": "bad", "label": "not looked at"}]
    labels = None if problem_type == "regression" else ["a", "b"]
    options = {"labels": labels, "problem_type": problem_type, "tokenizer": tokenizer}
    data = TextClassificationData({"train": rows(label), "dev": rows(label)}, unlabelled=more, **options)
    found = torch.tensor(labels_of(data)).tolist()
    assert json.loads(json.dumps(found).replace("NaN", "null")) == expected
    encoded = data._encoded["train"]
    assert [tokenizer.decode(row["input_ids"], skip_special_tokens=True) for row in encoded[[0, 1, 2]]] == [
        "good film",
        "a dull story",
        "bad",
    ]
    assert len(data._encoded["validation"]) == 1
    # they are dealt out with the others, by length
    (batch,) = data.train_dataloader()
    assert batch["input_ids"].shape == (3, 5)


def test_unlabelled_rows_come_from_files_and_pairs_too(tokenizer, tmp_path):
    (tmp_path / "more.tsv").write_text("a\tb\ngood\tbad\nthe best\tnot\n")
    options = {"text": ["a", "b"], "tokenizer": tokenizer}
    data = TextClassificationData(PAIRS, unlabelled=str(tmp_path / "more.tsv"), **options)
    assert labels_of(data) == [1, 0, -100, -100]
    assert data._encoded["train"][3]["token_type_ids"].tolist() == [0, 0, 0, 0, 1, 1]
    # texts alone, where there is one column of them
    assert labels_of(TextClassificationData(rows("a"), unlabelled=["x", "y"], tokenizer=tokenizer)) == [0, -100, -100]
    with pytest.raises(DistillationError, match=r"unlabelled has no column 'b'. Its columns are \['a'\]"):
        TextClassificationData(PAIRS, unlabelled=[{"a": "good"}], **options).setup("fit")
    with pytest.raises(DistillationError, match=r"unlabelled: the dict passed in has only the splits \['test'\]"):
        TextClassificationData(PAIRS, unlabelled={"test": PAIRS}, **options).setup("fit")


def test_unlabelled_rows_may_stand_alone(tokenizer):
    data = TextClassificationData({"dev": rows("a", "b")}, unlabelled=["good", "bad"], tokenizer=tokenizer)
    assert "labels" not in batch_of(data)
    assert data._encoded["validation"].extras["labels"].tolist() == [0, 1]
    bare = TextClassificationData(rows("x"), label=None, unlabelled=["good", "bad"], tokenizer=tokenizer)
    assert len(batch_of(bare)["input_ids"]) == 3


def test_unlabelled_rows_without_a_teacher(tokenizer):
    def data(module, *callbacks):
        made = TextClassificationData(rows("a", "b"), unlabelled=["good"], tokenizer=tokenizer)
        made.trainer = SimpleNamespace(lightning_module=SimpleNamespace(**module), callbacks=list(callbacks))
        return made

    with pytest.raises(DistillationError, match="There are unlabelled rows and no teacher, so nothing can be learnt"):
        data({"distiller": None}).setup("fit")
    data({"distiller": object()}).setup("fit")
    data({"distiller": None}, SimpleNamespace(distiller=object())).setup("fit")
    data({}).setup("fit")  # of a foreign module nobody knows what it does with them


def test_rows_without_a_label_are_counted_once(tokenizer, tmp_path):
    (tmp_path / "train.tsv").write_text("text\tlabel\ngood\tyes\nbad\tno\ndull\t\n")
    data = TextClassificationData(tmp_path, tokenizer=tokenizer)
    with pytest.warns(UserWarning, match=r"train\.tsv: 1 of 3 rows have no label; they count for distillation and not"):
        assert labels_of(data) == [1, 0, -100]
    assert labels_of(data) == [1, 0, -100]  # a second warning would be an error
    assert labels_of(TextClassificationData(tmp_path, labels=["no", "yes", ""], tokenizer=tokenizer)) == [1, 0, 2]
    data = TextClassificationData({"test": rows("a", "b", None)}, tokenizer=tokenizer)
    with pytest.warns(UserWarning, match="The test split: 1 of 3 rows have no label; they do not count in the metrics"):
        data.setup("test")
    data.setup("predict")


# -- a teacher with another tokenizer ----------------------------------------------------------------------------------


def test_training_batches_are_encoded_for_the_teacher_too(tokenizer, tokenizer_dir):
    other = AutoTokenizer.from_pretrained(tokenizer_dir)
    other.add_tokens(["good film"])
    train = [*rows("a"), {"text": "the best", "label": "b"}]
    data = TextClassificationData({"train": train, "dev": train}, tokenizer=tokenizer)
    module = SimpleNamespace(teacher_tokenizer=other)
    data.trainer = SimpleNamespace(lightning_module=module)
    batch = batch_of(data)
    order = ["the best", "good film"] if batch["labels"][0] == 1 else ["good film", "the best"]
    for prefix, one in (("", tokenizer), ("teacher_", other)):
        for name, values in one(order, padding=True, return_tensors="pt").items():
            assert torch.equal(batch[f"{prefix}{name}"], values), name
    assert not torch.equal(batch["input_ids"], batch["teacher_input_ids"])
    assert not [name for name in next(iter(data.val_dataloader())) if name.startswith("teacher_")]
    module.teacher_tokenizer = None  # of a second module, whose teacher shares its tokenizer
    assert "teacher_input_ids" not in batch_of(data)


def test_a_teachers_tokens_are_cut_at_its_own_limit(tokenizer, tokenizer_dir):
    other = AutoTokenizer.from_pretrained(tokenizer_dir, model_max_length=4)
    data = TextClassificationData([{"text": "good " * 9, "label": 0}], tokenizer=tokenizer, max_length=6)
    data.trainer = SimpleNamespace(lightning_module=SimpleNamespace(teacher_tokenizer=other))
    batch = batch_of(data)
    assert (batch["input_ids"].shape[1], batch["teacher_input_ids"].shape[1]) == (6, 4)
