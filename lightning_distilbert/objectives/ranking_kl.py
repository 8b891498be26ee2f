"""The objective on rankings: the student ranks each query's candidates as the teacher ranks them."""

from __future__ import annotations

from torch import Tensor

from lightning_distilbert.functional.ranking import Candidates, Score, ranking_kl
from lightning_distilbert.objectives.ranking import CandidateScores
from lightning_distilbert.schedules import Schedule, check_number, value_at


class RankingKL(CandidateScores):
    r"""Divergence between the rankings that student and teacher give to each query's candidates (Lin et al. 2021).

    .. math:: \mathcal{L} = \frac{1}{N} \sum_i \mathrm{KL}\left(\mathrm{softmax}_j(s^T_{ij} / \tau_T) \,\|\,
        \mathrm{softmax}_j(s^S_{ij} / \tau)\right)

    It takes the two student forwards of a step, queries and then documents; `CandidateScores` says how hard negatives
    stand among them, and where the teacher's scores come from: a cross-encoder's may. With in-batch candidates and no
    hard negatives it is ``Similarity(pairs="across")``; this one knows hard negatives and dot products.

    Failure mode: with ``own`` candidates the ranking is as long as a query has hard negatives, and a single easy one
    teaches nothing. The temperature fails as in `Similarity`.

    Args:
        candidates: ``own`` (the answer and the hard negatives), ``batch`` (all documents of the batch) or ``auto``
            (``own`` if there are hard negatives).
        score: ``cosine`` or ``dot``, of both models.
        temperature: :math:`\tau`, above 0, a number or a `Schedule`; about 1 for dot products, far less for cosines.
        weight: The factor of this term in the total loss, a number or a `Schedule`.
        teacher_temperature: :math:`\tau_T`, above 0, a number or a `Schedule`. None is :math:`\tau` where the teacher
            scores by its embeddings, and 1 where a cross-encoder or the data bring scores, which are taken for logits:
            these have another scale than cosines. If the ``scores`` of your data are others, name the temperature.

    Raises:
        DistillationError: If an option is unknown or out of range.

    Example:
        >>> import torch
        >>> from lightning_distilbert.signals import Signals
        >>> ours, swapped = Signals(embedding=torch.eye(2)), Signals(embedding=torch.eye(2).flip(0))
        >>> RankingKL(temperature=1.0).over_records([ours, swapped], [ours, ours])
        tensor(0.4621)
    """

    name = "ranking_kl"

    def __init__(
        self,
        candidates: Candidates = "auto",
        score: Score = "cosine",
        temperature: float | Schedule = 0.05,
        weight: float | Schedule = 1.0,
        teacher_temperature: float | Schedule | None = None,
    ) -> None:
        super().__init__(candidates, score, weight)
        check_number("RankingKL(temperature=...)", temperature, positive=True)
        if teacher_temperature is not None:
            check_number("RankingKL(teacher_temperature=...)", teacher_temperature, positive=True)
        self.temperature = temperature
        self.teacher_temperature = teacher_temperature

    def compare(self, student_scores: Tensor, teacher_scores: Tensor, mask: Tensor, given: bool = False) -> Tensor:
        """Compare the rankings of two sets of scores.

        Args:
            student_scores: Of shape ``(batch, candidates)``, the answer in column 0.
            teacher_scores: Of the same shape.
            mask: Of the same shape, True where a candidate counts.
            given: Whether the teacher's are those of a cross-encoder or of the data, and no similarities.

        Returns:
            The cost, a float32 scalar of at least 0.
        """
        ours = value_at(self.temperature, self.progress)
        theirs = 1.0 if given else ours
        if self.teacher_temperature is not None:
            theirs = value_at(self.teacher_temperature, self.progress)
        return ranking_kl(student_scores, teacher_scores, mask, ours, theirs)
