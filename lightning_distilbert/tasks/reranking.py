"""Reranking: a cross-encoder that reads a query together with a document and scores the pair."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar, Literal, get_args

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lightning_distilbert.errors import DistillationError, check_choice
from lightning_distilbert.functional import listwise_cross_entropy, mean_or_zero
from lightning_distilbert.metrics_reranking import RerankingScores
from lightning_distilbert.tasks.base import Batch, Outputs, Task, call_model

Criterion = Literal["listwise", "binary"]


class Reranking(Task):
    """Score pairs of a query and a document, so that the documents that answer a query come first.

    The model is a sequence classifier with one output, which sentence-transformers' ``CrossEncoder`` loads too. It is
    slower than an encoder for retrieval, which embeds each text once, and more exact: so it reorders what such an
    encoder found, or teaches it (`MarginMSE`, `RankingKL`). Evaluation ranks the candidates that the data bring.

    Args:
        criterion: ``"listwise"``: the softmax over the candidates of each query, which needs documents of a query that
            do not answer it. ``"binary"``: whether each pair belongs together, by itself.

    Raises:
        DistillationError: If the criterion is unknown.

    Example:
        >>> task = Reranking()
        >>> task.decode({"logits": torch.tensor([[2.5], [-1.0]])})
        [{'score': 2.5}, {'score': -1.0}]
    """

    auto_class: ClassVar[str] = "AutoModelForSequenceClassification"
    default_objectives: ClassVar[str] = "logits"
    data: ClassVar[tuple[str, ...]] = ("RerankingData",)
    fields: ClassVar[tuple[str, ...]] = ("query", "document")
    monitor: str = "val/ndcg@10"
    mode: str = "max"

    def __init__(self, criterion: Criterion = "listwise") -> None:
        check_choice("Reranking(criterion=...)", criterion, get_args(Criterion))
        self.criterion: Criterion = criterion

    def model_config(self) -> dict[str, Any]:
        """Return the config values that give the student one output."""
        return {"num_labels": 1}

    def run(self, model: nn.Module, batch: Batch) -> Outputs:
        """Return the ``logits``, of shape ``(pairs, 1)``."""
        return {"logits": call_model(model, batch).logits}

    def loss(self, outputs: Outputs, batch: Batch) -> Tensor | None:
        """Return the loss over the pairs with a label and a token; None if the batch carries no labels at all.

        Args:
            outputs: What `run` returned.
            batch: ``labels`` of shape ``(pairs,)``: above 0 of a document that answers the query, 0 of another, NaN
                where nobody knows; and ``query_index`` of the same shape, equal in the pairs of one query.
        """
        labels = batch.get("labels")
        if labels is None:
            return None
        scores, labels = outputs["logits"].float().squeeze(-1), labels.float()
        mask = batch.get("attention_mask")
        rows = torch.ones_like(scores, dtype=torch.bool) if mask is None else mask.bool().any(dim=-1)
        if self.criterion == "listwise":
            return listwise_cross_entropy(scores, labels, _queries(batch), rows)
        known = rows & ~labels.isnan()
        wanted = (labels[known] > 0).float()
        return mean_or_zero(F.binary_cross_entropy_with_logits(scores[known], wanted, reduction="none"), scores)

    def new_metrics(self) -> RerankingScores:
        """Return nDCG@10 (linear gains, as in BEIR) and MRR@10 over the candidates of each query."""
        return RerankingScores()

    def update_metrics(self, metrics: Any, outputs: Outputs, batch: Batch) -> None:
        """Count the pairs in that have labels; a query without an answer among its candidates is left out."""
        labels = batch.get("labels")
        if labels is not None:
            metrics.update(outputs["logits"].float().squeeze(-1), labels.float(), _queries(batch))

    def decode(self, outputs: Outputs, labels: Sequence[str] | None = None) -> list[Any]:
        """Return the scores as they are: any number, the higher the better, to compare for one query."""
        return [{"score": score} for score in outputs["logits"].detach().float().squeeze(-1).cpu().tolist()]


def _queries(batch: Batch) -> Tensor:
    queries = batch.get("query_index")
    if queries is None:
        raise DistillationError(
            f"Reranking needs to know which pairs belong to one query, and this batch holds {sorted(batch)}. Give the "
            "Trainer a RerankingData, or bring query_index."
        )
    return queries
