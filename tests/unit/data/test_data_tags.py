from __future__ import annotations

import random

import pytest
from seqeval.metrics.sequence_labeling import get_entities

from lightning_distilbert.data.tags import (
    SCHEMES,
    Entity,
    broken_at,
    detect_scheme,
    entities_of,
    labels_for,
    scheme_of,
    split_tag,
    tags_of,
)
from lightning_distilbert.errors import DistillationError

# two entities of one type side by side, one of another type beside them, one of three words, and one that ends the text
ENTITIES = [Entity("X", 1, 3), Entity("X", 3, 4), Entity("Y", 4, 5), Entity("Y", 6, 9)]
WRITTEN = {
    "iob2": "O B-X I-X B-X B-Y O B-Y I-Y I-Y",
    "iob1": "O I-X I-X B-X I-Y O I-Y I-Y I-Y",
    "iobes": "O B-X E-X S-X S-Y O B-Y I-Y E-Y",
    "bilou": "O B-X L-X U-X U-Y O B-Y I-Y L-Y",
    "io": "O I-X I-X I-X I-Y O I-Y I-Y I-Y",
}


@pytest.mark.parametrize("scheme", SCHEMES)
def test_every_scheme_writes_and_reads_the_same_entities(scheme):
    tags = tags_of(ENTITIES, 9, scheme)
    assert " ".join(tags) == WRITTEN[scheme]
    joined = [Entity("X", 1, 4), *ENTITIES[2:]]  # which IO cannot tell apart
    assert entities_of(tags) == (joined if scheme == "io" else ENTITIES)
    assert broken_at(tags, scheme) == []
    assert detect_scheme([tags]) == ("iob1" if scheme == "io" else scheme)  # which IO is too


def test_random_tags_are_read_as_seqeval_reads_them():
    generator = random.Random(0)
    tags = ["O", "B", "I", *(f"{letter}-{kind}" for letter in "BIES" for kind in ("X", "Y-Z"))]
    for _ in range(2000):
        row = generator.choices(tags, k=generator.randint(1, 9))
        assert [(kind, start, end - 1) for kind, start, end in entities_of(row)] == get_entities(row), row


@pytest.mark.parametrize(
    ("tags", "scheme", "places"),
    [
        ("O I-X I-X", "iob2", [1]),  # I without B
        ("B-Y I-X", "iob2", [1]),  # I of another type
        ("O B-X", "iob1", [1]),  # B where no entity of its type ends
        ("B-X I-X O", "iobes", [1]),  # no end
        ("B-X O", "iobes", [0]),
        ("I-X B-X", "iob1", []),
    ],
)
def test_broken_tags_are_found(tags, scheme, places):
    assert broken_at(tags.split(), scheme) == places


def test_the_scheme_is_the_one_that_is_broken_least():
    iob1 = [["I-X", "O", "I-Y", "I-Y"], ["I-X", "B-X"], ["O"]]
    assert detect_scheme(iob1) == "iob1"
    assert detect_scheme([*iob1, ["O", "B-X"]]) == "iob1"  # one mistake
    assert detect_scheme([["B-X", "I-X"], ["O", "B-Y"], ["I-Y"]]) == "iob2"
    assert detect_scheme([["O"]]) == "iob2"
    assert detect_scheme([["B-X", "E-X", "U-X"]]) == "iobes"  # of none, which is then counted as broken


def test_scheme_and_names_of_labels():
    for scheme in ("iob2", "iobes", "bilou", "io"):
        assert scheme_of(labels_for(["B", "A", "A"], scheme)) == scheme
    assert labels_for(["B", "A"], "bilou") == ["O", "B-A", "I-A", "L-A", "U-A", "B-B", "I-B", "L-B", "U-B"]
    assert labels_for(["_"]) == ["O", "B", "I"]
    assert split_tag("B-from-city.name") == ("B", "from-city.name")


@pytest.mark.parametrize("tag", ["PER", "X-PER", "b-PER", "B_PER", "B-", "OO", "O-PER", ""])
def test_an_unknown_tag_is_refused(tag):
    with pytest.raises(DistillationError, match=f"The tag {tag!r} is not known"):
        split_tag(tag)


def test_labels_without_outside_or_without_an_entity_are_refused():
    for labels in (["B-X", "I-X"], ["O"]):
        with pytest.raises(DistillationError, match="are no tags of entities"):
            scheme_of(labels)
    with pytest.raises(DistillationError, match=r"scheme=.*'iob3'.*'iob"):
        tags_of([], 1, "iob3")
