"""The assistant: from a message to an answer with its source, a question for what is missing, or "I don't know"."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from lightning_distilbert.assistant.knowledge import Found, Knowledge
from lightning_distilbert.assistant.script import Intent, Script, fill, read_script
from lightning_distilbert.data.intents import OUT_OF_SCOPE
from lightning_distilbert.data.labels import SINGLE
from lightning_distilbert.data.split_words import split_words
from lightning_distilbert.data.tags import OUTSIDE, split_tag
from lightning_distilbert.errors import DistillationError

# what each part has to be able to do, and the task that a module has then
PARTS = {
    "intents": ("predict", ("IntentClassification", "TextClassification")),
    "slots": ("predict", ("TokenClassification",)),
    "reader": ("answer", ("QuestionAnswering",)),
}
ASKED = 2  # times that a missing slot is asked for
READ = 3  # passages that a reader reads


@dataclass
class Context:
    """What was said before in one dialogue; plain values, so that it can be stored.

    Attributes:
        intent: The intent that was last acted on.
        slots: What is known for it.
        missing: The slots that it still needs; the first of them has been asked for.
        asked: How often.
        question: The last question that the knowledge answered.
    """

    intent: str | None = None
    slots: dict[str, str] = field(default_factory=dict)
    missing: list[str] = field(default_factory=list)
    asked: int = 0
    question: str | None = None


@dataclass
class Reply:
    """What the assistant says to one message.

    Attributes:
        text: What it says.
        part: What that comes from: ``"intent"``; ``"slot"``, which asks for one; ``"knowledge"``; ``"unknown"``, which
            is "I don't know"; or ``"unclear"``, for a message that cannot be read.
        intent: The intent, out of scope among them; None where none was looked for.
        slots: What is known of the request.
        source: What the answer was taken from: ``source``, ``title``, ``text`` of the passage, and for an answer that
            was read there ``start`` and ``end`` in that text; else None.
        score: The probability of the intent, or the cosine of the passage.
        milliseconds: How long each part took, and all together, under ``"total"``.
    """

    text: str
    part: str
    intent: str | None = None
    slots: dict[str, str] = field(default_factory=dict)
    source: dict[str, Any] | None = None
    score: float | None = None
    milliseconds: dict[str, float] = field(default_factory=dict)

    def as_dict(self) -> dict[str, Any]:
        """Return plain values."""
        return asdict(self)


class Clock:
    """Milliseconds by part; a part that runs twice in a turn has its sum."""

    def __init__(self) -> None:
        self.parts: dict[str, float] = {}

    @contextmanager
    def part(self, name: str) -> Iterator[None]:
        """Count the time within to a part."""
        start = time.perf_counter()
        yield
        self.parts[name] = self.parts.get(name, 0.0) + 1000 * (time.perf_counter() - start)


class Assistant:
    """Answers messages with small models.

    A message has an intent. One that the script names is acted on, once the slots that it needs are known. Any other,
    and one out of scope, is looked up in the knowledge; what is found there is answered as it is written, or read by
    the reader. What lies below a threshold is not answered.

    Args:
        intents: The model of intents: a module that `lightning_distilbert.load` gives, or any object whose ``predict``
            takes texts and gives dicts of ``label`` and ``score``. None looks up every message.
        slots: That of slots, whose ``predict`` gives entities.
        knowledge: What is looked up; None knows nothing.
        reader: That of answers, with ``answer(question, context)``. None answers with the whole passage.
        script: What is said; a `Script`, its plain values or its file.
        out_of_scope: The label for out of scope, where the model of intents does not say.

    Raises:
        DistillationError: If a part is of another kind, there is neither intents nor knowledge, or the script names
            what the models do not know, or the label for out of scope.

    Example:
        >>> class Intents:
        ...     labels = ("balance", "oos")
        ...     def predict(self, texts):
        ...         return [{"label": "balance" if "balance" in text else "oos", "score": 0.9} for text in texts]
        >>> assistant = Assistant(Intents(), script={"intents": {"balance": {"reply": "It is in the app."}}})
        >>> context = Context()
        >>> [assistant.reply(text, context).text for text in ("my balance please", "who won the cup")]
        ['It is in the app.', "I don't know."]
    """

    def __init__(
        self,
        intents: Any = None,
        slots: Any = None,
        knowledge: Knowledge | None = None,
        reader: Any = None,
        script: Script | Mapping[str, Any] | str | Path | None = None,
        out_of_scope: str | None = None,
    ) -> None:
        if intents is None and knowledge is None:
            raise DistillationError("An assistant needs a model of intents, or knowledge, or both.")
        for name, part in (("intents", intents), ("slots", slots), ("reader", reader)):
            _check_part(name, part)
        if knowledge is not None and not hasattr(knowledge, "search"):
            raise DistillationError(
                f"knowledge is a {type(knowledge).__name__} without search(): give a Knowledge, or the like."
            )
        if reader is not None and knowledge is None:
            raise DistillationError("A reader reads the passages of the knowledge, and there is none.")
        self.intents, self.slots, self.knowledge, self.reader = intents, slots, knowledge, reader
        if script is None or isinstance(script, Script):
            self.script = script or Script()
        else:
            self.script = Script.from_dict(script) if isinstance(script, Mapping) else read_script(script)
        labels = getattr(intents, "labels", None)
        self.script.check(labels, _types(getattr(slots, "labels", None)), slots is not None)
        if self.script.intents and intents is None:
            raise DistillationError(
                "The script has intents, and there is no model that finds them. Give one: intents=..."
            )
        task, options = getattr(intents, "task", None), getattr(intents, "options", None)
        # an exported student has the name of its task, and its options
        told = options.get("out_of_scope") if isinstance(options, Mapping) else None
        self.out_of_scope = out_of_scope or getattr(task, "out_of_scope", told) or OUT_OF_SCOPE
        if self.out_of_scope in (self.script.intents or {}):
            raise DistillationError(
                f"The script has the intent {self.out_of_scope!r}, which is the label for out of scope: such a message "
                "is looked up, and never acted on. Take it out; what is said where nothing is found is texts: "
                "{unknown: ...}."
            )

    @classmethod
    def load(
        cls,
        intents: str | Path | None = None,
        slots: str | Path | None = None,
        knowledge: str | Path | None = None,
        reader: str | Path | None = None,
        script: Script | Mapping[str, Any] | str | Path | None = None,
        passages: str | Path | None = None,
        device: str = "cpu",
    ) -> Assistant:
        """Load the parts from the folders of saved students.

        Args:
            intents: One of `IntentClassification` or `TextClassification`.
            slots: One of `TokenClassification`.
            knowledge: One of `Retrieval`, with ``passages.jsonl``; see `Knowledge.open`.
            reader: One of `QuestionAnswering`.
            script: What is said, or its file.
            passages: The file of passages, if it is another.
            device: Where to put the students.

        Raises:
            DistillationError: If a folder is missing or of another task, or the script does not go with them.
        """
        from lightning_distilbert.saved import load

        if passages is not None and knowledge is None:
            raise DistillationError("Passages are found by an encoder: name the folder of one, knowledge=...")
        parts = [None if folder is None else load(folder, device) for folder in (intents, slots, reader)]
        opened = None if knowledge is None else Knowledge.open(knowledge, passages, device)
        return cls(parts[0], parts[1], opened, parts[2], script)

    def reply(self, message: str, context: Context | None = None) -> Reply:
        """Answer a message.

        Args:
            message: The message.
            context: What was said before in this dialogue, which is brought up to date; None is a new one.

        Returns:
            The reply. A message that is empty, has neither letters nor digits, or is too long is answered so.

        Raises:
            DistillationError: If the message is no text.
        """
        if not isinstance(message, str):
            raise DistillationError(f"A message is a text, and {str(message)[:60]!r} is a {type(message).__name__}.")
        clock, start = Clock(), time.perf_counter()
        found = self._reply(
            message.encode("utf-8", "replace").decode(), Context() if context is None else context, clock
        )
        clock.parts["total"] = 1000 * (time.perf_counter() - start)
        found.milliseconds = {name: round(value, 2) for name, value in clock.parts.items()}
        return found

    def _reply(self, message: str, context: Context, clock: Clock) -> Reply:
        script = self.script
        if len(message) > script.max_characters:
            return Reply(fill(script.texts["too_long"], {"most": str(script.max_characters)}), "unclear")
        if not any(character.isalnum() for character in message):
            return Reply(script.texts["unclear"], "unclear")
        words = _words(message)
        if context.missing and (found := self._slot(message, words, context, clock)) is not None:
            return found
        label, score = self._intent(message, clock)
        intent = None if label is None else self._act(label)
        goes_on = any(words[: len(phrase)] == phrase for phrase in map(_words, script.follow_up))
        before = self._act(context.intent) if context.intent is not None else None
        if goes_on and before is not None and before.slots and (intent is None or label == context.intent):
            # "what about from denver": the request before, with another slot
            found_slots = self._slots(message, clock)
            if any(name in before.slots for name in found_slots):
                assert context.intent is not None
                return self._request(context.intent, before, context.slots | found_slots, score, context)
        if intent is not None and label is not None:
            slots = (
                self._slots(message, clock) if self.slots is not None and (intent.slots or not script.intents) else {}
            )
            return self._request(label, intent, slots, score, context)
        return self._look_up(message, words, goes_on, label, context, clock)

    def _intent(self, message: str, clock: Clock) -> tuple[str | None, float | None]:
        if self.intents is None:
            return None, None
        with clock.part("intents"):
            (found,) = self.intents.predict([message])
        return found["label"], found["score"]

    def _act(self, label: str) -> Intent | None:
        """Return what the script does about an intent; None if that is not its business."""
        if label == self.out_of_scope:
            return None
        return Intent() if self.script.intents is None else self.script.intents.get(label)

    def _slots(self, message: str, clock: Clock) -> dict[str, str]:
        """Find the slots in a message; of several of one type, the first."""
        if self.slots is None:
            return {}
        with clock.part("slots"):
            (entities,) = self.slots.predict([message])
        slots: dict[str, str] = {}
        for entity in entities:
            slots.setdefault(entity["label"], entity["text"])
        return slots

    def _slot(self, message: str, words: Sequence[str], context: Context, clock: Clock) -> Reply | None:
        """Take a message for the answer to the question for a slot; None if it is a request of its own."""
        wanted = context.missing[0]
        intent = None if context.intent is None else self._act(context.intent)
        if context.intent is None or intent is None or wanted not in intent.slots:  # a context of another script
            context.missing = []
            return None
        if _said(words) in map(_said, map(_words, self.script.cancel)):
            return self._leave("cancelled", context)
        found = self._slots(message, clock)
        if wanted not in found:
            other = next((name for name in intent.slots[wanted].also if name in found), None)
            if other is not None:
                found = {name: text for name, text in found.items() if name != other} | {wanted: found[other]}
        if any(name in found for name in context.missing):
            return self._request(context.intent, intent, context.slots | found, None, context)
        label, _ = self._intent(message, clock)
        if label is not None and label != context.intent and self._act(label) is not None:
            context.missing = []
            return None
        if context.asked >= ASKED:
            return self._leave("given_up", context)
        context.asked += 1
        return Reply(intent.slots[wanted].ask, "slot", context.intent, dict(context.slots))

    def _leave(self, text: str, context: Context) -> Reply:
        """Forget a request."""
        label, context.intent, context.slots, context.missing = context.intent, None, {}, []
        return Reply(self.script.texts[text], "intent", label)

    def _request(
        self, label: str, intent: Intent, slots: dict[str, str], score: float | None, context: Context
    ) -> Reply:
        """Act on an intent, or ask for what it still needs."""
        missing = [name for name in intent.slots if name not in slots]
        again = missing[:1] == context.missing[:1] and label == context.intent
        context.intent, context.slots, context.missing = label, dict(slots), missing
        context.asked = context.asked + 1 if again else 1
        context.question = None  # what "it" is from here on is no longer what was asked before
        if missing:
            return Reply(intent.slots[missing[0]].ask, "slot", label, dict(slots), score=score)
        told = ", ".join(f"{name} = {text}" for name, text in slots.items())
        text = fill(intent.reply, slots) if intent.reply is not None else f"{label} ({told})" if told else label
        return Reply(text, "intent", label, dict(slots), score=score)

    def _look_up(
        self, message: str, words: Sequence[str], goes_on: bool, label: str | None, context: Context, clock: Clock
    ) -> Reply:
        """Answer from the knowledge, or say that nothing is known."""
        nothing = Reply(self.script.texts["unknown"], "unknown", label)
        if self.knowledge is None:
            return nothing
        question, found = message, self._search(message, clock)
        points = any(f" {_said(_words(item))} " in f" {' '.join(words)} " for item in self.script.pointing)
        if not found and context.question and (goes_on or points):
            question = context.question
            found = self._search(f"{question} {message}", clock)
        for item in found:
            reply = self._answer(message, item, label, clock)
            if reply is not None:
                context.question, context.intent, context.slots = question, None, {}
                return reply
        return nothing

    def _search(self, question: str, clock: Clock) -> list[Found]:
        assert self.knowledge is not None
        with clock.part("search"):
            found = self.knowledge.search(question, READ)
            return [item for item in found if item.score >= self.knowledge.threshold]

    def _answer(self, question: str, found: Found, label: str | None, clock: Clock) -> Reply | None:
        """Answer from one passage; None if the reader finds nothing in it."""
        passage = found.passage
        source = {"source": passage.source, "title": passage.title, "text": passage.text}
        text = passage.answer or passage.text
        if passage.answer is None and self.reader is not None:
            with clock.part("read"):
                read = self.reader.answer(question, passage.text)
            if not read["answer"]:
                return None
            text = read["answer"]
            source |= {"start": read["start"], "end": read["end"]}
        return Reply(text, "knowledge", label, source=source, score=found.score)


def _words(text: str) -> list[str]:
    """Split a message, or a phrase of the script that one is compared with."""
    return [text[start:end].casefold() for start, end in split_words(text)]


def _said(words: Sequence[str]) -> str:
    return " ".join(words).strip(" .!")


def _check_part(name: str, part: Any) -> None:
    if part is None:
        return
    method, tasks = PARTS[name]
    task = getattr(part, "task", None)
    # an exported student has the name of its task; a task of the user's own may be made of the right one
    kinds = [task] if isinstance(task, str) else [cls.__name__ for cls in type(task).__mro__]
    if task is not None and not set(kinds) & set(tasks):
        raise DistillationError(f"{name} is a student of {kinds[0]}: give one of {' or '.join(tasks)}.")
    options = getattr(part, "options", None)
    told = options.get("problem_type") if isinstance(options, Mapping) else None
    problem = getattr(task, "problem_type", told)
    if name == "intents" and problem not in (None, SINGLE):
        raise DistillationError(f"intents has problem_type={problem!r}: a message has one intent, so give {SINGLE!r}.")
    if not callable(getattr(part, method, None)):
        raise DistillationError(
            f"{name} is a {type(part).__name__} without {method}(): give what load(folder) returns, or the like."
        )


def _types(labels: Sequence[str] | None) -> list[str] | None:
    """Return the types of entities that tags name."""
    return None if not labels else sorted({split_tag(label)[1] for label in labels if label != OUTSIDE})
