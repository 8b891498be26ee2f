"""How well a cross-encoder ranks the candidates of each query: nDCG and MRR."""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from torch import Tensor
from torchmetrics import Metric
from torchmetrics.utilities.data import dim_zero_cat

from lightning_distilbert.errors import DistillationError
from lightning_distilbert.metrics import ranking_scores


class RerankingScores(Metric):
    r"""nDCG and MRR of the candidates that the data bring for each query, ranked by a cross-encoder's scores.

    Scores are compared and nothing else: they may be negative. Of candidates with equal scores those of the lower grade
    stand first, so that a model which tells nothing apart gains nothing from their order in the data. A query without
    an answer among its candidates is left out. The values are those of `ranking_scores`, averaged over the queries.

    (``RetrievalMRR`` of torchmetrics 1.9 finds no answer with a score of 0 or less, and its states cannot be gathered
    from processes of which one got no judged pair.)

    Args:
        ndcg_at: The rank at which nDCG is cut.
        mrr_at: The rank at which MRR is cut.
        **kwargs: Those of `torchmetrics.Metric`.

    Raises:
        DistillationError: If a cut-off is below 1.

    Example:
        >>> metric = RerankingScores()
        >>> metric.update(torch.tensor([-3.0, -1.0]), torch.tensor([1.0, 0.0]), torch.tensor([7, 7]))
        >>> {name: round(value.item(), 4) for name, value in metric.compute().items()}
        {'ndcg@10': 0.6309, 'mrr@10': 0.5}
    """

    is_differentiable = False
    higher_is_better = True
    full_state_update = False

    STATES: ClassVar[dict[str, torch.dtype]] = {"scores": torch.float, "grades": torch.float, "queries": torch.long}

    def __init__(self, ndcg_at: int = 10, mrr_at: int = 10, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        if min(ndcg_at, mrr_at) < 1:
            raise DistillationError(f"ndcg_at={ndcg_at}, mrr_at={mrr_at}: each must be at least 1.")
        self.cuts = {"ndcg_at": ndcg_at, "mrr_at": mrr_at}
        for name in self.STATES:
            self.add_state(name, default=[], dist_reduce_fx="cat")
        self.reset()

    def reset(self) -> None:
        """Forget all pairs."""
        super().reset()
        # an empty start of the right type: a process that sees no judged pair must still take part in gathering them
        for name, dtype in self.STATES.items():
            getattr(self, name).append(torch.empty(0, dtype=dtype, device=self.device))

    def update(self, scores: Tensor, grades: Tensor, queries: Tensor) -> None:
        """Take in pairs, in any order.

        Args:
            scores: Of shape ``(pairs,)``.
            grades: Of the same shape: above 0 of a document that answers the query, NaN of a pair that does not count.
            queries: The number of each pair's query, of the same shape.

        Raises:
            DistillationError: If the shapes differ, or a score is not finite.
        """
        if scores.ndim != 1 or not scores.shape == grades.shape == queries.shape:
            raise DistillationError(
                f"scores {tuple(scores.shape)}, grades {tuple(grades.shape)} and queries {tuple(queries.shape)} do not "
                "fit together: each must be (pairs,)."
            )
        known = ~grades.isnan()
        if not scores[known].isfinite().all():
            raise DistillationError("A score is NaN or infinite, so it cannot be ranked: the model may have diverged.")
        for name, values in zip(self.STATES, (scores, grades, queries), strict=True):
            getattr(self, name).append(values.detach()[known].to(self.device, self.STATES[name]))

    def compute(self) -> dict[str, Tensor]:
        """Rank and score.

        Returns:
            The mean over the queries under ``"ndcg@10"`` and ``"mrr@10"``, as scalars; NaN where no query has an
            answer.
        """
        scores, grades, queries = (dim_zero_cat(getattr(self, name)) for name in self.STATES)
        if not len(queries):
            return {f"{name}@{cut}": scores.new_tensor(torch.nan) for name, cut in self._names()}
        order = grades.argsort(stable=True)
        order = order[scores[order].argsort(stable=True, descending=True)]
        order = order[queries[order].argsort(stable=True)]
        _, query, counts = queries[order].unique_consecutive(return_inverse=True, return_counts=True)
        rank = torch.arange(len(order), device=order.device) - (counts.cumsum(0) - counts)[query]
        places = counts.new_full((len(counts), int(counts.max())), -1)
        gains = torch.zeros(places.shape, device=places.device)
        places[query, rank], gains[query, rank] = rank, grades[order]
        found = ranking_scores(places, places, gains, **self.cuts)
        return {f"{name}@{cut}": found[f"{name}@{cut}"].nanmean() for name, cut in self._names()}

    def _names(self) -> list[tuple[str, int]]:
        return [(name.removesuffix("_at"), cut) for name, cut in self.cuts.items()]
