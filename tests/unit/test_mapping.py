from __future__ import annotations

from fractions import Fraction

import pytest

from lightning_distilbert.errors import DistillationError
from lightning_distilbert.mapping import layer_choice


@pytest.mark.parametrize(
    ("total", "layers", "chosen"),
    [(6, 3, (0, 2, 5)), (12, 6, (0, 2, 4, 7, 9, 11)), (12, 4, (0, 4, 7, 11)), (4, 1, (3,))],
)
def test_uniform_choices_of_the_published_models(total, layers, chosen):
    assert layer_choice(total, layers) == chosen


@pytest.mark.parametrize("total", range(1, 26))
def test_uniform_is_the_nearest_even_spacing_for_every_legal_number(total):
    for count in range(2, total + 1):
        chosen = layer_choice(total, count)
        assert (chosen[0], chosen[-1], len(chosen)) == (0, total - 1, count)
        assert list(chosen) == sorted(set(chosen))
        for i, layer in enumerate(chosen):
            exact = Fraction(i * (total - 1), count - 1)
            assert -Fraction(1, 2) <= layer - exact < Fraction(1, 2)  # a tie goes down
    assert layer_choice(total, total) == tuple(range(total))


@pytest.mark.parametrize(
    ("total", "layers", "chosen"),
    [(12, 4, (2, 5, 8, 11)), (12, 6, (1, 3, 5, 7, 9, 11)), (6, 4, (1, 2, 4, 5)), (5, 1, (4,)), (3, 3, (0, 1, 2))],
)
def test_every_is_the_last_layer_of_each_block(total, layers, chosen):
    assert layer_choice(total, layers, rule="every") == chosen


def test_first_and_last_rules():
    assert layer_choice(6, 2, rule="first") == (0, 1)
    assert layer_choice(6, 2, rule="last") == (4, 5)


def test_explicit_list():
    assert layer_choice(6, [1, 3]) == (1, 3)
    assert layer_choice(6, (5,)) == (5,)


@pytest.mark.parametrize(
    ("total", "layers", "rule", "message"),
    [
        (6, 0, "uniform", "0 layers were asked .* from 1 to 6"),
        (6, 7, "uniform", "7 layers were asked .* from 1 to 6"),
        (6, 7, "last", "7 layers were asked"),
        (6, [0, 6], "uniform", r"layers \[6\] .* out of range.* 0 to 5"),
        (6, [-1, 2], "uniform", r"layers \[-1\] .* out of range"),
        (6, [0, 1.5], "uniform", r"\[1.5\]"),
        (6, [0, True], "uniform", r"\[True\]"),
        (6, [2, 2], "uniform", "twice"),
        (6, [2, 0], "uniform", r"not in increasing order. Did you mean \[0, 2\]"),
        (6, [], "uniform", "empty"),
        (6, "3", "uniform", "neither a number"),
        (6, True, "uniform", "neither a number"),
        (6, 2.0, "uniform", "neither a number"),
        (6, [0, 2], "last", "no effect"),
        (6, 2, "middle", r"layer_choice\(rule=...\) was given 'middle': choose one of 'uniform', 'every', 'first'"),
        (0, 1, "uniform", "0 layers; at least 1"),
    ],
)
def test_wrong_choices_are_refused(total, layers, rule, message):
    with pytest.raises(DistillationError, match=message):
        layer_choice(total, layers, rule)
