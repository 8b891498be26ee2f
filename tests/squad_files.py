"""Small files in SQuAD's format."""

from __future__ import annotations

import json
from pathlib import Path

KINDS = ("old", "new", "big", "small", "short", "long", "good", "bad")


def save_squad(folder: Path, no_answer: bool = False) -> Path:
    """Write a training and a validation file, the contexts of which are longer than a small window.

    Args:
        folder: Where to; created where it is missing.
        no_answer: Whether every other question has no answer, as in SQuAD v2.
    """
    folder.mkdir(parents=True, exist_ok=True)
    version = "v2.0" if no_answer else "v1.1"
    for split, count in (("train", 24), ("dev", 6)):
        paragraphs = []
        for row in range(count):
            before = "the tree was in the water of the city. " * (row % 3)
            answer = f"the {KINDS[row % 8]} man"
            context = f"{before}The house was made by {answer} of the city."
            found = {"text": answer, "answer_start": context.index(answer)}
            question = {"id": f"{split}-{row}", "question": "who made the house?", "answers": [found]}
            if no_answer and row % 2:
                question |= {"answers": [], "is_impossible": True}
            paragraphs.append({"context": context, "qas": [question]})
        document = {"version": version, "data": [{"title": "Houses", "paragraphs": paragraphs}]}
        (folder / f"{split}-{version}.json").write_text(json.dumps(document), encoding="utf-8")
    return folder
