"""Where there are many positions, logits over a vocabulary are computed where they are compared: the same training."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import nn
from transformers import AutoModelForMaskedLM, EuroBertConfig, MobileBertConfig

from lightning_distilbert import DistillationModule, HiddenStates, MaskedLM, SoftTargets, Student, Teacher
from lightning_distilbert.architectures import logits_at
from lightning_distilbert.functional import late_logits
from lightning_distilbert.objectives.base import Objective
from lightning_distilbert.vocabulary import many_logits, projected_at, projection_of
from tests.encoders import model_of

VOCABULARY = 120
KINDS = ["bert", "distilbert", "roberta", "electra", "mpnet", "modernbert"]


def make(kind: str) -> nn.Module:
    torch.manual_seed(0)
    return model_of(kind, AutoModelForMaskedLM, vocab_size=VOCABULARY)


@pytest.fixture
def teacher() -> nn.Module:
    return make("bert")


def batch(seed: int = 0) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(5, VOCABULARY, (3, 9), generator=generator)
    mask = torch.ones_like(ids)
    mask[0, 4:] = 0
    chosen = torch.zeros_like(ids, dtype=torch.bool)
    chosen[:, 2] = chosen[1, 5] = True
    return {"input_ids": ids, "attention_mask": mask, "labels": torch.where(chosen, ids.flip(0), -100)}


def step(
    teacher: Any, objectives: Any = "distilbert", data: Any = None, **student: Any
) -> tuple[dict[str, Any], list[int]]:
    """One training step: losses, gradients, and how many rows the student's projection got in its own forward."""
    torch.manual_seed(0)
    objectives = copy.deepcopy(objectives)
    cut = Student(layers=2, dropout=0.0, **student)
    module = DistillationModule(MaskedLM(positions="all"), teacher=teacher, student=cut, objectives=objectives)
    module.distiller.build(module.student)
    rows: list[int] = []
    data = batch() if data is None else data
    with module.distiller.watch(module.student, data, module.task.positions(data)) as taps:
        hook = projection_of(module.student).register_forward_hook(lambda layer, args, out: rows.append(len(out)))
        task_loss = module.task.loss(module.task.run(module.student, data), data)
        hook.remove()
    loss, logs = module.distiller.total(task_loss, taps.records)
    loss.backward()
    found = {f"grad {name}": value.grad for name, value in module.student.named_parameters() if value.grad is not None}
    return {"loss": loss.detach(), **logs, **found}, rows


@pytest.fixture
def many(monkeypatch) -> None:
    monkeypatch.setattr(late_logits, "LATE_ELEMENTS", 5 * VOCABULARY)


def same(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> None:
    assert one.keys() == other.keys()
    for name, value in one.items():
        torch.testing.assert_close(value, other[name], msg=lambda text, name=name: f"{name}: {text}")


@pytest.mark.parametrize("objectives", ["distilbert", "logits"])
def test_a_step_is_the_same(teacher, request, objectives: str):
    whole, rows = step(teacher, objectives)
    assert rows == [22]
    request.getfixturevalue("many")
    late, rows = step(teacher, objectives)
    assert rows == [4]  # the masked ones, for the task's loss; the others where they are compared
    same(late, whole)
    assert late["loss"] > 0


BARE = {"vocab_size": VOCABULARY, "hidden_size": 16, "num_hidden_layers": 3, "num_attention_heads": 2}
BARE |= {
    "intermediate_size": 32,
    "max_position_embeddings": 40,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}


@pytest.mark.parametrize(
    "config",
    [
        EuroBertConfig(**BARE, num_key_value_heads=2),  # the head is the projection alone
        MobileBertConfig(**BARE, embedding_size=8, true_hidden_size=16, intra_bottleneck_size=16),  # it is never called
    ],
    ids=lambda config: config.model_type,
)
def test_heads_of_another_build_train_the_same(request, config):
    torch.manual_seed(0)
    teacher = AutoModelForMaskedLM.from_config(config).eval()
    whole, _ = step(teacher, "logits", architecture="same")
    request.getfixturevalue("many")
    same(step(teacher, "logits", architecture="same")[0], whole)


def test_the_teacher_projects_nothing_in_its_forward(teacher, many):
    rows: list[int] = []
    hook = projection_of(teacher).register_forward_hook(lambda layer, args, out: rows.append(len(out)))
    step(teacher)
    hook.remove()
    assert rows == [0]


@pytest.mark.parametrize(
    "objective", [SoftTargets(divergence="reverse"), SoftTargets(divergence="js"), SoftTargets(top_k=3)]
)
def test_other_divergences_see_all_logits(teacher, request, objective: SoftTargets):
    whole, _ = step(teacher, [objective])
    request.getfixturevalue("many")
    same(step(teacher, [objective])[0], whole)


def test_an_objective_of_one_s_own_gets_logits(teacher, many):
    class Mine(Objective):
        requires = frozenset({"logits"})
        name = "mine"

        def forward(self, student, teacher):
            assert student.late_logits is None
            return (student.logits - teacher.logits).square().mean()

    both, _ = step(teacher, [Mine(), SoftTargets()])
    alone, _ = step(teacher, [SoftTargets()])
    assert both["distill/mine"] > 0
    torch.testing.assert_close(both["distill/soft_targets"], alone["distill/soft_targets"])


def test_a_cached_teacher_gives_logits(teacher, request, tmp_path):
    whole, _ = step(teacher)
    teacher.config.name_or_path = "cached"
    request.getfixturevalue("many")
    late, _ = step(Teacher(teacher, cache=tmp_path / "cache"))
    for name, value in late.items():  # a cache keeps half precision
        assert (value - whole[name]).norm() <= 0.01 * whole[name].norm() + 1e-6, name


def test_where_all_is_masked_nothing_is_left_for_later(teacher, many):
    data = batch()
    data["labels"] = torch.where(data["attention_mask"].bool(), data["input_ids"], -100)
    assert step(teacher, data=data)[1] == [22]


def test_hidden_states_alone_leave_the_head_to_the_task(teacher, many):
    _, rows = step(teacher, [HiddenStates()])
    assert rows == [4]


@pytest.mark.parametrize("kind", KINDS)
def test_rows_of_every_architecture(kind: str):
    model, data = make(kind), batch()
    positions = data["attention_mask"].bool()
    inputs = {name: data[name] for name in ("input_ids", "attention_mask")}
    with torch.no_grad():
        with logits_at(model, positions):
            every = model(**inputs).logits
        with logits_at(model, positions), projected_at(model, torch.tensor([3, 7])):
            some = model(**inputs).logits
    torch.testing.assert_close(some, every[[3, 7]])
    assert not model.get_output_embeddings()._forward_pre_hooks


def test_what_has_no_such_layer_is_left_alone(many):
    positions = torch.ones(3, 9, dtype=torch.bool)
    newer = model_of("deberta-v2", AutoModelForMaskedLM, vocab_size=VOCABULARY, legacy=False)
    for model in (nn.Linear(4, 9), newer):
        assert projection_of(model) is None
        assert not many_logits(model, positions)
    assert many_logits(make("bert"), positions)
    assert not many_logits(make("bert"), torch.tensor([[True, False]]))
    model = make("bert")
    model.cls.predictions.decoder = nn.Sequential(model.cls.predictions.decoder)  # an adapter around it, say
    assert projection_of(model) is None
