"""What all commands with options of their own share."""

from __future__ import annotations

from argparse import ArgumentParser, BooleanOptionalAction
from typing import NoReturn

from lightning_distilbert.errors import DistillationError


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
