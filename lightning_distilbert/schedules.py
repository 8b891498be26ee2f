"""Values that change over training: a weight that warms up, a temperature that falls."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod

from lightning_distilbert.errors import DistillationError
from lightning_distilbert.spec import Spec


class Schedule(Spec, ABC):
    """A number as a function of training progress.

    Progress is the share of optimizer steps already taken, from 0 to 1. It follows from the Trainer's step counter, so
    that a resumed run goes on where it stopped, without any state of its own.
    """

    @abstractmethod
    def at(self, progress: float) -> float:
        """Return the value at a progress from 0 to 1."""


class Linear(Schedule):
    r"""A straight line from ``start`` to ``end``.

    .. math:: v(p) = s + (e - s) \cdot \mathrm{clip}\left(\frac{p - b}{u - b}, 0, 1\right)

    Args:
        start: The value :math:`s` up to progress ``begin``.
        end: The value :math:`e` from progress ``until`` on.
        begin: The progress :math:`b` at which the change starts, in [0, 1).
        until: The progress :math:`u` at which it is complete, in (0, 1].

    Raises:
        DistillationError: Unless ``0 <= begin < until <= 1`` and both values are finite.

    Example:
        >>> warmup = Linear(0.0, 1.0, until=0.1)
        >>> [warmup.at(p) for p in (0.0, 0.05, 0.5)]
        [0.0, 0.5, 1.0]
    """

    def __init__(self, start: float, end: float, begin: float = 0.0, until: float = 1.0) -> None:
        if not 0.0 <= begin < until <= 1.0:
            raise DistillationError(
                f"A schedule runs from begin={begin} to until={until}: both are shares of the training steps, "
                "with 0 <= begin < until <= 1."
            )
        if not (math.isfinite(start) and math.isfinite(end)):
            raise DistillationError(f"A schedule goes from start={start} to end={end}: both must be finite numbers.")
        self.start, self.end, self.begin, self.until = start, end, begin, until

    def share(self, progress: float) -> float:
        """Return how much of the change is done, from 0 to 1."""
        return min(max((progress - self.begin) / (self.until - self.begin), 0.0), 1.0)

    def at(self, progress: float) -> float:
        """Return the value at a progress from 0 to 1."""
        return self.start + (self.end - self.start) * self.share(progress)


class Cosine(Linear):
    r"""Half a cosine wave from ``start`` to ``end``: slow at both ends, fast in the middle.

    .. math:: v(p) = s + (e - s) \cdot \frac{1 - \cos(\pi c)}{2}

    with :math:`c` the clipped share of `Linear`, whose arguments it takes.

    Example:
        >>> round(Cosine(1.0, 0.0).at(0.5), 6)
        0.5
    """

    def at(self, progress: float) -> float:
        """Return the value at a progress from 0 to 1."""
        return self.start + (self.end - self.start) * (1.0 - math.cos(math.pi * self.share(progress))) / 2.0


def value_at(value: float | Schedule, progress: float) -> float:
    """Return a plain number as it is, a schedule at this progress.

    Example:
        >>> value_at(2.0, 0.5), value_at(Linear(0.0, 4.0), 0.5)
        (2.0, 2.0)
    """
    return value.at(progress) if isinstance(value, Schedule) else float(value)


def check_number(where: str, value: float | Schedule, *, positive: bool) -> None:
    """Refuse a number, or a schedule that starts, ends or passes half-way at one, that is out of range.

    Args:
        where: The option as the user writes it, such as ``"SoftTargets(temperature=...)"``.
        value: What was given.
        positive: Whether it must be above 0; otherwise 0 is allowed too.

    Raises:
        DistillationError: If it is no number, not finite, or out of range.

    Example:
        >>> check_number("SoftTargets(temperature=...)", Linear(4.0, 1.0), positive=True)
    """
    for progress in (0.0, 0.5, 1.0):
        number = value.at(progress) if isinstance(value, Schedule) else value
        valid = isinstance(number, (int, float)) and not isinstance(number, bool) and math.isfinite(number)
        if not valid or number < 0 or (positive and number == 0):
            found = f"{number!r} at progress {progress}" if isinstance(value, Schedule) else repr(number)
            raise DistillationError(
                f"{where} was given {found}: it must be a finite number {'above 0' if positive else 'of at least 0'}."
            )
