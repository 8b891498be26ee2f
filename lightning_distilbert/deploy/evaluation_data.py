"""The rows that an artefact is measured on: any data module's split, or a file with the task's columns."""

from __future__ import annotations

import inspect
import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np

from lightning_distilbert import data as data_modules
from lightning_distilbert._compat import LightningDataModule
from lightning_distilbert.data.encoding import Padding, encode, pad_batch
from lightning_distilbert.data.inputs import split_pairs
from lightning_distilbert.data.readers import describe
from lightning_distilbert.deploy.engines import to_arrays
from lightning_distilbert.deploy.graph import INPUTS, mask_of
from lightning_distilbert.errors import DistillationError, check_choice
from lightning_distilbert.prediction import room

# how each data module calls its columns: of texts, and of what is true of them
COLUMNS: dict[str, tuple[tuple[str, ...], str | None]] = {
    "TextClassificationData": (("text",), "label"),
    "TokenClassificationData": (("tokens",), "tags"),
    "QuestionAnsweringData": (("question", "context"), "answers"),
    "RetrievalData": (("query", "document"), None),
    "RerankingData": (("query", "document"), "label"),
    "MaskedLMData": (("text",), None),
    "TranslationData": (("text",), "target"),
}
SPLITS = {"validation": ("validate", "val_dataloader"), "test": ("test", "test_dataloader")}
CALIBRATION_ROWS = 256
Arrays = dict[str, np.ndarray]


@dataclass(frozen=True)
class Evaluation:
    """Loaders of rows with labels, and what they are called.

    Attributes:
        loaders: They are run through one after another.
        source: What the user gave, in words.
        split: The split.
    """

    loaders: list[Any]
    source: str
    split: str


def open_evaluation(
    module: Any, source: Any, split: str | None = None, reading: Mapping[str, Any] | None = None
) -> Evaluation:
    """Read and encode the rows that scores are measured on.

    Args:
        module: The `DistillationModule`.
        source: A data module; or what the task's data module reads: a file, rows, a folder with splits and so on. A
            file and rows are one split, whatever they are called.
        split: ``"validation"`` or ``"test"``; None takes the first that there is.
        reading: Options of the task's data module; ``text`` and ``label`` name columns for each task.

    Raises:
        DistillationError: If there is no such split, or a row or an option is bad.
    """
    if split is not None:
        check_choice("export(split=...)", split, tuple(SPLITS))
    if isinstance(source, LightningDataModule):
        if reading:
            raise DistillationError(f"A {type(source).__name__} knows how it is read: leave {', '.join(reading)} out.")
        data: Any = source
    else:
        one = isinstance(source, Sequence) and not isinstance(source, str)
        file = isinstance(source, (str, Path)) and Path(source).expanduser().is_file()
        if isinstance(source, (str, Path)) and (reading or {}).get("languages"):  # the name that two files share
            file = not Path(source).expanduser().is_dir()
        data = make_data(module, {split or "validation": source} if one or file else source, reading)
    before = data.trainer
    try:
        if split is None:
            has = getattr(data, "has", lambda name: name == "validation")
            attach(data, module, "validate")
            split = next((name for name in SPLITS if has(name)), "validation")
        stage, loader = SPLITS[split]
        attach(data, module, stage)
        data.prepare_data()
        data.setup(stage)
        loaders = getattr(data, loader)()
    finally:
        data.trainer = before
    loaders = list(loaders) if isinstance(loaders, (list, tuple)) else [loaders]
    if not loaders:
        raise DistillationError(f"The evaluation data {name_of(source)} have no {split} split.")
    return Evaluation(loaders, name_of(source), split)


def open_calibration(module: Any, source: Any, reading: Mapping[str, Any] | None = None) -> list[Arrays]:
    """Encode rows that show a quantiser which values a model meets; labels are not needed.

    Args:
        module: The `DistillationModule`.
        source: A file, or rows; or a list of texts, or of pairs as tuples. Take training rows: on those of the
            evaluation the ranges would fit better than on what comes later.
        reading: As in `open_evaluation`.

    Returns:
        Up to 256 rows, one in each batch, since padding would count.

    Raises:
        DistillationError: If there are no rows, or one is bad.
    """
    if isinstance(source, (list, tuple)) and source and isinstance(source[0], (str, tuple)):
        firsts, seconds = split_pairs(source[:CALIBRATION_ROWS])
        data = encode(module.tokenizer, firsts, seconds, room(module), name="calibration")
        batches: Any = [pad_batch([row], Padding.of(module.tokenizer)) for row in data[list(range(len(data)))]]
    else:
        data = make_data(module, {"predict": source}, reading)
        attach(data, module, "predict")
        data.setup("predict")
        loaders = data.predict_dataloader()
        # of queries and documents by turns, where each has a loader
        batches = itertools.chain(*zip(*loaders, strict=False)) if isinstance(loaders, list) else loaders
    rows: list[Arrays] = []
    for batch in batches:
        rows.extend(single_rows(to_arrays(batch, [name for name in INPUTS if name in batch])))
        if len(rows) >= CALIBRATION_ROWS:
            break
    if not rows:
        raise DistillationError(f"The calibration data {name_of(source)} hold no rows.")
    return rows[:CALIBRATION_ROWS]


def single_rows(batch: Arrays) -> list[Arrays]:
    """Return the rows of a batch one by one, without padding; one without a token is left out.

    Args:
        batch: Arrays of shape ``(batch, sequence)``, ``attention_mask`` among them; of translations, whose names begin
            with ``decoder_``, with a mask of their own.

    Example:
        >>> rows = single_rows({"input_ids": np.array([[5, 6], [7, 0]]), "attention_mask": np.array([[1, 1], [1, 0]])})
        >>> [row["input_ids"].tolist() for row in rows]
        [[[5, 6]], [[7]]]
    """
    real = {name: batch[mask_of(name)].astype(bool) for name in batch}
    return [
        {name: array[row : row + 1, real[name][row]] for name, array in batch.items()}
        for row, mask in enumerate(real["attention_mask"])
        if mask.any()
    ]


def make_data(module: Any, source: Any, reading: Mapping[str, Any] | None = None) -> Any:
    """Make the task's own data module.

    Args:
        module: The `DistillationModule`.
        source: What it reads.
        reading: Its options, and ``text`` and ``label``.

    Raises:
        DistillationError: If the task has none, or it has no such option.
    """
    task = module.task
    if not task.data:
        raise DistillationError(f"{type(task).__name__} has no data module of its own: pass one as evaluation=....")
    name = task.data[0]
    columns, label = COLUMNS[name]
    given = {key: value for key, value in (reading or {}).items() if value is not None}
    options: dict[str, Any] = {}
    if "text" in given:
        names = [given["text"]] if isinstance(given["text"], str) else list(given["text"])
        given.pop("text")
        if columns == ("text",) and name == "TextClassificationData":
            options["text"] = names
        elif len(names) == len(columns):
            options |= dict(zip(columns, names, strict=True))
        else:
            raise DistillationError(f"{name} reads {' and '.join(columns)}, and text names {names}.")
    if "label" in given:
        if label is None:
            raise DistillationError(f"{name} reads no column of labels: leave label={given['label']!r} out.")
        options[label] = given.pop("label")
    cls = getattr(data_modules, name)
    unknown = [key for key in given if key not in inspect.signature(cls).parameters]
    if unknown:
        raise DistillationError(f"{name} has no option {unknown[0]!r}: leave it out, or pass a data module.")
    if name == "MaskedLMData":  # an artefact gives logits over the vocabulary at all tokens: half a gigabyte for these
        options["eval_batch_size"] = 8
    return cls(source, **{"max_length": room(module), **options, **given})


def attach(data: Any, module: Any, stage: str) -> None:
    """Let a data module see the module as it does in a Trainer, for its labels and its tokenizer."""
    data.trainer = SimpleNamespace(lightning_module=module, state=SimpleNamespace(fn=stage))


def name_of(source: Any) -> str:
    """Return what data are called, without the folders above a file: a manifest travels."""
    return Path(source).name if isinstance(source, (str, Path)) else describe(source)
