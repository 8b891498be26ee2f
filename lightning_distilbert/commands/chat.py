"""``lightning-distilbert chat``: talk with an assistant of saved students."""

from __future__ import annotations

import json
import sys
from argparse import SUPPRESS
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from lightning_distilbert.assistant.script import read_script
from lightning_distilbert.commands.parsing import PlainParser
from lightning_distilbert.errors import DistillationError

if TYPE_CHECKING:
    from lightning_distilbert.assistant import Reply

LEAVE = ("exit", "quit", "bye")


def main(arguments: Sequence[str]) -> None:
    """Answer the messages that are typed, or that come through a pipe, until they end.

    Args:
        arguments: The options.
    """
    options = vars(_parser().parse_args(arguments))
    as_json = options.pop("json", False)
    if "intents" not in options and "knowledge" not in options:
        raise DistillationError("Name a model of intents, or knowledge, or both: --intents DIR, --knowledge DIR.")
    if "script" in options:  # what is edited most is read before torch is imported
        options["script"] = read_script(options["script"])
    from lightning_distilbert.assistant import Assistant, Context  # with torch and transformers: --help needs neither

    assistant = Assistant.load(**options)
    assistant.reply("hello there")  # what a first call prepares is not the first message's time
    context = Context()
    for message in messages(sys.stdin.isatty() and not as_json):
        reply = assistant.reply(message, context)
        print(json.dumps({"message": message} | reply.as_dict(), ensure_ascii=False) if as_json else shown(reply))
        sys.stdout.flush()


def messages(asking: bool) -> Iterator[str]:
    """Yield the lines of standard input, until its end; a person may also type one of `LEAVE`.

    Args:
        asking: Whether a person sits there.
    """
    if asking:
        print(f"Type a message, or one of {', '.join(LEAVE)}.")
    while True:
        try:
            line = input("> ") if asking else sys.stdin.readline()
        except (EOFError, KeyboardInterrupt):
            print()
            return
        except UnicodeDecodeError as error:
            raise DistillationError(f"The messages are not UTF-8: {error}.") from error
        # in a file these words are messages like others, and what follows them is to be answered
        if line.strip().casefold() in LEAVE if asking else not line:
            return
        yield line.rstrip("\r\n")


def shown(reply: Reply) -> str:
    """Return a reply as a person reads it: the text, its source, and the time of each part.

    Args:
        reply: The reply.
    """
    lines = [reply.text]
    if reply.source is not None:
        named = [str(reply.source[name]) for name in ("source", "title") if reply.source[name]]
        lines.append(f"  from {': '.join(named)}")
    times = ", ".join(f"{name} {value:.0f} ms" for name, value in reply.milliseconds.items())
    about = f"{reply.part}{f' {reply.intent}' if reply.intent else ''}"
    return "\n".join([*lines, f"  [{about}; {times}]"])


def _parser() -> PlainParser:
    parser = PlainParser(
        prog="lightning-distilbert chat",
        description="Talk with an assistant: intent, slots, knowledge, and an answer with its source. Messages are "
        "typed, or come through a pipe, one a line.",
        argument_default=SUPPRESS,  # what is not given is left to the function's own default
        allow_abbrev=False,
    )
    add = parser.add_argument
    add("--intents", help="folder of a student of IntentClassification (or TextClassification)")
    add("--slots", help="folder of a student of TokenClassification")
    add("--knowledge", help="folder of a student of Retrieval, with passages.jsonl")
    add("--passages", help="file of passages, if it is another: rows with text, and title, answer, source if wanted")
    add("--reader", help="folder of a student of QuestionAnswering, which reads the passage found")
    add("--script", help="YAML or JSON file: intents, the slots they need, and what is said")
    add("--device", help="cpu, cuda, cuda:1, mps (default: cpu)")
    add("--json", action="store_true", help="write each reply as a line of JSON")
    return parser
