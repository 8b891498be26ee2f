"""Joined tokens against what the tokenizers themselves give for a pair."""

from __future__ import annotations

import random

import pytest
import torch
from transformers import AutoTokenizer, MPNetTokenizer

from lightning_distilbert.data.encoding import encode, pad_batch
from lightning_distilbert.errors import DistillationError
from lightning_distilbert.joining import PairTemplate

WORDS = ["a", "good", "cat", "who", "sleeps"]


@pytest.fixture(params=["bert", "mpnet"])
def tokenizer(request, tokenizer_dir):
    if request.param == "bert":
        return AutoTokenizer.from_pretrained(tokenizer_dir)
    entries = ["<s>", "<pad>", "</s>", "<unk>", "<mask>", "[UNK]", *WORDS]  # puts two special tokens between texts
    return MPNetTokenizer(vocab={entry: place for place, entry in enumerate(entries)})


def texts(count, longest=9):
    return [" ".join(random.choices(WORDS, k=random.randint(0, longest))) for _ in range(count)]


@pytest.mark.parametrize("side", ["right", "left"])
@pytest.mark.parametrize("max_length", [7, 8, 13, 64])
def test_joined_tokens_are_those_of_the_pair(tokenizer, max_length, side):
    queries, documents = texts(6), texts(8)
    tokenizer.padding_side = side
    left, right = (
        pad_batch(encode(tokenizer, part)[list(range(len(part)))], tokenizer) for part in (queries, documents)
    )
    rows = [(i, j) for i in range(6) for j in range(8)]
    query_rows, document_rows = torch.tensor(rows).T
    found = PairTemplate.of(tokenizer).join(left, right, query_rows, document_rows, max_length)
    expected = encode(tokenizer, [queries[i] for i, _ in rows], [documents[j] for _, j in rows], max_length)
    tokenizer.padding_side = "right"
    padded = pad_batch(expected[list(range(len(rows)))], tokenizer)
    assert found.keys() == padded.keys()
    for name, value in padded.items():
        assert torch.equal(found[name], value), name


def test_the_padded_length_may_be_rounded_up(tokenizer):
    left = right = pad_batch(encode(tokenizer, ["a cat"])[[0]], tokenizer)
    places = torch.tensor([0]), torch.tensor([0])
    template = PairTemplate.of(tokenizer)
    plain, rounded = template.join(left, right, *places, 64), template.join(left, right, *places, 64, multiple_of=16)
    width = plain["input_ids"].shape[1]
    assert width < 16
    assert rounded["input_ids"].shape[1] == 16
    assert torch.equal(rounded["input_ids"][:, :width], plain["input_ids"])
    assert rounded["attention_mask"][:, width:].sum() == 0
    assert rounded["input_ids"][0, width:].tolist() == [tokenizer.pad_token_id] * (16 - width)


def test_too_little_room_is_refused(tokenizer):
    template = PairTemplate.of(tokenizer)
    left = pad_batch(encode(tokenizer, ["a"])[[0]], tokenizer)
    with pytest.raises(DistillationError, match=f"max_length={template.special} leaves no room"):
        template.join(left, left, torch.tensor([0]), torch.tensor([0]), template.special)


def test_a_tokenizer_that_joins_in_another_way_is_refused(tokenizer):
    tokenizer.pad_token = None
    with pytest.raises(DistillationError, match="pads with None: a cross-encoder needs"):
        PairTemplate.of(tokenizer)
