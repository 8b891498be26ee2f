"""SentenceEmbedding: metric, projection and what is refused."""

from __future__ import annotations

import pytest
import torch

from lightning_distilbert.errors import DistillationError
from lightning_distilbert.functional import embedding_distance
from lightning_distilbert.objectives import SentenceEmbedding
from lightning_distilbert.signals import ModelFacts, Signals
from tests.gradients import assert_same_gradients
from tests.unit.objectives.test_objective_orthogonal import gram_schmidt


def facts(hidden_size, name="the student"):
    return ModelFacts(name, hidden_size=hidden_size)


def embedded(width, seed=0, rows=3):
    return Signals(embedding=torch.randn(rows, width, generator=torch.Generator().manual_seed(seed)))


def built(student_width=4, teacher_width=4, **options):
    torch.manual_seed(0)
    objective = SentenceEmbedding(**options)
    objective.build(facts(student_width), facts(teacher_width, "the teacher"))
    return objective


@pytest.mark.parametrize("metric", ["cosine", "mse"])
def test_it_is_the_distance_of_the_embeddings(metric):
    student, teacher = embedded(4), embedded(4, 1)
    expected = embedding_distance(student.embedding, teacher.embedding, metric=metric)
    assert built(metric=metric)(student, teacher).item() == expected.item()


def test_every_option_changes_the_loss():
    student, teacher = embedded(4), embedded(4, 1)
    losses = [built(**o)(student, teacher).item() for o in ({}, {"metric": "mse"}, {"projection": "always"})]
    assert len(set(losses)) == 3
    assert built(projection="never")(student, teacher).item() == losses[0]


def test_other_widths_go_through_a_projection_that_learns():
    objective, student, teacher = built(4, 6), embedded(4), embedded(6, 1)
    (projection,) = objective.projections
    loss = objective(student, teacher)
    torch.testing.assert_close(loss, embedding_distance(projection(student.embedding), teacher.embedding))
    loss.backward()
    assert projection.weight.grad.abs().sum() > 0


@pytest.mark.parametrize("metric", ["cosine", "mse"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_gradients_of_embeddings_and_projection_agree_with_a_loop(metric, dtype):
    """The formulas in float64, one sentence after another; the second has no token."""
    student, teacher = (x.embedding.to(dtype) for x in (embedded(4), embedded(6, 1)))
    mask = torch.tensor([[1, 0], [0, 0], [1, 1]]).bool()
    objective = built(4, 6, metric=metric)
    (layer,) = objective.projections
    leaves = [student, layer.weight]
    twins = [x.detach().double().requires_grad_() for x in leaves]
    student[1], teacher[1] = float("nan"), float("nan")
    student.requires_grad_()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = objective(*(Signals(embedding=x, mask=mask) for x in (student, teacher)))
    expected = torch.zeros((), dtype=torch.float64)
    for row in (0, 2):
        ours, theirs = gram_schmidt(twins[1]) @ twins[0][row], teacher[row].double()
        if metric == "cosine":
            expected = expected + (1 - ours @ theirs / ((ours @ ours) * (theirs @ theirs)).sqrt()) / 2
        else:
            expected = expected + ((ours - theirs) ** 2).sum() / 6 / 2
    assert_same_gradients(found, expected, leaves, twins)


def test_the_models_may_have_tokens_of_their_own_and_rows_without_any_do_not_count():
    student, teacher = embedded(4), embedded(4, 1)
    student.mask = torch.tensor([[1, 0], [0, 0], [1, 1]]).bool()
    teacher.mask = torch.ones(3, 7).bool()
    expected = embedding_distance(student.embedding[[0, 2]], teacher.embedding[[0, 2]])
    assert built()(student, teacher).item() == expected.item()


def test_bad_options_and_embeddings_are_refused():
    with pytest.raises(DistillationError, match=r"SentenceEmbedding\(metric=\.\.\.\) was given 'dot'"):
        SentenceEmbedding(metric="dot")
    with pytest.raises(DistillationError, match=r"SentenceEmbedding\(projection=\.\.\.\) was given None"):
        SentenceEmbedding(projection=None)
    with pytest.raises(DistillationError, match="the student has the width 4 and the teacher 6"):
        built(4, 6, projection="never")
    with pytest.raises(DistillationError, match="needs the widths of both models"):
        built(4, None, projection="always")
    with pytest.raises(DistillationError, match=r"width 4 \(student\) and 6 \(teacher\)"):
        built(None, None)(embedded(4), embedded(6))
    with pytest.raises(DistillationError, match=r"embeddings have the shape \(3, 4\) and the teacher's \(2, 4\)"):
        built()(embedded(4), embedded(4, rows=2))
