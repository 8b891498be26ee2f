"""The one distillation engine: it computes every term, whichever way it is mounted on the Trainer."""

from __future__ import annotations

import functools
import operator
from collections.abc import Sequence
from typing import Any, cast

from torch import Tensor, nn
from transformers import PreTrainedModel

from lightning_distilbert.architectures import layers_of
from lightning_distilbert.errors import DistillationError
from lightning_distilbert.objectives.base import Objective
from lightning_distilbert.schedules import Schedule, value_at
from lightning_distilbert.signals import ModelFacts
from lightning_distilbert.taps import Paths, Record, Taps, resolve_paths
from lightning_distilbert.teacher import Teacher


class Distiller:
    r"""Owns the teacher and the objectives, and adds their terms to the loss of a step.

    .. math:: L = w_0(p) \, L_{task} + \sum_i w_i(p) \, L_i(\text{student}, \text{teacher})

    with the weights at progress :math:`p`. Mean values are over the micro-batch, as in the task losses of
    transformers; Lightning divides by ``accumulate_grad_batches`` and DDP averages over processes.

    Args:
        teacher: The frozen teacher.
        objectives: The terms.
        student: Where the student's signals come from, as in `Taps`.
        pooling: How the student's sentence embedding is pooled.
        task_weight: The weight :math:`w_0` of the task loss.

    Example:
        >>> import torch
        >>> from lightning_distilbert.objectives import SoftTargets
        >>> student = nn.Linear(4, 2)
        >>> distiller = Distiller(Teacher(nn.Linear(4, 2)), [SoftTargets(activation="softmax")])
        >>> distiller.build(student)
        >>> with distiller.watch(student) as taps:
        ...     task_loss = student(torch.zeros(3, 4)).sum()
        >>> sorted(distiller.terms(taps.records))
        ['soft_targets']
    """

    def __init__(
        self,
        teacher: Teacher,
        objectives: Sequence[Objective],
        student: Paths = "",
        pooling: str = "mean",
        task_weight: float | Schedule = 1.0,
    ) -> None:
        self.teacher = teacher
        self.objectives = nn.ModuleList(objectives)
        self.student = student
        self.pooling = pooling
        self.task_weight = task_weight
        self.requires = frozenset[str]().union(*(objective.requires for objective in objectives))
        self.names = unique_names(objectives)
        self.progress = 0.0

    @property
    def parts(self) -> list[Objective]:
        """The objectives, typed as what they are."""
        return cast(list[Objective], list(self.objectives))

    @property
    def follows_progress(self) -> bool:
        """Whether anything here changes over training."""
        values = [self.task_weight, *(value for objective in self.parts for value in vars(objective).values())]
        return any(isinstance(value, Schedule) for value in values)

    def build(self, root: nn.Module) -> None:
        """Check student and teacher against every objective and make the projections.

        Args:
            root: The module under which the student's paths are resolved.

        Raises:
            DistillationError: If an objective cannot compare the two.
        """
        student = facts_of("the student", root, self.student, self.requires)
        teacher = facts_of(f"the teacher {self.teacher.name}", self.teacher.model, self.teacher.paths, self.requires)
        for objective in self.parts:
            objective.build(student, teacher)

    def watch(self, root: nn.Module, batch: Any = None) -> Taps:
        """Return taps on the student, to be used as a context around its forwards.

        Args:
            root: The module under which the student's paths are resolved.
            batch: The batch of this step.
        """
        return Taps(root, self.student, self.requires, self.pooling, batch)

    def set_progress(self, trainer: Any) -> None:
        """Read the training progress off the Trainer, for the schedules.

        Args:
            trainer: The Lightning Trainer.

        Raises:
            DistillationError: If there are schedules and training has no end.
        """
        if not self.follows_progress:
            return
        steps = trainer.estimated_stepping_batches
        if steps in (float("inf"), -1, 0):
            raise DistillationError(
                f"A schedule needs to know how long training lasts, and the Trainer plans {steps} optimizer steps. "
                "Set max_epochs or max_steps."
            )
        self.progress = min(trainer.global_step / steps, 1.0)
        for objective in self.parts:
            objective.progress = self.progress

    def terms(self, records: Sequence[Record]) -> dict[str, Tensor]:
        """Run the teacher on each recorded forward and compute the terms, not yet weighted.

        Args:
            records: One for each student forward of this step, in order.

        Returns:
            The terms by name, float32 scalars with a graph.

        Raises:
            DistillationError: If the student did not run.
        """
        if not records:
            raise DistillationError(
                f"The student at {self.student!r} was not run in this training step, so that there is nothing to "
                "compare with the teacher. Check the path, and that training_step calls this module itself (a "
                "compiled copy does not run its hooks)."
            )
        students = [record.signals for record in records]
        teachers = [self.teacher(record.inputs, self.requires, record.signals.mask) for record in records]
        return {
            name: objective.over_records(students, teachers)
            for name, objective in zip(self.names, self.parts, strict=True)
        }

    def total(self, task_loss: Tensor | None, records: Sequence[Record]) -> tuple[Tensor, dict[str, Tensor]]:
        """Add the weighted terms to the task loss.

        A weight of 0 multiplies and does not skip: under DDP every parameter takes part in every step.

        Args:
            task_loss: The task's own loss, or None if there is none (rows without labels).
            records: One for each student forward of this step.

        Returns:
            The loss to train on, and what to log: ``distill/<name>`` for each term before weighting.
        """
        terms = self.terms(records)
        weighted = [
            objective.current_weight() * terms[name] for name, objective in zip(self.names, self.parts, strict=True)
        ]
        if task_loss is not None:
            weighted.insert(0, value_at(self.task_weight, self.progress) * task_loss)
        return functools.reduce(operator.add, weighted), {
            f"distill/{name}": term.detach() for name, term in terms.items()
        }


def unique_names(objectives: Sequence[Objective]) -> list[str]:
    """Name each objective for the log; the second of a kind gets a number.

    Example:
        >>> from lightning_distilbert.objectives import SoftTargets
        >>> unique_names([SoftTargets(), SoftTargets()])
        ['soft_targets', 'soft_targets_2']
    """
    seen: dict[str, int] = {}
    names = []
    for objective in objectives:
        seen[objective.name] = count = seen.get(objective.name, 0) + 1
        names.append(objective.name if count == 1 else f"{objective.name}_{count}")
    return names


def facts_of(name: str, root: nn.Module, paths: Paths, requires: frozenset[str]) -> ModelFacts:
    """Gather what the objectives may know of a model before training.

    Args:
        name: What to call it in an error.
        root: The module under which the paths are resolved.
        paths: Where its signals come from.
        requires: The signals that are needed.

    Raises:
        DistillationError: If a path leads nowhere, or logits are needed of an encoder without a head.
    """
    sources = resolve_paths(root, paths, requires)
    body = next(sources[signal] for signal in ("hidden_states", "embedding", "logits") if signal in sources)
    facts = ModelFacts.of(name, getattr(body, "config", None))
    head = sources.get("logits")
    if isinstance(head, PreTrainedModel) and head.base_model is head:
        raise DistillationError(
            f"The objectives compare logits, and {name} is a bare encoder ({type(head).__name__}) that gives none. Use "
            "a model with a head, fine-tuned on this task, or objectives on hidden states or embeddings."
        )
    head_config = getattr(head, "config", None)
    num_labels = getattr(head, "out_features", getattr(head_config, "num_labels", None))
    num_layers = len(layers_of(body)) if "hidden_states" in requires else facts.num_layers
    return ModelFacts(
        name=name,
        num_layers=num_layers,
        hidden_size=facts.hidden_size,
        num_labels=num_labels,
        problem_type=getattr(head_config, "problem_type", None),
        initialised_from=facts.initialised_from,
    )
