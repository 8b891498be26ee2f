"""Retrieval: sentence vectors with which a query finds its document."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar, Literal

from torch import Tensor, nn
from torch.nn import functional as F

from lightning_distilbert.errors import DistillationError
from lightning_distilbert.functional import in_batch_contrastive, pool
from lightning_distilbert.metrics import RetrievalScores
from lightning_distilbert.tasks.base import Batch, Outputs, Task, call_model


class Retrieval(Task):
    """Embed queries and documents so that a query is nearest to the documents that answer it.

    The task loss is the in-batch contrastive one: each query against the documents of the other rows. Evaluation
    encodes the whole corpus and searches it exactly.

    Args:
        pooling: How a sentence vector is pooled: the mean over real tokens, or the first token.
        normalize: Whether vectors are scaled to length 1, so that the dot product is the cosine.
        temperature: The divisor of the similarities in the contrastive loss.

    Raises:
        DistillationError: If an option is out of range.

    Example:
        >>> Retrieval(pooling="cls").monitor
        'val/ndcg@10'
    """

    auto_class: ClassVar[str] = "AutoModel"
    default_objectives: ClassVar[str] = "embedding"
    monitor: str = "val/ndcg@10"
    mode: str = "max"

    def __init__(
        self, pooling: Literal["mean", "cls"] = "mean", normalize: bool = True, temperature: float = 0.05
    ) -> None:
        if pooling not in ("mean", "cls"):
            raise DistillationError(f"pooling={pooling!r}: it is 'mean' or 'cls'.")
        if temperature <= 0:
            raise DistillationError(f"temperature={temperature}: it must be above 0.")
        self.pooling: Literal["mean", "cls"] = pooling
        self.normalize = normalize
        self.temperature = temperature

    def prepare_model(self, model: nn.Module) -> None:
        """Freeze an unused pooler: DDP refuses parameters that never get a gradient."""
        if isinstance(pooler := getattr(model, "pooler", None), nn.Module):
            pooler.requires_grad_(False)

    def embed(self, model: nn.Module, batch: Batch) -> Tensor:
        """Return the sentence vectors, of shape ``(batch, width)``, as they are compared in a search."""
        output = call_model(model, batch)
        vectors = pool(output.last_hidden_state, batch["attention_mask"].bool(), self.pooling).float()
        return F.normalize(vectors, dim=-1) if self.normalize else vectors

    def run(self, model: nn.Module, batch: Batch) -> Outputs:
        """Return ``query`` and ``document`` vectors of a training batch, or the ``embedding`` of a batch of texts."""
        if "query" in batch:
            return {name: self.embed(model, batch[name]) for name in ("query", "document")}
        return {"embedding": self.embed(model, batch)}

    def loss(self, outputs: Outputs, batch: Batch) -> Tensor | None:
        """Return the in-batch contrastive loss of a training batch; None for a batch of texts."""
        if "query" not in outputs:
            return None
        return in_batch_contrastive(
            outputs["query"],
            outputs["document"],
            document_ids=batch.get("document_index"),
            temperature=self.temperature,
            rows=batch["query"]["attention_mask"].any(dim=-1),
        )

    def new_metrics(self) -> RetrievalScores:
        """Return the metrics of one split."""
        return RetrievalScores()

    def update_metrics(self, metrics: Any, outputs: Outputs, batch: Batch) -> None:
        """Add queries (with their relevant documents) or documents."""
        if "index" not in batch:
            raise DistillationError(
                f"Retrieval is evaluated on queries and a corpus, and this batch holds {sorted(batch)}. "
                "Give the Trainer a RetrievalData."
            )
        metrics.update(outputs["embedding"], batch["index"], batch.get("relevant"), batch.get("grades"))

    def decode(self, outputs: Outputs, labels: Sequence[str] | None = None) -> list[Any]:
        """Return the vectors as lists of numbers."""
        vectors: list[Any] = outputs["embedding"].detach().float().cpu().tolist()
        return vectors
