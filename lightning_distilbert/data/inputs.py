"""What a user gives to be answered: texts, pairs of texts, questions with contexts, sentences of words.

Nothing here needs torch: the runtime for devices (`lightning_distilbert.deploy.runtime`) reads its inputs with it too.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from lightning_distilbert.errors import DistillationError

CHUNK = 2048  # texts in one tokenizer call: enough for its threads, few enough for a progress bar that moves


def check_list(texts: Any) -> None:
    """Refuse what is no list of texts: a single one, a mapping, or nothing of that kind.

    Args:
        texts: What was given.

    Raises:
        DistillationError: If it is none.

    Example:
        >>> check_list(["a text"])
    """
    if isinstance(texts, str):
        raise DistillationError(f"A single text was given, {texts[:60]!r}. Give a list of texts.")
    if isinstance(texts, (bytes, Mapping)) or not isinstance(texts, Iterable):
        raise DistillationError(f"A {type(texts).__name__} was given, {str(texts)[:60]}. Give a list of texts.")


def check_characters(texts: Iterable[str], place: int) -> None:
    """Refuse half a character, as JSON may escape one: no tokenizer reads it.

    Args:
        texts: The texts of one entry.
        place: Its place in what was given, for the error.

    Raises:
        DistillationError: If there is one.

    Example:
        >>> check_characters(["a film"], 0)
    """
    try:
        for text in texts:
            text.encode()
    except UnicodeEncodeError as error:
        raise DistillationError(
            f"Entry {place} holds {error.object[error.start]!r}, one half of a character (a surrogate) without the "
            "other. Mend or drop it."
        ) from error


def split_pairs(texts: Sequence[str | tuple[str, str]]) -> tuple[list[str], list[str] | None]:
    """Part a list of texts, or of pairs of texts, into what `lightning_distilbert.data.encode` takes.

    Args:
        texts: Strings, or tuples of two strings.

    Returns:
        The first texts, and the second ones or None.

    Raises:
        DistillationError: If something else is in it, or texts and pairs are mixed.

    Example:
        >>> split_pairs([("a", "b"), ("c", "d")])
        (['a', 'c'], ['b', 'd'])
    """
    check_list(texts)
    rows: list[tuple[str, ...]] = [(text,) if isinstance(text, str) else text for text in texts]
    for place, row in enumerate(rows):
        if not isinstance(row, (tuple, list)) or len(row) > 2 or not all(isinstance(part, str) for part in row):
            raise DistillationError(f"Entry {place} is {row!r}: it has to be a string, or a tuple of two strings.")
        if len(row) != len(rows[0]):
            raise DistillationError(f"Entry {place} is {row!r}: texts and pairs of texts cannot be mixed in one list.")
        check_characters(row, place)
    return [row[0] for row in rows], [row[1] for row in rows] if rows and len(rows[0]) == 2 else None


def question_pairs(question: str | Sequence[str], context: str | Sequence[str]) -> list[tuple[str, str]]:
    """Put questions and contexts together.

    Args:
        question: The question, or several.
        context: The text that holds the answer, or one for each question; a single one serves all questions.

    Raises:
        DistillationError: If the numbers of questions and contexts differ.

    Example:
        >>> question_pairs(["who", "what"], "a text")
        [('who', 'a text'), ('what', 'a text')]
    """
    single = isinstance(question, str) and isinstance(context, str)
    count = 1 if single else len(context if isinstance(question, str) else question)
    questions = [question] * count if isinstance(question, str) else list(question)
    contexts = [context] * count if isinstance(context, str) else list(context)
    if len(questions) != len(contexts):
        raise DistillationError(
            f"There are {len(questions)} questions and {len(contexts)} contexts: give one context for each question."
        )
    return list(zip(questions, contexts, strict=True))


def checked_pairs(texts: Sequence[tuple[str, str]]) -> tuple[list[str], list[str]]:
    """Part pairs of a question and its context; single texts are refused.

    Args:
        texts: The pairs.

    Raises:
        DistillationError: If something in it is no pair of texts.

    Example:
        >>> checked_pairs([("who", "me")])
        (['who'], ['me'])
    """
    questions, contexts = split_pairs(texts)
    if questions and contexts is None:
        raise DistillationError(
            f"Question answering takes pairs of a question and the context that holds its answer, and "
            f"{questions[0][:60]!r} is a single text."
        )
    return questions, contexts or []


def checked_words(words: Any, number: int) -> list[str]:
    """Return a sentence's words as a list, if that is what they are.

    Args:
        words: The words.
        number: The place of the sentence in what was given, for an error.

    Raises:
        DistillationError: If they are neither a list nor a tuple of strings.

    Example:
        >>> checked_words(("New", "York"), 0)
        ['New', 'York']
    """
    if not isinstance(words, (list, tuple)) or not all(isinstance(word, str) for word in words):
        raise DistillationError(
            f"Entry {number} is {str(words)[:60]!r}: it has to be a text, or the list of a sentence's words."
        )
    return list(words)


def check_masks(texts: Sequence[Any], firsts: Sequence[str], seconds: Sequence[str] | None, mask: str) -> None:
    """Refuse texts without a mask token.

    Args:
        texts: What was given, for an error.
        firsts: The texts, or the first of each pair.
        seconds: The second of each pair, or None.
        mask: The mask token.

    Raises:
        DistillationError: If one has none.

    Example:
        >>> check_masks(["a [MASK]"], ["a [MASK]"], None, "[MASK]")
    """
    for place, text in enumerate(firsts):
        if mask not in text and (seconds is None or mask not in seconds[place]):
            raise DistillationError(
                f"Entry {place} has no {mask}, so that there is nothing to fill in: {str(texts[place])[:60]!r}. "
                "Put it where a word is to be found."
            )
