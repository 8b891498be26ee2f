"""The engine: which terms, with which weights, at which progress, on which records."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from transformers import (
    BertConfig,
    BertForMaskedLM,
    BertForPreTraining,
    BertForQuestionAnswering,
    BertForSequenceClassification,
    BertForTokenClassification,
    BertModel,
    ElectraForPreTraining,
    MPNetConfig,
    MPNetModel,
)

from lightning_distilbert import doctor
from lightning_distilbert.engine import Distiller, facts_of, unique_names
from lightning_distilbert.errors import DistillationError
from lightning_distilbert.objectives import HiddenStates, Objective, SentenceEmbedding, Similarity, SoftTargets
from lightning_distilbert.schedules import Linear
from lightning_distilbert.teacher import Teacher


def bert(seed=0, width=16, layers=2, head=True, kind=None, vocabulary=40, **changes):
    torch.manual_seed(seed)
    config = BertConfig(
        vocab_size=vocabulary,
        hidden_size=width,
        num_hidden_layers=layers,
        num_attention_heads=2,
        intermediate_size=24,
        max_position_embeddings=16,
        initializer_range=0.2,
        num_labels=3,
        **changes,
    )
    return (kind or (BertForSequenceClassification if head else BertModel))(config).eval()


def inputs(seed=0, rows=3):
    ids = torch.randint(5, 40, (rows, 5), generator=torch.Generator().manual_seed(seed))
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids)}


def run(distiller, student, *batches):
    with distiller.watch(student) as taps:
        for batch in batches:
            student(**batch)
    return taps.records


def trainer(step, steps, batch=0, automatic=True, limit=-1):
    """Return a stub that is at a step and a batch, with a limit in steps or without one."""
    return SimpleNamespace(
        global_step=step,
        estimated_stepping_batches=steps,
        max_steps=limit,
        lightning_module=SimpleNamespace(automatic_optimization=automatic),
        fit_loop=SimpleNamespace(epoch_loop=SimpleNamespace(total_batch_idx=batch)),
    )


# -- the sum -----------------------------------------------------------------------------------------------------------


def test_total_is_the_weighted_sum_of_task_and_terms():
    student, model = bert(1), bert(2)
    objectives = [SoftTargets(temperature=1.0, weight=2.0), HiddenStates(metric="mse", weight=0.5)]
    distiller = Distiller(Teacher(model), objectives, task_weight=3.0)
    distiller.build(student)
    loss, logs = distiller.total(torch.tensor(7.0), run(distiller, student, inputs()))
    ours, theirs = (m(**inputs(), output_hidden_states=True) for m in (student, model))
    soft = F.kl_div(ours.logits.log_softmax(-1), theirs.logits.softmax(-1), reduction="batchmean")
    hidden = F.mse_loss(ours.hidden_states[-1], theirs.hidden_states[-1])
    torch.testing.assert_close(logs["distill/soft_targets"], soft.detach())
    torch.testing.assert_close(logs["distill/hidden_states"], hidden.detach())
    torch.testing.assert_close(loss, 3 * 7 + 2 * soft + 0.5 * hidden)
    assert loss.requires_grad
    assert not any(value.requires_grad for value in logs.values())


def test_without_a_task_loss_the_terms_stand_alone():
    student = bert(1)
    distiller = Distiller(Teacher(bert(2)), [SoftTargets(weight=2.0)], task_weight=3.0)
    distiller.build(student)
    loss, logs = distiller.total(None, run(distiller, student, inputs()))
    torch.testing.assert_close(loss, 2 * logs["distill/soft_targets"])


def test_several_forwards_are_each_compared_with_a_teacher_call():
    student, model = bert(1), bert(2)
    distiller = Distiller(Teacher(model), [SoftTargets(temperature=1.0)])
    distiller.build(student)
    terms = distiller.terms(run(distiller, student, inputs(0), inputs(1)))
    expected = [
        F.kl_div(student(**batch).logits.log_softmax(-1), model(**batch).logits.softmax(-1), reduction="batchmean")
        for batch in (inputs(0), inputs(1))
    ]
    torch.testing.assert_close(terms["soft_targets"], torch.stack(expected).mean())


def test_a_forward_without_gradients_is_none_of_those_that_are_taught():
    student = bert(1)
    distiller = Distiller(Teacher(bert(2)), [SoftTargets()])
    distiller.build(student)
    with distiller.watch(student) as taps:
        student(**inputs(0))
        with torch.no_grad():  # such as for a training accuracy
            student(**inputs(1))
    alone = distiller.terms(run(distiller, student, inputs(0)))["soft_targets"]
    torch.testing.assert_close(distiller.terms(taps.records)["soft_targets"], alone)


@pytest.mark.parametrize("weight", [-1.0, float("nan"), "2"])
def test_the_weight_of_the_task_is_checked(weight):
    with pytest.raises(DistillationError, match=r"task_weight=\.\.\. was given"):
        Distiller(Teacher(bert()), [SoftTargets()], task_weight=weight)


def test_the_pooling_of_the_student_is_an_option():
    values = []
    for pooling in ("mean", "cls"):
        student = bert(1)
        distiller = Distiller(Teacher(bert(2)), [SentenceEmbedding()], pooling=pooling)
        distiller.build(student)
        values.append(distiller.terms(run(distiller, student, inputs()))["sentence_embedding"].item())
    assert values[0] != pytest.approx(values[1], rel=1e-3)


def test_no_student_forward_is_an_error():
    distiller = Distiller(Teacher(bert(2)), [SoftTargets()], student="model")
    with pytest.raises(DistillationError, match="student at 'model' was not run in this training step"):
        distiller.total(torch.tensor(1.0), [])


def test_only_the_required_signals_are_asked_for():
    assert Distiller(Teacher(bert()), [SoftTargets(), Similarity()]).requires == {"logits", "embedding"}
    assert Distiller(Teacher(bert()), [HiddenStates()]).requires == {"hidden_states"}


def test_names_are_numbered_from_the_second_of_a_kind():
    assert unique_names([SoftTargets(), HiddenStates(), SoftTargets(), SoftTargets()]) == [
        "soft_targets",
        "hidden_states",
        "soft_targets_2",
        "soft_targets_3",
    ]


# -- schedules ---------------------------------------------------------------------------------------------------------


def test_schedules_follow_the_optimizer_steps():
    student = bert(1)
    objective = SoftTargets(temperature=Linear(4.0, 1.0), weight=Linear(0.0, 2.0))
    distiller = Distiller(Teacher(bert(2)), [objective], task_weight=Linear(1.0, 0.0))
    (objective,) = distiller.parts
    distiller.build(student)
    records = run(distiller, student, inputs())
    for step, progress in ((0, 0.0), (5, 0.5), (10, 1.0), (12, 1.0)):
        distiller.set_progress(trainer(step, 10))
        assert distiller.progress == objective.progress == progress
        loss, logs = distiller.total(torch.tensor(10.0), records)
        torch.testing.assert_close(loss, 10 * (1 - progress) + 2 * progress * logs["distill/soft_targets"])
    assert logs["distill/soft_targets"] > 0


@pytest.mark.parametrize("steps", [float("inf"), -1, 0])
def test_a_schedule_needs_an_end_of_training(steps):
    distiller = Distiller(Teacher(bert()), [SoftTargets(weight=Linear(1.0, 0.0))])
    with pytest.raises(DistillationError, match=rf"plans {steps} optimizer steps"):
        distiller.set_progress(trainer(0, steps))


def test_under_manual_optimization_schedules_follow_the_batches():
    distiller = Distiller(Teacher(bert()), [SoftTargets(weight=Linear(0.0, 1.0))])
    # two optimizers have taken a step each in every batch
    for at, progress in (
        (trainer(step=10, steps=20, batch=5, automatic=False), 0.25),
        (trainer(step=10, steps=20, batch=5), 0.5),
        (trainer(step=10, steps=20, batch=5, automatic=False, limit=20), 0.5),
    ):
        distiller.set_progress(at)
        assert distiller.progress == progress


def test_without_schedules_the_end_of_training_is_not_asked_for():
    distiller = Distiller(Teacher(bert()), [SoftTargets()])
    assert not distiller.follows_progress
    distiller.set_progress(object())
    assert distiller.progress == 0.0


@pytest.mark.parametrize(
    "options",
    [{"weight": Linear(1.0, 0.0)}, {"temperature": Linear(2.0, 1.0)}],
)
def test_any_schedule_in_an_objective_is_followed(options):
    assert Distiller(Teacher(bert()), [HiddenStates(), SoftTargets(**options)]).follows_progress


# -- facts -------------------------------------------------------------------------------------------------------------


def test_facts_come_from_the_config_and_the_layers():
    facts = facts_of("it", bert(layers=3, problem_type="regression"), "", frozenset({"logits", "hidden_states"}))
    assert (facts.name, facts.num_layers, facts.hidden_size) == ("it", 3, 16)
    assert (facts.num_labels, facts.problem_type) == (3, "regression")
    assert facts.num_heads == 2


@pytest.mark.parametrize("kind", [BertForMaskedLM, BertForTokenClassification, BertForQuestionAnswering])
@pytest.mark.parametrize("former", ["regression", "multi_label_classification"])
def test_a_token_level_head_does_not_speak_of_the_problem_of_a_former_head(kind, former):
    """Students start from models of other tasks, whose configs keep their labels: three here."""
    student = bert(kind=kind, problem_type=former)
    teacher = kind(BertConfig(**{**student.config.to_dict(), "problem_type": None}))
    if kind is BertForMaskedLM:
        teacher.config.num_labels = 2
    distiller = Distiller(Teacher(teacher), [SoftTargets()])
    distiller.build(student)
    assert distiller.parts[0].resolved == "softmax"


def test_facts_of_an_encoder_and_a_head_that_are_apart():
    root = nn.ModuleDict({"encoder": bert(head=False), "head": nn.Linear(16, 5)})
    paths = {"hidden_states": "encoder", "logits": "head"}
    facts = facts_of("it", root, paths, frozenset({"hidden_states", "logits"}))
    assert (facts.num_layers, facts.hidden_size, facts.num_labels, facts.problem_type) == (2, 16, 5, None)


class Scores(Objective):
    """Any objective on what attention computes."""

    requires = frozenset({"attention_scores"})
    token_level = True
    name = "scores"

    def forward(self, student, teacher):
        pairs = zip(student.attention_scores, teacher.attention_scores, strict=True)
        return torch.stack([(ours - theirs).square().mean() for ours, theirs in pairs]).mean()


def test_facts_of_what_attention_shows():
    root = nn.ModuleDict({"encoder": bert(head=False, layers=3)})
    facts = facts_of("it", root, "", frozenset({"queries"}))
    assert (facts.num_layers, facts.num_heads) == (3, 2)
    assert facts_of("it", nn.Linear(1, 1), "", frozenset({"logits"})).num_heads is None
    sizes = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 8}
    mpnet = MPNetModel(MPNetConfig(vocab_size=40, **sizes))
    assert facts_of("it", mpnet, "", frozenset({"queries", "keys"})).num_heads == 2
    # at the start of a fit, and not in its first step
    with pytest.raises(DistillationError, match=r"attention scores of MPNetModel .* Use Relations"):
        Distiller(Teacher(mpnet), [Scores()]).build(bert())


def test_attention_scores_of_student_and_teacher_reach_an_objective():
    values = []
    for attention in ("eager", "sdpa"):
        student, model = bert(1), bert(2)
        for part in (student, model):
            part.set_attn_implementation(attention)
        distiller = Distiller(Teacher(model), [Scores()])
        distiller.build(student)
        term = distiller.terms(run(distiller, student, inputs()))["scores"]
        term.backward()
        gradient = student.bert.encoder.layer[1].attention.self.key.weight.grad
        assert gradient.abs().sum() > 0
        values.append((term.detach(), gradient))
    torch.testing.assert_close(*values, rtol=1e-4, atol=1e-6)


def test_build_makes_the_projections_that_the_widths_ask_for():
    student = bert(1, width=8)
    distiller = Distiller(Teacher(bert(2)), [HiddenStates(), SentenceEmbedding()])
    distiller.build(student)
    shapes = [tuple(p.shape) for p in distiller.objectives.parameters()]
    assert shapes == [(16, 8), (16,), (16, 8)]  # an orthogonal projection has no bias
    before = [id(p) for p in distiller.objectives.parameters()]
    distiller.build(student)
    assert [id(p) for p in distiller.objectives.parameters()] == before


def test_objectives_given_to_two_engines_are_those_of_neither():
    objective = HiddenStates()
    first, second = (Distiller(Teacher(bert(2)), [objective]) for _ in range(2))
    first.build(bert(1, width=8))
    second.build(bert(2, width=4))
    shapes = [tuple(part.weight.shape) for engine in (first, second) for part in engine.parts[0].projections]
    assert shapes == [(16, 8), (16, 4)]
    assert (objective.pairs, list(objective.projections)) == (None, [])


def test_projections_that_do_not_fit_begin_anew():
    student, teacher = bert(1, width=8), Teacher(bert(2))
    before, after = (Distiller(teacher, [HiddenStates(), SentenceEmbedding()]) for _ in range(2))
    for distiller in (before, after):
        distiller.build(student)
    kept = before.objectives.state_dict()
    after.load_projections(kept)
    assert all(torch.equal(value, kept[name]) for name, value in after.objectives.state_dict().items())
    fresh = Distiller(teacher, [HiddenStates(), SentenceEmbedding()])
    fresh.build(student)
    own = {name: value.clone() for name, value in fresh.objectives.state_dict().items()}
    first, second = sorted(name for name in kept if name.endswith("weight"))
    with pytest.warns(UserWarning, match=rf"1 projections that do not fit .* such as '{first}' of shape \(16, 4\)"):
        fresh.load_projections({**kept, first: torch.zeros(16, 4)})
    found = fresh.objectives.state_dict()
    assert torch.equal(found[second], kept[second])
    for name in (first, first.replace("weight", "bias")):  # a bias alone would be of no use
        assert torch.equal(found[name], own[name])


def test_build_checks_the_pair():
    student = bert(1)
    student.config.num_labels = 4
    with pytest.raises(
        DistillationError, match="the student has 4 labels and the teacher BertForSequenceClassification has 3"
    ):
        Distiller(Teacher(bert(2)), [SoftTargets()]).build(student)


@pytest.mark.parametrize("bare", ["student", "teacher"])
def test_a_bare_encoder_has_no_logits_to_compare(bare):
    student, model = bert(1, head=bare != "student"), bert(2, head=bare != "teacher")
    with pytest.raises(DistillationError, match=rf"the {bare}.* is a bare encoder \(BertModel\) that gives none"):
        Distiller(Teacher(model), [SoftTargets()]).build(student)
    Distiller(Teacher(model), [HiddenStates()]).build(student)


@pytest.mark.parametrize("kind", [BertForPreTraining, ElectraForPreTraining])
def test_of_two_heads_none_is_chosen(kind):
    sizes = {"vocab_size": 30, "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2}
    model = kind(kind.config_class(**sizes))
    if kind is ElectraForPreTraining:  # one head, which tells replaced tokens
        assert facts_of("the teacher", model, "", frozenset({"logits"})).num_labels == 2
        return
    with pytest.raises(DistillationError, match=r"the teacher is a BertForPreTraining, which has two heads\. Load its"):
        facts_of("the teacher", model, "", frozenset({"logits"}))
    facts_of("the teacher", model, "", frozenset({"hidden_states"}))


def test_a_head_alone_whose_batch_has_no_tokens_is_told_apart():
    root = nn.Sequential(nn.Linear(16, 2))
    distiller = Distiller(Teacher(bert(2)), [SoftTargets()], student={"logits": "0"})
    with distiller.watch(root, {"a": inputs(), "b": inputs()}) as taps:
        root(torch.zeros(3, 16))
    with pytest.raises(DistillationError, match=r"\['input'\], holds no input_ids for the teacher. Name the encoder"):
        distiller.terms(taps.records)


# -- positions ---------------------------------------------------------------------------------------------------------


def test_the_teachers_head_is_narrowed_to_the_positions_of_the_task():
    student, model = bert(1, kind=BertForMaskedLM), bert(2, kind=BertForMaskedLM)
    distiller = Distiller(Teacher(model), [SoftTargets(temperature=1.0)])
    distiller.build(student)
    positions = torch.zeros(3, 5, dtype=torch.bool)
    positions[0, 2] = positions[2, 4] = True
    seen = []
    model.cls.predictions.decoder.register_forward_hook(lambda *call: seen.append(call[2].shape))
    with distiller.watch(student, inputs(), positions) as taps:
        student(**inputs())
    term = distiller.terms(taps.records)["soft_targets"]
    assert seen == [(2, 40)]
    ours, theirs = (part(**inputs()).logits[positions] for part in (student, model))
    torch.testing.assert_close(
        term, F.kl_div(ours.log_softmax(-1), theirs.softmax(-1), reduction="batchmean"), rtol=1e-4, atol=1e-6
    )


# -- two tokenizers ----------------------------------------------------------------------------------------------------


def encoded_twice(rows=3):
    theirs = torch.randint(5, 60, (rows, 7), generator=torch.Generator().manual_seed(9))
    mask = torch.ones_like(theirs)
    mask[1, 4:] = 0
    return {**inputs(rows=rows), "teacher_input_ids": theirs, "teacher_attention_mask": mask}


def two_vocabularies(objectives, kind=None):
    student, model = bert(1, kind=kind), bert(2, vocabulary=60, kind=kind)
    distiller = Distiller(Teacher(model), objectives)
    distiller.compare_vocabularies(doctor.check_vocabulary_sizes, student.config, model.config)
    distiller.build(student)
    return distiller, student, model


def test_sequence_level_objectives_take_a_teacher_with_a_tokenizer_of_its_own():
    objectives = [SoftTargets(temperature=1.0), SentenceEmbedding(metric="mse"), Similarity()]
    distiller, student, model = two_vocabularies(objectives)
    batch = encoded_twice()
    batch["attention_mask"][2, 3:] = 0
    with distiller.watch(student, batch) as taps:
        ours = student(**{name: batch[name] for name in ("input_ids", "attention_mask")})
    terms = distiller.terms(taps.records)
    given = {"input_ids": batch["teacher_input_ids"], "attention_mask": batch["teacher_attention_mask"]}
    theirs = model(**given, output_hidden_states=True)
    soft = F.kl_div(ours.logits.log_softmax(-1), theirs.logits.softmax(-1), reduction="batchmean")
    torch.testing.assert_close(terms["soft_targets"], soft)
    keep = [mask.bool() for mask in given["attention_mask"]]
    vectors = torch.stack([theirs.hidden_states[-1][i][keep[i]].mean(dim=0) for i in range(3)])
    torch.testing.assert_close(
        terms["sentence_embedding"], F.mse_loss(taps.records[0].signals.embedding, vectors), rtol=1e-4, atol=1e-6
    )
    assert terms["similarity"] > 0


def test_a_row_without_tokens_in_either_encoding_does_not_count():
    distiller, student, _ = two_vocabularies([SoftTargets()])
    terms = []
    for rows in (3, 4):
        batch = encoded_twice()
        if rows == 4:
            more = {name: torch.ones(1, value.shape[1], dtype=value.dtype) for name, value in batch.items()}
            more["teacher_attention_mask"] *= 0
            batch = {name: torch.cat([value, more[name]]) for name, value in batch.items()}
        with distiller.watch(student, batch) as taps:
            student(input_ids=batch["input_ids"])
        terms.append(distiller.terms(taps.records)["soft_targets"])
    torch.testing.assert_close(*terms)


@pytest.mark.parametrize("objective", [HiddenStates(), Scores()], ids=["HiddenStates", "Scores"])
def test_token_level_objectives_need_one_tokenizer(objective):
    match = (
        rf"share one tokenizer .* as in {type(objective).__name__}\. The student has a vocabulary of 40 .* one of 60"
    )
    with pytest.raises(DistillationError, match=match):
        two_vocabularies([SoftTargets(), objective])


@pytest.mark.parametrize("kind", [BertForMaskedLM, BertForTokenClassification])
def test_logits_of_a_token_level_head_need_one_tokenizer(kind):
    with pytest.raises(DistillationError, match=r"as in SoftTargets on a token-level head\. The student has"):
        two_vocabularies([SoftTargets()], kind)
    # what is pooled of such a model is compared by sequences
    two_vocabularies([SentenceEmbedding()], kind)


def test_an_own_encoding_that_only_the_batch_shows_is_compared_by_sequences_too():
    student = bert(1)
    distiller = Distiller(Teacher(bert(2)), [HiddenStates()])
    distiller.build(student)
    with distiller.watch(student, encoded_twice()) as taps:
        student(**inputs())
    with pytest.raises(DistillationError, match=r"as in HiddenStates\. The batch carries teacher_input_ids: leave"):
        distiller.terms(taps.records)
    root = nn.ModuleDict({"body": bert(1, head=False), "head": nn.Linear(16, 3)})
    distiller = Distiller(Teacher(bert(2)), [SoftTargets()], {"embedding": "body", "logits": "head"})
    with distiller.watch(root, encoded_twice()) as taps:
        root["head"](root["body"](**inputs()).last_hidden_state)
    with pytest.raises(DistillationError, match=r"SoftTargets on a token-level head\. The batch carries"):
        distiller.terms(taps.records)


def test_a_batch_without_the_teachers_encoding_is_refused():
    distiller, student, _ = two_vocabularies([SoftTargets()])
    with distiller.watch(student, inputs()) as taps:
        student(**inputs())
    with pytest.raises(DistillationError, match=r"no teacher_input_ids, .* The student has a vocabulary of 40"):
        distiller.terms(taps.records)
    # where the vocabularies agree, none is needed
    distiller = Distiller(Teacher(bert(2)), [SoftTargets()])
    distiller.compare_vocabularies(doctor.check_vocabulary_sizes, student.config, bert().config)
    assert distiller.mismatch is None
    assert distiller.terms(taps.records)["soft_targets"] > 0
