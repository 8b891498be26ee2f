"""`lightning-distilbert predict` as a user runs it."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from lightning_distilbert import DistillationModule, Retrieval, Student, TextClassification
from lightning_distilbert.cli import main
from lightning_distilbert.data.readers import read_rows

ROOT = Path(__file__).resolve().parents[2]
TEXTS = [f"the {'great' if i % 2 else 'dull'} movie is number {i}" for i in range(7)]


@pytest.fixture
def workplace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tiny_teacher_dir: Path, tiny_bert_dir: Path) -> Path:
    """Return a working folder with two saved students and a table."""
    monkeypatch.chdir(tmp_path)
    task = TextClassification(labels=["dull", "great"])
    DistillationModule(task, student=Student(source=str(tiny_teacher_dir), layers=2)).save_student("student")
    DistillationModule(Retrieval(), student=Student(source=str(tiny_bert_dir), layers=2)).save_student("encoder")
    Path("new.tsv").write_text("\n".join(["id\tsentence", *(f"{i}\t{text}" for i, text in enumerate(TEXTS))]))
    return tmp_path


def predict(*more: str, model: str = "student", output: str = "out.jsonl") -> list[dict]:
    fixed = ("--precision", "32-true", "--device", "cpu", "--text", "sentence")
    main(["predict", "--model", model, "--input", "new.tsv", "--output", output, *fixed, *more])
    return read_rows(output)


def refused(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    with pytest.raises(SystemExit) as exit_:
        main(["predict", *arguments])
    err = capsys.readouterr().err
    assert exit_.value.code == 2
    assert "Traceback" not in err
    assert err.splitlines()[-1].startswith("error:")
    return err.splitlines()[-1]


def test_predict_in_a_process_of_its_own(workplace: Path):
    command = [sys.executable, "-m", "lightning_distilbert.cli", "predict", "--model", "student", "--input", "new.tsv"]
    environment = os.environ | {"PYTHONPATH": str(ROOT), "PYTHONWARNINGS": "ignore"}
    options = ["--output", "out.jsonl", "--text", "sentence"]
    done = subprocess.run([*command, *options], env=environment, capture_output=True, text=True, timeout=280)
    assert done.returncode == 0, done.stderr
    assert done.stdout == "out.jsonl: 7 rows of new.tsv, answered by student\n"
    assert "7/7" in done.stderr  # the progress bar
    rows = read_rows("out.jsonl")
    assert [(row["id"], row["sentence"]) for row in rows] == [(str(i), text) for i, text in enumerate(TEXTS)]
    assert {row["prediction"]["label"] for row in rows} <= {"dull", "great"}


def test_vectors(workplace: Path, capsys: pytest.CaptureFixture[str]):
    rows = predict(model="encoder")
    main(["predict", "--model", "encoder", "--input", "new.tsv", "--output", "out.npy", "--text", "sentence",
          "--precision", "32-true"])  # fmt: skip
    assert np.allclose(np.load("out.npy"), [row["prediction"] for row in rows])
    assert "out.npy: 7 rows" in capsys.readouterr().out


@pytest.mark.parametrize(
    "more",
    [
        ["--text", "id"], ["--field", "answer"], ["--max_length", "4"], ["--precision", "bf16-mixed"],
        ["--columns", "number", "sentence"], ["--columns", "number", "sentence", "--header"],
    ],
    ids=" ".join,
)  # fmt: skip
def test_each_option_arrives(more: list[str], workplace: Path):
    assert predict(*more) != predict("--overwrite")


def test_options_that_leave_the_answers_as_they_are(workplace: Path):
    before = predict()
    for row, other in zip(before, predict("--batch_size", "2", "--delimiter", "\t", "--overwrite"), strict=True):
        assert row["prediction"].pop("score") == pytest.approx(other["prediction"].pop("score"), abs=1e-6)
        assert row == other


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--model", "nowhere"], "no folder 'nowhere'"),
        (["--model", "new.tsv"], "'new.tsv' is a file"),
        (["--model", "."], "has no config.json, so it holds no model (it holds encoder, new.tsv"),
        (["--input", "nowhere.tsv"], "no file 'nowhere.tsv'"),
        (["--text", "words"], "has no column 'words'. Its columns are ['id', 'sentence']"),
        (["--output", "old.jsonl"], "'old.jsonl' is there already"),
        (["--output", "out.npy", "--text", "sentence"], "is for vectors, and TextClassification gives none"),
        (["--batch_size", "few"], "argument --batch_size: invalid int value: 'few'"),
        (["--nonsense"], "unrecognized arguments: --nonsense"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_mistake_is_one_line(more: list[str], message: str, workplace: Path, capsys: pytest.CaptureFixture[str]):
    Path("old.jsonl").write_text("mine")
    good = ["--model", "student", "--input", "new.tsv", "--output", "out.jsonl"]
    assert message in refused(capsys, *good, *more)
    assert Path("old.jsonl").read_text() == "mine"
    assert not Path("out.jsonl").exists()


def test_required_options_and_help(capsys: pytest.CaptureFixture[str]):
    assert "the following arguments are required: --model, --input, --output" in refused(capsys)
    with pytest.raises(SystemExit) as exit_:
        main(["predict", "--help"])
    assert exit_.value.code == 0
    assert "folder of a saved student" in " ".join(capsys.readouterr().out.split())
