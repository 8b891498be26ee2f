"""Those that build a Keras model need the extra keras: `make test-keras` installs it into an environment of its own."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tokenizers import normalizers
from transformers import BertTokenizer, DistilBertTokenizer

from lightning_distilbert import DistillationModule, Retrieval, Student, load
from lightning_distilbert.deploy import export, load_artefact
from lightning_distilbert.deploy.graph import Graph
from lightning_distilbert.deploy.keras_model import (
    INPUTS,
    KerasEngine,
    _tokenizer,
    build_keras,
    check_student,
    run_keras,
)
from lightning_distilbert.errors import DistillationError
from tests.conftest import save_tiny_bert, tiny_vocabulary
from tests.students import FILMS, TASKS

# keras, keras_hub and tensorflow warn of their own code
pytestmark = [pytest.mark.keras, pytest.mark.filterwarnings("ignore")]


def hub() -> Any:
    return pytest.importorskip("keras_hub", reason="needs the extra keras (make test-keras)")


def agrees(module: DistillationModule) -> float:
    """Return the largest difference between the Keras model of a student and its graph, at real tokens."""
    graph = Graph(module.task, module.student, module.tokenizer.model_input_names)
    encoded = module.tokenizer([*FILMS[:4], "the film"], padding=True, return_tensors="np")
    batch = {name: encoded[name].astype(np.int64) for name in INPUTS}
    found = run_keras(build_keras(graph, module.tokenizer, 64), batch, list(graph.outputs))
    with torch.no_grad():
        wanted = graph(**{name: torch.from_numpy(array) for name, array in batch.items()})
    real = batch["attention_mask"].astype(bool)
    return max(
        float(np.abs(found[name] - tensor.numpy())[real if "sequence" in axes else slice(None)].max())
        for (name, axes), tensor in zip(graph.outputs.items(), wanted, strict=True)
    )


@pytest.mark.parametrize("task", ["tokens", "questions", "reranking"])
def test_heads_are_copied(task: str, tmp_path: Path):
    hub()
    save, _ = TASKS[task]
    assert agrees(load(save(tmp_path))) < 1e-5


@pytest.mark.parametrize(("pooling", "normalize"), [("mean", True), ("cls", True), ("mean", False)])
def test_sentence_vectors_are_pooled_as_the_task_says(pooling: Any, normalize: bool, tmp_path: Path):
    hub()
    source = str(save_tiny_bert(tmp_path / "teacher"))
    student = Student(source=source, layers=2, architecture="distilbert")
    assert agrees(DistillationModule(Retrieval(pooling, normalize), student=student).eval()) < 1e-5


def test_artefact_answers_as_the_student(classifier: Path, films: list[dict[str, Any]], tmp_path: Path):
    hub()
    import keras

    done = export(classifier, tmp_path / "a", "keras", films)
    assert done.manifest["inputs"][0] == {"name": "token_ids", "dtype": "int32", "shape": ["batch", "sequence"]}
    assert [item["name"] for item in done.manifest["inputs"]] == ["token_ids", "padding_mask"]
    assert done.retention == 1.0
    wanted = load(classifier).predict(FILMS)
    assert [item["label"] for item in load_artefact(done.folder).predict(FILMS)] == [item["label"] for item in wanted]
    # without us
    logits = keras.saving.load_model(str(done.folder / "model.keras"), compile=False).predict(FILMS, verbose=0)
    assert [("bad", "good")[index] for index in logits.argmax(axis=1)] == [item["label"] for item in wanted]
    (tmp_path / "model.keras").write_bytes((done.folder / "model.keras").read_bytes()[:1000])
    with pytest.raises(DistillationError, match="cannot be loaded by Keras"):
        KerasEngine(tmp_path / "model.keras", done.manifest)


def make_tokenizer(**rules: Any) -> DistilBertTokenizer:
    words = [*tiny_vocabulary(), "É", "##É", "é", "##é", "東", "東京", "##京", *"ABCDEF"]
    return DistilBertTokenizer(vocab={word: index for index, word in enumerate(words)}, **rules)


@pytest.mark.parametrize(
    "rules", [{}, {"do_lower_case": False}, {"strip_accents": False}, {"tokenize_chinese_chars": False}]
)
def test_tokenizer_keeps_the_rules(rules: dict[str, bool]):
    tokenizer = make_tokenizer(**rules)
    copy = _tokenizer(hub(), tokenizer)
    for text in ("a CAFÉ, é!", "東京 city", "the [MASK] isn't 3.5"):
        assert np.asarray(copy(text)).tolist() == tokenizer(text, add_special_tokens=False)["input_ids"]


def test_tokenizers_of_another_kind_are_refused():
    tokenizer = make_tokenizer()
    tokenizer.backend_tokenizer.normalizer = normalizers.NFC()
    with pytest.raises(DistillationError, match="splits texts in another way than BERT's"):
        _tokenizer(None, tokenizer)
    vocabulary = {word: 2 * index for index, word in enumerate(tiny_vocabulary())}
    with pytest.raises(DistillationError, match="have gaps"):
        _tokenizer(None, BertTokenizer(vocab=vocabulary))


def test_activation_that_kerashub_has_not_is_refused(classifier: Path, tmp_path: Path):
    folder = shutil.copytree(classifier, tmp_path / "relu")
    config = folder / "config.json"
    config.write_text(config.read_text().replace('"activation": "gelu"', '"activation": "relu"'))
    with pytest.raises(DistillationError, match="activation is 'relu'"):
        export(folder, tmp_path / "a", "keras")
    assert not (tmp_path / "a").exists()


def test_sentence_vector_of_an_unknown_kind_is_refused(tmp_path: Path):
    class Own(Retrieval):
        pass

    student = Student(source=str(save_tiny_bert(tmp_path / "teacher")), layers=2, architecture="distilbert")
    module = DistillationModule(Retrieval(), student=student)
    task: Any = Own()
    task.pooling = "max"
    with pytest.raises(DistillationError, match="How Own makes a sentence vector"):
        check_student(Graph(task, module.student, module.tokenizer.model_input_names))
