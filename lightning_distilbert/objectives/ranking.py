"""What objectives on the scores of retrieval candidates share."""

from __future__ import annotations

from collections.abc import Sequence
from typing import get_args

from torch import Tensor

from lightning_distilbert.errors import DistillationError, check_choice
from lightning_distilbert.functional.masking import both
from lightning_distilbert.functional.ranking import Candidates, Score, arrange_scores, candidate_scores
from lightning_distilbert.objectives.base import Objective
from lightning_distilbert.objectives.sentence_embedding import embeddings_of
from lightning_distilbert.schedules import Schedule
from lightning_distilbert.signals import Signals


class CandidateScores(Objective):
    """The base of objectives that compare how student and teacher score the candidates of each query.

    It takes the two student forwards of a step: first the queries, then their documents. Of a batch of ``B`` queries
    the documents of query ``i`` stand in rows ``i``, ``i + B``, ``i + 2 * B`` and so on: first the documents that
    answer the queries, in the queries' order, then one hard negative for each, then a second.

    The teacher's scores come from the first of these that there is:

    - a teacher that is a cross-encoder (a sequence classifier with one output), which reads each query together with
      its candidates, unless the batch brings all scores that are needed;
    - ``scores`` in the batch, which were saved with the data, of shape ``(B, k)``, NaN where there is none: where a
      query is compared with its own documents;
    - the teacher's embeddings.

    Args:
        candidates: ``own``: a query's answer and its hard negatives. ``batch``: its answer and all other documents of
            the batch, which saved scores do not know. ``auto``: ``own`` if there are hard negatives, else ``batch``.
        score: ``cosine`` or ``dot``, of the student's embeddings and the teacher's.
        weight: The factor of this term in the total loss, a number or a `Schedule`.

    Raises:
        DistillationError: If an option is unknown.
    """

    requires = frozenset({"embedding"})

    def __init__(self, candidates: Candidates, score: Score, weight: float | Schedule = 1.0) -> None:
        super().__init__(weight)
        check_choice(f"{type(self).__name__}(candidates=...)", candidates, get_args(Candidates))
        check_choice(f"{type(self).__name__}(score=...)", score, get_args(Score))
        self.candidates: Candidates = candidates
        self.score: Score = score

    def takes_own(self, documents: int) -> bool:
        """Tell whether a query is compared with its own documents only.

        Args:
            documents: How many documents there are for each query.
        """
        return self.candidates == "own" or (self.candidates == "auto" and documents > 1)

    def compare(self, student_scores: Tensor, teacher_scores: Tensor, mask: Tensor, given: bool = False) -> Tensor:
        """Compare two sets of scores.

        Args:
            student_scores: Of shape ``(batch, candidates)``, the answer in column 0.
            teacher_scores: Of the same shape.
            mask: Of the same shape, True where a candidate counts.
            given: Whether the teacher's are those of a cross-encoder or of the data, and no similarities.

        Returns:
            The cost, a float32 scalar.
        """
        raise NotImplementedError(f"{type(self).__name__} does not compare anything: it needs a compare().")

    def forward(self, student: Signals, teacher: Signals) -> Tensor:
        """Refuse one forward alone: it holds queries without documents.

        Raises:
            DistillationError: Always.
        """
        return self.over_records([student], [teacher])

    def over_records(self, students: Sequence[Signals], teachers: Sequence[Signals]) -> Tensor:
        """Compare the scores from the two student forwards of one step with those of the teacher.

        Args:
            students: Two `Signals`, of queries and of their documents, with ``embedding``.
            teachers: The teacher's for the same inputs, with ``embedding``, or with ``scores`` in the second.

        Returns:
            The cost, a float32 scalar of at least 0. Zero with a graph where nothing counts.

        Raises:
            DistillationError: If there are not two forwards, embeddings are missing, or the documents are not as many
                for each query.
        """
        self.check_records(students, teachers)
        owner = type(self).__name__
        if len(students) != 2:
            raise DistillationError(
                f"{owner} scores the documents of a step's second student forward for the queries of its first, and "
                f"there were {len(students)} forwards in the step. It belongs to a retrieval task that encodes both."
            )
        queries, documents = (embeddings_of(owner, student, student)[0] for student in students)
        if not len(queries) or not len(documents) or len(documents) % len(queries):
            raise DistillationError(
                f"{owner} was given {len(queries)} queries and {len(documents)} documents: it needs the same number of "
                "documents for each query, first all answers, then one hard negative for each query, and so on."
            )
        own = self.takes_own(len(documents) // len(queries))
        if own and len(documents) == len(queries):
            raise DistillationError(
                f"{owner}(candidates='own') was given one document a query, so that there is nothing to rank: bring "
                "hard negatives, or use candidates='batch'."
            )
        options: tuple[Candidates, Score] = ("own" if own else "batch", self.score)
        given = teachers[1].scores
        if given is not None and (own or given.shape[1] == len(documents)):
            ours, mask = candidate_scores(queries, documents, students[0].rows(), students[1].rows(), *options)
            theirs = arrange_scores(given.detach().to(ours.device), len(documents), own)
            return self.compare(ours, theirs, mask & theirs.isfinite(), given=True)
        teacher_sides = [embeddings_of(owner, s, t)[1].detach() for s, t in zip(students, teachers, strict=True)]
        rows, document_rows = (both(s.rows(), t.rows()) for s, t in zip(students, teachers, strict=True))
        ours, mask = candidate_scores(queries, documents, rows, document_rows, *options)
        theirs, _ = candidate_scores(teacher_sides[0], teacher_sides[1], rows, document_rows, *options)
        return self.compare(ours, theirs, mask)
