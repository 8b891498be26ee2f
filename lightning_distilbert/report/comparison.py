"""Models of one task side by side: what they score on the same rows, how sure that is, and what they cost here."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch
from tqdm.auto import tqdm

from lightning_distilbert import __version__, doctor
from lightning_distilbert._compat import LightningDataModule
from lightning_distilbert.deploy.evaluation_data import COLUMNS, Evaluation, open_evaluation
from lightning_distilbert.deploy.verify import plain, primary
from lightning_distilbert.errors import DistillationError
from lightning_distilbert.report.bootstrap import bootstrap_interval, paired_bootstrap
from lightning_distilbert.report.compared import Comparison, Measured
from lightning_distilbert.report.contenders import Contender, load_contenders
from lightning_distilbert.report.costs import Start, measure_start, median_start
from lightning_distilbert.report.machine import describe_machine, processors, versions
from lightning_distilbert.report.row_kinds import kind_of
from lightning_distilbert.report.row_scores import RowScores, check_metric, row_scores
from lightning_distilbert.report.speed import check_lengths, latencies, main_length, throughputs

PACKAGE = "lightning_distilbert"
__all__ = ["Comparison", "Measured", "compare", "retained"]


def compare(
    models: Mapping[str, str | Path],
    evaluation: Any,
    *,
    reference: str | None = None,
    metric: str | None = None,
    split: str | None = None,
    reading: Mapping[str, Any] | None = None,
    lengths: Sequence[int] | None = None,
    threads: int | None = None,
    repeats: int = 100,
    batch_size: int = 32,
    starts: int = 3,
    confidence: float = 0.95,
    resamples: int = 1000,
    seed: int = 0,
    command: str | None = None,
) -> Comparison:
    r"""Compare models of one task: score, size, memory, cold start and speed, all measured here in one run.

    Scores come with the percentile bootstrap interval over the rows, and with the difference to the reference on the
    same draws of rows, its interval and p-value (`paired_bootstrap`): that tells more than whether the models' own
    intervals overlap. Times are taken of all models in turn, so that a machine that slows down meanwhile slows all of
    them; in blocks of a few calls, of which the first is not timed.

    Args:
        models: A folder for each name: a saved student or teacher, or an artefact of any export format. One whose
            config names no task is taken for a model of the others' task.
        evaluation: Rows with labels, as `lightning_distilbert.deploy.export` takes them: a data module, or what the
            task's data module reads, such as a file.
        reference: The name of the model to which others are compared, such as the teacher; None takes the first.
        metric: The metric; None takes the one that the task watches in training.
        split: ``"validation"`` or ``"test"`` of the evaluation data; None takes the first that there is.
        reading: Options of the task's data module for files and rows; ``text`` and ``label`` name the columns.
        lengths: Tokens of the texts that are timed; None is 16, 64, 128 and 256, as far as a model reads them.
        threads: Threads of one call, of each model; None is as many as this process may use.
        repeats: How often a single text of each length is timed; the throughput is the median of a tenth of that.
        batch_size: Texts in a batch, for the throughput.
        starts: How often each model is started in a process of its own; 0 leaves out cold start and memory.
        confidence: The share of an interval, between 0 and 1.
        resamples: How often the rows are drawn anew.
        seed: The seed of the draws.
        command: The command that is told in the outputs.

    Returns:
        The comparison.

    Raises:
        DistillationError: If a folder, the evaluation data or an option is bad, or tasks or labels differ.

    Example:
        >>> compare({}, "dev.tsv")
        Traceback (most recent call last):
        ...
        lightning_distilbert.errors.DistillationError: models={}: there is nothing to compare. ...
    """
    _check_options(models, reference, repeats, batch_size, starts, confidence, resamples, threads)
    reference = reference or next(iter(models))
    threads = threads or processors()
    with _threads(threads):
        contenders = load_contenders(models, threads)
        task = next(one.module.task for one in contenders if one.name == reference)
        metric = metric or primary(task)[0]
        mode = check_metric(task, metric)
        wanted, notes = check_lengths(contenders, lengths)
        length = main_length(contenders, wanted)
        opened = _open(contenders, evaluation, split, reading)
        scored = {
            one.name: row_scores(one.module, data.loaders, metric, one.name)
            for one, data in zip(contenders, opened, strict=True)
        }
        rows = _check_rows(scored, metric, reference)
        latency = latencies(contenders, wanted, repeats)
        speed = throughputs(contenders, batch_size, length, max(3, repeats // 10))
        begun = _starts(contenders, threads, starts)
    options: dict[str, Any] = {"confidence": confidence, "resamples": resamples, "seed": seed}
    bar = tqdm(contenders, desc="bootstrap", unit=" models", delay=1, leave=False)
    measured = []
    for one in bar:
        against = scored[reference] if one.name != reference else None
        known = _scored(scored[one.name], against, scored[reference].scores[metric], mode, options)
        times: dict[str, Any] = {"latency_ms": latency[one.name], "throughput": speed.get(one.name)}
        measured.append(Measured(**_facts(one, begun.get(one.name)), **known, **times))
    packages = dict.fromkeys(["torch", "transformers", *(name for one in contenders for name in one.packages)])
    return Comparison(
        task=type(task).__name__,
        metric=metric,
        mode=mode,
        rows=rows,
        unit=kind_of(task).unit,
        evaluation=opened[0].source,
        split=opened[0].split,
        reference=reference,
        confidence=confidence,
        resamples=resamples,
        seed=seed,
        lengths=tuple(wanted),
        main_length=length,
        batch_size=batch_size,
        repeats=repeats,
        starts=starts,
        threads=threads,
        machine=describe_machine(),
        versions={PACKAGE: __version__, **versions(name for name in packages if name != PACKAGE)},
        created=datetime.now(UTC).isoformat(timespec="seconds"),
        command=command,
        notes=tuple([f"{one.name} {note}" for one in contenders for note in one.notes] + notes),
        models=tuple(measured),
    )


def _facts(one: Contender, start: Start | None) -> dict[str, Any]:
    """Return what is known of a model without its answers."""
    return {
        "name": one.name,
        "folder": one.folder.resolve().name,  # what is written travels: the folders above are nobody's business
        "format": one.format,
        "parameters": one.parameters,
        "size_mb": one.size_mb,
        "cold_start_s": start.seconds if start else None,
        "cold_start_parts": start.parts if start else {},
        "peak_memory_mb": start.peak_mb if start else None,
    }


def _scored(
    mine: RowScores, theirs: RowScores | None, reference: float, mode: str, options: dict[str, Any]
) -> dict[str, Any]:
    """Return the score of a model and its difference to the reference, with their intervals."""
    interval = bootstrap_interval(mine.columns, mine.statistic, **options)
    return {
        "score": interval,
        "difference": paired_bootstrap(mine.columns, theirs.columns, mine.statistic, **options) if theirs else None,
        "retention": retained(interval.value, reference, mode),
        "scores": plain(mine.scores),
    }


def retained(own: float, reference: float, mode: str = "max") -> float | None:
    """Return which share of the reference's score a model has: above 1 where it is better.

    Args:
        own: The model's score.
        reference: The reference's score.
        mode: ``"max"`` if a higher score is better, ``"min"`` if a lower one is: the share is then turned over.

    Returns:
        The share; None where there is none, of a reference that scores 0 or below.

    Example:
        >>> retained(0.4, 0.8), retained(2.5, 2.0, "min"), retained(0.1, 0.0)
        (0.5, 0.8, None)
    """
    above, below = (own, reference) if mode == "max" else (reference, own)
    return above / below if below > 0 and math.isfinite(above) else None


def _check_options(
    models: Any,
    reference: Any,
    repeats: int,
    batch_size: int,
    starts: int,
    confidence: float,
    resamples: int,
    threads: Any,
) -> None:
    if not isinstance(models, Mapping) or not models:
        raise DistillationError(f"models={models!r}: there is nothing to compare. Give a folder for each name.")
    for name in models:
        if not isinstance(name, str) or not name.strip() or len(name.splitlines()) > 1:
            raise DistillationError(f"{name!r} is no name of a model: give it some letters, on one line.")
    if reference is not None and reference not in models:
        raise DistillationError(f"reference={reference!r} is none of the models {', '.join(models)}.")
    for option, value, least in (
        ("repeats", repeats, 1),
        ("batch_size", batch_size, 1),
        ("starts", starts, 0),
        ("resamples", resamples, 1),
        ("threads", 1 if threads is None else threads, 1),
    ):
        if type(value) is not int or value < least:
            raise DistillationError(f"{option}={value!r}: it has to be {least} or more.")
    if not 0 < confidence < 1:
        raise DistillationError(f"confidence={confidence} must lie between 0 and 1 (0.95 for 95 %).")


@contextlib.contextmanager
def _threads(number: int) -> Iterator[None]:
    """Let torch use so many threads for the time of a ``with`` block."""
    before = torch.get_num_threads()
    torch.set_num_threads(number)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _open(contenders: Sequence[Contender], source: Any, split: str | None, reading: Any) -> list[Evaluation]:
    """Encode the rows for each model, by its own tokenizer."""
    task = contenders[0].module.task
    if not isinstance(source, LightningDataModule) and not any(name in COLUMNS for name in task.data):
        raise DistillationError(f"The rows of {type(task).__name__} are not read from files here: pass a data module.")
    reading = dict(reading or {})
    if task.auto_class == "AutoModelForMaskedLM":  # other tokens, or other texts, would be masked
        for one in contenders[1:]:
            doctor.check_vocabularies(one.module.tokenizer, contenders[0].module.tokenizer, contenders[0].name)
        if not isinstance(source, LightningDataModule):
            reading.setdefault("max_length", min(one.longest for one in contenders))
    bar = tqdm(contenders, desc="read", unit=" models", delay=1, leave=False)
    return [open_evaluation(one.module, source, split, reading) for one in bar]


def _check_rows(scored: Mapping[str, RowScores], metric: str, reference: str) -> int:
    """Refuse models that were scored on different rows, and a score that is none; return the number of rows."""
    keys = scored[reference].keys
    for name, found in scored.items():
        if len(found.keys) != len(keys) or not torch.equal(found.keys, keys):
            raise DistillationError(
                f"{name} was scored on {len(found.keys)} rows and {reference} on {len(keys)}, or on others: they do "
                "not compare. Does each row hold text for both?"
            )
        if not math.isfinite(found.scores[metric]):
            raise DistillationError(
                f"{name} has no {metric} on these rows (it is {found.scores[metric]}). Choose another metric, or rows "
                "on which it is defined."
            )
    return len(keys)


def _described(task: Any) -> dict[str, Any] | None:
    """Return what a task of this package is built from, with the labels that the comparison gave it."""
    config: dict[str, Any] = task.to_config()
    if getattr(task, "num_labels", None) and task.labels:
        config["init_args"]["labels"] = list(task.labels)
    return config if config["class_path"].startswith("lightning_distilbert.") else None


def _starts(contenders: Sequence[Contender], threads: int, number: int) -> dict[str, Start]:
    found: dict[str, list[Start]] = {one.name: [] for one in contenders}
    with tqdm(total=number * len(contenders), desc="cold start", unit=" starts", delay=1, leave=False) as bar:
        for _ in range(number):
            for one in contenders:
                task = one.module.task
                config = None if one.declared else _described(task)
                found[one.name].append(measure_start(one.folder, type(task).__name__, one.format, threads, config))
                bar.update()
    return {name: median_start(starts) for name, starts in found.items() if starts}
