from __future__ import annotations

from itertools import pairwise

import pytest

from lightning_distilbert.data.split_words import split_words

WORDS = {
    'Peter, of Al-Ain (U.A.E.): "it\'s 3.5 %".': 'Peter , of Al-Ain ( U.A.E. ) : " it \'s 3.5 % " .',
    "He can't; we're O'Neil's.": "He ca n't ; we 're O'Neil 's .",
    "it\u2019s isn\u2019t": "it \u2019s is n\u2019t",
    "J. Smith lives on plan B. it is. St. Paul": "J. Smith lives on plan B . it is . St . Paul",
    "10:30 x@y.com a...b --c--": "10:30 x@y.com a . . . b - - c - -",
    "我爱北京。John去了3.5": "我 爱 北 京 。 John 去 了 3.5",
    "cafe\u0301 l'été": "cafe\u0301 l'été",
    "": "",
    " \n\t ": "",
}
ODD = ["'s 'tis ''90s' n't", "a\u200bb\x00 \U0001f468\u200d\U0001f469 'S\u2019s", "...'s.U.S.'s", "1990s' don'tn't x'"]


@pytest.mark.parametrize("text", WORDS)
def test_words_of_texts(text):
    assert " ".join(text[slice(*span)] for span in split_words(text)) == WORDS[text]


@pytest.mark.parametrize("text", [*ODD, *WORDS])
def test_every_character_but_white_space_is_in_one_word(text):
    spans = split_words(text)
    assert all(start < end for start, end in spans)
    assert all(left[1] <= right[0] for left, right in pairwise(spans))
    assert "".join(text[slice(*span)] for span in spans) == "".join(text.split())
