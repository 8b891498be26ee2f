"""Taps see what ``output_hidden_states=True`` shows, once per forward, and leave no hook behind."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn
from transformers import (
    AutoModel,
    AutoModelForMaskedLM,
    AutoModelForQuestionAnswering,
    AutoModelForSequenceClassification,
    BertConfig,
    BertModel,
)
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

from lightning_distilbert import taps as taps_module
from lightning_distilbert.architectures import logits_at
from lightning_distilbert.errors import DistillationError
from lightning_distilbert.functional import pool
from lightning_distilbert.outputs import find_embedding, find_logits
from lightning_distilbert.taps import (
    Taps,
    completed,
    find_student,
    named_arguments,
    position_mask,
    resolve_paths,
)

COMMON = {
    "vocab_size": 40,
    "hidden_size": 16,
    "num_hidden_layers": 3,
    "num_attention_heads": 2,
    "intermediate_size": 24,
    "max_position_embeddings": 32,
    "initializer_range": 0.1,
    "pad_token_id": 0,
    "num_labels": 3,
}
KINDS = {
    "bert": {},
    "roberta": {},
    "electra": {"embedding_size": 8},
    "mpnet": {},
    "deberta-v2": {"relative_attention": True, "pos_att_type": ["c2p", "p2c"]},
    "modernbert": {"global_attn_every_n_layers": 2, "local_attention": 4, "cls_token_id": 1, "sep_token_id": 2},
    "distilbert": {"dim": 16, "hidden_dim": 24, "n_layers": 3, "n_heads": 2},
}
EVERYTHING = {"logits", "hidden_states", "embedding"}


def make(kind, auto=AutoModelForSequenceClassification, **changes):
    torch.manual_seed(0)
    values = KINDS[kind] | {
        name: COMMON[name] for name in ("vocab_size", "max_position_embeddings", "initializer_range")
    }
    values |= {"pad_token_id": 0, "num_labels": 3} | ({} if kind == "distilbert" else COMMON)
    return auto.from_config(CONFIG_MAPPING[kind](**values | KINDS[kind] | changes)).eval()


def make_inputs(seed=0, rows=2, length=6):
    ids = torch.randint(5, 40, (rows, length), generator=torch.Generator().manual_seed(seed))
    mask = torch.ones_like(ids)
    mask[0, 4:] = 0
    return {"input_ids": ids, "attention_mask": mask}


def tiny_bert(**changes):
    torch.manual_seed(0)
    return BertModel(BertConfig(**COMMON | changes), add_pooling_layer=False).eval()


# -- what is captured --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("headless", [False, True])
@pytest.mark.parametrize("kind", list(KINDS))
def test_signals_equal_what_transformers_returns(kind, headless):
    model, inputs = make(kind, AutoModel if headless else AutoModelForSequenceClassification), make_inputs()
    requires = EVERYTHING - ({"logits"} if headless else set())
    with Taps(model, "", requires) as taps:
        model(**inputs)
    expected = model(**inputs, output_hidden_states=True)
    (record,) = taps.records
    signals = record.signals
    assert len(signals.hidden_states) == len(expected.hidden_states) == 4
    for found, wanted in zip(signals.hidden_states, expected.hidden_states, strict=True):
        torch.testing.assert_close(found, wanted)
    torch.testing.assert_close(signals.embedding, pool(expected.hidden_states[-1], inputs["attention_mask"]))
    assert torch.equal(signals.mask, inputs["attention_mask"].bool())
    if headless:
        assert signals.logits is None
    else:
        torch.testing.assert_close(signals.logits, expected.logits)


def test_only_what_is_required_is_captured():
    model = make("bert")
    for name in EVERYTHING:
        with Taps(model, "", {name}) as taps:
            model(**make_inputs())
        signals = taps.records[0].signals
        assert {other for other in EVERYTHING if getattr(signals, other) is not None} == {name}


def test_the_gradient_flows_through_every_captured_tensor():
    model = make("distilbert")
    with Taps(model, "", EVERYTHING) as taps:
        model(**make_inputs())
    signals = taps.records[0].signals
    for tensor in (signals.logits, signals.embedding, *signals.hidden_states):
        model.zero_grad()
        tensor.square().sum().backward(retain_graph=True)
        assert model.distilbert.embeddings.word_embeddings.weight.grad.abs().sum() > 0


def test_pooling_is_an_option():
    model, inputs = tiny_bert(), make_inputs()
    embeddings = []
    for pooling in ("mean", "cls"):
        with Taps(model, "", {"embedding"}, pooling) as taps:
            hidden = model(**inputs).last_hidden_state
        embeddings.append(taps.records[0].signals.embedding)
    torch.testing.assert_close(embeddings[0], pool(hidden, inputs["attention_mask"]))
    torch.testing.assert_close(embeddings[1], hidden[:, 0])


def test_a_plain_torch_encoder_gives_hidden_states():
    torch.manual_seed(0)
    encoder = nn.TransformerEncoder(
        nn.TransformerEncoderLayer(8, 2, 16, batch_first=True, norm_first=True),
        2,
        nn.LayerNorm(8),
        enable_nested_tensor=False,
    ).eval()
    with Taps(nn.ModuleDict({"encoder": encoder}), "encoder", {"hidden_states"}) as taps:
        output = encoder(values := torch.randn(2, 3, 8))
    states = taps.records[0].signals.hidden_states
    assert len(states) == 3
    assert torch.equal(states[0], values)
    # the norm after the last layer belongs to the last hidden state
    assert torch.equal(states[2], output)
    assert taps.records[0].signals.mask is None


def test_a_block_may_be_given_its_input_by_any_name():
    class Encoder(nn.Module):
        def __init__(self):
            super().__init__()
            self.layers = nn.ModuleList(nn.TransformerEncoderLayer(8, 2, 16, batch_first=True) for _ in range(2))

        def forward(self, values):
            for layer in self.layers:
                values = layer(is_causal=False, src=values)
            return values

    encoder, values = Encoder().eval(), torch.randn(2, 3, 8)
    with Taps(encoder, "", {"hidden_states"}) as taps:
        output = encoder(values)
    states = taps.records[0].signals.hidden_states
    assert torch.equal(states[0], values)
    assert torch.equal(states[2], output)
    with pytest.raises(DistillationError, match=r"was called with \['is_causal'\] and no tensor among them"):
        taps_module._hidden_in(encoder.layers[0], {"is_causal": False})


def test_embeddings_come_from_a_module_that_pools_by_itself():
    class Pooled(nn.Module):
        def forward(self, values):
            return {"sentence_embedding": values.mean(dim=1)}

    model = Pooled()
    with Taps(model, "", {"embedding"}) as taps:
        model(values := torch.randn(2, 3, 4))
    assert torch.equal(taps.records[0].signals.embedding, values.mean(dim=1))


# -- positions ---------------------------------------------------------------------------------------------------------


def some_positions():
    return torch.tensor([[False, True, False, True, False, False], [True, False, False, False, False, True]])


@pytest.mark.parametrize("narrowed", [False, True])
def test_logits_are_recorded_at_the_positions(narrowed):
    model, inputs, positions = make("bert", AutoModelForMaskedLM), make_inputs(), some_positions()
    taps = Taps(model, "", {"logits", "hidden_states"}, positions=positions)
    with taps, logits_at(model, positions if narrowed else None):
        output = model(**inputs)
    signals = taps.records[0].signals
    assert output.logits.shape == ((4, 40) if narrowed else (2, 6, 40))
    assert signals.positions is positions
    torch.testing.assert_close(signals.logits, model(**inputs).logits[positions])
    assert signals.logits_mask() is None
    assert signals.hidden_states[0].shape == (2, 6, 16)
    assert torch.equal(signals.mask, inputs["attention_mask"].bool())


def test_logits_of_a_head_that_is_apart_are_recorded_at_the_positions():
    root, positions = nn.ModuleDict({"encoder": tiny_bert(), "head": nn.Linear(16, 3)}), some_positions()
    paths = {"hidden_states": "encoder", "logits": "head"}
    with Taps(root, paths, {"logits", "hidden_states"}, positions=positions) as taps:
        logits = root["head"](root["encoder"](**make_inputs()).last_hidden_state)
    assert torch.equal(taps.records[0].signals.logits, logits[positions])


def test_positions_of_another_batch_are_refused():
    model = make("bert", AutoModelForMaskedLM)
    with (
        pytest.raises(DistillationError, match=r"shape \(2, 6\), and the student ran on input_ids of shape \(2, 5\)"),
        Taps(model, "", {"logits"}, positions=some_positions()),
    ):
        model(**make_inputs(length=5))
    inputs = {"inputs_embeds": torch.zeros(2, 5, 16)}
    with (
        pytest.raises(DistillationError, match=r"shape \(2, 6\), and the logits \(2, 5, 40\)"),
        Taps(model, "", {"logits"}, positions=some_positions()),
    ):
        model(**inputs)


# -- records -----------------------------------------------------------------------------------------------------------


def test_one_record_per_forward_in_order_with_its_inputs():
    model = tiny_bert()
    inputs = [make_inputs(seed) for seed in range(3)]
    with Taps(model, "", {"embedding"}) as taps:
        for item in inputs:
            model(item["input_ids"], attention_mask=item["attention_mask"])  # positional and by name
    assert len(taps.records) == 3
    for record, item in zip(taps.records, inputs, strict=True):
        assert torch.equal(record.inputs["input_ids"], item["input_ids"])
        assert torch.equal(record.inputs["attention_mask"], item["attention_mask"])
        assert torch.equal(record.signals.embedding, pool(model(**item).last_hidden_state, item["attention_mask"]))


class Apart(nn.Module):
    def __init__(self):
        super().__init__()
        self.encoder, self.head = tiny_bert(), nn.Linear(16, 3)

    def vector(self, inputs):
        return self.encoder(**inputs).last_hidden_state[:, 0]


@pytest.mark.parametrize("together", [False, True])
def test_heads_that_are_apart_are_matched_with_their_forwards(together):
    model = Apart()
    first, second = make_inputs(1), make_inputs(2)
    with Taps(model, {"hidden_states": "encoder", "logits": "head"}, {"hidden_states", "logits"}) as taps:
        if together:
            vectors = [model.vector(first), model.vector(second)]
            expected = [model.head(vector) for vector in vectors]
        else:
            expected = [model.head(model.vector(first)), model.head(model.vector(second))]
    assert [torch.equal(r.signals.logits, e) for r, e in zip(taps.records, expected, strict=True)] == [True, True]
    assert not torch.equal(*expected)


def test_a_forward_whose_head_did_not_run_has_no_logits():
    model = Apart()
    with Taps(model, {"hidden_states": "encoder", "logits": "head"}, {"hidden_states", "logits"}) as taps:
        model.head(model.vector(make_inputs(1)))
        model.vector(make_inputs(2))
    assert [record.signals.logits is None for record in taps.records] == [False, True]


def test_a_head_alone_takes_its_inputs_from_the_batch():
    model, inputs = Apart(), make_inputs()
    with Taps(model, {"logits": "head"}, {"logits"}, batch=inputs) as taps:
        logits = model.head(model.vector(inputs))
    (record,) = taps.records
    assert record.signals.logits is logits
    assert record.inputs["input_ids"] is inputs["input_ids"]
    assert torch.equal(record.signals.mask, inputs["attention_mask"].bool())
    nested = {"text": inputs, "topic": torch.zeros(2)}
    for batch, found in ((nested, True), ({**nested, "other": inputs}, False)):  # of two texts it is either
        with Taps(model, {"logits": "head"}, {"logits"}, batch=batch) as taps:
            model.head(model.vector(inputs))
        assert ("input_ids" in taps.records[0].inputs) is found


def hooks_of(module):
    return sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in module.modules())


def test_hooks_exist_within_the_block_only_even_if_it_fails():
    model = make("bert")
    with Taps(model, "", EVERYTHING):
        assert hooks_of(model) > 0
    assert hooks_of(model) == 0
    with pytest.raises(KeyError), Taps(model, "", EVERYTHING):
        raise KeyError
    assert hooks_of(model) == 0


def test_a_signal_that_cannot_be_tapped_leaves_no_hook():
    model = make("mpnet")
    with (
        pytest.raises(DistillationError, match="add terms of position"),
        Taps(model, "", {"logits", "attention_scores"}),
    ):
        pass
    assert hooks_of(model) == 0


def test_a_forward_that_fails_leaves_no_record_and_no_trace_in_the_next():
    model = Apart()
    paths = {"hidden_states": "encoder", "logits": "head"}
    with Taps(model, paths, {"hidden_states", "logits"}) as taps:
        with pytest.raises(AttributeError):
            model.encoder(input_ids="text")
        assert taps.records == []
        logits = model.head(model.vector(make_inputs()))
    (record,) = taps.records
    assert record.signals.logits is logits


def test_a_block_entered_again_starts_anew():
    model = tiny_bert()
    taps = Taps(model, "", {"hidden_states"})
    for _ in range(2):
        with taps:
            model(**make_inputs())
        assert len(taps.records) == 1


def test_a_deep_copy_made_after_the_block_is_clean():
    model = tiny_bert()
    with Taps(model, "", {"hidden_states"}):
        model(**make_inputs())
    assert hooks_of(copy.deepcopy(model)) == 0


# -- paths -------------------------------------------------------------------------------------------------------------


def test_the_only_transformers_model_is_found():
    root = nn.ModuleDict({"metric": nn.Linear(1, 1), "net": nn.ModuleDict({"model": make("bert")})})
    assert find_student(root) == "net.model"
    assert find_student(make("bert")) == ""


def test_no_model_or_several_are_reported_with_what_there_is():
    with pytest.raises(DistillationError, match=r"0 transformers models.* are \['layer'\].* configure_model\(\)"):
        find_student(nn.ModuleDict({"layer": nn.Linear(1, 1)}))
    # a path that merely begins like another one is a model of its own
    with pytest.raises(DistillationError, match=r"at \['model', 'model2'\]"):
        find_student(nn.ModuleDict({"model": tiny_bert(), "model2": tiny_bert()}))


def test_paths_are_checked():
    root = nn.ModuleDict({"encoder": nn.Linear(1, 1)})
    assert resolve_paths(root, "encoder", frozenset({"logits", "embedding"})) == dict.fromkeys(
        ["logits", "embedding"], root["encoder"]
    )
    with pytest.raises(DistillationError, match=r"no module at the path 'model' .*\['encoder'\]"):
        resolve_paths(root, "model", frozenset({"logits"}))
    with pytest.raises(DistillationError, match=r"no path is given for \['logits'\]"):
        resolve_paths(root, {"hidden_states": "encoder"}, frozenset({"logits"}))
    apart = resolve_paths(root, {"hidden_states": "encoder"}, frozenset({"queries", "attention_scores"}))
    assert apart == dict.fromkeys(["hidden_states", "queries", "attention_scores"], root["encoder"])
    with pytest.raises(DistillationError, match=r"Unknown signals \['attention'\]"):
        Taps(root, "encoder", {"attention"})


# -- inputs and outputs ------------------------------------------------------------------------------------------------


def test_arguments_get_their_names():
    class Model(nn.Module):
        def forward(self, ids, mask=None, *rest, flag=False, **others):
            return ids

    assert named_arguments(Model(), (1, 2, 3), {"flag": True, "extra": 4}) == {
        "ids": 1,
        "mask": 2,
        "flag": True,
        "extra": 4,
    }
    batch = {"input_ids": 5}
    assert named_arguments(nn.Identity(), (batch,), {}) == {"input": batch, "input_ids": 5}


def test_inputs_are_completed_from_the_mapping_that_holds_the_same_tokens():
    ids, other = torch.tensor([[1, 2]]), torch.tensor([[3, 4]])
    types, mask = torch.tensor([[0, 1]]), torch.tensor([[1, 1]])
    sides = {"input_ids": ids, "token_type_ids": types, "attention_mask": mask}
    for batch in (sides, {"a": {"input_ids": other}, "b": sides}, [({"input_ids": other}, 1), (sides, 2)]):
        found = completed({"input_ids": ids.clone(), "attention_mask": None}, batch)
        assert found["token_type_ids"] is types
        assert found["attention_mask"] is mask
    own = torch.tensor([[1, 0]])
    assert completed({"input_ids": ids, "attention_mask": own}, sides)["attention_mask"] is own
    # other tokens than the batch holds: nothing in it belongs to them
    assert set(completed({"input_ids": other}, sides)) == {"input_ids"}
    assert set(completed({"inputs_embeds": other}, sides)) == {"inputs_embeds"}
    assert completed({"tokens": other}, {"labels": 1, "input_ids": ids})["input_ids"] is ids
    assert completed({"tokens": 1}, None) == {"tokens": 1}


def test_the_teachers_own_encoding_comes_along():
    ids, theirs = torch.tensor([[1, 2]]), torch.tensor([[7, 8, 9]])
    sides = {"input_ids": ids, "teacher_input_ids": theirs, "teacher_attention_mask": torch.ones_like(theirs)}
    found = completed({"input_ids": ids.clone()}, {"query": {"input_ids": ids + 1}, "document": sides})
    assert found["teacher_input_ids"] is theirs
    assert found["teacher_attention_mask"] is sides["teacher_attention_mask"]
    assert "teacher_token_type_ids" not in found
    assert "teacher_input_ids" not in completed({"input_ids": ids + 1}, sides)


def test_a_mask_of_another_shape_is_refused():
    assert position_mask({}) is None
    assert position_mask({"attention_mask": torch.tensor([[1, 0]])}).tolist() == [[True, False]]
    with pytest.raises(DistillationError, match=r"shape \(2, 1, 3, 3\)"):
        position_mask({"attention_mask": torch.zeros(2, 1, 3, 3)})


def test_logits_and_embeddings_are_found_in_what_models_return():
    logits = torch.zeros(2, 3)
    model = make("bert")
    assert find_logits(logits) is logits
    assert find_logits({"logits": logits}) is logits
    assert find_logits((torch.tensor(0.5), logits)) is logits  # the loss stands first
    assert find_logits(model(**make_inputs())).shape == (2, 3)
    assert find_embedding(logits) is logits
    for nothing in (torch.tensor(0.5), {"scores": logits}, (), None, model.bert(**make_inputs())):
        with pytest.raises(DistillationError, match="No logits in the output"):
            find_logits(nothing)
    for nothing in (torch.zeros(2, 3, 4), {"embedding": logits}, None):
        with pytest.raises(DistillationError, match="No sentence embedding in the output"):
            find_embedding(nothing)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("as_tuple", [False, True])
def test_a_head_that_points_into_the_text_gives_start_and_end_as_two_distributions(kind, as_tuple):
    model, inputs = make(kind, AutoModelForQuestionAnswering, num_labels=2), make_inputs()
    extra = {"return_dict": False} if as_tuple else {}
    where = torch.tensor([[True, False, False, True, True, False], [True, False, True, True, False, False]])
    with Taps(model, "", {"logits"}, batch={**inputs, "span_mask": where}) as taps:
        model(**inputs, **extra)
    signals = taps.records[0].signals
    output = model(**inputs)
    assert torch.equal(signals.logits, torch.cat([output.start_logits, output.end_logits]))
    assert torch.equal(signals.classes, torch.cat([where, where]))
    assert torch.equal(signals.logits_mask(), torch.ones(4, dtype=torch.bool))


def test_without_a_word_of_the_data_token_types_tell_where_an_answer_may_stand():
    model, inputs = make("bert", AutoModelForQuestionAnswering, num_labels=2), make_inputs()
    types = torch.tensor([[0, 0, 0, 1, 1, 1], [0, 0, 1, 1, 1, 1]])
    with Taps(model, "", {"logits"}, batch={**inputs, "token_type_ids": types}) as taps:
        model(**inputs)
    expected = (types == 1) & inputs["attention_mask"].bool()
    expected[:, 0] = True
    assert torch.equal(taps.records[0].signals.classes, expected.repeat(2, 1))
    with Taps(model, "", {"logits"}) as taps:
        model(inputs["input_ids"])
    assert taps.records[0].signals.classes.all()
    with (
        pytest.raises(DistillationError, match=r"span_mask has to be \(batch, sequence\)"),
        Taps(model, "", {"logits"}, batch={**inputs, "span_mask": expected[:, :4]}),
    ):
        model(**inputs)
