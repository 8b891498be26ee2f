"""Checks before the first step: what would go wrong silently is said aloud."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from torch import nn

from lightning_distilbert.errors import DistillationError


def check_vocabularies(student: Any, teacher: Any, teacher_name: str = "the teacher") -> None:
    """Refuse a student and a teacher that give different numbers to the same token.

    The teacher reads the student's token ids; with another vocabulary it would read another text.

    Args:
        student: The student's tokenizer, or anything with ``get_vocab()``.
        teacher: The teacher's.
        teacher_name: What to call the teacher.

    Raises:
        DistillationError: If the token-to-id maps differ.
    """
    ours, theirs = student.get_vocab(), teacher.get_vocab()
    if ours == theirs:
        return
    differing = sorted(token for token in ours.keys() & theirs.keys() if ours[token] != theirs[token])
    alone = sorted(ours.keys() ^ theirs.keys())
    example = differing[0] if differing else alone[0]
    raise DistillationError(
        f"The student's vocabulary ({len(ours)} tokens) is not the one of {teacher_name} ({len(theirs)} tokens): "
        f"{len(differing)} tokens have another id and {len(alone)} are in one only, such as {example!r} "
        f"({ours.get(example)} against {theirs.get(example)}). The teacher would read another text. Take a teacher "
        "with the student's vocabulary, or build the student from this teacher."
    )


def check_vocabulary_sizes(student: Any, teacher: Any, teacher_name: str = "the teacher") -> None:
    """Refuse models whose configs state different vocabulary sizes, where no tokenizer is at hand to compare.

    Args:
        student: The student's config, or None.
        teacher: The teacher's config, or None.
        teacher_name: What to call the teacher.

    Raises:
        DistillationError: If both state a size and the sizes differ.
    """
    ours, theirs = getattr(student, "vocab_size", None), getattr(teacher, "vocab_size", None)
    if ours is not None and theirs is not None and ours != theirs:
        raise DistillationError(
            f"The student has a vocabulary of {ours} tokens and {teacher_name} one of {theirs}: the teacher would read "
            "another text. Take a teacher with the student's vocabulary."
        )


def label_names(config: Any) -> list[str] | None:
    """Return the label names of a transformers config in order, or None if it only has its default ``LABEL_0``.

    Example:
        >>> from types import SimpleNamespace
        >>> label_names(SimpleNamespace(id2label={1: "yes", 0: "no"}))
        ['no', 'yes']
    """
    id2label: Mapping[Any, str] = getattr(config, "id2label", None) or {}
    names = [str(id2label[key]) for key in sorted(id2label, key=int)]
    return None if not names or all(re.fullmatch(r"LABEL_\d+", name) for name in names) else names


def check_labels(
    student: Sequence[str] | None, teacher: Sequence[str] | None, teacher_name: str = "the teacher"
) -> None:
    """Refuse labels that the teacher has in another order: the student would learn to swap them.

    Args:
        student: The student's label names, or None if it has none.
        teacher: The teacher's.
        teacher_name: What to call the teacher.

    Raises:
        DistillationError: If both have names and these differ.

    Example:
        >>> check_labels(["no", "yes"], ["NO", "YES"])
    """
    if not student or not teacher:
        return
    if [name.casefold() for name in student] == [name.casefold() for name in teacher]:
        return
    same = sorted(map(str.casefold, student)) == sorted(map(str.casefold, teacher))
    raise DistillationError(
        f"The labels are {list(student)}, those of {teacher_name} are {list(teacher)}"
        + (": the same in another order. " if same else ". ")
        + f"Use the teacher's order, as in labels={list(teacher)}, or a teacher trained on these labels."
    )


def check_optimizers(parameters: Iterable[nn.Parameter], optimizers: Iterable[Any], teacher: nn.Module) -> None:
    """Refuse optimizers that miss a projection or hold the teacher.

    Args:
        parameters: The parameters that the objectives brought.
        optimizers: The Trainer's optimizers.
        teacher: The frozen teacher.

    Raises:
        DistillationError: If a parameter is in no optimizer, or a teacher's parameter is in one.
    """
    held = {id(p) for optimizer in optimizers for group in optimizer.param_groups for p in group["params"]}
    if held and any(id(p) not in held for p in parameters):
        raise DistillationError(
            "The projections of the distillation objectives are in no optimizer, so that they would never learn: "
            "configure_optimizers() lists its parameters by hand. Give it self.parameters(), or set projection='never'."
        )
    if any(id(p) in held for p in teacher.parameters()):
        raise DistillationError(
            "The teacher's parameters are in an optimizer: is the teacher also a sub-module of the LightningModule? "
            "Pass it to the callback alone."
        )


def check_not_student(student: nn.Module, teacher: nn.Module) -> None:
    """Refuse a teacher that shares parameters with the student: freezing it would freeze the student.

    Args:
        student: The student.
        teacher: The teacher.

    Raises:
        DistillationError: If they share a parameter.
    """
    if {id(p) for p in student.parameters()} & {id(p) for p in teacher.parameters()}:
        raise DistillationError(
            "Teacher and student share parameters: they are the same model, or parts of one. Give the teacher its own "
            "copy, such as copy.deepcopy(model)."
        )


def check_averaging(callbacks: Iterable[Any], remedy: str) -> None:
    """Refuse a ``WeightAveraging`` callback that copied the weights before the projections existed.

    It pairs its copy with the module by position, parameters first and then buffers: with parameters that came later,
    it mixes up all that stands behind them.

    Args:
        callbacks: The callbacks that have copied the weights already, if they are of that class.
        remedy: What to do.

    Raises:
        DistillationError: If there is one.
    """
    for callback in callbacks:
        # by name: there is one such class in each Lightning package
        if any(cls.__name__ == "WeightAveraging" for cls in type(callback).__mro__):
            raise DistillationError(
                f"{type(callback).__name__} copied the weights before the projections of the distillation objectives "
                f"existed, and would average the wrong pairs: {remedy}."
            )
