"""Which tokens of a batch are masked, and what stands in their place."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from lightning_distilbert.errors import DistillationError

IGNORED = -100
# how the pieces of a word are told apart, by the vocabulary: pieces that go on, or pieces that begin
CONTINUATION, BEGINNINGS = "##", ("\u0120", "\u2581")
# a longer run of pieces is no word: a text without spaces would be masked as a whole
LONGEST_WORD = 12
# scripts that write no spaces: each of their pieces may begin a word
UNSPACED = re.compile(
    "[\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff"  # Thai, Lao, Burmese, Khmer
    "\u3040-\u30ff\u3400-\u9fff\uf900-\ufaff\U00020000-\U0003ffff]"  # kana and ideographs
)


@dataclass(frozen=True)
class Masking:
    r"""Draws the targets of masked language modelling, as the code of DistilBERT does (Sanh et al. 2019, section 3).

    Of the real tokens of a batch, special ones left out, a share is drawn without replacement, each with a probability

    .. math:: p_i \propto \max(\mathrm{count}_i, 1)^{-\mathrm{smoothing}}

    so that rare words come more often than they occur (after Lample & Conneau 2019). Of the tokens drawn 80 % become
    the mask token, 10 % a random token that is not special, and 10 % stay.

    There is no state: the draw depends on the tokens and on a key of whole numbers alone, through a counter-based
    generator (Philox). With the seed, the epoch and the numbers of the rows as the key, a row is masked anew each time
    it is met, and a run that is resumed draws what the uninterrupted one would have drawn, under any number of worker
    processes. What a checkpoint needs to hold of it is the place in the data.

    Attributes:
        mask_token_id: The mask token.
        weights: The weight of each token of the vocabulary in the draw, 0 at special ones.
        replacements: The tokens of which a random one is taken.
        share: The share of tokens drawn, above 0 and below 1.
        begins: Which tokens begin a word, for drawing whole words; None draws single tokens.

    Example:
        >>> masking = Masking(4, np.array([0, 0, 0, 0, 0, 1.0, 1.0]), np.array([5, 6]), share=0.5)
        >>> ids = np.array([[2, 5, 6, 5, 6, 3]])
        >>> masked, labels = masking(ids, key=[0])
        >>> int((labels != -100).sum()), labels[0, [0, -1]].tolist()
        (2, [-100, -100])
    """

    mask_token_id: int
    weights: np.ndarray
    replacements: np.ndarray
    share: float = 0.15
    begins: np.ndarray | None = None

    @classmethod
    def of(
        cls,
        tokenizer: Any,
        counts: np.ndarray | None = None,
        smoothing: float = 0.7,
        share: float = 0.15,
        whole_word: bool = False,
    ) -> Masking:
        """Make the masking of a tokenizer.

        Args:
            tokenizer: A transformers tokenizer.
            counts: How often each token occurs in the corpus; None counts all as equal.
            smoothing: The exponent; 0 draws uniformly.
            share: The share of tokens drawn.
            whole_word: Whether all pieces of a word are drawn together, with the mean weight of its pieces. Which
                pieces begin a word is read off the vocabulary, see `word_beginnings`. Of more than 12 pieces without a
                beginning each is drawn alone.

        Raises:
            DistillationError: If an option is out of range, the tokenizer has no mask token, or words cannot be told
                from its vocabulary.
        """
        check_masking(share, smoothing)
        if tokenizer.mask_token_id is None:
            raise DistillationError(
                f"The tokenizer {type(tokenizer).__name__} of {tokenizer.name_or_path!r} has no mask token. "
                "Masked language modelling needs that of a masked language model."
            )
        size = max(len(tokenizer), max(tokenizer.get_vocab().values()) + 1)
        frequency = np.ones(size)
        if counts is not None:
            known = min(size, len(counts))
            frequency[:known] = np.maximum(counts[:known], 1)
        ordinary = np.zeros(size, dtype=bool)
        ordinary[list(tokenizer.get_vocab().values())] = True
        ordinary[tokenizer.all_special_ids] = False
        return cls(
            mask_token_id=tokenizer.mask_token_id,
            weights=np.where(ordinary, frequency**-smoothing, 0.0),
            replacements=np.flatnonzero(ordinary),
            share=share,
            begins=word_beginnings(tokenizer.get_vocab(), size) if whole_word else None,
        )

    def __call__(self, input_ids: np.ndarray, key: Iterable[int]) -> tuple[np.ndarray, np.ndarray]:
        """Mask a batch.

        Args:
            input_ids: Token ids, of shape ``(batch, sequence)``; padding is a special token and is never drawn.
            key: Whole numbers from 0 that the draw depends on.

        Returns:
            The masked ids, and the labels: the ids at the tokens drawn and -100 elsewhere. Both of the shape of
            `input_ids`.
        """
        generator = np.random.Generator(np.random.Philox(np.random.SeedSequence([int(number) for number in key])))
        flat = input_ids.ravel()
        weights = self.weights[flat]
        # numbers are drawn for these places alone: how far a batch is padded changes nothing
        places = np.flatnonzero(weights)
        labels = np.full(flat.shape, IGNORED, dtype=np.int64)
        masked = flat.astype(np.int64)
        if len(places):
            weights = weights[places]
            if self.begins is None:
                drawn = places[_draw(weights, max(1, round(self.share * len(places))), generator)]
            else:
                drawn = places[self._draw_words(input_ids, places, weights, generator)]
            labels[drawn] = flat[drawn]
            fate = generator.random(len(drawn))
            other = self.replacements[generator.integers(len(self.replacements), size=len(drawn))]
            masked[drawn] = np.where(fate < 0.8, self.mask_token_id, np.where(fate < 0.9, other, flat[drawn]))
        return masked.reshape(input_ids.shape), labels.reshape(input_ids.shape)

    def _draw_words(
        self, input_ids: np.ndarray, places: np.ndarray, weights: np.ndarray, generator: np.random.Generator
    ) -> np.ndarray:
        """Return the numbers (among `places`) of the tokens of the words drawn, in order."""
        assert self.begins is not None
        begins = self.begins[input_ids]
        begins[:, 0] = True
        special = self.weights[input_ids] == 0
        begins[:, 1:] |= special[:, :-1]  # the first piece after a special token, whatever its spelling
        _, word = np.unique(np.cumsum(begins.ravel())[places], return_inverse=True)
        endless = np.bincount(word)[word] > LONGEST_WORD
        _, word = np.unique(np.where(endless, len(places) + np.arange(len(places)), word), return_inverse=True)
        sizes = np.bincount(word)
        keys = generator.exponential(size=len(sizes)) * sizes / np.bincount(word, weights)
        order = np.argsort(keys, kind="stable")
        # the last word is taken if that comes nearer to the share than to leave it
        taken = max(1, int(np.sum(np.cumsum(sizes[order]) - sizes[order] / 2 <= self.share * len(places))))
        return np.flatnonzero(np.isin(word, order[:taken]))


def check_masking(share: float, smoothing: float) -> None:
    """Refuse options of a masking that are out of range.

    Raises:
        DistillationError: If one is.

    Example:
        >>> check_masking(0.15, 0.7)
    """
    if not 0.0 < share < 1.0:
        raise DistillationError(f"mask_share={share}: it is the share of tokens that are masked, 0 < share < 1.")
    if not smoothing >= 0.0:
        raise DistillationError(f"smoothing={smoothing}: it has to be 0 (uniform) or more.")


def _draw(weights: np.ndarray, number: int, generator: np.random.Generator) -> np.ndarray:
    """Draw without replacement with probabilities in proportion to the weights; return the numbers drawn, in order.

    The smallest of exponential variables with these rates are what drawing one after the other would give (Efraimidis
    and Spirakis 2006).
    """
    keys = generator.exponential(size=len(weights)) / weights
    return np.sort(np.argpartition(keys, number - 1)[:number])


def marks_of(vocabulary: Iterable[str]) -> Literal["continuations", "beginnings"] | None:
    """Tell how a vocabulary marks words: whether pieces that go on, or those that begin.

    What most tokens have decides: byte-level vocabularies have a few tokens such as ``####`` too.

    Args:
        vocabulary: The tokens.

    Returns:
        None if it marks neither.

    Example:
        >>> marks_of(["play", "##ing"]), marks_of(["\u0120play", "ing", "###"]), marks_of(["play"])
        ('continuations', 'beginnings', None)
    """
    continued = begun = 0
    for token in vocabulary:
        continued += token.startswith(CONTINUATION) and len(token) > len(CONTINUATION)
        begun += token.startswith(BEGINNINGS)
    if continued == begun == 0:
        return None
    return "continuations" if continued > begun else "beginnings"


def word_beginnings(vocabulary: dict[str, int], size: int | None = None) -> np.ndarray:
    """Tell which tokens of a vocabulary begin a word.

    ``##`` marks those that go on, or else a leading space (of byte-level and SentencePiece vocabularies) those that
    begin. There, punctuation begins a word too, and so does a piece in a script that has no spaces, as far as the
    vocabulary spells it in characters.

    Args:
        vocabulary: The ids of the tokens.
        size: The length of the result; None is that of the vocabulary.

    Returns:
        Boolean, of shape ``(size,)``.

    Raises:
        DistillationError: If the vocabulary marks neither beginnings nor continuations.

    Example:
        >>> word_beginnings({"play": 0, "##ing": 1, "##ed": 2, ",": 3}).tolist()
        [True, False, False, True]
    """
    begins = np.ones(size or len(vocabulary), dtype=bool)
    marks = marks_of(vocabulary)
    if marks is None:
        raise DistillationError(
            "whole_word=True: this vocabulary marks neither the beginnings of words (a leading space) nor their "
            "continuations ('##'). Mask single tokens: whole_word=False."
        )
    if marks == "continuations":
        begins[[index for token, index in vocabulary.items() if token.startswith(CONTINUATION)]] = False
    else:
        # punctuation stands alone there too: it would be masked along with every last word of a sentence
        inner = [
            index
            for token, index in vocabulary.items()
            if not token.startswith(BEGINNINGS) and any(map(str.isalnum, token)) and not UNSPACED.search(token)
        ]
        begins[inner] = False
    return begins
