"""Two data sets of requests as they are published: intents with out-of-scope (CLINC150), intents and slots (ATIS)."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from lightning_distilbert.data.readers import Row, open_text
from lightning_distilbert.errors import DistillationError

CLINC_SPLITS = {"train": "train", "validation": "val", "test": "test"}
OUT_OF_SCOPE = "oos"


def read_clinc150(path: str | Path) -> dict[str, list[Row]]:
    """Read CLINC150 (Larson et al. 2019): its intents, and the texts out of scope among them with the label ``oos``.

    Args:
        path: ``data_full.json``, or another file of that layout, plain or gzipped.

    Returns:
        The rows of ``train``, ``validation`` and ``test``, each with ``text`` and ``label``: what
        `TextClassificationData` takes as its source. Texts out of scope come last.

    Raises:
        DistillationError: If there is no such file, or it is of another layout.

    Example:
        >>> import tempfile
        >>> path = Path(tempfile.mkdtemp()) / "data.json"
        >>> pairs = {"train": [["what is my balance", "balance"]], "oos_train": [["who won", "oos"]]}
        >>> _ = path.write_text(json.dumps(pairs | {f"{a}{b}": [] for a in ("", "oos_") for b in ("val", "test")}))
        >>> read_clinc150(path)["train"]
        [{'text': 'what is my balance', 'label': 'balance'}, {'text': 'who won', 'label': 'oos'}]
    """
    path = _existing(path)
    try:
        with open_text(path) as file:
            content = json.load(file)
    except ValueError as error:
        raise DistillationError(f"{path} is no JSON: {error}.") from error
    splits = {split: (name, f"{OUT_OF_SCOPE}_{name}") for split, name in CLINC_SPLITS.items()}
    missing = [
        name for names in splits.values() for name in names if not isinstance(content, dict) or name not in content
    ]
    if missing:
        raise DistillationError(f"{path} has no {', '.join(missing)}: it is not of the layout of CLINC150.")
    return {
        split: [_pair(pair, path, name, number) for name in names for number, pair in enumerate(content[name], start=1)]
        for split, names in splits.items()
    }


def _pair(pair: Any, path: Path, name: str, number: int) -> Row:
    if not (isinstance(pair, list) and len(pair) == 2 and all(isinstance(part, str) for part in pair)):
        raise DistillationError(f"{path}, {name}, entry {number}: {str(pair)[:60]} is no pair of a text and its label.")
    return {"text": pair[0], "label": pair[1]}


def read_atis(path: str | Path) -> list[Row]:
    r"""Read ATIS in the form of ``atis.train.w-intent.iob``: a request a line, with its slots and its intent.

    A line holds the words between ``BOS`` and ``EOS``, a tab, and a tag for each of them but the last, in whose place
    stands the intent.

    Args:
        path: The file, plain or gzipped.

    Returns:
        For each request its ``text``, ``tokens`` and ``tags``, and its intent as ``label``: rows for
        `TokenClassificationData` and for `TextClassificationData`.

    Raises:
        DistillationError: If there is no such file, or a line is of another form.

    Example:
        >>> import tempfile
        >>> path = Path(tempfile.mkdtemp()) / "atis.iob"
        >>> _ = path.write_text("BOS to boston EOS\tO O B-toloc atis_flight\n")
        >>> read_atis(path)
        [{'text': 'to boston', 'tokens': ['to', 'boston'], 'tags': ['O', 'B-toloc'], 'label': 'atis_flight'}]
    """
    path = _existing(path)
    rows: list[Row] = []
    with open_text(path) as file:
        for number, line in enumerate(file, start=1):
            if not line.strip():
                continue
            words, tags = (part.split() for part in [*line.split("\t"), ""][:2])
            if words[:1] != ["BOS"] or words[-1:] != ["EOS"] or len(words) != len(tags) or len(words) < 3:
                raise DistillationError(
                    f"{path}, line {number}: {line.strip()[:60]!r} is not 'BOS words EOS', a tab, and as many tags, "
                    "the last of which is the intent."
                )
            tokens = words[1:-1]
            rows.append({"text": " ".join(tokens), "tokens": tokens, "tags": tags[1:-1], "label": tags[-1]})
    if not rows:
        raise DistillationError(f"{path} holds no request.")
    return rows


def _existing(path: str | Path) -> Path:
    path = Path(path).expanduser()
    if not path.is_file():
        raise DistillationError(f"There is no file {str(path)!r} (working folder: {Path.cwd()}).")
    return path
