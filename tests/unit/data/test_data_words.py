"""Words of a text, and variants from words of the corpus."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest

from lightning_distilbert.data.words import STOP_WORDS, CorpusWords, WordAugmenter, in_case_of, is_word, words_of
from lightning_distilbert.errors import DistillationError

LONG = " ".join(f"w{'x' * (i % 9)}{chr(97 + i % 26)}{chr(97 + i // 26)}" for i in range(80))
OTHER = ["zebra yak", "xenon"]


def found(text: str) -> list[str]:
    return [text[slice(*span)] for span in words_of(text)]


def vary(text: str, corpus: list[str] | None = None, key: tuple[int, int] = (0, 0), **options) -> list[str]:
    return CorpusWords(corpus or [text], **options).variants([text], [key])[0]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", []),
        ("... 12!", ["12"]),
        ("Don't, he said: 2nd-rate foo_bar", ["Don", "t", "he", "said", "2nd", "rate", "foo", "bar"]),
        ("cafe\u0301 na\u00efve", ["cafe\u0301", "na\u00efve"]),
        ("\u0939\u093f\u0928\u094d\u0926\u0940", ["\u0939\u093f\u0928\u094d\u0926\u0940"]),
        ("\u597d\u597d\u5b66\u4e60abc", ["\u597d", "\u597d", "\u5b66", "\u4e60", "abc"]),
        ("a\U0001f600b", ["a", "b"]),
    ],
)
def test_words_are_runs_of_letters_marks_and_digits(text, words):
    assert found(text) == words


def test_stop_words_numbers_and_punctuation_never_change():
    text = "The 3 films, which I didn't see in 1999, are not ALL great!"
    spans = WordAugmenter().changeable(text)
    assert [text[slice(*span)] for span in spans] == ["films", "which", "see", "great"]
    spans = WordAugmenter(stop_words={"films", "the"}).changeable(text)
    assert [text[slice(*span)] for span in spans][:4] == ["which", "I", "didn", "t"]
    assert all(is_word(word) and word == word.lower() for word in STOP_WORDS)
    for variant in vary(text, OTHER, p=1.0, operations=["replace"]):
        words = found(variant)
        assert [words[i] for i in (0, 1, 4, 5, 6, 8, 9, 10, 11, 12)] == "The 3 I didn t in 1999 are not ALL".split()
        assert variant.count(",") == 2
        assert variant.endswith("!")


@pytest.mark.parametrize("p", [0.1, 0.4, 0.9])
def test_p_is_the_share_of_words_that_change(p):
    variants = vary(LONG, OTHER, p=p, n=300, operations=["replace"])
    changed = [a != b for variant in variants for a, b in zip(found(variant), found(LONG), strict=True)]
    assert len(changed) == 300 * 80
    assert abs(np.mean(changed) - p) < 4 * (p * (1 - p) / len(changed)) ** 0.5
    everywhere = np.reshape(changed, (300, 80)).mean(0)  # every word alike
    assert abs(everywhere - p).max() < 5 * (p * (1 - p) / 300) ** 0.5


def test_each_operation_does_what_it_is_called():
    words = found(LONG)
    for variant in vary(LONG, OTHER, operations=["replace"]):
        assert set(found(variant)) - set(words) == {"zebra", "yak", "xenon"}
        assert len(found(variant)) == len(words)
    for variant in vary(LONG, operations=["delete"]):
        rest = iter(words)
        assert all(word in rest for word in found(variant))  # what is left is in order
        assert 30 < len(found(variant)) < 66
        assert "  " not in variant
    for variant in vary(LONG, operations=["swap"]):
        assert sorted(found(variant)) == sorted(words)
        moved = [words.index(word) - place for place, word in enumerate(found(variant))]
        assert set(moved) == {-1, 0, 1}


def test_words_come_as_often_as_the_corpus_has_them():
    corpus = ["zebra zebra zebra", "yak, the yak", "xenon", "the the"]
    variants = vary(LONG, corpus, p=1.0, n=200, operations=["replace"])
    counts = Counter(word for variant in variants for word in found(variant))
    assert set(counts) == {"zebra", "yak", "xenon"}
    for word, share in (("zebra", 1 / 2), ("yak", 1 / 3), ("xenon", 1 / 6)):
        assert counts[word] / counts.total() == pytest.approx(share, abs=0.015)


def test_options_and_keys_change_the_variants_and_nothing_else_does():
    same = vary(LONG, OTHER)
    assert same == vary(LONG, OTHER)
    assert len(same) == 20
    assert len(vary(LONG, OTHER, n=3)) == 3
    assert vary(LONG, OTHER, seed=1) != same
    assert vary(LONG, OTHER, key=(0, 1)) != same
    assert vary(LONG, OTHER, key=(1, 0)) != same
    both = CorpusWords(OTHER).variants(["a yak", LONG], [(5, 0), (0, 0)])
    assert both[1] == same  # whatever else is varied along with it


def test_variants_are_distinct_and_never_the_text_nor_empty():
    assert vary("great film", n=50, p=0.5, operations=["swap"]) == ["film great"]
    assert vary("great", n=50, p=0.5, operations=["delete"]) == []
    assert vary("great", n=50, p=1.0, operations=["replace", "swap"]) == []  # there is no other word
    assert set(vary("great, long film", n=99, operations=["delete"])) == {
        ", long film", "great, film", "great, long", ", film", ", long", "great,",
    }  # fmt: skip
    assert vary("the of 7", corpus=OTHER) == []


def test_new_words_are_written_as_the_old_ones():
    assert vary("Great FILM plot", ["dull"], p=1.0, n=1, operations=["replace"]) == ["Dull DULL dull"]
    assert [in_case_of(*pair) for pair in (("I", "we"), ("x", "USA"), ("", "a"))] == ["We", "USA", "a"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"p": 0.0}, "p=0.0: it is the probability"),
        ({"p": 1.5}, "p=1.5"),
        ({"p": float("nan")}, "p=nan"),
        ({"n": 0}, "n=0 and seed=0"),
        ({"seed": -1}, "n=20 and seed=-1"),
        ({"stop_words": "the"}, "stop_words='the' is one text"),
        ({"operations": ["turn"]}, "was given 'turn': choose one of 'replace', 'delete', 'swap'"),
        ({"operations": []}, r"operations=\[\]: name one or more"),
        ({"operations": ["swap", "swap"]}, "each once"),
        ({"corpus": ["the 7"]}, "The corpus has no word that may change"),
    ],
)
def test_bad_options(options, message):
    with pytest.raises(DistillationError, match=message):
        CorpusWords(**{"corpus": OTHER, **options})
