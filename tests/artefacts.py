"""Artefacts for the runtime, made of a saved student by torch.onnx.export alone."""

from __future__ import annotations

import contextlib
import io
import shutil
import warnings
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import lightning_distilbert
from lightning_distilbert.deploy.manifest import write_manifest

SIZES = {"batch": 2, "sequence": 7}


class Graph(nn.Module):
    """What a task computes of tokens."""

    def __init__(self, module: Any, inputs: list[str]) -> None:
        super().__init__()
        self.student = module.student
        self.task = module.task
        self.inputs = inputs

    def forward(self, *values: Tensor) -> tuple[Tensor, ...]:
        batch = dict(zip(self.inputs, values, strict=True))
        output = self.student(**batch)
        if self.task.auto_class == "AutoModel":
            states, mask = output.last_hidden_state, batch["attention_mask"].unsqueeze(-1).float()
            mean = (states * mask).sum(dim=1) / mask.sum(dim=1)
            vectors = states[:, 0] if self.task.pooling == "cls" else mean
            return (nn.functional.normalize(vectors, dim=-1) if self.task.normalize else vectors,)
        return (output.start_logits, output.end_logits) if "start_logits" in output else (output.logits,)


def make_artefact(student: Path, folder: Path) -> Path:
    """Export a saved student, and return the folder of the artefact."""
    module = lightning_distilbert.load(student)
    shape = tuple(SIZES.values())
    encoded = module.tokenizer(["a", "b"])
    inputs = ["input_ids", "attention_mask", *(["token_type_ids"] if "token_type_ids" in encoded else [])]
    values = (torch.randint(5, 40, shape), torch.ones(shape, dtype=torch.long), torch.zeros(shape, dtype=torch.long))
    outputs = {"AutoModel": ["sentence_embedding"], "AutoModelForQuestionAnswering": ["start_logits", "end_logits"]}
    names = outputs.get(module.task.auto_class, ["logits"])
    axes = {name: dict(enumerate(SIZES)) for name in inputs}
    folder.mkdir(parents=True)
    with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
        warnings.simplefilter("ignore")
        torch.onnx.export(
            Graph(module, inputs).eval(), values[: len(inputs)], str(folder / "model.onnx"), input_names=inputs,
            output_names=names, dynamic_axes=axes, dynamo=False,
        )  # fmt: skip
    module.tokenizer.save_pretrained(folder)
    for name in ("config.json", "sentence_bert_config.json"):
        if (student / name).is_file():
            shutil.copy(student / name, folder)
    return seal(folder)


def seal(folder: Path, **facts: Any) -> Path:
    """Write the manifest, and return the folder."""
    write_manifest(folder, {"format": "onnx", "task": "", "model": "model.onnx", "inputs": [], "outputs": []} | facts)
    return folder
