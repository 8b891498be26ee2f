"""MarginMSE: the scale of the student's scores, and what its own paper says of margins."""

from __future__ import annotations

import pytest
import torch

from lightning_distilbert.errors import DistillationError
from lightning_distilbert.objectives import MarginMSE
from lightning_distilbert.schedules import Linear
from lightning_distilbert.signals import Signals


def records(*rows):
    return [Signals(embedding=torch.tensor(side)) for side in rows]


QUERIES, ANSWERS, NEGATIVES = [[1.0, 0.0], [0.0, 1.0]], [[2.0, 0.0], [0.0, 4.0]], [[1.0, 0.0], [0.0, 1.0]]


def test_margins_against_hard_negatives_by_hand():
    students = records(QUERIES, ANSWERS + NEGATIVES)
    teachers = records(QUERIES, [[5.0, 0.0], [0.0, 5.0], [1.0, 0.0], [0.0, 1.0]])
    # the student's margins are 1 and 3, the teacher's 4 and 4
    assert MarginMSE(score="dot").over_records(students, teachers).item() == (3**2 + 1**2) / 2
    assert MarginMSE(score="dot", scale=2.0).over_records(students, teachers).item() == (2**2 + 2**2) / 2


def test_margins_against_the_other_answers_by_hand():
    students, teachers = records(QUERIES, ANSWERS), records(QUERIES, [[5.0, 1.0], [1.0, 5.0]])
    # the student's margins are 2 - 0 and 4 - 0, the teacher's 5 - 1 and 5 - 1
    assert MarginMSE(score="dot").over_records(students, teachers).item() == (2**2 + 0**2) / 2


def test_the_scale_follows_the_progress():
    students, teachers = records(QUERIES, ANSWERS), records(QUERIES, [[5.0, 1.0], [1.0, 5.0]])
    objective = MarginMSE(score="dot", scale=Linear(1.0, 2.0))
    start = objective.over_records(students, teachers).item()
    objective.progress = 1.0
    end = MarginMSE(score="dot", scale=2.0).over_records(students, teachers).item()
    assert objective.over_records(students, teachers).item() == end != start


@pytest.mark.parametrize("scale", [0.0, -1.0, "large"])
def test_a_bad_scale_is_refused(scale):
    with pytest.raises(DistillationError, match=r"MarginMSE\(scale=\.\.\.\) was given .*above 0"):
        MarginMSE(scale=scale)
