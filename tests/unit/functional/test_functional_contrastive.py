"""The contrastive loss against a loop with scipy in float64."""

from __future__ import annotations

import pytest
import torch
from scipy.spatial.distance import cosine
from scipy.special import logsumexp

from lightning_distilbert.errors import DistillationError
from lightning_distilbert.functional import in_batch_contrastive


def pairs(rows=6, width=5):
    generator = torch.Generator().manual_seed(0)
    return torch.randn(rows, width, generator=generator), torch.randn(rows, width, generator=generator)


def reference(queries, documents, ids, temperature):
    total = 0.0
    for i, query in enumerate(queries.double().numpy()):
        scores = [(1 - cosine(query, document)) / temperature for document in documents.double().numpy()]
        kept = [score for j, score in enumerate(scores) if j == i or ids[j] != ids[i]]
        total += logsumexp(kept) - scores[i]
    return total / len(queries)


@pytest.mark.parametrize("temperature", [0.05, 1.0])
@pytest.mark.parametrize("ids", [[0, 1, 2, 3, 4, 5], [0, 1, 0, 2, 1, 0]])
def test_agrees_with_scipy(temperature, ids):
    queries, documents = pairs()
    found = in_batch_contrastive(queries, documents, torch.tensor(ids), temperature)
    assert found.item() == pytest.approx(reference(queries, documents, ids, temperature), rel=1e-4)


def with_negatives(queries=4, each=3, width=5):
    generator = torch.Generator().manual_seed(1)
    return torch.randn(queries, width, generator=generator), torch.randn(queries * each, width, generator=generator)


def reference_with_negatives(queries, documents, answers, ids, relevant, real, temperature=0.05):
    """For each query, its answer against all real documents that neither hold the same text nor answer it too."""
    total = 0.0
    for i, query in enumerate(queries.double().numpy()):
        vectors = {j: document.double().numpy() for j, document in enumerate(documents) if real[j]}
        scores = {j: (1 - cosine(query, document)) / temperature for j, document in vectors.items()}
        known = {ids[answers[i]], *relevant[i]}
        kept = [score for j, score in scores.items() if j == answers[i] or ids[j] not in known]
        total += logsumexp(kept) - scores[answers[i]]
    return total / len(queries)


def test_hard_negatives_of_all_queries_are_compared_with_each():
    queries, documents = with_negatives()
    everything = [range(4), range(12), [()] * 4, [True] * 12]
    found = in_batch_contrastive(queries, documents)
    assert found.item() == pytest.approx(reference_with_negatives(queries, documents, *everything), rel=1e-4)
    assert found > in_batch_contrastive(queries, documents[:8]) > in_batch_contrastive(queries, documents[:4])


def test_the_same_text_as_a_negative_of_another_query_and_other_answers_are_left_out():
    queries, documents = with_negatives()
    # documents 5 and 10 hold the text of the answers of queries 0 and 1; query 2 is answered by 40 and 41 too
    ids = [10, 11, 12, 13, 40, 10, 42, 43, 41, 45, 11, 47]
    relevant = [[10], [11], [12, 40, 41], [13]]
    real = [True] * 9 + [False] + [True] * 2
    padded = torch.tensor([row + [-2] * (3 - len(row)) for row in relevant])
    expected = reference_with_negatives(queries, documents, range(4), ids, relevant, real, 1.0)
    numbers, counts = torch.tensor(ids), torch.tensor(real)
    documents[9] = float("nan")
    documents.requires_grad_()
    found = in_batch_contrastive(queries, documents, numbers, 1.0, document_rows=counts, relevant=padded)
    assert found.item() == pytest.approx(expected, rel=1e-4)
    found.backward()
    assert documents.grad.isfinite().all()
    assert documents.grad[9].abs().sum() == 0
    clean = documents.detach().nan_to_num()
    for changes in ({"relevant": None}, {"document_ids": None, "relevant": None}, {"document_rows": None}):
        options = {"document_ids": numbers, "document_rows": counts, "relevant": padded} | changes
        assert in_batch_contrastive(queries, clean, temperature=1.0, **options).item() != pytest.approx(
            expected, rel=1e-3
        )


def by_loop(queries, documents, answers, ids, relevant, asked, real, temperature):
    """InfoNCE in float64, one query after another; autograd gives the gradient."""
    terms = []
    for i in asked:
        known = {ids[answers[i]], *relevant[i]}
        weights = {
            j: (
                queries[i]
                @ documents[j]
                / ((queries[i] @ queries[i]) * (documents[j] @ documents[j])).sqrt()
                / temperature
            ).exp()
            for j in real
            if j == answers[i] or ids[j] not in known
        }
        terms.append(-(weights[answers[i]] / sum(weights.values())).log())
    return sum(terms) / len(terms)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_loss_and_gradients_of_both_sides_agree_with_a_loop(dtype):
    queries, documents = (x.to(dtype) for x in with_negatives())
    asked, real = [0, 1, 3], [0, 1, 2, 3, 4, 5, 7, 8, 10, 11]
    answers, ids = [0, 5, 2, 3], [10, 11, 12, 13, 40, 15, 42, 43, 41, 10, 15, 47]
    relevant = [[40, 41], [15, -2], [12, 13], [47, -2]]
    rows, counts = torch.zeros(4, dtype=torch.bool), torch.zeros(12, dtype=torch.bool)
    rows[asked], counts[real] = True, True
    twins = [x.double().requires_grad_() for x in (queries, documents)]
    queries[~rows], documents[~counts] = float("nan"), float("nan")
    queries.requires_grad_()
    documents.requires_grad_()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = in_batch_contrastive(
            queries, documents, torch.tensor(ids), 0.2, rows, counts, torch.tensor(relevant), torch.tensor(answers)
        )
    expected = by_loop(*twins, answers, ids, relevant, asked, real, 0.2)
    found.backward()
    expected.backward()
    assert found.item() == pytest.approx(expected.item(), rel=1e-5)
    rtol = 1e-4 if dtype == torch.float32 else 2**-8  # the gradient of a bfloat16 tensor is one itself
    for x, twin in zip((queries, documents), twins, strict=True):
        atol = 1e-6 * twin.grad.abs().max().item()
        torch.testing.assert_close(x.grad.double(), twin.grad, rtol=rtol, atol=atol)


def test_answers_may_stand_anywhere():
    queries, documents = with_negatives()
    answers = torch.tensor([7, 2, 11, 0])
    ids = [*range(11), 2]
    found = in_batch_contrastive(queries, documents, torch.tensor(ids), answers=answers)
    expected = reference_with_negatives(queries, documents, answers.tolist(), ids, [()] * 4, [True] * 12)
    assert found.item() == pytest.approx(expected, rel=1e-4)


def test_a_query_whose_own_document_does_not_count_does_not_count():
    queries, documents = with_negatives()
    counts = torch.ones(12, dtype=torch.bool)
    counts[1] = False
    rows = torch.tensor([True, False, True, True])
    found = in_batch_contrastive(queries, documents, document_rows=counts)
    torch.testing.assert_close(found, in_batch_contrastive(queries, documents, rows=rows, document_rows=counts))


def test_without_numbers_all_documents_differ():
    queries, documents = pairs()
    torch.testing.assert_close(
        in_batch_contrastive(queries, documents), in_batch_contrastive(queries, documents, torch.arange(6))
    )


def test_the_same_document_is_not_a_negative():
    queries, documents = pairs()
    documents[3] = documents[0]
    documents.requires_grad_()
    in_batch_contrastive(queries[[0, 3]], documents[[0, 3]], torch.tensor([9, 9])).backward()
    assert documents.grad.abs().sum() == 0
    in_batch_contrastive(queries[[0, 3]], documents[[0, 3]]).backward()
    assert documents.grad.abs().sum() > 0


def test_pairs_that_do_not_count_are_no_negatives_either():
    queries, documents = pairs()
    rows = torch.tensor([1, 0, 1, 1, 0, 1]).bool()
    ids = torch.tensor([0, 0, 1, 0, 1, 2])
    expected = reference(queries[rows], documents[rows], ids[rows].tolist(), 0.05)
    queries[~rows], documents[~rows] = float("nan"), float("nan")
    queries.requires_grad_()
    documents.requires_grad_()
    found = in_batch_contrastive(queries, documents, ids, rows=rows)
    found.backward()
    assert found.item() == pytest.approx(expected, rel=1e-4)
    for tensor in (queries, documents):
        assert torch.isfinite(tensor.grad).all()
        assert tensor.grad[~rows].abs().sum() == 0


def test_the_temperature_changes_the_loss():
    assert in_batch_contrastive(*pairs(), temperature=0.05) != in_batch_contrastive(*pairs(), temperature=0.1)


def test_no_pair_counts_gives_zero_with_a_graph():
    queries, documents = (x.requires_grad_() for x in pairs())
    loss = in_batch_contrastive(queries, documents, torch.arange(6), rows=torch.zeros(6))
    loss.backward()
    assert loss.item() == 0.0
    assert queries.grad.abs().sum() == 0
    assert documents.grad.abs().sum() == 0


def test_half_precision_under_autocast_is_computed_in_float32():
    queries, documents = (x.bfloat16() for x in pairs())
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = in_batch_contrastive(queries, documents)
    assert found.dtype == torch.float32
    assert found.item() == pytest.approx(reference(queries.float(), documents.float(), range(6), 0.05), rel=1e-4)


def test_bad_arguments_are_refused():
    queries, documents = pairs()
    with pytest.raises(DistillationError, match=r"temperature=0\)"):
        in_batch_contrastive(queries, documents, temperature=0)
    with pytest.raises(DistillationError, match=r"documents of shape \(5, 5\)"):
        in_batch_contrastive(queries, documents[:5])
    with pytest.raises(DistillationError, match=r"documents of shape \(6, 4\)"):
        in_batch_contrastive(queries, documents[:, :4])
    with pytest.raises(DistillationError, match=r"relevant of shape \(6, 1\) for 6 queries"):
        in_batch_contrastive(queries, documents, relevant=torch.zeros(6, 1))
    with pytest.raises(DistillationError, match=r"relevant of shape \(5, 1\) for 6 queries"):
        in_batch_contrastive(queries, documents, torch.arange(6), relevant=torch.zeros(5, 1))
    with pytest.raises(DistillationError, match=r"document_ids of shape \(5,\) for 6 documents"):
        in_batch_contrastive(queries, documents, torch.arange(5))
