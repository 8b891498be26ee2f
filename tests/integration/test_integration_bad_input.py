"""Bad input through `Trainer.fit`: one error that names the value, and no training step before it."""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from pytorch_lightning import Callback, LightningModule, Trainer
from transformers import AutoModelForSequenceClassification, AutoTokenizer, BertTokenizer, DistilBertConfig

from lightning_distilbert import (
    DistillationError,
    DistillationLoss,
    DistillationModule,
    HiddenStates,
    RetrievalData,
    SoftTargets,
    Student,
    TextClassification,
    TextClassificationData,
    build_student,
)

ROWS = [{"text": f"the {'great' if i % 2 else 'dull'} movie", "label": i % 2} for i in range(8)]


class Foreign(LightningModule):
    """Knows nothing of distillation, but has a tokenizer."""

    def __init__(self, model: torch.nn.Module, tokenizer: Any = None) -> None:
        super().__init__()
        self.model = model
        self.tokenizer = tokenizer

    def training_step(self, batch, batch_idx):
        return self.model(batch["input_ids"], attention_mask=batch["attention_mask"], labels=batch["labels"]).loss

    def validation_step(self, batch, batch_idx):
        """Nothing: that Lightning may run a validation."""

    def configure_optimizers(self):
        return torch.optim.AdamW(self.parameters())


class Steps(Callback):
    """Counts the batches that training began with."""

    def __init__(self) -> None:
        self.begun = 0

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        self.begun += 1


def fit(module: LightningModule, data: Any, *callbacks: Callback) -> int:
    """Train for two steps, and return how many were begun."""
    steps = Steps()
    trainer = Trainer(
        max_steps=2,
        accelerator="cpu",
        devices=1,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        num_sanity_val_steps=0,
        callbacks=[steps, *callbacks],
    )
    try:
        trainer.fit(module, data)
    except DistillationError as error:
        error.steps = steps.begun  # type: ignore[attr-defined]
        raise
    return steps.begun


def refused(act: Callable[[], Any], match: str) -> None:
    with pytest.raises(DistillationError, match=match) as caught:
        act()
    assert getattr(caught.value, "steps", 0) == 0  # refused when it was built, or before the first step


def text_data(rows: Any = ROWS, **arguments: Any) -> TextClassificationData:
    source = rows if isinstance(rows, (dict, str, Path)) else {"train": rows, "validation": ROWS}
    return TextClassificationData(source, batch_size=4, **arguments)


def distil(teacher: Any, data: Any = None, student: Any = None, **arguments: Any) -> int:
    arguments = {"task": TextClassification(num_labels=2)} | arguments
    module = DistillationModule(teacher=teacher, student=student or Student(layers=1), **arguments)
    return fit(module, text_data() if data is None else data)


def distil_foreign(teacher: Path, data: Any, *, model: Any = None, tokenizer: Any = None, **arguments: Any) -> int:
    model = model or build_student(teacher, 1, auto_class="AutoModelForSequenceClassification")
    return fit(Foreign(model, tokenizer), data, DistillationLoss(teacher, **arguments))


def renamed(teacher: Path, folder: Path, names: list[str]) -> Path:
    """Copy a teacher and give its labels names."""
    shutil.copytree(teacher, folder)
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    config["id2label"] = {str(index): name for index, name in enumerate(names)}
    config["label2id"] = {name: index for index, name in enumerate(names)}
    (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
    return folder


def test_good_input_trains(tiny_teacher_dir: Path):
    assert distil(tiny_teacher_dir) == 2
    assert distil_foreign(tiny_teacher_dir, text_data(tokenizer=str(tiny_teacher_dir))) == 2


# -- data --------------------------------------------------------------------------------------------------------------


def bad_data(tmp_path: Path) -> dict[str, tuple[Callable[..., Any], str]]:
    """Return data modules that cannot be read, each with what must be said of them."""
    (tmp_path / "good").mkdir()
    (tmp_path / "good" / "train.tsv").write_text("text\tlabel\na movie\t1\n", encoding="utf-8")
    (tmp_path / "empty").mkdir()
    for name in ("train", "dev"):
        (tmp_path / "empty" / f"{name}.tsv").write_text("text\tlabel\n", encoding="utf-8")
    missing = str(tmp_path / "nowhere" / "train.tsv")
    return {
        "missing file": (lambda **more: text_data(missing, **more), "nowhere/train.tsv"),
        "missing folder": (lambda **more: text_data(str(tmp_path / "nowhere"), **more), "nowhere"),
        "missing file of a split": (
            lambda **more: text_data({"train": missing, "validation": ROWS}, **more), "nowhere/train.tsv"
        ),
        "missing text column": (
            lambda **more: text_data(tmp_path / "good", text="sentence", **more),
            r"no column 'sentence'\. Its columns are \['text', 'label'\]",
        ),
        "missing label column": (lambda **more: text_data(tmp_path / "good", label="gold", **more), "no column 'gold'"),
        "empty split": (lambda **more: text_data(tmp_path / "empty", **more), r"train\.tsv holds no rows"),
        "empty validation": (
            lambda **more: text_data({"train": ROWS, "validation": tmp_path / "empty" / "dev.tsv"}, **more),
            r"dev\.tsv holds no rows",
        ),
        "no training split": (lambda **more: text_data({"validation": ROWS}, **more), "no split 'train'"),
        "a text that is a number": (
            lambda **more: text_data([*ROWS, {"text": 3.5, "label": 1}], **more), "row 9: 'text' is 3.5, a float"
        ),
        "a text that is missing": (
            lambda **more: text_data([{"text": None, "label": 1}, *ROWS], **more), "row 1: 'text' is None, a NoneType"
        ),
        "a label out of range": (
            lambda **more: text_data([*ROWS, {"text": "a", "label": 7}], labels=["no", "yes"], **more),
            "row 9: the label 7 is not one of the 2 known",
        ),
    }  # fmt: skip


CASES = (
    "missing file", "missing folder", "missing file of a split", "missing text column", "missing label column",
    "empty split", "empty validation", "no training split", "a text that is a number", "a text that is missing",
    "a label out of range",
)  # fmt: skip


def test_every_kind_of_bad_data_is_tried(tmp_path: Path):
    assert tuple(bad_data(tmp_path)) == CASES


@pytest.mark.parametrize("way", ["module", "callback"])
@pytest.mark.parametrize("case", CASES)
def test_bad_data(case: str, way: str, tiny_teacher_dir: Path, tmp_path: Path):
    make, match = bad_data(tmp_path)[case]
    if way == "module":
        refused(lambda: distil(tiny_teacher_dir, make()), match)
    else:
        refused(lambda: distil_foreign(tiny_teacher_dir, make(tokenizer=str(tiny_teacher_dir))), match)


@pytest.mark.parametrize("label", [math.nan, math.inf, "nan"])
def test_nan_in_a_float_label(label: Any, tiny_bert_dir: Path, tmp_path: Path):
    teacher = tmp_path / "teacher"
    shutil.copytree(tiny_bert_dir, teacher)
    model = AutoModelForSequenceClassification.from_pretrained(teacher, num_labels=1, problem_type="regression")
    model.save_pretrained(teacher)
    task = TextClassification(problem_type="regression")
    rows = [{"text": "a movie", "label": 0.5}, {"text": "a film", "label": label}]
    match = f"row 2: the label {label!r} is not a finite number"
    refused(lambda: distil(teacher, text_data({"train": rows}), task=task), match)
    data = text_data({"train": rows}, tokenizer=str(teacher), problem_type="regression")
    refused(lambda: distil_foreign(teacher, data), match)


def test_retrieval_data_without_documents(tiny_bert_dir: Path):
    from lightning_distilbert import Retrieval

    rows = [{"query": "a movie", "body": "the story"}]
    refused(
        lambda: distil(tiny_bert_dir, RetrievalData({"train": rows}), task=Retrieval()),
        r"no column 'document'\. Its columns are \['query', 'body'\]",
    )


# -- labels ------------------------------------------------------------------------------------------------------------


def test_other_labels_than_the_teachers(tiny_teacher_dir: Path, tmp_path: Path):
    teacher = renamed(tiny_teacher_dir, tmp_path / "teacher", ["negative", "positive"])
    match = r"labels are \['no', 'yes'\], those of .*teacher are \['negative', 'positive'\]"
    refused(lambda: distil(teacher, task=TextClassification(labels=["no", "yes"])), match)
    # a student that comes with names of its own is not quietly renamed
    own = renamed(tiny_teacher_dir, tmp_path / "own", ["no", "yes"])
    refused(lambda: distil(teacher, student=Student(source=str(own))), match)


def test_labels_of_the_data_that_contradict_the_teachers(tiny_teacher_dir: Path, tmp_path: Path):
    teacher = renamed(tiny_teacher_dir, tmp_path / "teacher", ["negative", "positive"])
    refused(
        lambda: distil(teacher, text_data(labels=["positive", "negative"])),
        r"data's labels \['positive', 'negative'\] are not the task's, or in another order: \['negative', 'positive'\]",
    )
    assert distil(teacher, text_data(labels=["Negative", "Positive"])) == 2  # as for the teacher, case does not count


def test_labels_that_the_callback_sees_in_the_data_alone(tiny_teacher_dir: Path, tmp_path: Path):
    teacher = renamed(tiny_teacher_dir, tmp_path / "teacher", ["positive", "negative"])
    student = build_student(tiny_teacher_dir, 1, auto_class="AutoModelForSequenceClassification")  # LABEL_0, LABEL_1
    rows = [{"text": "a movie", "label": name} for name in ("positive", "negative")]
    splits = {"train": rows, "validation": rows}
    data = text_data(splits, tokenizer=str(teacher))  # sorted, since nothing names an order: paired by name
    assert distil_foreign(teacher, data, model=student) == 2
    rows = [{"text": "a movie", "label": name} for name in ("good", "negative")]
    other = text_data({"train": rows, "validation": rows}, tokenizer=str(teacher))
    refused(
        lambda: distil_foreign(teacher, other, model=student), r"\['good', 'negative'\].*\['positive', 'negative'\]"
    )


def test_label_in_the_data_that_the_teacher_does_not_have(tiny_teacher_dir: Path, tmp_path: Path):
    teacher = renamed(tiny_teacher_dir, tmp_path / "teacher", ["negative", "positive"])
    rows = [{"text": "a movie", "label": "neutral"}]
    refused(
        lambda: distil(teacher, text_data(rows)), "row 1: the label 'neutral' is not one of the 2 known: 'negative', 'p"
    )


@pytest.mark.parametrize("student", ["cut", "source", "config", "finished"])
def test_student_takes_the_labels_that_only_the_teacher_names(
    student: str, tiny_teacher_dir: Path, tiny_bert_dir: Path, tmp_path: Path, vocabulary: list[str]
):
    # not in alphabetical order, so that sorting the data's names would swap them
    names = ("positive", "negative")
    teacher = renamed(tiny_teacher_dir, tmp_path / "teacher", list(names))
    config = DistilBertConfig(vocab_size=len(vocabulary), dim=16, n_heads=2, n_layers=1, hidden_dim=16)
    students = {
        "cut": Student(layers=1),
        "source": Student(source=str(tiny_bert_dir)),
        "config": Student(config=config.to_dict()),
        "finished": AutoModelForSequenceClassification.from_config(config),
    }
    module = DistillationModule(
        TextClassification(num_labels=2), teacher=teacher, student=students[student], objectives=[SoftTargets()]
    )
    assert module.labels == names
    rows = [{"text": "a great movie", "label": "positive"}, {"text": "a dull and long movie", "label": "negative"}] * 4
    data = text_data({"train": rows, "validation": rows})
    assert fit(module, data) == 2
    batch = next(iter(data.val_dataloader()))
    assert batch["labels"].tolist() == [1] * 4 + [0] * 4  # longest first
    folder = module.save_student(tmp_path / "student")
    saved = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    assert saved["id2label"] == {"0": "positive", "1": "negative"}
    assert saved["label2id"] == {"positive": 0, "negative": 1}
    logits = torch.tensor([[4.0, 0.0], [0.0, 4.0]])
    assert [answer["label"] for answer in module.task.decode({"logits": logits}, module.labels)] == list(names)
    assert {answer["label"] for answer in module.predict(["a movie", "great"])} <= set(names)


def test_names_that_say_nothing_are_no_labels(tiny_teacher_dir: Path):
    module = DistillationModule(TextClassification(num_labels=2), teacher=tiny_teacher_dir, student=Student(layers=1))
    assert module.labels is None  # LABEL_0 and LABEL_1


# -- models ------------------------------------------------------------------------------------------------------------


def other_vocabulary(tiny: Path, folder: Path, entries: list[str]) -> Path:
    """Copy a model and give it a tokenizer of other entries."""
    shutil.copytree(tiny, folder)
    words = BertTokenizer(vocab={entry: index for index, entry in enumerate(entries)}, model_max_length=64)
    words.save_pretrained(folder)
    return folder


def swapped(vocabulary: list[str]) -> list[str]:
    first, second = vocabulary.index("cat"), vocabulary.index("dog")
    entries = list(vocabulary)
    entries[first], entries[second] = "dog", "cat"
    return entries


def test_vocabulary_of_equal_size_in_another_order(tiny_teacher_dir: Path, tmp_path: Path, vocabulary: list[str]):
    own = other_vocabulary(tiny_teacher_dir, tmp_path / "own", swapped(vocabulary))
    match = rf"student's vocabulary \({len(vocabulary)} tokens\).*2 tokens have another id.*such as 'cat'"
    objectives = [HiddenStates()]
    refused(lambda: distil(tiny_teacher_dir, student=Student(source=str(own)), objectives=objectives), match)
    words = AutoTokenizer.from_pretrained(own)
    # the module's tokenizer, or the data's, tells it to the callback
    data = text_data(tokenizer=words)
    refused(lambda: distil_foreign(tiny_teacher_dir, data, tokenizer=words, objectives=objectives), match)
    refused(lambda: distil_foreign(tiny_teacher_dir, text_data(tokenizer=str(own)), objectives=objectives), match)


def test_vocabulary_of_another_size(tiny_teacher_dir: Path, tmp_path: Path, vocabulary: list[str]):
    own = other_vocabulary(tiny_teacher_dir, tmp_path / "own", vocabulary[:-3])
    match = rf"{len(vocabulary) - 3} tokens.*{len(vocabulary)} tokens"
    objectives = [HiddenStates(layers="last", projection="auto")]
    refused(lambda: distil(tiny_teacher_dir, student=Student(source=str(own)), objectives=objectives), match)
    # without a tokenizer in sight the configs say it
    config = DistilBertConfig(vocab_size=len(vocabulary) - 3, dim=16, n_heads=2, n_layers=1, hidden_dim=16)
    small = AutoModelForSequenceClassification.from_config(config)
    batch = {name: torch.ones(2, 4, dtype=torch.int64) for name in ("input_ids", "attention_mask")}
    batch["labels"] = torch.tensor([0, 1])
    loader = torch.utils.data.DataLoader([batch], batch_size=None)

    def fit_foreign_on(data: Any) -> int:
        foreign = Foreign(small)
        foreign.validation_step = None  # there is no such data
        return fit(foreign, data, DistillationLoss(tiny_teacher_dir, objectives=objectives))

    match = rf"student has a vocabulary of {len(vocabulary) - 3} tokens and .*teacher one of {len(vocabulary)}"
    refused(lambda: fit_foreign_on(loader), match)


def test_layer_out_of_range(tiny_teacher_dir: Path):
    refused(lambda: distil(tiny_teacher_dir, student=Student(layers=[0, 99])), "99")
    refused(lambda: distil(tiny_teacher_dir, student=Student(layers=9)), "9")
    for pair in ((1, 99), (99, 1)):
        objectives = [HiddenStates(layers=[pair])]
        match = rf"the pair \({pair[0]}, {pair[1]}\), which is out of range.*from 0 \(embeddings\) to 1,.* 0 to 4"
        refused(lambda objectives=objectives: distil(tiny_teacher_dir, objectives=objectives), match)
        data = text_data(tokenizer=str(tiny_teacher_dir))
        refused(lambda o=objectives, d=data: distil_foreign(tiny_teacher_dir, d, objectives=o), match)


def test_teacher_folder_without_weights(tiny_teacher_dir: Path, tmp_path: Path):
    shutil.copytree(tiny_teacher_dir, tmp_path / "teacher")
    (tmp_path / "teacher" / "model.safetensors").unlink()
    refused(lambda: distil(tmp_path / "teacher"), r"teacher' has a config\.json and no weights \(model\.safetensors\)")
    # where the student comes from elsewhere, the teacher is first looked at when training begins
    elsewhere = Student(source=str(tiny_teacher_dir))
    refused(lambda: distil(tmp_path / "teacher", student=elsewhere), r"teacher'.*model\.safetensors")
    student = build_student(tiny_teacher_dir, 1, auto_class="AutoModelForSequenceClassification")
    data = text_data(tokenizer=str(tiny_teacher_dir))
    refused(lambda: distil_foreign(tmp_path / "teacher", data, model=student), r"teacher'.*model\.safetensors")


def test_teacher_without_the_head(tiny_bert_dir: Path, tiny_teacher_dir: Path):
    elsewhere = Student(source=str(tiny_teacher_dir))
    refused(lambda: distil(tiny_bert_dir, student=elsewhere, objectives=[SoftTargets()]), "bert")
    student = build_student(tiny_teacher_dir, 1, auto_class="AutoModelForSequenceClassification")
    data = text_data(tokenizer=str(tiny_teacher_dir))
    refused(lambda: distil_foreign(tiny_bert_dir, data, model=student, objectives=[SoftTargets()]), "bert")


def test_teacher_that_does_not_exist(tiny_teacher_dir: Path, tmp_path: Path):
    elsewhere = Student(source=str(tiny_teacher_dir))
    refused(lambda: distil(tmp_path / "nowhere", student=elsewhere), "nowhere")
    refused(lambda: distil(tmp_path / "nowhere"), "nowhere' does not exist")
