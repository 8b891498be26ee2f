"""The card as a file: written, written again, kept; what cannot be written is one clear error."""

from __future__ import annotations

import json
import os
import shutil
import stat
from pathlib import Path
from typing import Any

import pytest
import yaml
from huggingface_hub import ModelCard

from lightning_distilbert import DistillationError, DistillationModule, Student, TextClassification, load
from lightning_distilbert.card import write_card
from lightning_distilbert.card.writing import is_ours
from lightning_distilbert.deploy.manifest import read_manifest, write_manifest
from tests.comparisons import comparison
from tests.students import save_classifier


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_classifier(tmp_path_factory.mktemp("card"))


@pytest.fixture
def student(saved: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(saved, tmp_path / "student"))


def metadata(folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = yaml.safe_load(text(folder).split("---\n")[1])
    return found


def text(folder: Path) -> str:
    return (folder / "README.md").read_text(encoding="utf-8")


def test_saved_student_has_a_card(student: Path):
    assert is_ours(student)
    card = ModelCard.load(student / "README.md")
    assert card.data.pipeline_tag == "text-classification"
    assert "# student\n" in card.text
    mode = stat.S_IMODE((student / "README.md").stat().st_mode)
    assert mode == stat.S_IMODE((student / "config.json").stat().st_mode)
    assert not list(student.glob(".README*"))


def test_what_was_given_stays(student: Path):
    write_card(student, licence="mit", language=["en", "de"], datasets="owner/films", name="Films", repo_id="jane/x")
    write_card(student, metrics={"accuracy": 0.75})
    found = metadata(student)
    assert (found["license"], found["language"], found["datasets"]) == ("mit", ["en", "de"], ["owner/films"])
    assert "# Films\n" in text(student)
    assert 'snapshot_download("jane/x")' in text(student)
    write_card(student, licence="apache-2.0")  # later words count
    assert metadata(student)["license"] == "apache-2.0"
    result = metadata(student)["model-index"][0]["results"][0]
    assert result["metrics"] == [{"type": "accuracy", "value": 0.75, "name": "accuracy"}]
    assert (result["dataset"]["type"], result["dataset"]["split"]) == ("owner/films", "test")


def test_link_goes_with_its_licence(student: Path):
    write_card(student, licence="House rules", licence_link="LICENSE")
    assert metadata(student)["license_name"] == "house-rules"
    write_card(student, licence="mit")
    assert metadata(student)["license"] == "mit"
    assert not {"license_link", "license_name"} & metadata(student).keys()


def test_another_training_keeps_licence_and_language_alone(student: Path):
    write_card(student, licence="mit", language="en", datasets="owner/films", metrics={"accuracy": 0.75})
    module = load(student)
    module.scores = {"val/accuracy": 0.5}
    module.save_student(student)
    found = metadata(student)
    assert (found["license"], found["language"]) == ("mit", "en")
    assert "datasets" not in found
    assert [one["value"] for one in found["model-index"][0]["results"][0]["metrics"]] == [0.5]


def test_own_card_is_never_replaced(student: Path):
    (student / "README.md").write_text("# Mine\n")
    with pytest.raises(DistillationError, match="was not written by lightning_distilbert, and is not replaced"):
        write_card(student)
    load(student).save_student(student)  # nor by a student that is saved there, without a word
    assert text(student) == "# Mine\n"


def test_card_without_our_comment_is_the_users(student: Path):
    written = text(student)
    begin, end = written.index("<!-- lightning_distilbert"), written.index("-->") + 4
    (student / "README.md").write_text(written[:begin] + written[end:])
    assert not is_ours(student)


def test_damaged_comment_is_one_clear_error(student: Path):
    written = text(student)
    damaged = written.replace('"of":', '"of"')
    assert damaged != written
    (student / "README.md").write_text(damaged)
    with pytest.raises(DistillationError, match=r"was changed, .*Delete the comment .* or the file") as error:
        write_card(student, licence="mit")
    assert str(student / "README.md") in str(error.value)
    assert text(student) == damaged


def test_comparison_of_the_folder_is_in_the_card(student: Path):
    found = comparison()
    assert found.task == "TextClassification"
    found.write(student)
    write_card(student)
    assert found.to_markdown().strip() in text(student)
    (student / "comparison.json").unlink()
    write_card(student)  # of the same training
    assert found.to_markdown().strip() in text(student)
    module = load(student)
    module.scores = {"val/accuracy": 0.5}
    module.save_student(student)
    assert "## Compared" not in text(student)


def test_comparison_older_than_the_weights_is_left_out_unless_it_is_given(student: Path):
    comparison().write(student)
    os.utime(student / "comparison.json", (1, 1))
    write_card(student)
    assert "## Compared" not in text(student)
    write_card(student, comparison=student / "comparison.json")
    assert "## Compared" in text(student)
    write_card(student, comparison=comparison())
    assert "## Compared" in text(student)


def test_comparison_of_another_task(student: Path):
    folder = student.parent / "compared"
    comparison().write(folder)
    told = json.loads((folder / "comparison.json").read_text()) | {"task": "Retrieval"}
    (folder / "comparison.json").write_text(json.dumps(told))
    with pytest.raises(DistillationError, match="of models for Retrieval, and this one is for TextClassification"):
        write_card(student, comparison=folder)
    with pytest.raises(DistillationError, match="There is no comparison"):
        write_card(student, comparison="nowhere.json")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"licence": "apache2.0"}, "knows no licence 'apache2.0'. Did you mean 'apache-2.0'"),
        ({"licence": "mit", "licence_link": "LICENSE"}, "needs no licence_link"),
        ({"licence_link": "LICENSE"}, "that of no licence"),
        ({"metrics": {"test/accuracy": float("nan")}}, "'test/accuracy' is nan: a model card states numbers"),
        ({"metrics": {"accuracy": "good"}}, "'accuracy' is 'good'"),
        ({"language": "English"}, "language='English' is no code"),
        ({"datasets": ["data/train.tsv/x"]}, "datasets='data/train.tsv/x' is no name on the hub"),
        ({"base_model": "./teacher"}, "base_model='./teacher' is no name on the hub"),
    ],
)
def test_bad_options_leave_the_card_as_it_was(student: Path, options: dict[str, Any], message: str):
    before = text(student)
    with pytest.raises(DistillationError, match=message):
        write_card(student, **options)
    assert text(student) == before


def test_nan_kept_in_the_folder(student: Path):
    config = json.loads((student / "config.json").read_text())
    config["lightning_distilbert"]["metrics"] = {"val/f1": float("nan"), "val/accuracy": None}
    (student / "config.json").write_text(json.dumps(config))
    with pytest.raises(DistillationError, match="'val/f1' is nan"):
        write_card(student)


def test_folders_without_a_card_to_write(student: Path, tmp_path: Path):
    (tmp_path / "empty").mkdir()
    with pytest.raises(DistillationError, match="has no config"):
        write_card(tmp_path / "empty")
    assert not list((tmp_path / "empty").iterdir())
    (student / "manifest.json").write_text("{}")
    with pytest.raises(DistillationError, match="is no manifest"):
        write_card(student)


@pytest.fixture
def artefact(student: Path) -> Path:
    (student / "model.safetensors").unlink()
    (student / "README.md").unlink()
    (student / "model_int8.onnx").write_bytes(b"graph" * 1000)
    scores = {"student": {"accuracy": 0.9}, "artefact": {"accuracy": 0.81}}
    evaluation = {"source": "dev.tsv", "split": "validation", "metric": "accuracy", "retention": 0.9, **scores}
    verification = {"rows": 64, "max_difference": 0.125, "output_spread": 2.0, "evaluation": evaluation}
    told = {"format": "onnx-int8", "task": "TextClassification", "model": "model_int8.onnx", "parameters": 43426}
    write_manifest(student, {**told, "inputs": [], "outputs": [], "verification": verification})
    return student


def test_card_of_an_artefact_says_what_it_keeps(artefact: Path):
    write_card(artefact, licence="mit")
    card, told = text(artefact), metadata(artefact)
    assert (told["library_name"], told["pipeline_tag"], told["license"]) == ("onnx", "text-classification", "mit")
    assert "onnx-int8" in told["tags"]
    results = told["model-index"][0]["results"][0]
    assert (results["dataset"]["name"], results["metrics"][0]["value"]) == ("dev.tsv", 0.81)
    assert "keeps 90.0% of the student's accuracy" in card
    assert "| accuracy | 0.9000 | 0.8100 |" in card
    assert "differ from the student's by 0.12 at most" in card
    assert "| format | `onnx-int8` |" in card
    assert "transformers alone" not in card
    assert 'load("student")' in card
    read_manifest(artefact, verify=True)  # whole as before
    write_card(artefact, repo_id="jane/films-onnx")
    card = text(artefact)
    assert 'load(snapshot_download("jane/films-onnx"))' in card
    assert "license: mit" in card


def test_card_of_an_artefact_that_was_not_measured(artefact: Path):
    manifest = json.loads((artefact / "manifest.json").read_text())
    del manifest["verification"]["evaluation"]
    (artefact / "manifest.json").write_text(json.dumps(manifest | {"format": "openvino"}))
    write_card(artefact)
    card = text(artefact)
    assert "was not measured" in card
    assert "deploy import load_artefact" in card
    assert "model-index" not in metadata(artefact)


def test_artefact_that_is_not_whole_has_no_card(artefact: Path):
    (artefact / "model_int8.onnx").write_bytes(b"graph")
    with pytest.raises(DistillationError, match="is not whole"):
        write_card(artefact)
    assert not (artefact / "README.md").exists()


def test_unwritable_folder(student: Path, monkeypatch: pytest.MonkeyPatch):
    before = text(student)

    def full(*args: Any, **options: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_text", full)
    with pytest.raises(DistillationError, match=r"could not be written .*No space left"):
        write_card(student, licence="mit")
    assert text(student) == before


def test_card_that_fails_is_a_warning_and_the_student_is_saved(
    tiny_teacher_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr("lightning_distilbert.card.writing.read_facts", lambda *args: 1 / 0)
    module = DistillationModule(TextClassification(2), student=Student(source=str(tiny_teacher_dir), layers=1))
    with pytest.warns(UserWarning, match="is saved in .*division by zero.*lightning-distilbert card"):
        folder = module.save_student(tmp_path / "student")
    assert load(folder).task.num_labels == 2
    assert not (folder / "README.md").exists()
