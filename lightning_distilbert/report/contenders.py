"""The models of a comparison: students, teachers and artefacts, with one task and one order of labels."""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tqdm.auto import tqdm

from lightning_distilbert import doctor
from lightning_distilbert.deploy.engines import load_artefact
from lightning_distilbert.deploy.export import Exported
from lightning_distilbert.deploy.manifest import is_artefact, read_manifest
from lightning_distilbert.errors import DistillationError
from lightning_distilbert.module import CHECKPOINT_KEY
from lightning_distilbert.prediction import room
from lightning_distilbert.report.measure import count_parameters, size_in_mb
from lightning_distilbert.saved import load, read_config

FOLDER = "transformers"  # the format of a folder that is no artefact


@dataclass(frozen=True)
class Contender:
    """A model of a comparison.

    Attributes:
        name: What it is called.
        folder: Where it lies.
        format: ``"transformers"``, or that of the artefact.
        module: The `DistillationModule` that runs it.
        declared: Whether its folder names the task.
        parameters: The number of its parameters.
        size_mb: The megabytes of its weights.
        packages: The packages whose versions its manifest tells.
        notes: What a reader has to know of it.
    """

    name: str
    folder: Path
    format: str
    module: Any
    declared: bool
    parameters: int
    size_mb: float
    packages: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()

    @property
    def longest(self) -> int:
        """How many tokens of a text it reads at most."""
        return room(self.module)


def load_contenders(models: Mapping[str, str | Path], threads: int | None = None) -> list[Contender]:
    """Load the models of a comparison, and give them one task.

    The task is that of the first model whose folder names one, else what the first model's architecture suggests. A
    model whose folder names none, such as a teacher from somewhere else, is given it. Where labels have another order,
    outputs are put into that of the task, by name.

    Args:
        models: A folder for each name: of a saved student, of another model that `lightning_distilbert.load` loads, or
            of an artefact of any format.
        threads: Threads of one call of an artefact.

    Returns:
        The models in their order.

    Raises:
        DistillationError: If a folder holds no model, tasks or labels differ, or nothing tells the task.
    """
    folders = {name: Path(path).expanduser() for name, path in models.items()}
    for name, folder in folders.items():  # all of them, before the first one is loaded
        with _named(name):
            _names_task(folder)
    found = []
    for name, folder in tqdm(folders.items(), desc="load", unit=" models", delay=1, leave=False):
        with _named(name):
            found.append(_load(name, folder, threads))
    first = next((one for one in found if one.declared), found[0])
    labels = first.module.labels
    return [_aligned(one, first, labels) for one in found]


@contextlib.contextmanager
def _named(name: str) -> Iterator[None]:
    """Say in an error which model it is about."""
    try:
        yield
    except DistillationError as error:
        raise DistillationError(f"{name}: {error}") from error


def _names_task(folder: Path) -> bool:
    """Return whether a folder names its task, and refuse one that holds no model."""
    if is_artefact(folder):
        read_manifest(folder, verify=False)
        return True
    return CHECKPOINT_KEY in read_config(folder)


def _load(name: str, folder: Path, threads: int | None) -> Contender:
    if is_artefact(folder):
        manifest = read_manifest(folder, verify=False)  # its files are verified as it is loaded
        module = load_artefact(folder, threads)
        size = Exported(folder, manifest).size / 1e6
        packages = tuple(manifest.get("versions", ()))
        return Contender(name, folder, manifest["format"], module, True, int(manifest["parameters"]), size, packages)
    module = load(folder)
    parameters = count_parameters(module.student)
    return Contender(name, folder, FOLDER, module, _names_task(folder), parameters, size_in_mb(folder))


def _aligned(one: Contender, first: Contender, labels: tuple[str, ...] | None) -> Contender:
    own, task = one.module.task, first.module.task
    if type(own) is not type(task) and (one.declared or own.auto_class != task.auto_class):
        raise DistillationError(
            f"{one.name} is a model of {type(own).__name__}, and {first.name} one of {type(task).__name__}: they do "
            "not compare. Compare models of one task."
        )
    outputs = [getattr(getattr(each.module.student, "config", None), "num_labels", None) for each in (one, first)]
    named = doctor.label_names(getattr(one.module.student, "config", None)) or one.module.labels
    order, notes = None, list(one.notes)
    if getattr(task, "num_labels", None):
        if outputs[0] != outputs[1]:
            raise DistillationError(
                f"{one.name} has {outputs[0]} labels, and {first.name} {outputs[1]}: they do not compare."
            )
        try:
            order = doctor.check_labels(labels, named, one.name)
        except DistillationError as error:
            raise DistillationError(
                f"{one.name} has the labels {list(named or ())}, and {first.name} {list(labels or ())}: they do not "
                "compare. Take models that were trained on the same labels, in any order."
            ) from error
        if labels and not named:
            notes.append(f"names no labels: its outputs are taken in the order {', '.join(labels)}")
    if task.auto_class != "AutoModel":  # how vectors are pooled is part of a model
        one.module.task = _ordered(task, order, labels)
    return Contender(**{**vars(one), "notes": tuple(notes)})


def _ordered(task: Any, order: list[int] | None, labels: tuple[str, ...] | None) -> Any:
    """Return a task that names the labels, and puts the outputs of a model into their order."""
    task = copy.copy(task)
    if labels:
        task.labels = tuple(labels)
    if order is not None:
        run = type(task).run

        def reordered(model: Any, batch: Any) -> dict[str, Any]:
            outputs = run(task, model, batch)
            return {**outputs, "logits": outputs["logits"][..., order]}

        task.run = reordered
    return task
