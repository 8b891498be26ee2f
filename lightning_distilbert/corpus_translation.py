"""Translations of a whole corpus by a teacher, for students to train on: sequence-level distillation."""

from __future__ import annotations

import hashlib
import itertools
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from tqdm.auto import tqdm

from lightning_distilbert.data.readers import SUFFIXES, Row, iter_rows, kind_of
from lightning_distilbert.data.text_files import TextFile
from lightning_distilbert.data.writers import check_output
from lightning_distilbert.errors import DistillationError, check_choice
from lightning_distilbert.placing import check_writable
from lightning_distilbert.precision import auto_precision
from lightning_distilbert.saved import load

PRECISIONS = ("bf16-mixed", "32-true")


def translate_corpus(
    model: str | Path,
    source: str | Path,
    output: str | Path,
    text: str = "source",
    num_beams: int | None = None,
    length_penalty: float | None = None,
    target_length: int | None = None,
    batch_size: int = 32,
    max_length: int | None = None,
    rows: int = 1024,
    device: str | None = None,
    precision: str | None = None,
    overwrite: bool = False,
) -> int:
    """Write what a teacher makes of the texts of a corpus, as rows of ``source`` and ``target`` to train a student on.

    Students learn more from a teacher's translations than from people's, which are freer (Kim and Rush, 2016). It is
    done once: the rows are written beside the output as they come, an interrupted run goes on where it was, and the
    output appears when it is complete. A run with other options or another model starts anew.

    Args:
        model: The folder of the teacher: a saved student of `Translation`, or Marian's.
        source: The texts: a file with one in each line (of any name, also ``.gz`` and ``.zst``), or of rows.
        output: The file to write, ``.jsonl``.
        text: The column of the text, in a file of rows.
        num_beams: Translations that the search holds at a time; None takes the task's.
        length_penalty: As in `Translation`; None takes the task's.
        target_length: Tokens of a translation at most; None takes the task's.
        batch_size: Texts in a batch.
        max_length: Tokens kept of a text at most; None is what tokenizer and model allow.
        rows: Texts that are held and translated together, each batch with those of similar length.
        device: Where to compute; None is a GPU where there is one.
        precision: ``"bf16-mixed"`` or ``"32-true"``; None takes `auto_precision`.
        overwrite: Whether an output that is there may be replaced.

    Returns:
        How many texts were translated. Blank ones are left out.

    Raises:
        DistillationError: If an option, a file or the model is bad, or the model does not translate.
    """
    sizes = {"num_beams": num_beams, "target_length": target_length, "batch_size": batch_size}
    for name, number in {**sizes, "max_length": max_length, "rows": rows}.items():
        if number is not None and number < 1:
            raise DistillationError(f"{name}={number}: it has to be 1 or more.")
    if precision is not None:
        check_choice("precision=...", precision, PRECISIONS)
    path = check_output(output, overwrite, (".jsonl", ".ndjson"), source)
    check_writable(path, "The translations", "--output")
    count, digest = _count(source, text)

    module = load(model, device or ("cuda" if torch.cuda.is_available() else "cpu"))
    task = module.task
    if task.auto_class != "AutoModelForSeq2SeqLM":
        raise DistillationError(
            f"{str(model)!r} is a student of {type(task).__name__}, which does not translate. Give the folder of a "
            "student of Translation."
        )
    options = {"num_beams": num_beams, "length_penalty": length_penalty, "max_length": target_length}
    for name, value in options.items():
        if value is not None:
            setattr(task, name, value)
    searched = {name: getattr(task, name) for name in options}
    made_by = {"texts": digest, "model": _fingerprint(module), "rows": rows, "batch_size": batch_size}
    made_by |= {"max_length": max_length, "search": searched, "precision": precision or auto_precision()}

    partial, plan = (path.with_name(f".{path.name}.{ending}") for ending in ("partial", "plan"))
    path.parent.mkdir(parents=True, exist_ok=True)
    done = _resume(partial, plan, made_by)
    mixed = made_by["precision"] == "bf16-mixed"
    corpus = itertools.islice(_texts(source, text), done, None)
    with (
        partial.open("a", encoding="utf-8", newline="\n") as file,
        tqdm(total=count, initial=done, desc="translate", unit=" texts") as bar,
    ):
        while chunk := list(itertools.islice(corpus, rows)):
            with torch.autocast(module.device.type, torch.bfloat16, enabled=mixed):
                found = module.predict(chunk, batch_size, max_length)
            for pair in zip(chunk, found, strict=True):
                file.write(json.dumps(dict(zip(("source", "target"), pair, strict=True)), ensure_ascii=False) + "\n")
            file.flush()
            bar.update(len(chunk))
    partial.replace(path)
    plan.unlink(missing_ok=True)
    return count


def _texts(source: str | Path, name: str) -> Iterator[str]:
    """Yield the texts of a corpus that are not blank."""
    path = Path(source).expanduser()
    if not path.is_file():
        raise DistillationError(f"There is no file {str(path)!r} (working folder: {Path.cwd()}).")
    if kind_of(path) not in SUFFIXES:
        yield from (line for line in TextFile(path, name).texts() if line.strip())
        return
    for number, row in enumerate(iter_rows(path), start=1):
        value = _value(row, name, path, number)
        if value.strip():
            yield value


def _value(row: Row, name: str, path: Path, number: int) -> str:
    value = row.get(name)
    if name not in row:
        raise DistillationError(
            f"{path}, row {number}: there is no column {name!r}, only {list(row)}. Name it: --text."
        )
    if not isinstance(value, str):
        raise DistillationError(
            f"{path}, row {number}: {name!r} is {str(value)[:60]!r}, a {type(value).__name__} and no text. Mend or "
            "drop that row."
        )
    return value


def _count(source: str | Path, name: str) -> tuple[int, str]:
    """Read all texts before the first is translated, and return their number and what tells them from others."""
    count, digest = 0, hashlib.sha256()
    for text in tqdm(_texts(source, name), desc="check", unit=" texts", delay=1, leave=False):
        digest.update(text.encode() + b"\n")
        count += 1
    if not count:
        raise DistillationError(f"{source} holds no text.")
    return count, digest.hexdigest()


def _fingerprint(module: Any) -> str:
    """Return what tells the weights of a model from others."""
    digest = hashlib.sha256()
    for name, value in sorted(module.student.state_dict().items()):
        digest.update(name.encode())
        digest.update(value.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def _resume(partial: Path, plan: Path, made_by: dict[str, Any]) -> int:
    """Return how many texts an interrupted run has translated, less a line that was not written to its end."""
    try:
        known = json.loads(plan.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        known = None
    if known != made_by or not partial.is_file():
        partial.write_bytes(b"")
        new = plan.with_suffix(".new")
        new.write_text(json.dumps(made_by), encoding="utf-8")
        new.replace(plan)
        return 0
    content = partial.read_bytes()
    whole = content[: content.rfind(b"\n") + 1]
    # each batch holds texts of one group, so that a run goes on as it would have gone on
    lines = whole.count(b"\n")
    kept = lines - lines % int(made_by["rows"])
    end = 0
    for _ in range(kept):
        end = whole.index(b"\n", end) + 1
    with partial.open("r+b") as file:
        file.truncate(end)
    return kept
