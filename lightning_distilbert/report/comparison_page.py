"""A comparison as one page with pictures, in light and in dark, which loads nothing from anywhere."""

from __future__ import annotations

import html
from importlib.resources import files
from string import Template
from typing import TYPE_CHECKING

from lightning_distilbert.report.comparison_tables import facts, interval, number, share, short, tables
from lightning_distilbert.report.plots import COLOURS, Line, Point, forest, lines, scatter
from lightning_distilbert.report.table import Table

if TYPE_CHECKING:
    from lightning_distilbert.report.compared import Comparison, Measured

TEMPLATE = "comparison.html"


def to_html(comparison: Comparison) -> str:
    """Return a comparison as a page.

    Args:
        comparison: The comparison.
    """
    template = Template(files("lightning_distilbert.report").joinpath(TEMPLATE).read_text(encoding="utf-8"))
    shown = [f"<h2>{html.escape(title)}</h2>\n{table_html(table)}" for title, table in tables(comparison)]
    told = [f"<dt>{html.escape(name)}</dt><dd>{_value(name, value)}</dd>" for name, value in facts(comparison)]
    return template.substitute(
        title=html.escape(f"{comparison.task}: {_number(comparison)} compared"),
        subtitle=html.escape(
            f"{comparison.rows:,} {comparison.unit} of {comparison.evaluation}, compared with {comparison.reference}, "
            f"on {comparison.machine.get('processor', 'an unknown processor')} with {comparison.threads} "
            f"{'thread' if comparison.threads == 1 else 'threads'}, {comparison.created[:10]}"
        ),
        notes="\n".join(f'<p class="soft">Note: {html.escape(note)}.</p>' for note in comparison.notes),
        scores=shown[0],
        figures="\n".join(figures(comparison)),
        costs="\n".join(shown[1:]),
        facts="\n".join(told),
    )


def table_html(table: Table) -> str:
    """Return a table whose rows are the models, each with the colour that it has in the pictures.

    Args:
        table: The table.

    Example:
        >>> "</span>a &amp; b</td>" in table_html(Table(["model"], [["a & b"]]))
        True
    """

    def cells(tag: str, row: list[str], key: str = "") -> str:
        parts = []
        for place, (cell, side) in enumerate(zip(row, table.align, strict=True)):
            kind = ' class="l"' if side == "l" else ""
            parts.append(f"<{tag}{kind}>{key if place == 0 else ''}{html.escape(cell)}</{tag}>")
        return f"<tr>{''.join(parts)}</tr>"

    rows = [cells("td", row, f'<span class="key c{index % COLOURS}"></span>') for index, row in enumerate(table.rows)]
    head = cells("th", table.columns)
    return f'<div class="wide"><table><thead>{head}</thead><tbody>\n{"".join(rows)}\n</tbody></table></div>'


def figures(comparison: Comparison) -> list[str]:
    """Return the pictures: scores, scores against size and against latency, and latency by length.

    Args:
        comparison: The comparison.
    """
    metric = comparison.metric if comparison.mode == "max" else f"{comparison.metric} (lower is better)"
    level = share(comparison.confidence)
    found = []
    if len(comparison.models) > 1:
        gaps = [_gap(one) for one in comparison.models]
        found.append(
            _figure(
                f"Difference to {comparison.reference}",
                f"On the same rows, with its {level} interval. Left of the line is lower.",
                forest(
                    gaps, "Differences to the reference", f"{comparison.metric} less that of {comparison.reference}"
                ),
            )
        )
    sizes = [_point(one, one.size_mb, f"{short(one.size_mb)} MB") for one in comparison.models]
    found.append(
        _figure(
            "Score and size",
            f"The bars are each model's own {level} interval over the rows. What would lie on top is moved aside.",
            scatter(sizes, "Score and size", "MB on disk", metric),
        )
    )
    length = comparison.main_length
    timed = [one for one in comparison.models if length in one.latency_ms]
    if timed:
        speeds = [
            _point(one, one.latency_ms[length]["p50"], f"{short(one.latency_ms[length]['p50'])} ms") for one in timed
        ]
        found.append(
            _figure(
                "Score and latency",
                f"Median milliseconds for one text of {length} tokens.",
                scatter(speeds, "Score and latency", f"ms, 1 x {length} tokens", metric),
            )
        )
    drawn = [_line(one, index) for index, one in enumerate(comparison.models) if one.latency_ms]
    found.append(
        _figure(
            "Latency by length",
            "Milliseconds for one text: the median, with a bar up to the 95th percentile.",
            lines(drawn, "Latency by length", "tokens", "ms"),
        )
    )
    return found


def _figure(title: str, caption: str, picture: str) -> str:
    return f"<figure><figcaption><b>{html.escape(title)}</b>{html.escape(caption)}</figcaption>\n{picture}\n</figure>"


def _point(one: Measured, cost: float, told: str) -> Point:
    tip = f"{one.name}: {number(one.score.value)} {interval(one.score.low, one.score.high)}, {told}"
    return Point(one.name, cost, one.score.value, one.score.low, one.score.high, tip)


def _gap(one: Measured) -> Point:
    if one.difference is None:
        return Point(one.name, 0.0, 0.0, 0.0, 0.0, f"{one.name}: the reference")
    gap = one.difference
    tip = f"{one.name}: {number(gap.value, sign=True)} {interval(gap.low, gap.high, sign=True)}, p = {gap.p_value:.3f}"
    return Point(one.name, gap.value, 0.0, gap.low, gap.high, tip)


def _line(one: Measured, index: int) -> Line:
    times = sorted(one.latency_ms.items())
    return Line(
        one.name,
        [length for length, _ in times],
        [time["p50"] for _, time in times],
        [time["p95"] for _, time in times],
        index,
    )


def _value(name: str, value: str) -> str:
    return f"<code>{html.escape(value)}</code>" if name == "command" else html.escape(value)


def _number(comparison: Comparison) -> str:
    return f"{len(comparison.models)} models" if len(comparison.models) > 1 else "one model"
