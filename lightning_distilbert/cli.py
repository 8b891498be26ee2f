"""The command line: ``lightning-distilbert fit --config recipes/....yaml`` and friends.

Nothing here imports torch, transformers or Lightning, which takes seconds: a command does when it is run.
"""

from __future__ import annotations

import importlib
import sys
from argparse import ArgumentError
from collections.abc import Callable, Sequence

from lightning_distilbert import __version__
from lightning_distilbert.commands.recipes import RECIPES, find_recipes
from lightning_distilbert.errors import DistillationError, MissingExtraError, nearest
from lightning_distilbert.placing import is_disk_error

__all__ = ["COMMANDS", "RECIPES", "find_recipes", "main"]

Command = Callable[[Sequence[str]], None]


def later(module: str, *first: str) -> Command:
    """Return a command whose module is imported when it is run.

    Args:
        module: A module of this package with a ``main(arguments)``.
        first: Arguments that come before those of the command line.

    Example:
        >>> later("commands.recipes", "--nonsense")([])
        Traceback (most recent call last):
        ...
        lightning_distilbert.errors.DistillationError: unrecognized arguments: --nonsense ...
    """

    def run(arguments: Sequence[str]) -> None:
        importlib.import_module(f"lightning_distilbert.{module}").main([*first, *arguments])

    return run


COMMANDS: dict[str, tuple[Command, str]] = {
    "fit": (later("commands.training", "fit"), "distil a teacher, or fine-tune without one, and save the student"),
    "validate": (later("commands.training", "validate"), "evaluate a checkpoint on the validation split"),
    "test": (later("commands.training", "test"), "evaluate a checkpoint on the test split"),
    "predict": (later("commands.predict"), "answer the rows of a file with a saved student"),
    "export": (later("commands.export"), "write a saved student as a verified model for devices: ONNX, OpenVINO, ..."),
    "compare": (later("commands.compare"), "measure models side by side: score, size, memory, speed; with a page"),
    "card": (later("commands.card"), "write the model card of a saved student: metadata, scores, how it was made"),
    "push": (later("commands.push"), "send a saved student or an artefact to the hub, with its card"),
    "augment": (later("commands.augment"), "vary the texts of a file, into unlabelled rows for a teacher"),
    "translate-corpus": (later("commands.translate_corpus"), "let a teacher translate texts for its student"),
    "mine": (later("commands.mine"), "find hard negatives for the queries of a training split"),
    "evaluate-retrieval": (later("commands.evaluate_retrieval"), "score a sentence encoder, or BM25, on a corpus"),
    "chat": (later("commands.chat"), "talk with an assistant of saved students: intents, slots, knowledge"),
    "serve": (later("commands.serve"), "answer requests over HTTP with a saved student or an artefact, by LitServe"),
    "recipes": (later("commands.recipes"), "list the recipes that can be given to fit --config"),
    "quickstart": (later("quickstart.run"), "distil a real sentence encoder on this machine's docstrings, in minutes"),
}
CONFIGURED = ("fit", "validate", "test")  # those that take --config


def overview() -> str:
    """Return what ``--help`` prints: the commands, each with a line."""
    width = max(map(len, COMMANDS))
    lines = [f"  {name:<{width}}  {description}" for name, (_, description) in COMMANDS.items()]
    first = "usage: lightning-distilbert COMMAND ... (lightning-distilbert COMMAND --help describes one)"
    return "\n".join([first, "", *lines])


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line; an error of the user's is one line and exit status 2.

    Args:
        arguments: The command line without the program's name; None takes ``sys.argv``.
    """
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    try:
        _run(arguments)
    except Exception as error:
        if not is_users(error):
            raise
        print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
        sys.exit(2)


def _run(arguments: list[str]) -> None:
    if not arguments:
        print(overview())
        raise DistillationError(f"Name a command: {', '.join(COMMANDS)}.")
    name = arguments[0]
    if name in ("-h", "--help"):
        print(overview())
        sys.exit(0)
    if name == "--version":
        print(f"lightning-distilbert {__version__}")
        return
    if name not in COMMANDS:
        known = ", ".join(COMMANDS)
        raise DistillationError(f"There is no command {name!r}.{nearest(name, COMMANDS)} The commands are {known}.")
    rest = arguments[1:]
    COMMANDS[name][0](find_recipes(rest) if name in CONFIGURED else rest)


def is_users(error: Exception) -> bool:
    """Tell whether an error says clearly by itself what the user has to mend, a full disk among the rest.

    Args:
        error: The error.

    Example:
        >>> is_users(FileNotFoundError("nowhere.tsv")), is_users(OSError(28, "No space left")), is_users(KeyError("x"))
        (True, True, False)
    """
    if isinstance(error, (DistillationError, MissingExtraError, ArgumentError)) or is_disk_error(error):
        return True
    # by name: there is one such class in each Lightning package, which may not even be imported
    return any(cls.__name__ == "MisconfigurationException" for cls in type(error).__mro__)


if __name__ == "__main__":
    main()
