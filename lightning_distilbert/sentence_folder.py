"""What a sentence-transformers model says of itself in the files beside its weights."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import nn
from transformers.utils.hub import cached_file

from lightning_distilbert.errors import DistillationError
from lightning_distilbert.folder import SENTENCE_BERT, SENTENCE_TRANSFORMERS, load_tokenizer, read_object

CAPITALS = "AZ\u00c9\u03a9\u0416"  # of three scripts, one with an accent


def declared_pooling(source: str | Path | nn.Module) -> str | None:
    """Return the pooling that a sentence-transformers model declares, or None.

    Args:
        source: A folder or a hub name; a finished module declares none.

    Raises:
        DistillationError: If it declares one that is neither mean nor cls, or computes more than pooled vectors.
    """
    if isinstance(source, nn.Module):
        return None
    computed = ("Transformer", "Pooling", "Normalize", "Dropout")
    if others := [kind for kind in sentence_modules(source) if kind not in computed]:
        raise DistillationError(
            f"{source} is a sentence-transformers model with a {others[0]}, which is not computed here: its sentence "
            "vectors would be others. Pass pooling=... yourself to teach the vectors before it."
        )
    path = find_file(source, "1_Pooling/config.json")
    if path is None:
        return None
    declared = read_object(path)
    # folders say "pooling_mode_cls_token": true, with one such key for each mode, or "pooling_mode": "cls"
    modes = [key for key, value in declared.items() if key.startswith("pooling_mode_") and value is True]
    for mode, flag in (("mean", "pooling_mode_mean_tokens"), ("cls", "pooling_mode_cls_token")):
        if declared.get("pooling_mode") == mode or modes == [flag]:
            return mode
    raise DistillationError(
        f"{path} declares a pooling that is neither mean nor cls: {declared}. Pass pooling=... yourself."
    )


def changed_texts(source: str | Path) -> str | None:
    """Say how sentence-transformers changes texts before the model's tokenizer gets them; None if it does not.

    Args:
        source: A folder or a hub name.

    Raises:
        DistillationError: If one of its files is damaged.
    """
    path = find_file(source, SENTENCE_TRANSFORMERS)
    library = read_object(path)
    name, prompts = library.get("default_prompt_name"), library.get("prompts")
    prompt = prompts.get(name) if isinstance(name, str) and isinstance(prompts, Mapping) else None
    if prompt:
        return f"{path} puts a prompt before each text ({name!r}: {prompt!r})"
    path = find_file(source, SENTENCE_BERT)
    if read_object(path).get("do_lower_case") is True and not _lowers(load_tokenizer(source)):
        return f"{path} puts each text into lower case (do_lower_case), its tokenizer does not"
    return None


def _lowers(tokenizer: Any) -> bool:
    normalizer = getattr(getattr(tokenizer, "backend_tokenizer", None), "normalizer", None)
    if normalizer is None:
        return False
    return bool(normalizer.normalize_str(CAPITALS) == normalizer.normalize_str(CAPITALS.lower()))


def sentence_modules(source: str | Path) -> list[str]:
    """Return the kinds of modules that a sentence-transformers model lists; none for another model.

    Args:
        source: A folder or a hub name.

    Raises:
        DistillationError: If the list is damaged.
    """
    path = find_file(source, "modules.json")
    try:
        listed = json.loads(path.read_text(encoding="utf-8")) if path is not None else []
        return [str(module["type"]).rpartition(".")[2] for module in listed]
    except (ValueError, TypeError, KeyError) as error:
        raise DistillationError(f"{path} is no list of modules ({error}). Save the model again.") from error


def find_file(source: str | Path, name: str) -> Path | None:
    """Return a file that lies beside a model, in its folder or on the hub; None if there is none.

    Args:
        source: A folder or a hub name.
        name: The file's name there.
    """
    try:
        found = cached_file(os.path.expanduser(str(source)), name)
    except OSError:  # no such file, or no such model, which loading its weights says better
        return None
    return None if found is None else Path(found)
