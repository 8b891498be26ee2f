"""Tiny saved students of each task, with rows that they are right about."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from lightning_distilbert import (
    DistillationModule,
    MaskedLM,
    QuestionAnswering,
    Reranking,
    Retrieval,
    Student,
    TextClassification,
    TokenClassification,
)
from tests.conftest import save_tiny_bert

FILMS = [
    f"the {first} {second} was {third}"
    for first, second, third in itertools.product(
        ["good", "dull", "old", "first"], ["film", "actor", "scene"], ["great, and very long", "poor", "best of all"]
    )
]
SENTENCES = ["the man in the city", "a small dog and a cat in the old house", "what time is it in the new city?"]
QUESTION = ("who made the house?", "The house was made by the old man of the city, and the tree was in the water.")


def save_classifier(folder: Path, outlier: bool = False) -> Path:
    """Save a DistilBERT of two labels, each of which it gives to about half of `FILMS`.

    Args:
        folder: Where to.
        outlier: Whether one row in the table of embeddings, of a token that no text has, is so large that 8 bits for
            the table leave nothing of the others.
    """
    save_tiny_bert(folder / "teacher", num_labels=2)
    task = TextClassification(labels=["bad", "good"])
    module = DistillationModule(task, student=Student(source=str(folder / "teacher"), layers=2)).eval()
    with torch.no_grad():
        encoded = module.tokenizer(FILMS, padding=True, return_tensors="pt")
        logits = module.student(encoded["input_ids"], encoded["attention_mask"]).logits
        module.student.classifier.weight *= 30  # sure of itself
        # between the two in the middle, so that none is in doubt
        module.student.classifier.bias[1] += 30 * (logits[:, 0] - logits[:, 1]).quantile(0.5)
        if outlier:
            words = module.student.distilbert.embeddings.word_embeddings.weight
            words[module.tokenizer.convert_tokens_to_ids("9")] = 1e4
    return module.save_student(folder / "student")


def labelled(module: Any) -> list[dict[str, Any]]:
    """Return rows with the labels that a classifier gives them."""
    answers = module.predict(FILMS)
    return [{"text": text, "label": answer["label"]} for text, answer in zip(FILMS, answers, strict=True)]


def _save(folder: Path, task: Any, architecture: str = "auto", **kind: Any) -> Path:
    teacher = save_tiny_bert(folder / "teacher", **kind)
    student = Student(source=str(teacher), layers=2, architecture=architecture)
    return DistillationModule(task, student=student).save_student(folder / "student")


def _save_tagger(folder: Path) -> Path:
    student = Student(source=str(save_tiny_bert(folder / "teacher")), layers=2)
    task = TokenClassification(labels=["O", "B-LOC", "I-LOC", "B-PER", "I-PER"])
    return DistillationModule(task, student=student).save_student(folder / "student")


# each task: how its student is saved, and what it is asked
TASKS: dict[str, tuple[Callable[[Path], Path], list[Any]]] = {
    "classification": (save_classifier, FILMS[:5]),
    "tokens": (_save_tagger, SENTENCES),
    "questions": (lambda folder: _save(folder, QuestionAnswering(), spans=True), [QUESTION]),
    "retrieval": (lambda folder: _save(folder, Retrieval(), architecture="same"), SENTENCES),
    "reranking": (lambda folder: _save(folder, Reranking(), num_labels=1), [("the city", text) for text in SENTENCES]),
    "mlm": (lambda folder: _save(folder, MaskedLM(), mlm=True), ["the [MASK] in the [MASK]", "a good [MASK]"]),
}
