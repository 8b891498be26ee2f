from __future__ import annotations

import json
import time
from dataclasses import asdict
from types import SimpleNamespace

import pytest

from lightning_distilbert import DistillationError, QuestionAnswering, Retrieval, TextClassification
from lightning_distilbert.assistant import Assistant, Context, Knowledge, Script
from tests.unit.assistant.test_assistant_knowledge import Encoder

CITIES = ("boston", "denver", "dallas")


class Intents:
    labels = ("fly", "balance", "weather", "oos")

    def predict(self, texts):
        label = next((label for label in self.labels if label in texts[0]), "oos")
        return [{"label": label, "score": 0.9}]


class Slots:
    labels = ("O", "B-from", "I-from", "B-to", "B-city")

    def predict(self, texts):
        words, found = texts[0].split(), []
        for before, word in zip(["", *words], words, strict=False):
            if word in CITIES:
                found.append({"label": before if before in ("from", "to") else "city", "text": word})
        return [found]


class Reader:
    def __init__(self):
        self.read = []

    def answer(self, question, context):
        self.read.append((question, context))
        start = context.find("answer")
        return {"answer": "answer" if start >= 0 else "", "score": 0.5, "start": start, "end": start + 6}


SCRIPT = {
    "intents": {
        "fly": {
            "slots": {"from": {"ask": "Where from?", "also": ["city"]}, "to": {"ask": "Where to?", "also": ["city"]}},
            "reply": "From {from} to {to}.",
        },
        "balance": {"reply": "It is in the app."},
    }
}
# in letters: the first is read, the second is answered as it is written
ROWS = [
    {"text": "aaa", "answer": "A!", "title": "aa", "source": "faq"},
    {"text": "bbbbbbbbb: the nswer", "source": "b"},
]


def assistant(**options) -> Assistant:
    options = {"intents": Intents(), "slots": Slots(), "knowledge": Knowledge(Encoder(), ROWS, 0.7)} | options
    return Assistant(**{"script": SCRIPT} | options)


def talk(messages: list[str], **options) -> list[tuple[str, str]]:
    context, speaker = Context(), assistant(**options)
    replies = [speaker.reply(message, context) for message in messages]
    json.dumps([reply.as_dict() for reply in replies])
    return [(reply.part, reply.text) for reply in replies]


def test_a_request_without_slots_is_answered():
    reply = assistant().reply("my balance please")
    assert (reply.part, reply.text, reply.intent, reply.score) == ("intent", "It is in the app.", "balance", 0.9)
    assert reply.source is None


def test_missing_slots_are_asked_for_one_by_one():
    assert talk(["fly me", "from boston", "to denver"]) == [
        ("slot", "Where from?"), ("slot", "Where to?"), ("intent", "From boston to denver."),
    ]  # fmt: skip


def test_an_answer_may_be_of_another_type_and_bring_more():
    # "boston" alone is a city; the tagger knows no more
    assert talk(["fly me", "boston", "denver"])[-1] == ("intent", "From boston to denver.")
    assert talk(["fly me", "from boston to denver"])[-1] == ("intent", "From boston to denver.")
    strict = {"intents": {"fly": {"slots": {"from": "Where from?"}}}}
    assert talk(["fly me", "boston"], script=strict)[-1] == ("slot", "Where from?")


def test_what_is_known_already_is_not_asked_for():
    assert talk(["fly to denver"]) == [("slot", "Where from?")]
    assert talk(["fly from boston to denver"]) == [("intent", "From boston to denver.")]


def test_another_request_takes_the_place_of_an_open_question():
    assert talk(["fly me", "my balance", "from boston"]) == [
        ("slot", "Where from?"), ("intent", "It is in the app."), ("unknown", "I don't know."),
    ]  # fmt: skip


def test_a_question_is_asked_twice_and_then_left():
    replies = talk(["fly me", "well", "hm", "from boston"])
    texts = Script().texts
    assert replies[:3] == [("slot", "Where from?"), ("slot", "Where from?"), ("intent", texts["given_up"])]
    assert replies[3][0] == "unknown"


@pytest.mark.parametrize("message", ["cancel", "Never mind!", "STOP."])
def test_a_request_can_be_cancelled(message: str):
    assert talk(["fly me", message, "from boston"])[1:] == [
        ("intent", Script().texts["cancelled"]), ("unknown", "I don't know."),
    ]  # fmt: skip
    assert talk(["fly me", message], script=SCRIPT | {"cancel": ["Halt"]})[1][0] == "slot"
    assert talk(["fly me", "halt"], script=SCRIPT | {"cancel": ["Halt"]})[1][1] == Script().texts["cancelled"]
    # phrases are split into words as messages are
    for phrase in ("Don't", "no, thanks!", "\u53d6\u6d88"):
        assert talk(["fly me", phrase], script=SCRIPT | {"cancel": [phrase]})[1][1] == Script().texts["cancelled"]


def test_a_follow_up_changes_one_slot():
    first = "fly from boston to denver"
    assert talk([first, "what about from dallas"])[-1] == ("intent", "From dallas to denver.")
    assert talk([first, "And to dallas ?"])[-1] == ("intent", "From boston to dallas.")
    # without its words it is a message like any other
    assert talk([first, "from dallas"], knowledge=None)[-1][0] == "unknown"
    assert talk([first, "fly from dallas"])[-1] == ("slot", "Where to?")
    other = {"script": SCRIPT | {"follow_up": ["now"]}, "knowledge": None}
    assert talk([first, "what about from dallas"], **other)[-1][0] == "unknown"
    assert talk([first, "now from dallas"], **other)[-1] == ("intent", "From dallas to denver.")
    other["script"] = SCRIPT | {"follow_up": ["how's it"]}
    assert talk([first, "How's it from dallas"], **other)[-1] == ("intent", "From dallas to denver.")


def test_what_is_no_request_is_looked_up():
    reply = assistant().reply("aaaa")
    assert (reply.part, reply.text, reply.intent) == ("knowledge", "A!", "oos")
    assert reply.source == {"source": "faq", "title": "aa", "text": "aaa"}
    assert reply.score == pytest.approx(1.0, abs=1e-3)
    assert talk(["hhhh"]) == [("unknown", "I don't know.")]
    assert talk(["aaaa"], knowledge=None) == [("unknown", "I don't know.")]


def test_an_intent_that_the_script_leaves_out_is_looked_up():
    assert talk(["weather aaaaaaaaaaaa"])[0] == ("knowledge", "A!")


def test_without_a_script_intents_are_named():
    reply = assistant(script=None).reply("weather from boston")
    assert (reply.part, reply.text, reply.slots) == ("intent", "weather (from = boston)", {"from": "boston"})
    assert assistant(script=None, slots=None).reply("weather from boston").text == "weather"


def test_passages_are_read():
    reader = Reader()
    knowledge = Knowledge(
        Encoder(), [*ROWS[:1], {"text": "bbbbbbbbbbbb", "source": "x"}, {"text": "bbbbbbbbbbbb answer"}], 0.7
    )
    reply = assistant(reader=reader, knowledge=knowledge).reply("bbbb")
    # the nearest passage says nothing of it
    assert reader.read == [("bbbb", "bbbbbbbbbbbb"), ("bbbb", "bbbbbbbbbbbb answer")]
    assert (reply.text, reply.source["source"]) == ("answer", "3")
    assert reply.source["text"][reply.source["start"] : reply.source["end"]] == "answer"
    assert "read" in reply.milliseconds
    assert talk(["bbbb"], reader=Reader()) == [("unknown", "I don't know.")]
    assert talk(["aaaa"], reader=Reader()) == [("knowledge", "A!")]  # what is written is not read
    assert talk(["bbbb"]) == [("knowledge", ROWS[1]["text"])]


def test_a_follow_up_is_looked_up_with_the_question_before():
    # alone it finds nothing, and with the question before it does
    assert talk(["hh it"])[0][0] == "unknown"
    for message in ("what about h", "is it h"):
        assert talk(["aaaa", message])[-1] == ("knowledge", "A!")
    assert talk(["aaaa", "hhh"])[-1][0] == "unknown"
    assert talk(["aaaa", "is it h"], script=SCRIPT | {"pointing": ["the"]})[-1][0] == "unknown"
    assert talk(["aaaa", "that one h"], script=SCRIPT | {"pointing": ["that one"]})[-1] == ("knowledge", "A!")
    # after a request, "it" is no longer what was asked before
    assert talk(["aaaa", "my balance", "is it h"])[-1][0] == "unknown"


def test_dialogues_do_not_mix():
    speaker, one, two = assistant(), Context(), Context()
    speaker.reply("fly me", one)
    assert speaker.reply("from boston", two).part == "unknown"
    stored = Context(**json.loads(json.dumps(asdict(one))))
    assert speaker.reply("from boston", stored).text == "Where to?"
    assert speaker.reply("from boston").part == "unknown"
    other = Context(intent="fly", missing=["seat"])  # of an older script
    assert speaker.reply("my balance", other).part == "intent"


@pytest.mark.parametrize("message", ["", "   \n", "\U0001f600", "\U0001f600 \u2764\ufe0f!!", "...", "\x00\u200b"])
def test_messages_without_words(message: str):
    (_, second) = talk(["fly me", message])
    assert second == ("unclear", Script().texts["unclear"])
    assert talk(["fly me", message, "boston"])[-1] == ("slot", "Where to?")  # and the question stays open


def test_a_message_that_is_too_long():
    reply = assistant().reply("fly " * 12500)
    assert (reply.part, "2000 characters" in reply.text) == ("unclear", True)
    assert assistant(script=SCRIPT | {"max_characters": 60000}).reply("fly " * 12500).part == "slot"


def test_half_a_character_is_no_crash():
    assert assistant().reply("my balance \ud800").text == "It is in the app."


@pytest.mark.parametrize("message", [None, 3, ["fly"]])
def test_what_is_no_message(message):
    with pytest.raises(DistillationError, match="A message is a text"):
        assistant().reply(message)


def test_each_reply_has_its_times():
    class Slow(Intents):
        def predict(self, texts):
            time.sleep(0.02)
            return super().predict(texts)

    speaker, context = assistant(intents=Slow()), Context()
    times = [
        speaker.reply(message, context).milliseconds
        for message in ("fly from boston to denver", "aaaa", "my balance", "")
    ]
    assert [sorted(part) for part in times] == [
        ["intents", "slots", "total"], ["intents", "search", "total"], ["intents", "total"], ["total"],
    ]  # fmt: skip
    assert all(part["intents"] >= 20 for part in times[:3])
    assert all(part["total"] >= sum(part.values()) - part["total"] - 0.1 for part in times)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"intents": None, "knowledge": None}, "a model of intents, or knowledge"),
        ({"intents": None}, "The script has intents"),
        ({"knowledge": None, "reader": Reader()}, "there is none"),
        ({"knowledge": Encoder()}, "knowledge is a Encoder"),
        ({"intents": object()}, r"intents is a object without predict\(\)"),
        ({"reader": Intents()}, r"reader is a Intents without answer\(\)"),
        ({"intents": SimpleNamespace(task=Retrieval(), predict=len)}, "intents is a student of Retrieval"),
        (
            {"slots": SimpleNamespace(task="Retrieval", predict=len)},
            "slots is a student of Retrieval: give one of Token",
        ),
        (
            {"intents": SimpleNamespace(labels=("fly", "oos"), predict=len)},
            "intent 'balance', which the model does not",
        ),
        ({"slots": SimpleNamespace(labels=("O", "B-to"), predict=len)}, "slot 'from', which the model of slots"),
        ({"slots": None}, "no model that finds them"),
    ],
)
def test_parts_that_do_not_fit(options, message: str):
    with pytest.raises(DistillationError, match=message):
        assistant(**options)


def test_tasks_of_the_right_kind_are_taken():
    class Mine(QuestionAnswering):
        pass

    for task in (QuestionAnswering(), Mine(), "QuestionAnswering"):
        assistant(reader=SimpleNamespace(task=task, answer=len))


MULTI = "multi_label_classification"


@pytest.mark.parametrize(
    ("task", "options", "kind"),
    [
        (TextClassification(num_labels=2, problem_type=MULTI), {}, MULTI),
        (TextClassification(problem_type="regression"), {}, "regression"),
        ("TextClassification", {"problem_type": MULTI}, MULTI),  # as an exported student has them
    ],
)
def test_a_model_that_does_not_choose_one_intent_is_refused(task, options: dict[str, str], kind: str):
    with pytest.raises(DistillationError, match=f"intents has problem_type='{kind}': a message has one intent"):
        Assistant(SimpleNamespace(task=task, options=options, predict=len))


def test_models_that_choose_one_intent_are_taken():
    for task, options in (
        (TextClassification(num_labels=2), {}),
        ("TextClassification", {"problem_type": "single_label_classification"}),
        ("IntentClassification", {"out_of_scope": "oos"}),
    ):
        Assistant(SimpleNamespace(task=task, options=options, predict=len))


@pytest.mark.parametrize("label", ["oos", "balance"])
def test_a_script_that_acts_on_what_is_out_of_scope_is_refused(label: str):
    script = {"intents": {"fly": {}, label: {"reply": "I only do banking."}}}
    with pytest.raises(DistillationError, match=rf"intent '{label}', .* is texts: {{unknown: \.\.\.}}\."):
        Assistant(Intents(), script=script, out_of_scope=label)


def test_another_label_for_out_of_scope():
    class Other(Intents):
        labels = ("fly", "balance", "none")

        def predict(self, texts):
            return [{"label": "none", "score": 0.9}]

    assert talk(["aaaa"], intents=Other(), script=None)[0][0] == "intent"
    assert talk(["aaaa"], intents=Other(), script=None, out_of_scope="none")[0][0] == "knowledge"
    told = Other()
    told.task = type("TextClassification", (), {"out_of_scope": "none"})()
    assert talk(["aaaa"], intents=told, script=None)[0][0] == "knowledge"
    told.task, told.options = "IntentClassification", {"out_of_scope": "none"}  # as an exported student has them
    assert talk(["aaaa"], intents=told, script=None)[0][0] == "knowledge"
