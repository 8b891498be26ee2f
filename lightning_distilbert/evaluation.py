"""What evaluations found: the latest scores, and the thresholds that a task chose on validation data."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from lightning_distilbert import provenance
from lightning_distilbert.errors import DistillationError
from lightning_distilbert.spec import to_plain

THRESHOLD = "threshold/"


def conclude(module: Any, split: str) -> dict[str, Tensor]:
    """Compute the metrics of one evaluation, note what they found in the module, and return the scores to be logged.

    A metric's key that begins with ``"threshold/"`` is no score: what validation chose is put into
    ``module.thresholds``, for the task's answers and for the test split. A metric with a dict as its attribute
    ``thresholds`` is told on the test split which ones to use, and finds it empty on the validation split, where it
    chooses.

    Args:
        module: A `DistillationModule` with its ``metrics``; these are reset.
        split: ``"val"`` or ``"test"``.

    Returns:
        The scores as ``"val/name"``, in float32.
    """
    metrics, trainer = module.metrics[split], module.trainer
    if isinstance(getattr(metrics, "thresholds", None), dict):  # torchmetrics has tensors under this name
        metrics.thresholds = dict(module.thresholds) if split == "test" else {}
    found: dict[str, Any] = metrics.compute()
    metrics.reset()
    # some metrics answer an integer 0 where they are not defined
    values = {name: torch.as_tensor(value, device=module.device).float() for name, value in found.items()}
    scores = {f"{split}/{name}": value for name, value in values.items() if not name.startswith(THRESHOLD)}
    if not trainer.sanity_checking:
        if split == "val":
            chosen = {name.removeprefix(THRESHOLD): float(found[name]) for name in found if name.startswith(THRESHOLD)}
            before = module.thresholds
            known = {name: before.get(name, value) if math.isnan(value) else value for name, value in chosen.items()}
            if chosen:  # what this validation chose nothing for would be of other weights
                module.thresholds = {name: value for name, value in known.items() if not math.isnan(value)}
        # while weights change, what an earlier evaluation of the other split found is of other weights
        kept = {} if trainer.state.fn == "fit" else module.scores
        others = {name: value for name, value in kept.items() if not name.startswith(f"{split}/")}
        module.scores = others | {name: float(value) for name, value in scores.items()}
    return scores


def details(module: Any) -> dict[str, Any]:
    """Return what config.json says of a student: its task, what made it, and what was found.

    Args:
        module: A `DistillationModule`. Of one that was loaded, without a teacher of its own, what made it is what the
            folder said.

    Returns:
        Plain values: ``task``, ``teacher``, ``objectives``, ``task_weight``, ``thresholds``, ``metrics`` and ``fits``.
    """
    engine = module.distiller
    made = module._origin
    if engine is not None or not made:
        made = {
            "teacher": engine.teacher.name if engine is not None else None,
            "objectives": [objective.to_config() for objective in engine.parts] if engine is not None else [],
            "task_weight": to_plain(module.task_weight, "task_weight"),
        }
    if made.get("teacher"):  # the folder may be published: where it lay on this machine is nobody's business
        made = made | {"teacher": provenance.public(made["teacher"])}
    return {"task": module.task.to_config()} | made | findings(module)


def findings(module: Any) -> dict[str, Any]:
    """Return thresholds, scores and notes of fits of a module as plain values, for a checkpoint and a saved folder.

    A value that JSON cannot write is None among scores, and the largest number among thresholds.

    Example:
        >>> from types import SimpleNamespace
        >>> findings(SimpleNamespace(thresholds={"no_answer": 0.5}, scores={"val/f1": float("nan")}, fits=[]))
        {'thresholds': {'no_answer': 0.5}, 'metrics': {'val/f1': None}, 'fits': []}
    """
    provenance.note(module)
    largest = torch.finfo(torch.float32).max
    return {
        "thresholds": {name: min(max(value, -largest), largest) for name, value in module.thresholds.items()},
        "metrics": {name: value if math.isfinite(value) else None for name, value in module.scores.items()},
        "fits": [dict(fit) for fit in module.fits],
    }


def restore(module: Any, kept: Mapping[str, Any]) -> None:
    """Give a module what `findings` returned.

    Args:
        module: A `DistillationModule`.
        kept: What was kept; a checkpoint or folder from before may lack either.

    Raises:
        DistillationError: If thresholds or scores are no numbers by name, or there is something else for the fits.

    Example:
        >>> from types import SimpleNamespace
        >>> module = SimpleNamespace()
        >>> restore(module, {"thresholds": {"no_answer": 0.5}})
        >>> module.thresholds, module.scores
        ({'no_answer': 0.5}, {})
    """
    module.thresholds = _numbers(kept, "thresholds")
    module.scores = _numbers(kept, "metrics")
    module.fits = provenance.checked(kept.get("fits"))


def _numbers(kept: Mapping[str, Any], key: str) -> dict[str, float]:
    values = kept.get(key) or {}
    if not isinstance(values, Mapping):
        raise DistillationError(f"The saved {key} are {values!r}: they have to be numbers by name.")
    for name, value in values.items():
        if isinstance(value, bool) or not (isinstance(value, (int, float)) or (value is None and key == "metrics")):
            raise DistillationError(f"The saved {key} hold {value!r} as {name!r}: it has to be a number.")
    return {str(name): math.nan if value is None else float(value) for name, value in values.items()}
