"""Windows of long contexts: they hold the whole text, and every answer is found at its characters."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from lightning_distilbert.data import context_windows as module
from lightning_distilbert.data.encoding import Padding
from lightning_distilbert.data.windows import ByExample, encode_windows, label_windows, pad_windows
from lightning_distilbert.errors import DistillationError
from lightning_distilbert.tasks.question_answering import trim
from tests.tokenizers_of_kinds import make_tokenizers

TOKENIZERS = make_tokenizers()
BERT = TOKENIZERS["bert-uncased"]
CONTEXTS = [
    "the tower was built in the city",
    "  \t the caf\u00e9 in T\u014dky\u014d \u2014 na\u00efve r\u00e9sum\u00e9 ",
    "cafe\u0301 re\u0301sume\u0301, decomposed",
    "who \U0001f389\U0001f389 is \U0001f468\u200d\U0001f469\u200d\U0001f467 at \u2764\ufe0f the city?",
    "\u6771\u4eac\u30bf\u30ef\u30fc\u306f the tower \u3067\u3059\u3002",
    "\u0130stanbul \u00df Stra\u00dfe\u00a0the city\u3000of \ufb01sh",
    "x",
    "",
]
QUESTION = "who is at the tower?"


def words_of(text):
    """Begin and end of every stretch without white space."""
    found, place = [], 0
    for word in text.split():
        place = text.index(word, place)
        found.append((place, place + len(word)))
        place += len(word)
    return found


@pytest.mark.parametrize("name", TOKENIZERS)
@pytest.mark.parametrize("length", [64, 34])
def test_every_word_of_every_text_is_found_at_its_characters(name, length):
    tokenizer = TOKENIZERS[name]
    tried = 0
    for context in CONTEXTS:
        for begin, end in words_of(context):
            windows = encode_windows(tokenizer, [QUESTION], [context], length, doc_stride=2)
            starts, ends, lost = label_windows(windows, np.array([[begin, end]]))
            if lost:  # an answer longer than what windows share, or one that the tokenizer drops
                assert (starts == -100).all()
                assert length == 34
                continue
            inside = np.flatnonzero(starts > 0)
            assert len(inside)
            for row in inside:
                offsets = windows[int(row)]["offsets"]
                first, last = trim(context, int(offsets[starts[row], 0]), int(offsets[ends[row], 1]))
                assert context[first:last] == context[begin:end]
                tried += 1
            others = np.setdiff1d(np.arange(len(windows)), inside)
            assert (starts[others] == 0).all()
            assert (ends[others] == 0).all()
    assert tried > 20


@pytest.mark.parametrize("name", TOKENIZERS)
def test_windows_overlap_and_hold_all_tokens_of_the_context(name):
    tokenizer, context = TOKENIZERS[name], " ".join(f"city {i} of the tower" for i in range(40))
    windows = encode_windows(tokenizer, [QUESTION, QUESTION], [context, "the city"], 48, doc_stride=7)
    whole = tokenizer(QUESTION, context, truncation=False).encodings[0]
    expected = [whole.ids[i] for i, side in enumerate(whole.sequence_ids) if side == 1]
    assert windows.extras["example"].tolist() == [0] * (len(windows) - 1) + [1]
    assert len(windows) > 5
    assert windows.lengths.max() <= 48
    joined: list[int] = []
    for row in range(len(windows) - 1):
        begin, end = windows.extras["context_tokens"][row]
        ids = windows[row]["input_ids"]
        assert tokenizer.decode(ids[:begin]) == tokenizer.decode(whole.ids[:begin])
        part = ids[begin:end].tolist()
        if joined:
            assert joined[-7:] == part[:7]
            part = part[7:]
        joined += part
    assert joined == expected


def test_the_stride_and_the_length_change_the_windows():
    context = " ".join(["city"] * 100)
    counts = [len(encode_windows(BERT, [QUESTION], [context], length, stride)) for length, stride in
              ((40, 4), (40, 20), (60, 4))]  # fmt: skip
    assert counts[1] > counts[0] > counts[2]


def test_a_long_question_is_cut_with_a_warning():
    with pytest.warns(UserWarning, match="1 questions of more than 5 tokens were cut"):
        windows = encode_windows(BERT, ["who is at the tower built", "who"], ["city", "city"], 64, 8, 5)
    texts = [BERT.decode(windows[row]["input_ids"]) for row in (0, 1)]
    assert texts == ["[CLS] who is at the tower [SEP] city [SEP]", "[CLS] who [SEP] city [SEP]"]


@pytest.mark.parametrize("limit", [3, 4, 5, 8])
def test_a_question_is_cut_between_characters(limit: int):
    tokenizer = TOKENIZERS["roberta"]  # an emoji is four tokens of bytes
    question, room = "\U0001f9a9" * 9, 6
    length = tokenizer.num_special_tokens_to_add(pair=True) + 4 * (limit // 4) + room
    with pytest.warns(UserWarning, match="1 questions of more than"):
        windows = encode_windows(tokenizer, [question], ["the city"], length, 2, limit)
    asked = [
        tokenizer.decode(row["input_ids"]).count("\U0001f9a9") for row in map(windows.__getitem__, range(len(windows)))
    ]
    assert set(asked) == {limit // 4}


def test_how_a_text_is_read_does_not_depend_on_its_company():
    asked = [("who", "city tower " * 9), ("who is at the tower built in the city", "city " * 30), ("who", "city")]
    options = {"max_length": 24, "doc_stride": 18, "shrink": True}
    together = encode_windows(BERT, *map(list, zip(*asked, strict=True)), **options)
    alone = [encode_windows(BERT, [question], [context], **options) for question, context in asked]
    assert len(together) == sum(map(len, alone)) > len(asked)
    rows = [together[row]["input_ids"].tolist() for row in range(len(together))]
    assert rows == [one[row]["input_ids"].tolist() for one in alone for row in range(len(one))]


def test_a_window_without_room_is_refused_and_the_question_named():
    questions, contexts = ["who", "who is at the tower built"], ["city", "city " * 8]
    with pytest.raises(DistillationError, match=r"dev, row 2: .*max_length=15 has room for 6 .*doc_stride=6"):
        encode_windows(BERT, questions, contexts, 15, doc_stride=6, name="dev")
    assert len(encode_windows(BERT, questions, contexts, 15, doc_stride=5)) == 4
    with pytest.raises(DistillationError, match="room for 0"):
        encode_windows(BERT, questions[1:], [""], 9, doc_stride=0)


@pytest.mark.parametrize("name", TOKENIZERS)
def test_a_context_that_fits_needs_no_room_for_more(name):
    tokenizer = TOKENIZERS[name]
    length = len(tokenizer("who", "the city")["input_ids"])
    windows = encode_windows(tokenizer, ["who"], ["the city"], length, doc_stride=128)
    assert windows.lengths.tolist() == [length]
    with pytest.raises(DistillationError, match="row 1: beside its question"):
        encode_windows(tokenizer, ["who"], ["the city"], length - 1, doc_stride=128)


def test_a_tokenizer_without_places_is_refused():
    class Slow:
        is_fast = False

    with pytest.raises(DistillationError, match="A Slow does not tell where"):
        encode_windows(Slow(), ["who"], ["city"])


def test_an_empty_context_and_no_questions_at_all():
    windows = encode_windows(BERT, ["who"], [""], 64, 8)
    assert windows.extras["context_tokens"].tolist() == [[4, 4]]
    starts, ends, lost = label_windows(windows, np.array([[0, 0]]))
    assert (starts.tolist(), ends.tolist(), lost) == ([0], [0], [])
    assert len(encode_windows(BERT, [], [], 64, 8)) == 0


def test_a_context_of_a_hundred_thousand_characters():
    context = "the city of the tower was built " * 3200
    place = context.index("tower", 70_000)
    windows = encode_windows(BERT, [QUESTION], [context], 64, 16)
    assert len(context) > 100_000
    starts, ends, lost = label_windows(windows, np.array([[place, place + 5]]))
    assert not lost
    for row in np.flatnonzero(starts > 0):
        offsets = windows[int(row)]["offsets"]
        assert (offsets[starts[row], 0], offsets[ends[row], 1]) == (place, place + 5)


def test_texts_are_tokenised_in_parts_with_the_same_result(monkeypatch):
    contexts = [f"the city {i} " * (1 + 9 * (i % 4)) for i in range(20)]
    arguments = (BERT, [f"who {i}" for i in range(20)], contexts, 32, 8)
    whole = encode_windows(*arguments)
    for name, value in (("CHUNK", 3), ("CHUNK_CHARACTERS", 100)):
        monkeypatch.setattr(module, name, value)
        parts = encode_windows(*arguments)
        assert len(parts) == len(whole)
        for row in range(len(whole)):
            for key, value_there in whole[row].items():
                assert np.array_equal(parts[row][key], value_there), key


def test_labels_none_and_no_answer_and_answers_that_fit_no_window():
    context = " ".join(["city"] * 60)
    spans = np.array([[-1, -1], [0, 0], [0, len(context)], [0, 4]])
    windows = encode_windows(BERT, [QUESTION] * 4, [context] * 4, 32, 8)
    starts, ends, lost = label_windows(windows, spans)
    example = windows.extras["example"]
    assert lost == [2]
    for row, expected in ((0, -100), (1, 0), (2, -100)):
        assert (starts[example == row] == expected).all()
        assert (ends[example == row] == expected).all()
    assert (starts[example == 3] > 0).tolist() == [True] + [False] * (int((example == 3).sum()) - 1)


@pytest.mark.parametrize("name", ["bert-uncased", "roberta-left"])
@pytest.mark.parametrize("multiple_of", [None, 16])
def test_batches_tell_where_answers_may_start_and_end(name, multiple_of):
    tokenizer = TOKENIZERS[name]
    contexts = ["the city of the tower was built in the city", "the city", ""]
    windows = encode_windows(tokenizer, [QUESTION] * 3, contexts, 64, 8)
    starts, ends, _ = label_windows(windows, np.array([[4, 21], [-1, -1], [0, 0]]))
    windows.extras |= {"start_positions": starts, "end_positions": ends}
    windows.answers = [["city of the tower"], None, []]
    batch = pad_windows(windows[[0, 1, 2]], Padding.of(tokenizer), multiple_of)
    if multiple_of:
        assert batch["input_ids"].shape[1] % 16 == 0
    assert batch["span_mask"].shape == batch["input_ids"].shape
    ids, mask, offsets = batch["input_ids"], batch["span_mask"], batch["offsets"]
    for row, context in enumerate(contexts):
        alone = tokenizer(context, add_special_tokens=False)["input_ids"]
        places = mask[row].nonzero().flatten()
        assert ids[row, places].tolist() == [tokenizer.cls_token_id, *alone]
        assert batch["attention_mask"][row, places].all()
        assert torch.equal(offsets[row, places[1:]].clamp(max=len(context)), offsets[row, places[1:]])
    first, last = int(batch["start_positions"][0]), int(batch["end_positions"][0])
    assert contexts[0][offsets[0, first, 0] : offsets[0, last, 1]] == "city of the tower"
    assert batch["start_positions"][1] == -100
    assert ids[2, batch["start_positions"][2]] == tokenizer.cls_token_id
    assert batch["context"] == contexts
    assert batch["answers"] == [["city of the tower"], None, []]
    assert batch["example"].tolist() == [0, 1, 2]


def test_windows_of_a_question_come_together():
    contexts = ["city " * 60, "city", "tower " * 40]
    windows = encode_windows(BERT, [QUESTION] * 3, contexts, 32, 8)
    grouped = ByExample(windows)
    assert len(grouped) == 3
    assert [sorted({int(row["example"]) for row in grouped[i]}) for i in range(3)] == [[0], [1], [2]]
    assert sum(len(grouped[i]) for i in range(3)) == len(windows)
    batch = pad_windows([grouped[1], grouped[2]], Padding.of(BERT))
    assert batch["example"].tolist() == [1] + [2] * len(grouped[2])
    assert len(ByExample(encode_windows(BERT, [], [], 32, 8))) == 0
