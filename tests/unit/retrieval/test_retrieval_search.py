from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from lightning_distilbert.errors import DistillationError
from lightning_distilbert.retrieval import search as module
from lightning_distilbert.retrieval.search import pair_scores, search


@pytest.fixture
def vectors() -> tuple[Tensor, Tensor]:
    """Return twenty queries and sixty documents."""
    return torch.randn(20, 16), torch.randn(60, 16)


@pytest.mark.parametrize("block", [1, 7, 59, 60, 1000])
def test_blocks_find_what_the_full_matrix_finds(vectors: tuple[Tensor, Tensor], block: int):
    queries, documents = vectors
    scores, positions = search(queries, documents, top_k=9, similarity="dot", block=block)
    expected = (queries @ documents.T).topk(9)
    assert torch.equal(positions, expected.indices)
    torch.testing.assert_close(scores, expected.values)


@pytest.mark.parametrize("block", [1, 3, 8, 60])
@pytest.mark.parametrize("top_k", [1, 5, 59, 60])
def test_of_equal_scores_the_lower_position_comes_first(block: int, top_k: int):
    queries, documents = torch.randint(-1, 2, (20, 4)).float(), torch.randint(-1, 2, (60, 4)).float()
    scores, positions = search(queries, documents, top_k, similarity="dot", block=block)
    full = queries @ documents.T
    assert len(full.unique()) < 10
    for row in range(20):
        order = sorted(range(60), key=lambda place: (-float(full[row, place]), place))[:top_k]
        assert positions[row].tolist() == order
        assert scores[row].tolist() == [float(full[row, place]) for place in order]


def test_no_block_of_scores_is_larger_than_said(vectors: tuple[Tensor, Tensor], monkeypatch: pytest.MonkeyPatch):
    seen = []
    best = module.best
    monkeypatch.setattr(module, "best", lambda scores, top_k: seen.append(scores.numel()) or best(scores, top_k))
    search(*vectors, top_k=3, block=8)
    assert max(seen) == 8 * 8
    assert len(seen) == 2 * 3 * 8


def test_cosine_is_the_dot_product_of_directions(vectors: tuple[Tensor, Tensor]):
    queries, documents = vectors
    scores, positions = search(queries, documents * torch.linspace(0.1, 10, 60)[:, None], top_k=60)
    expected = torch.nn.functional.cosine_similarity(queries[:, None], documents[None], dim=-1)
    torch.testing.assert_close(scores, expected.gather(1, positions))
    assert not torch.equal(positions, search(queries, documents * torch.linspace(0.1, 10, 60)[:, None], 60, "dot")[1])


def test_arrays_mapped_from_a_file_are_searched_as_tensors_are(vectors: tuple[Tensor, Tensor], tmp_path: Path):
    queries, documents = vectors
    np.save(tmp_path / "documents.npy", documents.half().numpy())
    mapped = np.load(tmp_path / "documents.npy", mmap_mode="r")
    found = search(queries.numpy(), mapped, top_k=5, block=7)
    expected = search(queries, documents.half(), top_k=5)
    assert torch.equal(found[1], expected[1])
    torch.testing.assert_close(found[0], expected[0])
    assert found[0].dtype == torch.float32


def test_autocast_and_bfloat16_change_nothing(vectors: tuple[Tensor, Tensor]):
    expected = search(*vectors, top_k=60)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(search(*vectors, top_k=60)[0], expected[0])
    half = [side.bfloat16() for side in vectors]
    torch.testing.assert_close(search(*half, top_k=60)[0], search(*(side.float() for side in half), top_k=60)[0])


def test_all_documents_are_returned_if_there_are_fewer(vectors: tuple[Tensor, Tensor]):
    scores, positions = search(vectors[0], vectors[1][:3], top_k=100)
    assert positions.shape == scores.shape == (20, 3)
    assert search(vectors[0], vectors[1][:0], top_k=5)[1].shape == (20, 0)
    assert search(vectors[0][:0], vectors[1], top_k=5)[1].shape == (0, 5)


@pytest.mark.parametrize("similarity", ["cosine", "dot"])
def test_scores_of_pairs_are_those_of_the_search(vectors: tuple[Tensor, Tensor], similarity: str):
    queries, documents = vectors
    scores, positions = search(queries, documents, 60, similarity)
    pairs = np.array([[q, int(d)] for q in range(20) for d in positions[q, :3]])
    found = pair_scores(queries, documents.numpy(), pairs, similarity, block=7)
    torch.testing.assert_close(found, scores[:, :3].reshape(-1))


def test_input_is_checked():
    with pytest.raises(DistillationError, match="cannot be compared"):
        search(torch.ones(1, 2), torch.ones(1, 3), top_k=1)
    with pytest.raises(DistillationError, match="top_k=0"):
        search(torch.ones(1, 2), torch.ones(1, 2), top_k=0)
    with pytest.raises(DistillationError, match="block=0"):
        search(torch.ones(1, 2), torch.ones(1, 2), top_k=1, block=0)
    with pytest.raises(DistillationError, match="'l2' is unknown"):
        search(torch.ones(1, 2), torch.ones(1, 2), top_k=1, similarity="l2")
