"""A student on its way to an artefact: its graphs, and what is written of it in each format."""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

from lightning_distilbert import __version__, evaluation
from lightning_distilbert.deploy.executorch import write_executorch
from lightning_distilbert.deploy.graph import Graph
from lightning_distilbert.deploy.keras_model import INPUTS, build_keras, check_student, write_keras
from lightning_distilbert.deploy.litert import write_litert
from lightning_distilbert.deploy.onnx import FLOAT_FILE, opset_of, write_onnx
from lightning_distilbert.deploy.openvino import OpenVINOQuantizer, write_openvino
from lightning_distilbert.deploy.quantization import OnnxQuantizer, PairQuantizer
from lightning_distilbert.deploy.runtime.folder import SETTINGS, TARGET
from lightning_distilbert.deploy.seq2seq import AUTO_CLASS, DECODER, ENCODER, Seq2SeqGraph
from lightning_distilbert.deploy.torch_export import write_torch
from lightning_distilbert.errors import DistillationError
from lightning_distilbert.folder import student_tokenizer, tokenizer_files
from lightning_distilbert.module import CHECKPOINT_KEY, DistillationModule
from lightning_distilbert.prediction import room
from lightning_distilbert.spec import to_plain

# the formats, and the packages whose versions a manifest tells
FORMATS: dict[str, tuple[str, ...]] = {
    "onnx": ("onnx", "onnxscript", "onnxruntime"),
    "onnx-int8": ("onnx", "onnxscript", "onnxruntime"),
    "openvino": ("onnx", "onnxscript", "openvino"),
    "openvino-int8": ("onnx", "onnxscript", "openvino", "nncf"),
    "torch-export": (),
    "executorch": ("executorch",),
    "keras": ("keras", "keras-hub"),
    "litert": ("keras", "keras-hub", "tensorflow", "ai-edge-litert"),
}
FLOAT_OF = {"onnx-int8": "onnx", "openvino-int8": "openvino"}
TRANSLATING = ("onnx", "onnx-int8")
KERAS = ("keras", "litert")  # the formats that go through a Keras model


class Job:
    """A student on its way to an artefact.

    Args:
        module: The student's `DistillationModule`.
        format: The format.
        opset: The version of ONNX's operator set, where it goes through ONNX.
        static: Whether ranges are fixed in advance.

    Attributes:
        graph: What the student computes, as it is verified.
        graphs: The graphs that are written, by the names of their ONNX files: the same one, or an encoder and a
            decoder.

    Raises:
        DistillationError: If the student cannot be exported, or not in this format.
    """

    def __init__(self, module: DistillationModule, format: str, opset: int, static: bool = False) -> None:
        config: Any = getattr(module.student, "config", None)
        if getattr(config, "fresh_head", False):
            raise DistillationError(
                f"The head of this {type(module.student).__name__} was never trained: its answers would be random. "
                "Train it first."
            )
        self.module, self.format, self.opset = module, format, opset
        self.tokenizer = student_tokenizer(module.tokenizer, module.student)
        self.graph: Any
        if module.task.auto_class == AUTO_CLASS:
            _check_translating(module, format, static)
            self.graph = Seq2SeqGraph(module.task, module.student)
            self.graphs: dict[str, Any] = {ENCODER: self.graph.encoder, DECODER: self.graph.decoder}
        else:
            self.graph = Graph(module.task, module.student, self.tokenizer.model_input_names)
            self.graphs = {FLOAT_FILE: self.graph}
        if format in KERAS:
            check_student(self.graph)

    def facts(self, format: str, file: str) -> dict[str, Any]:
        """Return what a manifest says of the graphs.

        Args:
            format: The format.
            file: The name of the model's file; of two, that of the encoder.
        """
        batch: Any = 1 if format == "executorch" else "batch"
        versions = {name: version(name) for name in ("torch", "transformers", *FORMATS[self.format])}
        told = [
            {
                "model": name,
                "inputs": [
                    {"name": item, "dtype": dtype, "shape": [batch, *axes[1:]]}
                    for item, (dtype, axes) in graph.signature().items()
                ],
                "outputs": [
                    {"name": item, "dtype": "float32", "shape": [batch, *axes[1:]]}
                    for item, axes in graph.outputs.items()
                ],
            }
            for name, graph in zip((file, file.replace("encoder", "decoder")), self.graphs.values(), strict=False)
        ]
        return {
            "format": format,
            "task": type(self.module.task).__name__,
            **told[0],
            **({"decoder": told[1]} if len(told) > 1 else {}),
            "max_length": room(self.module),
            "parameters": sum(parameter.numel() for parameter in self.graph.model.parameters()),
            "opset": None,
            "quantization": None,
            "versions": {"lightning_distilbert": __version__, **versions},
        }

    def write_float(self, format: str, folder: Path, scratch: Path) -> dict[str, Any]:
        """Write a float model, and return what the manifest says of it.

        Args:
            format: A format in float.
            folder: Where to.
            scratch: A folder for what comes in between; ONNX files that are there already are taken.
        """
        if format == "torch-export":
            return self.facts(format, write_torch(self.graph, folder))
        if format == "executorch":
            return self.facts(format, write_executorch(self.graph, folder, room(self.module)))
        if format in KERAS:
            return self._write_keras(format, folder)
        for name, graph in self.graphs.items():
            if not (scratch / name).exists():
                write_onnx(graph, scratch / name, self.opset)
        facts = {"opset": self.opset_of(scratch)}
        if format != "onnx":
            return self.facts(format, write_openvino(scratch / FLOAT_FILE, folder)) | facts
        if folder != scratch:
            for name in self.graphs:
                shutil.move(scratch / name, folder / name)
        return self.facts(format, next(iter(self.graphs))) | facts

    def _write_keras(self, format: str, folder: Path) -> dict[str, Any]:
        model = build_keras(self.graph, self.tokenizer, room(self.module))
        write, names = (write_keras, INPUTS) if format == "keras" else (write_litert, {})
        facts = self.facts(format, write(model, self.graph, folder))
        inputs = [item | {"name": names.get(item["name"], item["name"]), "dtype": "int32"} for item in facts["inputs"]]
        return facts | {"inputs": inputs}

    def opset_of(self, scratch: Path) -> int:
        """Return the version of the operator set that the ONNX files ask for."""
        return opset_of(scratch / next(iter(self.graphs)))

    def quantizer(self, scratch: Path, seen: Sequence[dict[str, np.ndarray]] | None, reduce_range: bool | None) -> Any:
        """Return what makes int8 models of the float ones.

        Args:
            scratch: Where these are.
            seen: The calibration rows, if there are some.
            reduce_range: As in `OnnxQuantizer`.
        """
        sources = [scratch / name for name in self.graphs]
        if self.format == "openvino-int8":
            return OpenVINOQuantizer(sources[0], seen or ())
        parts = [OnnxQuantizer(source, reduce_range, seen) for source in sources]
        return parts[0] if len(parts) == 1 else PairQuantizer(*parts)

    def write_texts(self, folder: Path) -> None:
        """Write tokenizers, config and settings: what a runtime needs beside the model."""
        files = tokenizer_files(self.tokenizer)
        config = json.loads(files["tokenizer_config.json"]) | {"model_max_length": room(self.module)}
        files["tokenizer_config.json"] = _json(config)
        for name, text in files.items():
            (folder / name).write_text(text, encoding="utf-8")
        self.module.task.write_files(self.module, folder)
        if self.graph.settings is not None:
            (folder / SETTINGS).write_text(_json(self.graph.settings), encoding="utf-8")
        student: Any = self.module.student
        values = json.loads(student.config.to_json_string())
        values = {name: value for name, value in values.items() if name not in (CHECKPOINT_KEY, "fresh_head")}
        labels = self.module.labels
        if labels:
            values["id2label"] = {str(index): label for index, label in enumerate(labels)}
            values["label2id"] = {label: index for index, label in enumerate(labels)}
        details = to_plain(evaluation.details(self.module), "the student's details")
        values["architectures"] = [type(self.graph.model).__name__]
        values[CHECKPOINT_KEY] = {**details, "labels": list(labels) if labels else None}
        (folder / "config.json").write_text(_json(values), encoding="utf-8")


def _check_translating(module: DistillationModule, format: str, static: bool) -> None:
    if format not in TRANSLATING:
        raise DistillationError(
            f"A student that translates is two graphs and a search, which {format} does not hold. The formats "
            f"{' and '.join(TRANSLATING)} do."
        )
    if static:
        raise DistillationError(
            "static=True is not for a student that translates: its decoder would have to be calibrated on what it "
            "writes itself. Leave it out: ranges are then measured as the model runs."
        )
    # without a target tokenizer this fails here, and not after the export
    kept = module.task.state(module).get(TARGET)
    if isinstance(kept, str):
        raise DistillationError(
            f"The target tokenizer {kept!r} has no tokenizer.json, which a device reads. Take the fast tokenizer of "
            "that model, and save it there."
        )
    if kept is None:
        raise DistillationError(
            "The module has no target tokenizer, so that nobody knows what its tokens mean. Load a saved student, or "
            "give it one: TranslationStudent(target_tokenizer=...)."
        )


def _json(value: Any) -> str:
    return json.dumps(value, indent=2, ensure_ascii=False, sort_keys=True) + "\n"
