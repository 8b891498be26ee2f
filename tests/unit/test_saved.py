"""Saved students come back with their task, and a folder of a stranger runs nothing and imports nothing."""

from __future__ import annotations

import importlib
import json
import pickle
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from transformers import AutoConfig, AutoModel, AutoTokenizer, BertConfig

from lightning_distilbert import DistillationError, DistillationModule, Student, TextClassification, load
from lightning_distilbert.spec import Spec
from lightning_distilbert.tasks import MaskedLM, QuestionAnswering, Reranking, Retrieval, Task, TokenClassification

TEXTS = ["a great movie", "the plot is dull and the story is very long", "no"]
QUESTIONS = [("who is great", "the man of the story is great"), ("what", "a long film")]
KINDS = {
    "labels": (TextClassification(labels=["bad", "good"]), TEXTS),
    "pairs": (TextClassification(num_labels=3), [(text, "a film") for text in TEXTS]),
    "several": (TextClassification(num_labels=3, problem_type="multi_label_classification"), TEXTS),
    "score": (TextClassification(problem_type="regression"), TEXTS),
    "vectors": (Retrieval(pooling="cls", normalize=False, similarity="dot"), TEXTS),
    "masked": (MaskedLM(top_k=2), ["a [MASK] movie", "[MASK] and [MASK]"]),
    "entities": (TokenClassification(labels=["O", "B-PER", "I-PER"]), [*TEXTS, ["a", "great", "man"]]),
    "ranks": (Reranking(), [("a movie", text) for text in TEXTS]),
    "answers": (QuestionAnswering(doc_stride=4, no_answer=True), QUESTIONS),
}


@pytest.fixture
def sources(tiny_teacher_dir: Path, tiny_bert_dir: Path, tiny_mlm_dir: Path) -> dict[str, Path]:
    return {"classifier": tiny_teacher_dir, "encoder": tiny_bert_dir, "mlm": tiny_mlm_dir}


def saved(folder: Path, source: Path, task: Task = KINDS["labels"][0], layers: int | None = 2) -> DistillationModule:
    module = DistillationModule(task, student=Student(source=str(source), layers=layers))
    module.save_student(folder)
    return module


def change(folder: Path, **values: Any) -> None:
    """Change config.json; what is None is dropped."""
    path = folder / "config.json"
    config = json.loads(path.read_text()) | values
    path.write_text(json.dumps({name: value for name, value in config.items() if value is not None}))


def told(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "config.json").read_text())


def assert_alike(found: Any, wanted: Any) -> None:
    """Equal, but for the last digits: some processors' kernels add in an order that depends on where a tensor lies."""
    if isinstance(wanted, dict):
        assert found.keys() == wanted.keys()
        for name, value in wanted.items():
            assert_alike(found[name], value)
    elif isinstance(wanted, list | tuple):
        assert len(found) == len(wanted)
        for mine, theirs in zip(found, wanted, strict=True):
            assert_alike(mine, theirs)
    else:
        assert found == (pytest.approx(wanted, rel=1e-5, abs=1e-6) if isinstance(wanted, float) else wanted)


# -- what we saved -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
def test_task_and_predictions_come_back_and_are_saved_again_the_same(kind: str, sources, tmp_path: Path):
    task, texts = KINDS[kind]
    module = saved(tmp_path / "one", sources["mlm" if kind == "masked" else "encoder"], task)
    module.thresholds, module.scores = {"no_answer": -100.0}, {"val/f1": 0.75}
    module.save_student(tmp_path / "one")
    again = load(tmp_path / "one")
    assert type(again.task) is type(task)
    assert again.task.to_config() == task.to_config()
    assert (again.thresholds, again.scores) == ({"no_answer": -100.0}, {"val/f1": 0.75})
    assert again.distiller is None
    assert not any(part.training for part in again.modules())
    assert_alike(again.predict(texts, batch_size=2), module.predict(texts, batch_size=2))
    assert not any(part.training for part in again.modules())

    again.save_student(tmp_path / "two")
    files = {path.relative_to(tmp_path / "one") for path in (tmp_path / "one").rglob("*") if path.is_file()}
    assert files == {path.relative_to(tmp_path / "two") for path in (tmp_path / "two").rglob("*") if path.is_file()}
    for file in files - {Path("README.md")}:  # the card's title is the folder's name
        assert (tmp_path / "one" / file).read_bytes() == (tmp_path / "two" / file).read_bytes(), file


def test_what_made_a_student_is_still_told_when_it_is_saved_again(sources, tmp_path: Path):
    module = DistillationModule(TextClassification(num_labels=2), sources["classifier"], Student(layers=1))
    module.save_student(tmp_path / "one")
    load(tmp_path / "one").save_student(tmp_path / "two")
    first, second = (told(tmp_path / name)["lightning_distilbert"] for name in ("one", "two"))
    assert first["teacher"] == sources["classifier"].name
    assert len(first["objectives"]) == 2
    assert first == second


def test_of_a_local_teacher_only_the_name_is_published(sources, tmp_path: Path):
    module = DistillationModule(TextClassification(num_labels=2), sources["classifier"], Student(layers=1))
    module.save_student(tmp_path / "one")
    for file in tmp_path.glob("one/*"):
        assert str(sources["classifier"].parent).encode() not in file.read_bytes(), file
    before = told(tmp_path / "one")["lightning_distilbert"] | {"teacher": "/home/jane/secret/big"}  # as it once was
    change(tmp_path / "one", lightning_distilbert=before)
    load(tmp_path / "one").save_student(tmp_path / "two")
    assert told(tmp_path / "two")["lightning_distilbert"]["teacher"] == "big"


def test_label_names_of_the_teacher_come_back(sources, tmp_path: Path):
    shutil.copytree(sources["classifier"], tmp_path / "teacher")
    change(tmp_path / "teacher", id2label={"0": "dull", "1": "great"}, label2id={"dull": 0, "great": 1})
    student = Student(source=str(sources["encoder"]))
    module = DistillationModule(TextClassification(num_labels=2), tmp_path / "teacher", student)
    module.save_student(tmp_path / "student")
    again = load(tmp_path / "student")
    assert again.labels == ("dull", "great")
    assert {answer["label"] for answer in again.predict(TEXTS)} <= {"dull", "great"}


def test_encoder_whose_head_was_not_trained_is_refused_with_what_to_do(sources, tmp_path: Path):
    student = Student(layers=2, hidden_size=16)
    module = DistillationModule(MaskedLM(), sources["mlm"], student, objectives="minilm")
    module.save_student(tmp_path / "one")
    with pytest.raises(DistillationError, match=r"encoder without the head that MaskedLM needs.*task=Retrieval\(\)"):
        load(tmp_path / "one")
    assert len(load(tmp_path / "one", task=Retrieval()).predict(TEXTS)[0]) == 16


def test_shorter_limit_comes_back(sources, tmp_path: Path):
    module = saved(tmp_path / "one", sources["encoder"], Retrieval())
    module.save_student(tmp_path / "one", max_length=5)
    again = load(tmp_path / "one")
    assert again.predict(TEXTS) == module.predict(TEXTS, max_length=5)
    assert again.predict(TEXTS) != module.predict(TEXTS)


def test_loaded_module_is_put_on_the_device(sources, tmp_path: Path):
    saved(tmp_path / "one", sources["encoder"])
    assert load(tmp_path / "one").device.type == "cpu"
    module = load(tmp_path / "one", device="meta")
    assert module.device.type == "meta"
    assert {parameter.device.type for parameter in module.parameters()} == {"meta"}


def test_checkpoint_of_a_loaded_module_loads(sources, tmp_path: Path):
    module = saved(tmp_path / "one", sources["encoder"])
    again = load(tmp_path / "one")
    checkpoint: dict[str, Any] = {"state_dict": again.state_dict(), "hyper_parameters": dict(again.hparams)}
    again.on_save_checkpoint(checkpoint)
    assert "lightning_distilbert" not in checkpoint["hyper_parameters"]["student"]["init_args"]["config"]
    torch.save(checkpoint | {"pytorch-lightning_version": "2.6.0"}, tmp_path / "one.ckpt")
    last = DistillationModule.load_from_checkpoint(tmp_path / "one.ckpt")
    assert last.predict(TEXTS) == module.predict(TEXTS)


# -- folders of another making -----------------------------------------------------------------------------------------


def test_text_classifiers_get_their_labels_and_kind(sources, tmp_path: Path):
    folder = tmp_path / "model"
    shutil.copytree(sources["classifier"], folder)
    task = load(folder).task
    assert isinstance(task, TextClassification)
    assert (task.num_labels, task.labels, task.problem_type) == (2, None, "single_label_classification")
    change(folder, id2label={"1": "great", "0": "dull"}, problem_type="multi_label_classification")
    task = load(folder).task
    assert (task.labels, task.problem_type) == (("dull", "great"), "multi_label_classification")


def test_classifier_of_one_output_gives_a_score(sources, tmp_path: Path):
    model = transformers.BertForSequenceClassification(BertConfig.from_pretrained(sources["encoder"], num_labels=1))
    model.save_pretrained(tmp_path)
    AutoTokenizer.from_pretrained(sources["encoder"]).save_pretrained(tmp_path)
    module = load(tmp_path)
    with torch.no_grad():
        logit = model.eval()(**module.tokenizer(TEXTS[0], return_tensors="pt")).logits.item()
    assert module.predict(TEXTS[:1]) == [{"score": pytest.approx(logit, abs=1e-6)}]


def test_token_classifiers_get_their_tags(sources, tmp_path: Path):
    tags = {0: "O", 1: "B-PER", 2: "I-PER"}
    config = BertConfig.from_pretrained(sources["encoder"], id2label=tags, label2id={tag: i for i, tag in tags.items()})
    transformers.BertForTokenClassification(config).save_pretrained(tmp_path)
    AutoTokenizer.from_pretrained(sources["encoder"]).save_pretrained(tmp_path)
    module = load(tmp_path)
    assert isinstance(module.task, TokenClassification)
    assert module.task.labels == ("O", "B-PER", "I-PER")
    assert {entity["label"] for entity in module.predict(TEXTS)[1]} == {"PER"}


def test_cross_encoder_of_sentence_transformers_ranks(sources, tmp_path: Path):
    library = pytest.importorskip("sentence_transformers")
    encoder = library.CrossEncoder(
        str(sources["encoder"]), num_labels=1, device="cpu", activation_fn=torch.nn.Identity()
    )
    encoder.save_pretrained(str(tmp_path))
    module = load(tmp_path)
    assert isinstance(module.task, Reranking)
    pairs = [("a movie", text) for text in TEXTS]
    scores = [answer["score"] for answer in module.predict(pairs)]
    assert scores == pytest.approx(encoder.predict(pairs).tolist(), abs=1e-5)
    # version 4 and before say it in config.json
    (tmp_path / "config_sentence_transformers.json").unlink()
    assert isinstance(load(tmp_path).task, TextClassification)
    for name, value in {"sentence_transformers": {"version": "4"}, "sbert_ce_default_activation_function": "x"}.items():
        change(tmp_path, **{name: value})
        assert isinstance(load(tmp_path).task, Reranking)
        change(tmp_path, **{name: None})


@pytest.mark.parametrize(
    ("architecture", "task"),
    [("BertForMaskedLM", MaskedLM), ("BertForQuestionAnswering", QuestionAnswering), ("BertModel", Retrieval)],
)
def test_architecture_tells_the_task(architecture: str, task: type[Task], sources, tmp_path: Path):
    config = BertConfig.from_pretrained(sources["encoder"])
    getattr(transformers, architecture)(config).save_pretrained(tmp_path)
    AutoTokenizer.from_pretrained(sources["encoder"]).save_pretrained(tmp_path)
    assert "lightning_distilbert" not in told(tmp_path)
    assert type(load(tmp_path).task) is task


# the place that versions 5 and 6 both have
@pytest.mark.filterwarnings("ignore:Importing from 'sentence_transformers:DeprecationWarning")
@pytest.mark.parametrize("pooling", ["mean", "cls"])
@pytest.mark.parametrize("normalize", [True, False])
def test_vectors_are_those_of_sentence_transformers(pooling: str, normalize: bool, sources, tmp_path: Path):
    library = pytest.importorskip("sentence_transformers")
    models = importlib.import_module("sentence_transformers.models")
    word = models.Transformer(str(sources["encoder"]), max_seq_length=6)
    parts = [word, models.Pooling(32, pooling_mode=pooling), *[models.Normalize()] * normalize]
    library.SentenceTransformer(modules=parts, device="cpu").save(str(tmp_path))
    module = load(tmp_path)
    assert (module.task.pooling, module.task.normalize) == (pooling, normalize)
    expected = library.SentenceTransformer(str(tmp_path), device="cpu").encode(TEXTS)
    assert torch.allclose(torch.tensor(module.predict(TEXTS)), torch.tensor(expected), atol=1e-5)


def test_limit_of_sentence_transformers_counts(sources, tmp_path: Path):
    shutil.copytree(sources["encoder"], tmp_path / "model")
    (tmp_path / "model" / "sentence_bert_config.json").write_text('{"max_seq_length": 5}')
    assert load(tmp_path / "model").predict(TEXTS) == load(sources["encoder"]).predict(TEXTS, max_length=5)
    (tmp_path / "model" / "sentence_bert_config.json").write_text('{"max_seq_length": 500}')
    assert load(tmp_path / "model").predict(TEXTS) == load(sources["encoder"]).predict(TEXTS)


def test_parts_of_sentence_transformers_that_are_not_computed_are_refused(sources, tmp_path: Path):
    shutil.copytree(sources["encoder"], tmp_path / "model")
    modules = [{"type": f"sentence_transformers.models.{kind}"} for kind in ("Transformer", "Pooling", "Dense")]
    (tmp_path / "model" / "modules.json").write_text(json.dumps(modules))
    with pytest.raises(DistillationError, match=r"modules\.json lists a Dense, which Retrieval does not compute"):
        load(tmp_path / "model")


def test_sentence_encoder_whose_config_names_the_head_of_its_pretraining(sources, tmp_path: Path):
    shutil.copytree(sources["encoder"], tmp_path / "model")
    change(tmp_path / "model", architectures=["DistilBertForMaskedLM"])
    modules = [{"type": f"sentence_transformers.models.{kind}"} for kind in ("Transformer", "Pooling")]
    (tmp_path / "model" / "modules.json").write_text(json.dumps(modules))
    module = load(tmp_path / "model")
    assert isinstance(module.task, Retrieval)
    assert not module.task.normalize
    assert module.predict(TEXTS) == load(sources["encoder"], task=Retrieval(normalize=False)).predict(TEXTS)


def test_named_task_comes_before_the_architecture(sources):
    assert isinstance(load(sources["mlm"], task=Retrieval(pooling="cls")).task, Retrieval)
    kind = "multi_label_classification"
    assert (
        load(sources["classifier"], task=TextClassification(num_labels=2, problem_type=kind)).task.problem_type == kind
    )


# -- strangers ---------------------------------------------------------------------------------------------------------


class Loud(TextClassification):
    """A task of the user's own."""

    def decode(self, outputs: Any, labels: Any = None) -> list[Any]:
        return [answer["label"].upper() for answer in super().decode(outputs, labels)]


class Setting(Spec):
    """Not a task, and not of the package."""

    def __init__(self, x: int = 1) -> None:
        self.x = x


def test_own_task_is_built_only_where_its_class_is_passed(sources, tmp_path: Path):
    saved(tmp_path / "one", sources["encoder"], Loud(labels=["bad", "good"]))
    with pytest.raises(DistillationError, match=r"Loud', which is no class of this package.* load\(path, task=Loud\)"):
        load(tmp_path / "one")
    module = load(tmp_path / "one", task=Loud)
    assert module.task.labels == ("bad", "good")
    assert set(module.predict(TEXTS)) <= {"BAD", "GOOD"}
    assert isinstance(load(sources["classifier"], task=Loud).task, Loud)  # a folder of another making


@pytest.mark.parametrize(
    ("class_path", "message"),
    [
        ("stranger.Thing", "'stranger.Thing', which is no class of this package"),
        ("os.system", "no class of this package"),
        ("lightning_distilbert_evil.Task", "no class of this package"),
        ("lightning_distilbert.tasks.Nothing", "'lightning_distilbert.tasks.Nothing' leads to no task"),
        ("lightning_distilbert.errors.importlib", "leads to no task"),
        ("lightning_distilbert.student.Student", "'lightning_distilbert.student.Student' is no task"),
        (None, "'None', which is no class of this package"),
    ],
)
def test_class_path_of_a_folder_leads_to_our_tasks_alone(class_path, message: str, sources, tmp_path, monkeypatch):
    saved(tmp_path / "one", sources["encoder"])
    (tmp_path / "stranger.py").write_text("raise RuntimeError('it ran')")
    (tmp_path / "lightning_distilbert_evil.py").write_text("raise RuntimeError('it ran')")
    monkeypatch.syspath_prepend(tmp_path)
    change(tmp_path / "one", lightning_distilbert={"task": {"class_path": class_path, "init_args": {}}})
    with pytest.raises(DistillationError, match=message):
        load(tmp_path / "one")


@pytest.mark.parametrize("own_class", [False, True])
def test_class_path_in_an_option_leads_nowhere_else_either(own_class: bool, sources, tmp_path: Path):
    saved(tmp_path / "one", sources["encoder"])
    stored = {"class_path": f"{Setting.__module__}.Setting", "init_args": {}}
    task = {"class_path": "lightning_distilbert.tasks.TextClassification", "init_args": {"num_labels": stored}}
    change(tmp_path / "one", lightning_distilbert={"task": task})
    with pytest.raises(DistillationError, match="Setting' leads out of this package, and is not followed"):
        load(tmp_path / "one", task=TextClassification if own_class else None)


def with_code(folder: Path, source: Path) -> None:
    """Save a model whose config brings code along, which writes a file when it is imported."""
    shutil.copytree(source, folder)
    lines = ["import pathlib, transformers", f"pathlib.Path({str(folder / 'it_ran')!r}).touch()"]
    lines += ["class Config(transformers.BertConfig):", "    model_type = 'stranger'"]
    (folder / "code.py").write_text(
        "\n".join([*lines, "class Model(transformers.BertModel):", "    config_class = Config"])
    )
    auto_map = {"AutoConfig": "code.Config", "AutoModel": "code.Model"}
    change(folder, model_type="stranger", auto_map=auto_map, architectures=["StrangerModel"])


def test_code_of_a_folder_runs_only_if_it_is_trusted(sources, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("transformers.dynamic_module_utils.HF_MODULES_CACHE", str(tmp_path / "cache"))
    with_code(tmp_path / "model", sources["encoder"])
    with pytest.raises(DistillationError, match=r"brings code along .*pass trust_remote_code=True"):
        load(tmp_path / "model")
    assert not (tmp_path / "model" / "it_ran").exists()
    vectors = load(tmp_path / "model", trust_remote_code=True).predict(TEXTS)
    assert (tmp_path / "model" / "it_ran").exists()
    assert vectors == load(sources["encoder"]).predict(TEXTS)


class Payload:
    """What a pickle may do."""

    def __init__(self, file: Path) -> None:
        self.file = file

    def __reduce__(self) -> Any:
        return Path.touch, (self.file,)


def test_pickle_in_the_place_of_weights_does_not_run(sources, tmp_path: Path):
    folder = tmp_path / "model"
    saved(folder, sources["encoder"])
    (folder / "model.safetensors").unlink()
    for content in (pickle.dumps(Payload(tmp_path / "it_ran")), None):
        if content is None:
            torch.save({"weights": Payload(tmp_path / "it_ran")}, folder / "pytorch_model.bin")
        else:
            (folder / "pytorch_model.bin").write_bytes(content)
        with pytest.raises(DistillationError, match="could not be loaded"):
            load(folder)
        assert not (tmp_path / "it_ran").exists()
    with pytest.raises(pickle.UnpicklingError):  # and the payload is one: only a load of any object runs it
        torch.load(folder / "pytorch_model.bin", weights_only=True)
    torch.load(folder / "pytorch_model.bin", weights_only=False)
    assert (tmp_path / "it_ran").exists()


# -- mistakes ----------------------------------------------------------------------------------------------------------


def truncate(folder: Path) -> None:
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:5000])


def without_head(folder: Path) -> None:
    AutoModel.from_pretrained(folder).save_pretrained(folder / "new")
    shutil.copy(folder / "new" / "model.safetensors", folder / "model.safetensors")


def name_task(name: str, **options: Any) -> Any:
    stored = {"class_path": f"lightning_distilbert.tasks.{name}", "init_args": options}
    return lambda folder: change(folder, lightning_distilbert={"task": stored})


def stranger(**values: Any) -> Any:
    return lambda folder: change(folder, lightning_distilbert=None, **values)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (truncate, "could not be loaded"),
        (without_head, "weights of the head are missing"),
        (lambda folder: (folder / "model.safetensors").unlink(), "has a config.json and no weights"),
        (lambda folder: (folder / "config.json").unlink(), "has no config.json, so it holds no model"),
        (
            lambda folder: (folder / "model.safetensors").rename(folder / "manifest.json"),
            "is an artefact of lightning-distilbert export, .* deploy.load_artefact",
        ),
        (lambda folder: (folder / "config.json").write_text("{"), r"config\.json cannot be read: "),
        (lambda folder: (folder / "config.json").write_text("[]"), "holds no JSON object"),
        (lambda folder: [path.unlink() for path in folder.glob("[tv]o*")], "holds no tokenizer"),
        (lambda folder: change(folder, lightning_distilbert="x"), "'lightning_distilbert' holds no task"),
        (lambda folder: change(folder, lightning_distilbert={"task": "x"}), "'lightning_distilbert' holds no task"),
        (stranger(architectures=["BertForNextSentencePrediction"]),
         "its architecture 'BertForNextSentencePrediction' suggests none .*load"),
        (stranger(architectures=None), "its architecture None suggests none"),
        (stranger(architectures=["BertLMHeadModel"]), "suggests none"),
        (stranger(id2label={"first": "a"}), "cannot be built: .*first"),
        (name_task("TextClassification", num_labels="two"), "cannot be built: .*To choose one yourself"),
        (name_task("TextClassification", labels_=2), r"cannot be built: .*unexpected keyword argument 'labels_'"),
        (name_task("TextClassification", num_labels=3), "has 3 labels, and the head in .* 2 outputs"),
        (name_task("TextClassification", labels=["good", "bad"]), r"'bad'\], and the head in .*'bad', 'good'"),
        (name_task("Retrieval"), "names the task Retrieval, which needs an AutoModel, and the model is a Distil"),
        (name_task("Retrieval", trust_remote_code=True), "asks for trust_remote_code=True"),
    ],
)  # fmt: skip
def test_damaged_folder_is_one_clear_error(damage: Any, message: str, sources, tmp_path: Path):
    saved(tmp_path / "one", sources["encoder"])
    damage(tmp_path / "one")
    with pytest.raises(DistillationError, match=message):
        load(tmp_path / "one")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"path": "nowhere"}, r"no folder 'nowhere' \(working folder: .*snapshot_download"),
        ({"path": "owner/name"}, "no folder 'owner/name'"),
        ({"path": "file.txt"}, "'file.txt' is a file"),
        ({"path": "last.ckpt"}, "'last.ckpt' is a checkpoint: DistillationModule.load_from_checkpoint"),
        ({"device": "cuda:99"}, "device='cuda:99' cannot be used here"),
        ({"device": "warp"}, "device='warp' cannot be used here"),
        ({"task": "TextClassification"}, "task='TextClassification' is neither a task nor the class of one"),
        ({"task": Student}, "is neither a task nor the class of one"),
        ({"task": MaskedLM()}, "weights of the head are missing"),
        ({"task": MaskedLM}, "cannot be built: .*unexpected keyword argument 'labels'"),
    ],
)
def test_bad_arguments(arguments: dict[str, Any], message: str, sources, tmp_path: Path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    saved(tmp_path / "one", sources["encoder"])
    for name in ("file.txt", "last.ckpt"):
        Path(name).touch()
    with pytest.raises(DistillationError, match=message):
        load(**({"path": "one"} | arguments))


def test_config_of_a_loaded_student_says_nothing_of_a_task_any_more(sources, tmp_path: Path):
    saved(tmp_path / "one", sources["encoder"])
    assert hasattr(AutoConfig.from_pretrained(tmp_path / "one"), "lightning_distilbert")
    assert not hasattr(load(tmp_path / "one").student.config, "lightning_distilbert")
