from __future__ import annotations

import copy
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from scipy.special import log_softmax
from torch.nn import functional as F
from transformers import AutoModelForTokenClassification

from lightning_distilbert import DistillationError, TokenClassification
from lightning_distilbert.tasks.token_classification import TaggedWord, word_entities
from tests.encoders import CONFIGS, model_of

NAMES = ["O", "B-PER", "I-PER", "B-LOC", "I-LOC"]
TASK = TokenClassification(labels=NAMES)


def batch(rows: int = 4, length: int = 9, seed: int = 0) -> dict[str, torch.Tensor]:
    """Words at some tokens, of which some have a label; the first row is padded, the last has no word at all."""
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(5, 60, (rows, length), generator=generator)
    mask = torch.ones_like(ids)
    mask[0, 5:] = 0
    first = (torch.rand(ids.shape, generator=generator) < 0.6) & mask.bool()
    first[-1] = False
    first[1, 2:4] = True
    labels = torch.where(first, torch.randint(0, 5, ids.shape, generator=generator), -100)
    labels[2] = -100  # a sentence without tags
    place = first.cumsum(dim=1) - 1
    return {
        "input_ids": ids, "attention_mask": mask, "labels": labels, "first_subword": first,
        "word": torch.where(first, place, -1), "sentence": torch.arange(rows),
    }  # fmt: skip


@pytest.mark.parametrize("name", CONFIGS)
def test_the_head_is_evaluated_at_words_alone_in_every_architecture(name: str):
    model = model_of(name, AutoModelForTokenClassification, num_labels=5)
    data, seen = batch(), []
    hook = model.classifier.register_forward_hook(lambda module, args, output: seen.append(tuple(output.shape)))
    with torch.no_grad():
        narrow = TASK.run(model, data)["logits"]
        whole = model(data["input_ids"], attention_mask=data["attention_mask"]).logits
    hook.remove()
    assert seen[0] == (int(data["first_subword"].sum()), 5)
    torch.testing.assert_close(narrow, whole[data["first_subword"]])


def test_loss_and_gradient_are_those_of_a_loop_over_words():
    model, data = model_of("bert", AutoModelForTokenClassification, num_labels=5), batch()
    outputs = TASK.run(model, data)
    loss = TASK.loss(outputs, data)
    logits = model(data["input_ids"], attention_mask=data["attention_mask"]).logits.detach().double().numpy()
    terms = [
        -log_softmax(logits[row, place])[data["labels"][row, place]]
        for row, place in np.argwhere(data["first_subword"].numpy())
        if data["labels"][row, place] >= 0
    ]
    assert loss.item() == pytest.approx(np.mean(terms), rel=1e-5)
    other = copy.deepcopy(model)
    loss.backward()
    other(data["input_ids"], attention_mask=data["attention_mask"], labels=data["labels"]).loss.backward()
    for mine, theirs in zip(model.parameters(), other.parameters(), strict=True):
        torch.testing.assert_close(mine.grad, theirs.grad)


def test_what_stands_at_padding_and_within_words_changes_nothing():
    model, data = model_of("bert", AutoModelForTokenClassification, num_labels=5), batch()
    changed = {**data, "input_ids": torch.where(data["attention_mask"].bool(), data["input_ids"], 7)}
    within = ~data["first_subword"] & (data["labels"] == -100)
    changed["labels"] = torch.where(within, 3, data["labels"])  # no word begins there
    first, second = (TASK.loss(TASK.run(model, one), one) for one in (data, changed))
    torch.testing.assert_close(first, second)


def test_a_batch_without_labels_has_no_loss_and_one_without_a_labelled_word_a_loss_of_zero():
    model, data = model_of("bert", AutoModelForTokenClassification, num_labels=5), batch()
    none = {name: value for name, value in data.items() if name != "labels"}
    assert TASK.loss(TASK.run(model, none), none) is None
    for changed in ({"labels": torch.full_like(data["labels"], -100)}, {"first_subword": data["word"] > 99}):
        empty = {**data, **changed}
        loss = TASK.loss(TASK.run(model, empty), empty)
        assert loss == 0
        loss.backward()
        assert all(p.grad is None or not p.grad.any() for p in model.parameters())
        model.zero_grad()


def test_positions_of_batches_of_another_making():
    data = batch()
    assert torch.equal(TASK.positions(data), data["first_subword"])
    labels = {name: data[name] for name in ("input_ids", "attention_mask", "labels")}
    assert torch.equal(TASK.positions(labels), data["labels"] != -100)
    assert torch.equal(TASK.positions({"input_ids": data["input_ids"], "attention_mask": data["attention_mask"]}),
                       data["attention_mask"].bool())  # fmt: skip
    assert TASK.positions({"input_ids": data["input_ids"]}).all()


def test_scores_count_windows_once_and_words_that_no_token_stands_for():
    # "Anna Maria | lives in Rome", in two windows that came in different batches; the last word is no token at all
    task = TokenClassification(labels=NAMES)
    scores = task.new_metrics()

    def window(labels: list[int], guess: list[int], words: list[int], unseen: list[list[int]]) -> None:
        word = torch.tensor([[-1, *words]])
        data = {
            "labels": torch.tensor([[-100, *labels]]), "first_subword": word >= 0, "word": word,
            "sentence": torch.tensor([7]), "unseen": torch.tensor(unseen).reshape(-1, 3),
        }  # fmt: skip
        task.update_metrics(scores, {"logits": F.one_hot(torch.tensor(guess), 5).float()}, data)

    window([2, 0, 0], [2, 0, 0], [1, 2, 3], [])
    window([1], [1], [0], [[7, 4, 3]])
    assert scores.tags() == (
        [["B-PER", "I-PER", "O", "O", "O"]], [["B-PER", "I-PER", "O", "O", "B-LOC"]]
    )  # fmt: skip
    found = {name: round(float(value), 3) for name, value in scores.compute().items()}
    assert found == {"precision": 1.0, "recall": 0.5, "f1": 0.667, "accuracy": 0.8, "exact": 0.0}


def test_scores_of_batches_of_another_making_take_each_row_for_a_sentence():
    task = TokenClassification(labels=NAMES)
    scores = task.new_metrics()
    for _ in range(2):
        data = {"labels": torch.tensor([[-100, 1, 2], [3, -100, -100]])}
        task.update_metrics(scores, {"logits": F.one_hot(torch.tensor([1, 2, 0]), 5).float()}, data)
    assert sorted(scores.tags()[0]) == [["B-PER", "I-PER"]] * 2 + [["O"]] * 2
    assert scores.compute()["recall"] == 0.5
    before = len(scores.sentence)
    task.update_metrics(scores, {"logits": torch.zeros(3, 5)}, {"first_subword": data["labels"] >= 0})
    assert len(scores.sentence) == before  # no labels


def test_names_of_labels_reach_the_metrics():
    task = TokenClassification(num_labels=3)
    metrics = task.new_metrics()
    task.name_labels(metrics, ("O", "B-X", "I-X"))
    assert metrics.labels == ["O", "B-X", "I-X"]
    task.name_labels(metrics, None)
    with pytest.raises(DistillationError, match="labels have no names"):
        metrics.update(*torch.zeros(4, 1, dtype=torch.long))


def test_options_end_up_in_the_head_and_in_the_name_of_the_best_score():
    assert TASK.num_labels == 5
    config = TASK.model_config()
    assert config["id2label"][3] == "B-LOC"
    assert config["label2id"]["B-LOC"] == 3
    assert TokenClassification(num_labels=4).model_config() == {"num_labels": 4}
    assert TokenClassification(num_labels=4, monitor="exact").monitor == "val/exact"
    assert set(TASK.new_metrics().labels) == set(NAMES)
    again = TokenClassification(monitor="recall").with_labels(["O", "B-X"])
    assert (again.labels, again.num_labels, again.monitor) == (("O", "B-X"), 2, "val/recall")
    assert TASK.with_labels(["O", "B-X"]) is TASK


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"labels": ["O", "PER"]}, "The tag 'PER' is not known"),
        ({"labels": ["B-PER", "I-PER"]}, "are no tags of entities"),
        ({"labels": ["O", "B-PER", "B-PER"]}, "names a label twice"),
        ({"labels": ["O", "B-PER"], "num_labels": 3}, "num_labels=3, but 2 labels are named"),
        ({"num_labels": 1}, "num_labels=1 is no choice"),
        ({"num_labels": 3, "monitor": "f2"}, r"monitor=.*'f2'.*'f1'"),
    ],
)
def test_options_that_contradict_each_other_are_refused(options: dict[str, Any], match: str):
    with pytest.raises(DistillationError, match=match):
        TokenClassification(**options)


def test_labels_that_nobody_names_are_refused():
    with pytest.raises(DistillationError, match="neither labels nor num_labels"):
        TokenClassification().with_labels(None)
    with pytest.raises(DistillationError, match="labels have no names"):
        TokenClassification(num_labels=3).decode({"logits": torch.zeros(1, 3)})
    assert TokenClassification(num_labels=2).decode({"logits": torch.zeros(1, 2)}, ["O", "B-X"])[0]["label"] == "O"


def test_broken_tags_are_read_as_they_are_scored():
    tags = [2, 2, 0, 1, 4, 2]  # I-PER I-PER O B-PER I-LOC I-PER
    tagged = {place: TaggedWord(tag, 0.5 + place / 10) for place, tag in enumerate(tags)}
    words = ["a", "b", "c", "d", "e", "f"]
    found = word_entities(NAMES, tagged, words)
    assert [(entity["label"], entity["start"], entity["end"]) for entity in found] == [
        ("PER", 0, 2), ("PER", 3, 4), ("LOC", 4, 5), ("PER", 5, 6),
    ]  # fmt: skip
    assert found[0]["text"] == "a b"
    assert found[0]["score"] == pytest.approx(0.55)
    del tagged[1]  # a word that no token stands for is outside
    assert [entity["text"] for entity in word_entities(NAMES, tagged, words)] == ["a", "d", "e", "f"]


def test_what_is_no_text_is_refused():
    module = SimpleNamespace(labels=None)
    for texts, match in (
        ("Rome", "A single text was given, 'Rome'"),
        ([3], r"Entry 0 is '3'"),
        (["a", ["b", 2]], "Entry 1 is"),
    ):
        with pytest.raises(DistillationError, match=match):
            TASK.answer(module, texts)
