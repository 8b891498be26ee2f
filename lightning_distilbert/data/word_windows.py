"""Where each word of a sentence begins among its tokens, in overlapping windows of long sentences, in numpy alone.

Nothing here needs torch: the data of token classification and the runtime for devices
(`lightning_distilbert.deploy.runtime`) share it, so that both tag the same words.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from lightning_distilbert.data.inputs import CHUNK
from lightning_distilbert.errors import DistillationError

NOWHERE = -1  # the word of a token at which none begins


class WordWindow(NamedTuple):
    """A sentence, or a part of one.

    Attributes:
        ids: The token ids, special ones included.
        word: For each token the word of the sentence whose first sub-word it is, else -1. Each word is marked in one
            window only: there, where it has the most context.
        span: The words of which the window has tokens: the first, and the one after the last.
        sentence: The place of the sentence.
    """

    ids: np.ndarray
    word: np.ndarray
    span: tuple[int, int]
    sentence: int


@dataclass(frozen=True)
class Frame:
    """What a tokenizer puts around a text.

    Attributes:
        before: The token ids before it.
        after: Those after it.
        token_type: The type of its tokens; None where the tokenizer has none.
    """

    before: np.ndarray
    after: np.ndarray
    token_type: int | None

    @classmethod
    def of(cls, tokenizer: Any) -> Frame:
        """Read the frame off a tokenizer.

        Raises:
            DistillationError: If the tokenizer gives no offsets.
        """
        if not getattr(tokenizer, "is_fast", False):
            raise DistillationError(
                f"{type(tokenizer).__name__} does not tell where in a text its tokens stand. Use its fast tokenizer "
                "(one with a tokenizer.json)."
            )
        encoded = tokenizer(["a"])
        probe = encoded.encodings[0]
        inside = np.flatnonzero(~np.asarray(probe.special_tokens_mask, dtype=bool))
        tokens = np.asarray(probe.ids, dtype=np.int32)
        typed = "token_type_ids" in encoded
        return cls(tokens[: inside[0]], tokens[inside[-1] + 1 :], int(probe.type_ids[inside[0]]) if typed else None)


def word_windows(
    tokenizer: Any, frame: Frame, sentences: Sequence[Sequence[str]], max_length: int = 128, stride: int | None = None
) -> Iterator[list[WordWindow]]:
    """Tokenise sentences of words and find each word's first sub-word.

    Args:
        tokenizer: A fast transformers tokenizer, or that of the runtime.
        frame: What it puts around a text.
        sentences: The words of each.
        max_length: The tokens of a window at most, special ones included.
        stride: The tokens that two windows of one sentence share; None is a quarter of what fits.

    Yields:
        The windows of one sentence, sentence by sentence.

    Raises:
        DistillationError: If the windows have no room for a token of their own.
    """
    room = max_length - len(frame.before) - len(frame.after)
    if room < 1:
        raise DistillationError(
            f"max_length={max_length} leaves no room: the tokenizer adds {max_length - room} special tokens."
        )
    stride = room // 4 if stride is None else stride
    if not 0 <= stride < room:
        raise DistillationError(
            f"stride={stride}: the windows of max_length={max_length} have room for {room} tokens beside the special "
            f"ones, of which they can share 0 to {room - 1}."
        )
    around = (len(frame.before), len(frame.after))
    for begin in range(0, len(sentences), CHUNK):
        part = sentences[begin : begin + CHUNK]
        encoded = tokenizer([" " + " ".join(sentence) for sentence in part], add_special_tokens=False, verbose=False)
        for number, (sentence, encoding) in enumerate(zip(part, encoded.encodings, strict=True), start=begin):
            tokens = np.asarray(encoding.ids, dtype=np.int32)
            first = _first_subwords(sentence, np.asarray(encoding.offsets, dtype=np.int64).reshape(-1, 2))
            # the word that each token is part of; what comes before the first is part of that
            part_of = np.maximum(np.maximum.accumulate(first), 0) if len(first) else first
            yield [
                WordWindow(
                    np.concatenate([frame.before, tokens[window], frame.after]),
                    np.pad(own, around, constant_values=NOWHERE),
                    (int(part_of[window][0]), int(part_of[window][-1]) + 1) if len(tokens) else (0, 0),
                    number,
                )
                for window, own in _windows(first, room, stride)
            ]


def _first_subwords(sentence: Sequence[str], offsets: np.ndarray) -> np.ndarray:
    """Return for each token the word that begins there, else -1."""
    found = np.full(len(offsets), NOWHERE, dtype=np.int64)
    # a word's blank is part of it: byte-level tokenizers and those of SentencePiece may make a token of it
    ends = np.cumsum([len(word) + 1 for word in sentence])
    word = np.searchsorted(ends, offsets[:, 0], side="right")
    present, first = np.unique(word, return_index=True)
    inside = present < len(sentence)
    found[first[inside]] = present[inside]
    return found


def _windows(first: np.ndarray, room: int, stride: int) -> Iterator[tuple[slice, np.ndarray]]:
    """Yield the windows of a sentence, each with the words that are its own."""
    total = len(first)
    if total <= room:
        yield slice(0, total), first
        return
    # the last one ends where the sentence ends, so that it is not short of context
    starts = np.minimum(np.arange(0, total - stride, room - stride), total - room)
    places = np.flatnonzero(first >= 0)
    # a word has most context in the window whose middle is nearest; halfway between two in the first
    owner = np.searchsorted(starts[1:] + starts[:-1], 2 * places - (room - 1))
    for start, mine in zip(starts, np.split(places, np.searchsorted(owner, np.arange(1, len(starts)))), strict=True):
        own = np.full(room, NOWHERE, dtype=np.int64)
        own[mine - start] = first[mine]
        yield slice(int(start), int(start) + room), own
