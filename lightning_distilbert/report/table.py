"""Small tables, for the terminal and for Markdown, and the marked regions of a file that hold them."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from lightning_distilbert.errors import DistillationError


class Table:
    """A table of text.

    Args:
        columns: The headings.
        rows: The rows, each with one cell for each heading. A cell is written with ``str``.
        align: One letter for each column, ``"l"`` for left or ``"r"`` for right. The first column is left and all
            others are right by default.

    Raises:
        DistillationError: If a row is longer or shorter than the headings, or ``align`` is not as described.

    Example:
        >>> table = Table(["model", "nDCG@10"], [["teacher", 0.69], ["student", 0.66]])
        >>> print(table.to_text())
        model    nDCG@10
        -------  -------
        teacher     0.69
        student     0.66
        >>> print(table.to_markdown())
        | model | nDCG@10 |
        | :--- | ---: |
        | teacher | 0.69 |
        | student | 0.66 |
    """

    def __init__(self, columns: Sequence[str], rows: Sequence[Sequence[Any]], align: str | None = None) -> None:
        self.columns = [one_line(column) for column in columns]
        self.rows = [[one_line(cell) for cell in row] for row in rows]
        self.align = "l" + "r" * (len(columns) - 1) if align is None else align
        if not self.columns or len(self.align) != len(self.columns) or set(self.align) - {"l", "r"}:
            raise DistillationError(
                f"align={align!r} does not fit to {len(self.columns)} columns: write one letter, l or r, for each."
            )
        for row in self.rows:
            if len(row) != len(self.columns):
                raise DistillationError(f"The row {row} has {len(row)} cells for {len(self.columns)} columns.")

    def to_text(self) -> str:
        """Return the table in columns of equal width, with a line under the headings."""
        widths = [max(map(len, column)) for column in zip(self.columns, *self.rows, strict=True)]
        lines = [self.columns, ["-" * width for width in widths], *self.rows]
        return "\n".join(
            "  ".join(
                cell.ljust(width) if side == "l" else cell.rjust(width)
                for cell, width, side in zip(line, widths, self.align, strict=True)
            ).rstrip()
            for line in lines
        )

    def to_markdown(self) -> str:
        """Return the table in GitHub's Markdown."""
        rules = [":---" if side == "l" else "---:" for side in self.align]
        lines = [self.columns, rules, *self.rows]
        return "\n".join("| " + " | ".join(cell.replace("|", r"\|") for cell in line) + " |" for line in lines)


def one_line(cell: Any) -> str:
    """Write a cell on one line."""
    return " ".join(str(cell).split())


def replace_region(path: str | os.PathLike[str], name: str, text: str) -> bool:
    """Replace what stands between ``<!-- name:begin -->`` and ``<!-- name:end -->`` in a file, at once or not at all.

    Args:
        path: The file.
        name: The region's name.
        text: What shall stand there, on lines of its own.

    Returns:
        Whether that changed the file.

    Raises:
        DistillationError: If the file does not exist or does not hold the two marks exactly once, in that order.
    """
    path = Path(path)
    try:
        old = path.read_text(encoding="utf-8")
    except FileNotFoundError as error:
        raise DistillationError(f"There is no file {str(path)!r} in which to write the region {name!r}.") from error
    begin, end = f"<!-- {name}:begin -->", f"<!-- {name}:end -->"
    if old.count(begin) != 1 or old.count(end) != 1 or old.index(begin) > old.index(end):
        raise DistillationError(
            f"{str(path)!r} holds {begin!r} {old.count(begin)} times and {end!r} {old.count(end)} times: write each "
            "once, in this order."
        )
    # a function as replacement: backslashes in the text are text
    new = re.sub(
        f"{re.escape(begin)}.*{re.escape(end)}", lambda _: f"{begin}\n{text.strip()}\n{end}", old, flags=re.DOTALL
    )
    if new == old:
        return False
    partial = path.with_name(f"{path.name}.{os.getpid()}.partial")
    try:
        partial.write_text(new, encoding="utf-8")
        partial.chmod(path.stat().st_mode)
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)
    return True
