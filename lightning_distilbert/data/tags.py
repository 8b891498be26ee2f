"""Tags of words, and the entities that they stand for: IOB1, IOB2, IOBES, BILOU and IO."""

from __future__ import annotations

import functools
import re
from collections.abc import Iterable, Sequence
from typing import Literal, NamedTuple

from lightning_distilbert.errors import DistillationError, check_choice

Scheme = Literal["iob1", "iob2", "iobes", "bilou", "io"]
# in the order in which a tie between them is settled
SCHEMES: tuple[Scheme, ...] = ("iob2", "iob1", "iobes", "bilou", "io")
LETTERS: dict[Scheme, str] = {"iob2": "BI", "iob1": "BI", "iobes": "BIES", "bilou": "BILU", "io": "I"}
TAG = re.compile(r"O|([BIESLU])(?:-(.+))?", re.DOTALL)
OUTSIDE = "O"
UNTYPED = "_"  # the type of the tags B and I alone, as seqeval has it


class Entity(NamedTuple):
    """A run of words of one type.

    Attributes:
        type: The type, such as ``"PER"``.
        start: Its first word.
        end: The word after its last.
    """

    type: str
    start: int
    end: int


@functools.lru_cache(maxsize=4096)
def split_tag(tag: str) -> tuple[str, str]:
    """Part a tag into its letter and its type; L and U (of BILOU) are read as E and S.

    Args:
        tag: The tag.

    Raises:
        DistillationError: If it is no tag.

    Example:
        >>> split_tag("B-PER"), split_tag("O"), split_tag("U-from-city"), split_tag("I")
        (('B', 'PER'), ('O', ''), ('S', 'from-city'), ('I', '_'))
    """
    match = TAG.fullmatch(tag)
    if match is None:
        raise DistillationError(
            f"The tag {tag!r} is not known: a tag is O, or one of the letters B, I, E, S (or L, U), a hyphen and a "
            "type, such as B-PER."
        )
    letter = match[1] or OUTSIDE
    return {"L": "E", "U": "S"}.get(letter, letter), "" if letter == OUTSIDE else match[2] or UNTYPED


def entities_of(tags: Sequence[str]) -> list[Entity]:
    """Read the entities off the tags of a sentence, as the CoNLL script ``conlleval`` does.

    It reads tags of any scheme, and broken ones too: an entity begins wherever a tag cannot go on with the one before,
    so that an ``I-PER`` after ``O`` begins one, and an ``I-ORG`` after ``B-PER`` ends that and begins another.

    Args:
        tags: The tags, one per word.

    Returns:
        The entities in order.

    Example:
        >>> [tuple(entity) for entity in entities_of(["I-PER", "I-PER", "O", "B-LOC", "I-ORG"])]
        [('PER', 0, 2), ('LOC', 3, 4), ('ORG', 4, 5)]
    """
    found: list[Entity] = []
    open_type, begin = "", 0  # of the entity that the next word may go on with
    for place, (letter, kind) in enumerate(map(split_tag, tags)):
        if letter in "IE" and kind == open_type:
            found[-1] = Entity(kind, begin, place + 1)
        elif letter != OUTSIDE:
            begin = place
            found.append(Entity(kind, place, place + 1))
        open_type = "" if letter in "OES" else kind
    return found


def tags_of(entities: Iterable[Entity], length: int, scheme: Scheme = "iob2") -> list[str]:
    """Write entities as tags.

    Args:
        entities: The entities in order; none may overlap another.
        length: The number of words.
        scheme: ``"iob2"`` (B begins every entity), ``"iob1"`` (B begins one that follows another of its type),
            ``"iobes"`` (E ends, S stands alone), ``"bilou"`` (the same with L and U) or ``"io"`` (I alone).

    Example:
        >>> entities = [Entity("PER", 0, 2), Entity("PER", 2, 3)]
        >>> [" ".join(tags_of(entities, 3, scheme)) for scheme in ("iob2", "iob1", "iobes")]
        ['B-PER I-PER B-PER', 'I-PER I-PER B-PER', 'B-PER E-PER S-PER']
    """
    check_choice("tags_of(scheme=...)", scheme, SCHEMES)
    tags = [OUTSIDE] * length
    before: Entity | None = None
    end, single = LETTERS[scheme][2:3], LETTERS[scheme][3:]
    for entity in entities:
        letters = ["I"] * (entity.end - entity.start)
        if scheme in ("iobes", "bilou"):
            letters[0], letters[-1] = ("B", end) if len(letters) > 1 else (single, single)
        elif scheme == "iob2" or (scheme == "iob1" and before and (before.type, before.end) == entity[:2]):
            letters[0] = "B"
        tags[entity.start : entity.end] = [join_tag(letter, entity.type) for letter in letters]
        before = entity
    return tags


def join_tag(letter: str, kind: str) -> str:
    """Put a letter and a type together.

    Example:
        >>> join_tag("B", "PER"), join_tag("B", UNTYPED)
        ('B-PER', 'B')
    """
    return letter if kind == UNTYPED else f"{letter}-{kind}"


def broken_at(tags: Sequence[str], scheme: Scheme) -> list[int]:
    """Return the words at which tags break the rules of a scheme: those that it would write otherwise.

    Args:
        tags: The tags of a sentence.
        scheme: The scheme that they should follow.

    Example:
        >>> broken_at(["O", "I-PER", "I-PER"], "iob2"), broken_at(["O", "I-PER", "I-PER"], "iob1")
        ([1], [])
    """
    right = tags_of(entities_of(tags), len(tags), scheme)
    return [place for place, (tag, wanted) in enumerate(zip(tags, right, strict=True)) if tag != wanted]


def detect_scheme(sentences: Sequence[Sequence[str]]) -> Scheme:
    """Find the scheme whose rules the tags of sentences break least often.

    Args:
        sentences: Their tags.

    Returns:
        The scheme; ``"iob2"`` where that leaves a choice.

    Example:
        >>> detect_scheme([["I-PER", "B-PER"]]), detect_scheme([["B-PER", "I-PER"]]), detect_scheme([["S-PER"]])
        ('iob1', 'iob2', 'iobes')
    """
    letters = {tag[0] for tags in sentences for tag in tags} - {OUTSIDE}
    fitting = [scheme for scheme in SCHEMES if letters <= set(LETTERS[scheme])]
    if not fitting:  # letters of two schemes; IOBES has most of them
        return "iobes"
    return min(fitting, key=lambda scheme: sum(len(broken_at(tags, scheme)) for tags in sentences))


def scheme_of(labels: Iterable[str]) -> Scheme:
    """Find the scheme in which label names can be written: IOB2 where they have the letters B and I.

    Args:
        labels: The names of the labels.

    Raises:
        DistillationError: If one is no tag, or ``O`` or all others are missing.

    Example:
        >>> scheme_of(["O", "B-PER", "I-PER"]), scheme_of(["O", "I-PER"])
        ('iob2', 'io')
    """
    labels = list(labels)
    for label in labels:
        split_tag(label)
    letters = {label[0] for label in labels}
    if OUTSIDE not in letters or len(letters) < 2:
        raise DistillationError(
            f"The labels {labels} are no tags of entities: there have to be O (outside) and some like B-PER."
        )
    if letters & set("LU"):
        return "bilou"
    return "iobes" if letters & set("ES") else "iob2" if "B" in letters else "io"


def labels_for(kinds: Iterable[str], scheme: Scheme = "iob2") -> list[str]:
    """Name the labels that types of entities need.

    Args:
        kinds: The types; each counts once.
        scheme: How entities are written.

    Example:
        >>> labels_for(["PER", "LOC"])
        ['O', 'B-LOC', 'I-LOC', 'B-PER', 'I-PER']
    """
    return [OUTSIDE, *(join_tag(letter, kind) for kind in sorted(set(kinds)) for letter in LETTERS[scheme])]
