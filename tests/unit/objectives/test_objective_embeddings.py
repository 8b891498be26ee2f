"""Embeddings: hidden states of layer 0 under another name."""

from __future__ import annotations

import pytest
import torch

from lightning_distilbert.errors import DistillationError
from lightning_distilbert.objectives import Embeddings, HiddenStates
from lightning_distilbert.signals import ModelFacts, Signals


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
