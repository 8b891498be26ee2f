"""Objects that remember how they were built, so that a checkpoint can hold them as plain values."""

from __future__ import annotations

import contextlib
import functools
import importlib
import inspect
import sys
from collections.abc import Mapping
from typing import Any

from lightning_distilbert.errors import DistillationError

PLAIN = (str, int, float, bool, type(None))


class Spec:
    """Base of tasks, students, objectives and schedules: a class path and init arguments describe it.

    Lightning loads checkpoints with ``weights_only=True``, so hyper-parameters must be plain values and never objects.
    `to_config` gives such values and `from_config` builds the object again. They are the values that a YAML recipe
    holds.

    Example:
        >>> class Point(Spec):
        ...     def __init__(self, x: int, y: int = 2) -> None:
        ...         self.x, self.y = x, y
        >>> Point(1).to_config()["init_args"]
        {'x': 1}
    """

    _init_args: dict[str, Any]

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        if "__init__" not in vars(cls):
            return
        init = cls.__init__
        signature = inspect.signature(init)

        @functools.wraps(init)
        def recording_init(self: Any, *args: Any, **kwargs: Any) -> None:
            # the outermost class records first; its parents' calls of super().__init__ must not overwrite that
            if "_init_args" not in self.__dict__:
                object.__setattr__(self, "_init_args", _by_name(type(self), signature, self, *args, **kwargs))
            init(self, *args, **kwargs)

        cls.__init__ = recording_init  # type: ignore[method-assign]

    def to_config(self) -> dict[str, Any]:
        """Describe this object by its class path and the arguments it was built with.

        Returns:
            ``{"class_path": ..., "init_args": {...}}`` with plain values only.

        Raises:
            DistillationError: If an argument is neither plain nor a `Spec`.
        """
        cls = type(self)
        init_args = {
            name: to_plain(value, f"{cls.__name__}({name}=...)")
            for name, value in vars(self).get("_init_args", {}).items()
        }
        return {"class_path": f"{cls.__module__}.{cls.__name__}", "init_args": init_args}


def _by_name(cls: type, signature: inspect.Signature, *args: Any, **kwargs: Any) -> dict[str, Any]:
    """Return the arguments of a call by name, those that the class hands on to its parent too."""
    bound = dict(signature.bind(*args, **kwargs).arguments)
    bound.pop(next(iter(signature.parameters)))
    for parameter in signature.parameters.values():
        if parameter.kind is parameter.VAR_POSITIONAL and (unnamed := bound.pop(parameter.name, ())):
            raise DistillationError(
                f"{cls.__name__}(...) was given {unnamed} for *{parameter.name}, without names. A checkpoint holds "
                "arguments by name: pass these by theirs."
            )
        if parameter.kind is parameter.VAR_KEYWORD:
            bound |= bound.pop(parameter.name, {})
    return bound


def to_plain(value: Any, where: str) -> Any:
    """Turn a value into strings, numbers, lists and dicts, with each `Spec` as its class path and arguments.

    Args:
        value: The value.
        where: What to call it in an error.

    Returns:
        The plain value.

    Raises:
        DistillationError: If the value cannot be written plainly.

    Example:
        >>> to_plain((1, {"a": None}), "x")
        [1, {'a': None}]
    """
    if isinstance(value, Spec):
        return value.to_config()
    if type(value) in PLAIN:
        return value
    # numpy.float64 is a float, and an enumeration may be a str, but a weights-only load refuses both
    if isinstance(value, str):
        return str.__str__(value)
    if isinstance(value, int):
        return int(value)
    if isinstance(value, float):
        return float(value)
    if isinstance(value, Mapping):
        return {key: to_plain(item, where) for key, item in value.items()}
    if isinstance(value, (list, tuple, set, frozenset)):
        return [to_plain(item, where) for item in value]
    if hasattr(value, "__fspath__"):
        return str(value)
    raise DistillationError(
        f"{where} is a {type(value).__name__}, which a checkpoint cannot hold as a plain value. "
        "Pass plain values (or a path, or a name) and build the object inside the class."
    )


def from_config(value: Any, own_only: bool = False) -> Any:
    """Build what `to_config` described; any other value is returned as it is.

    A checkpoint may come from anyone, so that a class path is only followed to a `Spec`: of this package, or of a
    module that the program itself has imported already.

    Args:
        value: A config, or a list or dict of them, or a finished object.
        own_only: Whether only classes of this package are built.

    Returns:
        The object.

    Raises:
        DistillationError: If the class path does not lead to such a class, or the class refuses the arguments.

    Example:
        >>> config = {"class_path": "lightning_distilbert.schedules.Linear", "init_args": {"start": 0, "end": 1}}
        >>> from_config(config).at(0.5)
        0.5
    """
    if isinstance(value, Mapping):
        if "class_path" not in value:
            return {key: from_config(item, own_only) for key, item in value.items()}
        cls = _find_class(str(value["class_path"]), own_only)
        init_args = {key: from_config(item, own_only) for key, item in (value.get("init_args") or {}).items()}
        if init_args.get("trust_remote_code"):
            raise DistillationError(
                f"A stored {cls.__name__} asks for trust_remote_code=True, which would run code that came with it. If "
                f"you trust it, pass the object yourself: {cls.__name__}(..., trust_remote_code=True)."
            )
        try:
            return cls(**init_args)
        except TypeError as error:  # a name that the class, or a parent that it hands arguments on to, does not know
            raise DistillationError(f"{value['class_path']} cannot be built from {init_args}: {error}.") from error
    if isinstance(value, (list, tuple)):
        return [from_config(item, own_only) for item in value]
    return value


def _find_class(class_path: str, own_only: bool) -> type[Spec]:
    module_name, _, class_name = class_path.rpartition(".")
    own = module_name == __package__ or module_name.startswith(f"{__package__}.")
    if own_only and not own:
        raise DistillationError(f"The class path {class_path!r} leads out of this package, and is not followed.")
    if own:
        with contextlib.suppress(ImportError):
            importlib.import_module(module_name)
    found = getattr(sys.modules.get(module_name), class_name, None)
    if not (isinstance(found, type) and issubclass(found, Spec)):
        raise DistillationError(
            f"The class path {class_path!r} leads to no task, student, objective or schedule. Write the full path, "
            "such as 'lightning_distilbert.tasks.TextClassification'; a class of your own must be imported before."
        )
    return found
