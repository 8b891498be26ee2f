"""Checks before the first step: what would go wrong silently is said aloud."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Any

import transformers
from lightning_utilities.core.rank_zero import rank_zero_warn
from torch import nn
from transformers.models.auto.modeling_auto import MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING_NAMES

from lightning_distilbert.answers import names_in
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
    # a model that translates reads by its encoder
    ours, theirs = (getattr(getattr(one, "encoder", one), "vocab_size", None) for one in (student, teacher))
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
    return names_in(getattr(config, "id2label", None))


def check_labels(
    student: Sequence[str] | None, teacher: Sequence[str] | None, teacher_name: str = "the teacher"
) -> list[int] | None:
    """Find the teacher's output for each label of the student, and refuse a teacher of other labels.

    The same names in another order are paired by name: compared number by number, the student would learn to swap them.
    Upper and lower case only count where the names differ in nothing else.

    Args:
        student: The student's label names, or None if it has none.
        teacher: The teacher's.
        teacher_name: What to call the teacher.

    Returns:
        The number of the teacher's output for each of the student's, or None if they are in one order already, or
        either has no names.

    Raises:
        DistillationError: If both have names and these differ.

    Example:
        >>> check_labels(["no", "yes"], ["YES", "NO"]), check_labels(["no", "yes"], ["NO", "YES"])
        ([1, 0], None)
    """
    if not student or not teacher:
        return None
    if list(student) == list(teacher):
        return None
    for spelling in (str, str.casefold):
        ours, theirs = [spelling(name) for name in student], [spelling(name) for name in teacher]
        if len(set(theirs)) < len(theirs):  # which of them is meant?
            continue
        if ours == theirs:
            return None
        if sorted(ours) == sorted(theirs):
            return [theirs.index(name) for name in ours]
    raise DistillationError(
        f"The labels are {list(student)}, those of {teacher_name} are {list(teacher)}. Use the teacher's names, as in "
        f"labels={list(teacher)} (in any order), or a teacher trained on these labels."
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


def check_not_student(student: nn.Module, teacher: Any) -> None:
    """Refuse a teacher that shares parameters with the student: freezing it would freeze the student.

    Args:
        student: The student.
        teacher: What the teacher was given as, not frozen yet; a folder or a name shares nothing.

    Raises:
        DistillationError: If they share a parameter.
    """
    if isinstance(teacher, nn.Module) and {id(p) for p in student.parameters()} & {id(p) for p in teacher.parameters()}:
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


# the heads of transformers, by the end of a class's name
HEADS = (
    "ForMaskedLM", "ForSequenceClassification", "ForTokenClassification", "ForQuestionAnswering", "ForMultipleChoice",
)  # fmt: skip


def check_head(config: Any, auto_class: str, teacher_name: str = "the teacher") -> None:
    """Refuse a teacher whose config says that it has no head of this kind; that is known without its weights.

    Args:
        config: The teacher's config; None says nothing.
        auto_class: The transformers auto class of the student.
        teacher_name: What to call the teacher.

    Raises:
        DistillationError: If it names a bare encoder, or a model with another head.

    Example:
        >>> from types import SimpleNamespace
        >>> check_head(SimpleNamespace(architectures=["BertForMaskedLM"]), "AutoModelForMaskedLM")
    """
    head = auto_class.removeprefix("AutoModel")
    if config is None or not head:
        return
    named = (getattr(config, "architectures", None) or ["AutoModel"])[0]
    if head == "ForSeq2SeqLM" and named in MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING_NAMES.values():
        return  # such as EncoderDecoderModel, which no name tells from a bare encoder
    bare = named.endswith("Model") and "LMHead" not in named
    # of a class that is not of transformers nobody knows
    if hasattr(transformers, named) and not named.endswith(head) and (bare or named.endswith(HEADS)):
        raise DistillationError(
            f"The objectives compare logits, and {teacher_name} is a {named}{', a bare encoder' if bare else ''}: here "
            f"it has to be a model {head}. Use a teacher with that head, trained on this task, or objectives on hidden "
            "states or embeddings."
        )


def check_validation(trainer: Any) -> None:
    """Say before training that no validation will come, where callbacks wait for its scores.

    Args:
        trainer: The Trainer, at the start of a fit.

    Raises:
        DistillationError: If ``EarlyStopping`` waits for them: it would end the run with an error.

    Warns:
        UserWarning: If another callback does, such as a ``ModelCheckpoint``.
    """
    waiting = [one for one in trainer.callbacks if str(getattr(one, "monitor", None)).startswith("val/")]
    # a resumed run stands somewhere in its epochs, and manual optimization counts steps of its own
    if not waiting or trainer.global_step or not trainer.lightning_module.automatic_optimization:
        return
    counted = trainer.check_val_every_n_epoch in (None, 1)  # the loaders are only made in an epoch that needs them
    if not trainer.enable_validation or (counted and not sum(trainer.num_val_batches)):
        reason = "there are no validation batches. Give the data a validation split, and do not set limit_val_batches=0"
    else:
        needed = _first_validation(trainer)
        if needed is not None and (needed <= trainer.max_steps or trainer.max_steps == -1):
            return
        when = "never comes" if needed is None else f"comes with step {needed}"
        reason = (
            f"the first validation {when}, and training ends at max_steps={trainer.max_steps}, "
            f"max_epochs={trainer.max_epochs}. Set val_check_interval to a smaller number of batches, or train longer"
        )
    names = ", ".join(f"{type(one).__name__}(monitor={one.monitor!r})" for one in waiting)
    message = f"{names} will see no score: {reason}."
    if any(getattr(one, "strict", False) for one in waiting):
        raise DistillationError(message)
    rank_zero_warn(message)


def _first_validation(trainer: Any) -> int | None:
    """Return in which optimizer step the first validation falls; None if it comes in none."""
    batches, interval = trainer.num_training_batches, trainer.val_check_batch
    if interval is None or interval == math.inf:  # by the clock, or at the end of a stream, which nobody knows
        return 1
    total = int(interval)
    if trainer.check_val_every_n_epoch is not None and batches != math.inf:
        total += (trainer.check_val_every_n_epoch - 1) * int(batches)
    accumulate, whole, rest = trainer.accumulate_grad_batches, 0, total - 1
    if batches != math.inf:
        whole, rest = divmod(total - 1, int(batches))
        if trainer.max_epochs not in (None, -1) and whole >= trainer.max_epochs:
            return None
        whole *= math.ceil(batches / accumulate)
    return whole + rest // accumulate + 1
