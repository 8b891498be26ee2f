from __future__ import annotations

import pytest
import torch
from transformers import (
    AutoModelForMaskedLM,
    AutoModelForQuestionAnswering,
    AutoModelForSequenceClassification,
    AutoModelForTokenClassification,
)

from lightning_distilbert.conversion import EPS_TOLERANCE
from lightning_distilbert.errors import DistillationError
from lightning_distilbert.student import build_student
from tests.encoders import Sliced, assert_sliced, batch_of, model_of, states

# ELECTRA with embeddings as wide as its layers
TEACHERS = {"bert": {}, "roberta": {"pad_token_id": 1}, "electra": {"embedding_size": 16}}


@pytest.mark.parametrize("chosen", [[0, 3], [2], [0, 1, 2, 3]])
@pytest.mark.parametrize("name", TEACHERS)
def test_hidden_states_equal_those_of_the_sliced_teacher(name, chosen):
    teacher = model_of(name, **TEACHERS[name])
    student = build_student(teacher, layers=chosen, architecture="distilbert")
    assert student.config.model_type == "distilbert"
    assert student.config.pad_token_id == teacher.config.pad_token_id
    assert_sliced(student, teacher, chosen, batch_of(pad=teacher.config.pad_token_id))


@pytest.mark.parametrize("pad", [0, 1, 5])
def test_positions_of_a_roberta_start_after_its_padding_id(pad):
    teacher = model_of("roberta", pad_token_id=pad)
    student = build_student(teacher, layers=2, architecture="distilbert")
    assert student.config.max_position_embeddings == 40 - pad - 1
    longest = batch_of(length=40 - pad - 1, pad=pad)
    longest["input_ids"][0].clamp_(min=pad + 1)
    longest["input_ids"][1, :6].clamp_(min=pad + 1)
    assert_sliced(student, teacher, [0, 3], longest)


def test_the_config_follows_the_teacher():
    teacher = model_of("bert", hidden_dropout_prob=0.3, attention_probs_dropout_prob=0.25, classifier_dropout=0.15)
    config = build_student(teacher, layers=2).config
    assert (config.dropout, config.attention_dropout, config.seq_classif_dropout) == (0.3, 0.25, 0.15)
    assert config.qa_dropout == 0.0  # as a reader of BERT's
    like_it = build_student(model_of("bert", hidden_dropout_prob=0.3), layers=2).config
    assert like_it.seq_classif_dropout == 0.3
    assert (config.n_layers, config.n_heads, config.dim, config.hidden_dim) == (2, 2, 16, 32)
    assert (config.max_position_embeddings, config.initializer_range, config.sinusoidal_pos_embds) == (40, 0.2, False)


@pytest.mark.parametrize(
    "auto_class", [AutoModelForMaskedLM, AutoModelForTokenClassification, AutoModelForQuestionAnswering]
)
@pytest.mark.parametrize("name", TEACHERS)
@torch.no_grad()
def test_a_head_that_computes_the_same_is_copied(name, auto_class):
    teacher = model_of(name, auto_class, **TEACHERS[name])
    student = build_student(teacher, [1, 3], "distilbert", auto_class=auto_class.__name__).eval()
    assert type(student).__name__.startswith("DistilBertFor")
    inputs = batch_of(pad=teacher.config.pad_token_id)
    mine = student(**inputs)
    with Sliced(teacher, [1, 3]):
        wanted = teacher(**inputs)
    real = inputs["attention_mask"].bool()
    for key in ("start_logits", "end_logits") if "start_logits" in mine else ("logits",):
        torch.testing.assert_close(mine[key][real], wanted[key][real], rtol=0, atol=1e-5)


@pytest.mark.parametrize("name", TEACHERS)
def test_a_head_for_text_classification_is_copied_layer_by_layer(name):
    teacher = model_of(name, AutoModelForSequenceClassification, **TEACHERS[name])
    student = build_student(teacher, 2, "distilbert", auto_class="AutoModelForSequenceClassification")
    first = teacher.bert.pooler.dense if name == "bert" else teacher.classifier.dense
    last = teacher.classifier if name == "bert" else teacher.classifier.out_proj
    for mine, theirs in ((student.pre_classifier, first), (student.classifier, last)):
        assert torch.equal(mine.weight, theirs.weight)
        assert torch.equal(mine.bias, theirs.bias)


def test_a_head_of_other_labels_or_another_task_starts_fresh():
    names = {"id2label": {0: "no", 1: "yes"}, "label2id": {"no": 0, "yes": 1}}
    teacher = model_of("bert", AutoModelForTokenClassification, **names)
    for overrides in ({"num_labels": 3}, {"id2label": {0: "yes", 1: "perhaps"}}):
        student = build_student(teacher, 2, auto_class="AutoModelForTokenClassification", **overrides)
        assert not torch.isin(student.classifier.bias, teacher.classifier.bias).any()
    student = build_student(teacher, 2, auto_class="AutoModelForSequenceClassification")
    assert not torch.isin(student.classifier.bias, teacher.classifier.bias).any()


def test_another_epsilon_passes_where_it_changes_little():
    teacher = model_of("roberta", layer_norm_eps=1e-5)
    student = build_student(teacher, layers=2, architecture="distilbert")
    assert student.training
    inputs = batch_of(pad=1)
    with Sliced(teacher, [0, 3]):
        wanted = states(teacher, inputs)
    pairs = zip(states(student, inputs), wanted, strict=True)
    share = max(float((mine - theirs).norm() / theirs.norm()) for mine, theirs in pairs)
    assert 1e-6 < share < EPS_TOLERANCE
    # the check leaves the student as DistilBERT is
    assert {module.eps for module in student.modules() if isinstance(module, torch.nn.LayerNorm)} == {1e-12}


@pytest.mark.parametrize("name", ["bert", "roberta"])
def test_another_epsilon_is_refused_where_embeddings_are_small(name):
    teacher = model_of(name, layer_norm_eps=1e-5, initializer_range=0.005)
    with pytest.raises(DistillationError, match=r"layer_norm_eps is 1e-05; DistilBERT's is 1e-12.*architecture='same'"):
        build_student(teacher, layers=2, architecture="distilbert")
    assert build_student(teacher, layers=2, architecture="same").config.layer_norm_eps == 1e-5


@pytest.mark.parametrize(
    ("name", "change", "value"),
    [
        ("bert", "position_embedding_type", "relative_key"),
        ("bert", "is_decoder", True),
        ("bert", "add_cross_attention", True),
        ("electra", "embedding_size", 8),
    ],
)
def test_what_distilbert_lacks_is_refused(name, change, value):
    changes = {change: value} | ({"is_decoder": True} if change == "add_cross_attention" else {})
    teacher = model_of(name, **changes)
    if change == "add_cross_attention":
        teacher.config.is_decoder = False
    with pytest.raises(DistillationError, match=f"teacher's {change} is .*architecture='same'"):
        build_student(teacher, layers=2, architecture="distilbert")
