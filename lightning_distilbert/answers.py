"""What a student's outputs read as: an intent, the entities of a sentence, the answer to a question.

Nothing here needs torch: the tasks and the runtime for devices (`lightning_distilbert.deploy.runtime`) share it, so
that both give the same answers.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from lightning_distilbert.data.inputs import check_characters, check_list, checked_words
from lightning_distilbert.data.split_words import split_words
from lightning_distilbert.data.tags import OUTSIDE, entities_of


def names_in(id2label: Mapping[Any, Any] | None) -> list[str] | None:
    """Return the label names of a transformers config in order, or None if it only has its default ``LABEL_0``.

    Args:
        id2label: The names by number, which JSON has as text.

    Example:
        >>> names_in({"1": "yes", "0": "no"})
        ['no', 'yes']
    """
    names = [str(name) for _, name in sorted((id2label or {}).items(), key=lambda item: int(item[0]))]
    return None if not names or all(re.fullmatch(r"LABEL_\d+", name) for name in names) else names


# -- intents -----------------------------------------------------------------------------------------------------------


def intent_of(
    probabilities: Sequence[float], names: Sequence[str], out_of_scope: str, threshold: float | None = None
) -> dict[str, Any]:
    """Read the probabilities of one text's labels as its intent, or as out of scope.

    Args:
        probabilities: One for each label.
        names: The names of the labels.
        out_of_scope: The one for out of scope.
        threshold: The least probability with which an intent is answered; None is that of out of scope.

    Returns:
        ``label``, ``score`` (its probability; for out of scope one less the likeliest intent's) and ``nearest``, the
        likeliest intent in either case.

    Example:
        >>> intent_of([0.6, 0.1, 0.3], ["balance", "weather", "oos"], "oos", threshold=0.7)
        {'label': 'oos', 'score': 0.4, 'nearest': 'balance'}
    """
    inside = [place for place, name in enumerate(names) if name != out_of_scope]
    nearest = max(inside, key=probabilities.__getitem__)
    score = probabilities[nearest]
    least = probabilities[list(names).index(out_of_scope)] if threshold is None else threshold
    if score < least:
        return {"label": out_of_scope, "score": 1 - score, "nearest": names[nearest]}
    return {"label": names[nearest], "score": score, "nearest": names[nearest]}


# -- entities ----------------------------------------------------------------------------------------------------------


class TaggedWord(NamedTuple):
    """What a model says of a word.

    Attributes:
        label: The number of the likeliest label.
        score: Its probability.
    """

    label: int
    score: float


def word_entities(names: Sequence[str], tagged: Mapping[int, TaggedWord], words: Sequence[str]) -> list[dict[str, Any]]:
    """Put the entities of a sentence together.

    Args:
        names: The names of the labels.
        tagged: What each word was taken for, by its place; one that is missing is outside of entities.
        words: The words.

    Example:
        >>> tagged = {1: TaggedWord(1, 0.9), 2: TaggedWord(2, 0.5)}
        >>> word_entities(["O", "B-LOC", "I-LOC"], tagged, ["in", "New", "York"])
        [{'label': 'LOC', 'text': 'New York', 'start': 1, 'end': 3, 'score': 0.7}]
    """
    tags = [names[tagged[place].label] if place in tagged else OUTSIDE for place in range(len(words))]
    return [
        {
            "label": kind,
            "text": " ".join(words[start:end]),
            "start": start,
            "end": end,
            "score": sum(tagged[place].score for place in range(start, end)) / (end - start),
        }
        for kind, start, end in entities_of(tags)
    ]


class Sentence:
    """A text, or a list of words, whose entities are to be found.

    Args:
        text: The text, which is split into words, or the words.

    Attributes:
        words: The words.

    Example:
        >>> sentence = Sentence("Hello,  New   York!")
        >>> tags = dict(enumerate([TaggedWord(0, 0.9), TaggedWord(0, 0.9), TaggedWord(1, 0.5), TaggedWord(2, 0.5)]))
        >>> sentence.entities(["O", "B-LOC", "I-LOC"], tags)
        [{'label': 'LOC', 'text': 'New   York', 'start': 8, 'end': 18, 'score': 0.5}]
    """

    def __init__(self, text: str | Sequence[str]) -> None:
        self.text = text if isinstance(text, str) else None
        self._places = split_words(text) if isinstance(text, str) else []
        self.words = [text[start:end] for start, end in self._places] if isinstance(text, str) else list(text)

    def entities(self, names: Sequence[str], tagged: Mapping[int, TaggedWord]) -> list[dict[str, Any]]:
        """Return the entities; ``start`` and ``end`` are characters of a text, and else words.

        Args:
            names: The names of the labels.
            tagged: What each word was taken for, by its place.
        """
        found = word_entities(names, tagged, self.words)
        if self.text is not None:
            for entity in found:
                start, end = self._places[entity["start"]][0], self._places[entity["end"] - 1][1]
                entity.update(text=self.text[start:end], start=start, end=end)
        return found


def sentences_of(texts: Sequence[Any]) -> list[Sentence]:
    """Read texts, or sentences that are lists of words.

    Args:
        texts: The texts, or lists of words.

    Raises:
        DistillationError: If something in it is neither a text nor a list of words.

    Example:
        >>> [sentence.words for sentence in sentences_of(["New York", ["New", "York"]])]
        [['New', 'York'], ['New', 'York']]
    """
    check_list(texts)
    found = []
    for place, text in enumerate(texts):
        found.append(Sentence(text if isinstance(text, str) else checked_words(text, place)))
        check_characters(found[-1].words, place)
    return found


# -- answers in a context ----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Candidate:
    """The best span of one window.

    Attributes:
        score: Its score, the sum of its logits.
        null: The score of no answer in this window.
        probability: The probability of the span in this window.
        null_probability: That of no answer.
        start: Where it begins in the context, in characters.
        end: Where it ends.
    """

    score: float
    null: float
    probability: float
    null_probability: float
    start: int
    end: int


def settle(candidates: Sequence[Candidate], context: str, threshold: float | None = None) -> dict[str, Any]:
    """Choose the answer to one question from the candidates of its windows.

    Args:
        candidates: One for each window.
        context: The whole context.
        threshold: By how much no answer has to score higher than the best span; None where there always is an answer.

    Returns:
        ``answer``, ``score`` (a probability), ``start`` and ``end`` (characters: ``context[start:end]`` is the answer).
        No answer is the empty text, with None for start and end and its own probability.

    Example:
        >>> settle([Candidate(2.0, 1.0, 0.5, 0.2, 3, 5)], "in Rome")
        {'answer': 'Ro', 'score': 0.5, 'start': 3, 'end': 5}
    """
    best = max(candidates, key=lambda candidate: candidate.score)
    none = min(candidates, key=lambda candidate: candidate.null)
    if best.start == best.end or (threshold is not None and none.null - best.score > threshold):
        return {"answer": "", "score": none.null_probability, "start": None, "end": None}
    return {"answer": context[best.start : best.end], "score": best.probability, "start": best.start, "end": best.end}


def trim(text: str, start: int, end: int) -> tuple[int, int]:
    """Bound a span by whole characters that show: no white space at its ends, and no letter without its accents.

    Some tokenizers count the white space before a word to it, and those that strip accents do not count an accent that
    is a character of its own.

    Args:
        text: The text.
        start: Where the span begins.
        end: Where it ends.

    Example:
        >>> trim("a cafe\u0301 here", 1, 6)
        (2, 7)
    """
    while end < len(text) and unicodedata.category(text[end]) in ("Mn", "Me"):
        end += 1
    while 0 < start < end and unicodedata.category(text[start]) in ("Mn", "Me"):
        start -= 1
    while start < end and text[start].isspace():
        start += 1
    while start < end and text[end - 1].isspace():
        end -= 1
    return start, end
