"""Errors name the extra to install, and the value that was seen."""

from __future__ import annotations

import math

import pytest

from lightning_distilbert.errors import DistillationError, MissingExtraError, check_choice, nearest, require


def test_require_returns_the_module_itself():
    assert require("math", extra="data") is math
    assert require("os.path", extra="data").basename("a/b") == "b"


@pytest.mark.parametrize("module", ["no_such_package", "no_such_package.inner"])
def test_require_names_package_and_extra(module):
    with pytest.raises(
        MissingExtraError, match=r"'no_such_package'.*pip install 'lightning-distilbert\[data\]'"
    ) as caught:
        require(module, extra="data")
    assert isinstance(caught.value.__cause__, ImportError)


def test_kinds_of_errors():
    assert issubclass(DistillationError, ValueError)
    assert issubclass(MissingExtraError, ImportError)


@pytest.mark.parametrize("value", ["media", None, 3, ["mean"]])
def test_a_value_that_is_no_choice_is_shown_with_the_choices(value):
    with pytest.raises(DistillationError) as caught:
        check_choice("pool(mode=...)", value, ("mean", "cls"))
    assert str(caught.value) == f"pool(mode=...) was given {value!r}: choose one of 'mean', 'cls'."


def test_a_choice_passes():
    assert check_choice("pool(mode=...)", "cls", ("mean", "cls")) is None


def test_the_nearest_choice_is_named_in_its_own_spelling_or_none():
    choices = ["TextClassification", "TokenClassification", "Retrieval"]
    assert nearest("textclassificaton", choices) == " Did you mean 'TextClassification'?"
    assert nearest("RETRIEVAL", choices) == " Did you mean 'Retrieval'?"
    assert nearest("nonsense", choices) == nearest(3, choices) == nearest("x", []) == ""
