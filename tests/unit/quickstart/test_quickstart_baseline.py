from __future__ import annotations

import math
import sys
from collections import Counter

import pytest
import torch

from lightning_distilbert.errors import DistillationError, MissingExtraError
from lightning_distilbert.metrics import ranking_scores
from lightning_distilbert.quickstart.baseline import bm25_rankings

DOCUMENTS = [
    "sort rows table key",
    "plot line chart",
    "sort sort sort numbers list quickly merge heap",
    "read table file disk rows rows",
    "merge tables key column",
]


def by_hand(query: str) -> list[float]:
    """Lucene's BM25 with k1 = 1.5 and b = 0.75, in loops."""
    texts = [document.split() for document in DOCUMENTS]
    average = sum(map(len, texts)) / len(texts)
    scores = []
    for text in texts:
        score = 0.0
        for word in query.split():
            holding = sum(word in other for other in texts)
            idf = math.log(1 + (len(texts) - holding + 0.5) / (holding + 0.5))
            count = Counter(text)[word]
            score += idf * count / (count + 1.5 * (1 - 0.75 + 0.75 * len(text) / average))
        scores.append(score)
    return scores


@pytest.mark.parametrize("query", ["sort rows", "rows table", "merge key heap"])
def test_rankings_agree_with_the_formula(query: str) -> None:
    scores = by_hand(query)
    expected = sorted((i for i in range(5) if scores[i] > 0), key=lambda i: -scores[i])
    found = bm25_rankings([query], DOCUMENTS, top_k=5)
    assert found.shape == (1, 5)
    assert found[0].tolist() == expected + [-1] * (5 - len(expected))


def test_rankings_go_into_the_same_scores_as_embeddings() -> None:
    ranked = bm25_rankings(["plot chart", "read disk"], DOCUMENTS, top_k=2)
    assert ranked.shape == (2, 2)
    assert ranking_scores(ranked, torch.tensor([[1], [3]]))["mrr@10"].tolist() == [1.0, 1.0]


def test_it_is_quiet(capfd: pytest.CaptureFixture[str]) -> None:
    bm25_rankings(["sort"], DOCUMENTS, top_k=1)
    captured = capfd.readouterr()
    assert captured.out + captured.err == ""


@pytest.mark.parametrize(("queries", "documents", "top_k"), [([], ["a"], 1), (["a"], [], 1), (["a"], ["a"], 0)])
def test_input_is_checked(queries: list[str], documents: list[str], top_k: int) -> None:
    with pytest.raises(
        DistillationError, match=f"{len(queries)} queries, {len(documents)} documents and top_k={top_k}"
    ):
        bm25_rankings(queries, documents, top_k)


def test_the_missing_package_is_named_with_its_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "bm25s", None)
    with pytest.raises(MissingExtraError, match=r"lightning-distilbert\[quickstart\]"):
        bm25_rankings(["a"], ["a"])
