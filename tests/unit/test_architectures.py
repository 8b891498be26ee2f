from __future__ import annotations

import functools

import pytest
import torch
import transformers
from torch import nn
from transformers import AutoModel, AutoModelForSequenceClassification

from lightning_distilbert.architectures import TENSOR_INPUTS, accepted_inputs, backbone, layers_of, unwrap
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
    wanted = set(TENSOR_INPUTS) - ({"token_type_ids"} if name in WITHOUT_TOKEN_TYPES else set())
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
