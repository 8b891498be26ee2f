"""Tasks: what a student learns."""

from lightning_distilbert.tasks.base import Task
from lightning_distilbert.tasks.masked_lm import MaskedLM
from lightning_distilbert.tasks.retrieval import Retrieval
from lightning_distilbert.tasks.text_classification import TextClassification

__all__ = ["MaskedLM", "Retrieval", "Task", "TextClassification"]
