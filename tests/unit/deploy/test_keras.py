"""Those that build a Keras model need the extra keras: `make test-keras` installs it into an environment of its own."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoModel

from lightning_distilbert import load
from lightning_distilbert.deploy import keras as keras_files
from lightning_distilbert.deploy import to_keras
from lightning_distilbert.errors import DistillationError, MissingExtraError
from tests.students import FILMS, TASKS

# keras, keras_hub and tensorflow warn of their own code
pytestmark = [pytest.mark.keras, pytest.mark.filterwarnings("ignore")]


def hub() -> Any:
    return pytest.importorskip("keras_hub", reason="needs the extra keras (make test-keras)")


def test_full_disk_under_its_writer(full_disk: Callable[..., dict[str, list[Any]]]):
    hub()
    code, lines = full_disk("keras")["keras"]
    assert (code, len(lines)) == (2, 1)
    assert "could not be written (" in lines[0]


def logits(folder: Path) -> np.ndarray:
    module = load(folder)
    encoded = module.tokenizer(FILMS, padding=True, return_tensors="pt")
    with torch.no_grad():
        return module.student(encoded["input_ids"], encoded["attention_mask"]).logits.numpy()


def test_classifier_predicts_the_same_from_texts(classifier: Path):
    hub()
    model = to_keras(classifier, FILMS[:3])
    assert type(model).__name__ == "DistilBertTextClassifier"
    assert model.preprocessor.sequence_length == 64
    np.testing.assert_allclose(model.predict(FILMS, verbose=0), logits(classifier), atol=1e-4)


def test_kerashub_loads_the_body_of_a_saved_folder_by_itself(classifier: Path):
    body = hub().models.DistilBertBackbone.from_preset(str(classifier))
    module = load(classifier)
    encoded = module.tokenizer(FILMS, padding=True, return_tensors="pt")
    mask = encoded["attention_mask"].bool()
    with torch.no_grad():
        wanted = AutoModel.from_pretrained(classifier).eval()(**encoded).last_hidden_state[mask]
    found = body({"token_ids": encoded["input_ids"].numpy(), "padding_mask": mask.int().numpy()})
    np.testing.assert_allclose(np.asarray(found)[mask.numpy()], wanted.numpy(), atol=1e-5)


def test_head_that_kerashub_leaves_random_is_found(classifier: Path, monkeypatch: pytest.MonkeyPatch):
    kind = hub().models.DistilBertTextClassifier
    random = kind.from_preset(str(classifier), num_classes=2, preprocessor=None)
    monkeypatch.setattr(keras_files, "build_keras", lambda graph, tokenizer, longest: random)
    with pytest.raises(DistillationError, match=r"does not compute what the student does: its logits differ by up to"):
        to_keras(classifier)


def test_text_that_its_tokenizer_reads_in_another_way_is_found(classifier: Path):
    hub()
    with pytest.raises(DistillationError, match=r"tokenizer reads 'die straße' in another way"):
        to_keras(classifier, ["the film", "die straße"])


@pytest.mark.parametrize("texts", ["a film", []])
def test_texts_are_a_list(classifier: Path, texts: Any):
    with pytest.raises(DistillationError, match="give a list of texts"):
        to_keras(classifier, texts)


@pytest.mark.parametrize(("task", "kind"), [("retrieval", "BertModel"), ("mlm", "DistilBertForMaskedLM")])
def test_students_that_kerashub_has_not_are_refused(tmp_path: Path, task: str, kind: str):
    save, _ = TASKS[task]
    with pytest.raises(DistillationError, match=f"A {kind} is none of the students"):
        to_keras(save(tmp_path))


def test_missing_package_names_the_extra(classifier: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, "keras_hub", None)
    with pytest.raises(MissingExtraError, match=r"lightning-distilbert\[keras\]"):
        to_keras(classifier)
