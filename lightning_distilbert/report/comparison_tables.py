"""A comparison as tables: what models score, what they cost, and how long they take by length."""

from __future__ import annotations

from typing import TYPE_CHECKING

from lightning_distilbert.report.table import Table

if TYPE_CHECKING:
    from lightning_distilbert.report.compared import Comparison, Measured

NONE = "-"


def number(value: float, sign: bool = False) -> str:
    """Write a score: with three digits after the point, or two from 10 on.

    Args:
        value: The score.
        sign: Whether a plus is written.

    Example:
        >>> number(0.8911), number(31.257), number(0.0021, sign=True)
        ('0.891', '31.26', '+0.002')
    """
    digits = 2 if abs(value) >= 10 else 3
    text = f"{value:+.{digits}f}" if sign else f"{value:.{digits}f}"
    return text.replace("-0.000", "0.000") if float(text) == 0 and text.startswith("-") else text


def interval(low: float, high: float, sign: bool = False) -> str:
    """Write the ends of an interval.

    Args:
        low: The lower end.
        high: The upper end.
        sign: Whether a plus is written.

    Example:
        >>> interval(0.87, 0.912)
        '[0.870, 0.912]'
    """
    return f"[{number(low, sign)}, {number(high, sign)}]"


def short(value: float) -> str:
    """Write a measurement with about three digits.

    Example:
        >>> short(1234.5), short(57.12), short(4.567), short(0.0123)
        ('1,234', '57.1', '4.57', '0.012')
    """
    digits = 0 if value >= 100 else 1 if value >= 10 else 2 if value >= 1 else 3
    return f"{value:,.{digits}f}"


def p_value(value: float) -> str:
    """Write a p-value.

    Example:
        >>> p_value(0.0019), p_value(0.25)
        ('0.002', '0.250')
    """
    return f"{value:.3f}"


def share(confidence: float) -> str:
    """Write a share as per cent.

    Example:
        >>> share(0.95), share(0.995)
        ('95 %', '99.5 %')
    """
    return f"{100 * confidence:.3g} %"


def tables(comparison: Comparison) -> list[tuple[str, Table]]:
    """Return the tables of a comparison, each with its title.

    Args:
        comparison: The comparison.
    """
    level = share(comparison.confidence)
    arrow = "" if comparison.mode == "max" else ", lower is better"
    first = [
        "model",
        "format",
        f"{comparison.metric} [{level}]{arrow}",
        f"against {comparison.reference} [{level}]",
        "p",
        "kept",
    ]
    size = f"{comparison.batch_size} x {comparison.main_length}"
    second = [
        "model",
        "parameters",
        "MB on disk",
        "peak MB",
        "cold start, s",
        f"ms, 1 x {comparison.main_length}",
        f"{units(comparison)}/s, {size}",
    ]
    third = ["model", *(f"{length} tokens" for length in comparison.lengths)]
    return [
        ("Scores", Table(first, [_scores(one) for one in comparison.models], align="llrrrr")),
        ("Costs", Table(second, [_costs(one, comparison.main_length) for one in comparison.models])),
        (
            "Latency of one text, in milliseconds: median / 95th / 99th percentile",
            Table(third, [_latencies(one, comparison.lengths) for one in comparison.models]),
        ),
    ]


def units(comparison: Comparison) -> str:
    """Return what goes through a model when it is timed."""
    return "texts" if comparison.task not in ("QuestionAnswering", "Reranking") else "pairs"


def _scores(one: Measured) -> list[str]:
    score = f"{number(one.score.value)} {interval(one.score.low, one.score.high)}"
    kept = NONE if one.retention is None else f"{one.retention:.1%}"
    if one.difference is None:
        return [one.name, one.format, score, NONE, NONE, kept]
    gap = one.difference
    less = f"{number(gap.value, sign=True)} {interval(gap.low, gap.high, sign=True)}"
    return [one.name, one.format, score, less, p_value(gap.p_value), kept]


def _costs(one: Measured, length: int) -> list[str]:
    times = one.latency_ms.get(length)
    return [
        one.name,
        f"{one.parameters / 1e6:.1f} M" if one.parameters >= 1e5 else f"{one.parameters:,}",
        short(one.size_mb),
        NONE if one.peak_memory_mb is None else short(one.peak_memory_mb),
        NONE if one.cold_start_s is None else short(one.cold_start_s),
        NONE if times is None else short(times["p50"]),
        NONE if one.throughput is None else short(one.throughput),
    ]


def _latencies(one: Measured, lengths: tuple[int, ...]) -> list[str]:
    cells = [one.latency_ms.get(length) for length in lengths]
    return [one.name, *(NONE if cell is None else " / ".join(map(short, cell.values())) for cell in cells)]


def facts(comparison: Comparison) -> list[tuple[str, str]]:
    """Return how a comparison was made, as names and values.

    Args:
        comparison: The comparison.
    """
    machine = dict(comparison.machine)
    threads = f"{comparison.threads} of {machine.pop('processors', '?')}"
    told = [
        ("task", comparison.task),
        ("rows", f"{comparison.rows:,} {comparison.unit} of {comparison.evaluation} ({comparison.split})"),
        (
            "intervals",
            f"{share(comparison.confidence)}, {comparison.resamples:,} draws of the rows (seed {comparison.seed}), "
            f"paired with those of {comparison.reference}",
        ),
        *machine.items(),
        ("threads", threads),
        ("timed", _timed(comparison)),
        ("versions", ", ".join(f"{name} {version}" for name, version in comparison.versions.items())),
        ("made", comparison.created),
    ]
    return [*told, ("command", comparison.command)] if comparison.command else told


def _timed(comparison: Comparison) -> str:
    starts = f"; cold starts ({comparison.starts} of each), each in a process of its own" if comparison.starts else ""
    return f"all models in turn, {comparison.repeats} times each length{starts}"


def to_text(comparison: Comparison) -> str:
    """Return a comparison as tables for a terminal.

    Args:
        comparison: The comparison.
    """
    parts = [f"{title}\n{table.to_text()}" for title, table in tables(comparison)]
    width = max(len(name) for name, _ in facts(comparison))
    parts.append("\n".join(f"{name:<{width}}  {value}" for name, value in facts(comparison)))
    parts += [f"Note: {note}." for note in comparison.notes]
    return "\n\n".join(parts)


def to_markdown(comparison: Comparison) -> str:
    """Return a comparison as tables in GitHub's Markdown, without headings, to stand in another text.

    Args:
        comparison: The comparison.
    """
    parts = [f"{title}:\n\n{table.to_markdown()}" for title, table in tables(comparison)]
    lines = []
    for name, value in facts(comparison):
        lines.append(f"- {name}: `{value}`" if name == "command" else f"- {name}: {value}")
    parts.append("\n".join(lines))
    parts += [f"Note: {note}." for note in comparison.notes]
    return "\n\n".join(parts)
