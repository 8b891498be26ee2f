from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy import special

from lightning_distilbert.deploy.runtime.outputs import best_spans, logsumexp, sigmoid, softmax
from lightning_distilbert.functional.spans import best_spans as torch_best_spans


@pytest.mark.parametrize("seed", range(5))
def test_the_best_span_is_that_of_the_package(seed: int):
    random = np.random.default_rng(seed)
    for _ in range(40):
        rows, length, reach = random.integers(1, 6), random.integers(1, 40), int(random.integers(1, 45))
        # whole numbers, so that many spans tie
        starts, ends = random.integers(-3, 4, (2, rows, length)).astype(np.float32)
        mask = random.random((rows, length)) < random.random()
        wanted = torch_best_spans(*map(torch.tensor, (starts, ends, mask)), reach)
        found = best_spans(starts, ends, mask, reach)
        assert np.array_equal(found[0], wanted[0])
        some = mask.any(axis=1) & np.isfinite(found[0])
        assert np.array_equal(found[1][some], wanted[1].numpy()[some])
        assert np.array_equal(found[2][some], wanted[2].numpy()[some])


def test_probabilities_are_those_of_scipy():
    logits = np.random.default_rng(0).normal(scale=30, size=(50, 9)).astype(np.float32)
    np.testing.assert_allclose(softmax(logits), special.softmax(logits.astype(float), axis=-1), atol=1e-6)
    np.testing.assert_allclose(sigmoid(logits), special.expit(logits.astype(float)), atol=1e-6)
    assert np.isfinite(sigmoid(np.float32([-1e30, 1e30]))).all()
    mask = np.random.default_rng(1).random(logits.shape) < 0.5
    mask[:, 0] = True
    wanted = special.logsumexp(logits.astype(float), axis=1, b=mask)
    np.testing.assert_allclose(logsumexp(logits, mask), wanted, rtol=1e-5)
