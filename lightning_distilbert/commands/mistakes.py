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
OPTION = re.compile(
    r"Problem with given class_path '([\w.]+)': (?:Option '|unrecognized arguments: --)([\w.]+)(?:' is not accepted)?"
)
CLASS = re.compile(r"module '[\w.]+' has no attribute '(\w+)'|Expected a dot import path string: (\S+)")
REQUIRED = re.compile(
    r"Problem with given class_path '([\w.]+)': the following arguments are required: ([\w, ]+?)(?= -|$)"
)
FLAG = re.compile(r"does not accept option '([\w.]+)'|unrecognized arguments: --([\w.]+)")
KIND = r"(<class '[\w.]+'>|typing\.Literal\[.+?\](?=\. Got| - | Given))"
VALUE = re.compile(r"Given value type: <class '[\w.]+'> Given value: (.+?)(?= - | Given value type|$)")
GOT = re.compile(rf"Expected a {KIND}\. Got value: (.+?)(?= - | Given value type|$)")
NESTED = re.compile(r"(--model\.\w+\.\w+)\.(?:init_args\.)?(\w+)")
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
    if found := GOT.search(message):
        return _wrong_value(_key(message[: found.start()]), found[2], [found[1]])
    if (found := VALUE.search(message)) and "Union subtypes" in message:  # the first is the innermost
        before = message[: found.start()]
        kinds = re.findall(f"Expected a {KIND}", f"{before.rpartition('Errors:')[2]}Given")
        return _wrong_value(_key(before), found[1], kinds) if kinds else message
    return message


def nulls(arguments: Sequence[str]) -> list[str]:
    """Write ``null`` for a part of a part so that jsonargparse takes it for null: it makes the text ``None`` of it.

    Args:
        arguments: The command line.

    Example:
        >>> nulls(["--model.student.encoder.layers", "null", "--model.student.layers", "null"])
        ['--model.student.encoder={"init_args": {"layers": null}}', '--model.student.layers', 'null']
    """
    joined: list[str] = []
    waiting = False
    for argument in arguments:
        if waiting and argument == "null":
            argument = f"{joined.pop()}=null"
        waiting = NESTED.fullmatch(argument) is not None
        found = NESTED.fullmatch(argument.removesuffix("=null")) if argument.endswith("=null") else None
        if found:
            argument = f'{found[1]}={{"init_args": {{"{found[2]}": null}}}}'
        joined.append(argument)
    return joined


def _wrong_value(key: str, value: str, kinds: Sequence[str]) -> str:
    choices: list[str] = []
    for kind in kinds:
        name = kind.removeprefix("<class '").removesuffix("'>").rpartition(".")[2]
        listed = kind.removeprefix("typing.Literal[").removesuffix("]").split(", ")
        choices += listed if kind.startswith("typing") else ["null" if name == "NoneType" else name]
    texts = [choice.strip("'") for choice in choices if choice.startswith("'")]
    return f"{key} was given {value}: it has to be {' or '.join(dict.fromkeys(choices))}.{nearest(value, texts)}"


def check_config(config: Any) -> None:
    """Refuse what a recipe leaves open, ``None`` for null, and classes written as text with a mistake in them.

    A wrong class in ``--model.objectives='[{class_path: ...}]'`` is no error to the parser, since a text is allowed
    there too: the name of a preset.

    Args:
        config: The parsed options of a command.

    Raises:
        DistillationError: If there is one.
    """
    missing = [(key, value) for key, value in _texts(config.as_dict()) if value.startswith(PLACEHOLDER)]
    if missing:
        named = ", ".join(f"--{key} (now {value!r})" for key, value in missing)
        raise DistillationError(f"The recipe leaves open what only you can know. Give {named}.")
    for key, value in _texts(config.model.as_dict(), "model"):
        if value == "None":
            raise DistillationError(f"--{key} was given the text 'None'. Nothing at all is written null.")
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


def _texts(value: Any, key: str = "") -> Iterable[tuple[str, str]]:
    """Yield each value that is text, with its key as it is written on the command line."""
    if isinstance(value, Mapping):
        for name, item in value.items():
            yield from _texts(item, key if name == "init_args" else f"{key}.{name}".lstrip("."))
    elif isinstance(value, str):
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
