"""Mistakes in a YAML file or on the command line, each in a sentence with the name that was probably meant."""

from __future__ import annotations

import importlib
import inspect
import re
from argparse import ArgumentError
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import jsonargparse

import lightning_distilbert
from lightning_distilbert._compat import FLAVOUR, LightningDataModule
from lightning_distilbert.errors import DistillationError, nearest
from lightning_distilbert.module import DistillationModule
from lightning_distilbert.objectives import PRESETS, Objective
from lightning_distilbert.schedules import Schedule
from lightning_distilbert.student import Student
from lightning_distilbert.tasks import Task
from lightning_distilbert.teacher import Teacher

PLACEHOLDER = "name-your-"
KEY = re.compile(r'Parser key "([\w.]+)"')
OPTION = re.compile(r"Problem with given class_path '([\w.]+)': Option '([\w.]+)' is not accepted")
CLASS = re.compile(r"module '[\w.]+' has no attribute '(\w+)'|Expected a dot import path string: (\S+)")
REQUIRED = re.compile(
    r"Problem with given class_path '([\w.]+)': the following arguments are required: ([\w, ]+?)(?= -|$)"
)
FLAG = re.compile(r"does not accept option '([\w.]+)'|unrecognized arguments: --([\w.]+)")
VALUE = re.compile(r"Given value type: <class '[\w.]+'> Given value: (.+?)(?= Given value type|$)")
BASES: dict[str, type] = {
    "model.task": Task,
    "model.teacher": Teacher,
    "model.student": Student,
    "model.objectives": Objective,
    "data": LightningDataModule,
}
FLAGS = ("config", "seed_everything", "trainer", "model", "data", "ckpt_path", "student_dir", "print_config")


def explain(message: str) -> str:
    """Shorten what jsonargparse says of a wrong class, argument, option or value; any other message stays as it is.

    Args:
        message: The message.

    Example:
        >>> explain("Subcommand 'fit' does not accept option 'model.techer'")
        "Subcommand 'fit' does not accept option 'model.techer'. Did you mean '--model.teacher'?"
    """
    message = " ".join(message.split())
    if found := OPTION.search(message):
        cls, option = _class(found[1]), found[2]
        names = [name for name in inspect.signature(cls).parameters if name not in ("args", "kwargs")]
        hint = nearest(option, names) or f" It has {', '.join(names)}."
        return f"{_key(message[: found.start()])}: {cls.__name__} has no argument {option!r}.{hint}"
    if found := CLASS.search(message):
        return _unknown_class(_key(message[: found.start()]), found[1] or found[2], "<class 'float'>" in message)
    if found := FLAG.search(message):
        return f"{message}.{_nearest_flag(found[1] or found[2])}"
    if found := REQUIRED.search(message):
        return f"{_key(message[: found.start()])}: {_class(found[1]).__name__} needs {found[2]}."
    kinds = re.findall(r"Expected a <class '([\w.]+)'>", message)
    value = VALUE.search(message)
    if value and kinds and "Union subtypes" in message and "Literal" not in message:
        wanted = " or ".join("null" if kind == "NoneType" else kind.rpartition(".")[2] for kind in kinds)
        return f"{_key(message)} was given {value[1]}: it has to be {wanted}."
    return message


def check_config(config: Any) -> None:
    """Refuse what a recipe leaves open, and classes written as text with a mistake in them.

    A wrong class in ``--model.objectives='[{class_path: ...}]'`` is no error to the parser, since a text is allowed
    there too: the name of a preset.

    Args:
        config: The parsed options of a command.

    Raises:
        DistillationError: If there is one.
    """
    missing = list(_placeholders(config.as_dict()))
    if missing:
        named = ", ".join(f"--{key} (now {value!r})" for key, value in missing)
        raise DistillationError(f"The recipe leaves open what only you can know. Give {named}.")
    kinds = {"objectives": Objective | Sequence[Objective], "student": Student, "teacher": Teacher}
    for name, kind in kinds.items():
        value = config.model.get(name)
        if isinstance(value, str) and value.lstrip().startswith(("[", "{")):
            parser = jsonargparse.ArgumentParser(exit_on_error=False)
            parser.add_argument(f"--model.{name}", type=kind)
            try:
                parser.parse_args([f"--model.{name}={value}"])
            except ArgumentError as error:
                raise DistillationError(explain(str(error))) from error


def _placeholders(value: Any, key: str = "") -> Iterable[tuple[str, str]]:
    if isinstance(value, Mapping):
        for name, item in value.items():
            yield from _placeholders(item, key if name == "init_args" else f"{key}.{name}".lstrip("."))
    elif isinstance(value, str) and value.startswith(PLACEHOLDER):
        yield key, value


def _key(message: str) -> str:
    return ".".join(KEY.findall(message)) or "The command line"


def _class(path: str) -> type:
    module, _, name = path.rpartition(".")
    found: type = getattr(importlib.import_module(module), name)
    return found


def _unknown_class(key: str, name: str, number: bool) -> str:
    if key == "model.objectives" and name in PRESETS:
        return f"{key}: {name!r} is a preset, which stands alone and in no list: --model.objectives {name}"
    known = _classes(key)
    what = "is neither a number nor a class" if number else "is no class"
    own = "" if number else f" One of your own takes its full path, such as my_module.{name}."
    return f"{key}: {name!r} {what}." + (nearest(name, known) or f" Known are {', '.join(known)}.{own}")


def _classes(key: str) -> list[str]:
    if key.startswith("trainer."):
        # "trainer.callbacks" and "trainer.logger" are in packages of these names
        package = importlib.import_module(f"{FLAVOUR}.{key.split('.')[1].removesuffix('s')}s")
        return list(package.__all__)
    base = BASES.get(key, Schedule)
    found = {name: getattr(lightning_distilbert, name) for name in lightning_distilbert.__all__}
    return [name for name, cls in found.items() if isinstance(cls, type) and issubclass(cls, base)]


def _nearest_flag(option: str) -> str:
    first, _, rest = option.partition(".")
    trainer = importlib.import_module(FLAVOUR).Trainer
    owner = {"model": DistillationModule, "trainer": trainer}.get(first)
    if not rest or owner is None:
        return nearest(f"--{option}", [f"--{name}" for name in FLAGS])
    names = inspect.signature(owner).parameters
    return nearest(f"--{option}", [f"--{first}.{name}" for name in names])
