"""`lightning-distilbert compare` as a user runs it."""

from __future__ import annotations

from pathlib import Path

import pytest

from lightning_distilbert import load
from lightning_distilbert.cli import main
from lightning_distilbert.commands.compare import named_folders
from lightning_distilbert.report.compared import Comparison
from tests.students import labelled, save_classifier


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("compare")
    student = save_classifier(folder)
    rows = labelled(load(student))
    (folder / "rows.tsv").write_text("\n".join(["review\tmark", *(f"{row['text']}\t{row['label']}" for row in rows)]))
    return folder


@pytest.fixture
def workplace(made: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    monkeypatch.chdir(made)
    return tmp_path


ROWS = ["--evaluate", "rows.tsv", "--text", "review", "--label", "mark"]
FAST = ["--repeats", "2", "--starts", "0", "--lengths", "4", "8", "--resamples", "20", "--threads", "1"]


def test_comparison_is_printed_and_written(workplace: Path, capsys: pytest.CaptureFixture[str]):
    arguments = ["compare", "--models", "big=teacher", "student", *ROWS, *FAST, "--output", str(workplace / "out")]
    main([*arguments, "--batch_size", "2", "--split", "test", "--reference", "student", "--metric", "f1"])
    out = capsys.readouterr().out
    assert "f1 [95 %]" in out
    assert "against student [95 %]" in out
    assert str(workplace / "out" / "comparison.html") in out
    found = Comparison.read(workplace / "out")
    assert [one.name for one in found.models] == ["big", "student"]
    assert (found.reference, found.metric, found.split, found.batch_size) == ("student", "f1", "test", 2)
    assert (found.resamples, found.lengths, found.starts, found.repeats) == (20, (4, 8), 0, 2)
    assert found["student"].score.value == 1.0
    assert found.command.startswith("lightning-distilbert compare --models big=teacher student --evaluate rows.tsv")
    assert "--output out " in found.command
    assert str(workplace) not in (workplace / "out" / "comparison.html").read_text(encoding="utf-8")
    assert found.evaluation == "rows.tsv"
    assert all((workplace / "out" / f"comparison.{suffix}").stat().st_size for suffix in ("json", "md", "html"))


def test_a_folder_may_have_the_sign_of_a_name_in_its_own(tmp_path: Path):
    folder = tmp_path / "lr=0.001" / "student"
    folder.mkdir(parents=True)
    assert named_folders([str(folder), f"other={folder}"]) == {"student": str(folder), "other": str(folder)}


def test_without_output_nothing_is_written(workplace: Path, made: Path, capsys: pytest.CaptureFixture[str]):
    before = sorted(made.iterdir())
    main(["compare", "--models", "student", *ROWS, *FAST])
    assert "student" in capsys.readouterr().out
    assert sorted(made.iterdir()) == before


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--models", "a=student"], "required: --evaluate"),
        (ROWS, "required: --models"),
        (["--models", "a=student", "a=teacher", *ROWS], "names 'a' twice, 'student' and 'teacher'"),
        (["--models", "a=student", "--models", "a=teacher", *ROWS], "names 'a' twice"),
        (["--models", "a=", *ROWS], "write NAME=FOLDER"),
        (["--models", "a=nothing", *ROWS], "a: There is no folder 'nothing'"),
        (["--models", "a=student", "--reference", "b", *ROWS], "reference='b' is none of the models a"),
        (["--models", "a=student", "--evaluate", "no.tsv"], "no.tsv"),
        (["--models", "a=student", "--evaluate", "rows.tsv", "--text", "story"], "story"),
        (["--models", "a=student", *ROWS, "--lengths", "100"], "No model reads 100 tokens: a 64"),
        (["--models", "a=student", *ROWS, "--lengths", "x"], "invalid int value: 'x'"),
        (["--models", "a=student", *ROWS, "--metric", "bleu"], "choose one of 'accuracy', 'f1', 'mcc'"),
        (["--models", "a=nothing", *ROWS, "--output", "/proc/a"], "no folder that you may write to"),
        (["--models", "a=nothing", *ROWS, "--output", "rows.tsv"], "is a file. Give the name of a folder"),
    ],
)
def test_mistakes_are_one_line(workplace: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], message: str):
    with pytest.raises(SystemExit) as exit_:
        main(["compare", *arguments])
    assert exit_.value.code == 2
    err = capsys.readouterr().err.splitlines()[-1]
    assert err.startswith("error:")
    assert message in err


def test_comparison_that_is_there_is_replaced_only_when_asked(workplace: Path, capsys: pytest.CaptureFixture[str]):
    (workplace / "comparison.json").write_text("mine")
    arguments = ["compare", "--models", "student", *ROWS, *FAST, "--output", str(workplace)]
    with pytest.raises(SystemExit):
        main(arguments)
    assert "holds comparison.json already" in capsys.readouterr().err
    assert (workplace / "comparison.json").read_text() == "mine"
    main([*arguments, "--overwrite"])
    assert Comparison.read(workplace)["student"].score.value == 1.0
