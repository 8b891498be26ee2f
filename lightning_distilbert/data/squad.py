"""Questions, contexts and answers: SQuAD's JSON, or rows of any source in the layout of SQuAD or of `datasets`."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from lightning_distilbert.data.readers import SUFFIXES, Row, kind_of, open_text, parse_json, read_rows
from lightning_distilbert.data.sources import open_splits, split_name
from lightning_distilbert.errors import DistillationError

Answer = tuple[str, int]


def open_question_splits(source: Any) -> dict[str, Any]:
    """Find the splits of a source, as `open_splits` does, but in a folder also ``train-v1.1.json``, ``dev-v2.0.json``.

    Args:
        source: As for `open_splits`.

    Returns:
        A mapping from split to what `read_questions` takes.

    Raises:
        DistillationError: If there is nothing, or a folder has more than one file for a split.

    Example:
        >>> open_question_splits({"dev": [("who?", "me")]})
        {'validation': [('who?', 'me')]}
    """
    folder = Path(source).expanduser() if isinstance(source, (str, Path)) else None
    if folder is None or not folder.is_dir():
        return open_splits(source)
    found: dict[str, Path] = {}
    for path in sorted(folder.iterdir()):
        split = split_name(re.split(r"[-_.]", path.name)[0])
        if split is None or not path.is_file() or kind_of(path) not in SUFFIXES:
            continue
        if split in found:
            raise DistillationError(
                f"{folder} has more than one file for {split!r}: {found[split].name}, {path.name}. Pass a mapping from "
                "split to file instead of the folder."
            )
        found[split] = path
    return open_splits(found or source)  # which says what is wrong with a folder without any


def read_questions(source: Any) -> list[Row]:
    """Read the questions of one split.

    Args:
        source: A JSON file of SQuAD v1.1 or v2; what `read_rows` takes; or a list of ``(question, context)``.

    Returns:
        One dict per question. Those of SQuAD's JSON hold all fields of the question (``id``, ``question``, ``answers``
        and others that the file has) and ``context`` and ``title``.

    Raises:
        DistillationError: If the file cannot be read, or a field is missing.

    Example:
        >>> read_questions([("who?", "me")])
        [{'question': 'who?', 'context': 'me'}]
    """
    if isinstance(source, (str, Path)):
        path = Path(source).expanduser()
        if path.is_file() and kind_of(path) == ".json":
            document = _whole(path)
            if isinstance(document, dict) and "data" in document:
                return flatten_squad(document, str(path))
    elif isinstance(source, Sequence) and source and isinstance(source[0], (tuple, list)):
        return [_pair(pair, number) for number, pair in enumerate(source, start=1)]
    return read_rows(source)


def _whole(path: Path) -> Any:
    """Return the one JSON value of a file, or None if it holds more than one (lines) or none."""
    with open_text(path) as file:
        text = file.read()
    try:
        return parse_json(text, path, 1)
    except DistillationError as error:
        if isinstance(error.__cause__, json.JSONDecodeError):
            return None  # `read_rows` takes lines, and names the one that is wrong
        raise


def _pair(pair: Any, number: int) -> Row:
    if not isinstance(pair, (tuple, list)) or len(pair) != 2:
        raise DistillationError(f"Entry {number} is {pair!r}: it has to be a pair of a question and its context.")
    return {"question": pair[0], "context": pair[1]}


def flatten_squad(document: Mapping[str, Any], where: str) -> list[Row]:
    """Turn SQuAD's tree of articles, paragraphs and questions into rows.

    Args:
        document: The tree, with ``data`` at its root.
        where: What to call it in an error.

    Returns:
        One dict per question.

    Raises:
        DistillationError: If a field is missing or of another type, or there is no question.

    Example:
        >>> question = {"id": "1", "question": "who?", "answers": [{"text": "me", "answer_start": 3}]}
        >>> flatten_squad({"data": [{"paragraphs": [{"context": "to me", "qas": [question]}]}]}, "here")[0]["context"]
        'to me'
    """
    rows: list[Row] = []
    for a, article in enumerate(_field(document, "data", list, where)):
        place = f"{where}, data[{a}]"
        for p, paragraph in enumerate(_field(article, "paragraphs", list, place)):
            inner = f"{place}.paragraphs[{p}]"
            context = _field(paragraph, "context", str, inner)
            for q, question in enumerate(_field(paragraph, "qas", list, inner)):
                _field(question, "question", str, f"{inner}.qas[{q}]")
                rows.append({"title": article.get("title"), "context": context, **question})
    if not rows:
        raise DistillationError(f"{where} holds no questions. Give it at least one, or leave this split out.")
    return rows


def _field(value: Any, name: str, kind: type, where: str) -> Any:
    found = value.get(name) if isinstance(value, Mapping) else None
    if not isinstance(found, kind):
        raise DistillationError(
            f"{where}: {name!r} should be a {kind.__name__} and is a {type(found).__name__}. SQuAD's JSON is "
            '{"data": [{"paragraphs": [{"context": ..., "qas": [{"question": ..., "answers": [...]}]}]}]}.'
        )
    return found


def parse_answers(value: Any, where: str) -> list[Answer] | None:
    """Read the answers of one question.

    Args:
        value: SQuAD's ``[{"text": ..., "answer_start": ...}]``, or ``{"text": [...], "answer_start": [...]}`` as
            `datasets` has it. An empty list says that the context does not answer the question; None says nothing.
        where: What to call it in an error.

    Returns:
        Text and place of each answer, or None.

    Raises:
        DistillationError: If a text or a place is missing or of another type.

    Example:
        >>> parse_answers({"text": ["me"], "answer_start": [3]}, "here")
        [('me', 3)]
    """
    if value is None:
        return None
    if isinstance(value, Mapping):
        columns: list[Any] = [value.get(name) for name in ("text", "answer_start")]
        if not all(isinstance(part, Sequence) and not isinstance(part, str) for part in columns):
            raise DistillationError(f"{where}: answers={value!r} has to hold the lists 'text' and 'answer_start'.")
        if len(columns[0]) != len(columns[1]):
            raise DistillationError(f"{where}: answers={value!r} has not as many texts as places.")
        pairs = list(zip(*columns, strict=True))
    elif isinstance(value, Sequence) and not isinstance(value, str):
        pairs = [
            (item.get("text"), item.get("answer_start")) if isinstance(item, Mapping) else (item, None)
            for item in value
        ]
    else:
        raise DistillationError(f"{where}: answers={value!r} is no list of answers.")
    for text, start in pairs:
        if not isinstance(text, str) or not isinstance(start, int) or isinstance(start, bool):
            raise DistillationError(
                f"{where}: the answer {text!r} at {start!r} has to be a 'text' and its 'answer_start', the number of "
                "characters before it in the context."
            )
    return pairs


def find_answer(answers: Sequence[Answer], context: str) -> tuple[int, int] | None:
    """Return begin and end, in characters, of the first answer that stands where it says; None if none does.

    White space around an answer is left out: some tokenizers count it to the word after it.

    Example:
        >>> find_answer([("you", 0), ("me ", 3)], "to me or")
        (3, 5)
    """
    for text, start in answers:
        if text.strip() and start >= 0 and context.startswith(text, start):
            begin = start + len(text) - len(text.lstrip())
            return begin, begin + len(text.strip())
    return None
