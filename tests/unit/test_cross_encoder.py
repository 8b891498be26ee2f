"""A cross-encoder as a teacher: which model is one, and what it says of the pairs of a batch."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from transformers import AutoModel, AutoModelForSequenceClassification, AutoTokenizer, BertModel

from lightning_distilbert import cross_encoder
from lightning_distilbert.cross_encoder import is_cross_encoder, pair_template, score_pairs, scores_in
from lightning_distilbert.errors import DistillationError
from lightning_distilbert.joining import PairTemplate
from lightning_distilbert.objectives import MarginMSE, SentenceEmbedding, SoftTargets
from lightning_distilbert.teacher import Teacher
from tests.conftest import save_tiny_bert

QUERIES = ["who sleeps", "who reads the long story"]
DOCUMENTS = ["the cat", "the child and the old man", "a dog", "the big house of the woman"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return save_tiny_bert(tmp_path_factory.mktemp("cross") / "encoder", num_labels=1, seed=3)


@pytest.fixture
def tokenizer(folder):
    return AutoTokenizer.from_pretrained(folder)


@torch.no_grad()
def by_hand(folder, tokenizer, pairs):
    model = AutoModelForSequenceClassification.from_pretrained(folder).eval()
    scores = [model(**tokenizer(*pair, return_tensors="pt")).logits.squeeze() for pair in pairs]
    return torch.stack(scores)


def batches(tokenizer):
    return (tokenizer(side, padding=True, return_tensors="pt") for side in (QUERIES, DOCUMENTS))


def test_only_a_classifier_with_one_output_is_one(folder, tiny_teacher_dir, tiny_bert_dir):
    load = AutoModelForSequenceClassification.from_pretrained
    assert is_cross_encoder(load(folder))
    assert not is_cross_encoder(load(tiny_teacher_dir))
    assert not is_cross_encoder(BertModel.from_pretrained(tiny_bert_dir, num_labels=1))
    assert not is_cross_encoder(nn.Linear(3, 1))


def test_it_scores_pairs_for_ranking_objectives_alone(folder, tiny_teacher_dir, tiny_bert_dir):
    assert pair_template(Teacher(folder), [MarginMSE()]) == PairTemplate.of(AutoTokenizer.from_pretrained(folder))
    assert pair_template(Teacher(folder), [SoftTargets()]) is None
    assert pair_template(Teacher(folder), [SentenceEmbedding()]) is None
    with pytest.warns(
        UserWarning, match="has one output, as a cross-encoder has, .* SentenceEmbedding make the student"
    ):
        assert pair_template(Teacher(folder), [SentenceEmbedding()], AutoModel.from_pretrained(folder)) is None
    with pytest.raises(DistillationError, match="is a sequence classifier with 2 outputs, and MarginMSE takes scores"):
        pair_template(Teacher(tiny_teacher_dir), [MarginMSE()])
    assert pair_template(Teacher(tiny_teacher_dir), [SentenceEmbedding()]) is None
    assert pair_template(Teacher(tiny_bert_dir), [MarginMSE()]) is None
    with pytest.raises(DistillationError, match=r"is a cross-encoder, .* it has nothing for SentenceEmbedding"):
        pair_template(Teacher(folder), [MarginMSE(), SentenceEmbedding()])
    model = AutoModelForSequenceClassification.from_pretrained(folder)
    with pytest.raises(DistillationError, match="a finished model, which comes without the tokenizer"):
        pair_template(Teacher(model), [MarginMSE()])


@pytest.mark.parametrize("chunk", [3, 256])
@pytest.mark.parametrize("own", [True, False])
def test_scores_are_those_of_the_model_on_the_pairs(folder, tokenizer, own, chunk, monkeypatch):
    monkeypatch.setattr(cross_encoder, "CHUNK", chunk)
    queries, documents = batches(tokenizer)
    found = score_pairs(Teacher(folder), PairTemplate.of(tokenizer), queries, documents, own)
    columns = [[0, 2], [1, 3]] if own else [[0, 1, 2, 3]] * 2
    pairs = [(QUERIES[row], DOCUMENTS[column]) for row in (0, 1) for column in columns[row]]
    expected = by_hand(folder, tokenizer, pairs).view(2, -1)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
    assert expected.std() > 5e-3  # and so more than the tolerance
    # the token types of the second text matter to this model
    for side in (queries, documents):
        del side["token_type_ids"]
    torch.testing.assert_close(
        score_pairs(Teacher(folder), PairTemplate.of(tokenizer), queries, documents, own),
        expected,
        rtol=1e-4,
        atol=1e-5,
    )


def test_a_text_without_a_token_has_no_score(folder, tokenizer):
    queries, documents = batches(tokenizer)
    queries["attention_mask"][1] = 0
    documents["attention_mask"][2] = 0
    found = score_pairs(Teacher(folder), PairTemplate.of(tokenizer), queries, documents, own=True)
    assert found.isnan().tolist() == [[False, True], [True, True]]
    queries["attention_mask"][0] = 0
    assert score_pairs(Teacher(folder), PairTemplate.of(tokenizer), queries, documents, own=True).isnan().all()


def test_its_own_encoding_is_read_where_the_batch_brings_it(folder, tokenizer):
    queries, documents = batches(tokenizer)
    expected = score_pairs(Teacher(folder), PairTemplate.of(tokenizer), queries, documents, own=True)
    renamed = [
        {f"teacher_{name}": value for name, value in side.items()}
        | {"input_ids": torch.zeros(len(side["input_ids"]), 1)}
        for side in (queries, documents)
    ]
    assert torch.equal(score_pairs(Teacher(folder), PairTemplate.of(tokenizer), *renamed, own=True), expected)


def test_scores_of_a_batch():
    scores = torch.rand(2, 3)
    assert torch.equal(scores_in({"scores": scores}, 2, 6), scores)
    assert scores_in({"query": 1}, 2, 6) is None
    assert scores_in((scores,), 2, 6) is None
    for wrong in (scores.T, scores[0], [[1.0, 2.0, 3.0]] * 2):
        with pytest.raises(DistillationError, match=r"for 2 queries and 6 documents: they must be \(2, 3\)"):
            scores_in({"scores": wrong}, 2, 6)
