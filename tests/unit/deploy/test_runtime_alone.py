"""The runtime works in a process that cannot import torch, transformers or Lightning."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lightning_distilbert import DistillationModule, IntentClassification, Student, TokenClassification, load
from tests.artefacts import make_artefact
from tests.conftest import save_tiny_bert
from tests.students import FILMS, TASKS
from tests.unit.deploy.test_runtime_artefact import assert_same

ROOT = Path(__file__).resolve().parents[3]
ALONE = """
import json, sys

class Refuse:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in REFUSED:
            raise ImportError(f"{name} is not here")

REFUSED = {"torch", "transformers", "pytorch_lightning", "lightning", "lightning_utilities", "torchmetrics",
           "jsonargparse", "safetensors", "scipy", "sklearn", "onnx", "pandas"}
sys.meta_path.insert(0, Refuse())
for name in REFUSED:
    try:
        __import__(name)
    except ImportError:
        continue
    sys.exit(f"{name} was imported")
from lightning_distilbert.deploy import runtime
artefact = runtime.load(sys.argv[1])
print(json.dumps(artefact.predict(json.loads(sys.argv[2]))))
print(json.dumps(sorted({name.partition(".")[0] for name in sys.modules})))
"""

# for an interpreter with -S, which knows the standard library and one folder of packages
ON_A_DEVICE = """
import json, sys
from lightning_distilbert.deploy import runtime
for folder, inputs in json.loads(sys.argv[1]):
    print(json.dumps(runtime.load(folder).predict([tuple(i) if isinstance(i, list) else i for i in inputs])))
"""


@pytest.fixture(scope="module")
def student(tiny_tagger_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("alone") / "student"
    module = DistillationModule(TokenClassification(), student=Student(source=str(tiny_tagger_dir), layers=2))
    return Path(module.save_student(path))


def alone(code: str, *arguments: str, site: Path | None = None) -> list[Any]:
    environment = os.environ | {"PYTHONPATH": str(site or ROOT)}
    command = [sys.executable, *(["-S"] if site else []), "-c", code, *arguments]
    result = subprocess.run(command, capture_output=True, text=True, env=environment, cwd=site or ROOT, timeout=200)
    assert result.returncode == 0, result.stderr[-3000:]
    return [json.loads(line) for line in result.stdout.splitlines()]


def test_it_predicts_where_nothing_else_can_be_imported(student: Path, tmp_path: Path):
    artefact = make_artefact(student, tmp_path / "artefact")
    texts = ["the man of the city", "", ["a", "long", "film"], "the woman and the house of the child " * 30]
    answers, loaded = alone(ALONE, str(artefact), json.dumps(texts))
    wanted = load(student).predict(texts)
    assert sum(map(len, wanted)) > 10
    for found, entities in zip(answers, wanted, strict=True):
        scores = [entity.pop("score") for entity in entities]
        assert [entity.pop("score") for entity in found] == pytest.approx(scores, abs=1e-5)
        assert found == entities
    assert {"onnxruntime", "tokenizers", "numpy", "lightning_distilbert"} <= set(loaded)
    assert not {"torch", "transformers", "tqdm"} & set(loaded)


def save_intents(folder: Path) -> Path:
    task = IntentClassification(labels=["buy", "oos", "see"])
    student = Student(source=str(save_tiny_bert(folder / "teacher")), layers=2)
    module = DistillationModule(task, student=student)
    module.thresholds = {"out_of_scope": 0.4}
    return module.save_student(folder / "student")


def test_each_task_answers_where_only_its_packages_are_installed(device: Path, tmp_path: Path):
    asked, wanted = [], []
    for name, (save, inputs) in (TASKS | {"intents": (save_intents, FILMS[:5])}).items():
        folder = save(tmp_path / name)
        asked.append([str(make_artefact(folder, tmp_path / name / "artefact")), inputs])
        answers = load(folder).predict(inputs)
        wanted.append(answers.tolist() if isinstance(answers, np.ndarray) else answers)
    found = alone(ON_A_DEVICE, json.dumps(asked), site=device)
    assert len(found) == len(wanted) == 7
    for mine, theirs in zip(found, wanted, strict=True):
        assert_same(mine, json.loads(json.dumps(theirs)))


def test_a_missing_package_is_named(student: Path, tmp_path: Path):
    artefact = make_artefact(student, tmp_path / "artefact")
    for name in ("onnxruntime", "tokenizers"):
        code = f"""
import json, sys
sys.modules[{name!r}] = None
from lightning_distilbert.deploy import runtime
try:
    runtime.load(sys.argv[1])
except ImportError as error:
    print(json.dumps(str(error)))
"""
        assert f"The package {name!r} is needed here" in alone(code, str(artefact))[0]
