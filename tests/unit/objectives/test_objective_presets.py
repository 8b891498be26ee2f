"""Presets by name, and what else the objectives argument may be."""

from __future__ import annotations

import pytest
import torch

from lightning_distilbert.errors import DistillationError
from lightning_distilbert.functional import soft_targets
from lightning_distilbert.mapping import layer_choice
from lightning_distilbert.objectives import PRESETS, HiddenStates, Preset, SoftTargets, resolve_objectives
from lightning_distilbert.schedules import Linear
from lightning_distilbert.signals import ModelFacts


def summary(preset):
    return [(type(o).__name__, o.to_config()["init_args"]) for o in preset.objectives]


def test_distilbert_has_the_weights_of_the_paper():
    preset = resolve_objectives("distilbert")
    assert preset.task_weight == 2.0
    assert summary(preset) == [
        ("SoftTargets", {"temperature": 2.0, "weight": 5.0}),
        ("HiddenStates", {"layers": "last", "metric": "cosine", "weight": 1.0}),
    ]


def test_logits_and_embedding():
    logits, embedding = resolve_objectives("logits"), resolve_objectives("embedding")
    assert (summary(logits), logits.task_weight) == ([("SoftTargets", {"temperature": 2.0, "weight": 0.5})], 0.5)
    assert embedding.task_weight == 0.0
    assert [(o.name, o.weight) for o in embedding.objectives] == [("sentence_embedding", 1.0), ("similarity", 1.0)]


@pytest.mark.parametrize(
    ("name", "expected", "task_weight"),
    [
        (
            "layerwise",
            [
                ("SoftTargets", {"temperature": 2.0, "weight": 1.0}),
                ("HiddenStates", {"layers": "auto", "metric": "mse", "weight": 10.0}),
            ],
            1.0,
        ),
        (
            "tinybert",
            [
                ("Attention", {"layers": "auto", "metric": "mse", "weight": 1.0}),
                ("HiddenStates", {"layers": "auto", "metric": "mse", "embeddings": True, "weight": 1.0}),
            ],
            0.0,
        ),
        ("tinybert-prediction", [("SoftTargets", {"temperature": 1.0, "weight": 1.0})], 0.0),
        ("minilm", [("Relations", {"weight": 1.0})], 0.0),
        (
            "textbrewer",
            [
                ("SoftTargets", {"temperature": 8.0, "weight": 1 / 64}),
                ("HiddenStates", {"layers": "auto", "metric": "mse", "embeddings": True, "weight": 1.0}),
            ],
            0.0,
        ),
        (
            "patient",
            [
                ("SoftTargets", {"temperature": 10.0, "weight": 0.5}),
                ("HiddenStates", {"layers": "skip", "metric": "normalized_mse", "tokens": "first", "weight": 100.0}),
            ],
            0.5,
        ),
    ],
)
def test_presets_of_other_papers(name, expected, task_weight):
    preset = resolve_objectives(name)
    assert (summary(preset), preset.task_weight) == (expected, task_weight)


def test_tinybert_compares_no_logits_and_follows_the_layers_that_were_copied():
    preset = resolve_objectives("tinybert")
    chosen = layer_choice(12, 4, rule="every")  # of the recipe: the paper's map
    for objective in preset.objectives:
        objective.build(
            ModelFacts("a", num_layers=4, hidden_size=312, num_heads=12, initialised_from=chosen, initialised_depth=12),
            ModelFacts("b", num_layers=12, hidden_size=768, num_heads=12),
        )
    attention, hidden = preset.objectives
    assert attention.pairs == ((1, 3), (2, 6), (3, 9), (4, 12))
    assert hidden.pairs == ((0, 0), *attention.pairs)
    assert len(hidden.projections) == 5
    assert {signal for o in preset.objectives for signal in o.requires} == {"attention_scores", "hidden_states"}


def test_the_soft_targets_of_textbrewer_have_the_gradient_of_its_cross_entropy_without_a_factor():
    soft = resolve_objectives("textbrewer").objectives[0]
    student, teacher = 3 * torch.randn(5, 4), 3 * torch.randn(5, 4)
    gradients = []
    for loss in (
        lambda z: soft.weight * soft_targets(z, teacher, soft.temperature),
        lambda z: -((teacher / 8).softmax(-1) * (z / 8).log_softmax(-1)).sum(-1).mean(),
    ):
        leaf = student.clone().requires_grad_()
        loss(leaf).backward()
        gradients.append(leaf.grad)
    torch.testing.assert_close(*gradients)


@pytest.mark.parametrize("name", list(PRESETS))
def test_each_call_makes_new_objectives(name):
    first, second = resolve_objectives(name), resolve_objectives(name)
    assert not {id(o) for o in first.objectives} & {id(o) for o in second.objectives}


def test_objectives_and_configs_of_them():
    objective = SoftTargets(temperature=3.0)
    config = HiddenStates(layers=[(1, 2)], weight=Linear(1.0, 0.0)).to_config()
    for value in ([objective, config], (objective, config)):
        preset = resolve_objectives(value)
        assert preset.task_weight == 1.0
        assert preset.objectives[0] is objective
        assert preset.objectives[1].to_config() == config
    assert resolve_objectives(objective).objectives == (objective,)
    assert isinstance(resolve_objectives(config).objectives[0], HiddenStates)
    given = Preset((objective,), 0.25)
    assert resolve_objectives(given) is given


def test_a_class_may_come_twice_but_not_an_object():
    assert len(resolve_objectives([SoftTargets(1.0), SoftTargets(4.0)]).objectives) == 2
    objective = SoftTargets()
    with pytest.raises(DistillationError, match="same object twice"):
        resolve_objectives([objective, objective])


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (
            "tinybird",
            r"no objectives named 'tinybird'\. Did you mean 'tinybert'\? Known are distilbert, embedding, layerwise",
        ),
        ("SoftTarget", r"no objectives named 'SoftTarget'\. Did you mean 'SoftTargets'\?"),
        ([], "objectives is empty"),
        (["distilbert"], "objectives holds 'distilbert', which is no objective"),
        ([Linear(0.0, 1.0).to_config()], "which is no objective"),
        (None, "objectives holds None"),
        ([{"class_path": "os.system", "init_args": {}}], "'os.system' leads to no"),
    ],
)
def test_anything_else_is_refused(value, message):
    with pytest.raises(DistillationError, match=message):
        resolve_objectives(value)
