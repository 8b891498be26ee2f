"""Schedules: their values, their limits, and what is refused."""

from __future__ import annotations

import math

import pytest

from lightning_distilbert.errors import DistillationError
from lightning_distilbert.schedules import Cosine, Linear, Schedule, check_number, value_at
from lightning_distilbert.spec import from_config


@pytest.mark.parametrize(
    ("progress", "linear", "cosine"),
    [
        (-1.0, 1.0, 1.0),
        (0.0, 1.0, 1.0),
        (0.2, 1.0, 1.0),
        (0.35, 1.5, 1.0 + 2.0 * (1 - math.cos(math.pi / 4)) / 2),
        (0.5, 2.0, 2.0),
        (0.8, 3.0, 3.0),
        (1.5, 3.0, 3.0),
    ],
)
def test_values_between_begin_and_until(progress, linear, cosine):
    options = {"start": 1.0, "end": 3.0, "begin": 0.2, "until": 0.8}
    assert Linear(**options).at(progress) == pytest.approx(linear)
    assert Cosine(**options).at(progress) == pytest.approx(cosine)


@pytest.mark.parametrize("option", [{"start": 0.5}, {"end": 2.0}, {"begin": 0.1}, {"until": 0.9}])
@pytest.mark.parametrize("cls", [Linear, Cosine])
def test_every_option_changes_the_value(cls, option):
    options = {"start": 1.0, "end": 3.0, "begin": 0.0, "until": 1.0}
    assert cls(**options).at(0.4) != cls(**(options | option)).at(0.4)


@pytest.mark.parametrize("span", [(0.5, 0.5), (0.6, 0.5), (-0.1, 0.5), (0.0, 1.1), (math.nan, 1.0)])
def test_a_span_outside_the_training_is_refused(span):
    with pytest.raises(DistillationError, match=f"begin={span[0]} to until={span[1]}"):
        Linear(0.0, 1.0, *span)


@pytest.mark.parametrize("ends", [(math.nan, 1.0), (0.0, math.inf)])
@pytest.mark.parametrize("cls", [Linear, Cosine])
def test_ends_that_are_no_numbers_are_refused(cls, ends):
    with pytest.raises(DistillationError, match=f"start={ends[0]} to end={ends[1]}"):
        cls(*ends)


@pytest.mark.parametrize("schedule", [Linear(0.0, 1.0, until=0.1), Cosine(2.0, 1.0)])
def test_a_config_builds_the_same_schedule(schedule):
    again = from_config(schedule.to_config())
    assert type(again) is type(schedule)
    assert [again.at(p / 10) for p in range(11)] == [schedule.at(p / 10) for p in range(11)]


def test_a_schedule_without_values_cannot_be_made():
    with pytest.raises(TypeError, match="abstract"):
        Schedule()


def test_value_at_takes_numbers_and_schedules():
    assert value_at(2, 0.5) == 2.0
    assert isinstance(value_at(2, 0.5), float)
    assert value_at(Linear(0.0, 4.0), 0.25) == 1.0


@pytest.mark.parametrize("value", [1, 0.5, Linear(2.0, 1.0)])
def test_numbers_in_range_pass(value):
    check_number("x", value, positive=True)
    check_number("x", value, positive=False)


def test_zero_passes_only_where_it_may():
    check_number("x", 0, positive=False)
    check_number("x", Linear(1.0, 0.0), positive=False)
    with pytest.raises(DistillationError, match=r"x was given 0: it must be a finite number above 0\."):
        check_number("x", 0, positive=True)
    with pytest.raises(DistillationError, match=r"x was given 0\.0 at progress 1\.0: it must be .* above 0\."):
        check_number("x", Linear(1.0, 0.0), positive=True)


class Dip(Schedule):
    """Fine at both ends, negative between."""

    def at(self, progress: float) -> float:
        return abs(progress - 0.5) - 0.1


@pytest.mark.parametrize("value", [-1, math.nan, math.inf, "1", None, True, [1.0], Dip()])
def test_anything_else_is_refused(value):
    with pytest.raises(DistillationError, match=r"x was given .*of at least 0"):
        check_number("x", value, positive=False)
