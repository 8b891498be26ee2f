"""RankingKL: the temperature, and what it shares with Similarity."""

from __future__ import annotations

import pytest
import torch

from lightning_distilbert.errors import DistillationError
from lightning_distilbert.functional import ranking_kl
from lightning_distilbert.objectives import RankingKL, Similarity
from lightning_distilbert.schedules import Linear
from lightning_distilbert.signals import Signals


def records(documents):
    generator = torch.Generator().manual_seed(0)
    return [
        [Signals(embedding=torch.randn(rows, width, generator=generator)) for rows in (3, 3 * documents)]
        for width in (4, 6)
    ]


def test_without_hard_negatives_it_is_similarity_across():
    sets = records(1)
    torch.testing.assert_close(RankingKL().over_records(*sets), Similarity(pairs="across").over_records(*sets))


def test_with_hard_negatives_each_query_ranks_its_own():
    students, teachers = records(3)
    p, q = (
        torch.stack(
            [
                torch.cosine_similarity(side[0].embedding[i], side[1].embedding[[i, i + 3, i + 6]], dim=-1)
                for i in range(3)
            ]
        )
        .div(0.05)
        .softmax(-1)
        for side in (teachers, students)
    )
    expected = (p * (p / q).log()).sum(-1).mean()
    torch.testing.assert_close(RankingKL().over_records(students, teachers), expected)


@pytest.mark.parametrize("documents", [1, 3])
def test_the_temperature_changes_the_loss_and_follows_the_progress(documents):
    sets = records(documents)
    objective = RankingKL(temperature=Linear(0.5, 0.05))
    start = objective.over_records(*sets).item()
    assert start == RankingKL(temperature=0.5).over_records(*sets).item()
    objective.progress = 1.0
    assert objective.over_records(*sets).item() == pytest.approx(RankingKL().over_records(*sets).item()) != start


@pytest.mark.parametrize("temperature", [0.0, -1.0, "hot"])
def test_a_bad_temperature_is_refused(temperature):
    with pytest.raises(DistillationError, match=r"RankingKL\(temperature=\.\.\.\) was given .*above 0"):
        RankingKL(temperature=temperature)


def test_given_scores_have_a_temperature_of_their_own():
    def cost(**options):
        students = [
            Signals(embedding=torch.eye(2)),
            Signals(embedding=torch.tensor([[1.0, 0], [0, 1], [0, 1], [1, 1]])),
        ]
        objective = RankingKL(**options)
        return objective.over_records(students, [Signals(), Signals(scores=torch.tensor([[3.0, 1.0], [2.0, 1.0]]))])

    ours = torch.tensor([[1.0, 0.0], [1.0, 0.5**0.5]])
    theirs = torch.tensor([[3.0, 1.0], [2.0, 1.0]])
    torch.testing.assert_close(cost(temperature=0.1), ranking_kl(ours, theirs, None, 0.1, 1.0))
    torch.testing.assert_close(cost(temperature=0.1, teacher_temperature=2.0), ranking_kl(ours, theirs, None, 0.1, 2.0))
    assert cost(temperature=0.1) != cost(temperature=0.1, teacher_temperature=2.0)


def test_the_teachers_embeddings_share_the_temperature_unless_told():
    queries, ours, swapped = (Signals(embedding=rows) for rows in (torch.eye(2), torch.eye(2), torch.eye(2).flip(0)))
    pairs = [queries, ours], [queries, swapped]
    shared = RankingKL(temperature=0.5).over_records(*pairs)
    torch.testing.assert_close(shared, RankingKL(temperature=0.5, teacher_temperature=0.5).over_records(*pairs))
    assert RankingKL(temperature=0.5, teacher_temperature=1.0).over_records(*pairs) != shared
    objective = RankingKL(temperature=0.5, teacher_temperature=Linear(0.5, 1.0))
    assert objective.over_records(*pairs) == shared
    objective.progress = 1.0
    assert objective.over_records(*pairs) != shared
    with pytest.raises(DistillationError, match=r"RankingKL\(teacher_temperature=\.\.\.\) was given 0"):
        RankingKL(teacher_temperature=0)
