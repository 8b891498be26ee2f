"""The base of objectives: weights, records, and what is left to a subclass."""

from __future__ import annotations

import math

import pytest
import torch

from lightning_distilbert.errors import DistillationError
from lightning_distilbert.objectives import Objective
from lightning_distilbert.schedules import Linear
from lightning_distilbert.signals import ModelFacts, Signals


class Difference(Objective):
    """The difference of two means, and nothing else."""

    def forward(self, student, teacher):
        return student.embedding.mean() - teacher.embedding.mean()


def signals(value):
    return Signals(embedding=torch.full((2, 3), float(value)))


@pytest.mark.parametrize("weight", [-0.1, math.nan, math.inf, "2", True, Linear(1.0, -1.0)])
def test_a_bad_weight_is_refused_by_name(weight):
    with pytest.raises(DistillationError, match=r"Difference\(weight=\.\.\.\) was given .*of at least 0"):
        Difference(weight)


def test_a_weight_is_a_number_or_follows_the_progress():
    assert Difference().current_weight() == 1.0
    assert Difference(0).current_weight() == 0.0
    objective = Difference(Linear(0.0, 4.0))
    assert objective.current_weight() == 0.0
    objective.progress = 0.5
    assert objective.current_weight() == 2.0


def test_the_weight_is_not_in_the_cost():
    assert Difference(5.0)(signals(3), signals(1)).item() == 2.0


def test_over_records_is_the_mean():
    objective = Difference()
    assert objective.over_records([signals(3), signals(7)], [signals(1), signals(1)]).item() == 4.0


@pytest.mark.parametrize(("students", "teachers"), [(0, 0), (2, 1), (1, 2)])
def test_records_that_do_not_match_are_refused(students, teachers):
    with pytest.raises(DistillationError, match=f"{students} student forwards and {teachers} teacher calls"):
        Difference().over_records([signals(1)] * students, [signals(1)] * teachers)


def test_the_base_computes_nothing_and_asks_for_nothing():
    base = Objective()
    assert base.requires == frozenset()
    assert base.token_level is False
    assert base.build(ModelFacts("a"), ModelFacts("b")) is None
    with pytest.raises(NotImplementedError, match="needs a forward"):
        base(signals(1), signals(1))


def test_a_config_holds_the_schedule_of_a_weight():
    assert Difference(Linear(0.0, 1.0, until=0.1)).to_config()["init_args"] == {
        "weight": {
            "class_path": "lightning_distilbert.schedules.Linear",
            "init_args": {"start": 0.0, "end": 1.0, "until": 0.1},
        }
    }
