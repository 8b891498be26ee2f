"""HiddenStates: pairs of layers and projections."""

from __future__ import annotations

import pytest
import torch

from lightning_distilbert.errors import DistillationError
from lightning_distilbert.functional import hidden_state_distance
from lightning_distilbert.objectives import HiddenStates
from lightning_distilbert.signals import ModelFacts, Signals


def facts(num_layers, hidden_size=4, initialised_from=None, name="the student"):
    return ModelFacts(name, num_layers=num_layers, hidden_size=hidden_size, initialised_from=initialised_from)


def states(num_layers, width=4, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return Signals(hidden_states=tuple(torch.randn(2, 3, width, generator=generator) for _ in range(num_layers + 1)))


def built(student, teacher, **options):
    torch.manual_seed(0)
    objective = HiddenStates(**options)
    objective.build(student, teacher)
    return objective


@pytest.mark.parametrize(
    ("layers", "expected"),
    [
        ("last", ((3, 6),)),
        ("uniform", ((1, 1), (2, 3), (3, 6))),
        ("initialised", ((1, 2), (2, 4), (3, 5))),
        ([(0, 0), (3, 5)], ((0, 0), (3, 5))),
        ([[1, 1]], ((1, 1),)),
    ],
)
@pytest.mark.filterwarnings("ignore:.*training first undoes")
def test_the_pairs_of_each_rule(layers, expected):
    objective = built(facts(3, initialised_from=(1, 3, 4)), facts(6), layers=layers)
    assert objective.pairs == expected
    student, teacher = states(3), states(6, seed=1)
    terms = [hidden_state_distance(student.hidden_states[i], teacher.hidden_states[j]) for i, j in expected]
    torch.testing.assert_close(objective(student, teacher), sum(terms) / len(terms))


@pytest.mark.parametrize("layers", ["last", [(1, 2)]])
def test_models_that_do_not_say_how_deep_they_are_are_read_at_the_first_forward(layers):
    objective = built(facts(None, None), facts(None, None), layers=layers)
    ours, theirs = (3, 6) if layers == "last" else (1, 2)
    student, teacher = states(3), states(6, seed=1)
    expected = hidden_state_distance(student.hidden_states[ours], teacher.hidden_states[theirs])
    assert objective(student, teacher).item() == expected.item()


def test_every_option_changes_the_loss():
    student, teacher = states(3), states(6, seed=1)
    options = [{}, {"layers": "uniform"}, {"metric": "mse"}, {"projection": "always"}, {"layers": [(3, 5)]}]
    options += [{"layers": "every"}, {"layers": "skip"}, {"metric": "normalized_mse"}]
    options += [{"tokens": "first"}, {"embeddings": True}]
    losses = [built(facts(3), facts(6), **option)(student, teacher).item() for option in options]
    assert len(set(losses)) == len(options)
    assert built(facts(3), facts(6), projection="never")(student, teacher).item() == losses[0]


@pytest.mark.parametrize(
    ("projection", "width", "count"), [("auto", 4, 0), ("auto", 6, 2), ("always", 4, 2), ("never", 4, 0)]
)
def test_projections_are_made_as_the_widths_ask(projection, width, count):
    objective = built(facts(3), facts(6, width), layers=[(1, 2), (3, 6)], projection=projection)
    assert [tuple(layer.weight.shape) for layer in objective.projections] == [(width, 4)] * count


def test_each_pair_has_a_projection_of_its_own_that_learns():
    objective = built(facts(3), facts(6, 5), layers=[(1, 2), (3, 6)], metric="mse")
    student, teacher = states(3), states(6, 5, seed=1)
    first, second = objective.projections
    expected = [
        torch.nn.functional.mse_loss(first(student.hidden_states[1]), teacher.hidden_states[2]),
        torch.nn.functional.mse_loss(second(student.hidden_states[3]), teacher.hidden_states[6]),
    ]
    found = objective(student, teacher)
    torch.testing.assert_close(found, sum(expected) / 2)
    found.backward()
    assert all(parameter.grad.abs().sum() > 0 for parameter in objective.parameters())


@pytest.mark.parametrize("metric", ["cosine", "mse", "normalized_mse"])
@pytest.mark.parametrize("width", [4, 5])
def test_the_first_token_alone_is_compared_wherever_it_stands_in_each_model(metric, width):
    """As sentence-level as an embedding: the two models may split the text into other tokens."""
    objective = built(facts(2), facts(4, width), layers="every", metric=metric, tokens="first")
    student, teacher = states(2), states(4, width, seed=1)
    student.mask = torch.tensor([[1, 1, 0], [0, 1, 1]]).bool()
    teacher.mask = torch.tensor([[1, 1, 1], [1, 0, 0]]).bool()
    terms = []
    for index, (i, j) in enumerate([(1, 2), (2, 4)]):
        left = torch.stack([student.hidden_states[i][0, 0], student.hidden_states[i][1, 1]])
        left = objective.projections[index](left) if len(objective.projections) else left
        terms.append(hidden_state_distance(left, teacher.hidden_states[j][:, 0], metric=metric))
    torch.testing.assert_close(objective(student, teacher), sum(terms) / 2)
    teacher.hidden_states = tuple(state[:, :2] for state in teacher.hidden_states)
    teacher.mask = teacher.mask[:, :2]
    torch.testing.assert_close(objective(student, teacher), sum(terms) / 2)
    assert not objective.token_level
    assert HiddenStates().token_level


def test_patient_distillation_as_in_its_code():
    """The authors' patience_loss on [CLS] of layers 2, 4, 6, 8 and 10; the first sequence has the padding."""
    objective = built(facts(6), facts(12), layers="skip", metric="normalized_mse", tokens="first")
    student, teacher = states(6), states(12, seed=1)
    student.mask = teacher.mask = torch.tensor([[1, 1, 0], [1, 1, 1]]).bool()
    ours = torch.stack([state[:, 0] for state in student.hidden_states[1:6]], dim=1)
    theirs = torch.stack([state[:, 0] for state in teacher.hidden_states[2:12:2]], dim=1)
    normal = (torch.nn.functional.normalize(side, p=2, dim=2) for side in (ours, theirs))
    torch.testing.assert_close(objective(student, teacher), torch.nn.functional.mse_loss(*normal))


def test_embeddings_are_compared_beside_a_rule_also_at_depths_found_in_the_first_forward():
    student, teacher = states(3), states(6, seed=1)
    terms = [hidden_state_distance(student.hidden_states[i], teacher.hidden_states[j]) for i, j in ((0, 0), (3, 6))]
    for depth in (facts(3), facts(None)):
        objective = built(depth, facts(6), embeddings=True)
        torch.testing.assert_close(objective(student, teacher), sum(terms) / 2)
    assert len(built(facts(None), facts(6, 5), embeddings=True).projections) == 2


@pytest.mark.parametrize("options", [{"layers": [(1, 1)], "embeddings": True}, {"embeddings": 1}])
def test_embeddings_beside_a_list_are_refused(options):
    with pytest.raises(DistillationError, match=r"HiddenStates\(embeddings=.*as \(0, 0\)"):
        HiddenStates(**options)


def test_projections_follow_the_seed():
    one, two = (built(facts(3), facts(6, 5)).state_dict() for _ in range(2))
    torch.testing.assert_close(one, two)


def test_a_build_for_other_widths_makes_new_projections():
    objective = built(facts(3), facts(6, 5), layers=[(1, 2), (3, 6)])
    kept = objective.projections[0]
    objective.build(facts(3), facts(6, 7))
    assert [layer.out_features for layer in objective.projections] == [7, 7]
    objective.build(facts(3), facts(6, 4))
    assert len(objective.projections) == 0
    assert kept.out_features == 5


@pytest.mark.parametrize("layers", ["first", [], [(1, 2, 3)], [(0, -1)], [(0.5, 1)], [(True, 1)], ["ab"], None, 3])
def test_malformed_layers_are_refused(layers):
    with pytest.raises(DistillationError, match=r"HiddenStates\(layers=\.\.\.\) was given"):
        HiddenStates(layers=layers)


def test_unknown_options_are_refused():
    with pytest.raises(DistillationError, match=r"HiddenStates\(metric=\.\.\.\) was given 'l1'"):
        HiddenStates(metric="l1")
    with pytest.raises(DistillationError, match=r"HiddenStates\(tokens=\.\.\.\) was given 'last'"):
        HiddenStates(tokens="last")
    with pytest.raises(DistillationError, match=r"HiddenStates\(projection=\.\.\.\) was given 'yes'"):
        HiddenStates(projection="yes")


@pytest.mark.parametrize(
    ("options", "student", "teacher", "message"),
    [
        ({"layers": [(4, 6)]}, facts(3), facts(6), r"pair \(4, 6\).*0 \(embeddings\) to 3.*0 to 6"),
        ({"layers": [(3, 7)]}, facts(3), facts(6), r"pair \(3, 7\).*0 to 6"),
        ({"layers": "initialised"}, facts(3), facts(6), r"each of the student's 3 was copied.*says None"),
        ({"layers": "initialised"}, facts(3, initialised_from=(0, 6, 7)), facts(6), r"says \[0, 6, 7\]"),
        ({"layers": "initialised"}, facts(2, initialised_from=(0, 1, 2)), facts(6), r"student's 2 was copied"),
        ({"layers": "uniform"}, facts(None), facts(6), "needs the numbers of layers, and the student says None"),
        ({"layers": "uniform"}, facts(7), facts(6), "7"),
        ({"projection": "never"}, facts(3), facts(6, 5), "the student has the width 4 and the student 5"),
        ({"projection": "always"}, facts(3, None), facts(6), "the student says None"),
    ],
)
def test_models_that_cannot_be_compared_are_refused(options, student, teacher, message):
    with pytest.raises(DistillationError, match=message):
        built(student, teacher, **options)


def test_states_that_do_not_fit_are_refused():
    with pytest.raises(DistillationError, match=r"end at 2 \(student\) and 6 \(teacher\)"):
        built(facts(3), facts(6))(states(2), states(6))
    with pytest.raises(DistillationError, match=r"width 4 \(student\) and 5 \(teacher\)"):
        built(facts(3, None), facts(6, None))(states(3), states(6, 5))
    teacher = states(6)
    teacher.hidden_states = tuple(state[:, :2] for state in teacher.hidden_states)
    with pytest.raises(DistillationError, match=r"\(2, 3, 4\) and the teacher's \(2, 2, 4\).*one tokenizer"):
        built(facts(3), facts(6))(states(3), teacher)
