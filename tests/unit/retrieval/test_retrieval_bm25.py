from __future__ import annotations

import math
import sys
from collections import Counter

import numpy as np
import pytest
import torch

from lightning_distilbert.errors import DistillationError, MissingExtraError
from lightning_distilbert.metrics import ranking_scores
from lightning_distilbert.retrieval.bm25 import BM25, best_of

DOCUMENTS = [
    "sort rows table key",
    "plot line chart",
    "sort sort sort numbers list quickly merge heap",
    "read table file disk rows rows",
    "merge tables key column",
]


def by_hand(query: str, k1: float = 1.5, b: float = 0.75) -> list[float]:
    """Lucene's BM25 in loops."""
    texts = [document.split() for document in DOCUMENTS]
    average = sum(map(len, texts)) / len(texts)
    scores = []
    for text in texts:
        score = 0.0
        for word in query.split():
            holding = sum(word in other for other in texts)
            idf = math.log(1 + (len(texts) - holding + 0.5) / (holding + 0.5))
            count = Counter(text)[word]
            score += idf * count / (count + k1 * (1 - b + b * len(text) / average))
        scores.append(score)
    return scores


@pytest.mark.parametrize("query", ["sort rows", "rows table", "merge key heap", "sort sort rows"])
@pytest.mark.parametrize("options", [{}, {"k1": 0.9, "b": 0.4}])
def test_scores_and_rankings_agree_with_the_formula(query: str, options: dict[str, float]):
    expected = by_hand(query, **options)
    index = BM25(DOCUMENTS, **options)
    scores, positions = index.search([query], top_k=5)
    order = sorted((i for i in range(5) if expected[i] > 0), key=lambda i: -expected[i])
    assert positions[0].tolist() == order + [-1] * (5 - len(order))
    assert scores[0].tolist() == pytest.approx([expected[i] for i in order] + [0.0] * (5 - len(order)), rel=1e-5)
    assert index.score([query], [np.arange(5)])[0].tolist() == pytest.approx(expected, rel=1e-5)


def test_options_change_the_scores():
    base = BM25(DOCUMENTS).search(["sort rows"], 5)[0]
    for options in ({"k1": 0.5}, {"b": 0.1}, {"stop_words": ["rows"]}):
        assert not torch.equal(BM25(DOCUMENTS, **options).search(["sort rows"], 5)[0], base)
    assert BM25(["the cat", "a dog"]).search(["the"], 1)[1].tolist() == [[-1]]
    assert BM25(["the cat", "a dog"], stop_words=[]).search(["the"], 1)[1].tolist() == [[0]]


@pytest.mark.parametrize("top_k", [1, 3, 4, 9])
def test_of_equal_scores_the_lower_position_comes_first(top_k: int):
    documents = ["cat dog", "cat bird", "fish", "dog cat", "cat fish"]
    _, positions = BM25(documents).search(["cat"], top_k)
    assert positions[0].tolist() == [0, 1, 3, 4, -1][:top_k]
    scores = np.random.default_rng(0).integers(0, 4, 50).astype(np.float32)
    order = sorted((place for place in range(50) if scores[place] > 0), key=lambda place: (-scores[place], place))
    assert best_of(scores, top_k).tolist() == order[:top_k]


def test_queries_without_a_known_word_find_nothing():
    _, positions = BM25(DOCUMENTS).search(["", "the", "zebra", "sort"], top_k=2)
    assert positions.tolist() == [[-1, -1], [-1, -1], [-1, -1], [2, 0]]


def test_rankings_go_into_the_same_scores_as_embeddings():
    _, ranked = BM25(DOCUMENTS).search(["plot chart", "read disk"], top_k=2)
    assert ranked.shape == (2, 2)
    assert ranking_scores(ranked, torch.tensor([[1], [3]]))["mrr@10"].tolist() == [1.0, 1.0]


def test_it_is_quiet(capfd: pytest.CaptureFixture[str]):
    BM25(DOCUMENTS).search(["sort"], top_k=1)
    captured = capfd.readouterr()
    assert captured.out + captured.err == ""


@pytest.mark.parametrize(
    ("documents", "options", "message"),
    [
        ([], {}, "None of the 0 documents has a word"),
        (["the of", "", "a"], {}, "None of the 3 documents has a word"),
        (["cat"], {"k1": -1}, "k1=-1 must be at least 0"),
        (["cat"], {"b": 1.5}, "b=1.5 lie between 0 and 1"),
    ],
)
def test_documents_and_options_are_checked(documents: list[str], options: dict[str, float], message: str):
    with pytest.raises(DistillationError, match=message):
        BM25(documents, **options)


def test_top_k_is_checked():
    with pytest.raises(DistillationError, match="top_k=0"):
        BM25(["cat"]).search(["cat"], top_k=0)


def test_the_missing_package_is_named_with_its_extra(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, "bm25s", None)
    with pytest.raises(MissingExtraError, match=r"lightning-distilbert\[retrieval\]"):
        BM25(["cat"])
