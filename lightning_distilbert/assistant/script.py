"""What an assistant says, and what it has to know before it says it: a small YAML or JSON file."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from lightning_distilbert.errors import DistillationError, nearest

PLACE = re.compile(r"\{([^{}]*)\}")
TEXTS = {
    "unknown": "I don't know.",
    "unclear": "I did not understand that. Please say it in words.",
    "too_long": "That is too long for me. Please say it in {most} characters or fewer.",
    "cancelled": "All right, I leave that.",
    "given_up": "I still do not have what I need, so I leave that.",
}
CANCEL = ("cancel", "stop", "never mind", "nevermind", "forget it", "leave it")
FOLLOW_UP = ("and", "what about", "how about", "or", "instead", "then", "also", "but")
POINTING = ("it", "its", "that", "this", "they", "them", "their", "those", "these", "there", "he", "him", "she", "her")


@dataclass(frozen=True)
class Slot:
    """A thing that a request needs.

    Attributes:
        ask: The question that asks for it.
        also: Types of entities that answer that question too: the city in "from boston" is one of departure, the one in
            "boston" alone may only be a city.
    """

    ask: str
    also: tuple[str, ...] = ()


@dataclass(frozen=True)
class Intent:
    """What an assistant does about an intent.

    Attributes:
        reply: What it says, with the text of a slot in the place of ``{its name}``; None names intent and slots.
        slots: The slots that it needs first, by their names, which are types of the tagger's entities.
    """

    reply: str | None = None
    slots: Mapping[str, Slot] = field(default_factory=dict)


@dataclass(frozen=True)
class Script:
    """How an assistant behaves.

    Attributes:
        intents: What it does about each intent; None takes all that the model knows, and names them. An intent that is
            not among them is looked up in the knowledge, like a question out of scope.
        texts: What it says otherwise: ``unknown``, ``unclear``, ``too_long``, ``cancelled`` and ``given_up``.
        max_characters: Longer messages are not read.
        cancel: What ends a request whose slots are being asked for.
        follow_up: How a message begins that goes on with the one before.
        pointing: Words that point to what was said before.
    """

    intents: Mapping[str, Intent] | None = None
    texts: Mapping[str, str] = field(default_factory=lambda: dict(TEXTS))
    max_characters: int = 2000
    cancel: tuple[str, ...] = CANCEL
    follow_up: tuple[str, ...] = FOLLOW_UP
    pointing: tuple[str, ...] = POINTING

    @classmethod
    def from_dict(cls, content: Any, where: str = "The script") -> Script:
        """Read a script from plain values.

        Args:
            content: As the file has it.
            where: What to call it in an error.

        Raises:
            DistillationError: If a key is unknown, or a value of another kind.

        Example:
            >>> script = Script.from_dict({"intents": {"fly": {"slots": {"city": "Where to?"}, "reply": "To {city}."}}})
            >>> script.intents["fly"].slots["city"].ask
            'Where to?'
        """
        content = _mapping(content, where, [item.name for item in fields(cls)])
        options: dict[str, Any] = {}
        if content.get("intents") is not None:
            intents = _mapping(content["intents"], f"{where}, intents")
            options["intents"] = {name: _intent(value, f"{where}, intent {name!r}") for name, value in intents.items()}
        texts = _mapping(content.get("texts") or {}, f"{where}, texts", list(TEXTS))
        options["texts"] = TEXTS | {name: _text(value, f"{where}, texts, {name}") for name, value in texts.items()}
        if "max_characters" in content:
            most = content["max_characters"]
            if isinstance(most, bool) or not isinstance(most, int) or most < 1:
                raise DistillationError(f"{where}: max_characters={most!r}: it has to be a whole number above 0.")
            options["max_characters"] = most
        for name in ("cancel", "follow_up", "pointing"):
            if name in content:
                options[name] = _list(content[name], f"{where}, {name}")
        return cls(**options)

    def check(self, labels: Sequence[str] | None, types: Iterable[str] | None, has_slots: bool) -> None:
        """Refuse a script that does not go with the models.

        Args:
            labels: The intents that the model knows, or None where it does not say.
            types: The types of entities that the tagger knows, likewise.
            has_slots: Whether there is a tagger.

        Raises:
            DistillationError: If it names an intent or a slot that they do not know.
        """
        known = None if types is None else list(types)
        for name, intent in (self.intents or {}).items():
            if labels is not None and name not in labels:
                raise DistillationError(
                    f"The script has the intent {name!r}, which the model does not know.{nearest(name, labels)} It "
                    f"knows {_shown(labels)}."
                )
            if intent.slots and not has_slots:
                raise DistillationError(
                    f"The intent {name!r} needs the slots {list(intent.slots)}, and there is no model that finds them. "
                    "Give one: slots=..."
                )
            wanted = [*intent.slots, *(other for slot in intent.slots.values() for other in slot.also)]
            for slot in wanted:
                if known is not None and slot not in known:
                    raise DistillationError(
                        f"The intent {name!r} has the slot {slot!r}, which the model of slots does not know."
                        f"{nearest(slot, known)} It knows {_shown(known)}."
                    )


def read_script(path: str | Path) -> Script:
    """Read a script.

    Args:
        path: A ``.yaml``, ``.yml`` or ``.json`` file.

    Raises:
        DistillationError: If there is no such file, or something in it is wrong.

    Example:
        >>> import tempfile
        >>> path = Path(tempfile.mkdtemp()) / "script.yaml"
        >>> _ = path.write_text("intents: {balance: {reply: It is in the app.}}")
        >>> read_script(path).intents["balance"].reply
        'It is in the app.'
    """
    path = Path(path).expanduser()
    if not path.is_file():
        raise DistillationError(f"There is no script {str(path)!r} (working folder: {Path.cwd()}).")
    text = path.read_text(encoding="utf-8-sig")
    try:
        if path.suffix.lower() == ".json":
            content = json.loads(text)
        else:
            import yaml

            try:
                content = yaml.safe_load(text)
            except yaml.YAMLError as error:
                raise ValueError(error) from error
    except ValueError as error:
        raise DistillationError(f"{path} cannot be read: {' '.join(str(error).split())}.") from error
    return Script.from_dict(content, str(path))


def fill(reply: str, slots: Mapping[str, str]) -> str:
    """Put the texts of slots into a reply.

    Example:
        >>> fill("From {from.city} on.", {"from.city": "boston"})
        'From boston on.'
    """
    return PLACE.sub(lambda found: slots.get(found[1], found[0]), reply)


def _intent(value: Any, where: str) -> Intent:
    content = _mapping(value or {}, where, ["reply", "slots"])
    slots = {}
    for name, slot in _mapping(content.get("slots") or {}, f"{where}, slots").items():
        here = f"{where}, slot {name!r}"
        if isinstance(slot, str):
            slots[name] = Slot(_text(slot, here))
            continue
        told = _mapping(slot, here, ["ask", "also"])
        slots[name] = Slot(_text(told.get("ask"), f"{here}, ask"), _list(told.get("also") or [], f"{here}, also"))
    reply = None if content.get("reply") is None else _text(content["reply"], f"{where}, reply")
    if unknown := [name for name in PLACE.findall(reply or "") if name not in slots]:
        raise DistillationError(
            f"{where}: the reply names {{{unknown[0]}}}, which is none of its slots, {list(slots)}: it would have no "
            "text."
        )
    return Intent(reply, slots)


def _mapping(value: Any, where: str, known: Sequence[str] | None = None) -> Mapping[str, Any]:
    if not isinstance(value, Mapping) or not all(isinstance(key, str) for key in value):
        raise DistillationError(f"{where} is {str(value)[:60]!r}: it has to be a mapping from names.")
    for key in value:
        if known is not None and key not in known:
            raise DistillationError(f"{where} has the key {key!r}.{nearest(key, known)} It may have {_shown(known)}.")
    return value


def _text(value: Any, where: str) -> str:
    if not isinstance(value, str) or not value.strip():
        raise DistillationError(f"{where} is {value!r}: it has to be a text.")
    return value


def _list(value: Any, where: str) -> tuple[str, ...]:
    if isinstance(value, str) or not isinstance(value, (list, tuple)):
        raise DistillationError(f"{where} is {value!r}: it has to be a list of texts.")
    return tuple(_text(item, where) for item in value)


def _shown(names: Iterable[str]) -> str:
    listed = list(names)
    shown = ", ".join(map(repr, listed[:20]))
    return shown if len(listed) <= 20 else f"{shown}, ... ({len(listed)} in all)"
