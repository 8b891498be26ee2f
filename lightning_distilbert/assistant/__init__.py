"""A small assistant of distilled parts: intent, slots, knowledge and an answer, or an honest "I don't know".

Names are imported when they are first used, so that reading a script needs no torch.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from lightning_distilbert._lazy import attach

if TYPE_CHECKING:
    from lightning_distilbert.assistant.dialogue import Assistant, Context, Reply
    from lightning_distilbert.assistant.knowledge import Found, Knowledge, Passage
    from lightning_distilbert.assistant.script import Intent, Script, read_script

_HOME = {
    "Assistant": "dialogue",
    "Context": "dialogue",
    "Found": "knowledge",
    "Intent": "script",
    "Knowledge": "knowledge",
    "Passage": "knowledge",
    "Reply": "dialogue",
    "Script": "script",
    "read_script": "script",
}

__all__ = ["Assistant", "Context", "Found", "Intent", "Knowledge", "Passage", "Reply", "Script", "read_script"]


__getattr__, __dir__ = attach(__name__, _HOME)
