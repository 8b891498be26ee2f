from __future__ import annotations

import importlib
import sys

import pytest

from lightning_distilbert import deploy


@pytest.mark.parametrize("name", deploy.__all__)
def test_every_public_name_exists_under_its_own_name(name: str):
    assert getattr(deploy, name).__name__ == name
    assert name in dir(deploy)


def test_export_is_the_function_whoever_imports_its_module_first(monkeypatch: pytest.MonkeyPatch):
    for name in ("export", "__getattr__"):
        assert callable(getattr(deploy, name))
    monkeypatch.delitem(sys.modules, "lightning_distilbert.deploy.export")
    module = importlib.import_module("lightning_distilbert.deploy.export")
    assert deploy.export is module.export


def test_an_unknown_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="no attribute 'exprot'"):
        deploy.exprot  # noqa: B018
