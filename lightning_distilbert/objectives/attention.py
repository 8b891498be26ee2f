"""The objective on attention scores: the student's heads look where the teacher's heads look."""

from __future__ import annotations

from typing import get_args

import torch
from torch import Tensor

from lightning_distilbert.errors import DistillationError, check_choice
from lightning_distilbert.functional.attention import AttentionMetric, attention_distance
from lightning_distilbert.functional.masking import both
from lightning_distilbert.objectives.layers import LayerPairs, LayerRule
from lightning_distilbert.schedules import Schedule
from lightning_distilbert.signals import ModelFacts, Signals


class Attention(LayerPairs):
    r"""Distance of the student's attention scores from the teacher's, head by head (TinyBERT, Jiao et al. 2020, eq. 7).

    With :math:`P` the pairs of layers, :math:`A` the scores before softmax, and :math:`D` their mean squared distance
    or mean divergence over heads and real tokens, of `lightning_distilbert.functional.attention_distance`:

    .. math:: \mathcal{L} = \frac{1}{|P|} \sum_{(i, j) \in P} D(A^S_i, A^T_j)

    It is a mean over the pairs and not TinyBERT's sum, so that the weight means the same for any depth.

    Both models must split the text into the same tokens and have the same number of heads. Failure mode: it tells the
    student where to look and nothing of what is there; TinyBERT adds `HiddenStates`. Heads of a student that was not
    cut out of this teacher have to be re-ordered by training before this term means anything.

    Args:
        layers: ``auto``, ``last``, ``uniform``, ``every``, ``skip`` or ``initialised``, as `HiddenStates` explains
            them, or a list of ``(student, teacher)`` pairs of layers, counted from 1.
        metric: ``mse`` (TinyBERT: the scores) or ``kl`` (MiniLM, Wang et al. 2020: the distributions over real keys).
        weight: The factor of this term in the total loss, a number or a `Schedule`.

    Raises:
        DistillationError: If an option is unknown or the list of pairs is malformed.

    Example:
        >>> objective = Attention(layers="last")
        >>> student = Signals(attention_scores=[torch.zeros(1, 1, 2, 2)])
        >>> teacher = Signals(attention_scores=[torch.ones(1, 1, 2, 2), torch.full((1, 1, 2, 2), 3.0)])
        >>> objective(student, teacher)
        tensor(9.)
    """

    requires = frozenset({"attention_scores"})
    token_level = True
    name = "attention"

    def __init__(
        self,
        layers: LayerRule | list[tuple[int, int]] = "auto",
        metric: AttentionMetric = "mse",
        weight: float | Schedule = 1.0,
    ) -> None:
        super().__init__(layers, weight)
        check_choice("Attention(metric=...)", metric, get_args(AttentionMetric))
        self.metric: AttentionMetric = metric

    def build(self, student: ModelFacts, teacher: ModelFacts) -> None:
        """Choose the pairs of layers, and check that both models have the same number of heads.

        Args:
            student: What is known of the student.
            teacher: What is known of the teacher.

        Raises:
            DistillationError: If the numbers of heads differ, a layer is out of range, or the layer rule does not apply
                to the two models.
        """
        super().build(student, teacher)
        if None not in (student.num_heads, teacher.num_heads) and student.num_heads != teacher.num_heads:
            raise DistillationError(
                f"Attention compares head by head, but {student.name} has {student.num_heads} heads and {teacher.name} "
                f"{teacher.num_heads}. Relations has no such limit, or give the student the teacher's number of heads."
            )

    def forward(self, student: Signals, teacher: Signals) -> Tensor:
        """Compare the attention scores of one student forward with the teacher's.

        Args:
            student: With ``attention_scores``, each of shape ``(batch, heads, sequence, sequence)``.
            teacher: With ``attention_scores`` of the same shape.

        Returns:
            The cost, a float32 scalar of at least 0. Zero with a graph where no token counts.

        Raises:
            DistillationError: If scores are missing, too few, or of shapes that do not agree.
        """
        ours, theirs = student.attention_scores, teacher.attention_scores
        if not ours or not theirs:
            missing = "teacher" if ours else "student"
            raise DistillationError(f"Attention needs attention scores, and the {missing} gave none.")
        # imported here, so that the maths alone does not load the models' room
        from lightning_distilbert.attention import AttentionScores

        mask = both(student.mask, teacher.mask)
        ours, theirs = (s.at_tokens(mask) if isinstance(s, AttentionScores) else s for s in (ours, theirs))
        # layer i is the i-th from 1 on, and the scores are counted from 0
        terms = [
            attention_distance(ours[i - 1], theirs[j - 1], mask, self.metric)
            for i, j in self.pairs_at(len(ours), len(theirs))
        ]
        return torch.stack(terms).mean()
