"""Text classification: one label, several, or a score, for a sentence or a pair."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torchmetrics import MetricCollection, PearsonCorrCoef, SpearmanCorrCoef
from torchmetrics.classification import (
    MulticlassAccuracy,
    MulticlassF1Score,
    MulticlassMatthewsCorrCoef,
    MultilabelAveragePrecision,
    MultilabelF1Score,
)

from lightning_distilbert.data.labels import PROBLEM_TYPES
from lightning_distilbert.errors import DistillationError
from lightning_distilbert.functional import mean_or_zero
from lightning_distilbert.tasks.base import Batch, Outputs, Task, call_model, check_number_of_labels

ProblemType = Literal["single_label_classification", "multi_label_classification", "regression"]
BEST = {"single_label_classification": "accuracy", "multi_label_classification": "f1", "regression": "spearman"}


class TextClassification(Task):
    """Classify or score a text or a pair of texts.

    The loss is cross-entropy for one label, binary cross-entropy for several, and mean squared error for a score, with
    rows and labels left out that have none (-100, or NaN among float labels).

    Args:
        num_labels: The number of labels; 1 for regression.
        labels: Their names, in the order of the head's outputs. They are saved with the student, and compared with the
            teacher's before training.
        problem_type: transformers' name for the kind of labels.
        monitor: The metric that tells which checkpoint is best: ``accuracy``, ``f1`` (macro) or ``mcc`` for one label,
            ``f1`` (micro) or ``map`` for several, ``pearson`` or ``spearman`` for a score.

    Raises:
        DistillationError: If the options contradict each other.

    Example:
        >>> task = TextClassification(labels=["negative", "positive"])
        >>> task.num_labels, task.monitor
        (2, 'val/accuracy')
        >>> task.decode({"logits": torch.tensor([[2.0, 0.0]])})
        [{'label': 'negative', 'score': 0.8807970285415649}]
    """

    auto_class: ClassVar[str] = "AutoModelForSequenceClassification"
    default_objectives: ClassVar[str] = "layerwise"
    data: ClassVar[tuple[str, ...]] = ("TextClassificationData",)
    mode: str = "max"

    def __init__(
        self,
        num_labels: int | None = None,
        labels: Sequence[str] | None = None,
        problem_type: ProblemType = "single_label_classification",
        monitor: str | None = None,
    ) -> None:
        if problem_type not in PROBLEM_TYPES:
            raise DistillationError(f"problem_type={problem_type!r}: it is one of {list(PROBLEM_TYPES)}.")
        if num_labels is None:
            num_labels = 1 if problem_type == "regression" else len(labels) if labels else None
        if num_labels is None:
            raise DistillationError("TextClassification needs num_labels, or the names of the labels.")
        check_number_of_labels(num_labels, labels)
        if problem_type == "regression" and num_labels != 1:
            raise DistillationError(f"Regression has one output, not num_labels={num_labels}.")
        if problem_type == "single_label_classification" and num_labels < 2:
            raise DistillationError(f"One label out of num_labels={num_labels} is no choice; give at least 2.")
        self.num_labels = num_labels
        self.labels = tuple(labels) if labels else None
        self.problem_type = problem_type
        known = {str(name) for name in self.new_metrics()}
        if monitor is not None and monitor not in known:
            raise DistillationError(f"monitor={monitor!r}: for {problem_type} it is one of {sorted(known)}.")
        self.monitor = f"val/{monitor or BEST[problem_type]}"

    def model_config(self) -> dict[str, Any]:
        """Return the config values that give the student this head."""
        config: dict[str, Any] = {"num_labels": self.num_labels, "problem_type": self.problem_type}
        if self.labels:
            config["id2label"] = dict(enumerate(self.labels))
            config["label2id"] = {label: index for index, label in enumerate(self.labels)}
        return config

    def run(self, model: nn.Module, batch: Batch) -> Outputs:
        """Return the ``logits``, of shape ``(batch, num_labels)``."""
        return {"logits": call_model(model, batch).logits}

    def loss(self, outputs: Outputs, batch: Batch) -> Tensor | None:
        """Return the mean loss over rows with a label and a token; None if the batch carries no labels at all."""
        labels = batch.get("labels")
        if labels is None:
            return None
        logits = outputs["logits"].float()
        one = self.problem_type == "single_label_classification"
        if labels.shape != logits.shape[:1] if one else labels.numel() != logits.numel():
            raise DistillationError(
                f"The labels have the shape {tuple(labels.shape)} and the logits {tuple(logits.shape)}: for "
                f"{self.problem_type} there is {'one label' if one else 'a value for each output'} in every row."
            )
        mask = batch.get("attention_mask")
        rows = torch.ones_like(logits[:, 0], dtype=torch.bool) if mask is None else mask.bool().any(dim=-1)
        if one:
            known = rows & (labels != -100)
            return mean_or_zero(F.cross_entropy(logits[known], labels[known], reduction="none"), logits)
        labels = labels.to(logits.dtype).view_as(logits)
        known = rows.unsqueeze(-1) & ~labels.isnan()
        if self.problem_type == "regression":
            return mean_or_zero(F.mse_loss(logits[known], labels[known], reduction="none"), logits)
        return mean_or_zero(F.binary_cross_entropy_with_logits(logits[known], labels[known], reduction="none"), logits)

    def new_metrics(self) -> Any:
        """Return the metrics of one split."""
        n = self.num_labels
        if self.problem_type == "single_label_classification":
            return MetricCollection(
                {
                    "accuracy": MulticlassAccuracy(n, average="micro"),
                    "f1": MulticlassF1Score(n, average="macro"),
                    "mcc": MulticlassMatthewsCorrCoef(n),
                }
            )
        if self.problem_type == "multi_label_classification":
            return MetricCollection({"f1": MultilabelF1Score(n, average="micro"), "map": MultilabelAveragePrecision(n)})
        with warnings.catch_warnings():
            # ranks need all scores at once: a validation set of sentences is small enough for that
            warnings.filterwarnings("ignore", "Metric `Spearman", UserWarning)
            return MetricCollection({"pearson": PearsonCorrCoef(), "spearman": SpearmanCorrCoef()})

    def update_metrics(self, metrics: Any, outputs: Outputs, batch: Batch) -> None:
        """Count the rows in that have labels."""
        labels = batch.get("labels")
        if labels is None:
            return
        single = self.problem_type == "single_label_classification"
        known = labels != -100 if single else ~labels.isnan().view(len(labels), -1).any(dim=-1)
        if not known.any():  # torchmetrics takes no empty batch
            return
        logits, labels = outputs["logits"].float()[known], labels[known]
        if self.problem_type == "regression":
            metrics.update(logits.squeeze(-1), labels.float())
        elif single:
            metrics.update(logits, labels)
        else:
            metrics.update(logits.sigmoid(), labels.long())

    def decode(self, outputs: Outputs, labels: Sequence[str] | None = None) -> list[Any]:
        """Return label and probability, all labels above one half with theirs, or the score."""
        logits = outputs["logits"].detach().float().cpu()
        names = self.labels or labels or tuple(str(index) for index in range(self.num_labels))
        if self.problem_type == "regression":
            return [{"score": score} for score in logits.squeeze(-1).tolist()]
        if self.problem_type == "multi_label_classification":
            return [
                {"labels": [{"label": names[i], "score": p} for i, p in enumerate(row) if p > 0.5]}
                for row in logits.sigmoid().tolist()
            ]
        scores, indices = torch.softmax(logits, dim=-1).max(dim=-1)
        return [{"label": names[i], "score": score} for i, score in zip(indices.tolist(), scores.tolist(), strict=True)]
