from __future__ import annotations

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForSequenceClassification
from transformers.utils import logging as hf_logging

from lightning_distilbert.errors import DistillationError
from lightning_distilbert.loading import building, load_model, model_class, quiet
from lightning_distilbert.student import build_student
from tests.encoders import model_of

CLASSIFIER = "AutoModelForSequenceClassification"


@pytest.fixture
def loud():
    hf_logging.set_verbosity_warning()
    hf_logging.enable_progress_bar()
    yield
    hf_logging.set_verbosity_error()


@pytest.mark.usefixtures("loud")
def test_noise_is_silenced_only_while_building(tmp_path, capfd):
    model_of("bert").save_pretrained(tmp_path)
    capfd.readouterr()
    build_student(tmp_path, layers=2, auto_class=CLASSIFIER, architecture="same")
    seen = capfd.readouterr()
    assert (seen.out, seen.err) == ("", "")
    assert hf_logging.get_verbosity() == hf_logging.WARNING
    assert hf_logging.is_progress_bar_enabled()


@pytest.mark.usefixtures("loud")
@pytest.mark.parametrize("progress", [False, True])
def test_quiet_keeps_progress_bars_if_asked_and_ends_with_an_error(progress):
    def fail():
        with quiet(progress):
            assert hf_logging.get_verbosity() == hf_logging.ERROR
            assert hf_logging.is_progress_bar_enabled() == progress
            raise KeyError

    with pytest.raises(KeyError):
        fail()
    assert hf_logging.get_verbosity() == hf_logging.WARNING
    assert hf_logging.is_progress_bar_enabled()


def test_building_is_on_the_cpu():
    with torch.device("meta"):
        with quiet():
            assert torch.empty(1).device.type == "meta"
        with building():
            assert torch.empty(1).device.type == "cpu"


def test_a_head_may_be_missing_unless_the_whole_model_is_asked_for(tmp_path):
    model_of("bert").save_pretrained(tmp_path)
    assert load_model(tmp_path, CLASSIFIER).num_labels == 2
    with pytest.raises(DistillationError, match=r"weights of the head are missing .*classifier"):
        load_model(tmp_path, CLASSIFIER, whole=True)


def test_names_of_classes():
    assert model_class("BertModel").__name__ == "BertModel"
    for name in ("BertConfig", "AutoModelForNothing"):
        with pytest.raises(DistillationError, match=f"'{name}' is no model class"):
            model_class(name)


def test_folders_that_hold_no_whole_model_are_refused(tmp_path):
    def refused(message, path=tmp_path, auto_class="AutoModel"):
        with pytest.raises(DistillationError, match=message):
            load_model(path, auto_class)

    refused("does not exist", tmp_path / "nowhere")
    refused("no config.json, so it holds no model .it holds nothing")
    (tmp_path / "notes.txt").write_text("x")
    refused("is a file", tmp_path / "notes.txt")
    refused(r"it holds notes.txt")
    model_of("bert", AutoModelForSequenceClassification).save_pretrained(tmp_path)
    weights = load_file(tmp_path / "model.safetensors")
    (tmp_path / "model.safetensors").unlink()
    refused("a config.json and no weights")
    (tmp_path / "model.safetensors").write_bytes(b"junk")
    refused("could not be loaded with AutoModel .Safetensor")
    kept = {name: value for name, value in weights.items() if ".layer.3." not in name}
    save_file(kept, tmp_path / "model.safetensors", {"format": "pt"})
    refused(r"16 encoder weights are missing .*encoder.layer.3")
    refused(r"16 encoder weights are missing .*bert.encoder.layer.3", auto_class=CLASSIFIER)
    kept = {name: value for name, value in weights.items() if "classifier" not in name}
    save_file(kept, tmp_path / "model.safetensors", {"format": "pt"})
    assert load_model(tmp_path, CLASSIFIER).dtype is torch.float32
    (tmp_path / "config.json").write_text("{}")
    refused("could not be loaded .*model_type")
    refused("could not be loaded", "nobody/no-such-model")
