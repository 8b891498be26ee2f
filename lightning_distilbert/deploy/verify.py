"""Whether an artefact computes what the student does, and how much of the task's score it keeps."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from lightning_utilities.core.rank_zero import rank_zero_warn
from tqdm.auto import tqdm

from lightning_distilbert.deploy.engines import Engine, as_student, open_engine, to_arrays, twin
from lightning_distilbert.deploy.evaluation_data import Arrays, Evaluation, single_rows
from lightning_distilbert.deploy.graph import MASKS
from lightning_distilbert.errors import DistillationError
from lightning_distilbert.evaluation import THRESHOLD
from lightning_distilbert.metrics_translation import TranslationScores
from lightning_distilbert.prediction import evaluating
from lightning_distilbert.target_tokenizer import target_tokenizer

ROWS = 64  # on which outputs are compared number by number
ALONE = 8  # of these, rows of all lengths that are run once more one by one
VALUES = 2**27  # numbers that are compared at most: half a gigabyte, of which there are several copies
# the largest difference of a float graph, as a share of the spread of its outputs
TOLERANCE = 1e-3
FLOATS = ("onnx", "torch-export", "executorch", "openvino", "keras", "litert")


@dataclass(frozen=True)
class Checked:
    """What was found of an artefact.

    Attributes:
        facts: For the manifest.
        retention: Its share of the student's score; None without evaluation data.
        passed: Whether that is enough.
    """

    facts: dict[str, Any]
    retention: float | None
    passed: bool


class Verifier:
    """Holds what the student says of some rows, and compares artefacts with it.

    Args:
        module: The `DistillationModule`.
        graph: Its `Graph`, or `Seq2SeqGraph`.
        evaluation: Rows with labels; None compares outputs alone, on rows of random tokens.
        min_retention: The share of the student's score that an artefact has to keep.

    Raises:
        DistillationError: If the evaluation data give no score.
    """

    def __init__(self, module: Any, graph: Any, evaluation: Evaluation | None, min_retention: float) -> None:
        self.module, self.graph, self.evaluation, self.min_retention = module, graph, evaluation, min_retention
        self.batches = real_batches(graph, evaluation) if evaluation is not None else random_batches(graph)
        with torch.no_grad():
            self.expected = [
                dict(zip(graph.outputs, (tensor.numpy() for tensor in graph(**tensors(batch))), strict=True))
                for batch in self.batches
            ]
        self.spread = float(np.concatenate(self._values(self.expected)).std())
        self.metric, self.mode = primary(module.task)
        self.scores = scores(twin(module, graph.model), evaluation, "student") if evaluation is not None else {}
        if evaluation is not None and not math.isfinite(self.scores.get(self.metric, math.nan)):
            raise DistillationError(
                f"The student has no {self.metric} on {evaluation.source} (found: {self.scores}): nothing can be "
                "compared with it. Does each row have a label?"
            )
        if evaluation is not None and self.mode == "max" and self.scores[self.metric] <= 0:
            rank_zero_warn(
                f"The student's {self.metric} on {evaluation.source} is {self.scores[self.metric]:.4f}, of which every "
                "artefact keeps all: the gate says nothing here. Take rows that the student gets right."
            )

    def outputs(self, engine: Engine) -> list[Arrays]:
        """Run the rows whose outputs are compared.

        Args:
            engine: What runs them.

        Returns:
            The outputs of each batch by name.
        """
        return [engine.run(batch) for batch in self.batches]

    def distance(self, found: Sequence[Arrays]) -> tuple[float, float]:
        """Return the largest and the mean difference to the student's outputs, at real tokens.

        Args:
            found: What `outputs` returned.
        """
        pairs = zip(self._values(found), self._values(self.expected), strict=True)
        differences = np.concatenate([np.abs(mine - theirs) for mine, theirs in pairs])
        return float(differences.max()), float(differences.mean())

    def compare(self, folder: Path, facts: Mapping[str, Any]) -> tuple[Engine, dict[str, Any]]:
        """Compare the outputs of an artefact with the student's.

        Args:
            folder: Its folder.
            facts: As `open_engine` reads them.

        Returns:
            What runs it, and what was found.

        Raises:
            DistillationError: If a float graph computes something else than the student, or than itself on rows that
                are not padded; or if outputs are not finite.
        """
        if facts["format"] == "openvino":  # the graph is judged in float32, whatever it is run in
            exact = open_engine(folder, {**facts, "precision": "f32"})
            self._check_distance("openvino", self.distance(self.outputs(exact))[0], self._padding(exact))
        engine = open_engine(folder, facts)
        found = self.outputs(engine)
        largest, mean = self.distance(found)
        padding = self._padding(engine)
        self._check_distance("" if facts["format"] == "openvino" else facts["format"], largest, padding)
        measured: dict[str, Any] = {
            "rows": sum(len(batch["input_ids"]) for batch in self.batches),
            "rows_from": self._rows(),
            "max_difference": largest,
            "mean_difference": mean,
            "output_spread": self.spread,
            "padding_difference": padding,
        }
        if precision := getattr(engine, "precision", None):
            measured["computed_in"] = precision
        return engine, measured

    def check(self, folder: Path, facts: Mapping[str, Any]) -> Checked:
        """Compare the outputs of an artefact, and measure the task's score.

        Args:
            folder: Its folder.
            facts: As `open_engine` reads them.

        Raises:
            DistillationError: As `compare` does.
        """
        engine, measured = self.compare(folder, facts)
        if self.evaluation is None:
            return Checked(measured, None, True)
        model = as_student(engine, getattr(self.graph.model, "config", None), self.graph.settings)
        own = scores(twin(self.module, model), self.evaluation, facts["format"])
        kept = retention(own.get(self.metric, math.nan), self.scores[self.metric], self.mode)
        measured["evaluation"] = {
            "source": self.evaluation.source,
            "split": self.evaluation.split,
            "metric": self.metric,
            "student": plain(self.scores),
            "artefact": plain(own),
            "retention": kept,
            "min_retention": self.min_retention,
        }
        return Checked(measured, kept, kept >= self.min_retention)

    def _check_distance(self, kind: str, largest: float, padding: float) -> None:
        if not math.isfinite(largest + padding):
            raise DistillationError(f"The artefact gives outputs that are not finite, on {self._rows()}.")
        allowed = TOLERANCE * max(self.spread, 1e-3) if kind in FLOATS else math.inf
        if largest > allowed:
            raise DistillationError(
                f"The {kind} artefact does not compute what the student does: outputs differ by up to {largest:.2g}, "
                f"and they spread by {self.spread:.2g}. This is a fault of an exporter: please report it."
            )
        if padding > allowed:
            raise DistillationError(
                f"The {kind} artefact depends on padding: outputs of a row differ by up to {padding:.2g} between a "
                f"batch and the row alone, and they spread by {self.spread:.2g}. Please report it."
            )

    def _rows(self) -> str:
        return self.evaluation.source if self.evaluation is not None else "random tokens"

    def _values(self, found: Sequence[Arrays]) -> list[np.ndarray]:
        values = []
        for batch, outputs in zip(self.batches, found, strict=True):
            for name, axes in self.graph.outputs.items():
                values.append(outputs[name][_real(batch, axes)].ravel())
        return values

    def _padding(self, engine: Engine) -> float:
        """Return how far the outputs of rows in one batch, of all lengths there are, differ from those alone."""
        rows = sorted((row for batch in self.batches for row in single_rows(batch)), key=_length)
        rows = [rows[place] for place in np.unique(np.linspace(0, len(rows) - 1, ALONE).astype(int))]
        together = engine.run(_padded(rows, int(getattr(self.graph.model.config, "pad_token_id", None) or 0)))
        worst = 0.0
        for place, row in enumerate(rows):
            alone = engine.run(row)
            for name in self.graph.outputs:
                own = alone[name][0]
                worst = max(worst, float(np.abs(together[name][place][: len(own)] - own).max()))
        return worst


def _length(row: Arrays) -> int:
    return row["input_ids"].shape[1]


def _real(batch: Arrays, axes: Sequence[Any]) -> np.ndarray:
    """Return where an output counts: at real tokens, or in rows that have one."""
    mask = next((batch[MASKS[axis]] for axis in axes if axis in MASKS), None)
    return np.asarray((batch["attention_mask"] != 0).any(axis=1) if mask is None else mask != 0)


def _padded(rows: Sequence[Arrays], pad_id: int) -> Arrays:
    longest = {name: max(row[name].shape[1] for row in rows) for name in rows[0]}

    def pad(row: Arrays, name: str) -> np.ndarray:
        missing = ((0, 0), (0, longest[name] - row[name].shape[1]))
        return np.pad(row[name], missing, constant_values=pad_id if name == "input_ids" else 0)

    return {name: np.concatenate([pad(row, name) for row in rows]) for name in rows[0]}


def tensors(batch: Arrays) -> dict[str, torch.Tensor]:
    """Return arrays as tensors."""
    return {name: torch.from_numpy(array) for name, array in batch.items()}


def real_batches(graph: Any, evaluation: Evaluation) -> list[Arrays]:
    """Return the first batches of the evaluation, a share of each loader, as the graph's inputs."""
    batches = []
    for loader in evaluation.loaders:
        rows, most = 0, ROWS // len(evaluation.loaders)
        for batch in loader:
            if len(batch["input_ids"]):
                arrays = to_arrays(batch, graph.inputs)
                most = min(most, _rows_that_fit(graph, arrays))
                kept = max(1, most - rows)
                batches.append({name: array[:kept] for name, array in arrays.items()})
                rows += len(batch["input_ids"])
            if rows >= most:
                break
    if not batches:
        raise DistillationError(f"The evaluation data {evaluation.source} hold no rows.")
    return batches


def _rows_that_fit(graph: Any, batch: Arrays) -> int:
    """Return how many rows are compared: fewer of those with logits over a vocabulary, which fill the memory."""
    if not any("vocabulary" in axes for axes in graph.outputs.values()):
        return ROWS
    prefix = list(graph.readers)[-1]  # that of the decoder, where there is one
    vocabulary = int(getattr(graph.readers[prefix], "vocab_size", 1))
    return max(1, VALUES // (vocabulary * batch[f"{prefix}input_ids"].shape[1]))


def random_batches(graph: Any, length: int = 32) -> list[Arrays]:
    """Return rows of random tokens of unequal lengths, the same for ever."""
    draw = np.random.default_rng(0)
    batches = []
    for _ in range(ROWS // 8):
        batch: Arrays = {}
        for prefix, config in graph.readers.items():
            width = max(4, min(length, int(getattr(config, "max_position_embeddings", length)) // 2))
            ids = draw.integers(0, int(getattr(config, "vocab_size", 100)), size=(8, width))
            lengths = draw.integers(2, width + 1, size=8)
            mask = (np.arange(width) < lengths[:, None]).astype(np.int64)
            values = {"input_ids": ids * mask, "attention_mask": mask, "token_type_ids": np.zeros_like(ids)}
            batch |= {f"{prefix}{name}": array for name, array in values.items()}
        batches.append({name: batch[name] for name in graph.inputs})
    return batches


def scores(module: Any, evaluation: Evaluation, name: str) -> dict[str, float]:
    """Compute the task's metrics, with the thresholds that ship.

    Args:
        module: The `DistillationModule`, of the student or of an artefact.
        evaluation: The rows.
        name: What the progress bar says.

    Returns:
        The metrics by name, and ``loss`` where the task has one.
    """
    task = module.task
    metrics = new_metrics(module)
    loss, rows = 0.0, 0
    with evaluating(module):
        for loader in evaluation.loaders:
            for batch in tqdm(loader, desc=f"evaluate {name}", unit=" batches", delay=1, leave=False):
                outputs = module(batch)
                task.update_metrics(metrics, outputs, batch)
                value = task.loss(outputs, batch)
                if value is not None:
                    size = len(batch["input_ids"])
                    loss, rows = loss + float(value) * size, rows + size
    found = {key: float(value) for key, value in metrics.compute().items() if not key.startswith(THRESHOLD)}
    return found | ({"loss": loss / rows} if rows else {})


def new_metrics(module: Any) -> Any:
    """Return a task's metrics, with a module's labels, the thresholds that ship, and what decodes translations.

    Args:
        module: The `DistillationModule`, of the student or of an artefact.
    """
    metrics: Any = module.task.new_metrics()
    module.task.name_labels(metrics, module.labels)
    if isinstance(getattr(metrics, "thresholds", None), dict):
        metrics.thresholds = dict(module.thresholds)
    if isinstance(metrics, TranslationScores):
        metrics.tokenizer = target_tokenizer(module)
    return metrics


def primary(task: Any) -> tuple[str, str]:
    """Return the metric that stands for a task, and whether ``"max"`` or ``"min"`` of it is best.

    It is the one that the task watches in training; at the threshold that ships, where it watches that at the best.

    Example:
        >>> from lightning_distilbert import QuestionAnswering
        >>> primary(QuestionAnswering(no_answer=True))
        ('f1', 'max')
    """
    return task.monitor.partition("/")[2].removeprefix("best_"), task.mode


def retention(own: float, student: float, mode: str = "max") -> float:
    """Return which share of the student's score an artefact keeps: 1 where it is as good or better.

    Args:
        own: The artefact's score.
        student: The student's score.
        mode: ``"max"`` if a higher score is better, ``"min"`` if a lower one is: the share is then turned over.

    Example:
        >>> retention(0.4, 0.8), retention(2.5, 2.0, mode="min"), retention(-0.1, 0.0)
        (0.5, 0.8, 0.0)
    """
    if not math.isfinite(own):
        return 0.0
    if (own >= student) if mode == "max" else (own <= student):
        return 1.0
    better, worse = (student, own) if mode == "max" else (own, student)
    # a score of 0 or below has no share of another
    return max(0.0, worse / better) if better > 0 else 0.0


def plain(values: Mapping[str, float]) -> dict[str, float | None]:
    """Return scores as JSON writes them: None where one is not finite."""
    return {name: value if math.isfinite(value) else None for name, value in values.items()}
