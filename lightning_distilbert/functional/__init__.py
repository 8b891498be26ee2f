"""The maths of distillation, as pure functions on tensors."""

from __future__ import annotations

from lightning_distilbert.functional.attention import attention_distance
from lightning_distilbert.functional.chunked import chunked_cross_entropy, chunked_forward_kl
from lightning_distilbert.functional.contrastive import in_batch_contrastive
from lightning_distilbert.functional.hidden_states import hidden_state_distance
from lightning_distilbert.functional.late_logits import LateLogits, late_forward_kl
from lightning_distilbert.functional.listwise import listwise_cross_entropy
from lightning_distilbert.functional.masking import first_tokens, mean_or_zero, select
from lightning_distilbert.functional.pooling import pool
from lightning_distilbert.functional.ranking import arrange_scores, candidate_scores, margin_mse, ranking_kl
from lightning_distilbert.functional.relations import relation_divergence
from lightning_distilbert.functional.sentence_embedding import embedding_distance
from lightning_distilbert.functional.similarity import similarity_divergence
from lightning_distilbert.functional.soft_targets import forward_kl, masked_kl, soft_targets
from lightning_distilbert.functional.spans import best_spans, span_cross_entropy, span_mask

__all__ = [
    "LateLogits",
    "arrange_scores",
    "attention_distance",
    "best_spans",
    "candidate_scores",
    "chunked_cross_entropy",
    "chunked_forward_kl",
    "embedding_distance",
    "first_tokens",
    "forward_kl",
    "hidden_state_distance",
    "in_batch_contrastive",
    "late_forward_kl",
    "listwise_cross_entropy",
    "margin_mse",
    "masked_kl",
    "mean_or_zero",
    "pool",
    "ranking_kl",
    "relation_divergence",
    "select",
    "similarity_divergence",
    "soft_targets",
    "span_cross_entropy",
    "span_mask",
]
