"""Retrieval: sentence vectors with which a query finds its document."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lightning_distilbert.errors import DistillationError
from lightning_distilbert.folder import SENTENCE_TRANSFORMERS, _write_json
from lightning_distilbert.functional import in_batch_contrastive, pool
from lightning_distilbert.gathering import gather_rows, processes, sum_over_processes
from lightning_distilbert.metrics import RetrievalScores
from lightning_distilbert.retrieval.search import SIMILARITIES
from lightning_distilbert.tasks.base import Batch, Outputs, Task, call_model


class Retrieval(Task):
    """Embed queries and documents so that a query is nearest to the documents that answer it.

    The task loss is the in-batch contrastive one: each query's document against all other documents of the batch, hard
    negatives included, less those that hold the same text or answer the query too. Evaluation encodes the whole corpus
    and searches it exactly.

    Args:
        pooling: How a sentence vector is pooled: the mean over real tokens, or the first token.
        normalize: Whether vectors are scaled to length 1, so that the dot product is the cosine.
        temperature: The divisor of the similarities in the contrastive loss. None is 0.05, and 1 for dot products of
            vectors that are not scaled.
        gather: Whether the documents of all processes of a distributed run are compared with each query, and not only
            those of its own. The loss and its gradient are then those of one process with the whole batch. The numbers
            in ``document_index`` must mean the same text in each process, as those of `RetrievalData` do.
        similarity: By what vectors are compared, in the contrastive loss, in evaluation and by who searches with the
            saved folder: ``"cosine"``, or ``"dot"``, which is the same for vectors of length 1.

    Raises:
        DistillationError: If an option is out of range.

    Example:
        >>> Retrieval(pooling="cls").monitor
        'val/ndcg@10'
    """

    auto_class: ClassVar[str] = "AutoModel"
    default_objectives: ClassVar[str] = "embedding"
    data: ClassVar[tuple[str, ...]] = ("RetrievalData",)
    monitor: str = "val/ndcg@10"
    mode: str = "max"

    def __init__(
        self,
        pooling: Literal["mean", "cls"] = "mean",
        normalize: bool = True,
        temperature: float | None = None,
        gather: bool = False,
        similarity: Literal["cosine", "dot"] = "cosine",
    ) -> None:
        if pooling not in ("mean", "cls"):
            raise DistillationError(f"pooling={pooling!r}: it is 'mean' or 'cls'.")
        if temperature is None:
            temperature = 1.0 if similarity == "dot" and not normalize else 0.05
        if temperature <= 0:
            raise DistillationError(f"temperature={temperature}: it must be above 0.")
        if similarity not in SIMILARITIES:
            raise DistillationError(f"similarity={similarity!r}: it is 'cosine' or 'dot'.")
        self.pooling: Literal["mean", "cls"] = pooling
        self.normalize = normalize
        self.temperature = temperature
        self.gather = gather
        self.similarity: Literal["cosine", "dot"] = similarity

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
        """Return the in-batch contrastive loss of a training batch; None for a batch of texts.

        Args:
            outputs: ``query`` vectors of shape ``(batch, width)``, and ``document`` vectors of shape
                ``(k * batch, width)``: first the queries' own documents, then a first hard negative of each, and so on.
            batch: With the attention masks of both: a row without a token counts nowhere, nor do the documents of such
                a query. ``document_index`` and ``relevant_index`` say which are equal and which answer the query too.
        """
        if "query" not in outputs:
            return None
        queries, documents = outputs["query"], outputs["document"]
        rows, real = (batch[name]["attention_mask"].any(dim=-1) for name in ("query", "document"))
        if len(queries) and len(documents) % len(queries) == 0:  # what does not fit is refused by the function
            real = real & rows.repeat(len(documents) // len(queries))
        ids, answers, share = batch.get("document_index"), None, 1.0
        if self.gather and processes() > 1:
            counting = (rows & real[: len(rows)]).sum().float()
            own = [documents, real] if ids is None else [documents, real, ids]
            (documents, real, *numbers), filled, start = gather_rows(own)
            ids, real = (numbers[0] if numbers else None), real & filled
            answers = start + torch.arange(len(queries), device=queries.device)
            # a mean over the queries of all processes, which need not have as many each
            share = processes() * counting / sum_over_processes(counting).clamp(min=1)
        loss = in_batch_contrastive(
            queries, documents, ids, self.temperature, rows, real, batch.get("relevant_index"), answers, self.similarity
        )
        return share * loss

    def new_metrics(self) -> RetrievalScores:
        """Return the metrics of one split."""
        return RetrievalScores(similarity=self.similarity)

    def update_metrics(self, metrics: Any, outputs: Outputs, batch: Batch) -> None:
        """Add queries (with their relevant documents) or documents."""
        if "index" not in batch:
            raise DistillationError(
                f"Retrieval is evaluated on queries and a corpus, and this batch holds {sorted(batch)}. "
                "Give the Trainer a RetrievalData."
            )
        metrics.update(outputs["embedding"], batch["index"], batch.get("relevant"), batch.get("grades"))

    def write_files(self, module: Any, folder: Path) -> None:
        """Tell sentence-transformers by what the vectors are compared; the folder of an artefact has no file of it."""
        path = folder / SENTENCE_TRANSFORMERS
        if path.is_file():
            _write_json(path, json.loads(path.read_text(encoding="utf-8")) | {"similarity_fn_name": self.similarity})

    def decode(self, outputs: Outputs, labels: Sequence[str] | None = None) -> list[Any]:
        """Return the vectors as lists of numbers."""
        vectors: list[Any] = outputs["embedding"].detach().float().cpu().tolist()
        return vectors
