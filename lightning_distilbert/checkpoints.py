"""Wrong checkpoints: a file that is none, and one of another module, each said in a sentence."""

from __future__ import annotations

import functools
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import nn

from lightning_distilbert.errors import DistillationError

USE_A_STUDENT = "To start from a saved student, give its folder as the student instead: Student(source=...)."


class CheckedLoading(nn.Module):
    """Says of weights that do not fit what differs; a mixin of the LightningModule."""

    def load_state_dict(self, state_dict: Mapping[str, Any], strict: bool = True, assign: bool = False) -> Any:
        """Load weights, as `nn.Module.load_state_dict`.

        Args:
            state_dict: The weights by name.
            strict: Whether all names have to agree.
            assign: Whether the tensors themselves are taken.

        Raises:
            DistillationError: If they do not fit.
        """
        try:
            return super().load_state_dict(state_dict, strict=strict, assign=assign)
        except RuntimeError as error:
            differing = difference(self.state_dict(), state_dict)
            if not differing:
                raise
            raise DistillationError(
                f"The checkpoint is one of another module ({differing}). Build the module with the task, student and "
                "objectives of that run; DistillationModule.load_from_checkpoint(path) takes them from the checkpoint."
            ) from error


def difference(own: Mapping[str, Any], given: Mapping[str, Any]) -> str:
    """Say in which names and shapes two sets of weights differ, with an example of each; ``""`` if in none.

    Args:
        own: The weights of the module.
        given: Those to be loaded.

    Example:
        >>> import torch
        >>> difference({"a": torch.zeros(2), "b": torch.zeros(1)}, {"a": torch.zeros(3)})
        "weights of another shape: 1 ('a': (3,) in the checkpoint, (2,) here), missing in it: 1 ('b')"
    """
    missing = [name for name in own if name not in given]
    extra = [name for name in given if name not in own]
    shapes = [name for name in given if name in own and own[name].shape != given[name].shape]
    parts = []
    if shapes:
        first = shapes[0]
        theirs, ours = tuple(given[first].shape), tuple(own[first].shape)
        parts.append(f"weights of another shape: {len(shapes)} ({first!r}: {theirs} in the checkpoint, {ours} here)")
    if missing:
        parts.append(f"missing in it: {len(missing)} ({missing[0]!r})")
    if extra:
        parts.append(f"in it alone: {len(extra)} ({extra[0]!r})")
    return ", ".join(parts)


def check_file(path: Any) -> None:
    """Refuse a path where no checkpoint can be; one that does not exist is left to the Trainer.

    Args:
        path: The path; a URL is not looked at.

    Raises:
        DistillationError: If it is a folder, or a file that no ``torch.save`` wrote to its end.

    Example:
        >>> check_file("/tmp")
        Traceback (most recent call last):
        ...
        lightning_distilbert.errors.DistillationError: '/tmp' is a folder and no checkpoint. ...
    """
    file = Path(path)
    if file.is_dir():
        raise DistillationError(f"{str(path)!r} is a folder and no checkpoint. {USE_A_STUDENT}")
    if not file.is_file():
        return
    with file.open("rb") as opened:
        start = opened.read(2)
    # torch writes an archive, and wrote a pickle before 1.6
    if start != b"\x80\x02" and not zipfile.is_zipfile(file):
        what = "cut off: it was not written or copied to its end" if start == b"PK" else "no checkpoint of the Trainer"
        hint = USE_A_STUDENT if file.suffix == ".safetensors" else "Give the path of a .ckpt file that a Trainer saved."
        raise DistillationError(f"The file {str(path)!r} is {what}. {hint}")


def check_content(checkpoint: Any, path: Any) -> None:
    """Refuse a file that holds something else than what a Trainer saves.

    Args:
        checkpoint: What was loaded.
        path: The file.

    Raises:
        DistillationError: If there is no ``state_dict`` in it.

    Example:
        >>> check_content({"state_dict": {}}, "last.ckpt")
    """
    if not isinstance(checkpoint, Mapping) or "state_dict" not in checkpoint:
        held = f"{[*map(str, checkpoint)][:3]}" if isinstance(checkpoint, Mapping) else f"a {type(checkpoint).__name__}"
        raise DistillationError(
            f"{str(path)!r} is no checkpoint of the Trainer: it has no 'state_dict', it holds {held}. {USE_A_STUDENT}"
        )


def check_projections(unknown: Sequence[str], trainer: Any) -> None:
    """Refuse to resume with other objectives: the optimizer's state would be that of other parameters.

    Args:
        unknown: The names of projections in a checkpoint that the module has no place for.
        trainer: The Trainer; outside of a fit there are no projections yet, and they are kept.

    Raises:
        DistillationError: If there are any in a fit.

    Example:
        >>> check_projections(["objectives.0.projections.0.weight"], None)
    """
    if unknown and trainer is not None and trainer.state.fn == "fit":
        raise DistillationError(
            f"The checkpoint is one of other objectives: it holds {len(unknown)} weights of projections that these do "
            f"not have ({unknown[0]!r}). Resume with the objectives of that run."
        )


def guard(trainer: Any) -> None:
    """Have a Trainer say clearly what is wrong with a file that it is to load.

    No hook knows the path of ``ckpt_path`` before the file is read, so that the reading itself is wrapped.

    Args:
        trainer: The Trainer, or None.
    """
    io = getattr(getattr(trainer, "strategy", None), "checkpoint_io", None)
    if io is None or "load_checkpoint" in vars(io):
        return
    load = io.load_checkpoint

    @functools.wraps(load)
    def checked(path: Any, *args: Any, **kwargs: Any) -> Any:
        check_file(path)
        checkpoint = load(path, *args, **kwargs)
        check_content(checkpoint, path)
        return checkpoint

    io.load_checkpoint = checked
