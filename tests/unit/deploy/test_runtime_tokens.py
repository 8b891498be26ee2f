"""The runtime's tokenizer gives what transformers' gives, for every kind of tokenizer."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from transformers import AutoTokenizer

from lightning_distilbert import DistillationError
from lightning_distilbert.data.context_windows import context_windows
from lightning_distilbert.data.encoding import encode, pad_batch
from lightning_distilbert.data.word_windows import Frame, word_windows
from lightning_distilbert.deploy.runtime.tokens import TextTokenizer
from tests.tokenizers_of_kinds import WORDS, make_tokenizers

TOKENIZERS = make_tokenizers()
ODD = [
    "don't",
    "Tower",
    "caf\u00e9",
    "cafe\u0301",
    "\u6771\u4eac",
    "\U0001f389",
    "\x07",
    "  ",
    "\n",
    "[MASK]",
    "",
    "?!",
]
DRAW = random.Random(0)
TEXTS = ["", " ", *(" ".join(DRAW.choices(WORDS + ODD, k=DRAW.randint(1, 60))) for _ in range(20))]
PAIRS = [" ".join(DRAW.choices(WORDS + ODD, k=DRAW.randint(1, 60))) for _ in TEXTS]


@pytest.fixture(params=TOKENIZERS)
def both(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[Any, TextTokenizer]:
    theirs = TOKENIZERS[request.param]
    theirs.save_pretrained(tmp_path)
    return theirs, TextTokenizer(tmp_path, typed="token_type_ids" in theirs.model_input_names)


@pytest.mark.parametrize("pairs", [None, PAIRS])
@pytest.mark.parametrize("max_length", [64, 17])
def test_texts_are_encoded_cut_and_padded_as_by_transformers(both, pairs, max_length):
    theirs, mine = both
    wanted = encode(theirs, TEXTS, pairs, max_length)
    found = mine.encode(TEXTS, pairs, max_length)
    assert len(found) == len(wanted)
    assert max(wanted.lengths) == max_length
    for row, reference in zip(found, [wanted[place] for place in range(len(wanted))], strict=True):
        assert row.keys() == reference.keys()
        assert all(np.array_equal(row[name], reference[name]) for name in row)
    batch = pad_batch(wanted[list(range(len(wanted)))], theirs)
    padded = mine.pad(found)
    assert padded.keys() == batch.keys()
    assert all(np.array_equal(padded[name], batch[name]) for name in batch)


def test_contexts_and_words_are_windowed_as_by_transformers(both):
    theirs, mine = both
    contexts = [" ".join(PAIRS[: count + 1]) for count in range(4)]
    questions = ["who is the", "", "where " * 30, "what"]
    for stride in (0, 7):
        arguments = (questions, contexts, 40, stride, 9)
        found, wanted = (list(context_windows(tokenizer, *arguments)) for tokenizer in (mine, theirs))
        assert [rest[1:] for rest in found] == [rest[1:] for rest in wanted] == [(4, 1)]
        assert len(found[0][0]) == len(wanted[0][0]) > 10
        for one, other in zip(found[0][0], wanted[0][0], strict=True):
            assert (one.context, one.example) == (other.context, other.example)
            assert all(np.array_equal(a, b) for a, b in zip(one[:3], other[:3], strict=True))
    sentences = [text.split(" ") for text in TEXTS]
    frames = Frame.of(mine), Frame.of(theirs)
    assert [frames[0].before.tolist(), frames[0].after.tolist(), frames[0].token_type] == [
        frames[1].before.tolist(), frames[1].after.tolist(), frames[1].token_type,
    ]  # fmt: skip
    found, wanted = (word_windows(*given, sentences, 20) for given in zip(both[::-1], frames, strict=True))
    for one, other in zip(found, wanted, strict=True):
        for window, reference in zip(one, other, strict=True):
            assert window[2:] == reference[2:]
            assert all(np.array_equal(a, b) for a, b in zip(window[:2], reference[:2], strict=True))


def test_each_token_is_decoded_as_by_transformers(both):
    theirs, mine = both
    for token in range(len(theirs)):
        assert mine.decode(token) == theirs.decode([token]).strip()
    assert mine.id_of(mine.mask_token) == theirs.mask_token_id
    assert mine.max_length == theirs.model_max_length


def test_settings_left_in_the_file_do_not_cut_or_pad(tmp_path: Path):
    theirs = TOKENIZERS["bert-uncased"]
    theirs.save_pretrained(tmp_path)
    rules = json.loads((tmp_path / "tokenizer.json").read_text())
    rules["truncation"] = {"direction": "Right", "max_length": 5, "strategy": "LongestFirst", "stride": 0}
    rules["padding"] = {
        "strategy": {"Fixed": 30}, "direction": "Right", "pad_to_multiple_of": None, "pad_id": 0, "pad_type_id": 0,
        "pad_token": "[PAD]",
    }  # fmt: skip
    (tmp_path / "tokenizer.json").write_text(json.dumps(rules))
    mine = TextTokenizer(tmp_path, typed=True)
    text = "the tower of the city"
    wanted = theirs(text)["input_ids"]
    assert len(wanted) == 7
    assert mine.encode([text], None, 64)[0]["input_ids"].tolist() == wanted
    assert mine([text]).encodings[0].ids == wanted


def test_texts_are_cut_on_the_side_that_the_folder_names(tmp_path: Path):
    TOKENIZERS["bert-uncased"].save_pretrained(tmp_path)
    path = tmp_path / "tokenizer_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"truncation_side": "left"}))
    theirs, mine = AutoTokenizer.from_pretrained(tmp_path), TextTokenizer(tmp_path, typed=True)
    found = mine.encode(["the tower of the city"], None, 4)[0]["input_ids"].tolist()
    assert found == theirs("the tower of the city", truncation=True, max_length=4)["input_ids"]
    assert found != TOKENIZERS["bert-uncased"]("the tower of the city", truncation=True, max_length=4)["input_ids"]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("tokenizer.json", "{", "cannot be read"),
        ("tokenizer_config.json", "[", "cannot be read"),
        ("tokenizer_config.json", '{"pad_token": null}', "no padding token"),
        ("tokenizer_config.json", '{"pad_token": "<nothing>"}', "no padding token"),
    ],
)
def test_damaged_files_are_refused(tmp_path: Path, name: str, content: str, message: str):
    TOKENIZERS["bert-uncased"].save_pretrained(tmp_path)
    (tmp_path / name).write_text(content)
    with pytest.raises(DistillationError, match=message):
        TextTokenizer(tmp_path, typed=False)


def test_a_token_may_be_written_with_its_options(tmp_path: Path):
    TOKENIZERS["bert-uncased"].save_pretrained(tmp_path)
    path = tmp_path / "tokenizer_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"pad_token": {"content": "[PAD]", "lstrip": False}}))
    assert TextTokenizer(tmp_path, typed=False).padding["input_ids"] == 0
