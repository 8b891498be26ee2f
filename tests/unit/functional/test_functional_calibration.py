from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from scipy.optimize import minimize_scalar
from scipy.special import log_softmax

from lightning_distilbert import DistillationError
from lightning_distilbert.functional.calibration import choose_threshold, fit_temperature


def rows(number: int = 200, labels: int = 5, sharp: float = 3.0) -> tuple[torch.Tensor, torch.Tensor]:
    """Logits that are `sharp` times as sure as the labels, which are drawn from their softmax, deserve."""
    generator = torch.Generator().manual_seed(0)
    logits = 2 * torch.randn(number, labels, generator=generator)
    drawn = torch.multinomial(logits.softmax(dim=1), 1, generator=generator).squeeze(1)
    return sharp * logits, drawn


@pytest.mark.parametrize("sharp", [0.3, 1.0, 3.0])
def test_temperature_is_that_of_a_minimiser(sharp: float):
    logits, labels = rows(sharp=sharp)

    def loss(log_temperature: float) -> float:
        log_p = log_softmax(logits.double().numpy() / math.exp(log_temperature), axis=1)
        one = log_p[np.arange(len(labels)), labels.numpy()].sum()
        return -(one + log_p.mean())  # the mean over rows and labels is the further row

    expected = math.exp(minimize_scalar(loss, bounds=(-3, 3), method="bounded", options={"xatol": 1e-9}).x)
    assert fit_temperature(logits, labels) == pytest.approx(expected, rel=1e-5)
    assert fit_temperature(logits, labels) == pytest.approx(sharp, rel=0.35)


def test_a_few_rows_that_are_all_right_do_not_make_probabilities_of_one():
    temperature = fit_temperature(torch.tensor([[4.0, 0.0], [0.0, 4.0]]), torch.tensor([0, 1]))
    # as one further row that is wrong in half of its labels has it: 1 / (1 + exp(-4 / T)) = 2.5 / 3
    assert temperature == pytest.approx(4 / math.log(5), rel=1e-6)
    assert fit_temperature(torch.empty(0, 3), torch.empty(0)) == 1.0


def test_temperature_refuses_what_fits_nothing():
    with pytest.raises(DistillationError, match=r"\(2, 3\) and labels of \(3,\)"):
        fit_temperature(torch.zeros(2, 3), torch.zeros(3))
    with pytest.raises(DistillationError, match="NaN or infinite"):
        fit_temperature(torch.tensor([[math.nan, 0.0]]), torch.tensor([0]))


@pytest.mark.parametrize("balanced", [True, False])
@pytest.mark.parametrize("seed", range(5))
def test_threshold_is_the_best_of_all(balanced: bool, seed: int):
    generator = torch.Generator().manual_seed(seed)
    scores = (torch.rand(40, generator=generator) * 20).round() / 20  # many are equal
    right, answerable = (torch.rand(40, generator=generator) < share for share in (0.8, 0.7))
    value, threshold = choose_threshold(scores, right, answerable, balanced)

    def counted(limit: float) -> float:
        given = scores >= limit
        kinds = [(given & right)[answerable].double(), (~given)[~answerable].double()]
        return float((kinds[0].mean() + kinds[1].mean()) / 2 if balanced else torch.cat(kinds).mean())

    assert value == pytest.approx(counted(threshold))
    assert value == pytest.approx(max(counted(limit / 40) for limit in range(-1, 43)))
    assert all(abs(threshold - score) > 1e-3 for score in scores.tolist()) or threshold == scores.min()


def test_balanced_weighs_the_kinds_and_not_the_rows():
    # one row out of scope among many: it is worth two rows in scope that are left out, or it is not
    scores = torch.tensor([0.9] * 8 + [0.3, 0.4, 0.5])
    answerable = torch.tensor([True] * 10 + [False])
    assert choose_threshold(scores, answerable, answerable, balanced=True)[1] == pytest.approx(0.7)
    assert choose_threshold(scores, answerable, answerable, balanced=False)[1] == pytest.approx(0.3)


def test_where_nothing_is_right_nothing_is_answered():
    value, threshold = choose_threshold(
        torch.tensor([0.2, 0.4]), torch.zeros(2), torch.tensor([True, False]), balanced=False
    )
    assert value == 0.5
    assert threshold > 0.4


@pytest.mark.parametrize(("answerable", "share"), [([True, True], "each"), ([False, False], "none")])
def test_threshold_needs_both_kinds(answerable: list[bool], share: str):
    with pytest.raises(DistillationError, match=f"{share} of the 2 rows"):
        choose_threshold(torch.ones(2), torch.ones(2), torch.tensor(answerable))


def test_threshold_refuses_a_score_that_is_none():
    with pytest.raises(DistillationError, match="NaN"):
        choose_threshold(torch.tensor([math.nan, 1.0]), torch.ones(2), torch.tensor([True, False]))
