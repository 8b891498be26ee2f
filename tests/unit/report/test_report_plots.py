from __future__ import annotations

import itertools
import re
import xml.etree.ElementTree as ET

import pytest

from lightning_distilbert.report.plots import HEIGHT, WIDTH, Axis, Line, Point, aside, below, forest, lines, scatter

POINTS = [
    Point("teacher", 90.9, 0.9, 0.88, 0.92, "teacher: 0.900"),
    Point("a <b> & c", 90.9, 0.88, 0.86, 0.9, "same size"),
    Point("int8", 17.0, 0.87, 0.85, 0.89, "small"),
]


def marks(svg: str) -> list[ET.Element]:
    return [one for one in ET.fromstring(svg).iter() if "mark" in one.get("class", "").split()]


def numbers(svg: str, kind: str, names: tuple[str, ...]) -> list[tuple[float, ...]]:
    found = [one for one in ET.fromstring(svg).iter() if one.get("class", "").split()[:1] == [kind]]
    return [tuple(float(one.get(name, "nan")) for name in names) for one in found]


def test_axis_is_linear_or_logarithmic():
    assert Axis([0, 10], 0, 100, margin=0).at(2.5) == 25
    assert Axis([1, 100], 0, 100, log=True, margin=0).at(10) == pytest.approx(50)
    assert Axis([0, 1], 100, 0, margin=0).at(0.25) == 75  # upwards


@pytest.mark.parametrize(("low", "high"), [(0.861, 0.872), (3, 4.1), (0.5, 2000), (15, 16), (7, 7)])
@pytest.mark.parametrize("log", [False, True])
def test_there_are_some_round_ticks_within_the_axis(low: float, high: float, log: bool):
    axis = Axis([low, high], 0, 100, log=log)
    ticks = axis.ticks()
    assert 2 <= len(ticks) <= 12
    assert all(-1e-6 <= axis.at(tick) <= 100 + 1e-6 for tick in ticks)
    assert all(len(f"{tick:.6g}".strip("0").replace(".", "").strip("0")) <= 3 for tick in ticks)


def test_axis_can_be_told_its_ticks():
    assert Axis([16, 128], 0, 100, log=True, marks=[16, 128]).ticks() == [16, 128]


def test_scatter_draws_each_model_with_its_interval():
    svg = scatter(POINTS, "Score & size", "MB", "accuracy")
    assert len(marks(svg)) == 3
    whiskers = numbers(svg, "whisker", ("x1", "y1", "x2", "y2"))[::3]  # each with two caps
    assert len(whiskers) == 3
    assert all(x1 == x2 and y1 > y2 for x1, y1, x2, y2 in whiskers)
    x = [whisker[0] for whisker in whiskers]
    assert x[2] < x[0] < x[1]  # the second has the size of the first and stands beside it
    assert [title.text for title in ET.fromstring(svg).iter("title")] == [point.tip for point in POINTS]


def test_a_label_has_the_colour_of_its_mark_and_covers_no_mark():
    near = [
        ("fine-tuned", 69.0, 0.57),
        ("distilled", 69.0, 0.593),
        ("int8", 22.7, 0.591),
        ("distilled-executorch", 69.0, 0.593),
    ]
    points = [Point(name, x, y, y - 0.03, y + 0.03) for name, x, y in near]
    svg = scatter([Point("teacher", 90.3, 0.787, 0.767, 0.809), *points], "t", "MB", "f1")
    texts = [text for text in ET.fromstring(svg).iter("text") if "label" in text.get("class", "").split()]
    assert [text.get("class") for text in texts] == [f"label own c{index}" for index in range(5)]
    centres = [tuple(float(number) for number in re.findall(r"[\d.]+", shape(mark))[:2]) for mark in marks(svg)]
    for text in texts:
        width, end = 6.6 * len(text.text), float(text.get("x"))
        begin = end - width if text.get("text-anchor") == "end" else end
        for x, y in centres:
            beside = x < begin or x > begin + width
            assert beside or not -11 < y - float(text.get("y")) < 4


def shape(mark: ET.Element) -> str:
    return mark.get("d") or " ".join(mark.get(name, "") for name in ("cx", "cy", "x", "y"))


def test_everything_stays_inside():
    many = [Point(f"a model with a rather long name {n}", 10 + n / 10, 0.8 + n / 100, 0.7, 0.95) for n in range(10)]
    for svg in (scatter(many, "t", "x", "y"), forest(many, "t", "x")):
        root = ET.fromstring(svg)
        height = float(root.get("viewBox", "").split()[3])
        for text in root.iter("text"):
            assert -1 <= float(text.get("x", "0")) <= WIDTH
            assert 0 <= float(text.get("y", "0")) <= height
    assert "…" in svg  # long names are cut


def test_forest_has_a_row_each_and_a_line_at_the_reference():
    gaps = [Point("teacher", 0, 0, 0, 0), Point("student", -0.02, 0, -0.03, -0.01), Point("int8", 0.01, 0, -0.01, 0.03)]
    svg = forest(gaps, "Differences", "accuracy")
    (zero,) = numbers(svg, "zero", ("x1", "x2"))
    found = numbers(svg, "whisker", ("x1", "y1", "x2", "y2"))[::3]
    assert len(marks(svg)) == 3
    assert len(found) == 2  # the reference has no interval
    assert found[0][0] < found[0][2] < zero[0] == zero[1]
    assert found[1][0] < zero[0] < found[1][2]
    assert found[0][1] < found[1][1]


def test_lines_rise_with_length_and_end_with_their_names():
    drawn = [Line("teacher", [16, 64], [10, 30], [12, 35], 0), Line("int8", [16], [2], [2.5], 2)]
    svg = lines(drawn, "Latency", "tokens", "ms")
    curves = [one.get("d", "") for one in ET.fromstring(svg).iter("path") if "curve" in one.get("class", "")]
    first = [tuple(map(float, pair)) for pair in re.findall(r"([\d.]+) ([\d.]+)", curves[0])]
    assert len(first) == 2
    assert first[0][0] < first[1][0]
    assert first[0][1] > first[1][1]
    labels = [text.text for text in ET.fromstring(svg).iter("text") if "label" in text.get("class", "")]
    assert sorted(labels) == ["int8", "teacher"]
    assert "c2" in svg  # a model keeps its colour
    assert len(marks(svg)) == 3


def test_names_at_the_end_of_equal_lines_do_not_touch():
    drawn = [Line(name, [16, 64], [10, 30], [12, 35], n) for n, name in enumerate("abc")]
    heights = sorted(y for _, y in numbers(lines(drawn, "t", "x", "y"), "label", ("x", "y")))
    assert min(b - a for a, b in itertools.pairwise(heights)) >= 15
    assert heights[-1] < HEIGHT


def test_marks_are_moved_aside_only_where_they_meet():
    assert aside([(30, 0, 9), (10, 0, 9), (31, 5, 20), (30, 30, 40)]) == [30, 10, 43, 30]
    assert aside([(30, 0, 9)] * 4) == [30, 42, 18, 54]


def test_texts_are_moved_apart_and_stay_above_the_axis():
    assert below([10.0, 11.0, 50.0], 100.0) == [10.0, 25.0, 50.0]
    assert below([90.0, 91.0, 92.0], 100.0) == [70.0, 85.0, 100.0]
