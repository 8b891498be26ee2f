"""From a fit to the hub: the card tells the checkpoint that was saved, and what arrives there answers the same."""

from __future__ import annotations

import re
import sys
from pathlib import Path

import pytest
import torch
import yaml
from huggingface_hub import ModelCard, constants

from lightning_distilbert import load
from lightning_distilbert.cli import main
from lightning_distilbert.hub import push_to_hub
from tests.hub import TOKEN, running


@pytest.fixture
def workplace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tiny_teacher_dir: Path) -> Path:
    (tmp_path / "teacher").symlink_to(tiny_teacher_dir)
    (tmp_path / "data").mkdir()
    for split, count in (("train", 16), ("dev", 8)):
        lines = [f"the {'great' if i % 2 else 'dull'} movie is number {i}\t{i % 2}" for i in range(count)]
        (tmp_path / "data" / f"{split}.tsv").write_text("\n".join(["sentence\tlabel", *lines, ""]), encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["lightning-distilbert"])
    return tmp_path


# of huggingface_hub 2.4's own upload
@pytest.mark.filterwarnings("ignore:Use 'content=:DeprecationWarning")
def test_from_a_recipe_to_the_hub(workplace: Path, monkeypatch: pytest.MonkeyPatch):
    own = ["--model.teacher", "teacher", "--data.source", "data", "--data.text", "sentence", "--data.batch_size", "4"]
    quiet = ["--trainer.accelerator", "cpu", "--trainer.enable_progress_bar", "false", "--trainer.devices", "1"]
    small = ["--model.student.layers", "2", "--trainer.max_epochs", "3", "--student_dir", "student"]
    main(["fit", "--config", "recipes/text-classification.yaml", *own, *quiet, *small])
    (best,) = workplace.rglob("best.ckpt")
    kept = torch.load(best, weights_only=True)
    text = Path("student/README.md").read_text()
    # what is saved is the best checkpoint, and not the last step
    assert f"| steps | {kept['global_step']} ({kept['epoch'] + 1} pass" in text
    assert "| data | `data`, which is not on the hub, 16 rows |" in text
    assert re.search(r"\| seed \| 0; 0 for the order of the rows \|", text)
    assert "`val/accuracy` may have chosen the checkpoint" in text
    assert re.search(r"\| HiddenStates \| 10 \| [^|]*layers auto, metric mse", text)
    found = {one.metric_name: one.metric_value for one in ModelCard(text).data.eval_results}
    assert found["accuracy"] == pytest.approx(load("student").scores["val/accuracy"], abs=1e-6)

    main(["card", "--model", "student", "--licence", "apache-2.0"])
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
    with running() as server:
        push_to_hub("student", "jane/films", token=TOKEN, endpoint=server.address)
    for name, content in server.files("jane/films").items():
        path = workplace / "there" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    texts = ["a great movie", "a dull one"]
    assert load("there").predict(texts) == load("student").predict(texts)
    card = yaml.safe_load(Path("there/README.md").read_text().split("---\n")[1])
    assert (card["license"], card["model-index"][0]["name"]) == ("apache-2.0", "films")
