"""Presets by name, and what else the objectives argument may be."""

from __future__ import annotations

import pytest

from lightning_distilbert.errors import DistillationError
from lightning_distilbert.objectives import PRESETS, HiddenStates, Preset, SoftTargets, resolve_objectives
from lightning_distilbert.schedules import Linear


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
        ("tinybird", "no objectives named 'tinybird': known are distilbert, embedding, logits"),
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
