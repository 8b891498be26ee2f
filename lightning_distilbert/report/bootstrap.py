"""How sure a score is: the bootstrap over rows, for one system and for the difference between two."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from lightning_distilbert.errors import DistillationError

Columns = Tensor | Sequence[Tensor]
Statistic = Callable[..., Tensor | float]


class Interval(NamedTuple):
    """A score and the interval it lies in."""

    value: float
    low: float
    high: float


class Difference(NamedTuple):
    """What one system scores above another on the same rows, the interval, and how likely chance alone gives it."""

    value: float
    low: float
    high: float
    p_value: float


def bootstrap_interval(
    columns: Columns,
    statistic: Statistic | None = None,
    confidence: float = 0.95,
    resamples: int = 1000,
    seed: int = 0,
) -> Interval:
    r"""Compute the percentile bootstrap interval of a metric over rows.

    The rows are drawn anew with replacement, as many as there are, :math:`B` times. The interval holds the middle
    share :math:`c` of the :math:`B` statistics (Efron 1979; Efron and Tibshirani 1993, section 13.3):

    .. math:: [\,Q_{(1 - c)/2}(\theta^*_1, \dots, \theta^*_B),\; Q_{(1 + c)/2}(\theta^*_1, \dots, \theta^*_B)\,]

    It tells how much the score would change with other rows of the same kind. It knows nothing of the spread between
    training seeds.

    Args:
        columns: What the statistic needs of each row, of shape ``(N, ...)``: one tensor (a score per row), or
            several (the predictions and the labels).
        statistic: From the resampled columns to one number. The mean over the rows by default.
        confidence: The share :math:`c`, between 0 and 1.
        resamples: The number :math:`B`. Draws on which the statistic is NaN are left out.
        seed: The seed of the draws.

    Returns:
        The statistic of the rows as they are, and the interval's ends.

    Raises:
        DistillationError: If there are no rows, the columns differ in length, the statistic is NaN, or a setting is
            out of its range.

    Example:
        >>> bootstrap_interval(torch.tensor([1.0, 1.0, 1.0]))
        Interval(value=1.0, low=1.0, high=1.0)
    """
    columns = checked(columns, confidence, resamples)
    statistic = statistic or mean
    value = float(statistic(*columns))
    draws = torch.tensor([float(statistic(*part)) for part in resampled(columns, resamples, seed)], dtype=torch.double)
    return Interval(finite(value), *ends(draws, confidence))


def paired_bootstrap(
    a: Columns,
    b: Columns,
    statistic: Statistic | None = None,
    confidence: float = 0.95,
    resamples: int = 1000,
    seed: int = 0,
) -> Difference:
    r"""Compare two systems on the same rows: both are scored on the same draws.

    What makes a row easy or hard for both falls out of the difference, so that it can be clear where the two
    systems' own intervals overlap. The p-value is two-sided, by inversion of the percentile interval:

    .. math:: p = \min\left(1,\; 2 \cdot \frac{1 + \min(\#\{d^* \le 0\},\, \#\{d^* \ge 0\})}{B + 1}\right)

    with :math:`d^* = \theta^*(a) - \theta^*(b)`. It cannot fall below :math:`2 / (B + 1)`.

    Args:
        a: The columns of one system, as in `bootstrap_interval`.
        b: The columns of the other, row for row.
        statistic: As in `bootstrap_interval`.
        confidence: As in `bootstrap_interval`.
        resamples: As in `bootstrap_interval`.
        seed: As in `bootstrap_interval`.

    Returns:
        The difference a - b, its interval and the p-value.

    Raises:
        DistillationError: As in `bootstrap_interval`; and if the two do not have the same number of rows.

    Example:
        >>> paired_bootstrap(torch.full((9,), 0.75), torch.full((9,), 0.5), resamples=99)
        Difference(value=0.25, low=0.25, high=0.25, p_value=0.02)
    """
    a, b = checked(a, confidence, resamples), checked(b, confidence, resamples)
    if len(a[0]) != len(b[0]):
        raise DistillationError(
            f"The two systems have {len(a[0])} and {len(b[0])} rows: a paired bootstrap needs the same rows of both."
        )
    score = statistic or mean
    value = float(score(*a)) - float(score(*b))
    draws = torch.tensor(
        [
            float(score(*part[: len(a)])) - float(score(*part[len(a) :]))
            for part in resampled([*a, *b], resamples, seed)
        ],
        dtype=torch.double,
    )
    low, high = ends(draws, confidence)
    draws = draws[~draws.isnan()]
    beyond = min(int((draws <= 0).sum()), int((draws >= 0).sum()))
    return Difference(finite(value), low, high, min(1.0, 2 * (1 + beyond) / (len(draws) + 1)))


def mean(values: Tensor) -> Tensor:
    """Average one column, in double precision: in single precision a constant column would not give its own value."""
    return values.double().mean()


def resampled(columns: Sequence[Tensor], resamples: int, seed: int) -> Iterator[list[Tensor]]:
    """Draw the rows anew, the same rows of all columns, so many times."""
    generator = torch.Generator().manual_seed(seed)
    count = len(columns[0])
    for _ in range(resamples):
        draw = torch.randint(count, (count,), generator=generator)
        yield [column[draw.to(column.device)] for column in columns]


def ends(draws: Tensor, confidence: float) -> tuple[float, float]:
    """Return the ends of the middle share of the draws."""
    finite(draws.nanmean().item())
    low, high = draws.nanquantile(torch.tensor([(1 - confidence) / 2, (1 + confidence) / 2], dtype=torch.double))
    return low.item(), high.item()


def finite(value: float) -> float:
    """Return a value that is a number, or say that it is none."""
    if value != value:
        raise DistillationError(
            "The statistic is NaN on these rows, so it has no interval. Look for NaN in the columns."
        )
    return value


def checked(columns: Columns, confidence: float, resamples: int) -> list[Tensor]:
    """Return the columns as a list, after checking them and the settings."""
    columns = [columns] if isinstance(columns, Tensor) else list(columns)
    lengths = [len(column) for column in columns]
    if not lengths or len(set(lengths)) != 1 or not lengths[0]:
        raise DistillationError(
            f"The columns have {lengths} rows: a bootstrap needs at least one column, at least one row, and the same "
            "rows in all columns."
        )
    if not 0 < confidence < 1 or resamples < 1:
        raise DistillationError(
            f"confidence={confidence} must lie between 0 and 1 (0.95 for 95 %), and resamples={resamples} must be at "
            "least 1."
        )
    return columns
