"""Objectives: thin modules over `lightning_distilbert.functional`, each one term of the distillation loss."""

from __future__ import annotations

from lightning_distilbert.objectives.attention import Attention
from lightning_distilbert.objectives.base import Objective
from lightning_distilbert.objectives.embeddings import Embeddings
from lightning_distilbert.objectives.hidden_states import HiddenStates
from lightning_distilbert.objectives.margin_mse import MarginMSE
from lightning_distilbert.objectives.presets import PRESETS, Preset, resolve_objectives
from lightning_distilbert.objectives.ranking_kl import RankingKL
from lightning_distilbert.objectives.relations import Relations
from lightning_distilbert.objectives.sentence_embedding import SentenceEmbedding
from lightning_distilbert.objectives.similarity import Similarity
from lightning_distilbert.objectives.soft_targets import SoftTargets

__all__ = [
    "PRESETS",
    "Attention",
    "Embeddings",
    "HiddenStates",
    "MarginMSE",
    "Objective",
    "Preset",
    "RankingKL",
    "Relations",
    "SentenceEmbedding",
    "Similarity",
    "SoftTargets",
    "resolve_objectives",
]
