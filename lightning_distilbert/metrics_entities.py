"""Scores of entities: whether the right words were found, and called by the right type."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torchmetrics import Metric
from torchmetrics.utilities import dim_zero_cat

from lightning_distilbert.data.tags import OUTSIDE, entities_of, join_tag, scheme_of, split_tag
from lightning_distilbert.errors import DistillationError, require
from lightning_distilbert.metrics import first_of_each

NAMES = ("precision", "recall", "f1", "accuracy", "exact")


class EntityScores(Metric):
    r"""Precision, recall and F1 of whole entities, as the CoNLL script and seqeval count them.

    With the entities :math:`P` that were predicted and those :math:`G` of the data, each a type with its first and last
    word in its sentence:

    .. math:: p = \frac{|P \cap G|}{|P|} \qquad r = \frac{|P \cap G|}{|G|} \qquad F_1 = \frac{2 p r}{p + r}

    Broken tags are read as they are by ``conlleval`` (`lightning_distilbert.data.tags.entities_of`). ``accuracy`` is
    that of single words, ``exact`` the share of sentences with every entity right and none too many. Words are gathered
    by sentence from all batches and processes before anything is counted, so that neither the windows of a long
    sentence nor rows that a sampler repeats change a score.

    Args:
        labels: The names of the labels in the order of the head's outputs; they may be set later, before the first
            batch.
        **kwargs: Those of `torchmetrics.Metric`.

    Example:
        >>> scores = EntityScores(["O", "B-PER", "I-PER"])
        >>> scores.update(torch.tensor([1, 2, 0, 1]), torch.tensor([1, 2, 0, 0]), torch.tensor([0, 0, 0, 1]))
        >>> {name: round(value.item(), 4) for name, value in scores.compute().items()}
        {'precision': 0.5, 'recall': 1.0, 'f1': 0.6667, 'accuracy': 0.75, 'exact': 0.5}
    """

    is_differentiable = False
    higher_is_better = True
    full_state_update = False

    STATES = ("sentence", "word", "predicted", "target")
    sentence: list[Tensor]
    word: list[Tensor]
    predicted: list[Tensor]
    target: list[Tensor]

    def __init__(self, labels: Sequence[str] | None = None, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.labels = None if labels is None else list(labels)
        self.own_sentences = 0
        self._per_type: dict[str, dict[str, float]] | None = None
        for name in self.STATES:
            self.add_state(name, default=[], dist_reduce_fx="cat")
        self.reset()

    def reset(self) -> None:
        """Forget all words."""
        super().reset()
        self.own_sentences = 0
        # an empty start of the right type: a process that sees no word must still take part in gathering them
        for name in self.STATES:
            getattr(self, name).append(torch.empty(0, dtype=torch.long, device=self.device))

    def update(self, predicted: Tensor, target: Tensor, sentence: Tensor, word: Tensor | None = None) -> None:
        """Take in words, in any order.

        Args:
            predicted: The label predicted for each, of shape ``(words,)``.
            target: Its label in the data, -100 for a word that has none and does not count.
            sentence: The number of its sentence among all sentences.
            word: Its place there; None if words come in order and ``sentence`` only tells those of this call apart.

        Raises:
            DistillationError: If the labels have no names yet, or the shapes do not fit together.
        """
        if self.labels is None:
            raise DistillationError(
                "The labels have no names, so that nobody knows which words make an entity. Name them in the task, as "
                "in TokenClassification(labels=['O', 'B-PER', 'I-PER'])."
            )
        shapes = {tuple(part.shape) for part in (predicted, target, sentence, word) if part is not None}
        if len(shapes) != 1 or predicted.ndim != 1:
            raise DistillationError(f"The words' labels and places have the shapes {sorted(shapes)}: all are (words,).")
        if word is None:
            _, sentence, counts = sentence.unique_consecutive(return_inverse=True, return_counts=True)
            begins = (counts.cumsum(0) - counts)[sentence]
            word = torch.arange(len(sentence), device=sentence.device) - begins
            sentence, fresh = self._fresh(sentence), len(counts)
            self.own_sentences += fresh
        known = target >= 0
        for name, values in zip(self.STATES, (sentence, word, predicted, target), strict=True):
            getattr(self, name).append(values[known].long().to(self.device))

    def _fresh(self, sentence: Tensor) -> Tensor:
        """Number sentences as no other call and no other process does."""
        several = torch.distributed.is_available() and torch.distributed.is_initialized()
        rank, processes = (torch.distributed.get_rank(), torch.distributed.get_world_size()) if several else (0, 1)
        return -1 - ((sentence + self.own_sentences) * processes + rank)

    def compute(self) -> dict[str, Tensor]:
        """Count the entities.

        Returns:
            ``precision``, ``recall``, ``f1``, ``accuracy`` and ``exact``, scalars; 0 where there is nothing to divide
            by, as in seqeval.
        """
        report = require("seqeval.metrics", extra="ner").classification_report
        predicted, target = self.tags()
        found = [(entities_of(ours), entities_of(theirs)) for ours, theirs in zip(predicted, target, strict=True)]
        words = [
            pair for ours, theirs in zip(predicted, target, strict=True) for pair in zip(ours, theirs, strict=True)
        ]
        scores: dict[str, dict[str, float]] = {}
        if any(ours or theirs for ours, theirs in found):  # seqeval finds no longest name among no types
            scores = report(target, predicted, output_dict=True, zero_division=0)
        total = scores.get("micro avg", {})
        self._per_type = {
            kind: {"f1" if name == "f1-score" else name: float(value) for name, value in row.items()}
            for kind, row in scores.items()
            if not kind.endswith(" avg")
        }
        values = {
            "precision": total.get("precision", 0.0),
            "recall": total.get("recall", 0.0),
            "f1": total.get("f1-score", 0.0),
            "accuracy": sum(ours == theirs for ours, theirs in words) / max(1, len(words)),
            "exact": sum(ours == theirs for ours, theirs in found) / max(1, len(found)),
        }
        return {name: torch.tensor(float(value), device=self.device) for name, value in values.items()}

    @property
    def per_type(self) -> dict[str, dict[str, float]]:
        """Precision, recall, F1 and support of each type behind the last `compute`; a reset leaves them.

        Raises:
            DistillationError: Before `compute`.
        """
        if self._per_type is None:
            raise DistillationError("per_type is known only after compute(). Call that first.")
        return self._per_type

    def tags(self) -> tuple[list[list[str]], list[list[str]]]:
        """Return the tags that were predicted and those of the data, sentence by sentence."""
        sentence, word, predicted, target = (dim_zero_cat(getattr(self, name)) for name in self.STATES)
        if not len(sentence):
            return [], []
        low = sentence.min()
        width = word.max() + 1
        key, first = first_of_each((sentence - low) * width + word)
        sentence, word = key // width, key % width
        assert self.labels is not None
        scheme_of(self.labels)
        # seqeval does not know the letters of BILOU, and reads them as those of IOBES
        names = [OUTSIDE if label == OUTSIDE else join_tag(*split_tag(label)) for label in self.labels]
        found: tuple[list[list[str]], list[list[str]]] = ([], [])
        ends = torch.cat([sentence[1:] != sentence[:-1], torch.ones(1, dtype=torch.bool, device=self.device)])
        for tags, numbers in zip(found, (predicted[first], target[first]), strict=True):
            row: list[str] = []
            for number, last in zip(numbers.tolist(), ends.tolist(), strict=True):
                row.append(names[number])
                if last:
                    tags.append(row)
                    row = []
        return found
