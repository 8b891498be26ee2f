"""Specs: what they remember, what is plain, and what a config may lead to."""

from __future__ import annotations

import copy
import enum
import io
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from lightning_distilbert.errors import DistillationError
from lightning_distilbert.objectives import SoftTargets
from lightning_distilbert.schedules import Linear
from lightning_distilbert.spec import Spec, from_config, to_plain


class Point(Spec):
    """Two numbers."""

    def __init__(self, x: object, y: object = 2) -> None:
        self.x, self.y = x, y


class Labelled(Point):
    """Hands its parent other arguments than its own."""

    def __init__(self, label: str, *, scale: int = 1) -> None:
        super().__init__(x=len(label) * scale)
        self.label = label


class Inherited(Point):
    """Has no __init__ of its own."""


class Layer(Spec, nn.Module):
    """A module, whose own __init__ must not wipe out what was remembered."""

    def __init__(self, width: int = 3) -> None:
        super().__init__()
        self.linear = nn.Linear(width, width)


class Colour(str, enum.Enum):  # noqa: UP042 - the older idiom is the one that a transformers config holds
    """A string that is not quite one."""

    RED = "red"


def path(cls: type) -> str:
    return f"{cls.__module__}.{cls.__name__}"


@pytest.mark.parametrize(
    ("spec", "init_args"),
    [
        (Point(1), {"x": 1}),
        (Point(1, 3), {"x": 1, "y": 3}),
        (Point(y=3, x=1), {"x": 1, "y": 3}),
        (Labelled("abc"), {"label": "abc"}),
        (Labelled("abc", scale=2), {"label": "abc", "scale": 2}),
        (Inherited(5), {"x": 5}),
        (Layer(4), {"width": 4}),
        (Point(Point(1)), {"x": {"class_path": path(Point), "init_args": {"x": 1}}}),
        (Point([Linear(0, 1)]), {"x": [Linear(0, 1).to_config()]}),
    ],
)
def test_a_config_is_what_was_passed_and_builds_the_same(spec, init_args):
    assert spec.to_config() == {"class_path": path(type(spec)), "init_args": init_args}
    again = from_config(spec.to_config())
    assert type(again) is type(spec)
    assert again.to_config() == spec.to_config()


def test_a_parent_keeps_what_its_subclass_passed():
    assert from_config(Labelled("abc", scale=2).to_config()).x == 6


def test_a_deep_copy_remembers_too():
    assert copy.deepcopy(Layer(4)).to_config() == Layer(4).to_config()


@pytest.mark.parametrize(
    ("value", "plain"),
    [
        ((1, 2.5, "a", None, True), [1, 2.5, "a", None, True]),
        ({"a": (1, {"b": ()})}, {"a": [1, {"b": []}]}),
        ({3}, [3]),
        (Path("a") / "b", str(Path("a/b"))),
        (np.float64(0.5), 0.5),
        (Colour.RED, "red"),
    ],
)
def test_plain_values_survive_a_weights_only_load(value, plain):
    found = to_plain(value, "x")
    assert found == plain
    assert type(found) is type(plain)
    buffer = io.BytesIO()
    torch.save(found, buffer)
    buffer.seek(0)
    assert torch.load(buffer, weights_only=True) == plain


@pytest.mark.parametrize("value", [object(), torch.zeros(1), nn.ReLU(), [{"a": len}]])
def test_what_is_not_plain_is_refused_by_name(value):
    with pytest.raises(DistillationError, match=r"Point\(x=\.\.\.\) is a .* cannot hold as a plain value"):
        Point(value).to_config()


def test_from_config_goes_through_lists_and_dicts_and_leaves_objects():
    objective = SoftTargets()
    found = from_config([{"a": Point(1).to_config()}, objective, "text", ()])
    assert found[0]["a"].x == 1
    assert found[1] is objective
    assert found[2:] == ["text", []]


class Handing(Point):
    def __init__(self, z: int = 0, *others: int, **kwargs: int) -> None:
        super().__init__(*others, **kwargs)
        self.z = z


def test_arguments_that_are_handed_on_are_recorded_by_name():
    config = Handing(3, x=1).to_config()
    assert config["init_args"] == {"z": 3, "x": 1}
    again = from_config(config)
    assert (type(again), again.z, again.x) == (Handing, 3, 1)
    with pytest.raises(DistillationError, match=r"Handing\(\.\.\.\) was given \(1,\) for \*others, without names"):
        Handing(3, 1)
    config["init_args"]["w"] = 1
    with pytest.raises(DistillationError, match=r"Handing cannot be built from .* unexpected keyword argument 'w'"):
        from_config(config)


@pytest.mark.parametrize("init_args", [None, {}])
def test_arguments_may_be_left_out(init_args):
    config = {"class_path": "lightning_distilbert.objectives.SoftTargets", "init_args": init_args}
    assert isinstance(from_config(config), SoftTargets)
    del config["init_args"]
    assert isinstance(from_config(config), SoftTargets)


@pytest.mark.parametrize(
    "class_path",
    [
        "os.system",
        "subprocess.Popen",
        "torch.nn.ReLU",
        "Linear",
        "",
        "no_such_module.Thing",
        "lightning_distilbert.schedules.Nothing",
        "lightning_distilbert.nothing.Linear",
        "lightning_distilbert.schedules.math",
    ],
)
def test_a_class_path_to_anything_else_is_refused(class_path):
    with pytest.raises(DistillationError, match=f"'{class_path}' leads to no task"):
        from_config({"class_path": class_path, "init_args": {}})


def test_a_module_that_nobody_imported_is_not_imported(tmp_path, monkeypatch):
    (tmp_path / "stranger.py").write_text("raise RuntimeError('it ran')")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(DistillationError, match="must be imported before"):
        from_config({"class_path": "stranger.Thing"})


def test_arguments_that_the_class_does_not_take_are_refused():
    with pytest.raises(DistillationError, match=r"Linear cannot be built from \{'start': 0\}: .*'end'"):
        from_config({"class_path": "lightning_distilbert.schedules.Linear", "init_args": {"start": 0}})


def test_stored_config_cannot_ask_for_remote_code():
    config = {"class_path": "lightning_distilbert.student.Student", "init_args": {"source": "x"}}
    assert from_config(config).source == "x"
    config["init_args"]["trust_remote_code"] = True
    with pytest.raises(
        DistillationError, match=r"stored Student asks for trust_remote_code=True.*Student\(\.\.\., trust"
    ):
        from_config(config)
