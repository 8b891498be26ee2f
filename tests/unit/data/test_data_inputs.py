from __future__ import annotations

import pytest

from lightning_distilbert import DistillationError, data
from lightning_distilbert.answers import sentences_of
from lightning_distilbert.data.inputs import check_masks, checked_pairs, question_pairs, split_pairs


@pytest.mark.parametrize("name", data.__all__)
def test_every_public_name_of_the_data_package_exists(name: str):
    assert getattr(data, name).__name__ == name
    assert name in dir(data)


def test_an_unknown_name_of_the_data_package_is_an_attribute_error():
    with pytest.raises(AttributeError, match="no attribute 'TextData2'"):
        data.TextData2  # noqa: B018


@pytest.mark.parametrize(
    ("texts", "message"),
    [
        ("a", "A single text was given, 'a'"),
        (b"a", "A bytes was given"),
        (None, "A NoneType was given, None"),
        ({"text": "a"}, "A dict was given"),
        (["a", 1], "Entry 1 is"),
        ([("a", "b", "c")], "Entry 0 is"),
        (["a", ("a", "b")], "cannot be mixed"),
    ],
)
def test_what_is_no_list_of_texts_is_refused(texts, message):
    with pytest.raises(DistillationError, match=message):
        split_pairs(texts)


def test_half_a_character_is_refused_wherever_it_stands():
    half = "a \ud83d"  # the first half of an emoji, of a text that was cut off
    for texts in (["whole", half], [("a", "b"), ("a", half)]):
        with pytest.raises(DistillationError, match=r"Entry 1 holds '\\ud83d', one half of a character"):
            split_pairs(texts)
    for sentences in (["whole", half], [["whole"], ["a", "\ud83d"]]):
        with pytest.raises(DistillationError, match="Entry 1 holds"):
            sentences_of(sentences)
    assert split_pairs(["\U0001f389 caf\u00e9"])[0] == ["\U0001f389 caf\u00e9"]


def test_texts_may_come_from_any_iterable():
    assert split_pairs(text for text in ("a", "b")) == (["a", "b"], None)
    assert checked_pairs([]) == ([], [])
    with pytest.raises(DistillationError, match="'a' is a single text"):
        checked_pairs(iter(["a"]))


def test_questions_and_contexts_are_paired():
    assert question_pairs("q", "c") == [("q", "c")]
    assert question_pairs("q", ["c", "d"]) == [("q", "c"), ("q", "d")]
    assert question_pairs(["q"], ["c"]) == [("q", "c")]
    with pytest.raises(DistillationError, match="2 questions and 1 contexts"):
        question_pairs(["q", "r"], ["c"])


def test_a_mask_may_be_in_either_part_of_a_pair():
    check_masks([("a", "[M]"), ("[M]", "a")], ["a", "[M]"], ["[M]", "a"], "[M]")
    with pytest.raises(DistillationError, match=r"Entry 1 has no \[M\]"):
        check_masks([("[M]", "a"), ("a", "b")], ["[M]", "a"], ["a", "b"], "[M]")
