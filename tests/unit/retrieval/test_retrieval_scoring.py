from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from lightning_distilbert import DistillationModule, Reranking, Retrieval
from lightning_distilbert.errors import DistillationError
from lightning_distilbert.retrieval import scoring
from lightning_distilbert.retrieval.scoring import Pairs, PairScorer, score_all

QUERIES = ["the cat", "a long story of a man", "a dog"]
DOCUMENTS = ["great film", "the worst movie of the year and of all time", "a house"]
PAIRS = np.array([[q, d] for q in range(3) for d in range(3)])
TEXTS = [(QUERIES[q], DOCUMENTS[d]) for q, d in PAIRS]


@pytest.fixture
def module(tiny_bert_dir: Path) -> DistillationModule:
    """Return a cross-encoder with an untrained head."""
    module = DistillationModule(Reranking(), student=str(tiny_bert_dir))
    torch.nn.init.normal_(module.student.classifier.weight)
    return module.eval()


def one_by_one(module: DistillationModule, max_length: int = 64) -> list[float]:
    scores = []
    for query, document in TEXTS:
        row = module.tokenizer(query, document, truncation=True, max_length=max_length, return_tensors="pt")
        with torch.no_grad():
            scores.append(module.student(**row).logits.item())
    return scores


def test_scores_are_the_logits_of_the_joined_pair(module: DistillationModule, tmp_path: Path):
    assert PairScorer(module)(TEXTS) == pytest.approx(one_by_one(module), abs=1e-5)
    module.save_student(tmp_path / "reranker")
    assert PairScorer(tmp_path / "reranker", batch_size=2)(TEXTS) == pytest.approx(one_by_one(module), abs=1e-5)


def test_options_change_the_scores(module: DistillationModule):
    assert PairScorer(module, max_length=9)(TEXTS) == pytest.approx(one_by_one(module, 9), abs=1e-5)
    assert PairScorer(module, max_length=9)(TEXTS) != pytest.approx(one_by_one(module), abs=1e-3)
    low = PairScorer(module, precision="bf16-mixed")(TEXTS)
    assert low != pytest.approx(one_by_one(module), abs=1e-5)
    assert low == pytest.approx(one_by_one(module), abs=0.2)


def test_what_scores_otherwise_has_another_identity(module: DistillationModule):
    same = PairScorer(module).identity()
    assert PairScorer(module, batch_size=1).identity() == same
    assert PairScorer(module, max_length=9).identity() != same
    assert PairScorer(module, precision="bf16-mixed").identity() != same
    with torch.no_grad():
        module.student.classifier.bias += 1
    assert PairScorer(module).identity() != same


@pytest.mark.parametrize("chunk", [1, 4, 9, 100])
def test_all_pairs_are_scored_in_their_order(module: DistillationModule, monkeypatch: pytest.MonkeyPatch, chunk: int):
    monkeypatch.setattr(scoring, "CHUNK", chunk)
    found = score_all(PairScorer(module), QUERIES, DOCUMENTS, PAIRS)
    assert found.dtype == np.float32
    assert found.tolist() == pytest.approx(one_by_one(module), abs=1e-5)
    assert score_all(PairScorer(module), QUERIES, DOCUMENTS, PAIRS[:0]).shape == (0,)


def test_scores_survive_an_interruption(module: DistillationModule, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(scoring, "CHUNK", 4)
    calls = []
    plain = PairScorer.__call__

    def counted(self: PairScorer, pairs: list) -> list[float]:
        calls.append(len(pairs))
        if len(calls) == 2:
            raise KeyboardInterrupt
        return plain(self, pairs)

    monkeypatch.setattr(PairScorer, "__call__", counted)
    with pytest.raises(KeyboardInterrupt):
        score_all(PairScorer(module), QUERIES, DOCUMENTS, PAIRS, tmp_path / "scores.npy")
    for _ in range(2):  # gone on with, and then taken as it is
        found = score_all(PairScorer(module), QUERIES, DOCUMENTS, PAIRS, tmp_path / "scores.npy")
        assert found.tolist() == pytest.approx(one_by_one(module), abs=1e-5)
        assert calls == [4, 4, 4, 1]
    score_all(PairScorer(module, max_length=9), QUERIES, DOCUMENTS, PAIRS, tmp_path / "scores.npy")
    assert calls == [4, 4, 4, 1, 4, 4, 1]


@pytest.mark.parametrize("factor", [1, 2])
def test_scores_of_a_function_are_not_kept(tmp_path: Path, factor: int):
    def scorer(pairs: Pairs) -> list[float]:
        return [factor * len(query) for query, _ in pairs]

    found = score_all(scorer, QUERIES, DOCUMENTS, PAIRS, tmp_path / "scores.npy")
    assert found.tolist() == scorer(TEXTS)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        (lambda pairs: [1.0], "returned 1 scores for 9 pairs"),
        (lambda pairs: [float("nan")] * 9, r"gave nan to the pair \('the cat', 'great film'\)"),
        (lambda pairs: ["high"] * 9, "no list of numbers"),
        (lambda pairs: [{"score": 1.0}] * 9, "no list of numbers"),
        (lambda pairs: 1.0, "no list of numbers"),
    ],
)
def test_what_a_scorer_answers_is_checked(answer, message: str):
    with pytest.raises(DistillationError, match=message):
        score_all(answer, QUERIES, DOCUMENTS, PAIRS)


def test_models_and_options_are_checked(module: DistillationModule, tiny_bert_dir: Path):
    with pytest.raises(DistillationError, match="task Retrieval scores no pairs"):
        PairScorer(DistillationModule(Retrieval(), student=str(tiny_bert_dir)))
    with pytest.raises(DistillationError, match="batch_size=0"):
        PairScorer(module, batch_size=0)
    with pytest.raises(DistillationError, match="was given 'half'"):
        PairScorer(module, precision="half")
