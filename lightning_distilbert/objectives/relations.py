"""The objective on self-attention relations: the student's tokens relate to one another as the teacher's do."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor

from lightning_distilbert.errors import DistillationError, check_choice
from lightning_distilbert.functional.masking import both
from lightning_distilbert.functional.relations import relation_divergence
from lightning_distilbert.objectives.base import Objective
from lightning_distilbert.schedules import Schedule, check_number
from lightning_distilbert.signals import ModelFacts, Signals

Relation = Literal["queries", "keys", "values"]
LayerOption = int | Literal["last"]
RELATIONS: tuple[Relation, ...] = ("queries", "keys", "values")


class Relations(Objective):
    r"""Divergence between the relations of tokens in one layer of each model (MiniLM v2, Wang et al. 2021).

    The tokens' queries are related to one another, the keys too and the values too, in relation heads that need not be
    the attention heads; `lightning_distilbert.functional.relation_divergence` has the formula. With the weights
    :math:`\alpha_r` of the relations:

    .. math:: \mathcal{L} = \frac{1}{\sum_r \alpha_r} \sum_{r \in \{Q, K, V\}} \alpha_r \mathcal{L}_r

    It is a weighted mean and not the paper's sum: for that, multiply ``weight`` by the sum of ``weights``. No layer map
    is needed, and no projection: widths and numbers of attention heads may differ. ``relations=["values"]`` with the
    models' own number of heads is the value relation of MiniLM v1 (Wang et al. 2020, equation 6), beside which goes
    ``Attention(layers="last", metric="kl")``.

    Both models must split the text into the same tokens. Failure mode: only one layer is held, and only how its tokens
    relate, so that the student's own vectors are no stand-in for the teacher's: fine-tune it, with or without a
    teacher. Layers of the student above ``student_layer`` learn nothing.

    Args:
        heads: The number of relation heads, a divisor of both widths: 48 or 64 in the paper. None takes the teacher's
            number of attention heads.
        relations: Which relations, out of ``queries``, ``keys`` and ``values``.
        weights: One weight for each relation, at least 0; None weighs them alike.
        teacher_layer: ``last`` or the number of a layer, from 1. The paper takes the last of base-sized teachers and an
            upper middle one of large ones, 21 of 24 for BERT.
        student_layer: ``last`` or the number of a layer, from 1.
        weight: The factor of this term in the total loss, a number or a `Schedule`.

    Raises:
        DistillationError: If an option is malformed.

    Example:
        >>> objective = Relations(heads=2, relations=["values"])
        >>> values = torch.arange(24.0).reshape(1, 2, 3, 4) / 10
        >>> objective(Signals(values=(values,)), Signals(values=(values[..., :1], values)))
        tensor(0.)
    """

    requires = frozenset(RELATIONS)
    token_level = True
    name = "relations"

    def __init__(
        self,
        heads: int | None = None,
        relations: Sequence[Relation] = RELATIONS,
        weights: Sequence[float] | None = None,
        teacher_layer: LayerOption = "last",
        student_layer: LayerOption = "last",
        weight: float | Schedule = 1.0,
    ) -> None:
        super().__init__(weight)
        if isinstance(relations, str) or not relations or len(set(relations)) < len(relations):
            raise DistillationError(
                f"Relations(relations={relations!r}): it is a list of one or more of {list(RELATIONS)}, each once."
            )
        for relation in relations:
            check_choice("Relations(relations=...)", relation, RELATIONS)
        if heads is not None and not (type(heads) is int and heads >= 1):
            raise DistillationError(f"Relations(heads={heads!r}): it is a number of heads, at least 1, or None.")
        for option, layer in (("teacher_layer", teacher_layer), ("student_layer", student_layer)):
            if layer != "last" and not (type(layer) is int and layer >= 1):
                raise DistillationError(f"Relations({option}={layer!r}): it is 'last' or a layer, counted from 1.")
        self.heads = heads
        self.relations = tuple(relations)
        self.weights = (1.0,) * len(relations) if weights is None else tuple(weights)
        for factor in self.weights:
            if isinstance(factor, Schedule):
                raise DistillationError(
                    f"Relations(weights=...) holds a schedule, {type(factor).__name__}, and takes numbers. Give the "
                    "schedule as weight=..., for the whole term, or take one Relations for each relation."
                )
            check_number("Relations(weights=...)", factor, positive=False)
        if len(self.weights) != len(self.relations) or not sum(self.weights) > 0:
            raise DistillationError(
                f"Relations(weights={weights!r}): it needs one weight for each of {list(relations)}, not all of them 0."
            )
        self.teacher_layer = teacher_layer
        self.student_layer = student_layer
        # only what is compared has to be captured
        self.requires = frozenset(relations)

    def build(self, student: ModelFacts, teacher: ModelFacts) -> None:
        """Check that the layers exist and that the relation heads fit both models.

        Args:
            student: What is known of the student.
            teacher: What is known of the teacher.

        Raises:
            DistillationError: If they do not.
        """
        for facts, layer in ((student, self.student_layer), (teacher, self.teacher_layer)):
            if facts.num_layers is not None and layer != "last":
                _check_depth(facts.name, layer, facts.num_layers)
        if student.hidden_size is not None and teacher.hidden_size is not None:
            self.relation_heads(student.hidden_size, teacher.hidden_size, teacher.num_heads)

    def relation_heads(self, student_width: int, teacher_width: int, teacher_heads: int | None) -> int | None:
        """Return the number of relation heads for two widths.

        Args:
            student_width: The student's width over all heads.
            teacher_width: The teacher's.
            teacher_heads: The teacher's number of attention heads, or None if it is not known yet.

        Raises:
            DistillationError: If the number does not divide both widths.
        """
        heads = self.heads or teacher_heads
        if heads is not None and (student_width % heads or teacher_width % heads):
            common = math.gcd(student_width, teacher_width)
            divisors = [i for i in range(1, common + 1) if common % i == 0]
            source = "" if self.heads else ", as many as the teacher has,"
            raise DistillationError(
                f"Relations(heads={self.heads}): {heads} relation heads{source} do not divide both widths, "
                f"{student_width} (student) and {teacher_width} (teacher). Choose one of {divisors}."
            )
        return heads

    def forward(self, student: Signals, teacher: Signals) -> Tensor:
        """Compare the relations in one student forward with the teacher's.

        Args:
            student: With the ``queries``, ``keys`` or ``values`` asked for, each of shape
                ``(batch, heads, sequence, head_width)``.
            teacher: Likewise, with heads and head widths of its own.

        Returns:
            The cost, a float32 scalar of at least 0. Zero with a graph where no token counts.

        Raises:
            DistillationError: If a signal or a layer is missing, or shapes do not agree.
        """
        mask = both(student.mask, teacher.mask)
        terms = []
        for relation, factor in zip(self.relations, self.weights, strict=True):
            ours = _layer("student", getattr(student, relation), relation, self.student_layer)
            theirs = _layer("teacher", getattr(teacher, relation), relation, self.teacher_layer)
            heads = self.relation_heads(
                ours.shape[1] * ours.shape[3], theirs.shape[1] * theirs.shape[3], theirs.shape[1]
            )
            terms.append(factor * relation_divergence(ours, theirs, heads or 1, mask))
        return torch.stack(terms).sum() / sum(self.weights)


def _layer(name: str, signal: Sequence[Tensor] | None, relation: str, layer: LayerOption) -> Tensor:
    """Return the tensor of one layer."""
    if not signal:
        raise DistillationError(f"Relations needs {relation}, and the {name} gave none.")
    if layer == "last":
        return signal[-1]
    _check_depth(f"the {name}", layer, len(signal))
    return signal[layer - 1]


def _check_depth(name: str, layer: LayerOption, depth: int) -> None:
    if isinstance(layer, int) and layer > depth:
        raise DistillationError(f"Relations compares layer {layer} of {name}, which has {depth} layers.")
