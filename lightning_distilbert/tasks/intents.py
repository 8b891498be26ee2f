"""Intents: what a user wants, one of many labels, or nothing that is known."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

from torch import Tensor

from lightning_distilbert.answers import intent_of
from lightning_distilbert.errors import DistillationError, check_choice
from lightning_distilbert.metrics_intents import CRITERIA, NAMES, IntentScores
from lightning_distilbert.tasks.base import Batch, Outputs
from lightning_distilbert.tasks.text_classification import TextClassification


class IntentClassification(TextClassification):
    r"""Find the intent of a text, or say that it has none of the known ones.

    It is `TextClassification` with one label for out of scope among the others. What a text is scored by is the highest
    probability of a label in scope,

    .. math:: s(x) = \max_{k \ne o} \operatorname{softmax}(z(x) / T)_k

    which the examples out of scope in the training data lower, where there are any. Below a threshold the answer is
    out of scope. The threshold and the temperature :math:`T`, at which probabilities mean what they say (Guo et al.
    2017), are chosen on validation data, saved with the student and used by ``predict``.

    Args:
        labels: The names of the labels, out of scope among them. None takes those that the teacher's or the student's
            config names.
        out_of_scope: The name of the one for out of scope.
        criterion: What the threshold is chosen for: ``"balanced"``, the mean of the accuracy in scope and the recall
            out of scope; or ``"accuracy"``, that of all texts, where as many texts will be out of scope as in the
            validation data.
        monitor: The metric that tells which checkpoint is best: ``balanced``, ``accuracy``, ``in_scope_accuracy``,
            ``oos_recall``, ``oos_auroc``, or the criterion at the best threshold, ``best_balanced`` or
            ``best_accuracy``, which is the default.

    Raises:
        DistillationError: If the options contradict each other.

    Example:
        >>> task = IntentClassification(labels=["balance", "oos", "weather"])
        >>> task.num_labels, task.monitor
        (3, 'val/best_balanced')
        >>> import torch
        >>> logits = torch.tensor([[2.0, 0.0, 0.0]])
        >>> task.decode({"logits": logits})
        [{'label': 'balance', 'score': 0.78..., 'nearest': 'balance'}]
        >>> task.decode({"logits": logits}, thresholds={"out_of_scope": 0.9})
        [{'label': 'oos', 'score': 0.21..., 'nearest': 'balance'}]
    """

    num_labels: Any  # None until a config has named the labels

    def __init__(
        self,
        labels: Sequence[str] | None = None,
        out_of_scope: str = "oos",
        criterion: Literal["balanced", "accuracy"] = "balanced",
        monitor: str | None = None,
    ) -> None:
        check_choice("IntentClassification(criterion=...)", criterion, CRITERIA)
        if monitor is not None:
            check_choice("IntentClassification(monitor=...)", monitor, (*NAMES, f"best_{criterion}"))
        if labels is not None:
            if list(labels).count(out_of_scope) != 1 or len(set(labels)) < len(labels):
                raise DistillationError(
                    f"out_of_scope={out_of_scope!r} has to be one of the labels, and each of them named once: "
                    f"{list(labels)[:20]}."
                )
            if len(labels) < 3:
                raise DistillationError(
                    f"labels={list(labels)}: beside {out_of_scope!r} there have to be two intents to choose from."
                )
        self.num_labels = None if labels is None else len(labels)
        self.labels = None if labels is None else tuple(labels)
        self.problem_type = "single_label_classification"
        self.out_of_scope = out_of_scope
        self.criterion: Literal["balanced", "accuracy"] = criterion
        self.monitor = f"val/{monitor or f'best_{criterion}'}"

    def with_labels(self, labels: Sequence[str] | None) -> IntentClassification:
        """Return this task, with labels that a model's config names if it was given none.

        Args:
            labels: The names in that config, or None.

        Raises:
            DistillationError: If it names none either, or none of that for out of scope.
        """
        if self.labels is not None:
            return self
        if not labels:
            raise DistillationError(
                "IntentClassification was given no labels, and no teacher's or student's config names them. Name them: "
                f"labels=[..., {self.out_of_scope!r}]."
            )
        monitor = self.monitor.removeprefix("val/")
        return IntentClassification(list(labels), self.out_of_scope, self.criterion, monitor)

    def new_metrics(self) -> IntentScores:
        """Return the metrics of one split."""
        assert self.labels is not None
        return IntentScores(len(self.labels), self.labels.index(self.out_of_scope), self.criterion)

    def update_metrics(self, metrics: Any, outputs: Outputs, batch: Batch) -> None:
        """Count the rows in that have labels."""
        if "labels" in batch:
            metrics.update(outputs["logits"].float(), batch["labels"])

    def predict(self, module: Any, batch: Batch) -> list[Any]:
        """Run a module's student on a batch and answer with the thresholds that validation chose.

        Args:
            module: The `DistillationModule` of this task.
            batch: Tensors under transformers' names.

        Returns:
            As `decode`.
        """
        return self.decode(module(batch), module.labels, module.thresholds)

    def decode(
        self, outputs: Outputs, labels: Sequence[str] | None = None, thresholds: dict[str, float] | None = None
    ) -> list[Any]:
        """Return the intent of each row.

        Args:
            outputs: What `run` returned.
            labels: Not needed: this task names its labels.
            thresholds: ``"out_of_scope"``, and ``"temperature"``, which is 1 by default.

        Returns:
            For each row ``label``, ``score`` (the probability of an intent; one less the likeliest intent's for out of
            scope) and ``nearest``, the likeliest intent in either case.
        """
        assert self.labels is not None
        told = thresholds or {}
        logits: Tensor = outputs["logits"].detach().float().cpu()
        rows = (logits / told.get("temperature", 1.0)).softmax(dim=-1).tolist()
        return [intent_of(row, self.labels, self.out_of_scope, told.get("out_of_scope")) for row in rows]
