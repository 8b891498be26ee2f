"""`lightning-distilbert export` as a user runs it."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from lightning_distilbert import load
from lightning_distilbert.cli import main
from tests.students import labelled, save_classifier

pytest.importorskip("onnxscript")
pytest.importorskip("onnxruntime")


@pytest.fixture
def workplace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    save_classifier(tmp_path / "made").rename("student")
    rows = labelled(load("student"))
    Path("rows.tsv").write_text("\n".join(["review\tmark", *(f"{row['text']}\t{row['label']}" for row in rows)]))
    return tmp_path


COLUMNS = ["--evaluate", "rows.tsv", "--text", "review", "--label", "mark"]


def test_export_prints_what_was_measured(workplace: Path, capsys: pytest.CaptureFixture[str]):
    options = ["--format", "onnx-int8", "--min_retention", "0.3", "--no-reduce_range", "--split", "test"]
    main(["export", "--model", "student", "--output", "artefact", *options, *COLUMNS])
    out = capsys.readouterr().out
    assert "artefact: onnx-int8, 0.1 MB, TextClassification" in out
    assert "accuracy on rows.tsv (test): student 1.0000, artefact " in out
    manifest = json.loads(Path("artefact/manifest.json").read_text())
    assert manifest["quantization"]["reduce_range"] is False
    assert manifest["verification"]["evaluation"]["min_retention"] == 0.3


def test_unmeasured_export_says_so(workplace: Path, capsys: pytest.CaptureFixture[str]):
    main(["export", "--model", "student", "--output", "artefact", "--format", "torch-export"])
    assert "was not measured: give rows with labels, --evaluate FILE" in capsys.readouterr().out


def test_a_score_that_the_artefact_has_not_is_none(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    from lightning_distilbert.deploy.export import Exported

    told = {"metric": "spearman", "source": "rows.tsv", "split": "test", "retention": 0.0}
    score = told | {"student": {"spearman": 0.5}, "artefact": {"spearman": None}}
    found = {"mean_difference": 0.1, "max_difference": 0.1, "output_spread": 1.0, "rows": 9, "evaluation": score}
    facts = {"format": "onnx-int8", "task": "TextClassification", "model": "m.onnx", "files": {}, "quantization": {}}
    done = Exported(Path("artefact"), facts | {"verification": found})
    # the package's name of this module is the function in it
    monkeypatch.setattr(sys.modules["lightning_distilbert.deploy.export"], "export", lambda *_, **__: done)
    main(["export", "--model", "student", "--output", "artefact"])
    assert "student 0.5000, artefact none, kept 0.00%" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--model", "nothing", "--output", "a"], "There is no folder 'nothing'"),
        (["--model", "student"], "required: --output"),
        (["--model", "student", "--output", "a", "--format", "onnx-int8"], "--evaluate FILE"),
        (["--model", "student", "--output", "student"], "it is no artefact, and is not replaced"),
        (["--model", "student", "--output", "/proc/a"], "no folder that you may write to"),
    ],
)
def test_mistakes_are_one_line(workplace: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], message: str):
    with pytest.raises(SystemExit) as exit_:
        main(["export", *arguments])
    assert exit_.value.code == 2
    err = capsys.readouterr().err.splitlines()[-1]
    assert err.startswith("error:")
    assert message in err
    assert not Path("a").exists()
