"""Answers to texts without a Trainer."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch

from lightning_distilbert.data.encoding import EncodedDataset, Padding, encode, pad_batch
from lightning_distilbert.data.inputs import question_pairs, split_pairs
from lightning_distilbert.errors import DistillationError
from lightning_distilbert.folder import max_tokens


@contextmanager
def evaluating(module: torch.nn.Module) -> Iterator[None]:
    """Put a module into eval mode without gradients, and give each part its own mode back afterwards.

    Args:
        module: The module.

    Example:
        >>> layer = torch.nn.Dropout()
        >>> with evaluating(layer):
        ...     layer.training, torch.is_grad_enabled()
        (False, False)
        >>> layer.training
        True
    """
    modes = [(part, part.training) for part in module.modules()]
    module.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        for part, training in modes:
            part.training = training


def room(module: Any, max_length: int | None = None) -> int:
    """Return how many tokens of a text a module's student reads at most.

    Args:
        module: A `DistillationModule`.
        max_length: A lower limit of the user's, or None.
    """
    longest = max_tokens(module.tokenizer, module.student)
    return min(max_length or longest, longest)


def answer_texts(
    module: Any, texts: Sequence[str | tuple[str, str]], batch_size: int = 32, max_length: int | None = None
) -> list[Any]:
    """Encode texts, run the task's `predict` on batches of similar length, and return the answers in order.

    Args:
        module: A `DistillationModule`.
        texts: The texts, or pairs of texts as tuples.
        batch_size: Texts in a batch.
        max_length: Tokens kept of a text at most; None is what tokenizer and student allow.

    Returns:
        One plain answer per text.

    Raises:
        DistillationError: If something in it is no text, or texts and pairs are mixed.
    """
    firsts, seconds = split_pairs(texts)
    return answer_rows(module, encode(module.tokenizer, firsts, seconds, room(module, max_length)), batch_size)


def answer_rows(module: Any, rows: EncodedDataset, batch_size: int = 32) -> list[Any]:
    """Run the task's `predict` on batches of encoded rows of similar length, and return the answers in order.

    Args:
        module: A `DistillationModule`.
        rows: The encoded rows; their `extras` go along in the batches.
        batch_size: Rows in a batch.
    """
    order = sorted(range(len(rows)), key=rows.lengths.__getitem__, reverse=True)
    padding = Padding.of(module.tokenizer)
    answers: dict[int, Any] = {}
    with evaluating(module):
        for start in range(0, len(order), batch_size):
            part = order[start : start + batch_size]
            batch = {name: value.to(module.device) for name, value in pad_batch(rows[part], padding).items()}
            answers.update(zip(part, module.task.predict(module, batch), strict=True))
    return [answers[index] for index in range(len(order))]


def answer_questions(
    module: Any, question: str | Sequence[str], context: str | Sequence[str], batch_size: int = 32
) -> dict[str, Any] | list[dict[str, Any]]:
    """Find the answers to questions in texts: what `DistillationModule.answer` does.

    Args:
        module: A `DistillationModule`.
        question: The question, or several.
        context: The text that holds the answer, or one for each question; a single one serves all questions.
        batch_size: Windows of text in a batch.

    Returns:
        The answer, or a list of one for each question.

    Raises:
        DistillationError: If the task is another, or the numbers of questions and texts differ.
    """
    if module.task.auto_class != "AutoModelForQuestionAnswering":
        raise DistillationError(
            f"A student of {type(module.task).__name__} answers no questions from a context. Use predict(texts), or a "
            "student of QuestionAnswering."
        )
    answers: list[dict[str, Any]] = module.predict(question_pairs(question, context), batch_size)
    return answers[0] if isinstance(question, str) and isinstance(context, str) else answers
