"""The teacher: loaded whole or refused, frozen, in eval mode, and told what its architecture takes."""

from __future__ import annotations

import copy
import json
import pickle
import shutil

import pytest
import torch
from pytorch_lightning.plugins.precision import DoublePrecision, HalfPrecision, MixedPrecision, Precision
from torch import nn
from transformers import (
    AutoTokenizer,
    BertConfig,
    BertForMaskedLM,
    BertForSequenceClassification,
    BertModel,
    DistilBertConfig,
    DistilBertModel,
)

from lightning_distilbert import DistillationModule, Retrieval, sentence_folder
from lightning_distilbert.errors import DistillationError
from lightning_distilbert.functional import pool
from lightning_distilbert.sentence_folder import declared_pooling
from lightning_distilbert.teacher import Teacher, cast_linear, load_trained


@pytest.fixture
def folder(tiny_teacher_dir, tmp_path):
    """A copy of the tiny teacher's folder that a test may spoil."""
    return shutil.copytree(tiny_teacher_dir, tmp_path / "teacher")


def change_config(folder, **values):
    path = folder / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **values}))


def inputs():
    ids = torch.randint(5, 100, (2, 6), generator=torch.Generator().manual_seed(0))
    mask = torch.tensor([[1] * 6, [1] * 4 + [0] * 2])
    return {"input_ids": ids, "attention_mask": mask, "token_type_ids": torch.tensor([[0, 0, 0, 1, 1, 1]] * 2)}


# -- loading -----------------------------------------------------------------------------------------------------------


def test_a_folder_is_loaded_with_the_architecture_that_it_names(tiny_teacher_dir, tiny_bert_dir):
    teacher = Teacher(tiny_teacher_dir)
    assert isinstance(teacher.model, BertForSequenceClassification)
    assert teacher.model is teacher.model
    assert teacher.name == str(tiny_teacher_dir)
    assert type(Teacher(str(tiny_bert_dir)).model) is BertModel
    expected = BertForSequenceClassification.from_pretrained(tiny_teacher_dir).state_dict()
    assert all(torch.equal(value, expected[name]) for name, value in teacher.model.state_dict().items())


def test_a_folder_is_loaded_only_when_it_is_needed(tmp_path):
    teacher = Teacher(tmp_path / "missing")
    with pytest.raises(DistillationError, match=r"missing' does not exist"):
        _ = teacher.model


@pytest.mark.parametrize("name", ["./missing", "~/missing", "a/b/c"])
def test_what_cannot_be_a_hub_name_is_a_missing_folder(name):
    with pytest.raises(DistillationError, match="does not exist"):
        load_trained(name)


def test_a_hub_name_that_is_not_at_hand_is_reported():
    with pytest.raises(DistillationError, match=r"'nobody/nothing' could not be loaded .* on the hub"):
        load_trained("nobody/nothing")


def test_a_folder_without_weights_is_refused(folder):
    (folder / "model.safetensors").unlink()
    with pytest.raises(DistillationError, match=r"a config\.json and no weights"):
        load_trained(str(folder))


def test_a_folder_without_a_config_is_refused(tmp_path):
    with pytest.raises(DistillationError, match="so it holds no model"):
        load_trained(str(tmp_path))


def test_damaged_weights_are_refused(folder):
    (folder / "model.safetensors").write_bytes(b"half a download")
    with pytest.raises(DistillationError, match=r"could not be loaded .*deserializing header"):
        load_trained(str(folder))


def test_weights_of_another_shape_are_refused(folder):
    change_config(folder, intermediate_size=48)
    with pytest.raises(DistillationError, match=r"could not be loaded .*mismatched"):
        load_trained(str(folder))


def test_a_pretrained_model_without_trained_head_is_refused(tiny_bert_dir, tmp_path):
    folder = shutil.copytree(tiny_bert_dir, tmp_path / "pretrained")
    change_config(folder, architectures=["BertForSequenceClassification"])
    with pytest.raises(
        DistillationError, match=r"2 weights of the head are missing .* 'classifier\.bias': they would be random"
    ):
        load_trained(str(folder))


def test_a_sentence_encoder_needs_no_head_that_its_config_still_names(tiny_bert_dir, tmp_path):
    folder = shutil.copytree(tiny_bert_dir, tmp_path / "published")  # as all-mpnet-base-v2 is
    change_config(folder, architectures=["BertForMaskedLM"])
    with pytest.raises(DistillationError, match="weights of the head are missing"):
        load_trained(str(folder))
    kinds = ("Transformer", "Pooling", "Normalize")
    listed = [{"type": f"sentence_transformers.models.{kind}"} for kind in kinds]
    (folder / "modules.json").write_text(json.dumps(listed))
    assert type(load_trained(str(folder))) is BertModel
    assert Teacher(folder)(inputs(), {"embedding"}).embedding.shape == (2, 32)


@pytest.mark.parametrize("text", ["[{", '{"type": "Pooling"}', '[{"kind": "Pooling"}]'])
def test_a_damaged_list_of_modules_is_reported(folder, text):
    (folder / "modules.json").write_text(text)
    with pytest.raises(DistillationError, match=r"modules\.json is no list of modules"):
        load_trained(str(folder))


def test_an_encoder_without_pooler_is_whole(tiny_bert_dir, tmp_path):
    BertModel.from_pretrained(tiny_bert_dir, add_pooling_layer=False).save_pretrained(tmp_path)
    assert type(load_trained(str(tmp_path))) is BertModel


def test_an_encoder_with_a_missing_layer_is_not(folder):
    change_config(folder, num_hidden_layers=5)
    with pytest.raises(DistillationError, match=r"16 encoder weights are missing .* 'bert\.encoder\.layer\.4"):
        load_trained(str(folder))


def test_dtype_is_checked_and_applied(tiny_teacher_dir):
    assert next(Teacher(tiny_teacher_dir).model.parameters()).dtype == torch.float32
    assert next(Teacher(tiny_teacher_dir, dtype="bfloat16").model.parameters()).dtype == torch.bfloat16
    for wrong in ("bf16", "nn", "Tensor"):
        with pytest.raises(DistillationError, match=f"dtype='{wrong}' is no torch type"):
            Teacher(tiny_teacher_dir, dtype=wrong)


# -- pooling -----------------------------------------------------------------------------------------------------------


def declare(folder, **values):
    (folder / "1_Pooling").mkdir()
    (folder / "1_Pooling" / "config.json").write_text(json.dumps({"word_embedding_dimension": 32, **values}))
    return folder


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ({"pooling_mode_cls_token": True, "pooling_mode_mean_tokens": False}, "cls"),
        ({"pooling_mode_cls_token": False, "pooling_mode_mean_tokens": True}, "mean"),
        ({"pooling_mode": "cls"}, "cls"),
        ({"pooling_mode": "mean"}, "mean"),
    ],
)
def test_the_declared_pooling_is_used_unless_another_is_given(folder, values, expected):
    declare(folder, **values)
    teacher, other = Teacher(folder), {"mean": "cls", "cls": "mean"}[expected]
    assert teacher.pooling == expected
    assert Teacher(folder, pooling=other).pooling == other
    hidden = teacher.model.bert(**inputs()).last_hidden_state
    for asked in (teacher, Teacher(folder, pooling=other)):
        found = asked(inputs(), {"embedding"}).embedding
        torch.testing.assert_close(found, pool(hidden, inputs()["attention_mask"], asked.pooling))


def test_without_a_declaration_the_mean_is_taken(tiny_bert_dir):
    assert declared_pooling(tiny_bert_dir) is None
    assert declared_pooling(nn.Linear(1, 1)) is None
    assert Teacher(tiny_bert_dir).pooling == "mean"


def test_the_pooling_of_a_model_on_the_hub_is_read_too(folder, monkeypatch):
    declare(folder, pooling_mode="cls")
    monkeypatch.setattr(sentence_folder, "cached_file", lambda source, name: str(folder / name))
    (folder / "modules.json").write_text("[]")
    assert Teacher("owner/name").pooling == "cls"
    monkeypatch.undo()
    assert Teacher("owner/name").pooling == "mean"  # not at hand


@pytest.mark.parametrize("kinds", [["Transformer", "Pooling", "Dense"], ["Transformer", "WordWeights", "Pooling"]])
def test_vectors_that_more_than_pooling_makes_are_refused(folder, kinds):
    listed = [{"idx": i, "path": "", "type": f"sentence_transformers.models.{kind}"} for i, kind in enumerate(kinds)]
    (folder / "modules.json").write_text(json.dumps(listed))
    teacher = Teacher(declare(folder, pooling_mode="mean"))
    assert teacher(inputs(), {"hidden_states"}).embedding is None  # nothing is pooled
    with pytest.raises(DistillationError, match=f"with a {'Dense' if 'Dense' in kinds else 'WordWeights'}, which is"):
        teacher(inputs(), {"embedding"})
    assert Teacher(folder, pooling="mean")(inputs(), {"embedding"}).embedding is not None


@pytest.mark.parametrize(
    "values",
    [
        {"pooling_mode_max_tokens": True, "pooling_mode_mean_tokens": False},
        {"pooling_mode_cls_token": True, "pooling_mode_mean_tokens": True},  # both, concatenated
        {"pooling_mode": "lasttoken"},
    ],
)
def test_any_other_declared_pooling_is_refused(folder, values):
    with pytest.raises(DistillationError, match="neither mean nor cls"):
        declared_pooling(declare(folder, **values))


# -- calls -------------------------------------------------------------------------------------------------------------


def test_signals_equal_the_model_called_alone_and_have_no_graph(tiny_teacher_dir):
    teacher = Teacher(tiny_teacher_dir)
    signals = teacher(inputs(), {"logits", "hidden_states"})
    alone = BertForSequenceClassification.from_pretrained(tiny_teacher_dir)(**inputs(), output_hidden_states=True)
    torch.testing.assert_close(signals.logits, alone.logits)
    assert len(signals.hidden_states) == 5
    for found, expected in zip(signals.hidden_states, alone.hidden_states, strict=True):
        torch.testing.assert_close(found, expected)
        assert not found.requires_grad
    assert signals.embedding is None
    assert not signals.logits.is_inference()  # it meets the student's graph


def test_inputs_that_the_architecture_does_not_take_are_left_out():
    torch.manual_seed(0)
    model = DistilBertModel(DistilBertConfig(vocab_size=100, dim=16, hidden_dim=16, n_layers=1, n_heads=1))
    given = {**inputs(), "labels": torch.zeros(2), "return_dict": False}
    signals = Teacher(model)(given, {"embedding"})
    hidden = model(inputs()["input_ids"], inputs()["attention_mask"]).last_hidden_state
    torch.testing.assert_close(signals.embedding, pool(hidden, inputs()["attention_mask"]))


def test_a_mask_that_the_inputs_do_not_hold_is_taken_from_the_caller():
    mask = torch.tensor([[True, False]])
    teacher = Teacher(nn.Linear(3, 2))
    assert teacher({"input": torch.zeros(1, 3)}, {"logits"}).mask is None
    assert teacher({"input": torch.zeros(1, 3)}, {"logits"}, mask).mask is mask


def test_a_module_is_frozen_in_place_and_in_eval_at_every_call():
    seen = []

    class Model(nn.Linear):
        def forward(self, values):
            seen.append((self.training, torch.is_grad_enabled()))
            return super().forward(values)

    model = Model(3, 2).train()
    teacher = Teacher(model)
    assert teacher.name == "Model"
    for _ in range(2):
        assert not teacher({"values": torch.zeros(1, 3)}, {"logits"}).logits.requires_grad
        model.train()
    assert seen == [(False, False)] * 2
    assert not any(parameter.requires_grad for parameter in model.parameters())


def test_a_type_of_its_own_is_that_of_a_copy_of_a_module():
    model, cpu = masked_lm(), torch.device("cpu")
    teacher = Teacher(model, dtype="bfloat16")
    assert teacher.model.cls.predictions.bias.dtype == torch.bfloat16
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}
    assert not any(parameter.requires_grad for parameter in (*model.parameters(), *teacher.model.parameters()))
    with torch.no_grad():
        model.cls.predictions.bias.fill_(3.0)  # trained further between two fits
    teacher.prepare(cpu, Precision())
    assert teacher.model.cls.predictions.bias[0] == 3.0
    same = model.to(torch.bfloat16)
    assert Teacher(same, dtype="bfloat16").model is same  # nothing to cast


def test_of_a_distillation_module_the_student_teaches(tiny_teacher_dir):
    taught = DistillationModule(Retrieval(pooling="cls"), student=str(tiny_teacher_dir))
    teacher = Teacher(taught)
    assert teacher.source is taught.student
    assert (teacher.pooling, Teacher(taught, pooling="mean").pooling) == ("cls", "mean")
    found = teacher({"input_ids": torch.tensor([[2, 5, 3]])}, {"embedding"}).embedding
    assert torch.equal(found, taught.student(torch.tensor([[2, 5, 3]])).last_hidden_state[:, 0])


def test_a_module_whose_signals_come_from_several_places():
    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.body, self.head = nn.Linear(3, 4), nn.Linear(4, 2)

        def forward(self, values):
            return {"score": self.head(self.body(values))}

    model = Model()
    signals = Teacher(model, paths={"embedding": "body", "logits": "head"})
    signals = signals({"values": torch.ones(2, 3)}, {"embedding", "logits"})
    torch.testing.assert_close(signals.embedding, model.body(torch.ones(2, 3)))
    torch.testing.assert_close(signals.logits, model.head(model.body(torch.ones(2, 3))))


def test_the_head_does_not_run_where_no_logits_are_needed(tiny_teacher_dir):
    teacher, heads = Teacher(tiny_teacher_dir), []
    teacher.model.classifier.register_forward_hook(lambda *_: heads.append(1))
    alone = teacher(inputs(), {"hidden_states", "queries", "embedding"})
    assert heads == []
    both = teacher(inputs(), {"hidden_states", "queries", "embedding", "logits"})
    assert heads == [1]
    assert torch.equal(alone.hidden_states[-1], both.hidden_states[-1])
    assert torch.equal(alone.embedding, both.embedding)
    assert torch.equal(alone.queries[3], both.queries[3])
    assert alone.logits is None
    assert not alone.queries[0].requires_grad


def masked_lm(seed=0):
    torch.manual_seed(seed)
    sizes = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 24}
    return BertForMaskedLM(BertConfig(vocab_size=100, max_position_embeddings=16, initializer_range=0.2, **sizes))


def test_a_vocabulary_head_is_evaluated_at_the_positions_only():
    model = masked_lm().eval()
    positions = torch.tensor([[True, False, False, True, False, False], [False, True, False, False, False, False]])
    seen = []
    model.cls.predictions.decoder.register_forward_hook(lambda *call: seen.append(call[2].shape))
    signals = Teacher(model)(inputs(), {"logits"}, positions=positions)
    assert seen == [(3, 100)]
    assert signals.positions is positions
    torch.testing.assert_close(signals.logits, model(**inputs()).logits[positions])
    assert Teacher(model)(inputs(), {"logits"}).logits.shape == (2, 6, 100)


def test_its_own_encoding_is_read_instead_of_the_students():
    model = masked_lm().eval()
    theirs = torch.randint(5, 100, (2, 8), generator=torch.Generator().manual_seed(5))
    mask = torch.tensor([[1] * 8, [1] * 3 + [0] * 5])
    given = {**inputs(), "teacher_input_ids": theirs, "teacher_attention_mask": mask}
    signals = Teacher(model)(given, {"embedding"}, inputs()["attention_mask"].bool())
    # the student's token types are of other tokens
    hidden = model.bert(theirs, mask).last_hidden_state
    torch.testing.assert_close(signals.embedding, pool(hidden, mask))
    assert torch.equal(signals.mask, mask.bool())
    types = {"teacher_token_type_ids": torch.ones_like(theirs)}
    changed = Teacher(model)({**given, **types}, {"embedding"}).embedding
    torch.testing.assert_close(
        changed, pool(model.bert(theirs, mask, **{"token_type_ids": types.popitem()[1]})[0], mask)
    )
    assert not torch.allclose(changed, signals.embedding)
    # without a mask of its own all of its tokens count: the student's mask has another shape
    del given["teacher_attention_mask"]
    assert Teacher(model)(given, {"embedding"}, inputs()["attention_mask"].bool()).mask is None


# -- precision ---------------------------------------------------------------------------------------------------------


def test_a_float16_teacher_stays_out_of_mixed_precision(tiny_teacher_dir):
    teacher = Teacher(tiny_teacher_dir, dtype="float16")
    with torch.autocast("cpu", torch.bfloat16):
        assert teacher(inputs(), {"logits"}).logits.dtype == torch.float16


def test_cast_weights_change_no_output_under_autocast_and_untie_the_head():
    model, cast = masked_lm().eval().requires_grad_(False), masked_lm().eval().requires_grad_(False)
    cast_linear(cast, torch.bfloat16)
    words, decoder = cast.bert.embeddings.word_embeddings.weight, cast.cls.predictions.decoder
    assert words.dtype == torch.float32
    assert torch.equal(words, model.bert.embeddings.word_embeddings.weight)
    assert decoder.weight.dtype == decoder.bias.dtype == torch.bfloat16
    assert {part.weight.dtype for part in cast.modules() if isinstance(part, nn.LayerNorm)} == {torch.float32}
    assert not any(parameter.requires_grad for parameter in cast.parameters())
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(cast(**inputs()).logits, model(**inputs()).logits)


def test_a_fit_in_another_precision_starts_from_the_weights_as_they_were(tiny_teacher_dir):
    teacher, cpu = Teacher(tiny_teacher_dir), torch.device("cpu")
    weight = teacher.model.classifier.weight.clone()
    for plugin, dtype in (
        (HalfPrecision("bf16-true"), torch.bfloat16),
        (MixedPrecision("bf16-mixed", "cpu"), torch.bfloat16),
        (DoublePrecision(), torch.float64),
        (Precision(), torch.float32),
    ):
        teacher.prepare(cpu, plugin)
        assert teacher.model.classifier.weight.dtype == dtype
        assert teacher({"input_ids": torch.tensor([[2, 5, 3]])}, {"logits"}).logits.dtype == dtype
    assert torch.equal(teacher.model.classifier.weight, weight)
    prepared = teacher.model
    teacher.prepare(cpu, Precision())
    assert teacher.model is prepared


@pytest.mark.parametrize(
    ("plugin", "dtype"),
    [
        (HalfPrecision("bf16-true"), torch.bfloat16),
        (HalfPrecision("16-true"), torch.float16),
        (DoublePrecision(), torch.float64),
    ],
)
def test_a_module_keeps_its_own_weights_where_a_fit_casts_them(plugin, dtype):
    model, cpu = masked_lm(), torch.device("cpu")
    before = copy.deepcopy(model.state_dict())
    teacher = Teacher(model)
    teacher.prepare(cpu, plugin)
    cast = teacher.model
    assert {parameter.dtype for parameter in cast.parameters()} == {dtype}
    assert cast.cls.predictions.decoder.weight is cast.bert.embeddings.word_embeddings.weight  # tied as before
    assert not any(parameter.requires_grad for parameter in (*cast.parameters(), *model.parameters()))
    after = model.state_dict()
    assert all(after[name].dtype == value.dtype and torch.equal(after[name], value) for name, value in before.items())
    teacher.prepare(cpu, Precision())
    assert teacher.model is model
    model.bert.embeddings.word_embeddings.weight[0] = 7.0  # trained further between two fits
    teacher.prepare(cpu, plugin)
    assert teacher.model.bert.embeddings.word_embeddings.weight[0, 0] == 7.0


def test_a_module_is_not_copied_where_no_weight_changes_its_type():
    model, cpu = masked_lm(), torch.device("cpu")
    teacher = Teacher(model)
    for plugin in (Precision(), MixedPrecision("bf16-mixed", "cpu"), None):
        teacher.prepare(cpu, plugin)
        assert teacher.model is model
    teacher = Teacher(model.to(torch.bfloat16))
    teacher.prepare(cpu, HalfPrecision("bf16-true"))
    assert teacher.model is model


# -- its tokenizer -----------------------------------------------------------------------------------------------------


def test_a_folder_brings_its_tokenizer(tiny_teacher_dir):
    teacher = Teacher(tiny_teacher_dir)
    assert teacher.tokenizer.get_vocab() == AutoTokenizer.from_pretrained(tiny_teacher_dir).get_vocab()
    assert teacher.tokenizer is teacher.tokenizer
    assert len(pickle.dumps(teacher)) < 2000
    assert Teacher(nn.Linear(1, 1)).tokenizer is None


# -- copies ------------------------------------------------------------------------------------------------------------


def test_a_deep_copy_is_the_teacher_itself(tiny_teacher_dir):
    teacher = Teacher(tiny_teacher_dir)
    assert copy.deepcopy({"held": [teacher]})["held"][0] is teacher


def test_a_pickle_holds_no_loaded_weights_and_loads_them_again(tiny_teacher_dir):
    teacher = Teacher(tiny_teacher_dir, pooling="cls", dtype="bfloat16")
    weight = teacher.model.classifier.weight
    data = pickle.dumps(teacher)
    assert len(data) < 2000
    again = pickle.loads(data)
    assert torch.equal(again.model.classifier.weight, weight)
    assert not again.model.classifier.weight.requires_grad
    assert again.pooling == "cls"
    assert repr(again) == f"Teacher({str(tiny_teacher_dir)!r})"
