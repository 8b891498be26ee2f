"""The maths of distillation, as pure functions on tensors."""

from __future__ import annotations

from lightning_distilbert.functional.contrastive import in_batch_contrastive
from lightning_distilbert.functional.hidden_states import hidden_state_distance
from lightning_distilbert.functional.masking import mean_or_zero, select
from lightning_distilbert.functional.pooling import pool
from lightning_distilbert.functional.sentence_embedding import embedding_distance
from lightning_distilbert.functional.similarity import similarity_divergence
from lightning_distilbert.functional.soft_targets import forward_kl, soft_targets

__all__ = [
    "embedding_distance",
    "forward_kl",
    "hidden_state_distance",
    "in_batch_contrastive",
    "mean_or_zero",
    "pool",
    "select",
    "similarity_divergence",
    "soft_targets",
]
