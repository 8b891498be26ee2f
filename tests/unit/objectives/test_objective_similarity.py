"""Similarity: within one set, across two, and when which."""

from __future__ import annotations

import pytest
import torch

from lightning_distilbert.errors import DistillationError
from lightning_distilbert.functional import similarity_divergence
from lightning_distilbert.objectives import Similarity
from lightning_distilbert.schedules import Linear
from lightning_distilbert.signals import Signals


def embedded(width, seed, rows=4, mask=None):
    return Signals(embedding=torch.randn(rows, width, generator=torch.Generator().manual_seed(seed)), mask=mask)


def records(count, rows=4):
    return [embedded(3, i, rows) for i in range(count)], [embedded(5, 10 + i, rows) for i in range(count)]


def within(students, teachers):
    terms = [similarity_divergence(s.embedding, t.embedding) for s, t in zip(students, teachers, strict=True)]
    return (sum(terms) / len(terms)).item()


def across(students, teachers, **options):
    (left, right), (teacher_left, teacher_right) = ([s.embedding for s in side] for side in (students, teachers))
    return similarity_divergence(left, teacher_left, right, teacher_right, **options).item()


@pytest.mark.parametrize(
    ("pairs", "count", "expected"),
    [("auto", 1, within), ("auto", 2, across), ("auto", 3, within), ("within", 2, within), ("across", 2, across)],
)
def test_what_is_compared_with_what(pairs, count, expected):
    sets = records(count)
    assert Similarity(pairs=pairs).over_records(*sets).item() == pytest.approx(expected(*sets), rel=1e-6)
    if count == 2:
        assert within(*sets) != across(*sets)


def test_across_leaves_out_rows_without_tokens_on_their_own_side():
    students, teachers = records(2)
    students[0].mask = torch.tensor([[1], [0], [1], [1]]).bool()
    teachers[1].mask = torch.tensor([[1], [1], [1], [0]]).bool()
    expected = across(students, teachers, rows=students[0].rows(), rows_right=teachers[1].rows())
    found = Similarity().over_records(students, teachers).item()
    assert found == pytest.approx(expected, rel=1e-6)
    assert found != across(students, teachers)


@pytest.mark.parametrize("count", [1, 2])
def test_the_temperature_changes_the_loss_and_follows_the_progress(count):
    sets = records(count)
    objective = Similarity(temperature=Linear(0.5, 0.05))
    start = objective.over_records(*sets).item()
    assert start == Similarity(temperature=0.5).over_records(*sets).item()
    objective.progress = 1.0
    assert objective.over_records(*sets).item() == pytest.approx(Similarity().over_records(*sets).item()) != start


def test_both_sides_learn():
    students, teachers = records(2)
    for signals in students:
        signals.embedding.requires_grad_()
    Similarity().over_records(students, teachers).backward()
    assert all(signals.embedding.grad.abs().sum() > 0 for signals in students)


def test_an_all_masked_side_gives_zero_with_a_graph_to_both():
    students, teachers = records(2)
    for signals in students:
        signals.embedding.requires_grad_()
    students[1].mask = torch.zeros(4, 2).bool()
    loss = Similarity().over_records(students, teachers)
    loss.backward()
    assert loss.item() == 0.0
    assert all(torch.equal(signals.embedding.grad, torch.zeros(4, 3)) for signals in students)


def test_bad_options_are_refused():
    with pytest.raises(DistillationError, match=r"Similarity\(temperature=\.\.\.\) was given 0"):
        Similarity(temperature=0)
    with pytest.raises(DistillationError, match=r"Similarity\(pairs=\.\.\.\) was given 'both'"):
        Similarity(pairs="both")


@pytest.mark.parametrize("count", [1, 3])
def test_across_needs_two_forwards(count):
    with pytest.raises(DistillationError, match=f"and there were {count}"):
        Similarity(pairs="across").over_records(*records(count))


@pytest.mark.parametrize("pairs", ["auto", "across"])
def test_across_needs_one_document_a_query(pairs):
    students, teachers = ([side[0], embedded(side[0].embedding.shape[1], 3, rows=2)] for side in records(2))
    with pytest.raises(DistillationError, match="they hold 4 and 2 rows"):
        Similarity(pairs=pairs).over_records(students, teachers)
    assert Similarity(pairs="within").over_records(students, teachers).item() > 0


def test_records_that_do_not_match_are_refused():
    students, teachers = records(2)
    with pytest.raises(DistillationError, match="2 student forwards and 1 teacher calls"):
        Similarity().over_records(students, teachers[:1])
    with pytest.raises(DistillationError, match=r"embeddings have the shape \(4, 3\) and the teacher's \(3, 5\)"):
        Similarity().over_records(students, records(2, rows=3)[1])


def test_hard_negatives_are_ranked_with_the_other_documents():
    generator = torch.Generator().manual_seed(3)
    sides = [[Signals(embedding=torch.randn(rows, width, generator=generator)) for rows in (3, 9)] for width in (4, 6)]
    found = Similarity().over_records(*sides)
    vectors = [[torch.nn.functional.normalize(s.embedding, dim=-1) for s in side] for side in sides]
    ours, theirs = (left @ right.T / 0.05 for left, right in vectors)
    expected = torch.nn.functional.kl_div(ours.log_softmax(-1), theirs.softmax(-1), reduction="batchmean")
    torch.testing.assert_close(found, expected)
    alone = [[side[0], Signals(embedding=side[1].embedding[:3])] for side in sides]
    assert Similarity().over_records(*alone) != found
