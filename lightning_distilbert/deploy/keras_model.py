"""A student's graph as a Keras model, built by KerasHub: in a file, and run."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.torch import save_file
from transformers import PreTrainedTokenizerBase

from lightning_distilbert.architectures import backbone as backbone_of
from lightning_distilbert.deploy.graph import Graph
from lightning_distilbert.errors import DistillationError, require
from lightning_distilbert.loading import short
from lightning_distilbert.placing import is_disk_error

KERAS_FILE = "model.keras"
# what KerasHub calls the inputs of a student
INPUTS = {"input_ids": "token_ids", "attention_mask": "padding_mask"}


def build_keras(graph: Graph, tokenizer: PreTrainedTokenizerBase, longest: int) -> Any:
    """Build a graph in Keras: KerasHub loads the DistilBERT as from a saved folder, and the head is copied here.

    KerasHub (0.32) does not load heads: its ``DistilBertTextClassifier.from_preset`` leaves a random one without a
    word. Nor does its tokenizer read more of a folder than the vocabulary and whether text is lower-cased.

    Args:
        graph: The graph; `check_student` has accepted it.
        tokenizer: The student's tokenizer, which a classifier gets a copy of.
        longest: The longest text of a classifier in tokens.

    Returns:
        For text classification and reranking a ``DistilBertTextClassifier``, which takes texts; else a model that takes
        ``token_ids`` and ``padding_mask`` and returns the graph's outputs by name.

    Raises:
        DistillationError: If a classifier's tokenizer is of a kind that KerasHub's DistilBERT has not.
        MissingExtraError: If KerasHub is missing.
    """
    hub, keras = require("keras_hub", "keras"), require("keras", "keras")
    with tempfile.TemporaryDirectory() as made:
        folder = Path(made)
        (folder / "config.json").write_text(graph.model.config.to_json_string(use_diff=False), encoding="utf-8")
        # the names of a model with a head, for KerasHub knows no others
        weights = backbone_of(graph.model).state_dict()
        save_file(
            {f"distilbert.{name}": tensor.contiguous() for name, tensor in weights.items()},
            folder / "model.safetensors",
        )
        # the type is given since the user's default may be another one
        backbone = hub.models.DistilBertBackbone.from_preset(str(folder), dtype="float32")
    arrays = {name: tensor.numpy() for name, tensor in graph.model.state_dict().items()}
    kind = type(graph.model).__name__
    if kind == "DistilBertForSequenceClassification":
        preprocessor = hub.models.DistilBertTextClassifierPreprocessor(
            _tokenizer(hub, tokenizer), sequence_length=longest
        )
        model = hub.models.DistilBertTextClassifier(
            backbone=backbone, num_classes=len(arrays["classifier.bias"]), preprocessor=preprocessor
        )
        _copy(arrays, "pre_classifier", model.pooled_dense)
        _copy(arrays, "classifier", model.output_dense)
        return model
    hidden = backbone(backbone.input)
    if kind == "DistilBertModel":
        outputs = {"sentence_embedding": _pooled(keras, graph.task, hidden, backbone.input["padding_mask"])}
    else:
        head = "qa_outputs" if kind == "DistilBertForQuestionAnswering" else "classifier"
        layer = keras.layers.Dense(len(arrays[f"{head}.bias"]), dtype="float32", name=head)
        found = layer(hidden)
        _copy(arrays, head, layer)
        spans = {"start_logits": found[:, :, 0], "end_logits": found[:, :, 1]} if head == "qa_outputs" else None
        outputs = spans or {"logits": found}
    return keras.Model(backbone.input, outputs)


def check_student(graph: Any) -> None:
    """Refuse a student that KerasHub has no model for.

    Args:
        graph: Its graph.

    Raises:
        DistillationError: If it has none.
    """
    config: Any = graph.model.config
    kind, task = type(graph.model).__name__, graph.task
    known = ("DistilBertModel", *(f"DistilBertFor{head}Classification" for head in ("Sequence", "Token")))
    if kind not in (*known, "DistilBertForQuestionAnswering"):
        raise DistillationError(
            f"A {kind} is none of the students that Keras models are made of: DistilBERT for text or token "
            "classification, question answering, reranking and retrieval. Distil with architecture='distilbert', or "
            "choose another format."
        )
    if config.activation != "gelu":
        raise DistillationError(
            f"The student's activation is {config.activation!r}, and KerasHub's DistilBERT has 'gelu' alone. Choose "
            "another format."
        )
    if kind == "DistilBertModel" and getattr(task, "pooling", None) not in ("mean", "cls"):
        raise DistillationError(
            f"How {type(task).__name__} makes a sentence vector is not known here: a Retrieval with pooling 'mean' or "
            "'cls' becomes a Keras model."
        )


def _copy(arrays: Mapping[str, np.ndarray], name: str, layer: Any) -> None:
    layer.set_weights([arrays[f"{name}.weight"].T, arrays[f"{name}.bias"]])


def _pooled(keras: Any, task: Any, hidden: Any, mask: Any) -> Any:
    ops = keras.ops
    vectors = hidden[:, 0, :]
    if task.pooling == "mean":
        real = ops.cast(ops.expand_dims(mask, -1), "float32")
        vectors = ops.sum(hidden * real, axis=1) / ops.maximum(ops.sum(real, axis=1), 1.0)
    return ops.normalize(vectors, axis=-1, order=2, epsilon=1e-12) if task.normalize else vectors


def _tokenizer(hub: Any, tokenizer: PreTrainedTokenizerBase) -> Any:
    """Return KerasHub's tokenizer with the rules of ours, so far as it has them."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    rules = json.loads(backend.to_str()) if backend is not None else {"model": {}, "normalizer": None}
    normalizer = rules["normalizer"] or {}
    words = sorted(tokenizer.get_vocab().items(), key=lambda item: item[1])
    if rules["model"].get("type") != "WordPiece" or normalizer.get("type") != "BertNormalizer":
        raise DistillationError(
            f"The student's {type(tokenizer).__name__} splits texts in another way than BERT's, and KerasHub's "
            "DistilBERT reads as BERT does. Choose another format."
        )
    if [index for _, index in words] != list(range(len(words))):
        raise DistillationError(
            f"The numbers of the tokens of the student's {type(tokenizer).__name__} have gaps, and KerasHub numbers "
            "them by their lines in a vocab.txt. Choose another format."
        )
    lower, strip = normalizer["lowercase"], normalizer["strip_accents"]
    try:
        return hub.models.DistilBertTokenizer(
            vocabulary=[word for word, _ in words],
            lowercase=lower,
            strip_accents=lower if strip is None else strip,
            split_on_cjk=normalizer["handle_chinese_chars"],
            oov_token=rules["model"]["unk_token"],
            special_tokens_in_strings=True,
        )
    except ValueError as error:
        raise DistillationError(f"KerasHub cannot take the student's vocabulary: {short(error)}") from error


def run_keras(model: Any, batch: Mapping[str, np.ndarray], names: list[str]) -> dict[str, np.ndarray]:
    """Run what `build_keras` built.

    Args:
        model: The model.
        batch: Integer arrays of shape ``(batch, sequence)``, by the student's names of the inputs.
        names: The names of the outputs.

    Returns:
        float32 arrays by name.
    """
    convert = require("keras", "keras").ops.convert_to_numpy
    found = model({theirs: batch[name].astype(np.int32) for name, theirs in INPUTS.items()}, training=False)
    found = found if isinstance(found, Mapping) else {names[0]: found}
    # a copy: torch wants one that it may write to
    return {name: np.array(convert(found[name]), dtype=np.float32) for name in names}


def write_keras(model: Any, graph: Graph, folder: Path) -> str:
    """Write a Keras model as a file.

    Args:
        model: What `build_keras` built.
        graph: The graph that it was built of.
        folder: Where to.

    Returns:
        The file's name.
    """
    try:
        model.save(str(folder / KERAS_FILE))
    except Exception as error:  # of many kinds
        if is_disk_error(error):
            raise
        raise DistillationError(f"Keras cannot save a {type(graph.model).__name__} ({short(error)}).") from error
    return KERAS_FILE


class KerasEngine:
    """A file of Keras, run by the backend that Keras is set to.

    Args:
        path: The file. Keras refuses one that brings code of its own.
        facts: The manifest: ``outputs``.
        threads: Not used: each backend has its own setting for the process.

    Raises:
        DistillationError: If the file cannot be loaded.
        MissingExtraError: If KerasHub is missing.
    """

    def __init__(self, path: Path, facts: Mapping[str, Any], threads: int | None = None) -> None:
        require("keras_hub", "keras")  # which knows what the layers in the file are
        keras = require("keras", "keras")
        self.inputs = list(INPUTS)
        self.outputs = [item["name"] for item in facts["outputs"]]
        try:
            self._model = keras.saving.load_model(str(path), compile=False, safe_mode=True)
        except Exception as error:  # of many kinds
            raise DistillationError(
                f"{str(path)!r} cannot be loaded by Keras {keras.__version__} ({short(error)}). Is the file whole? "
                "Export the student again."
            ) from error

    def run(self, batch: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Run a batch.

        Args:
            batch: int64 arrays by the names of the inputs.
        """
        return run_keras(self._model, batch, self.outputs)
