"""The objective on hidden states: the student's layers say what chosen layers of the teacher say."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, get_args

import torch
from torch import Tensor, nn

from lightning_distilbert.errors import DistillationError, check_choice
from lightning_distilbert.functional.hidden_states import Metric, hidden_state_distance
from lightning_distilbert.functional.masking import both, check_same_shape, full_precision, select
from lightning_distilbert.objectives.base import Objective
from lightning_distilbert.schedules import Schedule
from lightning_distilbert.signals import ModelFacts, Signals

LayerRule = Literal["last", "uniform", "initialised"]
ProjectionOption = Literal["auto", "always", "never"]
Pairs = tuple[tuple[int, int], ...]


class HiddenStates(Objective):
    r"""Distance of the student's hidden states from the teacher's, real token by real token.

    With :math:`P` the pairs of (student, teacher) layers, :math:`W` a learnt projection where there is one, and
    :math:`D` the mean cosine or squared distance of `lightning_distilbert.functional.hidden_state_distance`:

    .. math:: \mathcal{L} = \frac{1}{|P|} \sum_{(i, j) \in P} D(W_{ij} h^S_i, h^T_j)

    ``layers="last", metric="cosine"`` is the cosine term of DistilBERT (Sanh et al. 2019, section 2); ``"uniform",
    metric="mse"`` with a projection is the hidden-state term of TinyBERT (Jiao et al. 2020, section 3). It is a mean
    over the pairs and not TinyBERT's sum, so that the weight means the same for any depth.

    Both models must split the text into the same tokens. Failure mode: a student with few layers cannot follow every
    layer of a deep teacher and still serve its task; with many pairs, lower the weight or let it fall in training.

    Args:
        layers: ``last`` (the last layer of each), ``uniform`` (each student layer with one of the teacher's, evenly
            spread, first and last included), ``initialised`` (each with the teacher layer that it was copied from), or
            a list of ``(student, teacher)`` pairs, where 0 is the embedding output and ``i`` the output of layer ``i``.
        metric: ``cosine`` or ``mse``.
        projection: ``auto`` (a linear map from the student's to the teacher's width where these differ), ``always``, or
            ``never``. The projections are trained with the student and thrown away after.
        weight: The factor of this term in the total loss, a number or a `Schedule`.

    Raises:
        DistillationError: If an option is unknown or the list of pairs is malformed.

    Example:
        >>> objective = HiddenStates(layers=[(1, 2)])
        >>> student = Signals(hidden_states=(torch.zeros(1, 1, 2), torch.tensor([[[1.0, 0.0]]])))
        >>> teacher = Signals(hidden_states=(*student.hidden_states, torch.tensor([[[0.0, 5.0]]])))
        >>> objective(student, teacher)
        tensor(1.)
    """

    requires = frozenset({"hidden_states"})
    token_level = True
    name = "hidden_states"

    def __init__(
        self,
        layers: LayerRule | list[tuple[int, int]] = "last",
        metric: Metric = "cosine",
        projection: ProjectionOption = "auto",
        weight: float | Schedule = 1.0,
    ) -> None:
        super().__init__(weight)
        check_choice("HiddenStates(metric=...)", metric, get_args(Metric))
        check_choice("HiddenStates(projection=...)", projection, get_args(ProjectionOption))
        self.layers: LayerRule | Pairs = checked_layers(layers)
        self.metric: Metric = metric
        self.projection = projection
        self.pairs: Pairs | None = None
        self.projections = nn.ModuleList()

    def build(self, student: ModelFacts, teacher: ModelFacts) -> None:
        """Choose the pairs of layers, and make the projections that their widths ask for.

        Projections of the right shape are kept, so that a second call does not undo training.

        Args:
            student: What is known of the student.
            teacher: What is known of the teacher.

        Raises:
            DistillationError: If a layer is out of range, the layer rule does not apply to the two models, or the
                widths differ and no projection is allowed.
        """
        # a foreign model may not say how deep it is: then its first forward does
        if student.num_layers is not None and teacher.num_layers is not None:
            self.pairs = self._pairs_of(student.num_layers, teacher.num_layers, student)
        elif self.layers == "last" or not isinstance(self.layers, str):
            self.pairs = None
        else:
            raise DistillationError(
                f"HiddenStates(layers={self.layers!r}) needs the numbers of layers, and {student.name} says "
                f"{student.num_layers}, {teacher.name} {teacher.num_layers}. Give the pairs as a list."
            )
        count = len(self.layers if not isinstance(self.layers, str) else self.pairs or [None])
        fit_projections(self.projections, "HiddenStates", self.projection, count, student, teacher)

    def _pairs_of(self, student_layers: int, teacher_layers: int, student: ModelFacts | None = None) -> Pairs:
        """Resolve the layer rule for two depths."""
        if not isinstance(self.layers, str):
            for ours, theirs in self.layers:
                if not (0 <= ours <= student_layers and 0 <= theirs <= teacher_layers):
                    raise DistillationError(
                        f"HiddenStates(layers=...) has the pair ({ours}, {theirs}), which is out of range: the "
                        f"student's hidden states go from 0 (embeddings) to {student_layers}, the teacher's from 0 to "
                        f"{teacher_layers}."
                    )
            return self.layers
        if self.layers == "last":
            return ((student_layers, teacher_layers),)
        if self.layers == "uniform":
            # imported here, so that the maths alone does not load the models' room
            from lightning_distilbert.mapping import layer_choice

            chosen = layer_choice(teacher_layers, student_layers)
        else:
            chosen = () if student is None or student.initialised_from is None else student.initialised_from
            if len(chosen) != student_layers or not all(0 <= layer < teacher_layers for layer in chosen):
                raise DistillationError(
                    f"HiddenStates(layers='initialised') needs to know from which of the teacher's {teacher_layers} "
                    f"layers each of the student's {student_layers} was copied, and the student says "
                    f"{list(chosen) or None}. Build the student from this teacher with build_student(), or use "
                    "layers='uniform'."
                )
        return tuple((ours + 1, theirs + 1) for ours, theirs in enumerate(chosen))

    def forward(self, student: Signals, teacher: Signals) -> Tensor:
        """Compare the hidden states of one student forward with the teacher's.

        Args:
            student: With ``hidden_states``, each of shape ``(batch, sequence, student_width)``.
            teacher: With ``hidden_states``, each of shape ``(batch, sequence, teacher_width)``.

        Returns:
            The cost, a float32 scalar of at least 0. Zero with a graph where no token counts.

        Raises:
            DistillationError: If hidden states are missing, too few, or of shapes that do not agree.
        """
        if not student.hidden_states or not teacher.hidden_states:
            missing = "teacher" if student.hidden_states else "student"
            raise DistillationError(f"HiddenStates needs hidden states, and the {missing} gave none.")
        depths = len(student.hidden_states) - 1, len(teacher.hidden_states) - 1
        pairs = self._pairs_of(*depths) if self.pairs is None else self.pairs
        if any(ours > depths[0] or theirs > depths[1] for ours, theirs in pairs):
            raise DistillationError(
                f"HiddenStates compares the pairs {list(pairs)}, and the hidden states end at {depths[0]} (student) "
                f"and {depths[1]} (teacher)."
            )
        mask = both(student.mask, teacher.mask)
        terms = []
        for index, (ours, theirs) in enumerate(pairs):
            check_same_shape("hidden states", student.hidden_states[ours], teacher.hidden_states[theirs], leading=True)
            # chosen before the projection: a NaN in the padding would reach the projection's own gradient
            left, right = select(student.hidden_states[ours], mask), select(teacher.hidden_states[theirs], mask)
            left = project(left, self.projections, index)
            check_widths("HiddenStates", left, right)
            terms.append(hidden_state_distance(left, right, metric=self.metric))
        return torch.stack(terms).mean()


def checked_layers(layers: LayerRule | Sequence[Sequence[int]]) -> LayerRule | Pairs:
    """Return a layer rule as it is, and a list of pairs as tuples.

    Raises:
        DistillationError: If it is neither.

    Example:
        >>> checked_layers([[1, 2]])
        ((1, 2),)
    """
    if isinstance(layers, str):
        check_choice("HiddenStates(layers=...)", layers, get_args(LayerRule))
        return layers
    # YAML and checkpoints hold lists where Python has tuples
    pairs = list(layers) if isinstance(layers, (list, tuple)) else []
    valid = [
        isinstance(pair, (list, tuple)) and len(pair) == 2 and all(type(item) is int and item >= 0 for item in pair)
        for pair in pairs
    ]
    if not pairs or not all(valid):
        raise DistillationError(
            f"HiddenStates(layers=...) was given {layers!r}: it takes one of {list(get_args(LayerRule))}, or a list of "
            "(student, teacher) pairs of indices from 0 (embeddings) on, such as [(3, 6), (6, 12)]."
        )
    return tuple((pair[0], pair[1]) for pair in pairs)


def fit_projections(
    projections: nn.ModuleList, owner: str, option: str, count: int, student: ModelFacts, teacher: ModelFacts
) -> None:
    """Bring a list of projections to what two models need; those of the right shape are kept.

    Args:
        projections: The list, changed in place.
        owner: The objective, for errors.
        option: ``auto``, ``always`` or ``never``.
        count: How many projections are needed, if any.
        student: The model whose ``hidden_size`` goes in.
        teacher: The model whose ``hidden_size`` comes out.

    Raises:
        DistillationError: If the widths differ under ``never``, or are unknown under ``always``.

    Example:
        >>> projections = nn.ModuleList()
        >>> student, teacher = ModelFacts("a", hidden_size=2), ModelFacts("b", hidden_size=3)
        >>> fit_projections(projections, "HiddenStates", "auto", 1, student, teacher)
        >>> projections
        ModuleList(
          (0): Linear(in_features=2, out_features=3, bias=True)
        )
    """
    ours, theirs = student.hidden_size, teacher.hidden_size
    known = ours is not None and theirs is not None
    if option == "always" and not known:
        raise DistillationError(
            f"{owner}(projection='always') needs the widths of both models, and {student.name} says {ours}, "
            f"{teacher.name} {theirs}. Give the models a config with hidden_size."
        )
    if option == "never" and known and ours != theirs:
        raise DistillationError(
            f"{owner}(projection='never'): {student.name} has the width {ours} and {teacher.name} {theirs}, which can "
            "only be compared through a projection. Use projection='auto'."
        )
    if ours is None or theirs is None or option == "never" or (option == "auto" and ours == theirs):
        count = 0
    kept = [layer for layer in projections if (layer.in_features, layer.out_features) == (ours, theirs)][:count]
    if len(kept) == len(projections) == count:
        return
    while len(projections):
        projections.pop(-1)
    projections.extend(kept)
    projections.extend(nn.Linear(ours or 0, theirs or 0) for _ in range(count - len(kept)))


def project(selected: Tensor, projections: nn.ModuleList, index: int) -> Tensor:
    """Send vectors of shape ``(N, student_width)`` through a projection if there is one; in float32.

    Example:
        >>> project(torch.zeros(2, 4, dtype=torch.bfloat16), nn.ModuleList([nn.Linear(4, 3)]), 0).shape
        torch.Size([2, 3])
    """
    if not len(projections):
        return selected
    layer = projections[index]
    with full_precision(selected):
        return layer(selected.to(next(layer.parameters()).dtype)).float()


def check_widths(owner: str, student: Tensor, teacher: Tensor) -> None:
    """Refuse vectors of different widths where no projection was made.

    Raises:
        DistillationError: If the last axes differ.
    """
    if student.shape[-1] != teacher.shape[-1]:
        raise DistillationError(
            f"{owner} compares vectors of width {student.shape[-1]} (student) and {teacher.shape[-1]} (teacher), and "
            "has no projection for that: a model did not say its hidden_size. Give it a config that does."
        )
