"""How well a bi-encoder finds the right documents: nDCG, MRR and recall of its rankings."""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from torch import Tensor
from torchmetrics import Metric
from torchmetrics.utilities.data import dim_zero_cat

from lightning_distilbert.errors import DistillationError
from lightning_distilbert.retrieval.search import check_similarity, search

# comparisons held at once while a ranking is matched with its judgements: 16 MiB of booleans
MAX_COMPARISONS = 2**24


def ranking_scores(
    ranked: Tensor,
    relevant: Tensor,
    grades: Tensor | None = None,
    ndcg_at: int = 10,
    mrr_at: int = 10,
    recall_at: int = 100,
) -> dict[str, Tensor]:
    r"""Score the ranking of each query against its judgements.

    With :math:`g_i` the grade of the document at rank :math:`i` (0 if it is not judged) and :math:`g^*_i` the grades
    of the query's own documents, the highest first:

    .. math::

        \text{nDCG@}k = \frac{\sum_{i \le k} g_i / \log_2(i + 1)}{\sum_{i \le k} g^*_i / \log_2(i + 1)} \qquad
        \text{MRR@}k = \max_{i \le k} \frac{[g_i > 0]}{i} \qquad
        \text{recall@}k = \frac{\sum_{i \le k} [g_i > 0]}{\sum_i [g^*_i > 0]}

    The gains are linear, as in trec_eval's ``ndcg_cut`` (and so in BEIR), not :math:`2^g - 1`. Each lies in [0, 1].

    Args:
        ranked: The documents found, the best first, of shape ``(Q, K)``: each at most once, -1 where there is none. A
            cut-off above K takes the ranking as it is.
        relevant: The judged documents, of shape ``(Q, R)``: each at most once, -1 as padding.
        grades: Their grades, of shape ``(Q, R)``; 1 for all by default. A grade of 0 or less is not relevant.
        ndcg_at: The rank at which nDCG is cut.
        mrr_at: The rank at which MRR is cut.
        recall_at: The rank at which recall is cut.

    Returns:
        The value of each query under ``"ndcg@10"``, ``"mrr@10"`` and ``"recall@100"`` (or whatever the cut-offs are),
        of shape ``(Q,)`` each; NaN for a query without any relevant document.

    Raises:
        DistillationError: If the shapes do not fit together or a cut-off is below 1.

    Example:
        >>> scores = ranking_scores(torch.tensor([[7, 3, 5]]), torch.tensor([[3, -1]]))
        >>> {name: round(value.item(), 4) for name, value in scores.items()}
        {'ndcg@10': 0.6309, 'mrr@10': 0.5, 'recall@100': 1.0}
    """
    if min(ndcg_at, mrr_at, recall_at) < 1:
        raise DistillationError(f"ndcg_at={ndcg_at}, mrr_at={mrr_at}, recall_at={recall_at}: each must be at least 1.")
    grades = torch.ones_like(relevant, dtype=torch.float) if grades is None else grades.float()
    if ranked.ndim != 2 or relevant.ndim != 2 or len(ranked) != len(relevant) or grades.shape != relevant.shape:
        raise DistillationError(
            f"ranked {tuple(ranked.shape)}, relevant {tuple(relevant.shape)} and grades {tuple(grades.shape)} do not "
            "fit together: they must be (queries, documents found) and twice (queries, documents judged)."
        )
    grades = grades.clamp(min=0).masked_fill(relevant < 0, 0)
    ranked = ranked[:, : max(ndcg_at, mrr_at, recall_at)]
    gains = torch.cat([*map(gains_of, *split_rows(ranked, relevant, grades))])
    ranks = torch.arange(1, ranked.shape[1] + 1, device=ranked.device)
    hits = gains > 0
    ideal = discounted(grades.sort(dim=1, descending=True).values, ndcg_at)
    first = torch.where(hits[:, :mrr_at], 1 / ranks[:mrr_at], 0.0)
    # 0 / 0 is the NaN of a query without any relevant document
    judged = torch.where(ideal > 0, 1.0, torch.nan)
    return {
        f"ndcg@{ndcg_at}": discounted(gains, ndcg_at) / ideal,
        f"mrr@{mrr_at}": (first.amax(dim=1) if first.shape[1] else first.sum(dim=1)) * judged,
        f"recall@{recall_at}": hits[:, :recall_at].sum(dim=1) / (grades > 0).sum(dim=1),
    }


def split_rows(ranked: Tensor, relevant: Tensor, grades: Tensor) -> tuple[tuple[Tensor, ...], ...]:
    """Split three tensors alike into blocks of queries that can be matched without much memory."""
    rows = max(1, MAX_COMPARISONS // max(1, ranked.shape[1] * relevant.shape[1]))
    return ranked.split(rows), relevant.split(rows), grades.split(rows)


def gains_of(ranked: Tensor, relevant: Tensor, grades: Tensor) -> Tensor:
    """Look up the grade of each ranked document, of shape ``(Q, K)``: 0 if it is not judged."""
    same = (ranked[:, :, None] == relevant[:, None, :]) & (ranked[:, :, None] >= 0)
    return (same * grades[:, None, :]).sum(dim=-1)


def discounted(gains: Tensor, k: int) -> Tensor:
    """Sum gains over the first k ranks, each divided by the logarithm of its rank plus one."""
    gains = gains[:, :k]
    return (gains / torch.arange(2, gains.shape[1] + 2, device=gains.device).log2()).sum(dim=1)


class RetrievalScores(Metric):
    r"""nDCG, MRR and recall of a bi-encoder that searches all documents it has seen, exactly.

    Queries and documents may come in any order, in batches of any size, spread over processes in any way. A row that
    is seen twice, as samplers repeat some to fill the last batch, counts once. A query without any relevant document
    is left out. The values are those of `ranking_scores`, averaged over the queries.

    Args:
        ndcg_at: The rank at which nDCG is cut.
        mrr_at: The rank at which MRR is cut.
        recall_at: The rank at which recall is cut.
        similarity: ``"cosine"`` or ``"dot"``.
        block: How many queries, and how many documents, to compare at once.
        **kwargs: Those of `torchmetrics.Metric`.

    Raises:
        DistillationError: If a cut-off or ``block`` is below 1, or ``similarity`` is unknown.

    Example:
        >>> metric = RetrievalScores(ndcg_at=2, mrr_at=2, recall_at=2)
        >>> metric.update(torch.tensor([[1.0, 0.0], [0.0, 1.0]]), index=torch.tensor([0, 1]))  # two documents
        >>> metric.update(torch.tensor([[2.0, 1.0]]), index=torch.tensor([0]), relevant=torch.tensor([[1, -1]]))
        >>> {name: round(value.item(), 4) for name, value in metric.compute().items()}
        {'ndcg@2': 0.6309, 'mrr@2': 0.5, 'recall@2': 1.0}
    """

    is_differentiable = False
    higher_is_better = True
    full_state_update = False

    # All states are one-dimensional lists: torchmetrics cannot gather tensors whose widths differ between processes,
    # and neither the number of judgements in a row nor the width on a process without any row is the same everywhere.
    STATES: ClassVar[dict[str, torch.dtype]] = {
        "query_vectors": torch.float,
        "query_rows": torch.long,
        "document_vectors": torch.float,
        "document_rows": torch.long,
        "judged_queries": torch.long,
        "judged_documents": torch.long,
        "judged_grades": torch.float,
    }

    judged_queries: list[Tensor]
    judged_documents: list[Tensor]
    judged_grades: list[Tensor]

    def __init__(
        self,
        ndcg_at: int = 10,
        mrr_at: int = 10,
        recall_at: int = 100,
        similarity: str = "cosine",
        block: int = 4096,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        if min(ndcg_at, mrr_at, recall_at, block) < 1:
            raise DistillationError(
                f"ndcg_at={ndcg_at}, mrr_at={mrr_at}, recall_at={recall_at}, block={block}: each must be at least 1."
            )
        check_similarity(similarity)
        self.cuts = {"ndcg_at": ndcg_at, "mrr_at": mrr_at, "recall_at": recall_at}
        self.similarity, self.block = similarity, block
        self._per_query: dict[str, Tensor] | None = None
        self._width: int | None = None
        for name in self.STATES:
            self.add_state(name, default=[], dist_reduce_fx="cat")
        self.reset()

    def reset(self) -> None:
        """Forget all rows."""
        super().reset()
        self._per_query, self._width = None, None
        # an empty start of the right type: a process that sees no query must still take part in gathering them
        for name, dtype in self.STATES.items():
            getattr(self, name).append(torch.empty(0, dtype=dtype, device=self.device))

    def update(
        self, embeddings: Tensor, index: Tensor, relevant: Tensor | None = None, grades: Tensor | None = None
    ) -> None:
        """Take in one batch, of queries if ``relevant`` is given and of documents if not.

        Args:
            embeddings: The sentence vectors, of shape ``(B, width)``.
            index: The row of each query among all queries, or of each document among all documents; shape ``(B,)``.
            relevant: The rows of each query's judged documents, of shape ``(B, R)``, -1 as padding. R may differ
                from batch to batch.
            grades: Their grades, of shape ``(B, R)``; 1 for all by default.

        Raises:
            DistillationError: If the shapes do not fit together, a vector is not finite, grades come alone, or the
                width changes.
        """
        if embeddings.ndim != 2 or index.shape != embeddings.shape[:1]:
            raise DistillationError(
                f"embeddings {tuple(embeddings.shape)} and index {tuple(index.shape)} do not fit together: they must "
                "be (batch, width) and (batch,)."
            )
        if self._width not in (None, embeddings.shape[1]):
            raise DistillationError(
                f"This batch's vectors are {embeddings.shape[1]} wide, those before it {self._width}: queries and "
                "documents must be encoded by the same model."
            )
        if not embeddings.isfinite().all():
            raise DistillationError(
                "A sentence vector is NaN or infinite, so it cannot be ranked. Look for rows without any real token, "
                "or for a model that has diverged."
            )
        side = "document" if relevant is None else "query"
        if relevant is not None:
            grades = torch.ones_like(relevant, dtype=torch.float) if grades is None else grades
            if relevant.ndim != 2 or len(relevant) != len(index) or grades.shape != relevant.shape:
                raise DistillationError(
                    f"relevant {tuple(relevant.shape)} and grades {tuple(grades.shape)} do not fit to {len(index)} "
                    "queries: both must be (batch, judged documents)."
                )
            judged = relevant >= 0
            self.judged_queries.append(index.long()[:, None].expand_as(relevant)[judged])
            self.judged_documents.append(relevant.long()[judged])
            self.judged_grades.append(grades.float()[judged])
        elif grades is not None:
            raise DistillationError("grades are given without relevant: they grade a query's documents.")
        self._width = embeddings.shape[1]
        getattr(self, f"{side}_vectors").append(embeddings.detach().float().flatten())
        getattr(self, f"{side}_rows").append(index.long())

    def compute(self) -> dict[str, Tensor]:
        """Search and score.

        Returns:
            The mean over the queries under ``"ndcg@10"``, ``"mrr@10"`` and ``"recall@100"``, as scalars.

        Raises:
            DistillationError: If there are no documents, or no query with a relevant one.
        """
        query_rows, queries = self.rows("query")
        document_rows, documents = self.rows("document")
        if not len(query_rows) or not len(document_rows):
            raise DistillationError(
                f"{len(query_rows)} queries and {len(document_rows)} documents: there is nothing to search. "
                "Give both to update(): queries with relevant=..., documents without."
            )
        top_k = max(self.cuts.values())
        _, positions = search(queries, documents, top_k, self.similarity, self.block)
        relevant, grades = self.judgements(query_rows)
        scores = ranking_scores(document_rows[positions], relevant, grades, **self.cuts)
        judged = ~next(iter(scores.values())).isnan()
        if not judged.any():
            raise DistillationError(
                f"None of the {len(query_rows)} queries has a relevant document (a row of at least 0 with a grade "
                "above 0), so there is nothing to score."
            )
        self._per_query = {"query": query_rows[judged]} | {name: value[judged] for name, value in scores.items()}
        return {name: value[judged].mean() for name, value in scores.items()}

    @property
    def per_query(self) -> dict[str, Tensor]:
        """The values behind the last `compute`, one per query: for a bootstrap over them.

        ``"query"`` holds the rows of the queries, in ascending order, less those without a relevant document.

        Raises:
            DistillationError: Before `compute`.
        """
        if self._per_query is None:
            raise DistillationError("per_query is known only after compute(), and until reset(). Call compute() first.")
        return self._per_query

    def rows(self, side: str) -> tuple[Tensor, Tensor]:
        """Return the rows of one side, ascending and each once, and their vectors."""
        rows = dim_zero_cat(getattr(self, f"{side}_rows"))
        vectors = dim_zero_cat(getattr(self, f"{side}_vectors")).view(len(rows), -1) if len(rows) else rows[:, None]
        unique, first = first_of_each(rows)
        return unique, vectors[first]

    def judgements(self, query_rows: Tensor) -> tuple[Tensor, Tensor]:
        """Return the judged documents of these queries and their grades, both of shape ``(Q, R)``, padded."""
        queries = torch.searchsorted(query_rows, dim_zero_cat(self.judged_queries))
        documents = dim_zero_cat(self.judged_documents)
        width = int(documents.max()) + 1 if len(documents) else 1
        key, first = first_of_each(queries * width + documents)
        queries, documents = key // width, key % width
        counts = torch.bincount(queries, minlength=len(query_rows))
        column = torch.arange(len(key), device=key.device) - (counts.cumsum(0) - counts)[queries]
        relevant = counts.new_full((len(query_rows), max(1, int(counts.max()))), -1)
        grades = torch.zeros(relevant.shape, device=relevant.device)
        relevant[queries, column] = documents
        grades[queries, column] = dim_zero_cat(self.judged_grades)[first]
        return relevant, grades


def first_of_each(values: Tensor) -> tuple[Tensor, Tensor]:
    """Return the distinct values of a vector, ascending, and where each stands first.

    Example:
        >>> [part.tolist() for part in first_of_each(torch.tensor([5, 2, 5]))]
        [[2, 5], [1, 0]]
    """
    values, order = values.sort(stable=True)
    new = torch.ones_like(values, dtype=torch.bool)
    new[1:] = values[1:] != values[:-1]
    return values[new], order[new]
