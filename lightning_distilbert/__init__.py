"""Distil any BERT-family teacher into a DistilBERT-type student, with the Lightning Trainer.

Names are imported when they are first used, so that the module classes follow the Lightning package that the program
has imported by then (see ``_compat``), and ``import lightning_distilbert`` itself is quick.
"""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError, version
from typing import TYPE_CHECKING

from lightning_distilbert._lazy import attach

if TYPE_CHECKING:
    from lightning_distilbert.callback import DistillationLoss
    from lightning_distilbert.data import (
        MaskedLMData,
        QuestionAnsweringData,
        RerankingData,
        RetrievalData,
        TextClassificationData,
        TokenClassificationData,
        TranslationData,
    )
    from lightning_distilbert.errors import DistillationError
    from lightning_distilbert.module import DistillationModule
    from lightning_distilbert.objectives import (
        Attention,
        Embeddings,
        HiddenStates,
        MarginMSE,
        RankingKL,
        Relations,
        SentenceEmbedding,
        Similarity,
        SoftTargets,
    )
    from lightning_distilbert.precision import auto_precision
    from lightning_distilbert.saved import load
    from lightning_distilbert.schedules import Cosine, Linear
    from lightning_distilbert.seq2seq import TranslationStudent
    from lightning_distilbert.student import Student, build_student
    from lightning_distilbert.target_tokenizer import train_target_tokenizer
    from lightning_distilbert.tasks import (
        IntentClassification,
        MaskedLM,
        QuestionAnswering,
        Reranking,
        Retrieval,
        TextClassification,
        TokenClassification,
        Translation,
    )
    from lightning_distilbert.teacher import Teacher

try:
    __version__ = version("lightning-distilbert")
except PackageNotFoundError:  # a source tree that was never installed
    __version__ = "0.0.0"

_HOME = {
    "Attention": "objectives",
    "Cosine": "schedules",
    "DistillationError": "errors",
    "DistillationLoss": "callback",
    "DistillationModule": "module",
    "Embeddings": "objectives",
    "HiddenStates": "objectives",
    "IntentClassification": "tasks",
    "Linear": "schedules",
    "MarginMSE": "objectives",
    "MaskedLM": "tasks",
    "MaskedLMData": "data",
    "QuestionAnswering": "tasks",
    "QuestionAnsweringData": "data",
    "RankingKL": "objectives",
    "Relations": "objectives",
    "Reranking": "tasks",
    "RerankingData": "data",
    "Retrieval": "tasks",
    "RetrievalData": "data",
    "SentenceEmbedding": "objectives",
    "Similarity": "objectives",
    "SoftTargets": "objectives",
    "Student": "student",
    "Teacher": "teacher",
    "TextClassification": "tasks",
    "TextClassificationData": "data",
    "TokenClassification": "tasks",
    "TokenClassificationData": "data",
    "Translation": "tasks",
    "TranslationData": "data",
    "TranslationStudent": "seq2seq",
    "auto_precision": "precision",
    "build_student": "student",
    "load": "saved",
    "train_target_tokenizer": "target_tokenizer",
}

__all__ = [
    "Attention",
    "Cosine",
    "DistillationError",
    "DistillationLoss",
    "DistillationModule",
    "Embeddings",
    "HiddenStates",
    "IntentClassification",
    "Linear",
    "MarginMSE",
    "MaskedLM",
    "MaskedLMData",
    "QuestionAnswering",
    "QuestionAnsweringData",
    "RankingKL",
    "Relations",
    "Reranking",
    "RerankingData",
    "Retrieval",
    "RetrievalData",
    "SentenceEmbedding",
    "Similarity",
    "SoftTargets",
    "Student",
    "Teacher",
    "TextClassification",
    "TextClassificationData",
    "TokenClassification",
    "TokenClassificationData",
    "Translation",
    "TranslationData",
    "TranslationStudent",
    "auto_precision",
    "build_student",
    "load",
    "train_target_tokenizer",
]


__getattr__, __dir__ = attach(__name__, _HOME)
