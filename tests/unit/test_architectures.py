from __future__ import annotations

import functools

import pytest
import torch
import transformers
from torch import nn
from transformers import (
    AutoModel,
    AutoModelForMaskedLM,
    AutoModelForSequenceClassification,
    AutoModelForTokenClassification,
)

from lightning_distilbert.architectures import (
    TENSOR_INPUTS,
    accepted_inputs,
    backbone,
    layers_of,
    logits_at,
    token_level_head,
    unwrap,
)
from lightning_distilbert.errors import DistillationError

SIZES = {"num_hidden_layers": 3, "num_attention_heads": 2, "hidden_size": 16, "intermediate_size": 32}
COMMON = {"vocab_size": 60, "max_position_embeddings": 40, **SIZES}
MODERN = {**COMMON, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2, "cls_token_id": 1, "sep_token_id": 2}
DISTIL = {"vocab_size": 60, "max_position_embeddings": 40, "dim": 16, "n_layers": 3, "n_heads": 2, "hidden_dim": 32}
DEBERTA = {**COMMON, "relative_attention": True, "pos_att_type": ["c2p", "p2c"], "position_biased_input": False}
CONFIGS = {
    "bert": transformers.BertConfig(**COMMON),
    "roberta": transformers.RobertaConfig(**COMMON),
    "electra": transformers.ElectraConfig(**COMMON, embedding_size=8),
    "mpnet": transformers.MPNetConfig(**COMMON),
    "deberta-v2": transformers.DebertaV2Config(**DEBERTA),
    "deberta-v2 with convolution": transformers.DebertaV2Config(**DEBERTA, conv_kernel_size=3),
    "modernbert": transformers.ModernBertConfig(**MODERN),
    "distilbert": transformers.DistilBertConfig(**DISTIL),
}
WITHOUT_TOKEN_TYPES = ("mpnet", "modernbert", "distilbert")


@pytest.mark.parametrize("name", CONFIGS)
@pytest.mark.parametrize("auto_class", [AutoModel, AutoModelForSequenceClassification])
@pytest.mark.filterwarnings("ignore::UserWarning", "ignore::DeprecationWarning", "ignore::FutureWarning")
def test_inputs_and_outputs_of_the_layers_are_the_hidden_states(name, auto_class):
    torch.manual_seed(0)
    model = auto_class.from_config(CONFIGS[name]).eval()
    assert type(backbone(model)) is type(AutoModel.from_config(CONFIGS[name]))
    layers = layers_of(model)
    inputs, outputs = [], []
    for layer in layers:
        layer.register_forward_pre_hook(lambda _, args: inputs.append(args[0]))
        layer.register_forward_hook(lambda *seen: outputs.append(seen[2][0] if isinstance(seen[2], tuple) else seen[2]))
    ids = torch.randint(3, 60, (2, 9))
    mask = torch.ones_like(ids)
    mask[1, 6:] = 0
    with torch.no_grad():
        states = model(input_ids=ids, attention_mask=mask, output_hidden_states=True).hidden_states
        last = backbone(model)(input_ids=ids, attention_mask=mask).last_hidden_state
    assert len(layers) == 3
    assert len(states) == 4
    for i, layer_input in enumerate(inputs[:3]):
        torch.testing.assert_close(layer_input, states[i], rtol=0, atol=0)
    torch.testing.assert_close(last, states[3], rtol=0, atol=1e-6)
    different = {i for i in range(3) if not torch.equal(outputs[i], states[i + 1])}
    assert different == {"deberta-v2 with convolution": {0}, "modernbert": {2}}.get(name, set())


@pytest.mark.parametrize("name", CONFIGS)
@pytest.mark.parametrize("auto_class", [AutoModel, AutoModelForSequenceClassification])
def test_accepted_inputs_are_those_that_forward_names(name, auto_class):
    wanted = {*TENSOR_INPUTS} - {"decoder_input_ids", *(["token_type_ids"] if name in WITHOUT_TOKEN_TYPES else [])}
    assert accepted_inputs(auto_class.from_config(CONFIGS[name])) == wanted


def test_wrapped_and_decorated_forwards_keep_their_names():
    model = AutoModel.from_config(CONFIGS["distilbert"])
    wanted = accepted_inputs(model)
    assert accepted_inputs(nn.DataParallel(model)) == wanted
    assert accepted_inputs(torch.compile(model, backend="eager")) == wanted
    forward = model.forward
    model.forward = functools.wraps(forward)(lambda *args, **kwargs: forward(*args, **kwargs))
    assert accepted_inputs(model) == wanted
    model.forward = lambda *args, **kwargs: forward(*args, **kwargs)
    assert accepted_inputs(model) == wanted


class Foreign(nn.Module):
    def __init__(self, *encoders):
        super().__init__()
        self.encoders = nn.ModuleDict({str(i): encoder for i, encoder in enumerate(encoders)})
        self.heads = nn.ModuleList([nn.Linear(4, 2), nn.Linear(4, 2)])

    def forward(self, **batch):
        return batch


class Named(Foreign):
    def forward(self, input_ids, mask=None, **kwargs):
        return input_ids


class Nothing(Foreign):
    def forward(self):
        return None


def test_foreign_forwards():
    assert accepted_inputs(Foreign()) == set(TENSOR_INPUTS)
    assert accepted_inputs(Named()) == {"input_ids"}
    assert accepted_inputs(Nothing()) == set()


def test_what_peft_wraps_takes_what_the_model_inside_takes():
    class PeftModel(nn.Module):
        """Names fewer arguments than it passes on."""

        def get_base_model(self):
            return AutoModel.from_config(CONFIGS["bert"])

        def forward(self, input_ids=None, attention_mask=None, **kwargs):
            return None

    assert "token_type_ids" in accepted_inputs(PeftModel())


def encoder() -> nn.TransformerEncoder:
    return nn.TransformerEncoder(nn.TransformerEncoderLayer(4, 1), 2, enable_nested_tensor=False)


def test_layers_of_foreign_modules():
    plain = encoder()
    assert layers_of(plain) is plain.layers
    assert layers_of(plain.layers) is plain.layers
    assert layers_of(Foreign(plain)) is plain.layers
    model = AutoModel.from_config(CONFIGS["bert"])
    assert layers_of(Foreign(model)) is model.encoder.layer
    assert layers_of(torch.compile(model, backend="eager")) is model.encoder.layer


def test_ambiguous_or_missing_layers_list_the_candidates():
    with pytest.raises(DistillationError, match=r"'encoders.0.layers' \(2 x Trans.*'encoders.1.layers'"):
        layers_of(Foreign(encoder(), encoder()))
    with pytest.raises(DistillationError, match=r"No list of transformer blocks.*lists are: heads"):
        layers_of(Foreign())
    with pytest.raises(DistillationError, match=r"lists are: none"):
        layers_of(nn.Linear(2, 2))


def test_backbone_of_a_foreign_module_is_itself():
    plain = encoder()
    assert backbone(plain) is plain
    assert backbone(nn.DataParallel(plain)) is plain
    assert unwrap(torch.compile(nn.DataParallel(plain), backend="eager")) is plain


# -- logits at some positions ------------------------------------------------------------------------------------------

VOCABULARY_HEADS = {**CONFIGS, "deberta-v2 not legacy": transformers.DebertaV2Config(**DEBERTA, legacy=False)}


def text():
    ids = torch.randint(3, 60, (2, 9), generator=torch.Generator().manual_seed(0))
    mask = torch.ones_like(ids)
    mask[1, 6:] = 0
    positions = torch.zeros(2, 9, dtype=torch.bool)
    positions[0, [1, 4]] = positions[1, [0, 5]] = True
    return {"input_ids": ids, "attention_mask": mask}, positions


def hooks_of(model):
    return sum(len(module._forward_pre_hooks) for module in model.modules())


@pytest.mark.parametrize("autocast", [False, True])
@pytest.mark.parametrize("name", VOCABULARY_HEADS)
@pytest.mark.filterwarnings("ignore::UserWarning", "ignore::DeprecationWarning", "ignore::FutureWarning")
def test_logits_at_positions_are_those_of_all_logits(name, autocast):
    torch.manual_seed(0)
    model = AutoModelForMaskedLM.from_config(VOCABULARY_HEADS[name]).eval()
    inputs, positions = text()
    inside = []
    hook = model.get_output_embeddings().register_forward_hook(lambda *seen: inside.append(seen[2].shape))
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        everywhere = model(**inputs).logits
        with logits_at(model, positions):
            there = model(**inputs).logits
        with logits_at(model, torch.zeros_like(positions)):
            nowhere = model(**inputs).logits
    hook.remove()
    assert everywhere.shape == (2, 9, 60)
    assert there.shape == (4, 60)
    torch.testing.assert_close(there, everywhere[positions], rtol=0, atol=1e-2 if autocast else 1e-5)
    if name != "deberta-v2 not legacy":  # which multiplies with the embeddings itself
        assert inside == [(2, 9, 60), (4, 60), (0, 60)]
    assert nowhere.shape == (0, 60)
    assert hooks_of(model) == 0
    # the graph is there for each parameter that a step with positions reaches
    reached = []
    for logits in (there, nowhere):
        model.zero_grad()
        logits.float().sum().backward()
        reached.append({key for key, value in model.named_parameters() if value.grad is not None})
        if logits is nowhere:
            assert all(value.grad.abs().sum() == 0 for value in model.parameters() if value.grad is not None)
    assert len(reached[0]) > 20
    assert reached[0] == reached[1]


def test_the_gradient_of_narrowed_logits_is_that_of_the_selected_ones():
    torch.manual_seed(0)
    model = AutoModelForMaskedLM.from_config(CONFIGS["bert"]).eval()
    inputs, positions = text()
    gradients = []
    for narrowed in (False, True):
        model.zero_grad()
        with logits_at(model, positions if narrowed else None):
            logits = model(**inputs).logits
        (logits if narrowed else logits[positions]).square().sum().backward()
        gradients.append(
            {name: value.grad.clone() for name, value in model.named_parameters() if value.grad is not None}
        )
    assert gradients[0].keys() == gradients[1].keys()
    for name, gradient in gradients[0].items():
        torch.testing.assert_close(gradients[1][name], gradient, rtol=1e-4, atol=1e-5)


def test_narrowing_may_be_nested_wrapped_and_repeated():
    model = AutoModelForTokenClassification.from_config(CONFIGS["roberta"]).eval()
    inputs, positions = text()
    expected = model(**inputs).logits[positions]
    for wrapped in (model, nn.DataParallel(model), torch.compile(model, backend="eager")):
        with logits_at(wrapped, positions), logits_at(model, positions):
            for _ in range(2):
                torch.testing.assert_close(model(**inputs).logits, expected)
    assert hooks_of(model) == 0


def test_models_without_a_head_of_their_own_are_left_as_they_are():
    inputs, positions = text()
    model = AutoModel.from_config(CONFIGS["bert"]).eval()
    with logits_at(model, positions), logits_at(encoder(), positions), logits_at(nn.Linear(2, 2), positions):
        assert hooks_of(model) == 0
        assert model(**inputs).last_hidden_state.shape == (2, 9, 16)


def test_positions_of_another_batch_are_refused_and_the_hooks_removed():
    model = AutoModelForMaskedLM.from_config(CONFIGS["distilbert"])
    with (
        pytest.raises(DistillationError, match=r"have the shape \(2, 8\), and the head Linear got .* \(2, 9, 16\)"),
        logits_at(model, torch.ones(2, 8, dtype=torch.bool)),
    ):
        model(**text()[0])
    assert hooks_of(model) == 0


def test_heads_that_answer_token_by_token_are_known():
    config = CONFIGS["bert"]
    classes = [AutoModelForMaskedLM, AutoModelForTokenClassification, AutoModelForSequenceClassification, AutoModel]
    assert [token_level_head(auto.from_config(config)) for auto in classes] == [True, True, False, False]
    assert token_level_head(nn.DataParallel(AutoModelForMaskedLM.from_config(config)))
