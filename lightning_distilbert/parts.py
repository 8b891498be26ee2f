"""What a `DistillationModule` is built of: arguments of the right kind, and as plain values."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from torch import nn

from lightning_distilbert import doctor
from lightning_distilbert.errors import DistillationError, nearest
from lightning_distilbert.spec import Spec, to_plain
from lightning_distilbert.student import Student
from lightning_distilbert.tasks.base import Task
from lightning_distilbert.teacher import Teacher


def check_parts(task: Any, teacher: Any, student: Any, objectives: Any = ()) -> None:
    """Refuse a task, teacher or student of another kind, and classes where objects are wanted.

    Args:
        task: A `Task`.
        teacher: A `Teacher`, a folder, a hub name, a finished model, or None.
        student: The same, with a `Student`.
        objectives: As in `DistillationModule`; what else is wrong with them `resolve_objectives` says.

    Raises:
        DistillationError: If one is of another kind, or there is neither teacher nor student.

    Example:
        >>> check_parts("classification", None, "my-model")
        Traceback (most recent call last):
        ...
        lightning_distilbert.errors.DistillationError: task='classification' is no task. ... 'TextClassification'?
    """
    if not isinstance(task, Task):
        known = _tasks()
        raise DistillationError(
            f"task={_shown(task)} is no task. Give the object, such as TextClassification(num_labels=2); the tasks are "
            f"{', '.join(known)}.{nearest(task, known) if isinstance(task, str) else ''}"
        )
    for name, value, kind in (("teacher", teacher, Teacher), ("student", student, Student)):
        # what an objective, a task or the other one is, is no model either
        wrong = isinstance(value, Spec) and not isinstance(value, kind)
        if wrong or not isinstance(value, (kind, str, Path, nn.Module, type(None))):
            raise DistillationError(
                f"{name}={_shown(value)} is no {name}: give a folder, a hub name, a {kind.__name__}(...) or a finished "
                "model."
            )
    for value in objectives if isinstance(objectives, (list, tuple)) else [objectives]:
        if isinstance(value, type):
            raise DistillationError(f"objectives holds {_shown(value)}: give an object of it, {value.__name__}().")
    if teacher is None and student is None:
        raise DistillationError("Give a teacher to distil, or a student to fine-tune without one (or both).")


def labelled(task: Any, teacher: Any, student: Any) -> Any:
    """Return a task whose labels are all known: one that was given none takes those that a config names.

    Args:
        task: A task; only one with an attribute ``num_labels`` that is None may change.
        teacher: The teacher, whose labels come first.
        student: The student.

    Raises:
        DistillationError: If no config names them.
    """
    if getattr(task, "num_labels", 0) is not None:
        return task
    sources = [teacher, student.source if isinstance(student, Student) else student]
    known = [Teacher(source) if isinstance(source, (str, Path, nn.Module)) else source for source in sources]
    named = (doctor.label_names(source.config) for source in known if isinstance(source, Teacher))
    return task.with_labels(next(filter(None, named), None))


def plain_argument(name: str, value: Any) -> Any:
    """Return a hyper-parameter as plain values; a finished model cannot be one and becomes None.

    Example:
        >>> plain_argument("teacher", nn.Linear(1, 1)) is None
        True
    """
    model = value.source if isinstance(value, Teacher) else value
    if isinstance(model, nn.Module) and not isinstance(model, Spec):
        return None
    return to_plain(value, f"DistillationModule({name}=...)")


def _tasks() -> list[str]:
    from lightning_distilbert import tasks

    return [name for name in tasks.__all__ if name != Task.__name__]


def _shown(value: Any) -> str:
    if isinstance(value, type):
        return f"{value.__name__} (the class itself)"
    text = repr(value)
    return text if len(text) <= 60 else f"a {type(value).__name__}"
