"""Scores of intents: what is in scope and right, what is out of scope and noticed, and whether probabilities hold."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torchmetrics import Metric
from torchmetrics.functional.classification import binary_auroc, multiclass_calibration_error
from torchmetrics.utilities import dim_zero_cat

from lightning_distilbert.functional.calibration import choose_threshold, fit_temperature

CRITERIA = ("balanced", "accuracy")
NAMES = ("balanced", "accuracy", "in_scope_accuracy", "oos_recall", "oos_auroc")


class IntentScores(Metric):
    r"""Accuracy in scope, recall out of scope, and calibration.

    The score of a text is the highest probability of a label in scope, at the temperature :math:`T`. A text is taken
    for out of scope where that lies below a threshold, or, where none was chosen, below the probability of the label
    for out of scope.

    Args:
        num_labels: How many labels there are.
        out_of_scope: The number of the label for out of scope.
        criterion: What the threshold is chosen for: ``"balanced"``, the mean of the accuracy in scope and the recall
            out of scope, or ``"accuracy"``, that of all texts.
        **kwargs: Those of `torchmetrics.Metric`.

    Attributes:
        thresholds: ``"out_of_scope"`` and ``"temperature"``; without the latter it is 1.

    Example:
        >>> scores = IntentScores(3, out_of_scope=2)
        >>> logits = torch.tensor([[4.0, 0.0, 0.0], [0.0, 4.0, 0.0], [1.0, 0.0, 0.0]])
        >>> scores.update(logits, torch.tensor([0, 1, 2]))
        >>> found = scores.compute()
        >>> found["in_scope_accuracy"].item(), found["oos_recall"].item(), found["best_balanced"].item()
        (1.0, 0.0, 1.0)
    """

    is_differentiable = False
    full_state_update = False

    logits: list[Tensor]
    labels: list[Tensor]

    def __init__(self, num_labels: int, out_of_scope: int, criterion: str = "balanced", **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.num_labels = num_labels
        self.out_of_scope = out_of_scope
        self.criterion = criterion
        self.thresholds: dict[str, float] = {}
        self.add_state("logits", default=[], dist_reduce_fx="cat")
        self.add_state("labels", default=[], dist_reduce_fx="cat")
        self.reset()

    def reset(self) -> None:
        """Forget all texts."""
        super().reset()
        # an empty start of the right type: a process that sees no text must still take part in gathering them
        self.logits.append(torch.empty(0, self.num_labels, device=self.device))
        self.labels.append(torch.empty(0, dtype=torch.long, device=self.device))

    def update(self, logits: Tensor, labels: Tensor) -> None:
        """Count texts in.

        Args:
            logits: Shape ``(rows, num_labels)``.
            labels: The numbers of the right labels, of shape ``(rows,)``; -100 for a text that has none.
        """
        known = labels >= 0
        self.logits.append(logits[known].float().to(self.device))
        self.labels.append(labels[known].long().to(self.device))

    def compute(self) -> dict[str, Tensor]:
        """Score the texts.

        Returns:
            At the thresholds that were given: ``accuracy`` (of all texts, out of scope being a label), ``ece`` (the
            expected calibration error of the texts in scope, 15 bins), ``in_scope_accuracy``, ``oos_recall``,
            ``oos_auroc`` (how well the score parts the two kinds) and ``balanced``, as far as there are texts of the
            kind. At those that are best for these very texts: ``best_balanced`` or ``best_accuracy``, ``best_ece``, and
            the thresholds themselves, ``threshold/out_of_scope`` and ``threshold/temperature``.
        """
        logits, labels = dim_zero_cat(self.logits), dim_zero_cat(self.labels)
        inside = labels != self.out_of_scope
        temperature = self.thresholds.get("temperature", 1.0)
        probabilities, score, nearest = self.scored(logits, temperature)
        limit = self.thresholds.get("out_of_scope")
        left = score < (probabilities[:, self.out_of_scope] if limit is None else limit)
        right = torch.where(left, ~inside, inside & (nearest == labels)).float()
        found = {"accuracy": right.mean()}
        if inside.any():
            found["in_scope_accuracy"] = right[inside].mean()
            found["ece"] = self._calibration(probabilities, labels, inside)
        if not inside.all():
            found["oos_recall"] = right[~inside].mean()
        found["balanced"] = torch.stack([found[name] for name in NAMES[2:4] if name in found] or [right.mean()]).mean()
        chosen = fit_temperature(logits[inside], labels[inside])
        probabilities, best, nearest = self.scored(logits, chosen)
        if inside.any():
            found["threshold/temperature"] = logits.new_tensor(chosen)
            found["best_ece"] = self._calibration(probabilities, labels, inside)
        value = found[self.criterion]
        if inside.any() and not inside.all():
            found["oos_auroc"] = binary_auroc(1 - score, (~inside).long())
            value, threshold = map(
                logits.new_tensor, choose_threshold(best, nearest == labels, inside, self.criterion == "balanced")
            )
            found["threshold/out_of_scope"] = threshold
        found[f"best_{self.criterion}"] = value
        return found

    def scored(self, logits: Tensor, temperature: float) -> tuple[Tensor, Tensor, Tensor]:
        """Return the probabilities, the highest one in scope of each row, and its label."""
        probabilities = (logits / temperature).softmax(dim=1)
        inside = torch.ones(self.num_labels, dtype=torch.bool, device=logits.device)
        inside[self.out_of_scope] = False
        return probabilities, *probabilities.masked_fill(~inside, -1.0).max(dim=1)

    def _calibration(self, probabilities: Tensor, labels: Tensor, rows: Tensor) -> Tensor:
        return multiclass_calibration_error(probabilities[rows], labels[rows], self.num_labels)
