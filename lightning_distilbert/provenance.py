"""What is known of the fits that made a student: their data, steps, seed and versions, as plain values."""

from __future__ import annotations

import contextlib
import math
import os
import platform
import re
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from torch import nn

from lightning_distilbert import __version__
from lightning_distilbert._compat import FLAVOUR
from lightning_distilbert.data.sources import is_hub_name
from lightning_distilbert.errors import DistillationError

LIGHTNING = {"pytorch_lightning": "pytorch-lightning", "lightning.pytorch": "lightning"}
SNAPSHOT = re.compile(r"/(?:models|datasets)--([^/]+)/snapshots/[^/]+$")
DATA_OPTIONS = ("max_length", "seed")


def begin(module: Any) -> None:
    """Note in ``module.fits`` what can be said of a fit before its first step; a resumed fit goes on with its note.

    Args:
        module: A `DistillationModule` with its Trainer.
    """
    trainer = module.trainer
    if trainer.ckpt_path is not None:
        module.fits = module.fits[:-1]
    loader = trainer.train_dataloader
    optimizer = trainer.optimizers[0] if trainer.optimizers else None
    engine = module.distiller
    entry = {
        "date": datetime.now(UTC).date().isoformat(),
        "teacher": None if engine is None else _teacher(engine.teacher),
        "student": None if module.student_spec is None else named(module.student_spec.source),
        "data": _data(trainer.datamodule, loader),
        "steps": trainer.global_step,
        "epochs": None,
        "devices": trainer.world_size,
        "accumulated": trainer.accumulate_grad_batches,
        "precision": str(trainer.precision),
        "optimizer": None if optimizer is None else type(optimizer).__name__,
        "learning_rate": None if optimizer is None else _number(optimizer.defaults.get("lr")),
        "seed": _seed(),
        "monitor": next(
            (name for one in trainer.checkpoint_callbacks if (name := getattr(one, "monitor", None))), None
        ),
        "versions": _versions(),
    }
    module.fits = [*module.fits, entry]


def note(module: Any) -> None:
    """Note how far a fit has come.

    Args:
        module: A `DistillationModule` in a fit; anywhere else nothing is noted.
    """
    trainer = getattr(module, "_trainer", None)
    if trainer is None or not module.fits or trainer.state.fn != "fit" or trainer.state.status != "running":
        return
    batches = trainer.fit_loop.epoch_loop.total_batch_idx + 1
    all_batches = trainer.num_training_batches
    epochs = batches / all_batches if all_batches and math.isfinite(all_batches) else None
    module.fits[-1] |= {"steps": trainer.global_step, "epochs": epochs and round(epochs, 2)}


def checked(kept: Any) -> list[dict[str, Any]]:
    """Return the notes of a checkpoint or a saved folder, which may come from anyone.

    Args:
        kept: What was kept; None where it is from before.

    Raises:
        DistillationError: If it is no list of notes.

    Example:
        >>> checked(None), checked([{"steps": 3}])
        ([], [{'steps': 3}])
    """
    if kept is None:
        return []
    if not isinstance(kept, list) or not all(isinstance(entry, Mapping) for entry in kept):
        raise DistillationError(f"The saved notes of fits are {str(kept)[:80]!r}: they have to be a list of mappings.")
    return [dict(entry) for entry in kept]


def named(source: Any) -> dict[str, str] | None:
    """Say what something was loaded from, for others to read: a name on the hub as it is, and of a path its last part.

    Args:
        source: A name, a path, or an object.

    Example:
        >>> named("google-bert/bert-base-uncased"), named("/home/jane/data/train.tsv"), named([{"text": "a"}])
        ({'hub': 'google-bert/bert-base-uncased'}, {'path': 'train.tsv'}, {'object': 'list'})
    """
    if source is None:
        return None
    if isinstance(source, (str, Path)):
        if is_hub_name(source):
            return {"hub": str(source)}
        path = Path(source).expanduser().absolute()
        # what snapshot_download returns ends in a hash, which would tell nobody anything
        downloaded = SNAPSHOT.search(path.as_posix())
        return {"hub": downloaded[1].replace("--", "/")} if downloaded else {"path": path.name}
    return {"object": type(source).__name__}


def public(source: str) -> str:
    """Return a name on the hub as it is, and the last part of a path.

    Args:
        source: A name or a path.

    Example:
        >>> public("google-bert/bert-base-uncased"), public("/home/jane/runs/teacher/")
        ('google-bert/bert-base-uncased', 'teacher')
    """
    (name,) = (named(source) or {"path": ""}).values()
    return name


def _teacher(teacher: Any) -> dict[str, Any]:
    config = teacher.config
    return {
        **(named(teacher.source) or {}),
        "architecture": type(teacher.model).__name__,
        "layers": getattr(config, "num_hidden_layers", None),
        "parameters": sum(parameter.numel() for parameter in teacher.model.parameters())
        if isinstance(teacher.model, nn.Module)
        else None,
    }


def _data(data: Any, loader: Any) -> dict[str, Any]:
    source = getattr(data, "source", None)
    if isinstance(source, Mapping):  # from split to file
        where: Any = {str(split): named(one) for split, one in source.items()}
    elif isinstance(source, Sequence) and not isinstance(source, str) and source and isinstance(source[0], (str, Path)):
        where = [named(one) for one in source]
    else:
        where = named(source)
    rows = batch_size = None
    with contextlib.suppress(TypeError, AttributeError):  # a stream has no length, and several loaders no data set
        rows = len(loader.dataset)
    batch_size = getattr(data, "batch_size", None) or getattr(loader, "batch_size", None)
    options = {name: getattr(data, name, None) for name in DATA_OPTIONS}
    return {
        "module": None if data is None else type(data).__name__,
        "source": where,
        "unlabelled": named(getattr(data, "unlabelled", None)),
        "languages": [str(one) for one in spoken] if (spoken := getattr(data, "languages", None)) else None,
        "pairs": len(columns) == 2 if isinstance(columns := getattr(data, "text", None), (list, tuple)) else None,
        "rows": rows,
        "batch_size": batch_size if isinstance(batch_size, int) else None,
        **{name: value if isinstance(value, int) else None for name, value in options.items()},
    }


def _seed() -> int | None:
    """Return what ``seed_everything`` was given."""
    text = os.environ.get("PL_GLOBAL_SEED", "")
    return int(text) if text.isdigit() else None


def _number(value: Any) -> float | None:
    return float(value) if isinstance(value, (int, float)) else None


def _versions() -> dict[str, str]:
    found = {"lightning_distilbert": __version__, "python": platform.python_version()}
    for name in ("torch", "transformers", LIGHTNING.get(FLAVOUR, "lightning")):
        with contextlib.suppress(PackageNotFoundError):
            found[name] = version(name)
    return found
