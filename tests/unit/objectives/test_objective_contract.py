"""What every objective promises: padding, empty batches, precision, copies, and plain configs."""

from __future__ import annotations

import copy
import dataclasses
import json

import jsonargparse
import pytest
import torch
import yaml

from lightning_distilbert.errors import DistillationError
from lightning_distilbert.functional import pool
from lightning_distilbert.objectives import (
    Attention,
    Embeddings,
    HiddenStates,
    MarginMSE,
    Objective,
    RankingKL,
    Relations,
    SentenceEmbedding,
    Similarity,
    SoftTargets,
)
from lightning_distilbert.objectives.ranking import CandidateScores
from lightning_distilbert.schedules import Linear
from lightning_distilbert.signals import SIGNAL_NAMES, ModelFacts, Signals
from lightning_distilbert.spec import from_config

STUDENT = ModelFacts("the student", num_layers=2, hidden_size=4, num_heads=2, num_labels=3, initialised_from=(0, 3))
TEACHER = ModelFacts("the teacher", num_layers=4, hidden_size=6, num_heads=2, num_labels=3)
MASK = torch.tensor([[1, 1, 0], [1, 1, 1], [0, 0, 0], [1, 0, 0], [1, 1, 1]]).bool()

# each with every option away from its default somewhere
CONFIGS = {
    "soft_targets": lambda: SoftTargets(),
    "soft_targets_tokens": lambda: SoftTargets(temperature=Linear(4.0, 1.0)),
    "soft_targets_sigmoid": lambda: SoftTargets(activation="sigmoid", weight=0.5),
    "soft_targets_identity": lambda: SoftTargets(activation="identity"),
    "soft_targets_reverse": lambda: SoftTargets(divergence="reverse", top_k=1),
    "soft_targets_js": lambda: SoftTargets(divergence="js", beta=0.3),
    "hidden_states": lambda: HiddenStates(),
    "hidden_states_uniform": lambda: HiddenStates(layers="uniform", metric="mse"),
    "hidden_states_initialised": lambda: HiddenStates(layers="initialised"),
    "hidden_states_pairs": lambda: HiddenStates(layers=[(0, 0), (1, 4)], projection="always", weight=Linear(1.0, 0.0)),
    "hidden_states_first": lambda: HiddenStates(layers="skip", metric="normalized_mse", tokens="first"),
    "hidden_states_embeddings": lambda: HiddenStates(layers="uniform", embeddings=True),
    "embeddings": lambda: Embeddings(),
    "embeddings_always": lambda: Embeddings(projection="always", weight=2.0),
    "attention": lambda: Attention(),
    "attention_kl": lambda: Attention(layers="initialised", metric="kl", weight=Linear(1.0, 0.0)),
    "attention_pairs": lambda: Attention(layers=[(1, 2), (2, 2)]),
    "relations": lambda: Relations(),
    "relations_values": lambda: Relations(heads=1, relations=["values"], teacher_layer=3, student_layer=1),
    "relations_weights": lambda: Relations(relations=["keys", "queries"], weights=[1.0, 0.5], weight=2.0),
    "sentence_embedding": lambda: SentenceEmbedding(),
    "sentence_embedding_mse": lambda: SentenceEmbedding(metric="mse", projection="always", weight=3.0),
    "similarity": lambda: Similarity(),
    "similarity_within": lambda: Similarity(temperature=Linear(0.1, 0.05), pairs="within", weight=2.0),
    "margin_mse": lambda: MarginMSE(),
    "margin_mse_dot": lambda: MarginMSE(candidates="batch", score="dot", scale=Linear(2.0, 1.0), weight=0.1),
    "ranking_kl": lambda: RankingKL(),
    "ranking_kl_dot": lambda: RankingKL(candidates="batch", score="dot", temperature=Linear(2.0, 1.0), weight=0.1),
}
objectives = pytest.mark.parametrize("kind", list(CONFIGS))


def make(kind, student=STUDENT, teacher=TEACHER):
    torch.manual_seed(0)
    objective = CONFIGS[kind]()
    objective.build(student, teacher)
    return objective


def random_signals(facts, tokens, seed):
    """Signals whose padding holds NaN; the leaf that everything is computed from comes back too."""
    generator = torch.Generator().manual_seed(seed)
    leaf = torch.randn(facts.num_layers + 1, *MASK.shape, facts.hidden_size, generator=generator)
    head = torch.randn(facts.hidden_size, facts.num_labels, generator=generator)
    leaf[:, ~MASK] = float("nan")
    leaf.requires_grad_()
    return signals_of(leaf, head, MASK, tokens), leaf, head


def signals_of(leaf, head, mask, tokens):
    embedding = pool(leaf[-1], mask)
    logits = (leaf[-1] if tokens else embedding) @ head
    # two heads in each layer; NaN stays in the padding, and in the scores on both of its axes
    heads = tuple(layer.unflatten(-1, (2, -1)).transpose(1, 2) for layer in leaf[1:])
    real = mask[:, None, :, None]
    clean = [layer.masked_fill(~real, 0.0) for layer in heads]
    scores = [(x @ x.mT).masked_fill(~(real & real.mT), float("nan")) for x in clean]
    return Signals(logits, tuple(leaf), embedding, mask, heads, tuple(2 * x for x in heads), heads[::-1], scores)


def cost(objective, student, teacher):
    """What an objective costs on one record, or on two if it ranks documents (their embeddings) for queries."""
    if not isinstance(objective, CandidateScores):
        return objective(student, teacher)
    students, teachers = (
        [Signals(mask=s.mask) if s.hidden_states is None else dataclasses.replace(s, embedding=queries(s)), s]
        for s in (student, teacher)
    )
    return objective.over_records(students, teachers)


def queries(signals):
    first = signals.hidden_states[0]
    return pool(first, signals.mask[:, : first.shape[1]]).to(first.dtype)


def map_tensors(function, signals):
    """The signals with a function applied to each of their tensors but the mask."""
    changed = {}
    for name in SIGNAL_NAMES:
        value = getattr(signals, name)
        changed[name] = function(value) if isinstance(value, torch.Tensor) else tuple(map(function, value))
    return dataclasses.replace(signals, **changed)


def padded(leaf, extra):
    tail = torch.full((leaf.shape[0], leaf.shape[1], extra, leaf.shape[3]), float("nan"))
    return torch.cat([leaf.detach(), tail], dim=2).requires_grad_()


@objectives
def test_appended_padding_changes_neither_loss_nor_gradient(kind):
    objective, tokens = make(kind), kind.endswith("tokens")
    results = []
    for extra in (0, 5):
        mask = torch.cat([MASK, torch.zeros(len(MASK), extra, dtype=torch.bool)], dim=1)
        (_, student, student_head), (_, teacher, teacher_head) = (
            random_signals(facts, tokens, seed) for facts, seed in ((STUDENT, 1), (TEACHER, 2))
        )
        student, teacher = padded(student, extra), padded(teacher, extra)
        objective.zero_grad()
        loss = cost(
            objective,
            signals_of(student, student_head, mask, tokens),
            signals_of(teacher.detach(), teacher_head, mask, tokens),
        )
        loss.backward()
        projections = [parameter.grad.clone() for parameter in objective.parameters()]
        results.append((loss.detach(), student.grad[:, :, :3], *projections))
        assert torch.isfinite(student.grad).all()
        assert student.grad[:, ~mask].abs().sum() == 0
    assert results[0][0] > 0
    assert results[0][1].abs().sum() > 0
    for first, second in zip(*results, strict=True):
        torch.testing.assert_close(first, second)


@objectives
def test_an_all_masked_batch_gives_zero_with_a_graph_to_every_parameter(kind):
    objective, tokens = make(kind), kind.endswith("tokens")
    (student, leaf, _), (teacher, _, _) = (random_signals(f, tokens, s) for f, s in ((STUDENT, 1), (TEACHER, 2)))
    student.mask = teacher.mask = torch.zeros_like(MASK)
    loss = cost(objective, student, teacher)
    loss.backward()
    assert loss.item() == 0.0
    assert loss.dtype == torch.float32
    # without a gradient, DDP waits for the parameter for ever
    assert all(parameter.grad is not None and parameter.grad.abs().sum() == 0 for parameter in objective.parameters())
    assert torch.equal(torch.nan_to_num(leaf.grad), torch.zeros_like(leaf))


@pytest.mark.parametrize(
    "objective",
    [
        SoftTargets(),
        SoftTargets(activation="sigmoid"),
        SoftTargets(activation="identity"),
        HiddenStates(),
        HiddenStates(layers="uniform", metric="mse"),
        HiddenStates(layers="initialised"),
        HiddenStates(layers=[(0, 0), (2, 2)], projection="never"),
        HiddenStates(layers="every", metric="normalized_mse", tokens="first"),
        Embeddings(),
        SoftTargets(divergence="reverse"),
        SoftTargets(divergence="js", top_k=1),
        Attention(),
        Attention(metric="kl"),
        Relations(),
        MarginMSE(),
        RankingKL(),
        SentenceEmbedding(),
        SentenceEmbedding(metric="mse", projection="never"),
        Similarity(),
    ],
)
@pytest.mark.parametrize("tokens", [False, True])
def test_a_student_that_equals_the_teacher_costs_nothing(objective, tokens):
    twin = ModelFacts("the twin", num_layers=2, hidden_size=4, num_heads=2, num_labels=3, initialised_from=(0, 1))
    objective.build(twin, twin)
    (student, leaf, _), (teacher, _, _) = (random_signals(twin, tokens, 1) for _ in range(2))
    loss = cost(objective, student, teacher)
    loss.backward()
    assert abs(loss.item()) < 1e-6
    assert leaf.grad.abs().max() < 1e-5


@objectives
@pytest.mark.parametrize("autocast", [False, True])
def test_half_precision_signals_give_a_float32_cost_near_the_full_one(kind, autocast):
    objective, tokens = make(kind), kind.endswith("tokens")
    signals = [random_signals(facts, tokens, seed)[0] for facts, seed in ((STUDENT, 1), (TEACHER, 2))]
    halves = [map_tensors(torch.Tensor.bfloat16, s) for s in signals]
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=autocast):
        half = cost(objective, *halves)
    assert half.dtype == torch.float32
    assert half.item() == pytest.approx(cost(objective, *signals).item(), rel=0.1)
    # the arithmetic itself is float32: what autocast leaves to change is nothing
    assert half.item() == cost(objective, *halves).item()


@objectives
def test_an_objective_reads_what_it_requires_and_nothing_else(kind):
    objective, tokens = make(kind), kind.endswith("tokens")
    signals = [random_signals(facts, tokens, seed)[0] for facts, seed in ((STUDENT, 1), (TEACHER, 2))]
    assert objective.requires <= set(SIGNAL_NAMES)
    others = set(SIGNAL_NAMES) - objective.requires
    if isinstance(objective, CandidateScores):
        others -= {"hidden_states"}  # the test makes the queries' embeddings of it
    expected = cost(objective, *signals).item()
    stripped = [dataclasses.replace(s, **dict.fromkeys(others)) for s in signals]
    assert cost(objective, *stripped).item() == expected


@objectives
def test_a_deep_copy_costs_the_same_and_shares_nothing(kind):
    objective, tokens = make(kind), kind.endswith("tokens")
    signals = [random_signals(facts, tokens, seed)[0] for facts, seed in ((STUDENT, 1), (TEACHER, 2))]
    twin = copy.deepcopy(objective)
    assert cost(twin, *signals).item() == cost(objective, *signals).item()
    assert twin.to_config() == objective.to_config()
    assert not {id(p) for p in twin.parameters()} & {id(p) for p in objective.parameters()}


@objectives
def test_a_config_is_plain_and_builds_the_same_objective(kind):
    objective, tokens = make(kind), kind.endswith("tokens")
    config = json.loads(json.dumps(objective.to_config()))
    assert config == objective.to_config()
    again = from_config(config)
    assert type(again) is type(objective)
    torch.manual_seed(0)
    again.build(STUDENT, TEACHER)
    signals = [random_signals(facts, tokens, seed)[0] for facts, seed in ((STUDENT, 1), (TEACHER, 2))]
    for progress in (0.0, 0.7):
        objective.progress = again.progress = progress
        assert cost(again, *signals).item() == cost(objective, *signals).item()
        assert again.current_weight() == objective.current_weight()
    assert again.to_config() == config


@objectives
def test_a_second_build_keeps_what_was_trained(kind):
    objective = make(kind)
    before = {name: (id(p), p.clone()) for name, p in objective.named_parameters()}
    objective.build(STUDENT, TEACHER)
    for name, parameter in objective.named_parameters():
        assert id(parameter) == before[name][0]
        torch.testing.assert_close(parameter, before[name][1])
    assert len(before) == len(list(objective.parameters()))


@objectives
def test_a_missing_signal_is_named(kind):
    objective, tokens = make(kind), kind.endswith("tokens")
    student, teacher = (random_signals(facts, tokens, seed)[0] for facts, seed in ((STUDENT, 1), (TEACHER, 2)))
    with pytest.raises(DistillationError, match="the student gave none"):
        cost(objective, Signals(mask=MASK), teacher)
    with pytest.raises(DistillationError, match="the teacher gave none"):
        cost(objective, student, Signals(mask=MASK))


@objectives
def test_a_recipe_file_can_set_every_option(kind, tmp_path):
    expected = CONFIGS[kind]().to_config()
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(yaml.safe_dump({"objectives": [expected]}))
    parser = jsonargparse.ArgumentParser(exit_on_error=False)
    parser.add_argument("--config", action="config")
    parser.add_argument("--objectives", type=list[Objective])
    parsed = parser.instantiate(parser.parse_args(["--config", str(recipe)]))
    (objective,) = parsed.objectives
    assert includes(objective.to_config(), expected)


def includes(found, expected):
    """Whether a config holds all of another one; the parser writes the defaults out too."""
    if isinstance(expected, dict):
        return all(name in found and includes(found[name], value) for name, value in expected.items())
    return found == expected


@objectives
def test_the_names_of_state_follow_the_projections(kind):
    projections = {"hidden_states": 1, "hidden_states_uniform": 2, "hidden_states_initialised": 2}
    projections |= {"hidden_states_pairs": 2, "sentence_embedding": 1, "sentence_embedding_mse": 1}
    projections |= {"hidden_states_first": 1, "hidden_states_embeddings": 3, "embeddings": 1, "embeddings_always": 1}
    state = make(kind).state_dict()
    parts = ("weight",) if kind.startswith("sentence_embedding") else ("weight", "bias")  # orthogonal ones have no bias
    expected = {f"projections.{i}.{part}" for i in range(projections.get(kind, 0)) for part in parts}
    assert set(state) == expected
