"""A student that translates, exported: its folder, its answers through the runtime, and what is wrong with a folder."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import GenerationConfig

from lightning_distilbert import DistillationError, Translation, TranslationData, load
from lightning_distilbert.deploy import export, load_artefact, runtime
from lightning_distilbert.deploy.manifest import hash_file, read_manifest, write_manifest
from lightning_distilbert.deploy.runtime.search import Search
from lightning_distilbert.deploy.runtime.translator import Translator
from tests.parallel_texts import PAIRS, ROWS, TEXTS, save_translator, trainer
from tests.unit.deploy.test_runtime_alone import ALONE, ON_A_DEVICE, alone

pytest.importorskip("onnxscript")
pytest.importorskip("onnxruntime")

WANTED = [translation for _, translation in PAIRS]
MODELS = ["decoder_model.onnx", "encoder_model.onnx"]


@pytest.fixture(scope="module")
def student(tiny_bert_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_translator(tiny_bert_dir, tmp_path_factory.mktemp("tiny") / "translator")


@pytest.fixture(scope="module")
def exported(student: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An artefact, which no test may change."""
    return export(student, tmp_path_factory.mktemp("exported") / "a", evaluation=ROWS).folder


@pytest.fixture
def artefact(exported: Path, tmp_path: Path) -> Path:
    """A copy of it."""
    return Path(shutil.copytree(exported, tmp_path / "artefact"))


@pytest.fixture(scope="module")
def engine(exported: Path) -> Translator:
    return Translator(*(exported / name for name in reversed(MODELS)), threads=1)


def test_the_folder_holds_all_that_a_runtime_needs(exported: Path, student: Path):
    manifest = read_manifest(exported)
    target = [f"target_tokenizer/{name}" for name in ("tokenizer.json", "tokenizer_config.json")]
    texts = ["config.json", "generation_config.json", "tokenizer.json", "tokenizer_config.json"]
    assert sorted(manifest["files"]) == sorted([*MODELS, *target, *texts])
    assert all(told["sha256"] == hash_file(exported / name) for name, told in manifest["files"].items())
    assert (manifest["format"], manifest["task"], manifest["model"]) == ("onnx", "Translation", "encoder_model.onnx")
    assert [item["name"] for item in manifest["inputs"]] == ["input_ids", "attention_mask"]
    assert [item["name"] for item in manifest["outputs"]] == ["cross_key_0", "cross_value_0"]
    decoder = manifest["decoder"]
    assert decoder["model"] == "decoder_model.onnx"
    assert [item["name"] for item in decoder["inputs"]] == [
        *("input_ids", "encoder_attention_mask", "cross_key_0", "cross_value_0", "past_key_0", "past_value_0")
    ]
    assert [item["name"] for item in decoder["outputs"]] == ["logits", "present_key_0", "present_value_0"]
    assert manifest["verification"]["max_difference"] < 1e-4
    found = manifest["verification"]["evaluation"]
    assert (found["metric"], found["retention"], found["artefact"]["bleu"]) == ("bleu", 1.0, pytest.approx(100.0))
    assert found["artefact"]["loss"] == pytest.approx(found["student"]["loss"], abs=1e-5)
    settings = json.loads((exported / "generation_config.json").read_text())
    assert (settings["num_beams"], settings["max_length"], settings["early_stopping"]) == (2, 25, True)
    config = json.loads((exported / "config.json").read_text())
    assert (config["architectures"], config["model_type"]) == (["EncoderDecoderModel"], "encoder-decoder")
    assert manifest["parameters"] == sum(weight.numel() for weight in load(student).student.parameters())


def test_the_runtime_translates_as_the_student(exported: Path, student: Path):
    found = runtime.load(exported, threads=1, verify="all")
    texts = [*TEXTS, "", " \n", "a dog in water", "the old man and the good film " * 30]
    wanted = load(student).predict(texts)
    assert wanted[:5] == WANTED
    for batch_size in (None, 1, 3):
        assert found.predict(texts, batch_size) == wanted
    assert found.translate(texts[0]) == WANTED[0]
    assert found.translate(texts) == wanted
    assert found.predict([]) == []
    assert found.max_length == 64
    module = load(student)
    assert found.predict(TEXTS, max_length=3) == module.predict(TEXTS, max_length=3) != WANTED
    with pytest.raises(DistillationError, match="is a pair of texts"):
        found.predict([("a", "b")])
    with pytest.raises(DistillationError, match="this one is of Translation"):
        found.classify("a")
    with pytest.raises(DistillationError, match="batch_size=0"):
        found.predict(TEXTS, batch_size=0)


@pytest.mark.parametrize("most", [4, 12])
@pytest.mark.parametrize("beams", [1, 4])
def test_graphs_and_search_are_generate(engine: Translator, student: Path, beams: int, most: int):
    module = load(student)
    texts = [*TEXTS, "a long long long old bright film and the dog", "water"]
    encoded = dict(module.tokenizer(texts, return_tensors="pt", padding=True))
    batch = {name: encoded[name].numpy() for name in ("input_ids", "attention_mask")}
    assert (batch["attention_mask"] == 0).any()
    settings = module.task.search_settings(module.student, beams, most)
    found = engine.generate(batch, Search.read(settings.to_diff_dict()))
    inputs = {name: encoded[name] for name in batch}
    options: dict[str, Any] = {"return_dict_in_generate": True, "output_scores": True}
    with torch.no_grad():
        theirs = module.student.generate(**inputs, generation_config=settings, **options)
    write = module._target_tokenizer.batch_decode
    assert write(found.tokens, skip_special_tokens=True) == write(theirs.sequences, skip_special_tokens=True)
    ended = (found.tokens == 3).any(axis=1)
    assert ended.any()
    assert ended.all() == (most == 12)  # some are cut at 4 tokens
    if beams > 1:
        np.testing.assert_allclose(found.scores, theirs.sequences_scores.numpy(), atol=1e-4)


def test_what_is_known_is_read_in_parts(engine: Translator, student: Path):
    model = load(student).student
    batch = {"input_ids": torch.randint(5, 90, (3, 6)), "attention_mask": torch.ones(3, 6, dtype=torch.long)}
    batch["attention_mask"][1, 3:] = 0
    for width in (1, 2, 7):
        target = torch.randint(4, 40, (3, width))
        with torch.no_grad():
            wanted = model(**batch, decoder_input_ids=target).logits.numpy()
        found = engine.run({name: value.numpy() for name, value in (batch | {"decoder_input_ids": target}).items()})
        np.testing.assert_allclose(found["logits"], wanted, atol=1e-4)


def test_an_artefact_is_a_module_that_predicts_and_is_tested(exported: Path, student: Path):
    module = load_artefact(exported, threads=1)
    assert module.predict([*TEXTS, ""]) == [*WANTED, ""]
    assert type(module.task) is Translation
    data = TranslationData({"test": ROWS}, batch_size=2)
    found, wanted = (trainer().test(one, data, verbose=False)[0] for one in (module, load(student)))
    assert found.keys() == wanted.keys()
    assert found["test/bleu"] == pytest.approx(100.0)
    assert found["test/loss"] == pytest.approx(wanted["test/loss"], abs=1e-5)
    tokens = dict(module.tokenizer(TEXTS[:1], return_tensors="pt"))
    inputs = {name: tokens[name] for name in ("input_ids", "attention_mask")}
    mine, theirs = module.student.generate(**inputs), load(student).student.generate(**inputs)
    assert mine.tolist() == theirs.tolist()
    with pytest.raises(DistillationError, match="do_sample=True"):
        module.student.generate(**inputs, generation_config=GenerationConfig(do_sample=True))


def test_it_translates_where_there_is_no_torch(exported: Path, device: Path):
    answers, loaded = alone(ALONE, str(exported), json.dumps([*TEXTS, ""]))
    assert answers == [*WANTED, ""]
    assert not {"torch", "transformers"} & set(loaded)
    asked = json.dumps([[str(exported), [*TEXTS, ""]]])
    assert alone(ON_A_DEVICE, asked, site=device) == [[*WANTED, ""]]


def reseal(folder: Path) -> None:
    facts = read_manifest(folder, verify=False)
    write_manifest(folder, {name: value for name, value in facts.items() if name != "files"})


@pytest.mark.parametrize("opener", [load_artefact, runtime.load])
def test_damaged_folders_are_one_error(artefact: Path, opener: Any):
    decoder, target = artefact / "decoder_model.onnx", artefact / "target_tokenizer"
    whole = decoder.read_bytes()
    decoder.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(DistillationError, match=r"decoder_model.onnx' is not whole"):
        opener(artefact)
    reseal(artefact)
    with pytest.raises(DistillationError, match=r"decoder_model.onnx' cannot be run by onnxruntime"):
        opener(artefact)
    decoder.unlink()
    with pytest.raises(DistillationError, match=r"decoder_model.onnx'?, which is not there|has no decoder_model.onnx"):
        opener(artefact)
    shutil.copy(artefact / "encoder_model.onnx", decoder)
    reseal(artefact)
    with pytest.raises(DistillationError, match=r"takes input_ids, attention_mask, and there are input_ids, encoder_"):
        opener(artefact)
    decoder.write_bytes(whole)
    reseal(artefact)
    opener(artefact)
    shutil.rmtree(target)
    with pytest.raises(DistillationError, match=r"target_tokenizer/tokenizer.json"):
        opener(artefact)
    reseal(artefact)
    with pytest.raises(DistillationError, match=r"has no target_tokenizer/tokenizer.json, no target_tokenizer/"):
        opener(artefact)


def test_settings_that_are_not_applied_are_refused(artefact: Path):
    path = artefact / "generation_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"min_length": 5}))
    reseal(artefact)
    with pytest.raises(DistillationError, match=r"generation_config.json: the generation setting min_length=5"):
        runtime.load(artefact)


def test_a_manifest_without_its_decoder_is_refused(artefact: Path):
    facts = read_manifest(artefact)
    write_manifest(artefact, {name: value for name, value in facts.items() if name not in ("files", "decoder")})
    with pytest.raises(DistillationError, match=r"config\.json and the model do not belong together"):
        runtime.load(artefact)
    write_manifest(artefact, {**facts, "decoder": "decoder_model.onnx"})
    with pytest.raises(DistillationError, match="names no file of the decoder"):
        runtime.load(artefact)
