"""Texts varied word by word: the base of what does it, and words of the corpus in the place of others."""

from __future__ import annotations

import functools
import unicodedata
from collections.abc import Collection, Iterable, Mapping, Sequence
from itertools import groupby
from typing import Any

import numpy as np

from lightning_distilbert.errors import DistillationError, check_choice

OPERATIONS = ("replace", "delete", "swap")
# English function words, which the original keeps; question words and modal verbs are not among them there either
STOP_WORDS = frozenset(
    """
    a an the this that these those all any both each few more most other some such same own only no nor not very too so
    i me my myself we our ours ourselves you your yours yourself yourselves he him his himself she her hers herself
    it its itself they them their theirs themselves
    am is are was were be been being have has had having do does did doing can will should
    of at by for with about against between into through during before after above below to from up down in out on off
    over under again further then once here there now just and but if or because as until while than
    s t d ll m o re ve y don ain aren couldn didn doesn hadn hasn haven isn ma mightn mustn needn shan shouldn wasn
    weren won wouldn
    """.split()
)
Span = tuple[int, int]


@functools.lru_cache(maxsize=1 << 16)
def _kind(character: str) -> str:
    """Return ``"L"`` for letters and their marks, ``"N"`` for digits, else the empty string; an ideograph is itself."""
    category = unicodedata.category(character)[0]
    if category == "L" and ("\u3400" <= character <= "\u9fff" or "\U00020000" <= character <= "\U0003ffff"):
        return character
    return "L" if category in "LM" else "N" if category == "N" else ""


def words_of(text: str) -> list[Span]:
    """Find the words of a text: runs of letters, marks and digits; a Chinese character is a word of its own.

    Args:
        text: The text.

    Returns:
        Where each word begins and ends.

    Example:
        >>> [text[slice(*span)] for text in ["It isn't 2nd-rate."] for span in words_of(text)]
        ['It', 'isn', 't', '2nd', 'rate']
    """
    spans: list[Span] = []
    start = 0
    for kind, run in groupby(text, key=lambda character: _kind(character) or None):
        size = sum(1 for _ in run)
        if kind in ("L", "N"):
            if spans and spans[-1][1] == start and _kind(text[start - 1]) in ("L", "N"):
                spans[-1] = (spans[-1][0], start + size)
            else:
                spans.append((start, start + size))
        elif kind is not None:
            spans.extend((place, place + 1) for place in range(start, start + size))
        start += size
    return spans


def is_word(text: str) -> bool:
    """Tell whether a text is one word of letters alone.

    Example:
        >>> is_word("film"), is_word("films too"), is_word("2nd"), is_word("-")
        (True, False, False, False)
    """
    return words_of(text) == [(0, len(text))] and "N" not in map(_kind, text)


def in_case_of(word: str, other: str) -> str:
    """Write a word as another one is written: with a capital, in capitals, or as it is.

    Example:
        >>> in_case_of("Good", "fine"), in_case_of("GOOD", "fine"), in_case_of("good", "Rome")
        ('Fine', 'FINE', 'Rome')
    """
    if len(word) > 1 and word.isupper():
        return other.upper()
    return other[:1].upper() + other[1:] if word[:1].isupper() else other


class WordAugmenter:
    """Base of the augmenters: which words may change, and how often a variant is drawn.

    Stop words, and words with a digit, stay as they are. Everything between the words stays too.

    Args:
        n: Variants that are drawn of each text. Those that equal the text or one another are dropped, so that a short
            text has fewer.
        p: The probability that a word changes, above 0 and at most 1.
        seed: Of the draws. They depend on it, on the row's number and on the side of a pair, and on nothing else.
        stop_words: Words in lower case that stay.

    Raises:
        DistillationError: If an option is out of range.
    """

    def __init__(self, n: int = 20, p: float = 0.4, seed: int = 0, stop_words: Collection[str] = STOP_WORDS) -> None:
        if not 0.0 < p <= 1.0:
            raise DistillationError(f"p={p}: it is the probability that a word changes, 0 < p <= 1.")
        if n < 1 or seed < 0:
            raise DistillationError(f"n={n} and seed={seed}: n (variants of a text) is 1 or more, the seed 0 or more.")
        if isinstance(stop_words, str):
            raise DistillationError(f"stop_words={stop_words!r} is one text. Give a collection of words.")
        self.n = n
        self.p = p
        self.seed = seed
        self.stop_words = frozenset(stop_words)

    def changeable(self, text: str) -> list[Span]:
        """Return those words of a text that may change.

        Example:
            >>> [slice(*span) for span in WordAugmenter().changeable("The 3 films")]
            [slice(6, 11, None)]
        """
        return [
            (start, end)
            for start, end in words_of(text)
            if text[start:end].lower() not in self.stop_words and is_word(text[start:end])
        ]

    def variants(self, texts: Sequence[str], keys: Sequence[tuple[int, int]]) -> list[list[str]]:
        """Draw variants of texts.

        Args:
            texts: The texts.
            keys: The number of each text's row, and its side there.

        Returns:
            For each text its distinct variants, none of which is the text itself.
        """
        prepared = self._prepare(texts)
        found = []
        for text, key, words in zip(texts, keys, prepared, strict=True):
            generator = np.random.default_rng([self.seed, *key])
            drawn = dict.fromkeys(self._draw(text, words, generator))
            drawn.pop(text, None)
            found.append(list(drawn))
        return found

    def _prepare(self, texts: Sequence[str]) -> list[Any]:
        """Return for each text what `_draw` needs of it."""
        raise NotImplementedError

    def _draw(self, text: str, words: Any, generator: np.random.Generator) -> list[str]:
        """Return `n` variants of a text, of which some may be equal."""
        raise NotImplementedError


class CorpusWords(WordAugmenter):
    """Words replaced by others of the corpus, deleted or moved, which needs no model (as TextBrewer's ``data_utils``).

    Each changeable word is drawn with probability `p`, and one of the operations is drawn for it:

    - ``"replace"``: by a word of the corpus, as often as it occurs there;
    - ``"delete"``: it goes, with the space before it;
    - ``"swap"``: it changes places with the next word, whatever that is. The last word stays.

    Args:
        corpus: Texts whose changeable words are drawn from.
        n: Variants that are drawn of each text.
        p: The probability that a word changes.
        operations: Which operations there are.
        seed: Of the draws.
        stop_words: Words in lower case that stay, but for changing places with the word before.

    Raises:
        DistillationError: If an option is bad, or the corpus has no word to draw.

    Example:
        >>> augmenter = CorpusWords(["a great film", "a dull plot"], n=4, p=0.5)
        >>> augmenter.variants(["a great film"], keys=[(0, 0)])
        [['a great', 'a film']]
    """

    def __init__(
        self,
        corpus: Iterable[str],
        n: int = 20,
        p: float = 0.4,
        operations: Sequence[str] = OPERATIONS,
        seed: int = 0,
        stop_words: Collection[str] = STOP_WORDS,
    ) -> None:
        super().__init__(n, p, seed, stop_words)
        self.operations = [operations] if isinstance(operations, str) else list(operations)
        for operation in self.operations:
            check_choice("CorpusWords(operations=...)", operation, OPERATIONS)
        if not self.operations or len(set(self.operations)) < len(self.operations):
            raise DistillationError(f"operations={self.operations}: name one or more of {list(OPERATIONS)}, each once.")
        self.corpus = [text[slice(*span)] for text in corpus for span in self.changeable(text)]
        if not self.corpus:
            raise DistillationError("The corpus has no word that may change: only stop words, numbers and punctuation.")

    def _prepare(self, texts: Sequence[str]) -> list[tuple[list[Span], list[int]]]:
        prepared = []
        for text in texts:
            spans = words_of(text)
            place = {span: number for number, span in enumerate(spans)}
            prepared.append((spans, [place[span] for span in self.changeable(text)]))
        return prepared

    def _draw(self, text: str, words: tuple[list[Span], list[int]], generator: np.random.Generator) -> list[str]:
        spans, changeable = words
        shape = (self.n, len(changeable))
        changed = (generator.random(shape) < self.p).tolist()
        picks = generator.integers(len(self.operations), size=shape).tolist()
        others = generator.integers(len(self.corpus), size=shape).tolist()
        drawn = []
        for changes, choices, places in zip(changed, picks, others, strict=True):
            edits = {
                number: (self.operations[choice], place)
                for number, change, choice, place in zip(changeable, changes, choices, places, strict=True)
                if change
            }
            variant = self._edit(text, spans, edits)
            if words_of(variant):  # a text without words says nothing
                drawn.append(variant)
        return drawn

    def _edit(self, text: str, spans: list[Span], edits: Mapping[int, tuple[str, int]]) -> str:
        """Apply operations to the words with these numbers."""
        words = [text[slice(*span)] for span in spans]
        # what stands before each word, and after the last
        gaps = [text[end:start] for end, start in zip([0, *(e for _, e in spans)], [s for s, _ in spans], strict=False)]
        rest = text[spans[-1][1] :] if spans else text
        moved = -1  # a word that came from the left is not moved on
        for number, (operation, place) in edits.items():
            if operation == "delete":
                words[number] = ""
                gaps[number] = gaps[number].rstrip()
            elif operation == "replace":
                words[number] = in_case_of(words[number], self._other(words[number], place))
            elif number + 1 < len(words) and number != moved:
                words[number], words[number + 1] = words[number + 1], words[number]
                moved = number + 1
        text = "".join(part for pair in zip(gaps, words, strict=True) for part in pair) + rest
        return text.lstrip() if 0 in edits else text

    def _other(self, word: str, place: int) -> str:
        """Return the word of the corpus at a place, or the next one that is another word."""
        for step in range(len(self.corpus)):
            other = self.corpus[(place + step) % len(self.corpus)]
            if other.casefold() != word.casefold():
                return other
        return word
