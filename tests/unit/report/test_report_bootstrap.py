from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy import stats
from torch import Tensor

from lightning_distilbert.errors import DistillationError
from lightning_distilbert.report.bootstrap import bootstrap_interval, paired_bootstrap


def agreement(a: Tensor, b: Tensor) -> Tensor:
    return torch.corrcoef(torch.stack([a, b]).double())[0, 1]


@pytest.fixture
def scores() -> Tensor:
    return torch.rand(200, generator=torch.Generator().manual_seed(0)) ** 2


def test_interval_of_a_mean_agrees_with_scipy(scores: Tensor) -> None:
    found = bootstrap_interval(scores, resamples=4000)
    expected = stats.bootstrap(
        (scores.double().numpy(),), np.mean, n_resamples=4000, method="percentile", random_state=1
    ).confidence_interval
    assert found.value == pytest.approx(scores.double().mean().item())
    # two sets of draws differ by chance: a twentieth of the interval's width
    assert found[1:] == pytest.approx((expected.low, expected.high), abs=(expected.high - expected.low) / 20)


def test_interval_of_a_statistic_of_two_columns_agrees_with_scipy(scores: Tensor) -> None:
    other = scores + torch.randn(200, generator=torch.Generator().manual_seed(1)) * 0.5
    found = bootstrap_interval([scores, other], agreement, resamples=2000)
    expected = stats.bootstrap(
        (scores.double().numpy(), other.double().numpy()),
        lambda a, b: np.corrcoef(a, b)[0, 1],
        n_resamples=2000,
        method="percentile",
        paired=True,
        vectorized=False,
        random_state=1,
    ).confidence_interval
    assert found[1:] == pytest.approx((expected.low, expected.high), abs=(expected.high - expected.low) / 15)


def test_each_setting_changes_the_interval(scores: Tensor) -> None:
    usual = bootstrap_interval(scores)
    assert usual == bootstrap_interval(scores)
    narrow = bootstrap_interval(scores, confidence=0.5)
    assert usual.low < narrow.low < usual.value < narrow.high < usual.high
    assert bootstrap_interval(scores, seed=1) != usual
    assert bootstrap_interval(scores, resamples=50) != usual


def test_draws_without_a_value_are_left_out() -> None:
    values = torch.tensor([1.0, 2.0, 3.0])
    found = bootstrap_interval(values, lambda column: column.mean() if len(set(column.tolist())) > 1 else torch.nan)
    assert 1.0 < found.low < found.high < 3.0


def test_pairing_finds_a_small_difference_that_single_intervals_hide(scores: Tensor) -> None:
    better = scores + 0.01 + torch.randn(200, generator=torch.Generator().manual_seed(1)) * 0.02
    difference = paired_bootstrap(better, scores)
    assert difference.value == pytest.approx((better.double() - scores.double()).mean().item())
    assert 0 < difference.low < difference.value < difference.high
    assert difference.p_value == pytest.approx(2 / 1001)
    assert bootstrap_interval(better).low < bootstrap_interval(scores).high


def test_paired_interval_is_that_of_the_differences(scores: Tensor) -> None:
    other = scores.flip(0)
    found = paired_bootstrap(other, scores)
    assert found[:3] == pytest.approx(tuple(bootstrap_interval(other.double() - scores.double())))
    assert found.p_value > 0.5


def test_the_p_value_agrees_with_a_t_test(scores: Tensor) -> None:
    noise = torch.randn(200, generator=torch.Generator().manual_seed(4)) * 0.1
    other = scores + 0.013 + noise - noise.mean()
    found = paired_bootstrap(other, scores, resamples=4000)
    expected = stats.ttest_rel(other.numpy(), scores.numpy()).pvalue
    assert 0.03 < expected < 0.15
    assert found.p_value == pytest.approx(expected, abs=0.02)


def test_equal_systems_do_not_differ(scores: Tensor) -> None:
    assert paired_bootstrap(scores, scores) == (0.0, 0.0, 0.0, 1.0)


def test_paired_statistic_of_two_columns(scores: Tensor) -> None:
    labels = scores + torch.randn(200, generator=torch.Generator().manual_seed(1)) * 0.1
    found = paired_bootstrap([scores, labels], [scores.flip(0), labels], agreement)
    assert found.value == pytest.approx((agreement(scores, labels) - agreement(scores.flip(0), labels)).item())
    assert found.low > 0.5


@pytest.mark.parametrize(
    ("columns", "kwargs", "match"),
    [
        (torch.empty(0), {}, r"\[0\] rows"),
        ([], {}, r"\[\] rows"),
        ([torch.ones(2), torch.ones(3)], {}, r"\[2, 3\] rows"),
        (torch.ones(2), {"confidence": 95}, "confidence=95"),
        (torch.ones(2), {"resamples": 0}, "resamples=0"),
        (torch.tensor([1.0, torch.nan]), {}, "NaN"),
    ],
)
def test_input_is_checked(columns: Tensor | list[Tensor], kwargs: dict[str, float], match: str) -> None:
    with pytest.raises(DistillationError, match=match):
        bootstrap_interval(columns, **kwargs)


def test_a_pair_must_have_the_same_rows() -> None:
    with pytest.raises(DistillationError, match="2 and 3 rows"):
        paired_bootstrap(torch.ones(2), torch.ones(3))
