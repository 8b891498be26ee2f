"""Answers to the rows of a file: what ``lightning-distilbert predict`` does."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from lightning_utilities.core.rank_zero import rank_zero_warn
from tqdm.auto import tqdm

from lightning_distilbert.data.readers import SUFFIXES, Row, iter_rows, kind_of, open_text
from lightning_distilbert.data.writers import check_output, complete, finite, write_rows
from lightning_distilbert.deploy import load_artefact
from lightning_distilbert.deploy.manifest import is_artefact
from lightning_distilbert.errors import DistillationError, check_choice
from lightning_distilbert.placing import check_writable
from lightning_distilbert.precision import auto_precision
from lightning_distilbert.saved import load
from lightning_distilbert.tasks.base import Task

ROWS = 1024  # rows that are held and answered together, each batch with those of similar length
PRECISIONS = ("bf16-mixed", "32-true")


def predict_file(
    model: str | Path,
    source: str | Path,
    output: str | Path,
    text: Sequence[str] | None = None,
    field: str = "prediction",
    columns: Sequence[str] | None = None,
    header: bool | None = None,
    delimiter: str | None = None,
    batch_size: int = 32,
    max_length: int | None = None,
    device: str | None = None,
    precision: str | None = None,
    overwrite: bool = False,
) -> int:
    """Answer the rows of a file with a saved student or an artefact, holding few of them in memory.

    The file is read twice: all of it is checked before the first row is answered.

    Args:
        model: The folder of the student, or of what `lightning_distilbert.deploy.export` made of it.
        source: The file of rows.
        output: The file to write; it appears when it is complete.
        text: The column of the text, or the two columns of a pair; None takes the task's.
        field: The name of what is added to each row.
        columns: Column names, for TSV and CSV files without a header.
        header: Whether TSV and CSV files have a header; None: unless `columns` are given.
        delimiter: The separator of text tables; None takes it from the suffix.
        batch_size: Texts in a batch.
        max_length: Tokens kept of a text at most; None is what tokenizer and student allow.
        device: Where to compute; None is a GPU where there is one.
        precision: ``"bf16-mixed"`` or ``"32-true"``; None takes `auto_precision`.
        overwrite: Whether an output that is there may be replaced.

    Returns:
        How many rows were answered.

    Raises:
        DistillationError: If an option, a file, a column or the model is bad.
    """
    for name, number in {"batch_size": batch_size, "max_length": max_length}.items():
        if number is not None and number < 1:
            raise DistillationError(f"{name}={number}: it has to be 1 or more.")
    if precision is not None:
        check_choice("precision=...", precision, PRECISIONS)
    path = check_output(output, overwrite, (".jsonl", ".ndjson", ".npy"), source)
    check_writable(path, "The answers", "--output")
    table = {"columns": columns, "header": header, "delimiter": delimiter}
    if _has_lines(Path(source).expanduser(), delimiter) and (columns or header is not None):
        raise DistillationError(
            f"{source} is read with a text on each line, so that columns and header would have no effect. If it is a "
            "table, pass its delimiter."
        )
    first = next(_rows(source, **table), None)
    if first is None:
        raise DistillationError(f"{source} holds no rows.")

    artefact = is_artefact(Path(model).expanduser())
    if artefact and (device or precision):
        raise DistillationError(
            f"{str(model)!r} is an artefact, which computes where and how it was exported to: leave out device and "
            "precision."
        )
    place = device or ("cuda" if torch.cuda.is_available() else "cpu")
    module = load_artefact(model) if artefact else load(model, place)
    vectors = path.suffix.lower() == ".npy"
    if vectors and module.task.auto_class != "AutoModel":
        raise DistillationError(
            f"The output {str(output)!r} is for vectors, and {type(module.task).__name__} gives none. Write a .jsonl."
        )
    names = _columns(module.task, text, first, source)
    _warn_of_blank_lines(source, delimiter)
    taken, mask = None if vectors else field, module.tokenizer.mask_token if _fills_masks(module.task) else None
    count = _check(_rows(source, **table), names, taken, source, _takes_words(module.task), mask)
    mixed = not artefact and (precision or auto_precision()) == "bf16-mixed"

    def answered() -> Iterator[tuple[Row, Any]]:
        done = 0
        rows = iter(tqdm(_rows(source, **table), total=count, desc="predict", unit=" rows"))
        while chunk := list(itertools.islice(rows, ROWS)):
            texts = [row[names[0]] if len(names) == 1 else tuple(row[name] for name in names) for row in chunk]
            try:
                with torch.autocast(module.device.type, torch.bfloat16, enabled=mixed):
                    answers = module.predict(texts, batch_size, max_length)
            except DistillationError as error:
                part = f"rows {done + 1} to {done + len(chunk)} (the first is entry 0)"
                raise DistillationError(f"{source}, {part}: {error}") from error
            if any(not finite(answer) for answer in answers):
                raise DistillationError(
                    f"{source}, rows {done + 1} to {done + len(chunk)}: {str(model)!r} answers with numbers that are "
                    "not finite. Its weights are damaged, or training diverged."
                )
            done += len(chunk)
            yield from zip(chunk, answers, strict=True)

    if vectors:
        _write_vectors((answer for _, answer in answered()), path, count)
    else:
        write_rows((row | {field: answer} for row, answer in answered()), path)
    return count


def _rows(source: str | Path, **table: Any) -> Iterator[Row]:
    path = Path(source).expanduser()
    if _has_lines(path, table["delimiter"]):
        with open_text(path) as file:
            yield from ({"text": line.rstrip("\r\n")} for line in file if line.strip())
    elif table["delimiter"] is None and path.is_file() and kind_of(path) not in SUFFIXES:
        raise DistillationError(
            f"{path} has the suffix {kind_of(path)!r}, of which the kind is not known. Known are .txt, with a text on "
            f"each line, and {', '.join(SUFFIXES)}; for a text table of another name pass its delimiter."
        )
    else:
        yield from iter_rows(source, **table)


def _has_lines(path: Path, delimiter: str | None) -> bool:
    """Tell whether a file has a text on each line."""
    return delimiter is None and kind_of(path) == ".txt" and path.is_file()


def _warn_of_blank_lines(source: str | Path, delimiter: str | None) -> None:
    path = Path(source).expanduser()
    if not _has_lines(path, delimiter):
        return
    with open_text(path) as file:
        blank = [number for number, line in enumerate(file, start=1) if not line.strip()]
    if blank:
        rank_zero_warn(
            f"{source}: {len(blank)} blank {'line is' if len(blank) == 1 else 'lines are'} left out, the first is line "
            f"{blank[0]}: answers stand at other places than their lines."
        )


def _takes_words(task: Task) -> bool:
    """Tell whether a text may be a list of words."""
    return task.auto_class == "AutoModelForTokenClassification"


def _columns(task: Task, text: Sequence[str] | None, first: Row, source: str | Path) -> list[str]:
    names = list(text or task.fields)
    if _takes_words(task) and not text and "text" not in first and "tokens" in first:
        names = ["tokens"]
    if len(names) > 1 and _takes_words(task):
        raise DistillationError(f"--text names {names}, and {type(task).__name__} reads one text: name its column.")
    if len(names) > 2:
        raise DistillationError(f"--text names {len(names)} columns, {names}: give one, or the two of a pair.")
    missing = [name for name in names if name not in first]
    if missing:
        hint = "" if text else f" {type(task).__name__} reads {' and '.join(names)}: name others with --text."
        raise DistillationError(f"{source} has no column {missing[0]!r}. Its columns are {list(first)}.{hint}")
    return names


def _fills_masks(task: Task) -> bool:
    """Tell whether each text has to hold a mask token."""
    return task.auto_class == "AutoModelForMaskedLM"


def _check(
    rows: Iterator[Row], names: Sequence[str], field: str | None, source: str | Path, lists: bool, mask: str | None
) -> int:
    """Count the rows, and refuse the first that cannot be answered."""
    number = 0
    for number, row in enumerate(tqdm(rows, desc="check", unit=" rows", delay=1, leave=False), start=1):
        if field in row:
            raise DistillationError(
                f"{source}, row {number} has a field {field!r} already, which would be lost. Name another with --field."
            )
        for name in names:
            value = row.get(name)
            words = lists and isinstance(value, list) and all(isinstance(word, str) for word in value)
            if not (isinstance(value, str) or words):
                raise DistillationError(
                    f"{source}, row {number}: {name!r} is {str(value)[:60]!r}, a {type(value).__name__} and no text. "
                    "Mend or drop that row."
                )
        if mask is not None and not any(mask in row[name] for name in names):
            raise DistillationError(f"{source}, row {number}: there is no {mask} in it to be filled in.")
    return number


def _write_vectors(vectors: Iterator[list[float]], path: Path, count: int) -> None:
    first = next(vectors)
    with complete(path) as partial:
        array = np.lib.format.open_memmap(partial, mode="w+", dtype=np.float32, shape=(count, len(first)))
        for index, vector in enumerate(itertools.chain([first], vectors)):
            array[index] = vector
        array.flush()
