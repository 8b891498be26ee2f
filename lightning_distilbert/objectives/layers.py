"""Which of the student's layers are compared with which of the teacher's."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import ClassVar, Literal, get_args

from lightning_distilbert.errors import DistillationError, check_choice
from lightning_distilbert.objectives.base import Objective
from lightning_distilbert.schedules import Schedule
from lightning_distilbert.signals import ModelFacts

LayerRule = Literal["last", "uniform", "every", "skip", "initialised", "auto"]
Pairs = tuple[tuple[int, int], ...]


class LayerPairs(Objective):
    r"""The base of objectives over pairs of layers.

    Layer ``i`` is the ``i``-th transformer layer, counted from 1; 0 is the embedding output. With :math:`L_S` and
    :math:`L_T` layers, the rules pair

    - ``last``: the last of each,
    - ``uniform``: each of the student's with one of the teacher's, evenly spread, first and last included,
    - ``every``: layer :math:`i` with layer :math:`\lceil i L_T / L_S \rceil`, every second of 12 for 6 (the map of
      TinyBERT and TextBrewer),
    - ``skip``: the same without the last of each (the PKD-Skip of Sun et al. 2019),
    - ``initialised``: each of the student's with the one that it was copied from, in this teacher or a model as deep,
    - ``auto``: the same where the student tells of as many, and ``uniform`` where it does not.

    Args:
        layers: A rule or a list of ``(student, teacher)`` pairs.
        weight: The factor of this term in the total loss, a number or a `Schedule`.

    Raises:
        DistillationError: If the rule is unknown or the list is malformed.
    """

    first_layer: ClassVar[int] = 1

    def __init__(self, layers: LayerRule | list[tuple[int, int]], weight: float | Schedule = 1.0) -> None:
        super().__init__(weight)
        self.layers: LayerRule | Pairs = checked_layers(type(self).__name__, layers, self.first_layer)
        self.pairs: Pairs | None = None

    def build(self, student: ModelFacts, teacher: ModelFacts) -> None:
        """Choose the pairs of layers.

        Args:
            student: What is known of the student.
            teacher: What is known of the teacher.

        Raises:
            DistillationError: If a layer is out of range, or the rule does not apply to the two models.
        """
        # a foreign model may not say how deep it is: then its first forward does
        if student.num_layers is not None and teacher.num_layers is not None:
            self.pairs = self.pairs_of(student.num_layers, teacher.num_layers, student)
            copied = copied_pairs(student, student.num_layers, teacher.num_layers)
            # measured in docs/results.md; "skip" does no harm there, as its preset compares one token alone
            if self.layers in ("uniform", "every") and copied and not set(copied) <= set(self.pairs):
                warnings.warn(
                    f"{type(self).__name__}(layers={self.layers!r}) compares the layers {list(self.pairs)} (student, "
                    f"teacher), and the student's were copied as {list(copied)}: training first undoes what they do. "
                    "With layers='auto' each follows the one that it was copied from.",
                    stacklevel=2,
                )
        elif self.layers == "last" or not isinstance(self.layers, str):
            self.pairs = None
        else:
            raise DistillationError(
                f"{type(self).__name__}(layers={self.layers!r}) needs the numbers of layers, and {student.name} says "
                f"{student.num_layers}, {teacher.name} {teacher.num_layers}. Give the pairs as a list."
            )

    def pairs_of(self, student_layers: int, teacher_layers: int, student: ModelFacts | None = None) -> Pairs:
        """Resolve the layers for two depths.

        Args:
            student_layers: The student's number of layers.
            teacher_layers: The teacher's number of layers.
            student: What is known of the student, for ``initialised`` and ``auto``.

        Raises:
            DistillationError: If a layer is out of range, or the rule does not apply.
        """
        owner = f"{type(self).__name__}(layers={self.layers!r})"
        if not isinstance(self.layers, str):
            first = f"{self.first_layer}{' (embeddings)' if self.first_layer == 0 else ''}"
            for ours, theirs in self.layers:
                if ours > student_layers or theirs > teacher_layers:
                    raise DistillationError(
                        f"{type(self).__name__}(layers=...) has the pair ({ours}, {theirs}), which is out of range: "
                        f"the student's layers go from {first} to {student_layers}, the teacher's from "
                        f"{self.first_layer} to {teacher_layers}."
                    )
            return self.layers
        if self.layers == "last":
            return ((student_layers, teacher_layers),)
        copied = copied_pairs(student, student_layers, teacher_layers)
        if self.layers == "initialised" and not copied:
            told, depth = (None, None) if student is None else (student.initialised_from, student.initialised_depth)
            raise DistillationError(
                f"{owner} needs to know from which of the teacher's {teacher_layers} layers each of the student's "
                f"{student_layers} was copied, and the student says {list(told or ()) or None}"
                f"{'' if depth is None else f' of {depth}'}. Build the student from this teacher with build_student(), "
                "or use layers='auto', which then spreads them evenly."
            )
        if self.layers in ("initialised", "auto") and copied:
            return copied
        if student_layers > teacher_layers or (self.layers == "skip" and student_layers < 2):
            raise DistillationError(
                f"{owner} was given a student of {student_layers} layers and a teacher of {teacher_layers}: it needs "
                f"at least {2 if self.layers == 'skip' else 1} and no more than the teacher has. Give the pairs as a "
                "list."
            )
        # imported here, so that the maths alone does not load the models' room
        from lightning_distilbert.mapping import Rule, layer_choice

        rule: Rule = "every" if self.layers in ("every", "skip") else "uniform"
        spread = layer_choice(teacher_layers, student_layers, rule)
        pairs = tuple((ours + 1, theirs + 1) for ours, theirs in enumerate(spread))
        return pairs[:-1] if self.layers == "skip" else pairs

    def pairs_at(self, student_layers: int, teacher_layers: int) -> Pairs:
        """Return the pairs of layers, checked against the depths of what two forwards gave.

        Args:
            student_layers: The student's number of layers.
            teacher_layers: The teacher's number of layers.

        Raises:
            DistillationError: If a layer is missing.
        """
        pairs = self.pairs_of(student_layers, teacher_layers) if self.pairs is None else self.pairs
        if any(ours > student_layers or theirs > teacher_layers for ours, theirs in pairs):
            raise DistillationError(
                f"{type(self).__name__} compares the pairs {list(pairs)}, and the layers end at {student_layers} "
                f"(student) and {teacher_layers} (teacher)."
                + ("" if student_layers and teacher_layers else " A model that torch.compile made shows no layers.")
            )
        return pairs


def copied_pairs(student: ModelFacts | None, student_layers: int, teacher_layers: int) -> Pairs:
    """Return each of a student's layers with the one that it was copied from, or nothing where that is not known.

    Args:
        student: What is known of the student.
        student_layers: Its number of layers.
        teacher_layers: The teacher's number of layers.

    Example:
        >>> copied_pairs(ModelFacts("a student", initialised_from=(0, 2, 5)), 3, 6)
        ((1, 1), (2, 3), (3, 6))
    """
    if student is None or student.initialised_from is None:
        return ()
    chosen = tuple(student.initialised_from)
    # of a model with other layers than the teacher's they say nothing; students of old do not tell how many it had
    same = student.initialised_depth in (None, teacher_layers)
    if len(chosen) != student_layers or not same or not all(0 <= layer < teacher_layers for layer in chosen):
        return ()
    return tuple((ours + 1, theirs + 1) for ours, theirs in enumerate(chosen))


def checked_layers(owner: str, layers: LayerRule | Sequence[Sequence[int]], first_layer: int = 1) -> LayerRule | Pairs:
    """Return a layer rule as it is, and a list of pairs as tuples.

    Args:
        owner: The objective, for errors.
        layers: What was given.
        first_layer: The smallest number of a layer: 0 where the embedding output counts as one.

    Raises:
        DistillationError: If it is neither.

    Example:
        >>> checked_layers("HiddenStates", [[1, 2]])
        ((1, 2),)
    """
    if isinstance(layers, str):
        check_choice(f"{owner}(layers=...)", layers, get_args(LayerRule))
        return layers
    # YAML and checkpoints hold lists where Python has tuples
    pairs = list(layers) if isinstance(layers, (list, tuple)) else []
    valid = [
        isinstance(pair, (list, tuple))
        and len(pair) == 2
        and all(type(item) is int and item >= first_layer for item in pair)
        for pair in pairs
    ]
    if not pairs or not all(valid):
        raise DistillationError(
            f"{owner}(layers=...) was given {layers!r}: it takes one of {list(get_args(LayerRule))}, or a list of "
            f"(student, teacher) pairs of layers from {first_layer} on, such as [(3, 6), (6, 12)]."
        )
    return tuple((pair[0], pair[1]) for pair in pairs)
