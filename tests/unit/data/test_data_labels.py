import math

import numpy as np
import pytest

from lightning_distilbert.data.labels import MULTI, REGRESSION, SINGLE, LabelSet, is_indicator
from lightning_distilbert.errors import DistillationError

NAMED = LabelSet(SINGLE, ("negative", "positive"), 2)


@pytest.mark.parametrize(
    ("names", "values", "expected"),
    [
        (("negative", "positive"), ["positive", "NEGATIVE", None, -100], [1, 0, -100, -100]),
        (("negative", "positive"), ["1", 0, 1.0, True], [1, 0, 1, 1]),
        # labels named by numbers are meant by name, whatever their spelling
        (("1", "0"), ["1", 0, 1.0, True], [0, 1, 0, 0]),
        (("3", "5"), [5, "3"], [1, 0]),
        (("a", "A"), ["A", "a"], [1, 0]),
        (("LABEL_0", "LABEL_1"), [1, "LABEL_0"], [1, 0]),
        (None, ["1", 0], [1, 0]),
    ],
)
def test_one_label_by_name_or_number(names, values, expected):
    encoded = LabelSet(SINGLE, names, 2).encode(values, "here")
    assert encoded.tolist() == expected
    assert encoded.dtype == np.int64


@pytest.mark.parametrize("value", ["neutral", 2, -1, "7", math.nan, 0.5])
def test_unknown_labels_name_row_value_and_known(value):
    with pytest.raises(DistillationError, match=r"here, row 2: the label .* is not one of the 2 known: 'negative', 'p"):
        NAMED.encode(["negative", value], "here")
    with pytest.raises(DistillationError, match="known: 0 to 1"):
        LabelSet(SINGLE, None, 2).encode([0, value], "here")


@pytest.mark.parametrize("value", [None, "", " "])
def test_an_empty_field_is_no_label_unless_one_is_named_so(value):
    assert NAMED.encode(["positive", value], "here").tolist() == [1, -100]
    assert math.isnan(LabelSet(REGRESSION, None, 1).encode([value], "here")[0])
    assert np.isnan(LabelSet(MULTI, ("a", "b"), 2).encode([["a"], value], "here")[1]).all()
    assert LabelSet.derive(["b", value, "a"], SINGLE, None, "here").names == ("a", "b")
    assert LabelSet.derive(["1", value], SINGLE, None, "here") == LabelSet(SINGLE, None, 2)
    with pytest.raises(DistillationError, match="here: no row has a label, so their number is not known"):
        LabelSet.derive([value], SINGLE, None, "here")
    assert LabelSet(SINGLE, ("", "spam"), 2).encode(["", "spam", None], "here").tolist() == [0, 1, -100]


@pytest.mark.parametrize("item", [None, ""])
def test_a_list_of_labels_has_no_empty_items(item):
    with pytest.raises(DistillationError, match=r"row 1: the label (None|'') is not one of the 2 known"):
        LabelSet(MULTI, ("a", "b"), 2).encode([["a", item]], "here")


def test_a_number_is_never_a_position_among_labels_named_by_numbers():
    with pytest.raises(DistillationError, match="row 1: the label 1 is not one of the 2 known: '3', '5'"):
        LabelSet(SINGLE, ("3", "5"), 2).encode([1], "here")


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ([["a"], [], ["c", 1]], [[1, 0, 0], [0, 0, 0], [0, 1, 1]]),
        ([[0, 2], [1]], [[1, 0, 1], [0, 1, 0]]),
        ([[0, 1, 1], [1, 0, 0]], [[0, 1, 1], [1, 0, 0]]),
        ([[0.0, 1.0, 0.0]], [[0, 1, 0]]),
        ([(True, False, True)], [[1, 0, 1]]),
    ],
)
def test_several_labels(values, expected):
    encoded = LabelSet(MULTI, ("a", "b", "c"), 3).encode([*values, None], "here")
    assert encoded[:-1].tolist() == expected
    assert np.isnan(encoded[-1]).all()
    assert encoded.dtype == np.float32


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ([["a"], "b"], "row 2: 'b' is one label where each row has a list"),
        ([["a"], ["d"]], "row 2: the label 'd' is not one of the 3 known"),
        ([[0.0, 0.5, 1.0]], "row 1: the label 0.5"),
        ([[0.0, 1.0, math.nan]], "row 1: the label nan"),
        ([[-100]], "row 1: the label -100"),
    ],
)
def test_several_labels_gone_wrong(values, message):
    with pytest.raises(DistillationError, match=message):
        LabelSet(MULTI, ("a", "b", "c"), 3).encode(values, "here")


def test_scores_are_finite_numbers_or_none():
    labels = LabelSet(REGRESSION, None, 1)
    encoded = labels.encode(["5.000", 2, None], "here")
    assert encoded[:2].tolist() == [5.0, 2.0]
    assert math.isnan(encoded[2])
    for value in (math.nan, math.inf, "nan", "high", [1.0]):
        with pytest.raises(DistillationError, match=r"here, row 2: the label .* is not a finite number"):
            labels.encode([1.0, value], "here")


@pytest.mark.parametrize(
    ("values", "kind", "names", "number"),
    [
        (["b", "a", None, "b"], SINGLE, ("a", "b"), 2),
        (["0", "2"], SINGLE, None, 3),
        (["1_0", "3e1", "\u0661"], SINGLE, ("1_0", "3e1", "\u0661"), 3),  # float() takes them for numbers
        ([["x"], ["y", "x"]], MULTI, ("x", "y"), 2),
        ([[0], [3, 1]], MULTI, None, 4),
        ([[0, 1, 1], [0, 0, 1]], MULTI, None, 3),
        ([[0.0, 1.0]], MULTI, None, 2),
        ([1.5], REGRESSION, None, 1),
    ],
)
def test_labels_are_found_in_the_rows(values, kind, names, number):
    found = LabelSet.derive(values, kind, None, "here")
    assert (found.problem_type, found.names, found.num_labels) == (kind, names, number)


def test_lists_of_labels_are_read_alike_in_every_split():
    numbers = LabelSet.derive([[0], [1], [0, 1], []], MULTI, None, "train")
    assert numbers.encode([[0, 1], [1, 0]], "dev").tolist() == [[1, 1], [1, 1]]
    ones = LabelSet.derive([[0.0, 1.0], [1.0, 1.0]], MULTI, None, "train")
    assert ones.encode([[0, 1], [1, 0]], "dev").tolist() == [[0, 1], [1, 0]]
    with pytest.raises(DistillationError, match=r"dev, row 2: \[1\] has 1 entries, and other rows have zeros and ones"):
        ones.encode([[0, 1], [1]], "dev")


def test_the_number_of_labels_decides_and_contradictions_are_told():
    assert LabelSet.derive(["0", "1"], SINGLE, 4, "here").num_labels == 4
    with pytest.raises(DistillationError, match="here has 1 labels where the task has num_labels=2: 'a'"):
        LabelSet.derive(["a"], SINGLE, 2, "here")
    with pytest.raises(DistillationError, match="here: no row has a label"):
        LabelSet.derive([None], SINGLE, None, "here")


def test_zeros_and_ones_are_told_from_numbers_of_labels():
    assert is_indicator([[0, 1], [1, 0]], 2)
    assert not is_indicator([[0, 1], [1, 0]], 3)
    assert not is_indicator([[0, 1]], None)
    assert not is_indicator([[0, 1], [1]], 2)
    assert not is_indicator(["ab"], 2)


def test_many_rows_of_many_labels_cost_no_product_of_both():
    class Counted(str):
        folds = 0

        def casefold(self):
            Counted.folds += 1
            return super().casefold()

    names = tuple(Counted(f"Label {number}") for number in range(50))
    rows = [f"label {number % 50}" for number in range(400)]
    assert LabelSet(SINGLE, names, 50).encode(rows, "here").tolist() == [number % 50 for number in range(400)]
    assert Counted.folds == 50
