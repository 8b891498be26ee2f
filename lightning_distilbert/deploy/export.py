"""A student as an artefact for devices: exported, quantised, verified, in a folder that is whole or not there."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from lightning_distilbert.deploy import evaluation_data
from lightning_distilbert.deploy.job import FLOAT_OF, FORMATS, Job
from lightning_distilbert.deploy.manifest import is_artefact, write_manifest
from lightning_distilbert.deploy.onnx import OPSET
from lightning_distilbert.deploy.placing import check_target
from lightning_distilbert.deploy.runtime.folder import model_bytes
from lightning_distilbert.deploy.sensitivity import quantize
from lightning_distilbert.deploy.verify import Checked, Verifier
from lightning_distilbert.errors import DistillationError, check_choice
from lightning_distilbert.module import DistillationModule
from lightning_distilbert.placing import placed
from lightning_distilbert.saved import load


@dataclass(frozen=True)
class Exported:
    """An artefact.

    Attributes:
        folder: Its folder.
        manifest: What its manifest says.
    """

    folder: Path
    manifest: dict[str, Any]

    @property
    def size(self) -> int:
        """The bytes of the model's files, without tokenizer and config."""
        return model_bytes(self.folder, self.manifest)

    @property
    def retention(self) -> float | None:
        """The share of the student's score that it keeps; None if that was not measured."""
        found = self.manifest["verification"].get("evaluation")
        return None if found is None else float(found["retention"])


def export(
    model: str | Path | DistillationModule,
    target: str | Path,
    format: str = "onnx",
    evaluation: Any = None,
    min_retention: float = 0.99,
    calibration: Any = None,
    static: bool = False,
    split: str | None = None,
    reading: Mapping[str, Any] | None = None,
    reduce_range: bool | None = None,
    opset: int = OPSET,
    overwrite: bool = False,
) -> Exported:
    """Export a student, verify it, and put it in place if it is good enough.

    The graph takes batches and texts of any size that the student does. Its outputs are compared with the student's;
    then the task's metric is measured on the evaluation data through the artefact's own runtime. An int8 artefact that
    keeps less than `min_retention` of it is tried again with the most sensitive parts in float: first the one, then
    two, four and so on of the embeddings, layers and head that move the outputs most if they alone are quantised.

    Args:
        model: The folder of a saved student, or of another model that `lightning_distilbert.load` loads; or a module.
        target: The folder to write.
        format: ``"onnx"``, ``"onnx-int8"``, ``"openvino"``, ``"openvino-int8"``, ``"executorch"``,
            ``"torch-export"``, ``"keras"`` or ``"litert"``.
        evaluation: Rows with labels: a data module, or what the task's data module reads, such as a file. An int8
            format needs them, unless `min_retention` is 0.
        min_retention: The share of the student's score that the artefact has to keep, from 0 to 1.
        calibration: A file, rows or texts, without labels, that show which values the model meets; up to 256 of them
            are used, by ``"openvino-int8"`` and with `static`. Take training data.
        static: For ``"onnx-int8"``: fix the ranges of activations in advance, on the calibration rows. By default they
            are measured as the model runs.
        split: ``"validation"`` or ``"test"`` of the evaluation data; None takes the first that there is.
        reading: Options of the task's data module for files and rows, such as ``columns``; ``text`` and ``label`` name
            the columns for each task.
        reduce_range: For ``"onnx-int8"``: 7 bits for weights, for processors whose 8-bit sums overflow. None asks this
            processor: True without VNNI.
        opset: ONNX's version of operators, for the formats that go through ONNX.
        overwrite: Whether an artefact that is there may be replaced.

    Returns:
        The artefact.

    Raises:
        DistillationError: If the model, the target or an option is bad, or the artefact is not good enough. Then
            nothing is left in the target, and an artefact that was there stays; but where 8 bits lost too much, and
            there was none, the float artefact is kept there.
        MissingExtraError: If a package is missing that the format needs.

    Example:
        >>> export("student", "artefact", format="onnyx")
        Traceback (most recent call last):
        ...
        lightning_distilbert.errors.DistillationError: export(format=...) was given 'onnyx': choose one of ...
    """
    _check_options(format, evaluation, min_retention, calibration, static)
    if reduce_range is not None and format != "onnx-int8":
        raise DistillationError(f"reduce_range={reduce_range} is for onnx-int8, and the format is {format}.")
    if opset != OPSET and "onnx" not in FORMATS[format]:
        raise DistillationError(f"opset={opset} is for formats that go through ONNX, and {format} does not.")
    module = load(model) if isinstance(model, (str, Path)) else model
    if not isinstance(module, DistillationModule):
        raise DistillationError(f"model={type(module).__name__}: give a folder, or a DistillationModule.")
    job = Job(module, format, opset, static)
    rows = sum(tensor.numel() for tensor in module.student.state_dict().values())
    # at 4 bytes each: the float file, an int8 one, and what comes in between, such as the ONNX file of OpenVINO's
    each = 12 if format in FLOAT_OF else 9 if format == "openvino" else 5
    place = check_target(target, overwrite, needed=rows * each)
    measured = None
    if evaluation is not None:
        measured = evaluation_data.open_evaluation(module, evaluation, split, reading)
    seen = None
    if calibration is not None:
        wanted = {key: value for key, value in (reading or {}).items() if key != "label"}
        seen = evaluation_data.open_calibration(module, calibration, wanted)
        seen = [{name: row[name] for name in job.graph.inputs} for row in seen]
    verifier = Verifier(module, job.graph, measured, min_retention)
    lost = ""
    with placed(place, "artefact") as folder:
        scratch = folder / ".scratch"
        scratch.mkdir()
        if format in FLOAT_OF:
            verifier.compare(scratch, job.write_float("onnx", scratch, scratch))
            facts, checked, lost = _quantized(job, verifier, place, folder, scratch, seen, reduce_range)
        else:
            facts = job.write_float(format, folder, scratch)
            checked = verifier.check(folder, facts)
            if not checked.passed:
                raise DistillationError(f"{_lost(facts, checked)} Nothing was kept.")
        shutil.rmtree(scratch)
        job.write_texts(folder)
        manifest = write_manifest(folder, {**facts, "verification": checked.facts, "created": _now()})
    if lost:
        raise DistillationError(f"{lost} The {facts['format']} artefact was kept in {str(place)!r}.")
    return Exported(place, manifest)


def _check_options(format: str, evaluation: Any, min_retention: float, calibration: Any, static: bool) -> None:
    check_choice("export(format=...)", format, tuple(FORMATS))
    if not 0 <= min_retention <= 1:
        raise DistillationError(f"min_retention={min_retention}: it is a share, from 0 to 1.")
    if format in FLOAT_OF and evaluation is None and min_retention > 0:
        raise DistillationError(
            f"{format} changes what the student answers, and only its task's score tells how much: give rows with "
            "labels (--evaluate FILE, or evaluation=...), or take what comes unmeasured with min_retention=0."
        )
    needs = format == "openvino-int8" or static
    if static and format != "onnx-int8":
        raise DistillationError(f"static=True is for onnx-int8, and the format is {format}.")
    if needs and calibration is None:
        raise DistillationError(
            "Static quantisation needs rows that show which values the model meets: give training texts (--calibrate "
            "FILE, or calibration=...)."
        )
    if calibration is not None and not needs:
        unless = ", unless static is set" if format == "onnx-int8" else ""
        raise DistillationError(f"{format} takes no calibration rows{unless}. Leave them out.")


def _quantized(
    job: Job, verifier: Verifier, place: Path, folder: Path, scratch: Path, seen: Any, reduce_range: bool | None
) -> tuple[dict[str, Any], Checked, str]:
    """Write an int8 model, or the float one where the gate is not met; return also what was lost then."""
    format, quantizer = job.format, job.quantizer(scratch, seen, reduce_range)
    facts = job.facts(format, quantizer.file) | {"opset": job.opset_of(scratch)}
    checked, left, tried = quantize(quantizer, verifier, facts, folder, scratch / "rank")
    if checked.passed:
        return facts | {"quantization": quantizer.describe(left) | {"attempts": tried}}, checked, ""
    lost = _lost(facts, checked, left)
    if is_artefact(place):
        raise DistillationError(
            f"{lost} The artefact that was in {str(place)!r} stays as it was. Export into a new folder to have the "
            f"{FLOAT_OF[format]} one there."
        )
    for path in folder.iterdir():
        if path != scratch:
            path.unlink()
    facts = job.write_float(FLOAT_OF[format], folder, scratch)
    return facts, verifier.check(folder, facts), lost


def _lost(facts: Mapping[str, Any], checked: Checked, left: Any = ()) -> str:
    found = checked.facts["evaluation"]
    metric = found["metric"]
    spared = f", even with {', '.join(left)} in float" if left else ""
    own = found["artefact"].get(metric)
    return (
        f"{facts['format']} keeps {found['retention']:.2%} of the student's {metric} on {found['source']} "
        f"({found['student'][metric]:.4f} became {'none' if own is None else f'{own:.4f}'}){spared}: "
        f"at least {found['min_retention']:.2%} was asked for."
    )


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
