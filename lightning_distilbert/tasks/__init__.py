"""Tasks: what a student learns."""

from lightning_distilbert.tasks.base import Task
from lightning_distilbert.tasks.intents import IntentClassification
from lightning_distilbert.tasks.masked_lm import MaskedLM
from lightning_distilbert.tasks.question_answering import QuestionAnswering
from lightning_distilbert.tasks.reranking import Reranking
from lightning_distilbert.tasks.retrieval import Retrieval
from lightning_distilbert.tasks.text_classification import TextClassification
from lightning_distilbert.tasks.token_classification import TokenClassification
from lightning_distilbert.tasks.translation import Translation

__all__ = [
    "IntentClassification",
    "MaskedLM",
    "QuestionAnswering",
    "Reranking",
    "Retrieval",
    "Task",
    "TextClassification",
    "TokenClassification",
    "Translation",
]
