"""Every file of examples/ runs on a tiny teacher and tiny data."""

from __future__ import annotations

import json
import os
import re
import runpy
import subprocess
import sys
from pathlib import Path

import pytest
from transformers import (
    AutoModel,
    AutoModelForQuestionAnswering,
    AutoModelForSeq2SeqLM,
    AutoModelForSequenceClassification,
    AutoModelForTokenClassification,
)

from tests.parallel_texts import save_parallel
from tests.squad_files import save_squad

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"


@pytest.fixture
def workplace(tmp_path: Path, tiny_teacher_dir: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return an empty working folder but for a teacher and its data."""
    (tmp_path / "teacher").symlink_to(tiny_teacher_dir)
    (tmp_path / "data").mkdir()
    for split, count in (("train", 16), ("dev", 8)):
        lines = [f"the {'great' if i % 2 else 'dull'} movie is number {i}\t{i % 2}" for i in range(count)]
        (tmp_path / "data" / f"{split}.tsv").write_text("\n".join(["sentence\tlabel", *lines, ""]), encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def run_python(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    arguments = [name, "--teacher", "teacher", "--data", "data", "--max_epochs", "1"]
    monkeypatch.setattr(sys, "argv", arguments)
    runpy.run_path(str(EXAMPLES / name), run_name="__main__")


def check_student(folder: Path) -> None:
    model = AutoModelForSequenceClassification.from_pretrained(folder)
    assert (model.config.model_type, model.config.num_hidden_layers) == ("distilbert", 2)


def test_module(workplace: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    run_python("01_module.py", monkeypatch)
    assert "val/accuracy 0." in capsys.readouterr().out
    check_student(workplace / "student")


def test_callback(workplace: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    run_python("02_callback.py", monkeypatch)
    out = capsys.readouterr().out
    for name in ("Classifier", "EncoderAndHead"):
        (line,) = [line for line in out.splitlines() if line.startswith(f"{name} ")]
        assert "distill/soft_targets" in line
        assert "distill/hidden_states" in line


def test_recipe(workplace: Path):
    # the command that an installed package has
    (workplace / "bin").mkdir()
    command = workplace / "bin" / "lightning-distilbert"
    command.write_text(f'#!/bin/sh\nexec "{sys.executable}" -W ignore -m lightning_distilbert.cli "$@"\n')
    command.chmod(0o755)
    environment = os.environ | {
        "PATH": os.pathsep.join([str(command.parent), os.environ["PATH"]]),
        "PYTHONPATH": str(EXAMPLES.parent),
        "TEACHER": "teacher",
        "DATA": "data",
    }
    done = subprocess.run(
        ["bash", EXAMPLES / "03_recipe.sh", "--trainer.max_epochs", "1", "--trainer.accelerator", "cpu"],
        env=environment, capture_output=True, text=True, timeout=280,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    check_student(workplace / "student")


def test_subclass(workplace: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    run_python("04_subclass.py", monkeypatch)
    assert "reloaded with smoothing=0.1, val/accuracy 0." in capsys.readouterr().out


def test_retrieval(
    workplace: Path, tiny_bert_dir: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    for split, count in (("train", 16), ("dev", 8)):
        rows = [{"query": f"movie {i}", "document": f"the story of {i}", "negatives": [*"abcd"]} for i in range(count)]
        (workplace / "data" / f"{split}.tsv").unlink()
        (workplace / "data" / f"{split}.jsonl").write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    arguments = ["07_retrieval.py", "--encoder", str(tiny_bert_dir), "--data", "data", "--max_epochs", "1"]
    monkeypatch.setattr(sys, "argv", arguments)
    runpy.run_path(str(EXAMPLES / "07_retrieval.py"), run_name="__main__")
    out = capsys.readouterr().out
    for model in ("cross-encoder", "student"):
        assert f"{model}: val/ndcg@10 " in out
    assert AutoModelForSequenceClassification.from_pretrained("cross-encoder").config.num_labels == 1
    assert AutoModel.from_pretrained("student").config.n_layers == 2


def test_question_answering(
    tmp_path: Path, tiny_reader_dir: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    save_squad(tmp_path / "squad")
    monkeypatch.chdir(tmp_path)
    sizes = ["--max_epochs", "1", "--max_length", "40", "--doc_stride", "8"]
    name = "05_question_answering.py"
    monkeypatch.setattr(sys, "argv", [name, "--teacher", str(tiny_reader_dir), "--data", "squad", *sizes])
    runpy.run_path(str(EXAMPLES / name), run_name="__main__")
    out = capsys.readouterr().out
    assert re.search(r"^val/em [01]\.\d+, val/f1 [01]\.\d+$", out, re.MULTILINE)
    assert re.search(r"^'.+' from character \d+ to \d+, probability 0\.\d+$", out, re.MULTILINE)
    model = AutoModelForQuestionAnswering.from_pretrained(tmp_path / "student")
    assert (model.config.model_type, model.config.num_hidden_layers) == ("distilbert", 2)


def test_token_classification(
    tmp_path: Path, tiny_tagger_dir: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    (tmp_path / "data").mkdir()
    for name in ("eng.train", "eng.testa"):
        (tmp_path / "data" / name).write_text("the DT O\nold JJ I-PER\nman NN I-PER\n\nin IN O\nRome NNP I-LOC\n\n" * 8)
    monkeypatch.chdir(tmp_path)
    name = "06_token_classification.py"
    monkeypatch.setattr(sys, "argv", [name, "--teacher", str(tiny_tagger_dir), "--data", "data", "--max_epochs", "1"])
    runpy.run_path(str(EXAMPLES / name), run_name="__main__")
    out = capsys.readouterr().out
    assert re.search(r"^val/f1 [01]\.\d+ of whole entities$", out, re.MULTILINE)
    assert re.search(r"^(PER|LOC): '.+' at \d+-\d+, 0\.\d+$", out, re.MULTILINE)
    model = AutoModelForTokenClassification.from_pretrained(tmp_path / "student")
    assert (model.config.model_type, model.config.num_hidden_layers) == ("distilbert", 2)


def test_assistant(
    tmp_path: Path, tiny_bert_dir: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    monkeypatch.chdir(tmp_path)
    name = "09_assistant.py"
    monkeypatch.setattr(sys, "argv", [name, "--encoder", str(tiny_bert_dir), "--max_epochs", "2"])
    runpy.run_path(str(EXAMPLES / name), run_name="__main__")
    out = capsys.readouterr().out
    assert len(re.findall(r"^> .+\n.+ \((intent|slot|knowledge|unknown), \d+ ms\)$", out, re.MULTILINE)) == 5
    for part in ("intents", "slots", "knowledge"):
        model = AutoModel.from_pretrained(tmp_path / "assistant" / part)
        assert model.config.model_type == ("bert" if part == "knowledge" else "distilbert")
    assert set(json.loads(Path("assistant/intents/config.json").read_text())["lightning_distilbert"]["thresholds"]) == {
        "out_of_scope", "temperature",
    }  # fmt: skip


def test_translation(
    tmp_path: Path, tiny_bert_dir: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    save_parallel(tmp_path / "texts")
    monkeypatch.chdir(tmp_path)
    name = "08_translation.py"
    arguments = [name, "--encoder", str(tiny_bert_dir), "--data", "texts", "--max_epochs", "1", "--vocab_size", "80"]
    for more in ([], ["--texts", "texts/train.en"]):
        monkeypatch.setattr(sys, "argv", [*arguments, *more])
        runpy.run_path(str(EXAMPLES / name), run_name="__main__")
        out = capsys.readouterr().out
        for model in ("teacher", "student"):
            assert re.search(rf"^{model}: val/bleu \d+\.\d, val/chrf \d+\.\d$", out, re.MULTILINE)
        assert "A man is walking in the snow. -> " in out
        assert (tmp_path / "distilled.jsonl").is_file() == bool(more)
    model = AutoModelForSeq2SeqLM.from_pretrained(tmp_path / "student")
    assert (model.config.encoder.model_type, model.config.decoder.num_hidden_layers) == ("distilbert", 2)


def test_no_example_is_left_out():
    here = Path(__file__).read_text(encoding="utf-8")
    files = [path.name for path in EXAMPLES.iterdir() if path.is_file()]
    assert [name for name in files if f'"{name}"' not in here] == []
