"""Which layers are paired by each rule, for every objective on layers."""

from __future__ import annotations

import pytest

from lightning_distilbert.errors import DistillationError
from lightning_distilbert.objectives import Attention, HiddenStates
from lightning_distilbert.signals import ModelFacts

classes = pytest.mark.parametrize("kind", [Attention, HiddenStates])


def pairs(kind, layers, student, teacher, initialised_from=None, depth=None, **options):
    objective = kind(layers=layers, **options)
    objective.build(
        ModelFacts("the student", num_layers=student, initialised_from=initialised_from, initialised_depth=depth),
        ModelFacts("the teacher", num_layers=teacher),
    )
    return objective.pairs


@classes
@pytest.mark.parametrize(
    ("layers", "student", "teacher", "expected"),
    [
        ("last", 3, 6, [(3, 6)]),
        ("uniform", 6, 12, [(1, 1), (2, 3), (3, 5), (4, 8), (5, 10), (6, 12)]),
        # TinyBERT's general_distill.py, and TextBrewer's L4t, L3 and L6 matches
        ("every", 4, 12, [(1, 3), (2, 6), (3, 9), (4, 12)]),
        ("every", 3, 12, [(1, 4), (2, 8), (3, 12)]),
        ("every", 6, 12, [(1, 2), (2, 4), (3, 6), (4, 8), (5, 10), (6, 12)]),
        ("every", 4, 6, [(1, 2), (2, 3), (3, 5), (4, 6)]),
        ("every", 1, 5, [(1, 5)]),
        # --fc_layer_idx 1,3,5,7,9 of PKD-Skip, which counts from 0
        ("skip", 6, 12, [(1, 2), (2, 4), (3, 6), (4, 8), (5, 10)]),
        ("skip", 3, 12, [(1, 4), (2, 8)]),
        ([[1, 4], [1, 5]], 3, 6, [(1, 4), (1, 5)]),
    ],
)
def test_the_pairs_of_each_rule(kind, layers, student, teacher, expected):
    assert pairs(kind, layers, student, teacher) == tuple(expected)


@classes
def test_initialised_follows_the_layers_that_were_copied(kind):
    assert pairs(kind, "initialised", 3, 6, initialised_from=(0, 2, 5)) == ((1, 1), (2, 3), (3, 6))


@classes
def test_auto_follows_the_layers_that_were_copied_where_the_student_tells_them(kind):
    assert pairs(kind, "auto", 3, 6, initialised_from=(0, 1, 5)) == ((1, 1), (2, 2), (3, 6))
    for told in (None, (0, 5), (0, 1, 6)):  # of no teacher, or of one of another depth
        assert pairs(kind, "auto", 3, 6, initialised_from=told) == pairs(kind, "uniform", 3, 6)


@classes
@pytest.mark.parametrize("layers", ["every", "uniform"])
def test_a_map_that_undoes_the_copy_is_told(kind, layers):
    with pytest.warns(UserWarning, match=rf"{kind.__name__}\(layers='{layers}'\).* copied as \[\(1, 2\), \(2, 3\)"):
        pairs(kind, layers, 3, 6, initialised_from=(1, 2, 5))


@classes
def test_a_map_that_follows_the_copy_is_silent(kind, recwarn):
    for layers, copied in (("every", (1, 3, 5)), ("uniform", (0, 2, 5)), ("skip", (0, 2, 5)), ("auto", (0, 1, 5))):
        pairs(kind, layers, 3, 6, initialised_from=copied)
    pairs(HiddenStates, "every", 3, 6, initialised_from=(1, 3, 5), embeddings=True)
    assert not recwarn.list


@classes
def test_layers_of_a_model_of_another_depth_are_not_the_teacher_s(kind):
    told = {"initialised_from": (0, 2, 5)}
    assert pairs(kind, "auto", 3, 12, **told, depth=12) == ((1, 1), (2, 3), (3, 6))
    assert pairs(kind, "auto", 3, 12, **told, depth=6) == pairs(kind, "uniform", 3, 12)
    with pytest.raises(DistillationError, match=r"says \[0, 2, 5\] of 6\. Build the student from this teacher"):
        pairs(kind, "initialised", 3, 12, **told, depth=6)


def test_embeddings_are_one_more_pair_of_a_rule():
    assert pairs(HiddenStates, "every", 2, 4, embeddings=True) == ((0, 0), (1, 2), (2, 4))
    assert pairs(HiddenStates, "last", 2, 4, embeddings=True) == ((0, 0), (2, 4))


@classes
@pytest.mark.parametrize(
    ("layers", "student", "teacher", "message"),
    [
        ([(4, 6)], 3, 6, r"\(layers=\.\.\.\) has the pair \(4, 6\).*to 3, the teacher's from [01] to 6"),
        ([(1, 7)], 3, 6, r"pair \(1, 7\)"),
        ("every", 7, 6, r"\(layers='every'\) was given a student of 7 layers and a teacher of 6"),
        ("uniform", 7, 6, r"\(layers='uniform'\) was given a student of 7 layers"),
        ("skip", 1, 6, r"\(layers='skip'\) was given a student of 1 layers.*at least 2"),
        ("initialised", 3, 6, r"\(layers='initialised'\) needs to know.*says None"),
        ("skip", None, 6, "needs the numbers of layers, and the student says None"),
    ],
)
def test_layers_that_do_not_exist_are_refused_by_name(kind, layers, student, teacher, message):
    with pytest.raises(DistillationError, match=kind.__name__ + ".*" + message):
        pairs(kind, layers, student, teacher)


@pytest.mark.parametrize("layers", ["first", [], [(1, 2, 3)], [(1, -1)], [(0.5, 1)], [(True, 1)], ["ab"], None, 3])
@classes
def test_malformed_layers_are_refused(kind, layers):
    with pytest.raises(DistillationError, match=rf"{kind.__name__}\(layers=\.\.\.\) was given"):
        kind(layers=layers)


def test_the_embedding_output_has_hidden_states_and_no_attention():
    assert HiddenStates(layers=[(0, 0)]).layers == ((0, 0),)
    with pytest.raises(DistillationError, match=r"Attention\(layers=\.\.\.\) was given .* layers from 1 on"):
        Attention(layers=[(0, 0)])
