"""``lightning-distilbert compare``: models of one task side by side, in score, size, memory and speed."""

from __future__ import annotations

import shlex
from argparse import SUPPRESS
from collections.abc import Sequence
from pathlib import Path

from lightning_distilbert.commands.parsing import PlainParser, add_evaluation_options, pop_reading
from lightning_distilbert.errors import DistillationError


def main(arguments: Sequence[str]) -> None:
    """Compare models, print tables, and write them with a page of pictures.

    Args:
        arguments: The options.
    """
    options = vars(_parser().parse_args(arguments))
    models, source = named_folders(options.pop("models")), options.pop("evaluate")
    output, overwrite = options.pop("output", None), options.pop("overwrite", False)
    reading = pop_reading(options)
    from lightning_distilbert.report.compared import check_folder
    from lightning_distilbert.report.comparison import compare

    if output is not None:
        check_folder(output, overwrite)
    command = shlex.join(["lightning-distilbert", "compare", *map(published, arguments)])
    found = compare(models, source, reading=reading, command=command, **options)
    print(found.to_text())
    if output is not None:
        print("\n" + "\n".join(str(path) for path in found.write(output, overwrite)))


def published(argument: str) -> str:
    """Return an argument as a comparison tells it: of an absolute path the last part, for the folders above travel not.

    Args:
        argument: An argument of the command line.

    Example:
        >>> published("--models=teacher=/home/jane/teacher"), published("/data/dev.tsv"), published("runs/student")
        ('--models=teacher=teacher', 'dev.tsv', 'runs/student')
    """
    parts = argument.split("=")
    for place in range(len(parts)):
        path = Path("=".join(parts[place:])).expanduser()
        if path.is_absolute():
            return "=".join([*parts[:place], path.name])
    return argument


def named_folders(given: Sequence[str]) -> dict[str, str]:
    """Read what ``--models`` was given.

    Args:
        given: ``NAME=FOLDER``, or a folder alone, which is called by its own name. What is a folder is taken for one.

    Returns:
        The folders by name.

    Raises:
        DistillationError: If a name comes twice, or one of both is missing.

    Example:
        >>> named_folders(["teacher=runs/teacher", "runs/student"])
        {'teacher': 'runs/teacher', 'student': 'runs/student'}
    """
    found: dict[str, str] = {}
    for item in given:
        name, equals, folder = item.partition("=")
        if not equals or Path(item).expanduser().is_dir():  # a folder may have the sign in its name
            name, folder = Path(item).expanduser().resolve().name, item
        if not name.strip() or not folder.strip():
            raise DistillationError(f"--models {item!r}: write NAME=FOLDER, such as teacher=runs/teacher.")
        if name in found:
            raise DistillationError(
                f"--models names {name!r} twice, {found[name]!r} and {folder!r}: write another name before the =."
            )
        found[name] = folder
    return found


def _parser() -> PlainParser:
    parser = PlainParser(
        prog="lightning-distilbert compare",
        description="Measure models of one task on the same rows and this machine, in one run: the score with its "
        "interval and a paired test against the reference, size, memory, cold start, latency and throughput.",
        argument_default=SUPPRESS,  # what is not given is left to the function's own default
        allow_abbrev=False,
    )
    add = parser.add_argument
    folders = "NAME=FOLDER of each model: saved students, teachers, and artefacts of any format"
    add("--models", nargs="+", action="extend", required=True, metavar="NAME=FOLDER", help=folders)
    add("--reference", metavar="NAME", help="the one to which others are compared (default: the first)")
    add("--output", help="folder for comparison.json, comparison.md and comparison.html (default: none is written)")
    add("--overwrite", action="store_true", help="replace a comparison that is there")
    add_evaluation_options(parser, required=True)
    add("--metric", help="the metric (default: the one that the task watches in training)")
    lengths = "tokens of the texts that are timed (default: 16 64 128 256, as far as a model reads them)"
    add("--lengths", nargs="+", type=int, metavar="TOKENS", help=lengths)
    add("--threads", type=int, help="threads of one call (default: as many as this process may use)")
    add("--repeats", type=int, help="how often each length is timed (default: 100)")
    add("--batch_size", type=int, help="texts in a batch, for the throughput (default: 32)")
    starts = "how often each model is started in a process of its own; 0 leaves cold start and memory out (default: 3)"
    add("--starts", type=int, help=starts)
    add("--confidence", type=float, help="share of the intervals (default: 0.95)")
    add("--resamples", type=int, help="how often the rows are drawn anew (default: 1000)")
    add("--seed", type=int, help="seed of the draws (default: 0)")
    return parser
