"""Embeddings: hidden states of layer 0 under another name."""

from __future__ import annotations

import pytest
import torch

from lightning_distilbert.errors import DistillationError
from lightning_distilbert.objectives import Embeddings, HiddenStates
from lightning_distilbert.signals import ModelFacts, Signals
from tests.gradients import assert_same_gradients


def states(width, seed):
    generator = torch.Generator().manual_seed(seed)
    return Signals(hidden_states=tuple(torch.randn(2, 3, width, generator=generator) for _ in range(3)))


def built(cls, width, teacher_width, **options):
    torch.manual_seed(0)
    objective = cls(**options)
    objective.build(ModelFacts("a", num_layers=2, hidden_size=width), ModelFacts("b", 2, hidden_size=teacher_width))
    return objective


@pytest.mark.parametrize(("teacher_width", "projection"), [(4, "auto"), (4, "always"), (6, "auto")])
def test_it_is_the_mean_square_of_the_embedding_outputs(teacher_width, projection):
    student, teacher = states(4, 0), states(teacher_width, 1)
    objective = built(Embeddings, 4, teacher_width, projection=projection)
    left = student.hidden_states[0]
    for layer in objective.projections:
        left = layer(left)
    expected = (left - teacher.hidden_states[0]).square().mean()
    torch.testing.assert_close(objective(student, teacher), expected)
    assert len(objective.projections) == (0 if (teacher_width, projection) == (4, "auto") else 1)
    same = built(HiddenStates, 4, teacher_width, layers=[(0, 0)], metric="mse", projection=projection)
    assert objective(student, teacher).item() == same(student, teacher).item()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_gradients_of_states_and_projection_agree_with_a_loop(dtype):
    """TinyBERT's equation 9 in float64, one real token after another."""
    student, teacher = (x.hidden_states[0].to(dtype) for x in (states(4, 0), states(6, 1)))
    mask = torch.tensor([[1, 1, 0], [1, 0, 0]]).bool()
    objective = built(Embeddings, 4, 6)
    (layer,) = objective.projections
    leaves = [student, layer.weight, layer.bias]
    twins = [x.detach().double().requires_grad_() for x in leaves]
    student[~mask], teacher[~mask] = float("nan"), float("nan")
    student.requires_grad_()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = objective(*(Signals(hidden_states=(x,), mask=mask) for x in (student, teacher)))
    pairs = zip(twins[0][mask], teacher[mask].double(), strict=True)
    expected = sum(((twins[1] @ ours + twins[2] - theirs) ** 2).sum() / 6 for ours, theirs in pairs) / 3
    assert_same_gradients(found, expected, leaves, twins)


def test_errors_and_configs_name_it():
    assert Embeddings(weight=2.0).to_config() == {
        "class_path": "lightning_distilbert.objectives.embeddings.Embeddings",
        "init_args": {"weight": 2.0},
    }
    assert Embeddings().name == "embeddings"
    with pytest.raises(DistillationError, match=r"Embeddings\(projection='never'\)"):
        built(Embeddings, 4, 6, projection="never")
    with pytest.raises(DistillationError, match="Embeddings needs hidden states, and the student gave none"):
        Embeddings()(Signals(), states(4, 0))
