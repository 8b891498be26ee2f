from __future__ import annotations

import json
from pathlib import Path

import pytest

from lightning_distilbert import DistillationError
from lightning_distilbert.assistant import Script, read_script

FLY = {"fly": {"slots": {"from": "Where from?", "to": {"ask": "Where to?", "also": ["city"]}}, "reply": "{from}-{to}"}}


@pytest.mark.parametrize("name", ["script.yaml", "script.yml", "script.json"])
def test_script_is_read_from_yaml_and_json(tmp_path: Path, name: str):
    content = {"intents": FLY, "texts": {"unknown": "No idea."}, "max_characters": 50, "cancel": ["halt"]}
    (tmp_path / name).write_text(json.dumps(content))  # JSON is YAML too
    script = read_script(tmp_path / name)
    assert script.intents["fly"].slots["to"].also == ("city",)
    assert script.intents["fly"].reply == "{from}-{to}"
    assert (script.max_characters, script.cancel) == (50, ("halt",))
    assert script.texts["unknown"] == "No idea."
    assert script.texts["unclear"] == Script().texts["unclear"]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"intent": {}}, "'intent'. Did you mean 'intents'"),
        ([], r"'\[\]': it has to be a mapping"),
        (None, "'None': it has to be a mapping"),
        ({"intents": ["fly"]}, "intents is"),
        ({"intents": {"fly": {"replies": "x"}}}, "intent 'fly' has the key 'replies'. Did you mean 'reply'"),
        ({"intents": {"fly": {"reply": "To {city}."}}}, r"names \{city\}, which is none of its slots"),
        ({"intents": {"fly": {"slots": {"to": ""}}}}, "slot 'to' is ''"),
        ({"intents": {"fly": {"slots": {"to": {"also": ["x"]}}}}}, "slot 'to', ask is None"),
        ({"intents": {"fly": {"slots": {"to": {"ask": "?", "also": "x"}}}}}, "also is 'x': it has to be a list"),
        ({"intents": {"fly": {"slots": {"to": 3}}}}, "slot 'to' is '3'"),
        ({"intents": {"fly": {"reply": 3}}}, "reply is 3: it has to be a text"),
        ({"texts": {"unknwon": "x"}}, "Did you mean 'unknown'"),
        ({"max_characters": 0}, "max_characters=0"),
        ({"max_characters": True}, "max_characters=True"),
        ({"cancel": "stop"}, "cancel is 'stop': it has to be a list"),
    ],
)
def test_mistakes_are_named(content, message: str):
    with pytest.raises(DistillationError, match=message):
        Script.from_dict(content)


@pytest.mark.parametrize(("name", "text"), [("a.yaml", "intents: {"), ("a.json", "{"), ("a.yaml", "a: b: c")])
def test_damaged_file(tmp_path: Path, name: str, text: str):
    (tmp_path / name).write_text(text)
    with pytest.raises(DistillationError, match="cannot be read"):
        read_script(tmp_path / name)


def test_missing_file(tmp_path: Path):
    with pytest.raises(DistillationError, match="There is no script"):
        read_script(tmp_path / "nowhere.yaml")


def test_check_names_what_the_models_do_not_know():
    script = Script.from_dict({"intents": FLY})
    script.check(["fly", "oos"], ["from", "to", "city"], True)
    script.check(None, None, True)
    with pytest.raises(DistillationError, match=r"intent 'fly', which the model does not know.*'flight'"):
        script.check(["flight"], None, True)
    with pytest.raises(DistillationError, match="slot 'city', which the model of slots does not know"):
        script.check(["fly"], ["from", "to"], True)
    with pytest.raises(DistillationError, match=r"needs the slots \['from', 'to'\], and there is no model"):
        script.check(["fly"], None, False)
