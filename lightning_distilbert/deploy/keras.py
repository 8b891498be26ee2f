"""A saved student in Keras, compared with itself: for those who train or serve with it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from lightning_distilbert.deploy.graph import Graph
from lightning_distilbert.deploy.job import Job
from lightning_distilbert.deploy.keras_model import INPUTS, build_keras, run_keras
from lightning_distilbert.deploy.onnx import OPSET
from lightning_distilbert.errors import DistillationError
from lightning_distilbert.module import DistillationModule
from lightning_distilbert.prediction import room
from lightning_distilbert.saved import load

# how far an output may differ, as a share of the largest one or of 1
TOLERANCE = 1e-4
# of what tokenizers differ in: case, accents, punctuation, numbers, other scripts, special tokens
TEXTS = (
    "The film was FINE.",
    "A café, naïve actors, and a plot that isn't there: 3.5 of 10 (or less)!",
    "東京 is a city; what does [MASK] mean to it, though?",
    "dull",
)


def to_keras(model: str | Path | DistillationModule, texts: Sequence[str] = TEXTS) -> Any:
    """Return a student as a Keras model that KerasHub runs.

    The outputs are compared with those of the student in PyTorch, within 1e-4 of the largest one; for a classifier so
    are the tokens.

    Args:
        model: The folder of a saved student, or a module.
        texts: On which both are compared. Some of your own are the better proof.

    Returns:
        A ``keras_hub.models.DistilBertTextClassifier`` for text classification and reranking, which predicts from texts
        and can be trained on. For other tasks a ``keras.Model`` that takes ``token_ids`` and ``padding_mask``, int32 of
        shape ``(batch, sequence)``, and returns ``logits`` (tokens), ``start_logits`` and ``end_logits`` (question
        answering) or ``sentence_embedding`` (retrieval).

    Raises:
        DistillationError: If KerasHub has no such model, or it computes or reads something else than the student.
        MissingExtraError: If KerasHub is missing.

    Example:
        >>> to_keras("/no/such/folder")
        Traceback (most recent call last):
        ...
        lightning_distilbert.errors.DistillationError: ...
    """
    if isinstance(texts, str) or not texts:
        raise DistillationError(f"texts={texts!r}: give a list of texts, on which the Keras model is compared.")
    module = load(model) if isinstance(model, (str, Path)) else model
    job = Job(module, "keras", OPSET)
    longest = room(module)
    built = build_keras(job.graph, job.tokenizer, longest)
    encoded = job.tokenizer(list(texts), padding=True, truncation=True, max_length=longest, return_tensors="np")
    batch = {name: np.asarray(encoded[name], dtype=np.int64) for name in INPUTS}
    _check_outputs(job.graph, built, batch, texts)
    if getattr(built, "preprocessor", None) is not None:
        _check_tokens(built, batch, texts)
    return built


def _check_outputs(graph: Graph, built: Any, batch: dict[str, np.ndarray], texts: Sequence[str]) -> None:
    with torch.no_grad():
        wanted = graph(**{name: torch.from_numpy(array) for name, array in batch.items()})
    found = run_keras(built, batch, list(graph.outputs))
    real = batch["attention_mask"].astype(bool)
    for (name, axes), tensor in zip(graph.outputs.items(), wanted, strict=True):
        theirs, mine = tensor.numpy(), found[name]
        difference = np.abs(mine - theirs)
        if "sequence" in axes:
            difference[~real], theirs = 0, theirs[real]
        allowed = TOLERANCE * max(1.0, float(np.abs(theirs).max()))
        worst = difference.reshape(len(texts), -1).max(axis=1)
        if not worst.max() <= allowed:  # nor NaN
            raise DistillationError(
                f"The Keras model does not compute what the student does: its {name} differ by up to {worst.max():.2g} "
                f"on {texts[int(worst.argmax())]!r}, and {allowed:.2g} is allowed. Please report it, with the versions "
                "of keras and keras-hub."
            )


def _check_tokens(built: Any, batch: dict[str, np.ndarray], texts: Sequence[str]) -> None:
    read = np.asarray(built.preprocessor(list(texts))["token_ids"])
    for text, mine, ids, mask in zip(texts, read, batch["input_ids"], batch["attention_mask"], strict=True):
        wanted, padding = ids[mask.astype(bool)], built.preprocessor.tokenizer.pad_token_id
        if not np.array_equal(mine[mine != padding], wanted):
            raise DistillationError(
                f"KerasHub's tokenizer reads {text!r} in another way than the student's: its tokens are "
                f"{mine[mine != padding].tolist()} and not {wanted.tolist()}. It has no rule for that; for such texts "
                "give the model the tokens of the student's own tokenizer, as token_ids and padding_mask."
            )
