"""Listwise loss of reranking: the documents that answer a query come out of its candidates."""

from __future__ import annotations

import torch
from torch import Tensor

from lightning_distilbert.errors import DistillationError
from lightning_distilbert.functional.masking import full_precision, mean_or_zero


def listwise_cross_entropy(scores: Tensor, relevance: Tensor, queries: Tensor, rows: Tensor | None = None) -> Tensor:
    r"""Cross-entropy of what answers each query against the softmax over the query's candidates.

    With :math:`s_j` the scores of the candidates :math:`C_i` of query :math:`i` and :math:`r_j \ge 0` their relevance
    (ListNet's top-one form, Cao et al. 2007; with a single answer the localised contrastive loss of Gao et al. 2021,
    https://arxiv.org/abs/2101.08751, equation 3):

    .. math:: \mathcal{L} = -\frac{1}{N} \sum_{i=1}^{N} \sum_{j \in C_i} \frac{r_j}{\sum_{k \in C_i} r_k}
        \log \frac{\exp(s_j)}{\sum_{k \in C_i} \exp(s_k)}

    Only queries with an answer and another candidate count: there is nothing to rank in the others. Failure mode: it
    sees differences of scores alone, so that a score says nothing by itself, as of whether any candidate is an answer.

    Args:
        scores: Of shape ``(pairs,)``.
        relevance: Of the same shape, at least 0; NaN where nobody knows, which leaves the pair out.
        queries: Integers of the same shape: pairs with equal numbers belong to one query, in whatever order.
        rows: Of the same shape, True where a pair counts. None means that all count.

    Returns:
        A float32 scalar in :math:`[0, \infty)`, computed in float32 whatever comes in; zero with a graph if no query
        counts.

    Raises:
        DistillationError: If the shapes differ, or a relevance is negative.

    Example:
        >>> scores, relevance = torch.tensor([0.0, 0.0, 1.0, 0.0]), torch.tensor([1.0, 0.0, 1.0, 0.0])
        >>> listwise_cross_entropy(scores, relevance, torch.tensor([4, 4, 7, 7]))  # of log 2 and 0.3133
        tensor(0.5032)
    """
    if scores.dim() != 1 or not scores.shape == relevance.shape == queries.shape:
        raise DistillationError(
            f"listwise_cross_entropy() was given scores of shape {tuple(scores.shape)}, relevance of "
            f"{tuple(relevance.shape)} and queries of {tuple(queries.shape)}: it needs one of each for each pair."
        )
    if (relevance < 0).any():
        raise DistillationError(f"A relevance is negative ({relevance.min().item()}): 0 says that it is no answer.")
    known = ~relevance.isnan() if rows is None else rows.bool() & ~relevance.isnan()
    with full_precision(scores):
        values, gains = scores[known].float(), relevance[known].float()
        names, group = queries[known].unique(return_inverse=True)
        zeros = values.new_zeros(len(names))
        highest = zeros.scatter_reduce(0, group, values.detach(), "amax", include_self=False)
        total = zeros.index_add(0, group, (values - highest[group]).exp())
        log_likelihood = values - highest[group] - total.log()[group]
        answers = zeros.index_add(0, group, gains)
        per_query = zeros.index_add(0, group, -gains * log_likelihood) / answers.clamp(min=torch.finfo().tiny)
        counts = (answers > 0) & (torch.bincount(group, minlength=len(names)) > 1)
        return mean_or_zero(per_query[counts], graph_of=scores)
