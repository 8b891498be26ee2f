"""The objective on similarities: the student ranks the sentences of a batch as the teacher ranks them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, get_args

from torch import Tensor

from lightning_distilbert.errors import DistillationError, check_choice
from lightning_distilbert.functional.masking import both
from lightning_distilbert.functional.similarity import similarity_divergence
from lightning_distilbert.objectives.base import Objective
from lightning_distilbert.objectives.sentence_embedding import embeddings_of
from lightning_distilbert.schedules import Schedule, check_number, value_at
from lightning_distilbert.signals import Signals

PairsOption = Literal["auto", "within", "across"]


class Similarity(Objective):
    r"""Divergence between the rankings that student and teacher give to the sentences of a batch.

    With :math:`s_{ij}` the cosine of sentences :math:`i` and :math:`j` (as SEED, Fang et al. 2021, section 3):

    .. math:: \mathcal{L} = \frac{1}{N} \sum_i \mathrm{KL}\left(\mathrm{softmax}_j(s^T_{ij} / \tau) \,\|\,
        \mathrm{softmax}_j(s^S_{ij} / \tau)\right)

    The loss is in nats, without a factor :math:`\tau^2`; `lightning_distilbert.functional.similarity_divergence` says
    why, and how a temperature fails. It needs no projection: the widths of student and teacher may differ.

    Args:
        temperature: :math:`\tau`, above 0, a number or a `Schedule`. Take the one that the retrieval model is used or
            trained with.
        pairs: ``across``: the sentences of the step's first student forward (queries) rank those of its second
            (documents, hard negatives among them). ``within``: the sentences of each forward rank one another.
            ``auto``: across if there were exactly two forwards in the step, else within.
        weight: The factor of this term in the total loss, a number or a `Schedule`.

    Raises:
        DistillationError: If an option is out of range.

    Example:
        >>> import torch
        >>> objective = Similarity()
        >>> objective(Signals(embedding=torch.eye(3, 8)), Signals(embedding=torch.eye(3)))
        tensor(0.)
    """

    requires = frozenset({"embedding"})
    name = "similarity"

    def __init__(
        self,
        temperature: float | Schedule = 0.05,
        pairs: PairsOption = "auto",
        weight: float | Schedule = 1.0,
    ) -> None:
        super().__init__(weight)
        check_number("Similarity(temperature=...)", temperature, positive=True)
        check_choice("Similarity(pairs=...)", pairs, get_args(PairsOption))
        self.temperature = temperature
        self.pairs = pairs

    def forward(self, student: Signals, teacher: Signals) -> Tensor:
        """Compare how student and teacher rank the sentences of one forward among themselves.

        Args:
            student: With ``embedding`` of shape ``(batch, student_width)``.
            teacher: With ``embedding`` of shape ``(batch, teacher_width)``.

        Returns:
            The cost, a float32 scalar of at least 0. Zero with a graph where fewer than two rows count.

        Raises:
            DistillationError: If embeddings are missing or their numbers of rows differ.
        """
        ours, theirs = embeddings_of("Similarity", student, teacher)
        return similarity_divergence(
            ours,
            theirs,
            rows=both(student.rows(), teacher.rows()),
            temperature=value_at(self.temperature, self.progress),
        )

    def over_records(self, students: Sequence[Signals], teachers: Sequence[Signals]) -> Tensor:
        """Compare all student forwards of one step with their teacher calls, as ``pairs`` says.

        Args:
            students: One `Signals` for each student forward, in order.
            teachers: The teacher's for the same inputs.

        Returns:
            The cost, a float32 scalar: of the first against the second, or the mean over all.

        Raises:
            DistillationError: If ``across`` does not get two forwards, the second with as many rows for each of the
                first.
        """
        self.check_records(students, teachers)
        if self.pairs == "within" or (self.pairs == "auto" and len(students) != 2):
            return super().over_records(students, teachers)
        if len(students) != 2:
            raise DistillationError(
                "Similarity(pairs='across') compares the first student forward of a step with its second (queries with "
                f"documents), and there were {len(students)}. Use pairs='within' for one set of sentences."
            )
        (left, teacher_left), (right, teacher_right) = (
            embeddings_of("Similarity", student, teacher) for student, teacher in zip(students, teachers, strict=True)
        )
        if not len(left) or len(right) % len(left):
            raise DistillationError(
                f"Similarity(pairs={self.pairs!r}) compares the first student forward of a step with its second, and "
                f"they hold {len(left)} and {len(right)} rows: it needs as many documents for each query. Use "
                "pairs='within' for sets that do not belong together."
            )
        rows, rows_right = (both(s.rows(), t.rows()) for s, t in zip(students, teachers, strict=True))
        return similarity_divergence(
            left,
            teacher_left,
            right,
            teacher_right,
            rows=rows,
            rows_right=rows_right,
            temperature=value_at(self.temperature, self.progress),
        )
