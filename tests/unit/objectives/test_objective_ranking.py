"""What objectives on candidates share: two forwards, and where hard negatives stand."""

from __future__ import annotations

import pytest
import torch

from lightning_distilbert.errors import DistillationError
from lightning_distilbert.functional import candidate_scores
from lightning_distilbert.objectives import MarginMSE, RankingKL
from lightning_distilbert.signals import Signals

classes = pytest.mark.parametrize("kind", [MarginMSE, RankingKL])


def embedded(rows, width, seed, mask=None):
    return Signals(embedding=torch.randn(rows, width, generator=torch.Generator().manual_seed(seed)), mask=mask)


def records(documents=1):
    return [embedded(3, 4, 0), embedded(3 * documents, 4, 1)], [embedded(3, 6, 2), embedded(3 * documents, 6, 3)]


def expected(objective, students, teachers, **options):
    (ours, mask), (theirs, _) = (
        candidate_scores(side[0].embedding, side[1].embedding, **options) for side in (students, teachers)
    )
    return objective.compare(ours, theirs, mask).item()


@classes
@pytest.mark.parametrize(
    ("documents", "options"),
    [(1, {}), (3, {}), (3, {"candidates": "batch"}), (3, {"candidates": "own"}), (3, {"score": "dot"})],
)
def test_options_reach_the_scores(kind, documents, options):
    sets = records(documents)
    objective = kind(**options)
    found = objective.over_records(*sets).item()
    assert found == expected(objective, *sets, **options)
    if options not in ({}, {"candidates": "own"}):
        assert found != kind().over_records(*sets).item()


@classes
def test_rows_without_tokens_in_either_model_leave_on_their_own_side(kind):
    students, teachers = records(2)
    students[0].mask = torch.tensor([[1], [0], [1]]).bool()
    teachers[1].mask = torch.tensor([[1], [1], [1], [0], [1], [1]]).bool()
    found = kind(candidates="batch").over_records(students, teachers).item()
    options = {"rows": students[0].rows(), "document_rows": teachers[1].rows(), "candidates": "batch"}
    assert found == expected(kind(), students, teachers, **options)
    assert found != expected(kind(), students, teachers, candidates="batch")


@classes
def test_both_sides_learn_and_the_teacher_does_not(kind):
    students, teachers = records(2)
    for signals in (*students, *teachers):
        signals.embedding.requires_grad_()
    kind().over_records(students, teachers).backward()
    assert all(signals.embedding.grad.abs().sum() > 0 for signals in students)
    assert all(signals.embedding.grad is None for signals in teachers)


@classes
def test_one_forward_or_three_are_refused(kind):
    students, teachers = records()
    with pytest.raises(DistillationError, match=f"{kind.__name__} scores .* there were 1 forwards"):
        kind()(students[0], teachers[0])
    with pytest.raises(DistillationError, match="there were 3 forwards"):
        kind().over_records(students + students[:1], teachers + teachers[:1])
    with pytest.raises(DistillationError, match="2 student forwards and 1 teacher calls"):
        kind().over_records(students, teachers[:1])


@classes
def test_documents_that_do_not_fit_are_refused(kind):
    students, teachers = [embedded(3, 4, 0), embedded(4, 4, 1)], [embedded(3, 6, 2), embedded(4, 6, 3)]
    with pytest.raises(DistillationError, match="was given 3 queries and 4 documents"):
        kind().over_records(students, teachers)
    with pytest.raises(DistillationError, match=r"\(candidates='own'\) was given one document a query"):
        kind(candidates="own").over_records(*records())


@classes
def test_bad_options_are_refused(kind):
    with pytest.raises(DistillationError, match=rf"{kind.__name__}\(candidates=\.\.\.\) was given 'hard'"):
        kind(candidates="hard")
    with pytest.raises(DistillationError, match=rf"{kind.__name__}\(score=\.\.\.\) was given 'l2'"):
        kind(score="l2")


@classes
@pytest.mark.parametrize("candidates", ["auto", "own", "batch"])
def test_given_scores_stand_in_for_the_teachers_embeddings(kind, candidates):
    students, teachers = records(3)
    everything = 5 * torch.randn(3, 9, generator=torch.Generator().manual_seed(7))
    objective = kind(candidates=candidates)
    teachers[1].scores = everything
    found = objective.over_records(students, teachers).item()
    ours, mask = candidate_scores(students[0].embedding, students[1].embedding, candidates=candidates)
    columns = [[i, *(j for j in range(i + 3, 9, 3))] if candidates != "batch" else [i, *range(9)] for i in range(3)]
    theirs = torch.stack([everything[i, row] for i, row in enumerate(columns)])
    assert found == objective.compare(ours, theirs, mask, given=True).item()
    assert found != kind(candidates=candidates).over_records(*records(3)).item()
    # the teacher need not have run
    assert objective.over_records(students, [Signals(), Signals(scores=everything)]).item() == found


@classes
def test_candidates_without_a_given_score_count_nowhere(kind):
    students, _ = records(3)
    scores = torch.randn(3, 3, generator=torch.Generator().manual_seed(7))
    scores[0, 2] = float("nan")
    scores[1] = float("nan")
    found = kind().over_records(students, [Signals(), Signals(scores=scores)])
    ours, mask = candidate_scores(students[0].embedding, students[1].embedding)
    mask[0, 2] = mask[1, :] = False
    assert found.item() == pytest.approx(kind().compare(ours, scores.nan_to_num(), mask, given=True).item())
    students[0].embedding.requires_grad_()
    kind().over_records(students, [Signals(), Signals(scores=scores)]).backward()
    assert students[0].embedding.grad.isfinite().all()
    assert students[0].embedding.grad[1].abs().sum() == 0


@classes
def test_scores_of_a_querys_own_documents_say_nothing_of_the_batch(kind):
    students, teachers = records(3)
    teachers[1].scores = torch.zeros(3, 3)
    found = kind(candidates="batch").over_records(students, teachers).item()
    assert found == kind(candidates="batch").over_records(*records(3)).item()
    with pytest.raises(DistillationError, match="the teacher gave none"):
        kind(candidates="batch").over_records(students, [Signals(), Signals(scores=torch.zeros(3, 3))])
