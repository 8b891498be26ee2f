"""The built wheel, what it declares, and whether the sources need only that."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
import tomllib
import zipfile
from collections.abc import Iterator
from email.message import Message
from email.parser import Parser
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "lightning_distilbert"
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
SOURCES = sorted(PACKAGE.rglob("*.py"))
DISTRIBUTIONS = packages_distributions()
OWN = "lightning_distilbert"
# of the two Lightning packages one is declared; `_compat` takes the other where it is installed
EITHER_LIGHTNING = {"lightning": "pytorch-lightning"}
WITH_EXTRA = {"serving": "serve"}  # packages that are nothing without their extra, and say so when they are imported


def names(requirements: list[str]) -> set[str]:
    return {canonicalize_name(Requirement(text).name) for text in requirements}


DECLARED = [
    Requirement(text)
    for group in [PROJECT["dependencies"], *PROJECT["optional-dependencies"].values()]
    for text in group
]
CORE = names(PROJECT["dependencies"])
EXTRAS = {extra: names(requirements) for extra, requirements in PROJECT["optional-dependencies"].items()}


def distributions_of(module: str) -> set[str]:
    """Return which packages bring a module; an installed package's import name may differ from its own."""
    top = module.split(".")[0]
    return {canonicalize_name(name) for name in DISTRIBUTIONS.get(top, [EITHER_LIGHTNING.get(top, top)])}


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Iterator[zipfile.ZipFile]:
    """Build the wheel from a copy, so that no build folder is left in the checkout."""
    out = tmp_path_factory.mktemp("wheel")
    source = out / "source"
    source.mkdir()
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        (source / name).write_bytes((ROOT / name).read_bytes())
    for path in PACKAGE.rglob("*"):
        if path.is_file() and "__pycache__" not in path.parts:
            copy = source / path.relative_to(ROOT)
            copy.parent.mkdir(parents=True, exist_ok=True)
            copy.write_bytes(path.read_bytes())
    (source / "tests").mkdir()
    (source / "tests" / "test_nothing.py").write_text("", encoding="utf-8")
    command = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(out), str(source)]
    built = subprocess.run(command, capture_output=True, text=True)
    assert built.returncode == 0, built.stdout[-2000:] + built.stderr[-2000:]
    (path,) = out.glob("*.whl")
    with zipfile.ZipFile(path) as archive:
        yield archive


@pytest.fixture(scope="module")
def metadata(wheel: zipfile.ZipFile) -> Message:
    (path,) = (name for name in wheel.namelist() if name.endswith(".dist-info/METADATA"))
    return Parser().parsestr(wheel.read(path).decode("utf-8"))


def test_wheel_holds_every_file_of_the_package_and_nothing_else(wheel: zipfile.ZipFile):
    others = [PACKAGE / "py.typed", *PACKAGE.rglob("*.yaml"), *PACKAGE.rglob("*.html")]
    expected = {str(path.relative_to(ROOT)) for path in [*SOURCES, *others]}
    held = {name for name in wheel.namelist() if ".dist-info/" not in name}
    assert held == expected


def test_wheel_brings_its_licence_and_command(wheel: zipfile.ZipFile):
    names_of_files = wheel.namelist()
    assert any(name.endswith(".dist-info/licenses/LICENSE") for name in names_of_files)
    (entry_points,) = (name for name in names_of_files if name.endswith("entry_points.txt"))
    assert "lightning-distilbert = lightning_distilbert.cli:main" in wheel.read(entry_points).decode("utf-8")


def test_metadata_is_that_of_the_project(metadata: Message):
    assert metadata["Name"] == "lightning-distilbert"
    assert metadata["Version"] == PROJECT["version"]
    assert metadata["Requires-Python"] == ">=3.11"
    assert set(metadata.get_all("Provides-Extra")) == set(EXTRAS)


@pytest.mark.parametrize("version", ["2.6.2", "2.6.3"])
@pytest.mark.parametrize("package", ["pytorch-lightning", "lightning"])
def test_compromised_releases_are_refused(package: str, version: str):
    found = [requirement for requirement in DECLARED if canonicalize_name(requirement.name) == package]
    assert found
    assert all(not requirement.specifier.contains(version) for requirement in found)
    assert all(requirement.specifier.contains("2.6.6") for requirement in found)


def test_constraints_pin_every_declared_package_to_one_admitted_version():
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    pins = dict(line.split("==") for line in lines if line and not line.startswith("#"))
    pins = {canonicalize_name(name): version for name, version in pins.items()}
    assert not [version for version in pins.values() if "+" in version]  # a local build exists on one machine only
    for requirement in DECLARED:
        name = canonicalize_name(requirement.name)
        assert name in pins, f"constraints.txt does not pin {name}: run `make lock`"
        assert requirement.specifier.contains(pins[name]), f"{name} {pins[name]} is outside {requirement.specifier}"


def imports(tree: ast.Module) -> Iterator[tuple[str, int, bool]]:
    """Yield (module, line, optional) for each absolute import; optional where a failure of it is caught."""
    optional_nodes: set[ast.AST] = set()
    for node in ast.walk(tree):
        handlers = node.handlers if isinstance(node, ast.Try) else []
        caught = any(
            re.search("ImportError|ModuleNotFoundError", ast.unparse(one.type)) for one in handlers if one.type
        )
        if caught or (isinstance(node, ast.If) and ast.unparse(node.test).endswith("TYPE_CHECKING")):
            optional_nodes.update(inner for statement in node.body for inner in ast.walk(statement))
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield alias.name, node.lineno, node in optional_nodes
        elif isinstance(node, ast.ImportFrom) and not node.level:
            yield str(node.module), node.lineno, node in optional_nodes


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_module_imports_only_what_the_core_declares(path: Path):
    """What comes with an extra goes through `require`, so that its absence names the extra."""
    allowed = set(sys.stdlib_module_names) | {OWN}
    declared = CORE | EXTRAS.get(WITH_EXTRA.get(path.relative_to(PACKAGE).parts[0], ""), set())
    foreign = [
        f"line {line}: {module}"
        for module, line, optional in imports(ast.parse(path.read_text(encoding="utf-8")))
        if not optional and module.split(".")[0] not in allowed and not distributions_of(module) & declared
    ]
    assert not foreign


def required() -> list[tuple[Path, int, str, str]]:
    """Return (file, line, module, extra) of each call of `require` with literal arguments."""
    found = []
    for path in SOURCES:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if not (isinstance(node, ast.Call) and ast.unparse(node.func).split(".")[-1] == "require"):
                continue
            values = [*node.args, *(keyword.value for keyword in node.keywords)]
            assert len(values) == 2, f"{path}:{node.lineno}: require(module, extra)"
            assert all(isinstance(value, ast.Constant) for value in values), f"{path}:{node.lineno}: not literal"
            module, extra = (ast.literal_eval(value) for value in values)
            found.append((path, node.lineno, module, extra))
    return found


def test_each_require_names_an_extra_that_brings_the_module():
    calls = required()
    assert calls
    for path, line, module, extra in calls:
        assert extra in EXTRAS, f"{path}:{line}: pyproject.toml has no extra {extra!r}"
        assert distributions_of(module) & EXTRAS[extra], f"{path}:{line}: the extra {extra!r} does not bring {module!r}"
