"""Arguments of another kind are refused by name."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from transformers import BertTokenizer

from lightning_distilbert import (
    DistillationError,
    DistillationModule,
    SoftTargets,
    Student,
    Teacher,
    TextClassification,
    tasks,
)
from lightning_distilbert.parts import check_parts

TASK = TextClassification(num_labels=2)
TOKENIZER = BertTokenizer(vocab={"[PAD]": 0, "[UNK]": 1, "[CLS]": 2, "[SEP]": 3, "[MASK]": 4})


@pytest.mark.parametrize(
    ("task", "match"),
    [
        ("classification", r"task='classification' is no task\. .*Did you mean 'TextClassification'\?"),
        ("retrieval", r"task='retrieval' is no task\. .*Did you mean 'Retrieval'\?"),
        ("zzz", rf"the tasks are {', '.join(name for name in tasks.__all__ if name != 'Task')}\.$"),
        (TextClassification, r"task=TextClassification \(the class itself\) is no task"),
        (None, "task=None is no task"),
        (SoftTargets(), "is no task"),
        (Student(layers=1).to_config(), "is no task"),
    ],
)
def test_what_is_no_task(task: Any, match: str):
    with pytest.raises(DistillationError, match=match):
        DistillationModule(task=task, student="nowhere")


@pytest.mark.parametrize(
    ("parts", "match"),
    [
        (
            {"student": 6},
            r"student=6 is no student: give a folder, a hub name, a Student\(\.\.\.\) or a finished model",
        ),
        ({"student": ["a"]}, r"student=\['a'\] is no student"),
        ({"student": Student}, r"student=Student \(the class itself\) is no student"),
        ({"student": Teacher("x")}, r"student=Teacher\('x'\) is no student"),
        ({"student": SoftTargets()}, "is no student"),
        ({"student": TOKENIZER}, "student=a BertTokenizer is no student"),
        (
            {"teacher": 6},
            r"teacher=6 is no teacher: give a folder, a hub name, a Teacher\(\.\.\.\) or a finished model",
        ),
        ({"teacher": Student(layers=2)}, "is no teacher"),
        ({"teacher": TASK}, "is no teacher"),
        ({}, "Give a teacher to distil, or a student"),
    ],
)
def test_what_is_no_student_and_no_teacher(parts: dict[str, Any], match: str):
    with pytest.raises(DistillationError, match=match):
        DistillationModule(TASK, **parts)


def test_all_kinds_pass():
    model = torch.nn.Linear(1, 1)
    for part in ("a/folder", model, None):
        check_parts(TASK, part, Student())
        check_parts(TASK, Teacher("x"), part)


@pytest.mark.parametrize("objectives", [3, [SoftTargets(), "logits"], [TASK]])
def test_what_is_no_objective(objectives: Any, tiny_teacher_dir):
    with pytest.raises(DistillationError, match="which is no objective: give the name of a preset alone"):
        DistillationModule(TASK, teacher=tiny_teacher_dir, objectives=objectives)
    for given in (SoftTargets, [SoftTargets]):
        with pytest.raises(DistillationError, match=r"SoftTargets \(the class itself\): give an object of it, SoftT"):
            DistillationModule(TASK, teacher=tiny_teacher_dir, objectives=given)
