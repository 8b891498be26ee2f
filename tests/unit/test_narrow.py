from __future__ import annotations

import pytest
import torch
from transformers import (
    AlbertConfig,
    AutoModel,
    AutoModelForMaskedLM,
    AutoModelForSequenceClassification,
    AutoModelForTokenClassification,
)

from lightning_distilbert.architectures import layers_of
from lightning_distilbert.errors import DistillationError
from lightning_distilbert.narrow import Narrowing
from lightning_distilbert.student import build_student
from tests.encoders import batch_of, model_of, states

NARROW = {"hidden_size": 6, "num_attention_heads": 3, "intermediate_size": 12}
# four heads of width 4, so that heads and dimensions can both be cut
WIDE = {
    "bert": {"num_attention_heads": 4},
    "roberta": {"num_attention_heads": 4, "pad_token_id": 1},
    "electra": {"num_attention_heads": 4, "embedding_size": 16},
    "mpnet": {"num_attention_heads": 4},
    "deberta-v2": {"num_attention_heads": 4},
    "distilbert": {"n_heads": 4},
}
# queries, keys, values, output, up, down of a block
NAMES = {
    "mpnet": ["attention.attn.q", "attention.attn.k", "attention.attn.v", "attention.attn.o"],
    "deberta-v2": [f"attention.self.{kind}_proj" for kind in ("query", "key", "value")] + ["attention.output.dense"],
    "distilbert": [f"attention.{kind}_lin" for kind in ("q", "k", "v", "out")],
}
BERT_NAMES = [f"attention.self.{kind}" for kind in ("query", "key", "value")] + ["attention.output.dense"]
quiet = pytest.mark.filterwarnings("ignore::UserWarning", "ignore::DeprecationWarning", "ignore::FutureWarning")


def best(scores, number):
    return sorted(sorted(range(len(scores)), key=lambda i: (-float(scores[i]), i))[:number])


def norm(vector):
    return float(vector.double().square().sum().sqrt())


def best_dimensions(teacher, number=6):
    norms = [module.weight for module in teacher.modules() if isinstance(module, torch.nn.LayerNorm)]
    return best([sum(float(norm[d]) ** 2 for norm in norms if len(norm) == 16) for d in range(16)], number)


def expected_blocks(name, teacher, heads, width, neurons, shared):
    """For each block what is kept of queries and keys, of values and of neurons, by loops."""
    query, key, value, out = NAMES.get(name, BERT_NAMES)
    up, down = ("ffn.lin1", "ffn.lin2") if name == "distilbert" else ("intermediate.dense", "output.dense")
    old = 16 // teacher.config.num_attention_heads
    head_scores, found = [], []
    for block in layers_of(teacher):
        part = lambda layer, block=block: block.get_submodule(layer).weight.detach()  # noqa: E731
        queries, keys = [norm(row) for row in part(query)], [norm(row) for row in part(key)]
        if name == "deberta-v2":
            queries = [q + norm(row) for q, row in zip(queries, part("attention.self.pos_query_proj"), strict=True)]
            keys = [k + norm(row) for k, row in zip(keys, part("attention.self.pos_key_proj"), strict=True)]
        matched = [q * k for q, k in zip(queries, keys, strict=True)]
        carried = [norm(part(value)[d]) * norm(part(out)[:, d]) for d in range(16)]
        inner = [norm(part(up)[n]) * norm(part(down)[:, n]) for n in range(32)]
        head_scores.append([sum(carried[h * old : (h + 1) * old]) for h in range(16 // old)])
        found.append((matched, carried, inner))
    if shared:
        head_scores = [[sum(scores) for scores in zip(*head_scores, strict=True)]] * len(head_scores)
    kept = []
    for (matched, carried, inner), scores in zip(found, head_scores, strict=True):
        rows = []
        for kind in (matched, carried):
            rows.append([h * old + d for h in best(scores, heads) for d in best(kind[h * old : (h + 1) * old], width)])
        kept.append((*rows, best(inner, neurons), best(scores, heads)))
    return kept


@quiet
@pytest.mark.parametrize("name", WIDE)
def test_what_weighs_most_is_kept(name):
    teacher = model_of(name, **WIDE[name])
    student = build_student(teacher, layers=[0, 1, 2, 3], architecture="same", **NARROW)
    words = teacher.embeddings.word_embeddings.weight.detach()
    stream = best_dimensions(teacher)
    assert torch.equal(student.embeddings.word_embeddings.weight, words[:, stream])
    assert torch.equal(student.embeddings.LayerNorm.weight, teacher.embeddings.LayerNorm.weight[stream])
    query, key, value, out = NAMES.get(name, BERT_NAMES)
    up, down = ("ffn.lin1", "ffn.lin2") if name == "distilbert" else ("intermediate.dense", "output.dense")
    kept = expected_blocks(name, teacher, 3, 2, 12, shared=name == "mpnet")
    assert any(matched != carried for matched, carried, _, _ in kept)
    for mine, theirs, (matched, carried, neurons, _) in zip(layers_of(student), layers_of(teacher), kept, strict=True):
        for layer, rows in ((query, matched), (key, matched), (value, carried), (up, neurons)):
            small, large = mine.get_submodule(layer), theirs.get_submodule(layer)
            assert torch.equal(small.weight, large.weight[rows][:, stream])
            assert torch.equal(small.bias, large.bias[rows])
        for layer, columns in ((out, carried), (down, neurons)):
            small, large = mine.get_submodule(layer), theirs.get_submodule(layer)
            assert torch.equal(small.weight, large.weight[stream][:, columns])
            assert torch.equal(small.bias, large.bias[stream])
    if name == "mpnet":
        bias = teacher.encoder.relative_attention_bias.weight
        assert torch.equal(student.encoder.relative_attention_bias.weight, bias[:, kept[0][3]])
    if name == "deberta-v2":
        conv, rows = teacher.encoder.conv.conv.weight, torch.tensor(stream)
        assert torch.equal(student.encoder.conv.conv.weight, conv[rows][:, rows])
        assert torch.equal(student.encoder.rel_embeddings.weight, teacher.encoder.rel_embeddings.weight[:, stream])


@quiet
@pytest.mark.parametrize("name", WIDE)
def test_a_narrow_student_runs_and_loads_again(name, tmp_path):
    teacher = model_of(name, AutoModelForSequenceClassification, **WIDE[name])
    student = build_student(teacher, layers=2, auto_class="AutoModelForSequenceClassification", **NARROW)
    config = student.config
    inner = config.hidden_dim if config.model_type == "distilbert" else config.intermediate_size
    assert (config.hidden_size, config.num_attention_heads, inner, config.num_hidden_layers) == (6, 3, 12, 2)
    assert config.initialised_from == [0, 3]
    inputs = batch_of(pad=config.pad_token_id)
    assert states(student, inputs)[-1].shape == (15, 6)
    student.save_pretrained(tmp_path)
    again = AutoModelForSequenceClassification.from_pretrained(tmp_path).eval()
    with torch.no_grad():
        torch.testing.assert_close(again(**inputs).logits, student.eval()(**inputs).logits, rtol=0, atol=0)
    # the bias of its last layer is as long as there are labels
    biases = [model.classifier.state_dict().popitem()[1] for model in (student, teacher)]
    assert torch.equal(*biases)


@pytest.mark.parametrize("name", ["bert", "roberta", "electra"])
def test_a_narrow_distilbert_equals_the_narrow_teacher(name):
    teacher = model_of(name, **WIDE[name])
    one = build_student(teacher, [1, 2], "distilbert", **NARROW)
    other = build_student(teacher, [1, 2], "same", **NARROW)
    assert (one.config.model_type, other.config.model_type) == ("distilbert", name)
    inputs = batch_of(pad=teacher.config.pad_token_id)
    for mine, theirs in zip(states(one, inputs), states(other, inputs), strict=True):
        torch.testing.assert_close(mine, theirs, rtol=0, atol=1e-5)


@pytest.mark.parametrize("name", WIDE)
def test_neurons_that_do_nothing_can_go_without_a_trace(name):
    teacher = model_of(name, **WIDE[name])
    down = "ffn.lin2" if name == "distilbert" else "output.dense"
    for block in layers_of(teacher):
        block.get_submodule(down).weight.data[:, torch.randperm(32)[:20]] = 0
    student = build_student(teacher, [0, 1, 2, 3], "same", intermediate_size=12)
    inputs = batch_of(pad=teacher.config.pad_token_id)
    for mine, theirs in zip(states(student, inputs), states(teacher, inputs), strict=True):
        torch.testing.assert_close(mine, theirs, rtol=0, atol=1e-5)


def test_the_other_sizes_stay_as_they_are():
    teacher = model_of("bert", num_attention_heads=4)
    config = build_student(teacher, 2, hidden_size=8).config
    assert (config.dim, config.n_heads, config.hidden_dim) == (8, 4, 32)
    config = build_student(teacher, 2, hidden_size=8, num_attention_heads=2).config
    assert (config.dim, config.n_heads, config.hidden_dim) == (8, 2, 32)
    config = build_student(teacher, 2, intermediate_size=5).config
    assert (config.dim, config.n_heads, config.hidden_dim) == (16, 4, 5)


@pytest.mark.parametrize("name", ["electra", "deberta-v2"])
def test_embeddings_narrower_than_the_layers_stay_as_they_are(name):
    teacher = model_of(name, embedding_size=8, num_attention_heads=4)
    student = build_student(teacher, 4, **NARROW)
    words = teacher.embeddings.word_embeddings.weight.detach()
    assert torch.equal(student.embeddings.word_embeddings.weight, words)
    path = "embeddings_project" if name == "electra" else "embeddings.embed_proj"
    projection = teacher.get_submodule(path).weight.detach()
    assert torch.equal(student.get_submodule(path).weight, projection[best_dimensions(teacher)])
    assert states(student, batch_of())[-1].shape == (15, 6)


@pytest.mark.parametrize("auto_class", [AutoModelForMaskedLM, AutoModelForTokenClassification])
def test_heads_are_cut_too(auto_class):
    teacher = model_of("bert", auto_class, num_attention_heads=4)
    student = build_student(teacher, 4, auto_class=auto_class.__name__, **NARROW)
    kept = best_dimensions(teacher.bert)
    if auto_class is AutoModelForTokenClassification:
        assert torch.equal(student.classifier.weight, teacher.classifier.weight[:, kept])
        return
    transform = teacher.cls.predictions.transform
    assert torch.equal(student.vocab_transform.weight, transform.dense.weight[kept][:, kept])
    assert torch.equal(student.vocab_layer_norm.bias, transform.LayerNorm.bias[kept])
    assert torch.equal(student.vocab_projector.bias, teacher.cls.predictions.bias)
    assert student.vocab_projector.weight is student.distilbert.embeddings.word_embeddings.weight


def test_layers_that_go_have_no_say_in_what_is_kept():
    teacher = model_of("bert")
    kept = build_student(teacher, [1], hidden_size=8).embeddings.LayerNorm.weight.clone()
    for block in (teacher.encoder.layer[0], teacher.encoder.layer[3]):
        for norm in (block.attention.output.LayerNorm, block.output.LayerNorm):
            norm.weight.data[torch.randperm(16)[:8]] = 100.0
    assert torch.equal(build_student(teacher, [1], hidden_size=8).embeddings.LayerNorm.weight, kept)


def test_a_vocabulary_as_large_as_the_width_is_not_cut():
    teacher = model_of("bert", vocab_size=16, max_position_embeddings=16)
    student = build_student(teacher, 2, hidden_size=8)
    assert student.embeddings.word_embeddings.weight.shape == (16, 8)
    assert student.embeddings.position_embeddings.weight.shape == (16, 8)


def test_the_teacher_is_not_changed():
    teacher = model_of("bert", num_attention_heads=4)
    before, config = {name: value.clone() for name, value in teacher.state_dict().items()}, teacher.config.to_dict()
    build_student(teacher, 2, "same", **NARROW)
    assert all(torch.equal(value, before[name]) for name, value in teacher.state_dict().items())
    assert teacher.config.to_dict() == config


@pytest.mark.parametrize(
    ("sizes", "message"),
    [
        ({"hidden_size": 17}, "hidden_size=17 is out of range: the teacher's is 16"),
        ({"hidden_size": 0}, "hidden_size=0 is out of range"),
        ({"hidden_size": 8.0}, "hidden_size=8.0 is out of range"),
        ({"num_attention_heads": True}, "num_attention_heads=True is out of range"),
        ({"num_attention_heads": 8}, "num_attention_heads=8 is out of range: the teacher's is 4. Choose from 1 to 4"),
        ({"intermediate_size": 33}, "intermediate_size=33 is out of range"),
        ({"hidden_size": 10}, r"cannot be divided among 4 heads. Choose num_attention_heads from \[1, 2\]"),
        ({"num_attention_heads": 2}, "heads of width 8, and the teacher's have 4.* Choose at least 4 heads"),
        ({"hidden_size": 12, "num_attention_heads": 2}, "heads of width 6, .* Choose at least 3 heads"),
    ],
)
def test_sizes_that_cannot_be_cut_are_refused(sizes, message):
    with pytest.raises(DistillationError, match=message):
        build_student(model_of("bert", num_attention_heads=4), 2, **sizes)


@pytest.mark.parametrize("name", ["electra", "deberta-v2"])
def test_a_width_at_which_the_embeddings_lose_their_projection_is_refused(name):
    with pytest.raises(DistillationError, match=f"hidden_size=8 is the width of .* a '{name}' model of equal widths"):
        build_student(model_of(name, embedding_size=8), 2, hidden_size=8)


def test_an_unknown_architecture_is_refused():
    config = AlbertConfig(vocab_size=9, hidden_size=4, num_hidden_layers=1, num_attention_heads=1, embedding_size=4)
    with pytest.raises(DistillationError, match=r"'albert' student cannot be narrower .* bert, roberta, electra"):
        Narrowing(config, {}, hidden_size=2)


# -- ModernBERT: fused layers, and heads that stay whole ---------------------------------------------------------------


def modern(auto_class=AutoModel, **changes):
    return model_of("modernbert", auto_class, num_attention_heads=4, **changes)


def test_of_modernbert_whole_heads_are_kept_and_gates_with_what_they_gate():
    teacher = modern()
    student = build_student(teacher, [0, 1, 2, 3], hidden_size=8, intermediate_size=12)
    assert (student.config.num_attention_heads, student.config.intermediate_size) == (2, 12)
    stream = best_dimensions(teacher, 8)
    assert torch.equal(
        student.embeddings.tok_embeddings.weight, teacher.embeddings.tok_embeddings.weight.detach()[:, stream]
    )
    for mine, theirs in zip(layers_of(student), layers_of(teacher), strict=True):
        fused, out = theirs.attn.Wqkv.weight.detach(), theirs.attn.Wo.weight.detach()
        carried = [norm(fused[32 + d]) * norm(out[:, d]) for d in range(16)]
        heads = best([sum(carried[4 * head : 4 * head + 4]) for head in range(4)], 2)
        rows = [4 * head + d for head in heads for d in range(4)]
        assert torch.equal(
            mine.attn.Wqkv.weight, fused[[16 * part + row for part in range(3) for row in rows]][:, stream]
        )
        assert torch.equal(mine.attn.Wo.weight, out[stream][:, rows])
        up, down = theirs.mlp.Wi.weight.detach(), theirs.mlp.Wo.weight.detach()
        neurons = best([(norm(up[n]) + norm(up[32 + n])) * norm(down[:, n]) for n in range(32)], 12)
        assert torch.equal(mine.mlp.Wi.weight, up[[*neurons, *(32 + n for n in neurons)]][:, stream])
        assert torch.equal(mine.mlp.Wo.weight, down[stream][:, neurons])


def test_a_narrow_modernbert_runs_and_loads_again(tmp_path):
    teacher = modern(AutoModelForMaskedLM, attention_bias=True, mlp_bias=True)
    student = build_student(teacher, [0, 3], auto_class="AutoModelForMaskedLM", hidden_size=12, num_attention_heads=3)
    inputs = batch_of()
    student.save_pretrained(tmp_path)
    again = AutoModelForMaskedLM.from_pretrained(tmp_path).eval()
    with torch.no_grad():
        torch.testing.assert_close(again(**inputs).logits, student.eval()(**inputs).logits, rtol=0, atol=0)
    assert states(student, inputs)[-1].shape == (15, 12)


def test_neurons_of_a_modernbert_that_do_nothing_can_go_without_a_trace():
    teacher = modern()
    for block in layers_of(teacher):
        block.mlp.Wo.weight.data[:, torch.randperm(32)[:20]] = 0
    student = build_student(teacher, [0, 1, 2, 3], intermediate_size=12)
    inputs = batch_of()
    for mine, theirs in zip(states(student, inputs), states(teacher, inputs), strict=True):
        torch.testing.assert_close(mine, theirs, rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    ("sizes", "message"),
    [
        ({"hidden_size": 10}, "hidden_size=10 is no number of whole heads, .* Choose a multiple of 4"),
        ({"hidden_size": 8, "num_attention_heads": 4}, "makes heads of width 2, .* have to keep theirs, 4"),
        ({"hidden_size": 20}, "hidden_size=20 is out of range"),
        ({"hidden_size": 0}, "hidden_size=0 is out of range"),
    ],
)
def test_sizes_that_part_the_heads_of_a_modernbert_are_refused(sizes, message):
    with pytest.raises(DistillationError, match=message):
        build_student(modern(), [0, 1], **sizes)
