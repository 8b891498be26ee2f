"""Spans against loops over all pairs, and the loss against scipy."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from scipy.special import log_softmax

from lightning_distilbert.errors import DistillationError
from lightning_distilbert.functional import best_spans, span_cross_entropy, span_mask


def scores(rows=40, length=12, seed=0):
    generator = torch.Generator().manual_seed(seed)
    start, end = torch.randn(2, rows, length, generator=generator)
    begins = torch.randint(1, 6, (rows, 1), generator=generator)
    ends = begins + torch.randint(1, 7, (rows, 1), generator=generator)
    places = torch.arange(length)
    return start, end, (places >= begins) & (places < ends)


def best_by_hand(start, end, mask, longest):
    best = (-math.inf, None, None)
    for i in range(len(start)):
        for j in range(i, min(i + longest, len(start))):
            if mask[i] and mask[j] and start[i] + end[j] > best[0]:
                best = (float(start[i] + end[j]), i, j)
    return best


@pytest.mark.parametrize("longest", [1, 2, 4, 12, 100])
def test_the_best_span_is_that_of_a_loop_over_all(longest):
    start, end, mask = scores()
    found = [part.tolist() for part in best_spans(start, end, mask, longest)]
    for row, (score, first, last) in enumerate(zip(*found, strict=True)):
        expected = best_by_hand(start[row], end[row], mask[row], longest)
        assert score == pytest.approx(expected[0])
        assert (first, last) == expected[1:]


def test_the_most_tokens_of_an_answer_change_the_answer():
    start, end = torch.tensor([[9.0, 0.0, 0.0, 1.0]]), torch.tensor([[0.0, 0.0, 1.0, 9.0]])
    mask = torch.ones(1, 4, dtype=torch.bool)
    spans = [tuple(int(part) for part in best_spans(start, end, mask, longest)[1:]) for longest in (1, 3, 4)]
    assert spans == [(3, 3), (0, 2), (0, 3)]


def test_what_is_not_context_is_never_in_a_span_even_if_it_is_nan():
    start, end, mask = scores()
    expected = best_spans(start, end, mask)
    start[~mask], end[~mask] = float("nan"), float("inf")
    for found, wanted in zip(best_spans(start, end, mask), expected, strict=True):
        assert torch.equal(found, wanted)


def test_a_row_without_context_has_no_score():
    start, end, mask = scores(rows=3)
    mask[1] = False
    found, _, _ = best_spans(start, end, mask)
    assert found[1] == -math.inf
    assert found[[0, 2]].isfinite().all()


def test_an_answer_has_a_token():
    with pytest.raises(DistillationError, match="max_length=0"):
        best_spans(*scores(), max_length=0)


def loss_by_hand(start, end, starts, ends, mask):
    costs = []
    for row in range(len(start)):
        for logits, place in ((start[row], int(starts[row])), (end[row], int(ends[row]))):
            if starts[row] < 0:
                continue
            allowed = np.flatnonzero(mask[row].numpy())
            costs.append(-log_softmax(logits.double().numpy()[allowed])[list(allowed).index(place)])
    return float(np.mean(costs))


def places_in(mask, seed=0):
    generator = torch.Generator().manual_seed(seed)
    first, last = (torch.multinomial(mask.float(), 1, generator=generator).squeeze(1) for _ in range(2))
    return first, last


def test_the_loss_is_that_of_a_loop_over_rows_with_a_label():
    start, end, mask = scores()
    starts, ends = places_in(mask)
    assert span_cross_entropy(start, end, starts, ends, mask).item() == pytest.approx(
        loss_by_hand(start, end, starts, ends, mask)
    )
    starts[3:9] = ends[3:9] = -100
    start.requires_grad_()
    loss = span_cross_entropy(start, end, starts, ends, mask)
    assert loss.item() == pytest.approx(loss_by_hand(start.detach(), end, starts, ends, mask))
    loss.backward()
    assert start.grad[3:9].eq(0).all()
    assert start.grad[mask][:3].ne(0).all()


def test_neither_question_nor_padding_reaches_the_loss():
    start, end, mask = scores()
    starts, ends = places_in(mask)
    expected = span_cross_entropy(start, end, starts, ends, mask)
    start[~mask] = float("nan")
    end[~mask] = 1e9
    start.requires_grad_()
    loss = span_cross_entropy(start, end, starts, ends, mask)
    loss.backward()
    assert torch.equal(loss.detach(), expected)
    assert start.grad[~mask].eq(0).all()


def test_a_label_outside_the_mask_does_not_count():
    start, end, mask = scores(rows=4)
    starts, ends = places_in(mask)
    expected = span_cross_entropy(start[:3], end[:3], starts[:3], ends[:3], mask[:3])
    for place in (0, 11, 12, 500):  # the first tokens and the last are outside of all masks
        ends[3] = place
        assert torch.equal(span_cross_entropy(start, end, starts, ends, mask), expected)


def test_a_batch_without_a_label_costs_a_zero_with_a_graph():
    start, end, mask = scores(rows=2)
    start.requires_grad_()
    nothing = torch.full((2,), -100)
    loss = span_cross_entropy(start, end, nothing, nothing, mask)
    loss.backward()
    assert loss.item() == 0.0
    assert start.grad.eq(0).all()


def test_the_loss_is_float32_in_half_precision():
    start, end, mask = scores()
    starts, ends = places_in(mask)
    exact = span_cross_entropy(start, end, starts, ends, mask)
    with torch.autocast("cpu", torch.bfloat16):
        half = span_cross_entropy(start.bfloat16(), end.bfloat16(), starts, ends, mask)
    assert half.dtype == torch.float32
    torch.testing.assert_close(half, exact, rtol=0.01, atol=0)


ATTENDED = torch.tensor([[1, 1, 1, 1, 1, 0], [0, 1, 1, 1, 1, 1]])


def test_what_the_data_says_of_spans_is_taken_as_it_is():
    given = torch.tensor([[1, 0, 0, 1, 0, 0], [0, 1, 0, 0, 1, 0]])
    found = span_mask({"span_mask": given, "token_type_ids": ATTENDED, "attention_mask": ATTENDED})
    assert torch.equal(found, given.bool())


def test_token_types_tell_the_context_and_the_first_real_token_stands_for_no_answer():
    types = torch.tensor([[0, 0, 0, 1, 1, 1], [1, 0, 0, 1, 1, 1]])  # padding of type 1 at either side
    found = span_mask({"token_type_ids": types, "attention_mask": ATTENDED})
    assert found.int().tolist() == [[1, 0, 0, 1, 1, 0], [0, 1, 0, 1, 1, 1]]


def test_a_row_without_a_second_type_counts_as_a_whole():
    types = torch.tensor([[0, 0, 0, 1, 1, 0], [0, 0, 0, 0, 0, 0]])
    found = span_mask({"token_type_ids": types, "attention_mask": ATTENDED})
    assert found.int().tolist() == [[1, 0, 0, 1, 1, 0], [0, 1, 1, 1, 1, 1]]
    assert torch.equal(span_mask({"attention_mask": ATTENDED}), ATTENDED.bool())
    assert span_mask({"input_ids": ATTENDED}) is None
