"""Small pictures as SVG, whose colours are those of the page they stand in."""

from __future__ import annotations

import html
import math
from collections.abc import Sequence
from dataclasses import dataclass

WIDTH, HEIGHT = 600, 400
LEFT, RIGHT, TOP, BOTTOM = 64, 24, 14, 48
COLOURS = 8  # of which the page names c0, c1, ...
LONGEST = 28  # letters of a label
CHARACTER = 6.6  # the width of one at the size of labels, on average


@dataclass(frozen=True)
class Point:
    """A model in a picture.

    Attributes:
        label: Its name.
        x: Where it stands.
        y: Where it stands.
        low: The lower end of its interval, on the axis of scores.
        high: The upper end.
        tip: What is said of it where a pointer rests.
    """

    label: str
    x: float
    y: float
    low: float
    high: float
    tip: str = ""


@dataclass(frozen=True)
class Line:
    """A model's line through several places.

    Attributes:
        label: Its name.
        xs: The places.
        ys: The values.
        uppers: The upper ends of whiskers.
        colour: The number of its colour.
    """

    label: str
    xs: Sequence[float]
    ys: Sequence[float]
    uppers: Sequence[float]
    colour: int


class Axis:
    """Values on a line of pixels, evenly or by their logarithm.

    Args:
        values: What has to fit.
        begin: The pixel of the lowest.
        end: The pixel of the highest.
        log: Whether by the logarithm; all values are above 0 then.
        margin: How much room is left beyond the values at either end, as a share of their range.
        marks: The values that are written at it; None chooses round ones.

    Example:
        >>> axis = Axis([0.0, 10.0], 0, 100, margin=0.0)
        >>> axis.at(5.0), axis.ticks()
        (50.0, [0.0, 2.0, 4.0, 6.0, 8.0, 10.0])
    """

    def __init__(
        self,
        values: Sequence[float],
        begin: float,
        end: float,
        log: bool = False,
        margin: float = 0.1,
        marks: Sequence[float] | None = None,
    ) -> None:
        self.log, self.begin, self.end, self.marks = log, begin, end, marks
        low, high = min(map(self._scaled, values)), max(map(self._scaled, values))
        if high - low < 1e-9:
            low, high = low - 0.5 * max(abs(low), 0.1), high + 0.5 * max(abs(high), 0.1)
        room = margin * (high - low)
        self.low, self.high = low - room, high + room

    def _scaled(self, value: float) -> float:
        return math.log10(value) if self.log else value

    def at(self, value: float) -> float:
        """Return the pixel of a value."""
        return self.begin + (self._scaled(value) - self.low) / (self.high - self.low) * (self.end - self.begin)

    def ticks(self) -> list[float]:
        """Return the values that are written at the axis: those that were given, or about five round ones."""
        if self.marks is not None:
            return list(self.marks)
        if self.log:
            for steps in ((1,), (1, 3), (1, 2, 5), (1, 1.5, 2, 3, 4, 5, 7)):
                powers = range(math.floor(self.low), math.ceil(self.high) + 1)
                found = [step * 10.0**power for power in powers for step in steps]
                found = [value for value in found if self.low <= math.log10(value) <= self.high]
                if len(found) >= 3:
                    return found
        low, high = (10**self.low, 10**self.high) if self.log else (self.low, self.high)
        rough = (high - low) / 5
        power = 10.0 ** math.floor(math.log10(rough))
        step = next(factor * power for factor in (1, 2, 5, 10) if factor * power >= rough * 0.999)
        first = math.ceil(low / step - 1e-9)
        return [round(count * step, 12) for count in range(first, math.floor(high / step + 1e-9) + 1)]


def tick_label(value: float) -> str:
    """Write a round value.

    Example:
        >>> tick_label(0.85), tick_label(2000.0), tick_label(-0.0)
        ('0.85', '2,000', '0')
    """
    return f"{value + 0.0:,.6g}" if abs(value) >= 1e-9 else "0"


def cut(label: str) -> str:
    """Return a label that is not longer than 28 letters.

    Example:
        >>> cut("student"), len(cut("student" * 9))
        ('student', 28)
    """
    return label if len(label) <= LONGEST else f"{label[: LONGEST - 1]}…"


def aside(boxes: Sequence[tuple[float, float, float]], least: float = 12.0) -> list[float]:
    """Move marks aside that would lie on each other, as little as it takes.

    Args:
        boxes: The place of each mark from left to right, and the upper and the lower end of what is drawn there, all in
            pixels.
        least: How far apart marks have to be that meet in height.

    Returns:
        The places of the marks; those that meet no other stay.

    Example:
        >>> aside([(50.0, 10.0, 30.0), (50.0, 20.0, 40.0), (50.0, 60.0, 70.0)])
        [50.0, 62.0, 50.0]
    """
    found: list[float] = []
    steps = [0.0, *(sign * least * count for count in range(1, len(boxes) + 1) for sign in (1, -1))]
    for x, top, bottom in boxes:
        meets = [place for place, (_, t, b) in zip(found, boxes, strict=False) if t < bottom and top < b]
        found.append(next(x + step for step in steps if all(abs(x + step - place) >= least for place in meets)))
    return found


def below(heights: Sequence[float], lowest: float, least: float = 15.0) -> list[float]:
    """Move texts up and down that would touch.

    Args:
        heights: Where they should stand, in ascending order.
        lowest: Where the last may stand.
        least: How far apart they have to be.

    Returns:
        Where they stand.

    Example:
        >>> below([10.0, 12.0, 90.0], 100.0), below([95.0, 99.0], 100.0)
        ([10.0, 25.0, 90.0], [85.0, 100.0])
    """
    found: list[float] = []
    for height in heights:
        found.append(max(height, found[-1] + least) if found else height)
    limit = lowest
    for index in reversed(range(len(found))):
        found[index] = limit = min(found[index], limit)
        limit -= least
    return found


class Picture:
    """An SVG that is drawn piece by piece.

    Args:
        title: What it shows, for those who cannot see it.
        height: Its height.
        left: Room for the labels on the left.
    """

    def __init__(self, title: str, height: int = HEIGHT, left: int = LEFT) -> None:
        self.title, self.height, self.left = title, height, left
        self.parts: list[str] = []
        self.taken: list[tuple[float, float, float, float]] = []

    def text(self, x: float, y: float, text: str, kind: str = "", anchor: str = "start") -> None:
        """Write a text."""
        self.parts.append(
            f'<text x="{x:.1f}" y="{y:.1f}" class="{kind}" text-anchor="{anchor}">{html.escape(text)}</text>'
        )

    def line(self, x1: float, y1: float, x2: float, y2: float, kind: str) -> None:
        """Draw a line."""
        self.parts.append(f'<line x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}" class="{kind}"/>')

    def marker(self, x: float, y: float, index: int, tip: str) -> None:
        """Draw a model's mark: a shape and a colour of its own."""
        r = 5.5
        shapes = (
            f'<circle cx="{x:.1f}" cy="{y:.1f}" r="{r}"',
            f'<rect x="{x - r:.1f}" y="{y - r:.1f}" width="{2 * r}" height="{2 * r}"',
            f'<path d="M{x:.1f} {y - 1.3 * r:.1f} l{1.3 * r:.1f} {2.2 * r:.1f} h{-2.6 * r:.1f} z"',
            f'<path d="M{x:.1f} {y - 1.4 * r:.1f} l{1.4 * r:.1f} {1.4 * r:.1f} l{-1.4 * r:.1f} {1.4 * r:.1f} '
            f'l{-1.4 * r:.1f} {-1.4 * r:.1f} z"',
        )
        self.parts.append(
            f'{shapes[index % len(shapes)]} class="mark c{index % COLOURS}"><title>{html.escape(tip)}</title>'
            f"</{shapes[index % len(shapes)].split()[0][1:]}>"
        )
        # ten times: a covered mark is worse than a covered interval
        self.taken += [(x - r - 2, y - r - 2, x + r + 2, y + r + 2)] * 10

    def whisker(self, x1: float, y1: float, x2: float, y2: float, index: int) -> None:
        """Draw an interval, with short caps at its ends."""
        kind = f"whisker c{index % COLOURS}"
        self.line(x1, y1, x2, y2, kind)
        across = (0.0, 4.0) if abs(y1 - y2) < abs(x1 - x2) else (4.0, 0.0)
        for x, y in ((x1, y1), (x2, y2)):
            self.line(x - across[0], y - across[1], x + across[0], y + across[1], kind)
        self.taken.append((min(x1, x2) - 2, min(y1, y2) - 2, max(x1, x2) + 2, max(y1, y2) + 2))

    def label(self, x: float, y: float, text: str, index: int) -> None:
        """Write a label beside a mark, in its colour, where it covers as little as possible."""
        width = CHARACTER * len(text)
        places = [(10.0, 4.0, "start"), (-10.0, 4.0, "end"), (10.0, -10.0, "start"), (10.0, 18.0, "start")]
        places += [(-10.0, -10.0, "end"), (-10.0, 18.0, "end"), (10.0, -24.0, "start"), (10.0, 32.0, "start")]
        places += [(-10.0, -24.0, "end"), (-10.0, 32.0, "end")]

        def box(place: tuple[float, float, str]) -> tuple[float, float, float, float]:
            begin = x + place[0] - (width if place[2] == "end" else 0)
            return begin, y + place[1] - 11, begin + width, y + place[1] + 4

        def covered(place: tuple[float, float, str]) -> float:
            a = box(place)
            outside = max(0.0, self.left - a[0]) + max(0.0, a[2] - WIDTH + 2) + max(0.0, 2 - a[1])
            outside += max(0.0, a[3] - (self.height - BOTTOM))
            overlaps = sum(
                max(0.0, min(a[2], b[2]) - max(a[0], b[0])) * max(0.0, min(a[3], b[3]) - max(a[1], b[1]))
                for b in self.taken
            )
            return overlaps + 40 * outside

        best = min(places, key=covered)
        self.taken.append(box(best))
        self.text(x + best[0], y + best[1], text, f"label own c{index % COLOURS}", best[2])

    def axes(self, x: Axis, y: Axis | None, x_label: str, y_label: str = "") -> None:
        """Draw grid, ticks and labels of both axes; without `y` the horizontal one alone."""
        bottom = self.height - BOTTOM
        for value in x.ticks():
            self.line(x.at(value), TOP, x.at(value), bottom, "grid")
            self.text(x.at(value), bottom + 18, tick_label(value), "tick", "middle")
        if y is not None:
            for value in y.ticks():
                self.line(self.left, y.at(value), WIDTH - RIGHT, y.at(value), "grid")
                self.text(self.left - 8, y.at(value) + 4, tick_label(value), "tick", "end")
        self.line(self.left, bottom, WIDTH - RIGHT, bottom, "axis")
        self.text((self.left + WIDTH - RIGHT) / 2, self.height - 8, x_label, "name", "middle")
        if y_label:
            middle = (TOP + bottom) / 2
            self.parts.append(
                f'<text x="14" y="{middle:.1f}" class="name" text-anchor="middle" '
                f'transform="rotate(-90 14 {middle:.1f})">{html.escape(y_label)}</text>'
            )

    def done(self) -> str:
        """Return the SVG."""
        inside = "\n".join(self.parts)
        title = html.escape(self.title, quote=True)
        return f'<svg viewBox="0 0 {WIDTH} {self.height}" role="img" aria-label="{title}">\n{inside}\n</svg>'


def scatter(points: Sequence[Point], title: str, x_label: str, y_label: str) -> str:
    """Draw models with their intervals, by a cost on a logarithmic axis and their score.

    Args:
        points: The models; x above 0.
        title: What it shows.
        x_label: The name of the cost.
        y_label: The name of the score.

    Returns:
        An SVG.
    """
    picture = Picture(title)
    x = Axis([point.x for point in points], LEFT, WIDTH - RIGHT, log=True, margin=0.12)
    ends = [value for point in points for value in (point.low, point.high, point.y)]
    y = Axis(ends, HEIGHT - BOTTOM, TOP, margin=0.08)
    picture.axes(x, y, x_label, y_label)
    places = aside([(x.at(point.x), y.at(point.high) - 8, y.at(point.low) + 8) for point in points])
    for index, (place, point) in enumerate(zip(places, points, strict=True)):
        picture.whisker(place, y.at(point.low), place, y.at(point.high), index)
    for index, (place, point) in enumerate(zip(places, points, strict=True)):
        picture.marker(place, y.at(point.y), index, point.tip)
    for index, (place, point) in enumerate(zip(places, points, strict=True)):
        picture.label(place, y.at(point.y), cut(point.label), index)
    return picture.done()


def forest(points: Sequence[Point], title: str, x_label: str, zero: float = 0.0) -> str:
    """Draw one row for each model: a value with its interval, and a line at the reference.

    Args:
        points: The models; `x` is the value, `low` and `high` its interval, and `y` is not looked at.
        title: What it shows.
        x_label: What the value is.
        zero: Where the line of the reference stands.

    Returns:
        An SVG.
    """
    left = int(min(220, 24 + CHARACTER * max(len(point.label) for point in points)))
    row = min(72.0, max(26.0, (HEIGHT - TOP - BOTTOM - 8) / len(points)))
    picture = Picture(title, int(TOP + row * len(points) + BOTTOM + 8), left)
    ends = [value for point in points for value in (point.low, point.high)]
    x = Axis([*ends, zero], left, WIDTH - RIGHT, margin=0.06)
    picture.axes(x, None, x_label)
    picture.line(x.at(zero), TOP, x.at(zero), picture.height - BOTTOM, "zero")
    for index, point in enumerate(points):
        y = TOP + row * (index + 0.5) + 4
        if point.high > point.low:
            picture.whisker(x.at(point.low), y, x.at(point.high), y, index)
        picture.marker(x.at(point.x), y, index, point.tip)
        picture.text(left - 12, y + 4, cut(point.label), "label", "end")
    return picture.done()


def lines(drawn: Sequence[Line], title: str, x_label: str, y_label: str) -> str:
    """Draw a line for each model, both axes logarithmic, with whiskers upwards.

    Args:
        drawn: The lines.
        title: What it shows.
        x_label: The name of the horizontal axis.
        y_label: The name of the vertical axis.

    Returns:
        An SVG.
    """
    right = 24 + CHARACTER * min(LONGEST, max(len(line.label) for line in drawn))
    picture = Picture(title)
    places = sorted({value for line in drawn for value in line.xs})
    x = Axis(places, LEFT, WIDTH - right, log=True, margin=0.06, marks=places)
    heights = [value for line in drawn for value in (*line.ys, *line.uppers)]
    y = Axis(heights, HEIGHT - BOTTOM, TOP, log=True, margin=0.06)
    picture.axes(x, y, x_label, y_label)
    for line in drawn:
        path = " L".join(f"{x.at(a):.1f} {y.at(b):.1f}" for a, b in zip(line.xs, line.ys, strict=True))
        picture.parts.append(f'<path d="M{path}" class="curve c{line.colour % COLOURS}"/>')
        for a, b, upper in zip(line.xs, line.ys, line.uppers, strict=True):
            picture.whisker(x.at(a), y.at(b), x.at(a), y.at(upper), line.colour)
            picture.marker(x.at(a), y.at(b), line.colour, f"{line.label}, {a:g}: {b:.3g}")
    for place in places:  # each name stands where its line ends
        ended = sorted((line for line in drawn if line.xs[-1] == place), key=lambda line: y.at(line.ys[-1]))
        heights = below([y.at(line.ys[-1]) + 4 for line in ended], HEIGHT - BOTTOM - 6)
        for line, height in zip(ended, heights, strict=True):
            picture.text(x.at(place) + 12, height, cut(line.label), f"label own c{line.colour % COLOURS}")
    return picture.done()
