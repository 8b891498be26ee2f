"""`Signals`: the one vocabulary between models and the maths of distillation."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from lightning_distilbert.functional.late_logits import LateLogits

SIGNAL_NAMES = ("logits", "hidden_states", "embedding", "queries", "keys", "values", "attention_scores")


@dataclass
class Signals:
    r"""What one forward of a model exposes to the objectives.

    Only what some objective requires is captured; the rest is None.

    Attributes:
        logits: Scores before softmax or sigmoid, of shape ``(batch, num_labels)`` for a sequence-level head or
            ``(batch, sequence, num_labels)`` for a token-level one.
        hidden_states: The embedding output and then each layer's output, of shape ``(batch, sequence, width)`` each.
        embedding: The pooled sentence vector, of shape ``(batch, width)``, not normalised.
        mask: Boolean, of shape ``(batch, sequence)``: True at real tokens. None means that all count.
        queries: What the query projection of each layer gives, of shape ``(batch, heads, sequence, head_width)`` each.
        keys: The same of the key projections.
        values: The same of the value projections.
        attention_scores: The scores of each layer before softmax and without the padding mask, scaled by
            :math:`1/\sqrt{head\_width}`, of shape ``(batch, heads, sequence, sequence)`` each. They are computed when
            a layer is asked for.
        positions: Boolean, of shape ``(batch, sequence)``: where a head over the vocabulary was evaluated. The logits
            then have the shape ``(positions, vocabulary)``, and all of their rows count.
        classes: Boolean, of the shape of the logits: over which classes the distribution of each row runs. It is there
            where a head points into the text (question answering): the logits are those of the start and below them
            those of the end, of shape ``(2 * batch, sequence)``, and the classes are the tokens where an answer may
            start or end. None means all classes.
        scores: A teacher's scores of each query's candidates, beside the documents: of its own, of shape
            ``(batch, k)``, or of all documents of the batch, of shape ``(batch, k * batch)``. They come from a
            cross-encoder or from the data; NaN where there is none.
        late_logits: What the logits are computed from, in place of these, where a head over the vocabulary was
            evaluated at so many positions that all logits at once would fill the memory. Only objectives that state
            ``takes_late_logits`` meet it; for others the logits are computed.

    Example:
        >>> import torch
        >>> signals = Signals(logits=torch.zeros(2, 3), mask=torch.tensor([[True, False], [False, False]]))
        >>> signals.rows().tolist()
        [True, False]
    """

    logits: Tensor | None = None
    hidden_states: tuple[Tensor, ...] | None = None
    embedding: Tensor | None = None
    mask: Tensor | None = None
    queries: tuple[Tensor, ...] | None = None
    keys: tuple[Tensor, ...] | None = None
    values: tuple[Tensor, ...] | None = None
    attention_scores: Sequence[Tensor] | None = None
    positions: Tensor | None = None
    classes: Tensor | None = None
    scores: Tensor | None = None
    late_logits: LateLogits | None = None

    def has(self, name: str) -> bool:
        """Tell whether a signal was captured."""
        return getattr(self, name) is not None or (name == "logits" and self.late_logits is not None)

    def compute_logits(self) -> None:
        """Compute the logits, all at once, where they were left for later."""
        if self.late_logits is not None:
            self.logits, self.late_logits = self.late_logits.compute(), None

    def rows(self) -> Tensor | None:
        """Return which sequences hold a real token at all, of shape ``(batch,)``, or None if all count."""
        return None if self.mask is None else self.mask.any(dim=-1)

    def logits_mask(self) -> Tensor | None:
        """Return which rows of the logits count: shaped as the logits less their last axis, or None if all do."""
        if self.logits is not None and self.classes is not None:
            return self.classes.any(dim=-1)
        if self.logits is None or self.mask is None or self.positions is not None:
            return None
        return self.mask if self.logits.shape[:-1] == self.mask.shape else self.rows()


@dataclass(frozen=True)
class ModelFacts:
    """What an objective may know of a model before training.

    Attributes:
        name: What to call the model in an error.
        num_layers: The number of transformer layers, or None if the model does not say.
        hidden_size: The width of the hidden states, or None if the model does not say.
        num_heads: The number of attention heads, or None if the model does not say.
        num_labels: The number of outputs of its head, or None without a head.
        problem_type: transformers' ``single_label_classification``, ``multi_label_classification`` or ``regression``;
            None if the model does not say.
        initialised_from: For a student cut out of a model: the layers of that model its own layers came from.
        initialised_depth: How many layers that model had, or None if the student does not say.
    """

    name: str
    num_layers: int | None = None
    hidden_size: int | None = None
    num_heads: int | None = None
    num_labels: int | None = None
    problem_type: str | None = None
    initialised_from: tuple[int, ...] | None = None
    initialised_depth: int | None = None

    @classmethod
    def of(cls, name: str, config: Any) -> ModelFacts:
        """Read the facts off a transformers config (or off any object that has some of its fields)."""
        layers = getattr(config, "initialised_from", None)
        return cls(
            name=name,
            num_layers=getattr(config, "num_hidden_layers", None),
            hidden_size=getattr(config, "hidden_size", None),
            num_heads=getattr(config, "num_attention_heads", None),
            num_labels=getattr(config, "num_labels", None),
            problem_type=getattr(config, "problem_type", None),
            initialised_from=tuple(layers) if layers else None,
            initialised_depth=getattr(config, "initialised_depth", None),
        )
