"""The objective on sentence embeddings: the student puts each sentence where the teacher puts it."""

from __future__ import annotations

from typing import get_args

from torch import Tensor, nn

from lightning_distilbert.errors import DistillationError, check_choice
from lightning_distilbert.functional.hidden_states import Metric
from lightning_distilbert.functional.masking import both, check_same_shape, select
from lightning_distilbert.functional.sentence_embedding import embedding_distance
from lightning_distilbert.objectives.base import Objective
from lightning_distilbert.objectives.hidden_states import ProjectionOption, check_widths, fit_projections, project
from lightning_distilbert.objectives.orthogonal import OrthogonalLinear
from lightning_distilbert.schedules import Schedule
from lightning_distilbert.signals import ModelFacts, Signals


class SentenceEmbedding(Objective):
    r"""Distance of the student's sentence embeddings from the teacher's (Reimers and Gurevych 2020, section 2).

    .. math:: \mathcal{L}_{\cos} = \frac{1}{N} \sum_n 1 - \cos(W e^S_n, e^T_n) \qquad
        \mathcal{L}_{\mathrm{mse}} = \frac{1}{N d} \sum_n \|W e^S_n - e^T_n\|^2

    Where the widths differ :math:`W` is an orthogonal map that is learnt with the student (`OrthogonalLinear`): the
    student's embeddings are used without it later, and into a wider space it leaves their cosines as they are. Any
    linear map would let the student's own cosines be others than the teacher's.

    Failure mode: a teacher's embeddings that need more dimensions than the student has can only be met in part, and
    those of a narrower teacher say nothing of the student's other dimensions; add `Similarity`.

    Args:
        metric: ``cosine``, ``mse`` or ``normalized_mse`` (``mse`` of vectors scaled to length 1).
        projection: ``auto`` (an orthogonal map from the student's to the teacher's width where these differ),
            ``always``, or ``never``. It is trained with the student and thrown away after.
        weight: The factor of this term in the total loss, a number or a `Schedule`.

    Raises:
        DistillationError: If an option is unknown.

    Example:
        >>> import torch
        >>> objective = SentenceEmbedding()
        >>> objective(Signals(embedding=torch.tensor([[1.0, 0.0]])), Signals(embedding=torch.tensor([[0.0, 2.0]])))
        tensor(1.)
    """

    requires = frozenset({"embedding"})
    name = "sentence_embedding"

    def __init__(
        self,
        metric: Metric = "cosine",
        projection: ProjectionOption = "auto",
        weight: float | Schedule = 1.0,
    ) -> None:
        super().__init__(weight)
        check_choice("SentenceEmbedding(metric=...)", metric, get_args(Metric))
        check_choice("SentenceEmbedding(projection=...)", projection, get_args(ProjectionOption))
        self.metric: Metric = metric
        self.projection = projection
        self.projections = nn.ModuleList()

    def build(self, student: ModelFacts, teacher: ModelFacts) -> None:
        """Make the projection that the widths ask for; one of the right shape is kept.

        Args:
            student: What is known of the student.
            teacher: What is known of the teacher.

        Raises:
            DistillationError: If the widths differ and no projection is allowed.
        """
        kind = OrthogonalLinear
        fit_projections(self.projections, "SentenceEmbedding", self.projection, 1, student, teacher, kind)

    def forward(self, student: Signals, teacher: Signals) -> Tensor:
        """Compare the embeddings of one student forward with the teacher's.

        Args:
            student: With ``embedding`` of shape ``(batch, student_width)``.
            teacher: With ``embedding`` of shape ``(batch, teacher_width)``.

        Returns:
            The cost, a float32 scalar of at least 0. Zero with a graph where no row counts.

        Raises:
            DistillationError: If embeddings are missing or of shapes that do not agree.
        """
        ours, theirs = embeddings_of("SentenceEmbedding", student, teacher)
        rows = both(student.rows(), teacher.rows())
        left, right = project(select(ours, rows), self.projections, 0), select(theirs, rows)
        check_widths("SentenceEmbedding", left, right)
        return embedding_distance(left, right, metric=self.metric)


def embeddings_of(owner: str, student: Signals, teacher: Signals) -> tuple[Tensor, Tensor]:
    """Return both embeddings.

    Args:
        owner: The objective, for errors.
        student: The student's signals.
        teacher: The teacher's.

    Returns:
        The student's, of shape ``(batch, student_width)``, and the teacher's, of shape ``(batch, teacher_width)``.

    Raises:
        DistillationError: If one is missing, or they differ in their numbers of rows.
    """
    if student.embedding is None or teacher.embedding is None:
        missing = "student" if student.embedding is None else "teacher"
        raise DistillationError(f"{owner} needs sentence embeddings, and the {missing} gave none.")
    check_same_shape("embeddings", student.embedding, teacher.embedding, leading=True)
    return student.embedding, teacher.embedding
