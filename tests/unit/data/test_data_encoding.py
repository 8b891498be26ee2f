import pickle

import numpy as np
import pytest
import torch
from transformers import AutoTokenizer

from lightning_distilbert.data import encoding
from lightning_distilbert.data.encoding import EncodedDataset, Padding, encode, pad_batch
from lightning_distilbert.errors import DistillationError

TEXTS = ["a good film", "bad", "the very best movie of the year", ""]
PAIRS = ["no", "the worst of the worst", "yes", "a"]


@pytest.fixture(scope="module")
def tokenizer(tokenizer_dir):
    return AutoTokenizer.from_pretrained(tokenizer_dir)


@pytest.mark.parametrize("pairs", [None, PAIRS])
@pytest.mark.parametrize("max_length", [6, 40])
def test_batches_equal_those_of_the_tokenizer_itself(tokenizer, pairs, max_length, monkeypatch):
    monkeypatch.setattr(encoding, "CHUNK", 3)
    data = encode(tokenizer, TEXTS, pairs, max_length=max_length)
    batch = pad_batch(data[[0, 1, 2, 3]], tokenizer)
    expected = tokenizer(TEXTS, pairs, truncation=True, max_length=max_length, padding=True, return_tensors="pt")
    assert set(batch) == set(expected) == {"input_ids", "attention_mask", "token_type_ids"}
    for name, values in expected.items():
        assert torch.equal(batch[name], values), name
    assert data.lengths.tolist() == expected["attention_mask"].sum(dim=1).tolist()


def test_a_teacher_reads_the_same_rows_in_its_own_tokens_and_padding(tokenizer, tokenizer_dir):
    other = AutoTokenizer.from_pretrained(tokenizer_dir, padding_side="left")
    other.add_tokens(["very best"])
    data = encode(tokenizer, TEXTS)
    data.teacher = encode(other, TEXTS)
    batch = pad_batch(data[[1, 2]], Padding.of(tokenizer), multiple_of=4, teacher=Padding.of(other))
    for prefix, one in (("", tokenizer), ("teacher_", other)):
        expected = one(TEXTS[1:3], padding=True, pad_to_multiple_of=4, return_tensors="pt")
        for name, values in expected.items():
            assert torch.equal(batch[f"{prefix}{name}"], values), name
    assert len(batch) == 6
    # each is padded to its own length
    short = EncodedDataset(np.array([5]), np.array([1]), teacher=EncodedDataset(np.array([6, 7]), np.array([2])))
    batch = pad_batch([{"query": row} for row in short[[0]]], Padding(0), teacher=Padding(1))
    shapes = {name: tuple(values.shape) for name, values in batch["query"].items()}
    assert shapes == {
        "input_ids": (1, 1),
        "attention_mask": (1, 1),
        "teacher_input_ids": (1, 2),
        "teacher_attention_mask": (1, 2),
    }


def test_a_row_without_a_token_is_all_padding(tokenizer):
    data = encode(tokenizer, TEXTS)
    data.teacher = encode(tokenizer, TEXTS)
    longer = data.with_empty_row()
    assert longer.lengths.tolist() == [*data.lengths.tolist(), 0]
    assert all(np.array_equal(longer[2][name], data[2][name]) for name in data[2])
    batch = pad_batch([longer[4], longer[4]], tokenizer, teacher=tokenizer)
    for name in ("input_ids", "teacher_input_ids"):
        assert batch[name].tolist() == [[tokenizer.pad_token_id]] * 2
    assert batch["attention_mask"].sum() == batch["teacher_attention_mask"].sum() == 0


def test_left_padding_follows_the_tokenizer(tokenizer_dir):
    tokenizer = AutoTokenizer.from_pretrained(tokenizer_dir, padding_side="left")
    batch = pad_batch(encode(tokenizer, TEXTS)[[1, 2]], Padding.of(tokenizer))
    expected = tokenizer(TEXTS[1:3], padding=True, return_tensors="pt")
    for name, values in expected.items():
        assert torch.equal(batch[name], values), name


def test_multiple_of_rounds_up_with_padding_only(tokenizer):
    rows = encode(tokenizer, TEXTS)[[0, 1]]
    plain, rounded = pad_batch(rows, tokenizer), pad_batch(rows, tokenizer, multiple_of=8)
    size = plain["input_ids"].shape[1]
    assert size % 8 != 0
    assert rounded["input_ids"].shape[1] == -(-size // 8) * 8
    assert torch.equal(rounded["input_ids"][:, :size], plain["input_ids"])
    assert rounded["attention_mask"][:, size:].sum() == 0
    assert (rounded["input_ids"][:, size:] == tokenizer.pad_token_id).all()


def test_extras_are_stacked_with_their_kind_and_rows_nest(tokenizer):
    extras = {"labels": np.arange(4), "scores": np.eye(4, dtype=np.float32)}
    data = encode(tokenizer, TEXTS, extras=extras)
    batch = pad_batch(data[[2, 0]], tokenizer)
    assert batch["labels"].tolist() == [2, 0]
    assert batch["labels"].dtype == torch.int64
    assert torch.equal(batch["scores"], torch.eye(4)[[2, 0]])
    nested = pad_batch([{"query": data[0], "n": 5}, {"query": data[3], "n": 6}], tokenizer)
    assert nested["n"].tolist() == [5, 6]
    assert torch.equal(nested["query"]["input_ids"], pad_batch(data[[0, 3]], tokenizer)["input_ids"])


def test_rows_without_token_types_give_batches_without_them():
    data = EncodedDataset(np.array([4, 5, 6]), np.array([2, 1]))
    assert set(pad_batch(data[[0, 1]], Padding(0))) == {"input_ids", "attention_mask"}
    assert len(data) == 2


def test_padding_travels_to_workers(tokenizer):
    padding = Padding.of(tokenizer)
    assert pickle.loads(pickle.dumps(padding)) == padding
    assert len(pickle.dumps(padding)) < 1000


def test_no_padding_token_and_no_room(tokenizer_dir, tokenizer):
    bare = AutoTokenizer.from_pretrained(tokenizer_dir)
    bare.pad_token = None
    with pytest.raises(DistillationError, match="has no padding token"):
        Padding.of(bare)
    with pytest.raises(DistillationError, match="max_length=3 leaves no room: the tokenizer adds 3"):
        encode(tokenizer, TEXTS, PAIRS, max_length=3)
