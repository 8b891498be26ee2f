"""What an artefact's folder says of itself: its model file, its task, labels and thresholds."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lightning_distilbert.answers import names_in
from lightning_distilbert.deploy.manifest import model_files, read_manifest, verify_files
from lightning_distilbert.deploy.runtime.search import Search
from lightning_distilbert.errors import DistillationError, check_choice

FILES = ("config.json", "tokenizer.json", "tokenizer_config.json")
TARGET = "target_tokenizer"  # the folder of the tokenizer of translations
SETTINGS = "generation_config.json"
TRANSLATING = (SETTINGS, f"{TARGET}/tokenizer.json", f"{TARGET}/tokenizer_config.json")
VERIFY = ("model", "all", "none")
KEY = "lightning_distilbert"
# RoBERTa's kind counts positions from pad_token_id + 1, so that many rows of its table are never used (a rotary ESM has
# no table, and was trained on as many tokens fewer all the same)
OFFSET_POSITIONS = (
    "roberta", "xlm-roberta", "camembert", "mpnet", "longformer", "roberta-prelayernorm", "xlm-roberta-xl",
    "data2vec-text", "ibert", "xmod", "luke", "lilt", "layoutlmv3", "markuplm", "esm",
)  # fmt: skip
# what a task's options are where the folder does not say them: those of its class
DEFAULTS: dict[str, dict[str, Any]] = {
    "TextClassification": {"num_labels": None, "labels": None, "problem_type": "single_label_classification"},
    "IntentClassification": {"labels": None, "out_of_scope": "oos"},
    "TokenClassification": {"num_labels": None, "labels": None},
    "QuestionAnswering": {"no_answer": False, "max_answer_length": 30, "doc_stride": 128, "max_question_length": 64},
    "Retrieval": {"similarity": "cosine"},
    "Reranking": {},
    "MaskedLM": {"top_k": 5},
    "Translation": {},
}


@dataclass(frozen=True)
class Description:
    """What a folder says.

    Attributes:
        model: The file to run.
        decoder: The second file to run, of a student that translates.
        search: How that student searches for translations.
        task: The name of the task's class.
        options: Its options.
        labels: The names of the labels in the order of the head's outputs, or None.
        thresholds: What the task chose on validation data.
        positions: How many tokens the model has positions for, or None where it does not say it.
        width: The size of its vectors, or None.
    """

    model: Path
    task: str
    options: Mapping[str, Any]
    labels: tuple[str, ...] | None
    thresholds: Mapping[str, float]
    positions: int | None
    width: int | None
    decoder: Path | None = None
    search: Search | None = None


def describe(folder: Path, verify: str = "model") -> Description:
    """Read what a folder says, and check that its files are those that were exported.

    Args:
        folder: The folder.
        verify: Whether the hash of the ``"model"`` file is compared with the manifest's, or of ``"all"`` files, or of
            ``"none"``.

    Raises:
        DistillationError: If it is no artefact, a file is damaged, or its task cannot be run here.
    """
    check_choice("load(verify=...)", verify, VERIFY)
    manifest = read_manifest(folder, verify == "all")
    model = str(manifest["model"])
    if not model.endswith(".onnx"):
        raise DistillationError(
            f"{str(folder)!r} is an artefact of the format {manifest['format']!r}, and this runtime runs ONNX. Export "
            "the student in the format onnx or onnx-int8."
        )
    models = model_files(folder, manifest)
    _check_there(folder, (*models, *FILES))
    if verify == "model":
        # a large model has its weights in a file beside it
        parts = {name: told for name, told in manifest["files"].items() if name.startswith(models)}
        verify_files(folder, parts)
    config = _json(folder / "config.json")
    details: Any = config.get(KEY)
    task = details.get("task") if isinstance(details, Mapping) else None
    if not isinstance(task, Mapping):
        raise DistillationError(f"{folder / 'config.json'} names no task of {KEY}. Export the student again.")
    path = str(task.get("class_path"))
    name = path.rpartition(".")[2]
    if name not in DEFAULTS or not path.startswith(f"{KEY}."):
        raise DistillationError(
            f"{folder / 'config.json'} names the task {path!r}, which this runtime does not know. It runs "
            f"{', '.join(DEFAULTS)}."
        )
    if (name == "Translation") != (len(models) > 1):
        raise DistillationError(
            f"{str(folder)!r} holds {' and '.join(models)}, and its task is {name}: config.json and the model do not "
            "belong together. Export the student again."
        )
    options = DEFAULTS[name] | dict(task.get("init_args") or {})
    search = Search.read(read_settings(folder, manifest), str(folder / SETTINGS)) if len(models) > 1 else None
    config = config.get("encoder") or config  # what reads the text
    positions = config.get("max_position_embeddings")
    if isinstance(positions, int) and config.get("model_type") in OFFSET_POSITIONS:
        positions -= int(config.get("pad_token_id") or 0) + 1
    labels = options.get("labels") or names_in(config.get("id2label"))
    return Description(
        folder / model,
        name,
        options,
        tuple(labels) if labels else None,
        _thresholds(folder, details.get("thresholds")),
        positions if isinstance(positions, int) else None,
        config.get("hidden_size") or config.get("dim"),
        folder / models[1] if search is not None else None,
        search,
    )


def model_bytes(folder: Path, manifest: Mapping[str, Any]) -> int:
    """Return the bytes of the model's files, without tokenizer and config.

    Args:
        folder: The folder.
        manifest: Its manifest.
    """
    stems = [Path(name).stem for name in model_files(folder, manifest)]
    return sum(int(told["bytes"]) for name, told in manifest["files"].items() if Path(name).stem in stems)


def read_settings(folder: Path, manifest: Mapping[str, Any]) -> dict[str, Any]:
    """Read how a student that translates searches, and check that its other files are there.

    Args:
        folder: The folder.
        manifest: Its manifest.

    Raises:
        DistillationError: If a file is missing or damaged.
    """
    _check_there(folder, (*model_files(folder, manifest), *TRANSLATING))
    return _json(folder / SETTINGS)


def _check_there(folder: Path, names: Sequence[str]) -> None:
    missing = [name for name in names if not (folder / name).is_file()]
    if missing:
        raise DistillationError(f"The artefact {str(folder)!r} has no {', no '.join(missing)}. Export it again.")


def _thresholds(folder: Path, values: Any) -> dict[str, float]:
    if not isinstance(values, Mapping | None) or not all(
        isinstance(value, (int, float)) and not isinstance(value, bool) for value in (values or {}).values()
    ):
        raise DistillationError(f"{folder / 'config.json'}: the thresholds are {values!r}: they are numbers by name.")
    return {str(name): float(value) for name, value in (values or {}).items()}


def _json(path: Path) -> dict[str, Any]:
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:  # not JSON, or not UTF-8
        raise DistillationError(f"{path} cannot be read: {error}. Export the student again.") from error
    if not isinstance(value, dict):
        raise DistillationError(f"{path} holds no JSON object. Export the student again.")
    return value
