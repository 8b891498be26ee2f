"""An assistant of small students: intents, slots, knowledge, and an honest "I don't know".

    python examples/09_assistant.py --encoder ENCODER

ENCODER is a BERT-family encoder (a folder or a hub name), of which teacher and students are made. The few sentences
here only show the shape of the data: for a real assistant, train the parts on yours, as docs/tasks/assistant.md says.
"""

import argparse
from pathlib import Path

from pytorch_lightning import Trainer

from lightning_distilbert import (
    DistillationModule,
    IntentClassification,
    Retrieval,
    Student,
    TextClassificationData,
    TokenClassification,
    TokenClassificationData,
    auto_precision,
)
from lightning_distilbert.assistant import Assistant, Context, Knowledge

parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
parser.add_argument("--encoder", required=True)
parser.add_argument("--output", default="assistant", type=Path)
parser.add_argument("--max_epochs", type=int, default=10)
arguments = parser.parse_args()

CITIES = ("boston", "denver", "dallas", "new york")
ROUTES = [f"from {a} to {b}" for a in CITIES for b in CITIES if a != b]
ROUTES += [f"{side} {city}" for side in ("from", "to") for city in CITIES]
FLIGHTS = [f"{say} {route}" for say in ("a flight", "fly me", "i want to fly") for route in ROUTES]
INTENTS = {
    "flight": FLIGHTS,
    "balance": [f"{say} my balance" for say in ("what is", "show me", "tell me", "i want to know")] * 8,
    "oos": [
        f"{ask} {what}"
        for ask in ("who", "how do i", "when does", "where did")
        for what in ("win", "open", "fix my car")
    ],
}
PASSAGES = [
    {"title": "How do I reset my password?", "answer": "Follow the link on the login page.", "source": "faq/password"},
    {"title": "When does the office open?", "answer": "At nine, from Monday to Friday.", "source": "faq/office"},
]
SCRIPT = {
    "intents": {
        "flight": {
            "slots": {
                "from": {"ask": "Where do you want to fly from?", "also": ["to"]},
                "to": {"ask": "Where do you want to fly to?", "also": ["from"]},
            },
            "reply": "Flights from {from} to {to}: one in the morning, one at noon.",
        },
        "balance": {"reply": "You find your balance in the app, under Accounts."},
    }
}


def tags(text):
    """Tag the cities after "from" and "to"."""
    found, kind = [], "O"
    for word in text.split():
        inside = any(word in city.split() for city in CITIES)
        found.append("O" if not inside else f"I-{kind}" if found[-1] != "O" else f"B-{kind}")
        kind = word if word in ("from", "to") else kind
    return found


def fit(module, data):
    options = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False}
    Trainer(max_epochs=arguments.max_epochs, precision=auto_precision(), **options).fit(module, data)
    return module


def distil(task, data, name):
    """Fine-tune a teacher, and distil a student of two layers from it."""
    teacher = fit(DistillationModule(task, student=arguments.encoder, learning_rate=3e-4), data)
    folder = teacher.save_student(arguments.output / f"{name}-teacher")
    student = DistillationModule(task, teacher=str(folder), student=Student(layers=2), learning_rate=3e-4)
    return fit(student, data).save_student(arguments.output / name)


rows = [{"text": text, "label": label} for label, texts in INTENTS.items() for text in texts]
task = IntentClassification(labels=list(INTENTS))
intents = distil(task, TextClassificationData({"train": rows, "validation": rows[::3]}), "intents")

rows = [{"tokens": text.split(), "tags": tags(text)} for text in [*FLIGHTS, *ROUTES]]
names = ["O", "B-from", "I-from", "B-to", "I-to"]
data = TokenClassificationData({"train": rows, "validation": rows[::3]}, scheme="iob2")
slots = distil(TokenClassification(labels=names), data, "slots")

knowledge = Knowledge(DistillationModule(Retrieval(), student=arguments.encoder), PASSAGES)
questions = ["how can i reset the password", "at what time does the office open", "who won the cup", "fly me to dallas"]
knowledge.choose_threshold(questions, ["faq/password", "faq/office", None, None])
folder = knowledge.save(arguments.output / "knowledge")

assistant = Assistant.load(intents, slots, folder, script=SCRIPT)
context = Context()
messages = [
    "fly me to boston",
    "from denver",
    "what about from dallas",
    "how do i reset my password",
    "who is the king",
]
for message in messages:
    reply = assistant.reply(message, context)
    source = f" [{reply.source['source']}]" if reply.source else ""
    print(f"> {message}\n{reply.text}{source} ({reply.part}, {reply.milliseconds['total']:.0f} ms)")
