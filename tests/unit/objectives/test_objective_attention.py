"""Attention: pairs of layers, heads and metrics."""

from __future__ import annotations

import pytest
import torch

from lightning_distilbert.attention import AttentionScores
from lightning_distilbert.errors import DistillationError
from lightning_distilbert.functional import attention_distance
from lightning_distilbert.objectives import Attention
from lightning_distilbert.signals import ModelFacts, Signals

MASK = torch.tensor([[1, 1, 0], [1, 1, 1]]).bool()


def facts(num_layers, num_heads=2, name="the student"):
    return ModelFacts(name, num_layers=num_layers, num_heads=num_heads)


def scored(num_layers, heads=2, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return Signals(
        attention_scores=[torch.randn(2, heads, 3, 3, generator=generator) for _ in range(num_layers)], mask=MASK
    )


def built(**options):
    objective = Attention(**options)
    objective.build(facts(2), facts(4, name="the teacher"))
    return objective


@pytest.mark.parametrize("metric", ["mse", "kl"])
@pytest.mark.parametrize(
    ("layers", "expected"),
    [
        ("last", [(1, 3)]),
        ("uniform", [(0, 0), (1, 3)]),
        ("every", [(0, 1), (1, 3)]),
        ([(1, 3), (2, 2)], [(0, 2), (1, 1)]),
    ],
)
def test_it_is_the_mean_over_the_pairs_of_layers(layers, metric, expected):
    student, teacher = scored(2), scored(4, seed=1)
    terms = [
        attention_distance(student.attention_scores[i], teacher.attention_scores[j], MASK, metric) for i, j in expected
    ]
    torch.testing.assert_close(built(layers=layers, metric=metric)(student, teacher), sum(terms) / len(terms))


def test_every_option_changes_the_loss():
    student, teacher = scored(2), scored(4, seed=1)
    options = [{}, {"layers": "last"}, {"layers": "every"}, {"layers": [(1, 3)]}, {"metric": "kl"}]
    assert len({built(**option)(student, teacher).item() for option in options}) == len(options)


@pytest.mark.parametrize("metric", ["mse", "kl"])
def test_what_stands_at_padding_reaches_no_gradient(metric):
    def gradients(fill):
        torch.manual_seed(0)
        parts = torch.randn(2, 2, 2, 3, 4)
        parts[:, 0, :, 2] = fill  # the padded token of the first row
        queries, keys = (part.clone().requires_grad_() for part in parts)
        student = Signals(attention_scores=AttentionScores([queries], [keys]), mask=MASK)
        loss = Attention(layers="last", metric=metric)(student, scored(1))
        loss.backward()
        return loss.detach(), queries.grad, keys.grad

    clean, dirty = gradients(1.0), gradients(float("nan"))
    assert all(torch.equal(one, other) for one, other in zip(clean, dirty, strict=True))
    assert clean[1].abs().sum() > 0
    # the loss is that of the scores themselves
    torch.manual_seed(0)
    queries, keys = torch.randn(2, 2, 2, 3, 4).unbind()
    given = Signals(attention_scores=[queries @ keys.transpose(-1, -2) / 2], mask=MASK)
    torch.testing.assert_close(clean[0], Attention(layers="last", metric=metric)(given, scored(1)))


def test_only_the_layers_of_the_pairs_are_computed():
    """A model's scores are computed when a layer is asked for."""

    class Lazy(list):
        asked = ()

        def __getitem__(self, index):
            self.asked = (*self.asked, index)
            return super().__getitem__(index)

    student, teacher = scored(2), scored(4, seed=1)
    teacher.attention_scores = Lazy(teacher.attention_scores)
    built(layers=[(1, 3)])(student, teacher)
    assert teacher.attention_scores.asked == (2,)


def test_models_that_do_not_say_how_deep_they_are_are_read_at_the_first_forward():
    objective = Attention(layers="last")
    objective.build(facts(None, None), facts(None, None))
    student, teacher = scored(2), scored(4, seed=1)
    assert objective(student, teacher).item() == built(layers="last")(student, teacher).item()


def test_another_number_of_heads_is_refused_before_training_and_at_the_latest_in_it():
    with pytest.raises(
        DistillationError, match=r"the student has 2 heads and the teacher 3\. Relations has no such limit"
    ):
        Attention().build(facts(2), facts(4, 3, "the teacher"))
    objective = Attention(layers="last")
    objective.build(facts(2, None), facts(4))
    with pytest.raises(DistillationError, match=r"shape \(2, 2, 3, 3\) and the teacher's \(2, 3, 3, 3\)"):
        objective(scored(2), scored(4, heads=3))


def test_what_does_not_fit_is_refused():
    with pytest.raises(DistillationError, match=r"Attention\(metric=\.\.\.\) was given 'cosine'"):
        Attention(metric="cosine")
    with pytest.raises(DistillationError, match=r"end at 1 \(student\) and 4 \(teacher\)"):
        built(layers="last")(scored(1), scored(4))
    teacher = scored(4)
    teacher.mask = MASK[:, :2]
    with pytest.raises(DistillationError, match="one tokenizer"):
        built(layers="last")(scored(2), teacher)
