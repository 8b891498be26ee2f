"""The tokenizer of the translations: training, saving, and what it refuses."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from transformers import AutoTokenizer

from lightning_distilbert.errors import DistillationError
from lightning_distilbert.folder import tokenizer_files, tokenizer_from_files
from lightning_distilbert.target_tokenizer import (
    SPECIAL,
    check_decoder,
    decoder_config,
    load_target_tokenizer,
    shift_right,
    start_token,
    target_positions,
    train_target_tokenizer,
)

TEXTS = [
    "Zwei junge Männer (weiß) sind im Freien, in der Nähe vieler Büsche.",
    'Ein Mann sagt: "Das geht!" - und läuft.',
    "Ein kleines Mädchen klettert in ein Spielhaus aus Holz.",
    "Es kostet 3,50 EUR für 10-jährige Kinder.",
]


def test_a_decoded_text_is_the_text_with_its_capitals_and_punctuation():
    tokenizer = train_target_tokenizer(TEXTS, 200)
    for text in TEXTS:
        ids = tokenizer(text)["input_ids"]
        assert ids[-1] == tokenizer.eos_token_id
        assert tokenizer.decode(ids, skip_special_tokens=True) == text
    spaced = tokenizer("  Ein   Mann\u00a0sagt ")["input_ids"]
    assert tokenizer.decode(spaced, skip_special_tokens=True) == "Ein Mann sagt"
    assert tokenizer("")["input_ids"] == [tokenizer.eos_token_id]
    assert "token_type_ids" not in tokenizer("a")
    own = "Auf 20 m\u00b2 \u2026 \ufb01ndet er \u00bdkg"  # which a normalisation by compatibility would write otherwise
    tokenizer = train_target_tokenizer([own], 60)
    assert tokenizer.decode(tokenizer(own)["input_ids"], skip_special_tokens=True) == own


def test_its_special_tokens_come_first_and_its_size_is_what_was_asked_for():
    small, large = (train_target_tokenizer(TEXTS, size, max_length=17) for size in (70, 100))
    assert small.convert_ids_to_tokens([0, 1, 2, 3]) == list(SPECIAL)
    ids = (small.pad_token_id, small.unk_token_id, small.bos_token_id, small.eos_token_id)
    assert ids == (0, 1, 2, 3)
    assert (len(small), len(large)) == (70, 100)
    assert small.model_max_length == 17
    assert len(small(TEXTS[0])["input_ids"]) > len(large(TEXTS[0])["input_ids"])
    assert small("\u4e2d")["input_ids"] == [1, 3] or 1 in small("\u4e2d")["input_ids"]


def test_the_same_texts_give_the_same_tokenizer_in_another_process():
    code = (
        "import sys, json; from lightning_distilbert.target_tokenizer import train_target_tokenizer as t;"
        "print(json.dumps([sorted(t(json.loads(sys.argv[1]), size).get_vocab().items()) for size in (150, 25)]))"
    )
    found = subprocess.run(
        [sys.executable, "-c", code, json.dumps(TEXTS)], capture_output=True, text=True, check=True,
        cwd=Path(__file__).resolve().parents[2],
    )  # fmt: skip
    # all characters fit into the first; for the second it has to choose among equally rare ones
    for size, vocabulary in zip((150, 25), json.loads(found.stdout), strict=True):
        assert vocabulary == [list(item) for item in sorted(train_target_tokenizer(TEXTS, size).get_vocab().items())]


RARE = ["abcdefghijklmnopqrstuvwxyz aaa bbb", "\u6f22\u5b57\u4eee\u540d\u4ea4\u3058\u308a\u6587"]


def test_more_characters_than_fit_leave_the_rarest_out():
    for size in (5, 20, 33):
        assert len(train_target_tokenizer(iter(RARE), size)) == size
    tokenizer = train_target_tokenizer(RARE, 20)
    assert set(tokenizer.get_vocab()) == {*SPECIAL, "\u2581", *"abcdefghijklmno"}  # of equally rare ones the lower
    ids = tokenizer("abz \u6f22")["input_ids"]
    assert tokenizer.convert_ids_to_tokens(ids) == ["\u2581", "a", "b", "<unk>", "\u2581", "<unk>", "</s>"]
    assert tokenizer.decode(ids, skip_special_tokens=True).strip() == "ab"
    # with room for all of them nothing is unknown
    large = train_target_tokenizer([*RARE, *TEXTS])
    for text in (*RARE, *TEXTS):
        ids = large(text)["input_ids"]
        assert 1 not in ids
        assert large.decode(ids, skip_special_tokens=True) == text


def test_it_comes_back_from_a_folder_and_from_a_checkpoint_s_files(tmp_path: Path):
    tokenizer = train_target_tokenizer(TEXTS, 150)
    tokenizer.save_pretrained(tmp_path / "model" / "target_tokenizer")
    for found in (
        load_target_tokenizer(tmp_path / "model"),
        load_target_tokenizer(tmp_path / "model" / "target_tokenizer"),
        AutoTokenizer.from_pretrained(tmp_path / "model" / "target_tokenizer"),
        tokenizer_from_files(tokenizer_files(tokenizer)),
    ):
        assert found.get_vocab() == tokenizer.get_vocab()
        assert found(TEXTS)["input_ids"] == tokenizer(TEXTS)["input_ids"]
        assert (found.pad_token_id, found.bos_token_id, found.eos_token_id) == (0, 2, 3)


def test_what_cannot_be_trained_is_refused():
    with pytest.raises(DistillationError, match="vocab_size=4 leaves no room"):
        train_target_tokenizer(TEXTS, 4)
    for texts in ([], ["", "  "]):
        with pytest.raises(DistillationError, match="no text to train"):
            train_target_tokenizer(texts, 50)
    with pytest.raises(DistillationError, match="does not exist"):
        load_target_tokenizer("/no/such/folder")


def config(**values: int) -> SimpleNamespace:
    return SimpleNamespace(model_type="encoder-decoder", **values)


def test_a_decoder_of_other_tokens_is_refused():
    tokenizer = train_target_tokenizer(TEXTS, 100)
    check_decoder(config(vocab_size=100, eos_token_id=3, pad_token_id=0), tokenizer)
    with pytest.raises(DistillationError, match=r"has 100 tokens and the student's decoder only 99"):
        check_decoder(config(vocab_size=99), tokenizer)
    with pytest.raises(DistillationError, match=r"eos_token_id=0, and the target tokenizer 3"):
        check_decoder(config(vocab_size=100, eos_token_id=0), tokenizer)
    with pytest.raises(DistillationError, match=r"pad_token_id=5, and the target tokenizer 0"):
        check_decoder(config(vocab_size=100, pad_token_id=5), tokenizer)


def test_configs_are_read_whether_they_have_a_part_for_the_decoder_or_not():
    inner = SimpleNamespace(vocab_size=7, max_position_embeddings=20)
    outer = SimpleNamespace(decoder=inner, decoder_start_token_id=5, bos_token_id=6, model_type="encoder-decoder")
    assert decoder_config(outer) is inner
    assert (decoder_config(inner), target_positions(outer), target_positions(inner)) == (inner, 20, 20)
    assert target_positions(SimpleNamespace()) > 10**6
    assert (start_token(outer), start_token(SimpleNamespace(bos_token_id=6))) == (5, 6)
    with pytest.raises(DistillationError, match="names no decoder_start_token_id"):
        start_token(config())


def test_shifted_labels_begin_with_the_start_and_never_hold_what_is_ignored():
    labels = torch.tensor([[7, 8, 3], [9, 3, -100], [3, -100, -100]])
    before = labels.clone()
    assert shift_right(labels, 2, 0).tolist() == [[2, 7, 8], [2, 9, 3], [2, 3, 0]]
    assert torch.equal(labels, before)
