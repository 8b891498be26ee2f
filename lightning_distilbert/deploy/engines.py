"""Artefacts run by their own runtimes, and as the student of a module: so tasks, data and metrics serve them too."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import AutoConfig, GenerationConfig

from lightning_distilbert.deploy import executorch, keras_model, litert, openvino, torch_export
from lightning_distilbert.deploy.manifest import read_manifest
from lightning_distilbert.deploy.runtime.folder import read_settings
from lightning_distilbert.deploy.runtime.search import Search
from lightning_distilbert.deploy.runtime.session import Session
from lightning_distilbert.deploy.runtime.translator import Translator
from lightning_distilbert.errors import DistillationError
from lightning_distilbert.folder import load_tokenizer
from lightning_distilbert.loading import quiet
from lightning_distilbert.module import CHECKPOINT_KEY, DistillationModule
from lightning_distilbert.spec import from_config

Arrays = dict[str, np.ndarray]
IGNORED = -100


class Engine(Protocol):
    """What runs a model file: `inputs` are the names of what it takes, `run` takes and returns arrays by name."""

    inputs: list[str]

    def run(self, batch: Arrays) -> Arrays:
        """Run a batch.

        Args:
            batch: int64 of shape ``(batch, sequence)`` by the names of the inputs.

        Returns:
            float32 by the names of the outputs.
        """
        ...


ENGINES: dict[str, Callable[[Path, Mapping[str, Any], int | None], Engine]] = {
    "onnx": lambda path, facts, threads: Session(path, threads),
    "onnx-int8": lambda path, facts, threads: Session(path, threads),
    "openvino": lambda path, facts, threads: openvino.OpenVINOEngine(path, facts, threads, facts.get("precision")),
    "openvino-int8": lambda path, facts, threads: openvino.OpenVINOEngine(path, facts, threads, facts.get("precision")),
    "torch-export": lambda path, facts, threads: torch_export.TorchEngine(path, facts, threads),
    "executorch": lambda path, facts, threads: executorch.ExecuTorchEngine(path, facts, threads),
    "keras": lambda path, facts, threads: keras_model.KerasEngine(path, facts, threads),
    "litert": lambda path, facts, threads: litert.LiteRTEngine(path, facts, threads),
}


def open_engine(folder: Path, facts: Mapping[str, Any], threads: int | None = None) -> Engine:
    """Load a model file into its runtime.

    Args:
        folder: The folder of the file.
        facts: A manifest, or as much of it: ``format``, ``model``, ``inputs`` and ``outputs``.
        threads: Threads of one call; None leaves it to the runtime.

    Raises:
        DistillationError: If the format is unknown, or the file cannot be run.
    """
    if facts["format"] not in ENGINES:
        raise DistillationError(f"The format {facts['format']!r} is unknown: known are {', '.join(ENGINES)}.")
    if "decoder" in facts:
        return Translator(folder / facts["model"], folder / facts["decoder"]["model"], threads)
    return ENGINES[facts["format"]](folder / facts["model"], facts, threads)


class ArtefactModel(nn.Module):
    """An engine in the place of a student.

    Args:
        engine: The engine.
        config: The student's config.
    """

    def __init__(self, engine: Engine, config: Any) -> None:
        super().__init__()
        self.engine = engine
        self.config = config

    def forward(self, **batch: Any) -> SimpleNamespace:
        """Run a batch of tensors; inputs that are missing are 0, others are not looked at.

        Args:
            **batch: ``input_ids``, ``attention_mask`` and others.

        Returns:
            The outputs by name, as tensors.
        """
        found = self.engine.run(to_arrays(batch, self.engine.inputs))
        return SimpleNamespace(**{name: torch.from_numpy(value) for name, value in found.items()})


class ArtefactTranslator(ArtefactModel):
    """Two graphs in the place of a student that translates.

    Args:
        engine: What runs them.
        config: The student's config.
        generation_config: How the student searches for its translations.
    """

    engine: Translator

    def __init__(self, engine: Engine, config: Any, generation_config: GenerationConfig) -> None:
        super().__init__(engine, config)
        self.generation_config = generation_config

    def generate(self, generation_config: GenerationConfig | None = None, **batch: Tensor) -> Tensor:
        """Translate a batch, as ``generate`` of the student does.

        Args:
            generation_config: How to search; None is as the student does.
            **batch: ``input_ids`` and ``attention_mask``.

        Returns:
            The tokens of the translations behind their start, of shape ``(batch, tokens)``.
        """
        rules = Search.read((generation_config or self.generation_config).to_diff_dict(), "generate(...)")
        found = torch.from_numpy(self.engine.generate(to_arrays(batch, self.engine.encoder.inputs), rules).tokens)
        return F.pad(found, (1, 0), value=rules.start)


def as_student(engine: Engine, config: Any, settings: Mapping[str, Any] | None = None) -> ArtefactModel:
    """Return an engine in the place of a student.

    Args:
        engine: The engine.
        config: The student's config.
        settings: How it searches for translations, if it does.
    """
    if isinstance(engine, Translator):
        return ArtefactTranslator(engine, config, GenerationConfig(**(settings or {})))
    return ArtefactModel(engine, config)


def to_arrays(batch: Mapping[str, Any], names: Any) -> Arrays:
    """Return the inputs of an engine as arrays.

    Args:
        batch: Tensors by name, ``input_ids`` among them.
        names: The engine's inputs; ``attention_mask`` is 1 and others are 0 where the batch has none.
            ``decoder_attention_mask`` is 1 where there are ``labels``.

    Example:
        >>> found = to_arrays({"input_ids": torch.tensor([[5]])}, ["input_ids", "attention_mask"])
        >>> {name: array.tolist() for name, array in found.items()}
        {'input_ids': [[5]], 'attention_mask': [[1]]}
    """
    ids = batch["input_ids"]
    missing: dict[str, Tensor] = {"attention_mask": torch.ones_like(ids)}
    if "decoder_attention_mask" in names and "labels" in batch:
        missing["decoder_attention_mask"] = batch["labels"] != IGNORED
    tensors = {name: batch.get(name, missing.get(name, torch.zeros_like(ids))) for name in names}
    return {name: np.ascontiguousarray(tensor.cpu().numpy(), dtype=np.int64) for name, tensor in tensors.items()}


def twin(module: Any, model: nn.Module) -> DistillationModule:
    """Return a module with another model in the place of the student, to be evaluated like it.

    Args:
        module: A `DistillationModule`.
        model: The model: another student, or an `ArtefactModel`.
    """
    made = _module(module.task, model, module.tokenizer, module.thresholds)
    made.task.load_state(made, module.task.state(module))
    return made


def _module(task: Any, model: nn.Module, tokenizer: Any, thresholds: Mapping[str, float]) -> DistillationModule:
    if isinstance(model, ArtefactModel) and task.auto_class == "AutoModel":
        task = copy.copy(task)
        # what the graph of retrieval returns is pooled already
        task.embed = lambda student, batch: student(**batch).sentence_embedding
    module = DistillationModule(task=task, student=model)
    module._tokenizer = tokenizer
    module.thresholds = dict(thresholds)
    return module.eval()


def load_artefact(folder: str | Path, threads: int | None = None) -> DistillationModule:
    """Load an artefact of any format as a module that predicts, through the artefact's own runtime.

    It answers as the student did that `lightning_distilbert.load` brings back, and a Trainer tests it like one. Where
    there is no torch, `lightning_distilbert.deploy.runtime` runs ONNX files.

    Args:
        folder: The folder that an export wrote.
        threads: Threads of one call; None leaves it to the runtime.

    Returns:
        The module, without weights of its own.

    Raises:
        DistillationError: If it is no artefact, a file of it is damaged, or its task is no class of this package.
    """
    folder = Path(folder).expanduser()
    manifest = read_manifest(folder)
    details = json.loads((folder / "config.json").read_text(encoding="utf-8")).get(CHECKPOINT_KEY) or {}
    if "task" not in details:
        raise DistillationError(f"{folder / 'config.json'} names no task. Export the student again.")
    task = from_config(details["task"], own_only=True)
    with quiet():
        config = AutoConfig.from_pretrained(folder)
    settings = read_settings(folder, manifest) if "decoder" in manifest else None
    model = as_student(open_engine(folder, manifest, threads), config, settings)
    module = _module(task, model, load_tokenizer(folder), details.get("thresholds") or {})
    task.read_files(module, folder)
    return module
