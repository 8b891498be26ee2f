"""Relations: which of them, of which layers, in how many heads."""

from __future__ import annotations

import pytest
import torch

from lightning_distilbert.errors import DistillationError
from lightning_distilbert.functional import relation_divergence
from lightning_distilbert.objectives import Relations
from lightning_distilbert.schedules import Linear
from lightning_distilbert.signals import ModelFacts, Signals

MASK = torch.tensor([[1, 1, 0], [1, 1, 1]]).bool()
NAMES = ("queries", "keys", "values")


def facts(name="the student", num_layers=2, hidden_size=8, num_heads=2):
    return ModelFacts(name, num_layers=num_layers, hidden_size=hidden_size, num_heads=num_heads)


def projected(layers, heads, head_width, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return Signals(
        mask=MASK,
        **{
            name: tuple(torch.randn(2, heads, 3, head_width, generator=generator) for _ in range(layers))
            for name in NAMES
        },
    )


STUDENT, TEACHER = projected(2, 2, 4), projected(4, 4, 3, seed=1)


def built(**options):
    objective = Relations(**options)
    objective.build(facts(), facts("the teacher", 4, 12, 4))
    return objective


def expected(heads=4, names=NAMES, weights=(1.0, 1.0, 1.0), layers=(-1, -1)):
    terms = [
        relation_divergence(getattr(STUDENT, name)[layers[0]], getattr(TEACHER, name)[layers[1]], heads, MASK)
        for name in names
    ]
    return sum(w * term for w, term in zip(weights, terms, strict=True)) / sum(weights)


@pytest.mark.parametrize(
    ("options", "arguments"),
    [
        ({}, {}),
        ({"heads": 2}, {"heads": 2}),
        ({"relations": ["values"]}, {"names": ["values"], "weights": [1.0]}),
        ({"relations": ["keys", "values"]}, {"names": ["keys", "values"], "weights": [1.0, 1.0]}),
        ({"weights": [1.0, 0.0, 3.0]}, {"weights": [1.0, 0.0, 3.0]}),
        ({"teacher_layer": 3}, {"layers": (-1, 2)}),
        ({"student_layer": 1}, {"layers": (0, -1)}),
    ],
)
def test_it_is_the_weighted_mean_of_the_relations_and_every_option_changes_it(options, arguments):
    found = built(**options)(STUDENT, TEACHER)
    torch.testing.assert_close(found, expected(**arguments))
    assert not options or abs(found - built()(STUDENT, TEACHER)) > 1e-4


def test_weights_are_relative():
    torch.testing.assert_close(built(weights=[2, 2, 2])(STUDENT, TEACHER), built()(STUDENT, TEACHER))


def test_a_schedule_is_none_of_the_weights():
    with pytest.raises(DistillationError, match=r"Relations\(weights=\.\.\.\) holds a schedule, Linear"):
        Relations(weights=[Linear(0.0, 1.0), 1.0, 1.0])


def test_only_what_is_compared_is_required():
    assert Relations().requires == set(NAMES)
    assert Relations(relations=["values"]).requires == {"values"}


def test_without_facts_the_teachers_heads_are_read_off_the_signals():
    objective = Relations()
    objective.build(facts(hidden_size=None, num_layers=None), facts(num_heads=None, num_layers=None))
    torch.testing.assert_close(objective(STUDENT, TEACHER), expected(heads=4))


@pytest.mark.parametrize(
    ("heads", "student", "teacher", "message"),
    [
        (
            None,
            facts(),
            facts("the teacher", hidden_size=9, num_heads=3),
            r"heads=None\): 3 .* as many as the teacher has,",
        ),
        (
            None,
            facts(hidden_size=312),
            facts("the teacher", hidden_size=768, num_heads=16),
            r"\[1, 2, 3, 4, 6, 8, 12, 24\]",
        ),
        (48, facts(hidden_size=312), facts(hidden_size=768), r"heads=48\): 48 .* 312 \(student\) and 768 \(teacher\)"),
    ],
)
def test_heads_that_do_not_divide_both_widths_are_refused_with_those_that_do(heads, student, teacher, message):
    with pytest.raises(DistillationError, match=message):
        Relations(heads=heads).build(student, teacher)


def test_heads_that_do_not_divide_are_refused_at_the_latest_in_the_forward():
    with pytest.raises(DistillationError, match=r"Choose one of \[1, 2, 4\]"):
        Relations(heads=3)(STUDENT, TEACHER)


@pytest.mark.parametrize(("option", "depth"), [("student_layer", 2), ("teacher_layer", 4)])
def test_layers_that_do_not_exist_are_refused(option, depth):
    name = f"the {option[:7]}"
    with pytest.raises(DistillationError, match=f"layer {depth + 1} of {name}, which has {depth} layers"):
        built(**{option: depth + 1})
    with pytest.raises(DistillationError, match=f"layer {depth + 1} of {name}, which has {depth} layers"):
        Relations(**{option: depth + 1})(STUDENT, TEACHER)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"heads": 0}, r"heads=0\)"),
        ({"heads": 2.0}, r"heads=2.0\)"),
        ({"relations": []}, r"relations=\[\]\)"),
        ({"relations": "values"}, r"relations='values'\): it is a list"),
        ({"relations": ["values", "values"]}, "each once"),
        ({"relations": ["outputs"]}, "was given 'outputs'"),
        ({"weights": [1.0]}, r"weights=\[1.0\]\): it needs one weight for each"),
        ({"weights": [0.0, 0.0, 0.0]}, "not all of them 0"),
        ({"weights": [1.0, -1.0, 1.0]}, r"weights=\.\.\.\) was given -1.0"),
        ({"teacher_layer": "first"}, r"teacher_layer='first'\)"),
        ({"student_layer": 0}, r"student_layer=0\)"),
    ],
)
def test_malformed_options_are_refused(options, message):
    with pytest.raises(DistillationError, match=message):
        Relations(**options)
