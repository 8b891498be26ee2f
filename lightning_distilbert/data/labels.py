"""Labels of all three kinds as numbers, with errors that name the row and the value."""

from __future__ import annotations

import functools
import math
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from lightning_distilbert.errors import DistillationError

SINGLE, MULTI, REGRESSION = PROBLEM_TYPES = (
    "single_label_classification",
    "multi_label_classification",
    "regression",
)
WHOLE = re.compile(r"[+-]?\d+(\.0*)?", re.ASCII)
IGNORED = -100  # what torch's cross-entropy leaves out


def is_missing(value: Any, names: Sequence[str] | None = None) -> bool:
    """Tell whether a value stands for no label: None, or an empty field, unless a label is named so.

    Example:
        >>> is_missing(None), is_missing(""), is_missing("", names=["", "spam"]), is_missing("0")
        (True, True, False, False)
    """
    return value is None or (isinstance(value, str) and not value.strip() and value not in (names or ()))


def as_index(value: Any) -> int | None:
    """Return a label that is a whole number in any spelling, or None.

    Example:
        >>> as_index("1"), as_index(2.0), as_index(True), as_index("one"), as_index(0.5)
        (1, 2, 1, None, None)
    """
    if isinstance(value, str) and not WHOLE.fullmatch(value.strip()):
        return None  # float() takes "1_0" and "3e1" too, which are names
    try:
        number = float(value)
    except (TypeError, ValueError):
        return None
    return int(number) if math.isfinite(number) and number == int(number) else None


@dataclass(frozen=True)
class LabelSet:
    """The labels of a task: their kind, names and number.

    Attributes:
        problem_type: transformers' name of the kind.
        names: The names, in the order of the head's outputs; None where labels are numbers without names.
        num_labels: How many there are; 1 for regression.
        indicator: Whether lists of labels are zeros and ones, one per label; None tells it by the rows.
    """

    problem_type: str
    names: tuple[str, ...] | None
    num_labels: int
    indicator: bool | None = None

    @classmethod
    def derive(cls, values: Sequence[Any], problem_type: str, num_labels: int | None, where: str) -> LabelSet:
        """Find the labels in the rows: whole numbers stay as they are, names are sorted.

        Args:
            values: The labels of the training rows.
            problem_type: Their kind.
            num_labels: Their number, where it is known.
            where: What to call the rows in an error.

        Returns:
            The labels.

        Raises:
            DistillationError: If no row has a label and the number is not known, or the number is another.

        Example:
            >>> LabelSet.derive(["good", "bad", "good"], SINGLE, None, "here").names
            ('bad', 'good')
        """
        if problem_type == REGRESSION:
            return cls(problem_type, None, 1)
        known = [value for value in values if not is_missing(value)]
        if problem_type == MULTI:
            if known and is_indicator(known, num_labels):
                return cls(problem_type, None, len(known[0]), indicator=True)
            known = [item for value in known if not isinstance(value, str) for item in _items(value)]
        indices = [as_index(value) for value in known]
        if None not in indices:
            found = max((index for index in indices if index is not None), default=-1) + 1
            if not found and num_labels is None:
                raise DistillationError(f"{where}: no row has a label, so their number is not known. Pass `labels`.")
            # another split is read as this one, whatever its rows look like
            indicator = False if problem_type == MULTI and known else None
            return cls(problem_type, None, num_labels if num_labels is not None else found, indicator)
        names = tuple(sorted({str(value) for value in known}))
        if num_labels is not None and len(names) != num_labels:
            raise DistillationError(
                f"{where} has {len(names)} labels where the task has num_labels={num_labels}: {_listed(names)}. "
                f"Set num_labels={len(names)} if these are all; else name all of them, in their order, labels=[...], "
                "and set num_labels to their number."
            )
        return cls(problem_type, names, num_labels or len(names))

    def encode(self, values: Sequence[Any], where: str) -> np.ndarray:
        """Turn labels into the array that the task loss takes.

        Args:
            values: One label per row: a name or number; for several labels a list of these, or (where all rows have
                it) a list of zeros and ones, one per label; for regression a number. None and empty text are no
                label, unless one of the names is empty.
            where: What to call the rows in an error.

        Returns:
            int64 of shape ``(rows,)``, with -100 for None; or float32 of shape ``(rows, num_labels)`` for several
            labels and ``(rows,)`` for regression, with NaN for None.

        Raises:
            DistillationError: If a label is unknown, out of range, or not a finite number.

        Example:
            >>> LabelSet(SINGLE, ("bad", "good"), 2).encode(["good", "0", None], "here").tolist()
            [1, 0, -100]
            >>> LabelSet(REGRESSION, None, 1).encode(["0.5", ""], "here").tolist()
            [0.5, nan]
            >>> LabelSet(MULTI, ("a", "b", "c"), 3).encode([["c", "a"], []], "here").tolist()
            [[1.0, 0.0, 1.0], [0.0, 0.0, 0.0]]
        """
        values = [None if is_missing(value, self.names) else value for value in values]
        if self.problem_type == REGRESSION:
            return np.array([self._score(value, i, where) for i, value in enumerate(values, 1)], dtype=np.float32)
        if self.problem_type == SINGLE:
            return np.array([self._index(value, i, where) for i, value in enumerate(values, 1)], dtype=np.int64)
        known = [value for value in values if value is not None]
        indicator = is_indicator(known, self.num_labels) if self.indicator is None else self.indicator
        matrix = np.zeros((len(values), self.num_labels), dtype=np.float32)
        for number, (row, value) in enumerate(zip(matrix, values, strict=True), start=1):
            if value is None:
                row[:] = np.nan
            elif isinstance(value, str) or not hasattr(value, "__len__"):
                raise DistillationError(
                    f"{where}, row {number}: {value!r} is one label where each row has a list of them. "
                    "Write lists (as JSON lines can), or use problem_type='single_label_classification'."
                )
            elif indicator and len(value) != self.num_labels:
                raise DistillationError(
                    f"{where}, row {number}: {value!r} has {len(value)} entries, and other rows have zeros and ones "
                    f"for {self.num_labels} labels each."
                )
            elif indicator:
                row[:] = [float(item) for item in value]
            else:
                row[[self._index(item, number, where) for item in value]] = 1.0
        return matrix

    def _index(self, value: Any, number: int, where: str) -> int:
        if value is None and self.problem_type == SINGLE:
            return IGNORED
        index = as_index(value)
        if self.names is not None:
            text, (exact, folded, numbered) = str(value), self._spellings
            for places, spelling in ((exact, text), (folded, text.casefold()), (exact, str(index))):
                if spelling in places:
                    return places[spelling]
            if numbered:
                index = None  # labels that are named by numbers are never meant by their position
        if index is not None and 0 <= index < self.num_labels:
            return index
        if index == IGNORED and self.problem_type == SINGLE:
            return IGNORED
        known = _listed(self.names) if self.names else f"0 to {self.num_labels - 1}"
        raise DistillationError(
            f"{where}, row {number}: the label {value!r} is not one of the {self.num_labels} known: {known}. "
            "Mend the row, or name all labels in their order: labels=[...]."
        )

    @functools.cached_property
    def _spellings(self) -> tuple[dict[str, int], dict[str, int], bool]:
        """The places of the names and of the names without case, where unique, and whether one is a number."""
        names = self.names or ()
        exact, folded = (_places_of(spelt) for spelt in (names, [name.casefold() for name in names]))
        return exact, folded, any(as_index(name) is not None for name in names)

    @staticmethod
    def _score(value: Any, number: int, where: str) -> float:
        if value is None:
            return math.nan
        try:
            score = float(value)
        except (TypeError, ValueError):
            score = math.nan
        if not math.isfinite(score):
            raise DistillationError(
                f"{where}, row {number}: the label {value!r} is not a finite number. "
                "Mend or drop the row (None, null in JSON and an empty field stand for no label)."
            )
        return score


def is_indicator(values: Sequence[Any], num_labels: int | None) -> bool:
    """Tell whether lists of labels are zeros and ones, one per label, and not names or numbers of labels.

    They are if all have the same length, that of the labels where it is known, and hold only 0 and 1. Without a known
    number, whole numbers are zeros and ones only where one comes twice in a row.

    Example:
        >>> is_indicator([[0.0, 1.0]], None), is_indicator([[0, 1, 1], [1, 0, 0]], 3), is_indicator([[0], [1]], 2)
        (True, True, False)
    """
    if not values or any(isinstance(value, str) or not hasattr(value, "__len__") for value in values):
        return False
    width = len(values[0])
    if width == 0 or any(len(value) != width for value in values):
        return False
    items = [item for value in values for item in value]
    if any(isinstance(item, str) or item not in (0, 1) for item in items):
        return False
    if num_labels is not None:
        return width == num_labels
    return any(isinstance(item, (float, bool)) for item in items) or any(len(set(value)) < width for value in values)


def _places_of(names: Sequence[str]) -> dict[str, int]:
    counts = Counter(names)
    return {name: place for place, name in enumerate(names) if counts[name] == 1}


def _items(value: Any) -> list[Any]:
    return list(value) if hasattr(value, "__len__") else [value]


def _listed(names: Sequence[str]) -> str:
    shown = ", ".join(map(repr, names[:20]))
    return shown if len(names) <= 20 else f"{shown}, ... ({len(names)} in all)"


def count_missing(labels: np.ndarray) -> int:
    """Return how many rows of an encoded array have no label.

    Example:
        >>> count_missing(np.array([1, -100])), count_missing(np.array([[1.0], [np.nan], [np.nan]]))
        (1, 2)
    """
    gaps = np.isnan(labels) if labels.dtype.kind == "f" else labels == IGNORED
    return int(gaps.reshape(len(labels), -1).any(axis=1).sum())


def no_labels(rows: int, like: np.ndarray) -> np.ndarray:
    """Return the encoded labels of rows that have none, shaped as those of other rows.

    Example:
        >>> no_labels(2, np.array([1, 0])).tolist(), no_labels(1, np.array([[1.0, 0.0]])).tolist()
        ([-100, -100], [[nan, nan]])
    """
    return np.full((rows, *like.shape[1:]), np.nan if like.dtype.kind == "f" else IGNORED, dtype=like.dtype)
