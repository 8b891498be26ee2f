"""What the folder of a saved student or of an artefact says of it."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from safetensors import safe_open

from lightning_distilbert import saved
from lightning_distilbert.answers import names_in
from lightning_distilbert.deploy.manifest import is_artefact, read_manifest
from lightning_distilbert.deploy.runtime.folder import model_bytes
from lightning_distilbert.errors import DistillationError
from lightning_distilbert.folder import SENTENCE_BERT, read_json, unused_positions
from lightning_distilbert.provenance import checked
from lightning_distilbert.spec import from_config

KEY = "lightning_distilbert"
SPLITS = {"val": "validation", "test": "test"}
LONGEST = 1_000_000  # what a tokenizer without a limit gives is far above it


@dataclass(frozen=True)
class Facts:
    """What is known of a student, or of an artefact of it.

    Attributes:
        folder: Its folder.
        config: Its config.json.
        task: Its task; for one of another package the one that its architecture suggests.
        task_name: The name of the class that it was trained with.
        headless: Whether it has no head for its task, because none was trained.
        labels: The names of its labels, or None.
        parameters: Their number.
        bytes: The size of its weights, or of the files that an artefact runs.
        max_length: Tokens that it reads at most, or None where nothing says it.
        lower_case: Whether it sees all letters as small ones.
        mask_token: How a masked token is written, or None.
        scores: For each split the metrics by name, None where one is not defined.
        fits: What is known of each fit.
        manifest: Of an artefact what its manifest says; empty otherwise.
    """

    folder: Path
    config: Mapping[str, Any]
    task: Any
    task_name: str
    headless: bool
    labels: list[str] | None
    parameters: int
    bytes: int
    max_length: int | None
    lower_case: bool
    mask_token: str | None
    scores: Mapping[str, Mapping[str, float | None]]
    fits: list[dict[str, Any]] = field(default_factory=list)
    manifest: Mapping[str, Any] = field(default_factory=dict)

    @property
    def details(self) -> Mapping[str, Any]:
        """What config.json keeps under our key."""
        found: Mapping[str, Any] = self.config.get(KEY) or {}
        return found

    @property
    def last_fit(self) -> Mapping[str, Any]:
        """What is known of the latest fit."""
        return self.fits[-1] if self.fits else {}

    @property
    def data(self) -> Mapping[str, Any]:
        """What is known of its data."""
        return mapping(self.last_fit.get("data"))

    @property
    def pairs(self) -> bool:
        """Whether it was trained on pairs of texts."""
        return bool(self.data.get("pairs"))

    @property
    def evaluation(self) -> Mapping[str, Any]:
        """How an artefact was measured."""
        return _evaluation(self.manifest)

    @property
    def fingerprint(self) -> str:
        """Tells this training from another one whose student was saved in the same place."""
        told = [self.details, dict(self.manifest)] if self.manifest else self.details
        return hashlib.sha256(json.dumps(told, sort_keys=True).encode()).hexdigest()[:12]


def mapping(value: Any) -> Mapping[str, Any]:
    """Return a mapping as it is, and an empty one in place of anything else."""
    return value if isinstance(value, Mapping) else {}


def read_facts(path: str | Path, metrics: Mapping[str, float] | None = None) -> Facts:
    """Read what a folder says, without loading its weights.

    Args:
        path: The folder.
        metrics: Further scores, such as ``{"test/accuracy": 0.9}``; without a split they are of the test data.

    Raises:
        DistillationError: If it holds no whole model, or something else than a number is given or kept as a score.
    """
    folder = Path(path).expanduser()
    manifest = read_manifest(folder) if is_artefact(folder) else {}
    own = mapping(read_json(folder / "config.json")) if manifest else {}
    config = own or saved.read_config(folder)  # which looks for weights, and refuses an artefact that has no config
    details = mapping(config.get(KEY))
    task, name = _task(folder, config, details)
    head = saved._head(config)
    if manifest:
        parameters, size = int(manifest.get("parameters") or 0), model_bytes(folder, manifest)
        measured = _evaluated(manifest)
    else:
        parameters, size = measure_weights(folder)
        measured = mapping(details.get("metrics"))
    tokenizer = mapping(read_json(folder / "tokenizer_config.json"))
    mask = tokenizer.get("mask_token")
    labels = getattr(task, "labels", None) or names_in(mapping(config.get("id2label")))
    return Facts(
        folder=folder,
        config=config,
        task=task,
        task_name=name,
        headless=head == "AutoModel" and task.auto_class != "AutoModel",
        labels=list(labels) if labels and hasattr(task, "num_labels") else None,
        parameters=parameters,
        bytes=size,
        max_length=_max_length(folder, config, tokenizer),
        lower_case=_lower_case(folder, tokenizer),
        mask_token=mask.get("content") if isinstance(mask, Mapping) else mask,
        scores=_scores(measured, metrics or {}),
        fits=checked(details.get("fits")),
        manifest=manifest,
    )


def measure_weights(folder: Path) -> tuple[int, int]:
    """Count parameters and bytes of a folder's weights, and find out whether they are whole, from their headers.

    Args:
        folder: The folder of a model.

    Raises:
        DistillationError: If a file of weights is missing, cut off or damaged.
    """
    index = folder / "model.safetensors.index.json"
    wanted = set(mapping(mapping(read_json(index)).get("weight_map")).values()) or {"model.safetensors"}
    files = [folder / str(name) for name in sorted(map(str, wanted))]
    if not index.exists() and not files[0].is_file():
        files = sorted(folder.glob("*.safetensors"))
    if not files:
        raise DistillationError(
            f"The folder {str(folder)!r} has no weights in safetensors. Load and save the model again: "
            "save_pretrained writes them."
        )
    parameters = 0
    for file in files:
        try:
            with safe_open(file, framework="numpy") as weights:
                parameters += sum(math.prod(weights.get_slice(name).get_shape()) for name in weights.keys())  # noqa: SIM118
        except Exception as error:  # safetensors has an error of its own
            raise DistillationError(
                f"The weights {str(file)!r} cannot be read ({str(error).strip()[:120]}). Save the model again, or copy "
                "it whole."
            ) from error
    return parameters, sum(file.stat().st_size for file in files)


def _task(folder: Path, config: Mapping[str, Any], details: Mapping[str, Any]) -> tuple[Any, str]:
    told = mapping(details.get("task"))
    path = str(told.get("class_path", ""))
    if path.startswith(f"{KEY}."):
        try:
            return from_config(told, own_only=True), path.rpartition(".")[2]
        except (TypeError, ValueError) as error:
            raise DistillationError(f"{folder / 'config.json'}: its task cannot be built: {error}") from error
    task = saved._task_of(folder, config)
    return task, path.rpartition(".")[2] or type(task).__name__


def _max_length(folder: Path, config: Mapping[str, Any], tokenizer: Mapping[str, Any]) -> int | None:
    reader = config.get("encoder") or config  # of a model that translates
    positions, padding = reader.get("max_position_embeddings"), reader.get("pad_token_id")
    if isinstance(positions, int):  # where no padding is named, it is 1 in all types that count from it
        positions -= unused_positions(reader.get("model_type"), 1 if padding is None else padding)
    limits = [
        mapping(read_json(folder / SENTENCE_BERT)).get("max_seq_length"),
        tokenizer.get("model_max_length"),
        positions,
    ]
    known = [int(limit) for limit in limits if isinstance(limit, (int, float)) and limit < LONGEST]
    return min(known) if known else None


def _lower_case(folder: Path, tokenizer: Mapping[str, Any]) -> bool:
    rules = mapping(mapping(read_json(folder / "tokenizer.json")).get("normalizer"))
    steps = [rules, *(rules.get("normalizers") or [])]
    return any(step.get("lowercase") is True or step.get("type") == "Lowercase" for step in steps) or (
        not rules and bool(tokenizer.get("do_lower_case"))
    )


def _evaluation(manifest: Mapping[str, Any]) -> Mapping[str, Any]:
    return mapping(mapping(manifest.get("verification")).get("evaluation"))


def _evaluated(manifest: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return the scores of an artefact itself, which are not the student's."""
    found = _evaluation(manifest)
    split = "val" if found.get("split") == "validation" else "test"
    return {f"{split}/{name}": value for name, value in mapping(found.get("artefact")).items()}


def _scores(kept: Mapping[str, Any], given: Mapping[str, Any]) -> dict[str, dict[str, float | None]]:
    scores: dict[str, dict[str, float | None]] = {}
    for name, value in {**kept, **given}.items():
        number = isinstance(value, (int, float)) and not isinstance(value, bool)
        undefined = value is None and name not in given  # a metric that these rows do not define
        if not undefined and not (number and math.isfinite(value)):
            raise DistillationError(
                f"The metric {name!r} is {value!r}: a model card states numbers. Measure it again, or leave it out."
            )
        split, _, metric = name.rpartition("/") if name.partition("/")[0] in SPLITS else ("test", "", name)
        scores.setdefault(split, {})[metric] = None if undefined else float(value)
    return {split: scores[split] for split in (*SPLITS, *scores) if split in scores}
