"""Plain text as words, each with its place, in the manner of the texts that entities are learnt from."""

from __future__ import annotations

import re

from lightning_distilbert.data.words import Span, words_of

APOSTROPHES = "'\u2019"
INNER = frozenset(f"-.,&/_@:·{APOSTROPHES}")  # stays in a word where it stands alone between two letters or digits
CLITIC = re.compile(rf"[{APOSTROPHES}](?:s|re|ve|ll|d|m)\b", re.IGNORECASE)
NEGATION = re.compile(rf"(?<=\w)n[{APOSTROPHES}]t\b", re.IGNORECASE)
INITIALS = re.compile(r"(?:[^\W\d_]\.)+[^\W\d_]?")
BEFORE_NAME = re.compile(r"\.\s+(\w)")
IDEOGRAPH = re.compile(r"[\u3400-\u9fff\U00020000-\U0003ffff]")


def split_words(text: str) -> list[Span]:
    """Find the words of a text, punctuation among them.

    White space parts words, and is in none. A word is a run of letters and digits, with single marks between two of
    them (``Al-Ain``, ``3.5``, ``O'Brien``); an English ``'s``, ``'ll`` or ``n't`` at its end is a word of its own, and
    initials keep their full stop (``U.S.``, ``J. Smith``). Any other character is a word by itself, and so is a Chinese
    one. That is how CoNLL-2003 and its kin write their sentences; text that is split already is given as a list of
    words.

    Args:
        text: The text.

    Returns:
        Where each word begins and ends.

    Example:
        >>> text = "The U.S. didn't back O'Brien's (Rome-born) ally, 3.5 % more."
        >>> " ".join(text[slice(*span)] for span in split_words(text))
        "The U.S. did n't back O'Brien 's ( Rome-born ) ally , 3.5 % more ."
    """
    runs = words_of(text)
    merged: list[Span] = []
    for start, end in runs:
        before = merged[-1] if merged else (0, 0)
        inner = start - before[1] == 1 and text[before[1]] in INNER and not CLITIC.match(text, before[1])
        if merged and inner and not (IDEOGRAPH.match(text, start) or IDEOGRAPH.match(text, before[1] - 1)):
            merged[-1] = (before[0], end)
        else:
            merged.append((start, end))
    spans: list[Span] = []
    place = 0
    for start, end in merged:
        if start < place:  # the letters of a clitic, which began at its apostrophe
            continue
        spans += _marks(text, place, start)
        negation = NEGATION.search(text, start, end)
        if negation and negation.end() == end:
            spans += [(start, negation.start()), (negation.start(), end)]
        elif spans and spans[-1] == (start - 1, start) and (clitic := CLITIC.match(text, start - 1)):
            spans[-1] = (start - 1, end) if clitic.end() == end else spans[-1]
            spans += [] if clitic.end() == end else [(start, end)]
        elif _is_initial(text, start, end):
            end += 1
            spans.append((start, end))
        else:
            spans.append((start, end))
        place = end
    return spans + _marks(text, place, len(text))


def _is_initial(text: str, start: int, end: int) -> bool:
    """Tell whether the full stop after a word belongs to it."""
    if text[end : end + 1] != ".":
        return False
    name = BEFORE_NAME.match(text, end)
    single = end - start == 1 and text[start].isupper() and name is not None and name[1].isupper()
    return single or ("." in text[start:end] and INITIALS.fullmatch(text, start, end) is not None)


def _marks(text: str, start: int, end: int) -> list[Span]:
    return [(place, place + 1) for place in range(start, end) if not text[place].isspace()]
