"""What a comparison found: read, written, and shown as text, Markdown and a page."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lightning_distilbert.data.writers import complete
from lightning_distilbert.errors import DistillationError
from lightning_distilbert.placing import check_writable, is_disk_error
from lightning_distilbert.report import comparison_page, comparison_tables
from lightning_distilbert.report.bootstrap import Difference, Interval

VERSION = 1
FILE = "comparison.json"
FILES = (FILE, "comparison.md", "comparison.html")


@dataclass(frozen=True)
class Measured:
    """What was measured of one model.

    Attributes:
        name: What it is called.
        folder: The name of its folder.
        format: ``"transformers"``, or that of an artefact, such as ``"onnx-int8"``.
        parameters: The number of its parameters.
        size_mb: The megabytes of its weights.
        cold_start_s: Seconds from the start of a process to its first answer; None if that was not measured.
        cold_start_parts: How these are made up: ``python``, ``import``, ``load`` and ``answer``.
        peak_memory_mb: The most memory that this process held; None if that was not measured.
        score: The metric with its interval.
        difference: The difference to the reference on the same rows; None of the reference itself.
        retention: The share of the reference's score; None where there is none.
        scores: All metrics of the task; None where one is not defined.
        latency_ms: For each length ``p50``, ``p95`` and ``p99`` of a single text; a length that it does not read is
            missing.
        throughput: Texts per second in batches; None where it does not read texts of that length.
    """

    name: str
    folder: str
    format: str
    parameters: int
    size_mb: float
    cold_start_s: float | None
    cold_start_parts: dict[str, float]
    peak_memory_mb: float | None
    score: Interval
    difference: Difference | None
    retention: float | None
    scores: dict[str, float | None]
    latency_ms: dict[int, dict[str, float]]
    throughput: float | None


@dataclass(frozen=True)
class Comparison:
    """Models of one task, measured on the same rows and the same machine in one run.

    Attributes:
        task: The name of the task's class.
        metric: The metric.
        mode: ``"max"`` if a higher value of it is better, else ``"min"``.
        rows: How many rows were scored.
        unit: What a row is, such as ``"texts"`` or ``"queries"``.
        evaluation: What the rows are called.
        split: Their split.
        reference: The name of the model to which the others are compared.
        confidence: The share of the intervals.
        resamples: How often the rows were drawn anew.
        seed: The seed of the draws.
        lengths: The lengths that were timed, in tokens.
        main_length: The one that stands for all in a table.
        batch_size: Texts in a batch, for the throughput.
        repeats: How often each length was timed.
        starts: How often each model was started in a process of its own.
        threads: Threads of one call.
        machine: The machine, in words by name.
        versions: The versions of packages.
        created: When it was made.
        command: The command that made it, or None.
        notes: What a reader has to know.
        models: What was measured of each model.
    """

    task: str
    metric: str
    mode: str
    rows: int
    unit: str
    evaluation: str
    split: str
    reference: str
    confidence: float
    resamples: int
    seed: int
    lengths: tuple[int, ...]
    main_length: int
    batch_size: int
    repeats: int
    starts: int
    threads: int
    machine: dict[str, str]
    versions: dict[str, str]
    created: str
    command: str | None
    notes: tuple[str, ...]
    models: tuple[Measured, ...]

    def __getitem__(self, name: str) -> Measured:
        """Return what was measured of a model.

        Args:
            name: Its name.

        Raises:
            KeyError: If there is no model of that name.
        """
        for one in self.models:
            if one.name == name:
                return one
        raise KeyError(name)

    def to_dict(self) -> dict[str, Any]:
        """Return all of it as plain values."""
        values = dataclasses.asdict(self)
        for one, model in zip(values["models"], self.models, strict=True):
            one["score"] = model.score._asdict()
            one["difference"] = model.difference._asdict() if model.difference else None
            one["latency_ms"] = {str(length): dict(times) for length, times in model.latency_ms.items()}
        return {"comparison_version": VERSION, **values}

    @classmethod
    def from_dict(cls, values: Any) -> Comparison:
        """Return the comparison that `to_dict` gave.

        Args:
            values: The plain values; what a later version adds is left out.

        Raises:
            DistillationError: If something is missing, or they are of another version.
        """
        if not isinstance(values, Mapping) or values.get("comparison_version") != VERSION:
            raise DistillationError(
                f"This is no comparison of version {VERSION}, which is the one that this package reads. Compare again."
            )
        try:
            models = tuple(_measured(one) for one in values["models"])
            rest = {each.name: values[each.name] for each in dataclasses.fields(cls) if each.name != "models"}
            lists = {name: tuple(rest[name]) for name in ("lengths", "notes")}
            return cls(**{**rest, **lists, "models": models})
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise DistillationError(f"The comparison is damaged ({error!r}). Compare again.") from error

    @classmethod
    def read(cls, path: str | Path) -> Comparison:
        """Read a comparison.

        Args:
            path: The file, or a folder with a ``comparison.json``.

        Raises:
            DistillationError: If there is none, or it is damaged or of another version.

        Example:
            >>> Comparison.read("/no/such/folder")
            Traceback (most recent call last):
            ...
            lightning_distilbert.errors.DistillationError: There is no comparison '/no/such/folder'. ...
        """
        path = Path(path).expanduser()
        file = path / FILE if path.is_dir() else path
        if not file.is_file():
            raise DistillationError(
                f"There is no comparison {str(file)!r}. Make one with: lightning-distilbert compare"
            )
        try:
            values = json.loads(file.read_text(encoding="utf-8"))
        except ValueError as error:  # not JSON, or not UTF-8
            raise DistillationError(f"{file} cannot be read: {error}. Compare again.") from error
        try:
            return cls.from_dict(values)
        except DistillationError as error:
            raise DistillationError(f"{file}: {error}") from error

    def write(self, folder: str | Path, overwrite: bool = False) -> list[Path]:
        """Write ``comparison.json``, ``comparison.md`` and ``comparison.html``, each whole or not at all.

        Args:
            folder: Where to; it may hold other files, as that of a student does.
            overwrite: Whether files of these names may be replaced.

        Returns:
            The files.

        Raises:
            DistillationError: If they cannot be written.
        """
        target = check_folder(folder, overwrite)
        text = json.dumps(self.to_dict(), indent=2, ensure_ascii=False, allow_nan=False)
        paths = [target / name for name in FILES]
        try:
            for path, written in zip(paths, (text, self.to_markdown(), self.to_html()), strict=True):
                with complete(path) as partial:
                    partial.write_text(f"{written.rstrip()}\n", encoding="utf-8")
        except OSError as error:
            if not is_disk_error(error):
                raise
            raise DistillationError(f"The comparison could not be written in {str(target)!r}: {error}.") from error
        return paths

    def to_text(self) -> str:
        """Return it as tables for a terminal."""
        return comparison_tables.to_text(self)

    def to_markdown(self) -> str:
        """Return it as tables in GitHub's Markdown."""
        return comparison_tables.to_markdown(self)

    def to_html(self) -> str:
        """Return it as one page with pictures, which needs no other file."""
        return comparison_page.to_html(self)


def check_folder(folder: str | Path, overwrite: bool = False) -> Path:
    """Refuse a folder for the files of a comparison before any work is done.

    Args:
        folder: The folder; it may hold other files, and need not be there.
        overwrite: Whether files of a comparison that are there may be replaced.

    Returns:
        The folder.

    Raises:
        DistillationError: If it is a file, cannot be written to, or holds a comparison that may not be replaced.

    Example:
        >>> check_folder("/proc/comparison")
        Traceback (most recent call last):
        ...
        lightning_distilbert.errors.DistillationError: The comparison cannot be saved in '/proc/comparison/...
    """
    target = Path(folder).expanduser()
    if target.exists() and not target.is_dir():
        raise DistillationError(f"The output {str(target)!r} is a file. Give the name of a folder.")
    check_writable(target / FILE, "The comparison", "--output")
    there = [name for name in FILES if (target / name).exists()]
    if there and not overwrite:
        raise DistillationError(
            f"{str(target)!r} holds {', '.join(there)} already. Name another folder, or say that it may be replaced: "
            "--overwrite, or overwrite=True."
        )
    return target


def _measured(values: Mapping[str, Any]) -> Measured:
    known = {each.name: values[each.name] for each in dataclasses.fields(Measured)}
    difference = known["difference"]
    return Measured(
        **{
            **known,
            "score": Interval(**known["score"]),
            "difference": None if difference is None else Difference(**difference),
            "latency_ms": {int(length): times for length, times in known["latency_ms"].items()},
        }
    )
