"""Long contexts parted into overlapping windows of tokens, in numpy alone.

Nothing here needs torch: the data of question answering and the runtime for devices
(`lightning_distilbert.deploy.runtime`) share it, so that both read the same windows.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np

from lightning_distilbert.data.inputs import CHUNK
from lightning_distilbert.errors import DistillationError

CHUNK_CHARACTERS = 2**21  # in one tokenizer call: a few long books make as many tokens as 2048 paragraphs


class Window(NamedTuple):
    """A question with a part of its context.

    Attributes:
        ids: The token ids.
        types: The token types; None where the tokenizer has none.
        offsets: Begin and end of each token in the text that it is of, in characters, of shape ``(tokens, 2)``.
        context: The first token of the context, and the one after its last.
        example: The place of the question.
    """

    ids: np.ndarray
    types: np.ndarray | None
    offsets: np.ndarray
    context: tuple[int, int]
    example: int


def context_windows(
    tokenizer: Any,
    questions: Sequence[str],
    contexts: Sequence[str],
    max_length: int = 384,
    doc_stride: int = 128,
    max_question_length: int = 64,
    name: str = "questions",
    shrink: bool = False,
) -> Iterator[tuple[list[Window], int, int]]:
    """Tokenise questions with their contexts, each long context as several windows.

    Args:
        tokenizer: A fast transformers tokenizer, or that of the runtime: it knows the place of each token in the text.
        questions: The questions.
        contexts: The context of each.
        max_length: Tokens of a window at most, question and special tokens included.
        doc_stride: Tokens that a window shares with the one before it.
        max_question_length: Tokens of a question at most; what is beyond is cut off.
        name: What errors call them.
        shrink: Where windows have no room for more of a context than they share, let them share less: half of the room.

    Yields:
        Some windows, in the order of the questions, of how many questions they are, and how many of these were cut.

    Raises:
        DistillationError: If a context needs several windows, and these have no room for more of it than they share
            (with ``shrink``, no room at all).
    """
    special = tokenizer.num_special_tokens_to_add(pair=True)
    for start, stop in _chunks(contexts):
        asked, cut, lengths = _shorten(tokenizer, questions[start:stop], max_question_length)
        rooms = [max_length - special - length for length in lengths]
        narrow = _without_room(tokenizer, contexts[start:stop], rooms, doc_stride)
        # each by its own room: how a text is read must not depend on its company
        strides = {place: max(0, rooms[place] // 2) if shrink else doc_stride for place in narrow}
        place = next((place for place in narrow if rooms[place] <= strides[place]), None)
        if place is not None:
            raise DistillationError(
                f"{name}, row {start + place + 1}: beside its question, a window of max_length={max_length} has room "
                f"for {max(rooms[place], 0)} tokens of the context, and doc_stride={strides[place]} of them would be "
                "those of the window before it. Raise max_length, or lower doc_stride or max_question_length."
            )
        found: list[list[Window]] = [[] for _ in range(stop - start)]
        for stride in sorted({doc_stride, *strides.values()}):
            places = [place for place in range(stop - start) if strides.get(place, doc_stride) == stride]
            if not places:
                continue
            encoded = tokenizer(
                [asked[place] for place in places],
                [contexts[start + place] for place in places],
                truncation="only_second",
                max_length=max_length,
                stride=max(0, min(stride, max_length - special - 1)),  # what is more is refused, needed or not
                return_overflowing_tokens=True,
                return_attention_mask=False,
            )
            typed = "token_type_ids" in encoded
            spaces, of = np.zeros(0, dtype=np.int64), -1
            for example, window in zip(encoded["overflow_to_sample_mapping"], encoded.encodings, strict=True):
                place = places[example]
                if place != of:
                    spaces, of = _count_spaces(contexts[start + place]), place
                belongs = window.sequence_ids
                count = belongs.count(1)
                begin = belongs.index(1) if count else len(belongs)
                offsets = np.array(window.offsets, dtype=np.int32)
                _hide_spaces(offsets[begin : begin + count], spaces)
                ids = np.array(window.ids, dtype=np.int32)
                types = np.array(window.type_ids, dtype=np.int8) if typed else None
                found[place].append(Window(ids, types, offsets, (begin, begin + count), start + place))
        yield list(itertools.chain.from_iterable(found)), stop - start, cut


def _count_spaces(text: str) -> np.ndarray:
    """Return how many of the characters before each place are white space, of shape ``(characters + 1,)``."""
    return np.concatenate([[0], np.cumsum(np.fromiter(map(str.isspace, text), dtype=bool, count=len(text)))])


def _hide_spaces(offsets: np.ndarray, spaces: np.ndarray) -> None:
    """Make tokens of white space alone, which some tokenizers have, tokens without a character: no answer is one."""
    begins, ends = offsets[:, 0], offsets[:, 1]
    blank = spaces[ends] - spaces[begins] == ends - begins
    ends[blank] = begins[blank]  # in place


def _chunks(contexts: Sequence[str]) -> Iterator[tuple[int, int]]:
    """Yield begin and end of parts that are small enough for one call of the tokenizer."""
    start = characters = 0
    for place, context in enumerate(contexts):
        if place > start and (place - start >= CHUNK or characters + len(context) > CHUNK_CHARACTERS):
            yield start, place
            start, characters = place, 0
        characters += len(context)
    if start < len(contexts):
        yield start, len(contexts)


def _without_room(tokenizer: Any, contexts: Sequence[str], rooms: Sequence[int], doc_stride: int) -> list[int]:
    """Return the questions whose contexts do not fit into one window, where a second has no room for more."""
    narrow = [place for place, room in enumerate(rooms) if room <= doc_stride]
    if not narrow:
        return []
    encodings = tokenizer([contexts[place] for place in narrow], add_special_tokens=False, verbose=False).encodings
    fits = [0 < rooms[place] >= len(encoding) for place, encoding in zip(narrow, encodings, strict=True)]
    return [place for place, fit in zip(narrow, fits, strict=True) if not fit]


def _shorten(tokenizer: Any, questions: Sequence[str], limit: int) -> tuple[list[str], int, list[int]]:
    """Cut questions after so many tokens; return them, how many were cut, and their lengths in tokens."""
    asked = list(questions)
    encodings = tokenizer(asked, add_special_tokens=False, verbose=False).encodings
    lengths = [len(encoding) for encoding in encodings]
    long = [place for place, length in enumerate(lengths) if length > limit]
    for place in long:
        offsets, last = encodings[place].offsets, limit
        while last and offsets[last - 1][1] > offsets[last][0]:
            last -= 1  # not in the middle of a character that is several tokens
        asked[place] = asked[place][: offsets[last - 1][1]] if last else ""
    # a word that was cut may have other pieces than it had
    again = tokenizer([asked[place] for place in long], add_special_tokens=False, verbose=False) if long else None
    for place, encoding in zip(long, again.encodings if again is not None else [], strict=True):
        lengths[place] = len(encoding)
    return asked, len(long), lengths
