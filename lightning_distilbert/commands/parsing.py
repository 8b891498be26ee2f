"""What all commands with options of their own share."""

from __future__ import annotations

from argparse import ArgumentParser, BooleanOptionalAction
from typing import Any, NoReturn

from lightning_distilbert.errors import DistillationError

READING = ("text", "label", "languages", "columns", "header", "delimiter")


class PlainParser(ArgumentParser):
    """A parser of which a mistake is an error like all others: one line."""

    def error(self, message: str) -> NoReturn:
        """Raise what argparse would print.

        Raises:
            DistillationError: In any case.
        """
        raise DistillationError(f"{message} (see {self.prog} --help)")


def add_table_options(parser: ArgumentParser) -> None:
    """Add the options that say how a text table is read.

    Args:
        parser: The parser of a command with ``--input``.
    """
    parser.add_argument("--columns", nargs="+", help="column names, for a table without a header")
    header = "whether a table has a header (default: without --columns)"
    parser.add_argument("--header", action=BooleanOptionalAction, help=header)
    parser.add_argument("--delimiter", help="separator of a text table (default: by the suffix)")


def add_evaluation_options(parser: ArgumentParser, required: bool = False) -> None:
    """Add the options that name rows with labels, and say how they are read.

    Args:
        parser: The parser of a command that measures a score.
        required: Whether the command cannot do without.
    """
    add = parser.add_argument
    rows = "rows with labels, to measure the score on: a file, or what the task's data module reads"
    add("--evaluate", required=required, help=rows)
    add("--split", help="validation or test, of --evaluate (default: the first that there is)")
    add("--text", nargs="+", action="extend", help="column of the text, or the two columns of a pair")
    add("--label", help="column of the label, the answers, the tags or the translation")
    languages = "of translations: the endings of two files whose shared name is given, such as en de"
    add("--languages", nargs=2, help=languages)
    add_table_options(parser)


def pop_reading(options: dict[str, Any]) -> dict[str, Any]:
    """Take out of the options those that say how rows are read.

    Args:
        options: What was parsed of `add_evaluation_options`, without what was not given.

    Example:
        >>> options = {"label": "mark", "split": "test"}
        >>> pop_reading(options), options
        ({'label': 'mark'}, {'split': 'test'})
    """
    return {name: options.pop(name) for name in READING if name in options}
