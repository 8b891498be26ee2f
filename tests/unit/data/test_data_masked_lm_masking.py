from __future__ import annotations

import numpy as np
import pytest
import torch
from transformers import AutoTokenizer

from lightning_distilbert.data import Masking
from lightning_distilbert.data.masking import word_beginnings
from lightning_distilbert.errors import DistillationError

SPECIAL, MASK, VOCABULARY = 5, 4, 2000
IGNORED = -100


def corpus(rows: int = 32, length: int = 128, batches: int = 26) -> list[np.ndarray]:
    """Return more than 1e5 tokens of a skewed distribution, with special tokens and padding among them."""
    generator = np.random.default_rng(0)
    made = []
    for _ in range(batches):
        ids = SPECIAL + (generator.zipf(1.3, (rows, length)) - 1) % (VOCABULARY - SPECIAL)
        ids[:, 0], ids[:, -1] = 2, 3
        ids[0, length // 2 :] = 0
        made.append(ids)
    return made


BATCHES = corpus()
COUNTS = np.bincount(np.concatenate([batch.ravel() for batch in BATCHES]), minlength=VOCABULARY)


def masking(smoothing: float = 0.0, share: float = 0.15, begins: np.ndarray | None = None) -> Masking:
    weights = np.maximum(COUNTS, 1).astype(float) ** -smoothing
    weights[:SPECIAL] = 0.0
    return Masking(MASK, weights, np.arange(SPECIAL, VOCABULARY), share, begins)


def run(one: Masking) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Mask the corpus; return its ids, the masked ids and the labels, flat."""
    pairs = [one(batch, (0, 7, number)) for number, batch in enumerate(BATCHES)]
    masked, labels = (np.concatenate([part.ravel() for part in parts]) for parts in zip(*pairs, strict=True))
    return np.concatenate([batch.ravel() for batch in BATCHES]), masked, labels


@pytest.mark.parametrize("smoothing", [0.0, 0.7])
@pytest.mark.parametrize("share", [0.15, 0.4])
def test_the_share_of_ordinary_tokens_is_masked_and_labels_are_the_truth(smoothing: float, share: float):
    ids, masked, labels = run(masking(smoothing, share))
    ordinary = ids >= SPECIAL
    assert ordinary.sum() > 100_000
    drawn = labels != IGNORED
    assert drawn.sum() / ordinary.sum() == pytest.approx(share, abs=2e-4)
    assert not drawn[~ordinary].any()
    assert (labels[drawn] == ids[drawn]).all()
    assert (masked[~drawn] == ids[~drawn]).all()


@pytest.mark.parametrize("smoothing", [0.0, 0.7])
def test_of_the_drawn_80_percent_are_masks_10_percent_random_and_10_percent_stay(smoothing: float):
    ids, masked, labels = run(masking(smoothing))
    drawn = labels != IGNORED
    before, after = ids[drawn], masked[drawn]
    spread = 4 * np.sqrt(0.8 * 0.2 / drawn.sum())
    assert (after == MASK).mean() == pytest.approx(0.8, abs=spread)
    changed = (after != MASK) & (after != before)
    # one random token in VOCABULARY is the old one
    assert changed.mean() == pytest.approx(0.1, abs=spread)
    assert (after == before).mean() == pytest.approx(0.1, abs=spread)
    assert after[changed].min() >= SPECIAL
    # all ordinary tokens are as likely: about 1,500 draws fall evenly into four quarters
    quarters = np.histogram(after[changed], bins=4, range=(SPECIAL, VOCABULARY))[0] / changed.sum()
    assert quarters == pytest.approx(0.25, abs=0.05)


def classes(ids: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Return the share of tokens drawn in each class of frequency, from rare to frequent."""
    ordinary = ids >= SPECIAL
    frequency = np.digitize(COUNTS[ids], [10, 100, 1000, 10_000])
    return np.array([(labels[ordinary & (frequency == one)] != IGNORED).mean() for one in range(5)])


def test_smoothing_draws_as_the_multinomial_of_the_original_code_does():
    one = masking(smoothing=0.7)
    ours = classes(*[run(one)[place] for place in (0, 2)])
    # distiller.py of the original: torch.multinomial over the batch, without replacement
    labels = []
    generator = torch.Generator().manual_seed(1)
    for batch in BATCHES:
        flat = batch.ravel()
        probability = torch.from_numpy(one.weights[flat])
        number = round(0.15 * int((flat >= SPECIAL).sum()))
        drawn = torch.multinomial(probability / probability.sum(), number, replacement=False, generator=generator)
        row = np.full(flat.shape, IGNORED)
        row[drawn.numpy()] = flat[drawn.numpy()]
        labels.append(row)
    theirs = classes(np.concatenate([batch.ravel() for batch in BATCHES]), np.concatenate(labels))
    assert ours == pytest.approx(theirs, abs=0.015)
    assert ours[0] > 0.7  # most of the rare tokens
    assert ours[-1] < 0.05
    assert (np.diff(ours) < 0).all()


def test_without_smoothing_rare_tokens_are_drawn_as_often_as_frequent_ones():
    ids, _, labels = run(masking(smoothing=0.0))
    assert classes(ids, labels) == pytest.approx(0.15, abs=0.03)


def test_the_draw_depends_on_the_key_and_not_on_padding():
    one, batch = masking(0.7), BATCHES[0]
    first, again, other = one(batch, (0, 7, 0)), one(batch, (0, 7, 0)), one(batch, (0, 7, 1))
    assert (first[0] == again[0]).all()
    assert (first[1] == again[1]).all()
    assert (first[1] != other[1]).mean() > 0.1
    wider = np.pad(batch, ((0, 0), (0, 16)))
    masked, labels = one(wider, (0, 7, 0))
    assert (masked[:, : batch.shape[1]] == first[0]).all()
    assert (labels[:, : batch.shape[1]] == first[1]).all()
    assert (labels[:, batch.shape[1] :] == IGNORED).all()


def test_a_batch_of_special_tokens_has_no_target_and_a_short_one_has_one():
    assert (masking()(np.array([[2, 3, 0]]), (0,))[1] == IGNORED).all()
    assert (masking()(np.array([[2, 9, 9, 3]]), (0,))[1] != IGNORED).sum() == 1


def words(begins: np.ndarray, ids: np.ndarray) -> list[list[int]]:
    """Return the places of each word of one row, by walking over it."""
    found: list[list[int]] = []
    inside = False
    for place, token in enumerate(ids.tolist()):
        if token < SPECIAL:
            inside = False
        elif inside and not begins[token]:
            found[-1].append(place)
        else:
            found.append([place])
            inside = True
    return found


def test_whole_words_are_drawn_together():
    begins = np.arange(VOCABULARY) % 3 > 0
    total = drawn_tokens = 0
    long_words = 0
    for number, batch in enumerate(BATCHES[:8]):
        _, labels = masking(0.7, begins=begins)(batch, (1, number))
        for row, row_labels in zip(batch, labels, strict=True):
            for word in words(begins, row):
                hit = row_labels[word] != IGNORED
                assert hit.all() or not hit.any()
                total, drawn_tokens = total + len(word), drawn_tokens + int(hit.sum())
                long_words += len(word) > 1 and hit.all()
    assert drawn_tokens / total == pytest.approx(0.15, abs=2e-3)
    assert long_words > 100
    assert any(
        hit.any() and not hit.all()
        for row, labels in zip(BATCHES[0], masking(0.7)(BATCHES[0], (1, 0))[1], strict=True)
        for hit in (labels[word] != IGNORED for word in words(begins, row))
    )


def test_what_never_ends_is_no_word():
    begins = np.zeros(VOCABULARY, dtype=bool)  # a text without spaces: one word in all
    row = np.full((1, 60), SPECIAL)
    for length, number in ((60, 9), (12, 12)):
        _, labels = masking(0.7, begins=begins)(row[:, :length], (0,))
        assert (labels != IGNORED).sum() == number


def test_smoothing_weighs_whole_words_too():
    begins = np.ones(VOCABULARY, dtype=bool)  # every token a word: the rates must be those of single tokens
    ids, _, labels = run(masking(0.7, begins=begins))
    single_ids, _, single = run(masking(0.7))
    assert classes(ids, labels) == pytest.approx(classes(single_ids, single), abs=0.015)


@pytest.mark.parametrize(
    ("vocabulary", "expected"),
    [
        ({"play": 0, "##ing": 1, "##": 2, "a": 3}, [True, False, False, True]),
        ({"\u0120play": 0, "ing": 1, ",": 2, "\u0120": 3}, [True, False, True, True]),
        ({"\u2581play": 0, "ing": 1, ".": 2}, [True, False, True]),
        # GPT-2's vocabulary has a few such tokens, and is no WordPiece
        ({"\u0120play": 0, "ing": 1, "####": 2, "\u0120a": 3}, [True, False, True, True]),
        # no spaces are written there: pieces stand for themselves
        ({"\u2581play": 0, "ing": 1, "東京": 2, "タワ": 3, "ไทย": 4}, [True, False, True, True, True]),
    ],
)
def test_beginnings_of_words_are_read_off_the_vocabulary(vocabulary, expected):
    assert word_beginnings(vocabulary).tolist() == expected


def test_masking_of_a_tokenizer(tokenizer_dir):
    tokenizer = AutoTokenizer.from_pretrained(tokenizer_dir)
    counts = np.arange(len(tokenizer))
    one = Masking.of(tokenizer, counts, smoothing=0.7, whole_word=True)
    assert (one.weights[tokenizer.all_special_ids] == 0).all()
    ordinary = np.setdiff1d(np.arange(len(tokenizer)), tokenizer.all_special_ids)
    assert one.weights[ordinary] == pytest.approx(np.maximum(counts[ordinary], 1.0) ** -0.7)
    assert one.replacements.tolist() == ordinary.tolist()
    assert one.mask_token_id == tokenizer.mask_token_id
    assert not one.begins[tokenizer.convert_tokens_to_ids("##ing")]
    assert one.begins[tokenizer.convert_tokens_to_ids("film")]
    assert Masking.of(tokenizer).begins is None
    assert set(Masking.of(tokenizer, counts, smoothing=0).weights) == {0.0, 1.0}
    # a corpus that was counted with fewer tokens
    assert Masking.of(tokenizer, counts[:50]).weights[60] == 1.0


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"share": 0.0}, "mask_share=0.0: it is the share"),
        ({"share": 1.0}, "mask_share=1.0: it is the share"),
        ({"smoothing": -1.0}, "smoothing=-1.0: it has to be 0"),
        ({"smoothing": float("nan")}, "smoothing=nan"),
    ],
)
def test_options_out_of_range_are_refused(tokenizer_dir, options, match: str):
    with pytest.raises(DistillationError, match=match):
        Masking.of(AutoTokenizer.from_pretrained(tokenizer_dir), **options)


def test_a_tokenizer_without_mask_token_and_a_vocabulary_without_words_are_refused(tokenizer_dir):
    tokenizer = AutoTokenizer.from_pretrained(tokenizer_dir)
    tokenizer.mask_token = None
    with pytest.raises(DistillationError, match="has no mask token"):
        Masking.of(tokenizer)
    with pytest.raises(DistillationError, match="whole_word=True: this vocabulary marks neither"):
        word_beginnings({"a": 0, "b": 1})
