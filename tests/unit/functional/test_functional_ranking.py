"""Candidate scores, margins and rankings against loops in float64."""

from __future__ import annotations

import math

import pytest
import torch

from lightning_distilbert.errors import DistillationError
from lightning_distilbert.functional import arrange_scores, candidate_scores, margin_mse, ranking_kl

BATCH = 3
options = pytest.mark.parametrize(
    ("documents", "candidates"), [(1, "auto"), (1, "batch"), (3, "auto"), (3, "own"), (3, "batch")]
)
losses = pytest.mark.parametrize("loss", ["margin_mse", "ranking_kl"])
LOSSES = {"margin_mse": margin_mse, "ranking_kl": ranking_kl}


def vectors(rows, width=4, seed=0):
    return torch.randn(rows, width, generator=torch.Generator().manual_seed(seed))


def reference_scores(queries, documents, candidates, score):
    """For each query the scores of its answer and of the others: hard negatives, or the whole batch."""
    own = candidates == "own" or (candidates == "auto" and len(documents) > len(queries))
    rows = []
    for i, query in enumerate(queries):
        others = range(i, len(documents), len(queries)) if own else range(len(documents))
        places = [i, *(j for j in others if j != i)]
        products = [(query * documents[j]).sum() for j in places]
        if score == "cosine":
            products = [p / (query.norm() * documents[j].norm()) for p, j in zip(products, places, strict=True)]
        rows.append(torch.stack(products))
    return rows


def reference_loss(loss, student_rows, teacher_rows, temperature=1.0):
    total, count = 0.0, 0
    for ours, theirs in zip(student_rows, teacher_rows, strict=True):
        if loss == "margin_mse":
            for j in range(1, len(ours)):
                total, count = total + ((ours[0] - ours[j]) - (theirs[0] - theirs[j])) ** 2, count + 1
        else:
            p, q = ((side / temperature).softmax(-1) for side in (theirs, ours))
            total, count = total + (p * (p / q).log()).sum(), count + 1
    return total / count


@losses
@options
@pytest.mark.parametrize("score", ["cosine", "dot"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_loss_and_gradient_agree_with_a_loop(loss, documents, candidates, score, dtype):
    student = [vectors(rows, seed=i).to(dtype).requires_grad_() for i, rows in enumerate((BATCH, documents * BATCH))]
    teacher = [vectors(rows, 6, seed=9 + i).to(dtype) for i, rows in enumerate((BATCH, documents * BATCH))]
    twins = [side.detach().double().requires_grad_() for side in student]
    with torch.autocast("cpu", dtype=torch.bfloat16):
        ours, mask = candidate_scores(*student, candidates=candidates, score=score)
        theirs, _ = candidate_scores(*teacher, candidates=candidates, score=score)
        found = LOSSES[loss](ours, theirs, mask)
    expected = reference_loss(
        loss,
        reference_scores(*twins, candidates, score),
        reference_scores(*(side.double() for side in teacher), candidates, score),
    )
    found.backward()
    expected.backward()
    assert found.dtype == torch.float32
    assert found.item() == pytest.approx(expected.item(), rel=1e-4)
    for side, twin in zip(student, twins, strict=True):
        tolerance = (1e-5 if dtype == torch.float32 else 1e-2) * twin.grad.abs().max().item()
        torch.testing.assert_close(side.grad.double(), twin.grad, rtol=1e-4, atol=tolerance)


@losses
@pytest.mark.parametrize("candidates", ["own", "batch"])
def test_rows_that_do_not_count_leave_both_sides(loss, candidates):
    """Query 1 does not count, nor does the first hard negative of query 2."""
    rows = torch.tensor([True, False, True])
    document_rows = torch.ones(3 * BATCH, dtype=torch.bool)
    document_rows[5] = False
    sides = [vectors(BATCH), vectors(3 * BATCH, seed=1), vectors(BATCH, 6, seed=2), vectors(3 * BATCH, 6, seed=3)]
    expected_rows = []
    for queries, documents in (sides[:2], sides[2:]):
        kept = []
        for i in (0, 2):
            own = range(i, 9, BATCH) if candidates == "own" else range(9)
            places = [i, *(j for j in own if j not in (i, 5))]
            kept.append(torch.stack([torch.cosine_similarity(queries[i], documents[j], dim=0) for j in places]))
        expected_rows.append(kept)
    expected = reference_loss(loss, *expected_rows)
    for queries, documents in (sides[:2], sides[2:]):
        queries[~rows], documents[~document_rows] = float("nan"), float("nan")
    student = [side.requires_grad_() for side in sides[:2]]
    ours, mask = candidate_scores(*student, rows, document_rows, candidates)
    theirs, _ = candidate_scores(*sides[2:], rows, document_rows, candidates)
    found = LOSSES[loss](ours, theirs, mask)
    found.backward()
    assert found.item() == pytest.approx(expected.item(), rel=1e-5)
    for side, counts in zip(student, (rows, document_rows), strict=True):
        assert torch.isfinite(side.grad).all()
        assert side.grad[~counts].abs().sum() == 0


def test_the_answer_comes_first_and_once():
    queries, documents = torch.eye(2), torch.tensor([[1.0, 0.0], [0.0, 1.0], [0.6, 0.8], [0.0, 1.0]])
    scores, mask = candidate_scores(queries, documents, candidates="batch")
    torch.testing.assert_close(scores, torch.tensor([[1.0, 1.0, 0.0, 0.6, 0.0], [1.0, 0.0, 1.0, 0.8, 1.0]]))
    assert mask.tolist() == [[True, False, True, True, True], [True, True, False, True, True]]


@losses
def test_nothing_counts_gives_zero_with_a_graph(loss):
    student = [vectors(rows, seed=rows).requires_grad_() for rows in (BATCH, BATCH)]
    scores, mask = candidate_scores(*student, rows=torch.zeros(BATCH))
    found = LOSSES[loss](scores, vectors(*scores.shape), mask)
    found.backward()
    assert found.item() == 0.0
    assert all(torch.equal(side.grad, torch.zeros_like(side)) for side in student)


def test_scores_of_a_cross_encoder_may_stand_on_the_other_side():
    student = torch.tensor([[2.0, 1.0, 0.0]], requires_grad=True)
    cross_encoder = torch.tensor([[9.0, 4.0, 2.0]])
    assert margin_mse(student, cross_encoder).item() == ((1 - 5) ** 2 + (2 - 7) ** 2) / 2
    p, q = cross_encoder.softmax(-1), student.softmax(-1)
    assert ranking_kl(student, cross_encoder).item() == pytest.approx((p * (p / q).log()).sum().item(), rel=1e-5)


def test_no_gradient_reaches_the_teacher():
    student, teacher = vectors(2).requires_grad_(), vectors(2, seed=1).requires_grad_()
    (margin_mse(student, teacher) + ranking_kl(student, teacher)).backward()
    assert teacher.grad is None


def test_the_temperature_is_part_of_the_scores():
    student, teacher = vectors(3), vectors(3, seed=1)
    found = ranking_kl(student, teacher, temperature=0.5)
    torch.testing.assert_close(found, ranking_kl(2 * student, 2 * teacher))
    assert found > ranking_kl(student, teacher)


@pytest.mark.parametrize("temperature", [0.0, -1.0, math.nan])
def test_a_bad_temperature_is_refused(temperature):
    with pytest.raises(DistillationError, match=f"temperature={temperature}"):
        ranking_kl(vectors(2), vectors(2), temperature=temperature)


def test_bad_arguments_are_refused():
    queries = vectors(BATCH)
    with pytest.raises(DistillationError, match=r"queries of shape \(3, 4\) with documents of shape \(4, 4\)"):
        candidate_scores(queries, vectors(4))
    with pytest.raises(DistillationError, match="was given 'hard': choose one of 'auto', 'own', 'batch'"):
        candidate_scores(queries, queries, candidates="hard")
    with pytest.raises(DistillationError, match="was given 'l2': choose one of 'cosine', 'dot'"):
        candidate_scores(queries, queries, score="l2")
    with pytest.raises(DistillationError, match=r"mask of shape \(2,\) does not say which of 3"):
        candidate_scores(queries, queries, rows=torch.ones(2))
    for function in (margin_mse, ranking_kl):
        with pytest.raises(DistillationError, match=r"scores of shape \(3, 1\)"):
            function(queries[:, :1], queries[:, :1])
        with pytest.raises(DistillationError, match=r"scores have the shape \(3, 4\) and the teacher's \(2, 4\)"):
            function(queries, queries[:2])
        with pytest.raises(DistillationError, match=r"a mask of shape \(3, 2\)"):
            function(queries, queries, torch.ones(3, 2))


@pytest.mark.parametrize("own", [True, False])
@pytest.mark.parametrize("each", [1, 3])
def test_given_scores_are_arranged_as_scores_of_embeddings_are(own, each):
    queries, documents = vectors(BATCH), vectors(each * BATCH, seed=1)
    everything = queries @ documents.T
    expected, mask = candidate_scores(queries, documents, candidates="own" if own else "batch", score="dot")
    torch.testing.assert_close(arrange_scores(everything, len(documents), own), expected)
    assert mask.shape == expected.shape
    if own:
        alone = torch.stack([everything[i, i::BATCH] for i in range(BATCH)])
        torch.testing.assert_close(arrange_scores(alone, len(documents), own), expected)


def test_one_query_has_all_documents_for_its_own():
    scores = torch.tensor([[3.0, 1.0, 2.0]])
    assert arrange_scores(scores, 3, own=True).tolist() == [[3.0, 1.0, 2.0]]
    assert arrange_scores(scores, 3, own=False).tolist() == [[3.0, 3.0, 1.0, 2.0]]


def test_given_scores_that_do_not_fit_are_refused():
    with pytest.raises(DistillationError, match=r"scores of shape \(2, 3\) for 4 documents"):
        arrange_scores(torch.zeros(2, 3), 4, own=True)
    with pytest.raises(DistillationError, match="scores are those of the 2 documents of each query, and all 4"):
        arrange_scores(torch.zeros(2, 2), 4, own=False)


def test_the_teacher_may_have_a_temperature_of_its_own():
    ours, theirs = vectors(BATCH), 9 * vectors(BATCH, seed=1)
    found = ranking_kl(ours, theirs, temperature=0.5, teacher_temperature=3.0)
    torch.testing.assert_close(found, ranking_kl(ours / 0.5, theirs / 3.0))
    assert found != ranking_kl(ours, theirs, temperature=0.5)
    with pytest.raises(DistillationError, match=r"teacher_temperature=0\)"):
        ranking_kl(ours, theirs, teacher_temperature=0)
