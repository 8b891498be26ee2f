from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from lightning_distilbert import DistillationError
from lightning_distilbert.deploy.runtime import search
from lightning_distilbert.retrieval.search import search as torch_search


@pytest.mark.parametrize("similarity", ["cosine", "dot"])
@pytest.mark.parametrize("block", [3, 4096])
def test_it_finds_what_the_package_finds_also_where_scores_tie(similarity: str, block: int):
    random = np.random.default_rng(0)
    for _ in range(30):
        queries, documents, top_k = random.integers(1, 9), random.integers(1, 40), int(random.integers(1, 45))
        # powers of two along the axes: products are exact, and many tie
        left, right = (
            2.0 ** random.integers(-1, 2, (count, 1)) * np.eye(4)[random.integers(0, 4, count)]
            for count in (queries, documents)
        )
        wanted = torch_search(torch.tensor(left), torch.tensor(right), top_k, similarity)
        scores, places = search(left, right, top_k, similarity, block)
        assert scores.dtype == np.float32
        assert np.array_equal(scores, wanted[0])
        assert np.array_equal(places, wanted[1])


def test_it_reads_a_mapped_file_and_is_exact(tmp_path: Path):
    random = np.random.default_rng(1)
    np.save(tmp_path / "corpus.npy", random.normal(size=(500, 16)).astype(np.float16))
    corpus = np.load(tmp_path / "corpus.npy", mmap_mode="r")
    queries = random.normal(size=(7, 16))
    exact = (queries / np.linalg.norm(queries, axis=1, keepdims=True)) @ (
        corpus.astype(float) / np.linalg.norm(corpus.astype(float), axis=1, keepdims=True)
    ).T
    scores, places = search(queries, corpus, 5, block=64)
    assert np.array_equal(places, np.argsort(-exact, axis=1)[:, :5])
    np.testing.assert_allclose(scores, -np.sort(-exact, axis=1)[:, :5], atol=1e-5)


def test_nothing_to_search_with_or_in_gives_nothing():
    vectors = np.eye(3)
    assert search(np.zeros((0, 3)), vectors, 2)[1].shape == (0, 2)
    assert search(vectors, np.zeros((0, 3)), 2)[0].shape == (3, 0)
    assert search(np.zeros((1, 3)), vectors, 2)[1].tolist() == [[0, 1]]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"top_k": 0}, "top_k=0"),
        ({"block": 0}, "block=0"),
        ({"similarity": "euclid"}, "'euclid': choose one of 'cosine', 'dot'"),
        ({"queries": np.ones((1, 4))}, r"\(1, 4\) cannot be compared with documents of shape \(3, 3\)"),
        ({"queries": np.ones(3)}, r"Queries of shape \(3,\)"),
        ({"queries": np.full((1, 3), np.nan)}, "among the queries"),
        ({"documents": np.full((3, 3), np.inf)}, "among the documents"),
    ],
)
def test_bad_arguments_are_refused(change, message):
    with pytest.raises(DistillationError, match=message):
        search(**{"queries": np.eye(3), "documents": np.eye(3), "top_k": 1, **change})
