"""Queries, keys, values and attention scores are the model's own, under eager and SDPA attention alike."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn.parallel import DataParallel
from transformers import AutoModel, AutoModelForMaskedLM, AutoModelForSequenceClassification
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

from lightning_distilbert.attention import AttentionScores, attention_layers, split_heads
from lightning_distilbert.errors import DistillationError
from lightning_distilbert.functional import attention_distance
from lightning_distilbert.taps import Taps

SIZES = {"hidden_size": 16, "num_hidden_layers": 3, "num_attention_heads": 4, "intermediate_size": 24}
COMMON = {"vocab_size": 40, "max_position_embeddings": 32, "initializer_range": 0.3, "pad_token_id": 0}
DEBERTA = {"relative_attention": True, "pos_att_type": ["c2p", "p2c"]}
KINDS = {
    "bert": SIZES,
    "roberta": SIZES,
    "xlm-roberta": SIZES,
    "camembert": SIZES,
    "electra": {**SIZES, "embedding_size": 8},
    "distilbert": {"dim": 16, "hidden_dim": 24, "n_layers": 3, "n_heads": 4},
    "mpnet": SIZES,
    "deberta-v2": {**SIZES, **DEBERTA, "share_att_key": False},
    "deberta-v2 sharing": {**SIZES, **DEBERTA, "share_att_key": True},
    "modernbert": {
        **SIZES, "global_attn_every_n_layers": 2, "local_attention": 4, "cls_token_id": 1, "sep_token_id": 2,
        "bos_token_id": 1, "eos_token_id": 2,
    },
}  # fmt: skip
SCORED = [  # MPNet and DeBERTa-v2 have eager attention only
    "bert",
    "roberta",
    "xlm-roberta",
    "camembert",
    "electra",
    "distilbert",
    "modernbert",
]
ALL = {"queries", "keys", "values", "attention_scores"}
LAYERS = {
    "distilbert": lambda i: f"transformer.layer.{i}.attention.{{}}_lin",
    "mpnet": lambda i: f"encoder.layer.{i}.attention.attn.{{}}",
}


def make(kind, attention="eager", auto=AutoModel, **changes):
    torch.manual_seed(0)
    config = CONFIG_MAPPING[kind.split()[0]](**COMMON | KINDS[kind] | changes)
    model = auto.from_config(config, attn_implementation=attention).eval()
    for name, parameter in model.named_parameters():  # biases start as zeros, and would hide a missing one
        if name.endswith("bias"):
            nn.init.normal_(parameter.data)
    return model


def inputs():
    ids = torch.randint(5, 40, (2, 9), generator=torch.Generator().manual_seed(0))
    mask = torch.ones_like(ids)
    mask[1, 7:] = 0  # a local window about the last position still holds a real token: without one, eager gives NaN
    return {"input_ids": ids, "attention_mask": mask}


def watch(model, requires=ALL, **given):
    with Taps(model, "", requires) as taps:
        model(**(given or inputs()))
    return taps.records[0].signals


# -- scores ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
@pytest.mark.parametrize("kind", SCORED)
def test_softmax_of_the_scores_is_the_models_attention(kind, attention):
    # in double precision, so that what eager and SDPA attention round apart does not add up over the layers
    with torch.no_grad():
        expected = make(kind).double()(**inputs(), output_attentions=True).attentions
        signals = watch(make(kind, attention).double())
    assert len(signals.attention_scores) == len(expected) == 3
    allowed = inputs()["attention_mask"].bool()[:, None, None, :]
    distance = (torch.arange(9)[:, None] - torch.arange(9)[None, :]).abs()
    for layer, wanted in enumerate(expected):
        scores = signals.attention_scores[layer]
        assert scores.shape == (2, 4, 9, 9)
        assert torch.isfinite(scores).all()  # no mask in it
        within = distance <= 2 if kind == "modernbert" and layer % 2 else torch.tensor(True)
        found = scores.masked_fill(~(allowed & within), float("-inf")).softmax(dim=-1)
        real = inputs()["attention_mask"].bool()[:, None, :, None].expand_as(wanted)
        torch.testing.assert_close(found[real], wanted[real], rtol=0, atol=1e-6)
    # it takes more than chance to pass this
    assert max(wanted.max().item() for wanted in expected) > 0.5


@pytest.mark.parametrize("kind", ["mpnet", "deberta-v2"])
def test_scores_with_terms_of_position_are_refused(kind):
    model = make(kind)
    match = rf"attention scores of {type(model).__name__} \(model type '{kind}'\) .* Use Relations, which needs queries"
    with pytest.raises(DistillationError, match=match):
        watch(model, {"attention_scores"})
    assert len(watch(model, {"queries", "keys"}).queries) == 3


def test_scores_of_an_unknown_model_are_refused():
    model = make("bert")
    model.config.model_type = "esm"  # its queries and keys are projected as BERT's are, and then rotated
    with pytest.raises(DistillationError, match=r"BertModel \(model type 'esm'\) are not known to be products"):
        attention_layers(model, scores=True)
    assert len(attention_layers(model)) == 3


def test_scores_are_a_sequence_computed_anew_at_each_call():
    queries, keys = ([torch.randn(2, 3, 5, 4) for _ in range(3)] for _ in range(2))
    scores = AttentionScores(queries, keys)
    expected = [torch.einsum("bhid,bhjd->bhij", q, k) / 2.0 for q, k in zip(queries, keys, strict=True)]
    assert len(scores) == 3
    for found, wanted in zip(scores, expected, strict=True):
        torch.testing.assert_close(found, wanted)
    torch.testing.assert_close(scores[-1], expected[2])
    torch.testing.assert_close(scores[1:], expected[1:])
    assert scores[0] is not scores[0]
    with pytest.raises(IndexError):
        scores[3]


def test_scores_do_not_overflow_in_half_precision():
    queries = [torch.full((1, 1, 1, 64), 40.0, dtype=torch.float16)]
    assert AttentionScores(queries, queries)[0].item() == 40.0 * 40.0 * 64 / 8
    assert torch.isinf((queries[0] @ queries[0].transpose(-1, -2)) / 8).item()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("autocast", [False, True])
@pytest.mark.parametrize("rotated", [False, True])
def test_scores_of_half_precision_are_computed_in_float32(dtype, autocast, rotated):
    """A student near its teacher differs from it by less than half precision rounds its scores."""
    generator = torch.Generator().manual_seed(0)
    queries, keys = (3 * torch.randn(2, 3, 9, 32, generator=generator).to(dtype) for _ in range(2))
    nearly = (queries.float() + 0.01 * torch.randn(queries.shape, generator=generator)).to(dtype).requires_grad_()
    turns = torch.rand(2, 1, 9, 32, generator=generator).to(dtype)
    rotations = [tuple(turns)] if rotated else None

    def loss(queries, keys, others, rotations):
        both = [AttentionScores([side], [keys], rotations)[0] for side in (queries, others)]
        return attention_distance(*both), both[0]

    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=autocast):
        found, scores = loss(nearly, keys, queries, rotations)
    (gradient,) = torch.autograd.grad(found, nearly)
    doubles = nearly.detach().double().requires_grad_()
    turned = [tuple(turns.double())] if rotated else None
    expected, _ = loss(doubles, keys.double(), queries.double(), turned)
    (wanted,) = torch.autograd.grad(expected, doubles)
    assert scores.dtype == torch.float32
    torch.testing.assert_close(found.double(), expected.double(), rtol=1e-4, atol=0)
    torch.testing.assert_close(gradient.double(), wanted, rtol=2**-7, atol=1e-3 * wanted.abs().max().item())


def test_scores_of_padding_can_be_zeros():
    queries, keys = torch.randn(2, 1, 2, 3, 4).unbind()
    mask = torch.tensor([[1, 1, 0]]).bool()
    plain, turn = AttentionScores([queries], [keys]), (torch.ones(1, 3, 4), torch.ones(1, 3, 4))
    found = plain.at_tokens(mask)[0]
    torch.testing.assert_close(found[..., :2, :2], plain[0][..., :2, :2])
    assert not found[..., 2].any()
    assert not found[..., 2, :].any()
    assert torch.equal(plain.at_tokens(None)[0], plain[0])
    turned = AttentionScores([queries], [keys], [turn])
    torch.testing.assert_close(turned.at_tokens(mask)[0][..., :2, :2], turned[0][..., :2, :2])


# -- projections -------------------------------------------------------------------------------------------------------


def projected_by_hand(kind, model, hidden):
    """Each layer's projections, computed by their weights from the hidden states that transformers returns."""
    found = {"queries": [], "keys": [], "values": []}
    for index, states in enumerate(hidden[:-1]):
        if kind == "modernbert":
            attn = model.layers[index]
            parts = attn.attn.Wqkv(attn.attn_norm(states)).chunk(3, dim=-1)
        elif kind in ("distilbert", "mpnet"):
            path = LAYERS[kind](index)
            parts = [model.get_submodule(path.format(name))(states) for name in "qkv"]
        else:
            names = ["query", "key", "value"]
            names = [f"{name}_proj" for name in names] if kind.startswith("deberta") else names
            parts = [getattr(model.encoder.layer[index].attention.self, name)(states) for name in names]
        for name, part in zip(found, parts, strict=True):
            found[name].append(torch.stack(part.split(4, dim=-1), dim=1))  # four heads of width four
    return found


@pytest.mark.parametrize(
    ("kind", "attention"), [*((kind, "eager") for kind in KINDS), *((kind, "sdpa") for kind in SCORED)]
)
def test_queries_keys_and_values_are_those_of_each_head(kind, attention):
    model = make(kind, attention)
    signals = watch(model, {"queries", "keys", "values"})
    hidden = make(kind)(**inputs(), output_hidden_states=True).hidden_states
    real = inputs()["attention_mask"].bool()
    for name, expected in projected_by_hand(kind, model, hidden).items():
        found = getattr(signals, name)
        assert isinstance(found, tuple)
        assert [part.shape for part in found] == [(2, 4, 9, 4)] * 3
        for part, wanted in zip(found, expected, strict=True):
            # beside padding eager and SDPA attention may differ
            rows = real[:, None, :].expand(part.shape[:-1])
            torch.testing.assert_close(part[rows], wanted[rows], rtol=0, atol=2e-5)


@pytest.mark.parametrize("name", sorted(ALL))
@pytest.mark.parametrize("kind", ["bert", "modernbert"])
def test_only_what_is_required_is_kept(kind, name):
    signals = watch(make(kind), {name})
    assert {other for other in ALL if getattr(signals, other) is not None} == {name}
    assert signals.hidden_states is None
    assert signals.logits is None


@pytest.mark.parametrize("kind", ["bert", "distilbert", "modernbert", "mpnet", "deberta-v2"])
def test_gradients_flow_into_the_projections(kind):
    model = make(kind)
    signals = watch(model, {"queries", "values"})
    signals.values[-1].square().sum().backward()
    reached = {name for name, parameter in model.named_parameters() if parameter.grad is not None}
    assert any("embed" in name for name in reached)
    last = {"modernbert": "layers.2.attn.Wqkv.weight", "distilbert": "transformer.layer.2.attention.v_lin.weight"}
    last |= {"mpnet": "encoder.layer.2.attention.attn.v.weight"}
    default = "encoder.layer.2.attention.self.value"
    assert last.get(kind, f"{default}_proj.weight" if kind == "deberta-v2" else f"{default}.weight") in reached
    if kind == "bert":
        assert f"{default.replace('value', 'query')}.weight" not in reached


def test_gradients_flow_through_the_scores_as_through_the_models_own():
    gradients = []
    for attention in ("eager", "sdpa"):
        model = make("bert", attention)
        watch(model).attention_scores[1].square().sum().backward()
        gradients.append({name: p.grad for name, p in model.named_parameters() if p.grad is not None})
    assert gradients[0].keys() == gradients[1].keys()
    assert "encoder.layer.1.attention.self.key.weight" in gradients[0]
    for name, gradient in gradients[0].items():
        torch.testing.assert_close(gradients[1][name], gradient, rtol=1e-4, atol=1e-4)


def test_wrapped_models_and_models_with_heads_give_the_same():
    expected = watch(make("bert"), {"keys"}).keys
    for auto in (AutoModelForSequenceClassification, AutoModelForMaskedLM):
        model = make("bert", auto=auto)
        model.bert.load_state_dict(make("bert").state_dict(), strict=False)
        for found in (watch(model, {"keys"}), watch(DataParallel(model), {"keys"})):
            torch.testing.assert_close(found.keys, expected)
    assert len(attention_layers(torch.compile(make("bert"), backend="eager"))) == 3
    # a container is searched for the one encoder in it
    root = nn.ModuleDict({"encoder": make("mpnet")})
    assert [layer.num_heads for layer in attention_layers(root)] == [4, 4, 4]
    with Taps(root, "encoder", {"queries"}) as taps:
        root["encoder"](**inputs())
    assert len(taps.records[0].signals.queries) == 3


# -- modules of other kinds --------------------------------------------------------------------------------------------


class Own(nn.Module):
    """Blocks whose attention is laid out as DistilBERT's."""

    def __init__(self, **changes):
        super().__init__()
        self.layer = nn.ModuleList([self.block(**changes) for _ in range(2)])

    def block(self, heads=2, names=("q_lin", "k_lin", "v_lin")):
        block = nn.Module()
        block.attention = nn.Module()
        for name in names:
            setattr(block.attention, name, nn.Linear(6, 6))
        if heads:
            block.attention.num_attention_heads = heads
        return block

    def forward(self, hidden):
        for block in self.layer:
            hidden = block.attention.q_lin(hidden) + block.attention.k_lin(hidden) + block.attention.v_lin(hidden)
        return hidden


def test_foreign_modules_with_known_projections_are_read():
    model, hidden = Own(heads=3), torch.randn(2, 5, 6)
    signals = watch(model, {"queries"}, hidden=hidden)
    first = model.layer[0].attention.q_lin(hidden)
    torch.testing.assert_close(signals.queries[0], torch.stack(first.split(2, dim=-1), dim=1))
    with pytest.raises(DistillationError, match=r"scores of Own \(model type None\)"):
        attention_layers(model, scores=True)


def test_what_a_foreign_module_lacks_is_named():
    with pytest.raises(DistillationError, match=r"blocks of Own \(Module\).*hold \['attention.query', 'attention.x'\]"):
        attention_layers(Own(names=("query", "x")))
    with pytest.raises(DistillationError, match="number of attention heads of Own is not known"):
        attention_layers(Own(heads=None))
    encoder = nn.TransformerEncoder(nn.TransformerEncoderLayer(4, 1), 2, enable_nested_tensor=False)
    with pytest.raises(DistillationError, match=r"TransformerEncoder \(TransformerEncoderLayer\).*attention\.\{q_lin"):
        attention_layers(encoder)


def test_a_forward_past_the_projections_is_reported():
    model = Own()
    model.forward = lambda hidden: hidden
    with pytest.raises(DistillationError, match="projections of the keys and queries did not run"):
        watch(model, {"queries", "keys"}, hidden=torch.zeros(1, 2, 6))


@pytest.mark.parametrize("shape", [(7, 12), (1, 7, 10)])
def test_projections_of_another_shape_are_refused(shape):
    with pytest.raises(DistillationError, match=r"gave the shape .* for 4 heads"):
        split_heads(torch.zeros(shape), num_heads=4)
