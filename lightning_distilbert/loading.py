"""Loading transformers models: one clear error, no noise, and no random weights that nobody asked for."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
import transformers
from transformers import PreTrainedModel
from transformers.utils import logging as hf_logging

from lightning_distilbert.architectures import backbone
from lightning_distilbert.errors import DistillationError


def load_model(
    source: str | Path, auto_class: str = "AutoModel", trust_remote_code: bool = False, whole: bool = False
) -> PreTrainedModel:
    """Load a model in float32 and check that its encoder came whole.

    transformers fills weights that a folder lacks with random ones and says so in a table among other tables. Here a
    missing encoder weight is an error. A missing head is silent for a student, since fine-tuning starts with one, and
    an error for a teacher. A missing pooler of an encoder without a head is neither: no signal is taken from there.

    Args:
        source: A folder or a hub name.
        auto_class: The transformers class to load it with, an auto class or one of its own.
        trust_remote_code: Whether code that comes with the model may run.
        whole: Whether the head must be there too.

    Returns:
        The model, in eval mode.

    Raises:
        DistillationError: If there is no such folder or model, or weights are missing.
    """
    name = os.path.expanduser(str(source))
    loader = model_class(auto_class)
    check_folder(name)
    # a download keeps its progress bar; a folder needs none
    with building(progress=not os.path.isdir(name)):
        try:
            model, report = loader.from_pretrained(
                name, dtype=torch.float32, output_loading_info=True, trust_remote_code=trust_remote_code
            )
        except Exception as error:  # safetensors, the hub and remote code each raise their own kinds
            raise DistillationError(
                f"The model {name!r} could not be loaded with {auto_class} ({type(error).__name__}: {short(error)}). "
                "Give the path of a folder with config.json and model.safetensors, or the name of a model on the hub."
            ) from error
    encoder = "" if backbone(model) is model else f"{model.base_model_prefix}."
    pooler = f"{encoder}pooler."
    missing = sorted(key for key in report["missing_keys"] if encoder or not key.startswith(pooler))
    lost = [key for key in missing if key.startswith(encoder) and not key.startswith(pooler)]
    if lost:
        raise DistillationError(
            f"{len(lost)} encoder weights are missing in {name!r}, the first is {lost[0]!r}: its weights do not "
            f"belong to its config.json (model_type {model.config.model_type!r}). Save the model again."
        )
    if whole and missing:
        raise DistillationError(
            f"{len(missing)} weights of the head are missing in {name!r}, the first is {missing[0]!r}: they would be "
            "random. Fine-tune and save the model with this head first."
        )
    if missing or hasattr(model.config, "fresh_head"):
        model.config.fresh_head = bool(missing)  # a student may have one, and it should not be saved untrained
    return model


def check_folder(name: str) -> None:
    """Say what is wrong with a folder in one sentence, before transformers takes it for a hub name."""
    path = Path(name)
    if not path.exists():
        if path.is_absolute() or name.startswith(".") or name.count("/") > 1:  # no hub name looks like that
            raise DistillationError(f"The model folder {name!r} does not exist. Check the path.")
        return
    if not path.is_dir():
        raise DistillationError(f"{name!r} is a file. Give the folder that holds config.json and model.safetensors.")
    if not (path / "config.json").is_file():
        inside = ", ".join(sorted(item.name for item in path.iterdir())[:5]) or "nothing"
        raise DistillationError(f"The folder {name!r} has no config.json, so it holds no model (it holds {inside}).")
    weights = ("*.safetensors", "*.safetensors.index.json", "pytorch_model*.bin", "pytorch_model.bin.index.json")
    if not any(any(path.glob(pattern)) for pattern in weights):
        raise DistillationError(
            f"The model folder {name!r} has a config.json and no weights (model.safetensors). "
            "Save the model with save_pretrained, or copy the weights there."
        )


@contextlib.contextmanager
def quiet(progress: bool = False) -> Iterator[None]:
    """Silence transformers' reports and progress bars, for the time of a ``with`` block.

    Args:
        progress: Whether progress bars stay.
    """
    level, bars = hf_logging.get_verbosity(), hf_logging.is_progress_bar_enabled()
    hf_logging.set_verbosity_error()
    if bars and not progress:
        hf_logging.disable_progress_bar()
    try:
        yield
    finally:
        hf_logging.set_verbosity(level)
        if bars and not progress:
            hf_logging.enable_progress_bar()


@contextlib.contextmanager
def building(progress: bool = False) -> Iterator[None]:
    """Build on the CPU whatever device context is open, without transformers' reports of fresh heads.

    Args:
        progress: Whether progress bars stay.
    """
    with quiet(progress), torch.device("cpu"):
        yield


def model_class(name: str) -> Any:
    """Return a model class of transformers by its name.

    Args:
        name: An auto class, or the class of one architecture.

    Raises:
        DistillationError: If transformers has no such class.

    Example:
        >>> model_class("AutoModel").__name__
        'AutoModel'
    """
    found = getattr(transformers, name, None)
    if name.startswith("AutoModel") and found is not None:
        return found
    if isinstance(found, type) and issubclass(found, PreTrainedModel):
        return found
    raise DistillationError(
        f"{name!r} is no model class of transformers {transformers.__version__}. "
        "Use an auto class such as 'AutoModel' or 'AutoModelForSequenceClassification'."
    )


def short(error: Exception) -> str:
    """Return the first line of what an error says."""
    return (str(error).strip().splitlines() or ["no message"])[0][:300]
