"""The objective on margins: the student's answers beat other documents by as much as the teacher's."""

from __future__ import annotations

from torch import Tensor

from lightning_distilbert.functional.ranking import Candidates, Score, margin_mse
from lightning_distilbert.objectives.ranking import CandidateScores
from lightning_distilbert.schedules import Schedule, check_number, value_at


class MarginMSE(CandidateScores):
    r"""Mean squared error of the margins between answers and other documents (Hofstätter et al. 2020, section 4.1).

    With :math:`s_{i0}` the score of the document that answers query :math:`i`, and :math:`M` the pairs of a query and
    another candidate:

    .. math:: \mathcal{L} = \frac{1}{|M|} \sum_{(i, j) \in M}
        \left(\alpha (s^S_{i0} - s^S_{ij}) - (s^T_{i0} - s^T_{ij})\right)^2

    It takes the two student forwards of a step, queries and then documents; `CandidateScores` says how hard negatives
    stand among them, and where the teacher's scores come from: a cross-encoder's may. The other candidates are the hard
    negatives if there are any, else the answers of the other queries. A document that answers two queries of a batch
    does no harm: its margin is then small in both models.

    Failure mode: margins have the scale of the scores. Cosines lie in [-1, 1], where margins are small and the loss
    needs a large weight, and cannot follow dot products or a cross-encoder's logits without a ``scale``.

    Args:
        candidates: ``own`` (hard negatives), ``batch`` (all other documents of the batch) or ``auto``.
        score: ``cosine`` or ``dot``, of both models. The paper takes the dot product.
        scale: :math:`\alpha`, the factor of the student's scores, above 0, a number or a `Schedule`.
        weight: The factor of this term in the total loss, a number or a `Schedule`.

    Raises:
        DistillationError: If an option is unknown or out of range.

    Example:
        >>> import torch
        >>> from lightning_distilbert.signals import Signals
        >>> queries, documents = Signals(embedding=torch.eye(2)), Signals(embedding=torch.eye(2))
        >>> MarginMSE(scale=3.0).over_records([queries, documents], [queries, documents])
        tensor(4.)
    """

    name = "margin_mse"

    def __init__(
        self,
        candidates: Candidates = "auto",
        score: Score = "cosine",
        scale: float | Schedule = 1.0,
        weight: float | Schedule = 1.0,
    ) -> None:
        super().__init__(candidates, score, weight)
        check_number("MarginMSE(scale=...)", scale, positive=True)
        self.scale = scale

    def compare(self, student_scores: Tensor, teacher_scores: Tensor, mask: Tensor, given: bool = False) -> Tensor:
        """Compare the margins of two sets of scores.

        Args:
            student_scores: Of shape ``(batch, candidates)``, the answer in column 0.
            teacher_scores: Of the same shape.
            mask: Of the same shape, True where a candidate counts.
            given: Whether the teacher's are those of a cross-encoder or of the data, and no similarities.

        Returns:
            The cost, a float32 scalar of at least 0.
        """
        return margin_mse(value_at(self.scale, self.progress) * student_scores, teacher_scores, mask)
