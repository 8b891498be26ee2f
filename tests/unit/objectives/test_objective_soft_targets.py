"""SoftTargets: which activation is chosen, which rows count, and what is refused."""

from __future__ import annotations

import pytest
import torch

from lightning_distilbert.errors import DistillationError
from lightning_distilbert.functional import soft_targets
from lightning_distilbert.objectives import SoftTargets
from lightning_distilbert.schedules import Linear
from lightning_distilbert.signals import ModelFacts, Signals


def facts(num_labels=3, problem_type=None, name="the student"):
    return ModelFacts(name, num_labels=num_labels, problem_type=problem_type)


def pair(*shape, mask=None):
    generator = torch.Generator().manual_seed(0)
    return tuple(Signals(logits=2 * torch.randn(*shape, generator=generator), mask=mask) for _ in range(2))


@pytest.mark.parametrize(
    ("student", "teacher", "expected"),
    [
        (facts(), facts(), "softmax"),
        (facts(1), facts(1), "identity"),
        (facts(problem_type="multi_label_classification"), facts(), "sigmoid"),
        (facts(), facts(problem_type="multi_label_classification"), "sigmoid"),
        (facts(1, "multi_label_classification"), facts(1), "sigmoid"),
        (facts(1, "single_label_classification"), facts(1), "identity"),
        (
            facts(problem_type="single_label_classification"),
            facts(problem_type="single_label_classification"),
            "softmax",
        ),
        (facts(2, "regression"), facts(2, "regression"), "identity"),
        (facts(None), facts(1), "identity"),
        (facts(None, "regression"), facts(None), "identity"),
    ],
)
def test_auto_follows_the_facts(student, teacher, expected):
    objective = SoftTargets()
    objective.build(student, teacher)
    assert objective.resolved == expected
    width = student.num_labels or teacher.num_labels or 3
    signals = pair(4, width)
    found = objective(*signals)
    assert found.item() == soft_targets(signals[0].logits, signals[1].logits, 2.0, activation=expected).item()
    assert found.item() > 0


@pytest.mark.parametrize(("width", "expected"), [(1, "identity"), (3, "softmax")])
def test_auto_without_facts_follows_the_logits(width, expected):
    objective = SoftTargets()
    objective.build(facts(None), facts(None))
    signals = pair(4, width)
    assert (
        objective(*signals).item()
        == soft_targets(signals[0].logits, signals[1].logits, 2.0, activation=expected).item()
    )


def test_an_activation_set_by_hand_wins():
    objective = SoftTargets(activation="sigmoid")
    objective.build(facts(problem_type="single_label_classification"), facts())
    assert objective.resolved == "sigmoid"


def test_temperature_and_activation_change_the_loss():
    signals = pair(4, 3)
    options = [{}, {"temperature": 1.0}, {"activation": "sigmoid"}, {"activation": "identity"}]
    options += [{"divergence": "reverse"}, {"divergence": "js"}, {"divergence": "js", "beta": 0.2}, {"top_k": 1}]
    losses = [SoftTargets(**option)(*signals).item() for option in options]
    assert len(set(losses)) == len(options)


def test_the_temperature_follows_the_progress():
    objective, signals = SoftTargets(temperature=Linear(4.0, 2.0)), pair(4, 3)
    start = objective(*signals).item()
    objective.progress = 1.0
    assert objective(*signals).item() == SoftTargets(temperature=2.0)(*signals).item() != start


def test_token_logits_count_at_real_tokens_and_sentence_logits_at_rows_with_any():
    mask = torch.tensor([[True, False], [False, False], [True, True]])
    student, teacher = pair(3, 2, 4, mask=mask)
    assert (
        SoftTargets()(student, teacher).item() == soft_targets(student.logits[mask], teacher.logits[mask], 2.0).item()
    )
    student, teacher = pair(3, 4, mask=mask)
    rows = [0, 2]
    assert (
        SoftTargets()(student, teacher).item() == soft_targets(student.logits[rows], teacher.logits[rows], 2.0).item()
    )


def test_logits_at_chosen_positions_all_count_and_may_be_none():
    mask = torch.tensor([[True, True, True], [True, False, False]])
    student, teacher = pair(5, 4, mask=mask)
    positions = torch.tensor([[False, True, False], [True, False, False]])
    student.logits, teacher.logits = student.logits[:2], teacher.logits[:2]
    student.positions = teacher.positions = positions
    assert SoftTargets()(student, teacher).item() == soft_targets(student.logits, teacher.logits, 2.0).item()
    student.logits = student.logits[:0].requires_grad_()
    teacher.logits = teacher.logits[:0]
    loss = SoftTargets()(student, teacher)
    loss.backward()
    assert loss.item() == 0.0
    assert student.logits.grad.shape == (0, 4)


def test_token_logits_are_a_distribution_over_labels_and_not_over_the_tokens():
    """A softmax over the second axis, as in a peer's loss, would not be zero here: all tokens say the same."""
    student, teacher = (Signals(logits=torch.tensor([0.0, row]).expand(1, 3, 2)) for row in (1.0, 1.0 + 1e-6))
    teacher.logits = teacher.logits + torch.arange(3.0)[None, :, None]
    assert SoftTargets()(student, teacher).item() == pytest.approx(0.0, abs=1e-6)


def test_sentence_logits_do_not_need_the_same_tokens():
    student, teacher = pair(3, 4)
    student.mask, teacher.mask = torch.ones(3, 5).bool(), torch.ones(3, 9).bool()
    assert SoftTargets()(student, teacher).item() > 0


@pytest.mark.parametrize("temperature", [0.0, -1.0, float("nan"), "hot", Linear(2.0, 0.0)])
def test_a_bad_temperature_is_refused(temperature):
    with pytest.raises(DistillationError, match=r"SoftTargets\(temperature=\.\.\.\) was given .*above 0"):
        SoftTargets(temperature=temperature)


def test_a_bad_activation_is_refused():
    with pytest.raises(DistillationError, match=r"SoftTargets\(activation=\.\.\.\) was given 'relu'"):
        SoftTargets(activation="relu")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"divergence": "kl"}, r"SoftTargets\(divergence=\.\.\.\) was given 'kl'"),
        ({"beta": 1.5}, r"SoftTargets\(beta=1.5\)"),
        ({"beta": "half"}, r"SoftTargets\(beta='half'\)"),
        ({"top_k": 0}, r"SoftTargets\(top_k=0\)"),
        ({"top_k": True}, r"SoftTargets\(top_k=True\)"),
        ({"top_k": 2, "activation": "sigmoid"}, "'sigmoid': each label"),
        ({"divergence": "js", "activation": "identity"}, "'identity': a mean squared error"),
    ],
)
def test_a_bad_divergence_is_refused(options, message):
    with pytest.raises(DistillationError, match=message):
        SoftTargets(**options)


@pytest.mark.parametrize(
    ("objective", "student", "teacher", "message"),
    [
        (SoftTargets(divergence="reverse"), facts(1), facts(1), "'identity': a mean squared error"),
        (SoftTargets(top_k=2), facts(problem_type="multi_label_classification"), facts(), "'sigmoid': each label"),
        (SoftTargets(), facts(2), facts(3, name="the teacher"), "the student has 2 labels and the teacher has 3"),
        (SoftTargets(activation="softmax"), facts(1), facts(1), "a single logit"),
        (SoftTargets(), facts(3, "span"), facts(3), r"met the problem_type \['span'\]"),
        (
            SoftTargets(),
            facts(3, "multi_label_classification"),
            facts(3, "single_label_classification"),
            "'multi_label_classification' and the student 'single_label_classification'",
        ),
    ],
)
def test_models_that_cannot_be_compared_are_refused(objective, student, teacher, message):
    with pytest.raises(DistillationError, match=message):
        objective.build(student, teacher)


def test_logits_of_different_shapes_are_refused():
    student, teacher = pair(4, 3)
    teacher.logits = teacher.logits[:, :1]
    with pytest.raises(DistillationError, match=r"student's logits have the shape \(4, 3\) and the teacher's \(4, 1\)"):
        SoftTargets()(student, teacher)
