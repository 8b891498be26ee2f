"""The base of all objectives."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

import torch
from torch import Tensor, nn

from lightning_distilbert.errors import DistillationError
from lightning_distilbert.schedules import Schedule, check_number, value_at
from lightning_distilbert.signals import ModelFacts, Signals
from lightning_distilbert.spec import Spec


class Objective(Spec, nn.Module):
    """One term of the distillation loss: what two sets of signals cost.

    A subclass states which signals it ``requires``, whether it compares token by token, and computes one float32
    number in `forward`. The engine captures the signals, sets ``progress`` and multiplies by ``weight``.

    Args:
        weight: The factor of this term in the total loss, a number or a `Schedule`. Off-schedule terms are multiplied
            by 0 and not left out, since under DDP every parameter must take part in every step.

    Raises:
        DistillationError: If the weight is negative or not finite.
    """

    # an object may narrow what its class states
    requires: frozenset[str] = frozenset()
    token_level: bool = False
    # whether it knows what to do with `Signals.late_logits`
    takes_late_logits: bool = False
    name: ClassVar[str] = "objective"

    def __init__(self, weight: float | Schedule = 1.0) -> None:
        super().__init__()
        # a negative weight would drive the student away from the teacher
        check_number(f"{type(self).__name__}(weight=...)", weight, positive=False)
        self.weight = weight
        self.progress = 0.0

    def build(self, student: ModelFacts, teacher: ModelFacts) -> None:
        """Check the two models and make what depends on them, such as projections.

        It is called once before training and may be called again for the same pair.

        Args:
            student: What is known of the student.
            teacher: What is known of the teacher.

        Raises:
            DistillationError: If this objective cannot compare the two.
        """

    def current_weight(self) -> float:
        """Return the weight at the present progress."""
        return value_at(self.weight, self.progress)

    def forward(self, student: Signals, teacher: Signals) -> Tensor:
        """Compare one student forward with the teacher's.

        Args:
            student: The student's signals, with a graph.
            teacher: The teacher's signals, without one.

        Returns:
            The cost, a float32 scalar. Zero with a graph where no position counts.
        """
        raise NotImplementedError(f"{type(self).__name__} does not compute anything: it needs a forward().")

    def over_records(self, students: Sequence[Signals], teachers: Sequence[Signals]) -> Tensor:
        """Compare all student forwards of one step with their teacher calls: the mean over them.

        Args:
            students: One `Signals` for each student forward, in order.
            teachers: The teacher's for the same inputs.

        Returns:
            The cost, a float32 scalar.

        Raises:
            DistillationError: If the student ran no forward in this step, or the teacher another number of them.
        """
        self.check_records(students, teachers)
        return torch.stack([self(s, t) for s, t in zip(students, teachers, strict=True)]).mean()

    def check_records(self, students: Sequence[Signals], teachers: Sequence[Signals]) -> None:
        """Refuse a step without a student forward, or with another number of teacher calls.

        Raises:
            DistillationError: In either case.
        """
        if not students or len(students) != len(teachers):
            raise DistillationError(
                f"{type(self).__name__} was given {len(students)} student forwards and {len(teachers)} teacher calls: "
                "it needs at least one student forward in a training step, and one teacher call for each."
            )
