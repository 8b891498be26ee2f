from __future__ import annotations

import errno
import io
import json
import shutil
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import BertForTokenClassification

from lightning_distilbert import DistillationModule, IntentClassification, Retrieval
from lightning_distilbert.assistant import Knowledge
from lightning_distilbert.cli import main
from lightning_distilbert.retrieval.vector_file import VectorFile

SCRIPT = """\
intents:
  fly:
    slots:
      LOC: Where to?
    reply: To {LOC}.
  read:
    reply: Here.
max_characters: 100
"""


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.fixture(scope="module")
def parts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with a saved student for each part; those of intents and slots answer one thing."""
    from tests.conftest import save_tiny_bert, save_tiny_tokenizer

    folder = tmp_path_factory.mktemp("parts")
    bert = str(save_tiny_bert(folder / "bert"))
    module = DistillationModule(IntentClassification(labels=["fly", "read", "oos"]), student=bert)
    with torch.no_grad():
        module.student.classifier.weight.zero_()
        module.student.classifier.bias.copy_(torch.tensor([3.0, 0.0, 1.0]))
    module.thresholds = {"out_of_scope": 0.5}
    module.save_student(folder / "intents")
    module.thresholds = {"out_of_scope": 0.99}
    module.save_student(folder / "nothing")
    names = {0: "O", 1: "B-LOC"}
    tagger = BertForTokenClassification.from_pretrained(bert, id2label=names)
    with torch.no_grad():
        tagger.classifier.weight.zero_()
        tagger.classifier.bias.copy_(torch.tensor([1.0, 0.0]))
    tagger.save_pretrained(folder / "slots")
    save_tiny_tokenizer(folder / "slots")
    rows = [{"title": "how old is the house", "answer": "Very old.", "source": "faq 1"}, {"text": "one two three"}]
    Knowledge(DistillationModule(Retrieval(), student=bert), rows, 0.9).save(folder / "knowledge")
    save_tiny_bert(folder / "reader", spans=True)
    (folder / "script.yaml").write_text(SCRIPT)
    return folder


def chat(
    parts: Path, typed: str, monkeypatch: pytest.MonkeyPatch, *options: str, intents: str | None = "intents",
    terminal: bool = False,
) -> None:  # fmt: skip
    monkeypatch.setattr(sys, "stdin", Terminal(typed) if terminal else io.StringIO(typed))
    folders = [] if intents is None else ["--intents", str(parts / intents), "--slots", str(parts / "slots")]
    script = [] if intents is None else ["--script", str(parts / "script.yaml")]
    main(["chat", *folders, "--knowledge", str(parts / "knowledge"), *script, *options])


def test_piped_messages_are_answered_line_by_line(parts: Path, monkeypatch, capsys):
    chat(parts, "hello\n\U0001f600\n" + "x" * 50000 + "\n\nstop\nexit\nbye\n", monkeypatch, "--json")
    replies = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [reply["part"] for reply in replies] == ["slot", "unclear", "unclear", "unclear", "intent", "slot", "slot"]
    assert replies[0]["text"] == "Where to?"
    assert replies[0]["milliseconds"].keys() == {"intents", "slots", "total"}
    assert "100 characters" in replies[2]["text"]


def test_an_answer_names_its_source_and_times(parts: Path, monkeypatch, capsys):
    chat(parts, "how old is the house\n", monkeypatch, intents="nothing")
    lines = capsys.readouterr().out.splitlines()
    assert lines[:2] == ["Very old.", "  from faq 1: how old is the house"]
    assert lines[2].startswith("  [knowledge oos; intents ")
    assert all(name in lines[2] for name in ("search", "total", " ms"))


def test_knowledge_alone_with_a_reader(parts: Path, monkeypatch, capsys):
    chat(parts, "one two three\n", monkeypatch, "--reader", str(parts / "reader"), "--json", intents=None)
    (reply,) = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert (reply["part"], reply["intent"]) == ("knowledge", None)
    source = reply["source"]
    assert source["text"][source["start"] : source["end"]] == reply["text"] != ""


def test_a_person_is_asked(parts: Path, monkeypatch, capsys):
    chat(parts, "hello\nquit\n\U0001f600\n", monkeypatch, terminal=True)
    out = capsys.readouterr().out
    assert "did not understand" not in out
    assert out.startswith("Type a message")
    assert "> " in out
    assert "Where to?" in out


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ([], "--intents DIR"),
        (["--slots", "slots"], "--intents DIR"),
        (["--intents", "nowhere"], "There is no folder 'nowhere'"),
        (["--knowledge", "bert"], "There are no passages"),
        (["--intents", "slots"], "intents is a student of TokenClassification"),
        (["--intents", "intents", "--passages", "x"], "name the folder of one"),
        (["--intents", "intents", "--script", "script.yaml"], "no model that finds them"),
        (["--intents", "intents", "--script", "bad.yaml"], "intent 'flx', which the model does not know. Did you mean"),
        (["--intents", "intents", "--nonsense"], "unrecognized arguments"),
    ],
)
def test_mistakes_are_one_line(parts: Path, options: list[str], message: str, monkeypatch, capsys):
    monkeypatch.chdir(parts)
    (parts / "bad.yaml").write_text("intents: {flx: {reply: x}}")
    with pytest.raises(SystemExit) as stopped:
        main(["chat", *options])
    (line,) = capsys.readouterr().err.splitlines()
    assert stopped.value.code == 2
    assert message in line


def test_a_full_disk_is_one_line(parts: Path, tmp_path: Path, monkeypatch, capsys):
    shutil.copytree(parts / "knowledge", tmp_path / "knowledge", ignore=shutil.ignore_patterns("passages.npy*"))

    def append(*arguments: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(VectorFile, "append", append)
    with pytest.raises(SystemExit) as stopped:
        main(["chat", "--knowledge", str(tmp_path / "knowledge")])
    assert stopped.value.code == 2
    assert capsys.readouterr().err.splitlines() == ["error: [Errno 28] No space left on device"]


def test_messages_that_are_no_text(parts: Path, monkeypatch, capsys):
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"caf\xe9\n"), encoding="utf-8"))
    with pytest.raises(SystemExit):
        main(["chat", "--knowledge", str(parts / "knowledge")])
    assert "not UTF-8" in capsys.readouterr().err
