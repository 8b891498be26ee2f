"""The objective on hidden states: the student's layers say what chosen layers of the teacher say."""

from __future__ import annotations

from typing import Literal, get_args

import torch
from torch import Tensor, nn

from lightning_distilbert.errors import DistillationError, check_choice
from lightning_distilbert.functional.hidden_states import Metric, hidden_state_distance
from lightning_distilbert.functional.masking import both, check_same_shape, first_tokens, full_precision, select
from lightning_distilbert.objectives.layers import LayerPairs, LayerRule, Pairs
from lightning_distilbert.schedules import Schedule
from lightning_distilbert.signals import ModelFacts, Signals

ProjectionOption = Literal["auto", "always", "never"]
TokensOption = Literal["all", "first"]


class HiddenStates(LayerPairs):
    r"""Distance of the student's hidden states from the teacher's, real token by real token.

    With :math:`P` the pairs of (student, teacher) layers, :math:`W` a learnt projection where there is one, and
    :math:`D` the mean distance of `lightning_distilbert.functional.hidden_state_distance`:

    .. math:: \mathcal{L} = \frac{1}{|P|} \sum_{(i, j) \in P} D(W_{ij} h^S_i, h^T_j)

    ``layers="last", metric="cosine"`` is the cosine term of DistilBERT (Sanh et al. 2019, section 2); ``"every",
    embeddings=True, metric="mse"`` with a projection is the hidden-state term of TinyBERT (Jiao et al. 2020, equations
    8 and 9; for a student that was cut out of its teacher take ``"auto"``); ``"skip", metric="normalized_mse",
    tokens="first"`` is patient distillation (Sun et al. 2019, equation 7). It is a mean over the pairs and not
    a sum, so that the weight means the same for any depth.

    Both models must split the text into the same tokens, unless only the first one is compared. Failure mode: a student
    with few layers cannot follow every layer of a deep teacher and still serve its task; with many pairs, lower the
    weight or let it fall in training. With ``tokens="first"`` nothing holds the other tokens, which a token-level task
    or mean pooling would need.

    Args:
        layers: ``last`` (the last layer of each), ``uniform`` (each student layer with one of the teacher's, evenly
            spread, first and last included), ``every`` (every k-th of the teacher's, so that 4 layers follow 3, 6, 9
            and 12), ``skip`` (the same without the last pair), ``initialised`` (each with the teacher layer that it
            was copied from), ``auto`` (the same where that is known, else ``uniform``), or a list of ``(student,
            teacher)`` pairs, where 0 is the embedding output and ``i`` the output of layer ``i``.
        metric: ``cosine``, ``mse`` or ``normalized_mse`` (``mse`` of vectors scaled to length 1).
        projection: ``auto`` (a linear map from the student's to the teacher's width where these differ), ``always``, or
            ``never``. The projections are trained with the student and thrown away after.
        tokens: ``all`` real tokens, or only the ``first`` one of each sequence, [CLS] in BERT's family.
        embeddings: Whether the embedding outputs are a pair as well, besides those of a layer rule.
        weight: The factor of this term in the total loss, a number or a `Schedule`.

    Raises:
        DistillationError: If an option is unknown, the list of pairs is malformed, or ``embeddings`` comes with a list.

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
    first_layer = 0

    def __init__(
        self,
        layers: LayerRule | list[tuple[int, int]] = "last",
        metric: Metric = "cosine",
        projection: ProjectionOption = "auto",
        tokens: TokensOption = "all",
        embeddings: bool = False,
        weight: float | Schedule = 1.0,
    ) -> None:
        super().__init__(layers, weight)
        owner = type(self).__name__
        check_choice(f"{owner}(metric=...)", metric, get_args(Metric))
        check_choice(f"{owner}(projection=...)", projection, get_args(ProjectionOption))
        check_choice(f"{owner}(tokens=...)", tokens, get_args(TokensOption))
        if not isinstance(embeddings, bool) or (embeddings and not isinstance(self.layers, str)):
            raise DistillationError(
                f"{owner}(embeddings={embeddings!r}, layers={layers!r}): it is True or False, and a list of pairs "
                "names the embedding outputs itself, as (0, 0)."
            )
        self.metric: Metric = metric
        self.projection = projection
        self.tokens = tokens
        self.embeddings = embeddings
        # every tokenizer gives a text a first token
        self.token_level = tokens == "all"
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
        super().build(student, teacher)
        # depths that are not known yet leave "last", which is one pair, or a list
        pairs = self.pairs_of(1, 1) if self.pairs is None and self.layers == "last" else self.pairs or self.layers
        fit_projections(self.projections, type(self).__name__, self.projection, len(pairs), student, teacher)

    def pairs_of(self, student_layers: int, teacher_layers: int, student: ModelFacts | None = None) -> Pairs:
        """Resolve the layers for two depths, with the embedding outputs in front if they are asked for.

        Args:
            student_layers: The student's number of layers.
            teacher_layers: The teacher's number of layers.
            student: What is known of the student, for ``initialised``.

        Raises:
            DistillationError: If a layer is out of range, or the rule does not apply.
        """
        pairs = super().pairs_of(student_layers, teacher_layers, student)
        return ((0, 0), *pairs) if self.embeddings else pairs

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
        owner = type(self).__name__
        if not student.hidden_states or not teacher.hidden_states:
            missing = "teacher" if student.hidden_states else "student"
            raise DistillationError(f"{owner} needs hidden states, and the {missing} gave none.")
        first = self.tokens == "first"
        mask = both(student.rows(), teacher.rows()) if first else both(student.mask, teacher.mask)
        terms = []
        pairs = self.pairs_at(len(student.hidden_states) - 1, len(teacher.hidden_states) - 1)
        for index, (i, j) in enumerate(pairs):
            ours, theirs = student.hidden_states[i], teacher.hidden_states[j]
            if first:
                ours, theirs = first_tokens(ours, student.mask), first_tokens(theirs, teacher.mask)
            check_same_shape("hidden states", ours, theirs, leading=True)
            # chosen before the projection: a NaN in the padding would reach the projection's own gradient
            left, right = project(select(ours, mask), self.projections, index), select(theirs, mask)
            check_widths(owner, left, right)
            terms.append(hidden_state_distance(left, right, metric=self.metric))
        return torch.stack(terms).mean()


def fit_projections(
    projections: nn.ModuleList,
    owner: str,
    option: str,
    count: int,
    student: ModelFacts,
    teacher: ModelFacts,
    kind: type[nn.Linear] = nn.Linear,
) -> None:
    """Bring a list of projections to what two models need; those of the right shape are kept.

    Args:
        projections: The list, changed in place.
        owner: The objective, for errors.
        option: ``auto``, ``always`` or ``never``.
        count: How many projections are needed, if any.
        student: The model whose ``hidden_size`` goes in.
        teacher: The model whose ``hidden_size`` comes out.
        kind: The class of a projection.

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
    projections.extend(kind(ours or 0, theirs or 0) for _ in range(count - len(kept)))


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
