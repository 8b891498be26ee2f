"""What a folder says, read without its weights."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from transformers import BertConfig, BertForSequenceClassification, RobertaConfig, RobertaForSequenceClassification

from lightning_distilbert import DistillationError, DistillationModule, Student, TextClassification, load
from lightning_distilbert.card.facts import measure_weights, read_facts
from lightning_distilbert.prediction import room
from lightning_distilbert.report.measure import count_parameters
from tests.conftest import save_tiny_bert, save_tiny_tokenizer
from tests.students import TASKS, save_classifier


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_classifier(tmp_path_factory.mktemp("facts"))


@pytest.fixture
def student(saved: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(saved, tmp_path / "student"))


def change(folder: Path, file: str, **values: object) -> None:
    told = json.loads((folder / file).read_text())
    (folder / file).write_text(json.dumps(told | values))


def test_facts_of_a_student(student: Path):
    facts = read_facts(student)
    assert (facts.task_name, facts.labels, facts.headless) == ("TextClassification", ["bad", "good"], False)
    assert facts.parameters == count_parameters(load(student).student)
    assert facts.bytes == (student / "model.safetensors").stat().st_size
    assert (facts.max_length, facts.lower_case, facts.mask_token) == (64, True, "[MASK]")


def test_more_than_ten_labels_keep_their_order(tmp_path: Path):
    student = Student(source=str(save_tiny_bert(tmp_path / "teacher", num_labels=12)), layers=1)
    module = DistillationModule(TextClassification(12), student=student)
    folder = module.save_student(tmp_path / "student")  # whose config.json has "10" before "2"
    assert read_facts(folder).labels is None  # LABEL_0, LABEL_1, ... are no names
    names = [f"topic {number}" for number in range(12)]
    change(folder, "config.json", id2label={str(number): names[number] for number in sorted(range(12), key=str)})
    assert read_facts(folder).labels == names


@pytest.mark.parametrize("name", TASKS)
def test_tied_weights_count_once_for_each_task(name: str, tmp_path: Path):
    folder = TASKS[name][0](tmp_path)
    assert read_facts(folder).parameters == count_parameters(load(folder).student)


def test_weights_in_parts(student: Path, tmp_path: Path):
    model = load(student).student
    model.save_pretrained(tmp_path / "parts", max_shard_size="50KB")
    assert len(list((tmp_path / "parts").glob("*.safetensors"))) > 1
    assert measure_weights(tmp_path / "parts")[0] == count_parameters(model)
    next(iter((tmp_path / "parts").glob("*.safetensors"))).unlink()
    with pytest.raises(DistillationError, match="cannot be read"):
        measure_weights(tmp_path / "parts")


def test_longest_text_is_the_shortest_limit(student: Path):
    change(student, "tokenizer_config.json", model_max_length=int(1e30))
    assert read_facts(student).max_length == 64
    change(student, "tokenizer_config.json", model_max_length=40)
    assert read_facts(student).max_length == 40


@pytest.mark.parametrize("named", [True, False])
def test_positions_that_a_roberta_never_uses_are_not_counted(named: bool, tmp_path: Path):
    config = RobertaConfig(
        vocab_size=200, hidden_size=8, num_hidden_layers=1, num_attention_heads=1, intermediate_size=8,
        max_position_embeddings=40,
    )  # fmt: skip
    RobertaForSequenceClassification(config).save_pretrained(tmp_path)  # as another tool does
    change(save_tiny_tokenizer(tmp_path), "tokenizer_config.json", model_max_length=int(1e30))
    if not named:
        told = json.loads((tmp_path / "config.json").read_text())
        (tmp_path / "config.json").write_text(json.dumps({k: v for k, v in told.items() if k != "pad_token_id"}))
    assert read_facts(tmp_path).max_length == room(load(tmp_path)) == 38


def test_capital_letters(student: Path):
    rules = json.loads((student / "tokenizer.json").read_text())
    rules["normalizer"] = {"type": "Sequence", "normalizers": [{"type": "NFD"}, {"type": "Lowercase"}]}
    (student / "tokenizer.json").write_text(json.dumps(rules))
    assert read_facts(student).lower_case
    rules["normalizer"] = {"type": "NFD"}
    (student / "tokenizer.json").write_text(json.dumps(rules))
    assert not read_facts(student).lower_case


def test_scores_by_split(student: Path):
    config = json.loads((student / "config.json").read_text())
    config["lightning_distilbert"]["metrics"] = {"val/accuracy": 0.5, "val/f1": None, "val/ndcg@10": 1}
    (student / "config.json").write_text(json.dumps(config))
    facts = read_facts(student, {"f1": 0.25, "val/accuracy": 0.75, "best/of": 2})
    assert facts.scores == {
        "val": {"accuracy": 0.75, "f1": None, "ndcg@10": 1.0},
        "test": {"f1": 0.25, "best/of": 2.0},
    }


def test_task_of_ones_own_is_read_as_its_architecture(student: Path):
    config = json.loads((student / "config.json").read_text())
    config["lightning_distilbert"]["task"] = {"class_path": "os.Mine", "init_args": {}}
    (student / "config.json").write_text(json.dumps(config))
    facts = read_facts(student)
    assert (facts.task_name, type(facts.task)) == ("Mine", TextClassification)


def test_folder_of_another_library(tmp_path: Path):
    facts = read_facts(save_tiny_bert(tmp_path / "bert", num_labels=2))
    assert (facts.details, facts.fits, facts.labels) == ({}, [], None)
    assert facts.task.num_labels == 2


def test_uncommon_names_of_labels(tmp_path: Path):
    config = BertConfig(
        vocab_size=200, hidden_size=8, num_hidden_layers=1, num_attention_heads=1, id2label={0: "a", 1: "b"}
    )
    BertForSequenceClassification(config).save_pretrained(tmp_path)
    assert read_facts(save_tiny_tokenizer(tmp_path)).labels == ["a", "b"]


@pytest.mark.parametrize(
    ("file", "content", "message"),
    [
        ("config.json", "{", "cannot be read"),
        ("tokenizer_config.json", "{", "cannot be read"),
        ("model.safetensors", "nothing", "cannot be read"),
    ],
)
def test_damaged_files(student: Path, file: str, content: str, message: str):
    (student / file).write_text(content)
    with pytest.raises(DistillationError, match=message):
        read_facts(student)


def test_weights_that_are_pickled(student: Path):
    (student / "model.safetensors").rename(student / "pytorch_model.bin")
    with pytest.raises(DistillationError, match="no weights in safetensors"):
        read_facts(student)


def test_task_that_cannot_be_built(student: Path):
    config = json.loads((student / "config.json").read_text())
    config["lightning_distilbert"]["task"]["init_args"] = {"labels": ["only one"]}
    (student / "config.json").write_text(json.dumps(config))
    with pytest.raises(DistillationError, match="its task cannot be built"):
        read_facts(student)


def test_fingerprint_is_that_of_a_training(student: Path):
    before = read_facts(student).fingerprint
    assert read_facts(student, {"accuracy": 0.5}).fingerprint == before
    config = json.loads((student / "config.json").read_text())
    config["lightning_distilbert"]["fits"] = [{"steps": 3}]
    (student / "config.json").write_text(json.dumps(config))
    assert read_facts(student).fingerprint != before
