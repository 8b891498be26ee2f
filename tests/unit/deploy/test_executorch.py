"""Most of these need the extra executorch: `make test-executorch` installs it into an environment of its own."""

from __future__ import annotations

import gc
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from lightning_distilbert import load
from lightning_distilbert.deploy.engines import load_artefact
from lightning_distilbert.deploy.executorch import ExecuTorchEngine, write_executorch
from lightning_distilbert.deploy.export import export
from lightning_distilbert.deploy.graph import Graph
from lightning_distilbert.deploy.torch_export import trace
from lightning_distilbert.errors import DistillationError, MissingExtraError
from tests.students import FILMS, QUESTION, TASKS

# executorch and torchao warn of their own code when they are imported
pytestmark = [pytest.mark.executorch, pytest.mark.filterwarnings("ignore")]


def executorch() -> Any:
    return pytest.importorskip("executorch.runtime", reason="needs the extra executorch (make test-executorch)")


def test_phone_artefact_answers_as_the_student(classifier: Path, films: list[dict[str, Any]], tmp_path: Path):
    executorch()
    done = export(classifier, tmp_path / "a", "executorch", films)
    assert done.manifest["inputs"][0]["shape"] == [1, "sequence"]
    assert done.retention == 1.0
    assert load_artefact(done.folder).predict(FILMS[:1])[0]["label"] == films[0]["label"]
    (tmp_path / "half.pte").write_bytes((done.folder / "model.pte").read_bytes()[:100])
    with pytest.raises(DistillationError, match="cannot be run by ExecuTorch"):
        ExecuTorchEngine(tmp_path / "half.pte", done.manifest)


def test_questions_of_any_length(tmp_path: Path):
    executorch()
    save, _ = TASKS["questions"]
    folder = save(tmp_path)
    done = export(folder, tmp_path / "a", "executorch")
    found, wanted = load_artefact(done.folder).predict([QUESTION])[0], load(folder).predict([QUESTION])[0]
    assert (found["start"], found["end"]) == (wanted["start"], wanted["end"])


def test_full_disk_under_its_writer(full_disk: Callable[..., dict[str, list[Any]]]):
    executorch()
    code, lines = full_disk("executorch")["executorch"]
    assert (code, len(lines)) == (2, 1)
    assert "could not be written (" in lines[0]


class DocumentedError(Exception):
    """A failure that docs/deploy.md tells of."""


def fail_as_documented(run: Callable[[], object], words: str) -> None:
    try:
        run()
    except Exception as error:
        if words not in "".join(traceback.format_exception(error)):
            raise
    else:
        return
    gc.collect()  # the frames of the failure hold a temporary folder of the converter, which warns when it goes
    raise DocumentedError


def traced(classifier: Path) -> tuple[Graph, torch.export.ExportedProgram]:
    module = load(classifier)
    graph = Graph(module.task, module.student, module.tokenizer.model_input_names)
    return graph, trace(graph, 64)


@pytest.mark.xfail(raises=DocumentedError, strict=True, reason="docs/deploy.md: ExecuTorch in eight bits")
def test_quantiser_of_xnnpack_still_fails(classifier: Path):
    executorch()
    from executorch.backends.xnnpack.quantizer import xnnpack_quantizer as xnnpack
    from torchao.quantization.pt2e.quantize_pt2e import convert_pt2e, prepare_pt2e

    graph, program = traced(classifier)
    quantizer = xnnpack.XNNPACKQuantizer().set_global(xnnpack.get_symmetric_quantization_config(is_dynamic=True))
    prepared = prepare_pt2e(program.module(), quantizer)
    inputs = {name: tensor[:1] for name, tensor in graph.example().items()}
    fail_as_documented(lambda: prepared(**inputs), "aten.index.Tensor")
    convert_pt2e(prepared)


@pytest.mark.xfail(raises=DocumentedError, strict=True, reason="docs/deploy.md: Core ML's converter")
def test_converter_of_core_ml_still_fails(classifier: Path):
    coremltools = pytest.importorskip("coremltools")
    program = traced(classifier)[1].run_decompositions({})
    newest = {"minimum_deployment_target": coremltools.target.iOS17}
    fail_as_documented(lambda: coremltools.convert(program, **newest), "new_ones")


def test_missing_package_names_the_extra(classifier: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    import sys

    monkeypatch.setitem(sys.modules, "executorch.exir", None)
    module = load(classifier)
    graph = Graph(module.task, module.student, module.tokenizer.model_input_names)
    with pytest.raises(MissingExtraError, match=r"lightning-distilbert\[executorch\]"):
        write_executorch(graph, tmp_path, 64)
