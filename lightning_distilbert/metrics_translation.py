"""Scores of translations: BLEU and chrF of a whole corpus, as sacrebleu counts them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torchmetrics import Metric

from lightning_distilbert.errors import DistillationError, require

COUNTS = {"bleu": 10, "chrf": 18}  # numbers that each keeps of a sentence


class TranslationScores(Metric):
    """BLEU and chrF of a corpus, each from 0 to 100, higher is better.

    Both are made of counts that are added up over all sentences, batches and processes before the score is computed: a
    mean over batches would be another number. `signatures` says how they were counted, which a published score needs
    beside it.

    Args:
        **kwargs: Those of `torchmetrics.Metric`.

    Attributes:
        tokenizer: What turns tokens into the text that is scored; the task sets it.

    Example:
        >>> scores = TranslationScores()
        >>> scores.update(["Ein Hund rennt."], ["Ein Hund rennt."])
        >>> {name: round(value.item(), 1) for name, value in scores.compute().items()}
        {'bleu': 100.0, 'chrf': 100.0}
    """

    is_differentiable = False
    higher_is_better = True
    full_state_update = False

    bleu: Tensor
    chrf: Tensor
    sentences: Tensor

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.tokenizer: Any = None
        self._counters: dict[str, Any] | None = None
        for name, number in COUNTS.items():
            self.add_state(name, default=torch.zeros(number, dtype=torch.long), dist_reduce_fx="sum")
        self.add_state("sentences", default=torch.zeros((), dtype=torch.long), dist_reduce_fx="sum")

    def counters(self) -> dict[str, Any]:
        """Return sacrebleu's BLEU and chrF, made when they are first asked for.

        Raises:
            MissingExtraError: Without sacrebleu.
        """
        if self._counters is None:
            metrics = require("sacrebleu.metrics", extra="translation")
            self._counters = {"bleu": metrics.BLEU(), "chrf": metrics.CHRF()}
            for counter in self._counters.values():
                counter.corpus_score(["a"], [["a"]])  # a signature is known once there was a reference
        return self._counters

    @property
    def signatures(self) -> dict[str, str]:
        """How each score is counted, in sacrebleu's words."""
        return {name: str(counter.get_signature()) for name, counter in self.counters().items()}

    def update(self, translations: Sequence[str], references: Sequence[str]) -> None:
        """Count translations in.

        Args:
            translations: The texts to be scored.
            references: What they should have been.

        Raises:
            DistillationError: If there are not as many of one as of the other.
        """
        if len(translations) != len(references):
            raise DistillationError(f"There are {len(translations)} translations and {len(references)} references.")
        for name, counter in self.counters().items():
            rows = counter._extract_corpus_statistics(list(translations), [list(references)])
            counts = getattr(self, name)
            if rows:
                counts += torch.tensor(rows, dtype=torch.long, device=counts.device).sum(dim=0)
        self.sentences += len(translations)

    def compute(self) -> dict[str, Tensor]:
        """Return the scores; none where no sentence was counted."""
        if not self.sentences:
            return {}
        counters = self.counters()
        values = {name: counters[name]._compute_score_from_stats(getattr(self, name).tolist()) for name in COUNTS}
        return {name: torch.tensor(value.score, device=self.sentences.device) for name, value in values.items()}
