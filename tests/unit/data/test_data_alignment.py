from __future__ import annotations

import tracemalloc

import numpy as np
import pytest
import torch
from transformers import AutoTokenizer

from lightning_distilbert.data.alignment import BySentence, WordBatches, encode_words
from lightning_distilbert.data.encoding import Padding
from lightning_distilbert.data.word_windows import _windows
from lightning_distilbert.errors import DistillationError
from tests.tokenizers_of_kinds import make_tokenizers

SENTENCES = [
    "Who was the café at 's of n't city .".split(),
    ["Tower"],
    "naïve , 東京 ( u.s. ) 2-1 resume".split(),
    [],
    ["answer", "towers", "city"] * 9,
]
KINDS = make_tokenizers(max_length=256)


def by_words(tokenizer, words):
    """The reference: what transformers makes of split words, and where it says that each begins."""
    encoded = tokenizer(words, is_split_into_words=True)
    numbers = [-1 if number is None else number for number in encoded.word_ids()]
    first = [number if number not in numbers[:place] else -1 for place, number in enumerate(numbers)]
    return encoded["input_ids"], first


@pytest.mark.parametrize("kind", KINDS)
def test_tokens_and_first_sub_words_are_those_of_split_words(kind):
    # one that was not told to put a blank before words would take all of them for parts of words
    reference = KINDS["roberta-prefix" if kind.startswith("roberta") else kind]
    data = encode_words(KINDS[kind], SENTENCES, max_length=256)
    assert len(data) == len(SENTENCES)
    for row, words in zip(data[list(range(len(data)))], SENTENCES, strict=True):
        if not words:
            assert set(row["word"].tolist()) == {-1}
            continue
        ids, first = by_words(reference, words)
        assert row["input_ids"].tolist() == ids
        assert row["word"].tolist() == first
        assert sorted(set(first) - {-1}) == list(range(len(words)))  # not one is lost
    assert len(data.unseen) == 0


def test_words_that_are_nothing_to_the_tokenizer_are_known(tokenizer_dir):
    words = ["the", "\u200b", "", "\x00", "man", " "]
    data = encode_words(AutoTokenizer.from_pretrained(tokenizer_dir), [["a"], words, []])
    assert data[1]["word"].tolist() == [-1, 0, 4, -1]
    assert data.unseen.tolist() == [2, 3, 4, 6]  # counted through all sentences
    assert encode_words(KINDS["roberta"], [words]).unseen.tolist() == [2]  # bytes are never nothing
    data.tags = np.array([0, 1, 2, 3, -100, 5, 6])
    assert data[1]["unseen"].tolist() == [[1, 1, 2], [1, 2, 3], [1, 5, 6]]  # less the one without a label
    assert data[0]["unseen"].shape == data[2]["unseen"].shape == (0, 3)


@pytest.mark.parametrize(("max_length", "stride"), [(12, 4), (12, 0), (8, 5), (3, 0), (30, None), (12, None)])
def test_each_word_of_a_long_sentence_is_in_one_window(max_length, stride, tokenizer_dir):
    tokenizer = AutoTokenizer.from_pretrained(tokenizer_dir)
    words = ["cat", "houses", "dog", "unbelievable"] * 9 + ["end"]
    ids, first = by_words(tokenizer, words)
    data = encode_words(tokenizer, [["a"], words, ["b"]], max_length, stride)
    shared = (max_length - 2) // 4 if stride is None else stride
    rows = data[list(range(1, len(data) - 1))]
    assert len(rows) > 1
    assert data.extras["sentence"].tolist() == [0, *[1] * len(rows), 2]
    found, place = [], 0
    for number, row in enumerate(rows):
        assert row["input_ids"][0] == ids[0]
        assert row["input_ids"][-1] == ids[-1]
        inside = row["input_ids"][1:-1].tolist()
        assert len(inside) == max_length - 2
        place = number * (max_length - 2 - shared) if row is not rows[-1] else len(ids) - 2 - len(inside)
        assert inside == ids[1:-1][place : place + len(inside)]
        for offset, word in enumerate(row["word"][1:-1].tolist()):
            assert word in (-1, first[1:-1][place + offset])
            if word >= 0:
                found.append(word)
                # no other window has more on the shorter side of it
                mine = context(place, offset + place, len(inside), len(ids) - 2)
                starts = [min(k * (max_length - 2 - shared), len(ids) - 2 - len(inside)) for k in range(len(rows))]
                others = [context(start, offset + place, len(inside), len(ids) - 2) for start in starts]
                assert mine == max(others)
    assert sorted(found) == list(range(len(words)))


def context(start, place, width, total):
    """Tokens on the shorter side of a place, where the ends of the sentence are no ends of the text."""
    if not start <= place < start + width:
        return -1
    left = float("inf") if start == 0 else place - start
    right = float("inf") if start + width == total else start + width - 1 - place
    return min(left, right)


def test_a_word_of_more_pieces_than_a_window_is_found_where_it_begins(tokenizer_dir):
    tokenizer = AutoTokenizer.from_pretrained(tokenizer_dir)
    data = encode_words(tokenizer, [["a", "x" * 50, "b"]], max_length=10, stride=2)
    assert sorted(word for row in data[list(range(len(data)))] for word in row["word"].tolist() if word >= 0) == [
        0,
        1,
        2,
    ]
    assert data[0]["word"].tolist()[1:3] == [0, 1]
    # the words of which each row has tokens
    assert data.span.tolist() == [[0, 2], *[[1, 2]] * (len(data) - 2), [1, 3]]


def test_what_leaves_no_room_is_refused(tokenizer_dir):
    tokenizer = AutoTokenizer.from_pretrained(tokenizer_dir)
    with pytest.raises(DistillationError, match="max_length=2 leaves no room: the tokenizer adds 2 special"):
        encode_words(tokenizer, [["a"]], max_length=2)
    for stride in (8, -1):
        with pytest.raises(DistillationError, match=rf"stride={stride}: .* can share 0 to 7"):
            encode_words(tokenizer, [["a"]], max_length=10, stride=stride)

    class Slow:
        is_fast = False

    with pytest.raises(DistillationError, match="Slow does not tell where"):
        encode_words(Slow(), [["a"]])


@pytest.mark.parametrize("side", ["right", "left"])
def test_batches_are_padded_where_the_tokenizer_pads(side, tokenizer_dir):
    data = encode_words(AutoTokenizer.from_pretrained(tokenizer_dir), [["the", "cats"], [], ["dog", "\u200b"]])
    data.tags = np.array([1, 2, 3, 4])
    batch = WordBatches(Padding(0, padding_side=side), multiple_of=6)(data[[0, 1, 2]])
    assert batch["input_ids"].shape == (3, 6)
    real = batch["attention_mask"].bool()
    for row, wanted in enumerate(([-100, 1, 2, -100, -100], [-100, -100], [-100, 3, -100])):
        assert batch["labels"][row][real[row]].tolist() == wanted
    assert set(batch["labels"][~real].tolist()) == {-100}
    assert not batch["first_subword"][~real].any()
    assert torch.equal(batch["first_subword"], batch["word"] >= 0)
    assert batch["unseen"].tolist() == [[2, 1, 4]]
    assert batch["sentence"].tolist() == [0, 1, 2]
    assert "words" not in batch


def test_sentences_keep_their_windows_and_words(tokenizer_dir):
    sentences = [["a"], ["cat"] * 20, []]
    data = encode_words(AutoTokenizer.from_pretrained(tokenizer_dir), sentences, max_length=10)
    whole = BySentence(data, sentences)
    assert [len(whole[number]["rows"]) for number in range(3)] == [1, len(data) - 2, 1]
    batch = WordBatches(Padding(0))([whole[1], whole[2]])
    assert batch["words"] == sentences[1:]
    assert batch["sentence"].tolist() == [*[1] * (len(data) - 2), 2]
    assert "labels" not in batch


def test_each_word_has_the_window_with_most_context_and_a_book_needs_no_table_of_both():
    for total, room, stride in [(60, 10, 3), (61, 10, 7), (23, 5, 0), (40, 7, 6)]:
        starts = [min(start, total - room) for start in range(0, total - stride, room - stride)]
        found = {}
        for window, own in _windows(np.arange(total), room, stride):
            found |= {int(word): window.start for word in own[own >= 0]}
        for word, start in found.items():
            # at the ends of the sentence nothing is cut off
            context = {
                s: min(word - s if s else 99, s + room - 1 - word if s + room < total else 99)
                for s in starts
                if s <= word < s + room
            }
            assert start == max(context, key=context.__getitem__)
        assert sorted(found) == list(range(total))
    tracemalloc.start()
    windows = sum(1 for _ in _windows(np.arange(40_000), 126, 31))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert windows == 421
    assert peak < 421 * 40_000  # a byte for each window and word; there were dozens
