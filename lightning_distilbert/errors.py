"""Errors that name what was wrong, the value seen, and what to do."""

from __future__ import annotations

import difflib
import importlib
from collections.abc import Collection, Iterable
from types import ModuleType


class DistillationError(ValueError):
    """A setting, a file or a batch with which distillation cannot go right.

    It is a `ValueError` and not Lightning's ``MisconfigurationException``, of which each Lightning package has its own.
    """


class MissingExtraError(ImportError):
    """An optional package is missing; the message names the extra that brings it."""


def require(module: str, extra: str) -> ModuleType:
    """Import an optional module, or say which extra brings it.

    Args:
        module: The module's import name, such as ``"pyarrow.parquet"``.
        extra: The extra of this package that installs it, such as ``"data"``.

    Returns:
        The imported module.

    Raises:
        MissingExtraError: If the module cannot be imported.

    Example:
        >>> require("json", extra="data").dumps([1])
        '[1]'
    """
    try:
        return importlib.import_module(module)
    except ImportError as error:
        package = module.split(".")[0]
        raise MissingExtraError(
            f"The package {package!r} is needed here and cannot be imported ({error}). "
            f"Install it with: pip install 'lightning-distilbert[{extra}]'"
        ) from error


def nearest(value: object, choices: Iterable[str]) -> str:
    """Return a sentence that names the choice which was probably meant, with a space before it, or nothing.

    Args:
        value: What was given.
        choices: What may be given.

    Example:
        >>> nearest("temprature", ["weight", "temperature"])
        " Did you mean 'temperature'?"
        >>> nearest("x", ["weight", "temperature"])
        ''
    """
    by_lower = {choice.lower(): choice for choice in choices}
    found = difflib.get_close_matches(str(value).lower(), by_lower, n=1)
    return f" Did you mean {by_lower[found[0]]!r}?" if found else ""


def check_choice(where: str, value: object, choices: Collection[str]) -> None:
    """Refuse a value that is not among the choices of an option.

    Args:
        where: The option as the user writes it, such as ``"HiddenStates(metric=...)"``.
        value: What was given.
        choices: What may be given.

    Raises:
        DistillationError: If the value is none of the choices.

    Example:
        >>> check_choice("pool(mode=...)", "mean", ("mean", "cls"))
    """
    if not isinstance(value, str) or value not in choices:
        raise DistillationError(f"{where} was given {value!r}: choose one of {', '.join(map(repr, choices))}.")
