from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from pytorch_lightning import Callback, LightningModule, Trainer
from torch import Tensor, nn
from torch.utils.data import DataLoader
from transformers import BertConfig

from lightning_distilbert import (
    DistillationError,
    DistillationLoss,
    DistillationModule,
    HiddenStates,
    Linear,
    MaskedLM,
    SoftTargets,
    Student,
    TextClassification,
    TokenClassification,
    build_student,
)
from lightning_distilbert.callback import PROJECTIONS
from lightning_distilbert.tasks import Task


class Foreign(LightningModule):
    """Returns what `answer` makes of its loss."""

    def __init__(self, teacher: Path, answer: Any = None) -> None:
        super().__init__()
        self.model = build_student(teacher, 1, auto_class="AutoModelForSequenceClassification")
        self.answer = answer
        self.own: list[float] = []

    def training_step(self, batch, batch_idx):
        loss = self.model(**batch).loss
        self.own.append(float(loss.detach()))
        return loss if self.answer is None else self.answer(loss)

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=1e-3)


class Returned(Callback):
    def __init__(self) -> None:
        self.outputs: list[Any] = []

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        self.outputs.append(outputs)


def batches(count: int = 2) -> DataLoader:
    ids = torch.arange(5, 21).view(2, 8)
    rows = [{"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": torch.tensor([0, 1])}] * count
    return DataLoader(rows, batch_size=None)


def train(
    module: LightningModule, *callbacks: Callback, data: Any = None, val: Any = None, **arguments: Any
) -> Trainer:
    quiet = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False, "num_sanity_val_steps": 0}
    settings = {"max_epochs": 1, "accelerator": "cpu", "devices": 1, "enable_model_summary": False} | quiet | arguments
    trainer = Trainer(callbacks=list(callbacks), **settings)
    trainer.fit(module, batches() if data is None else data, val)
    return trainer


def resume(module: LightningModule, callback: Callback, path: Path) -> None:
    trainer = Trainer(
        callbacks=[callback], max_epochs=2, accelerator="cpu", devices=1, logger=False, enable_checkpointing=False,
        enable_progress_bar=False, enable_model_summary=False,
    )  # fmt: skip
    trainer.fit(module, batches(), ckpt_path=path)


@pytest.mark.parametrize("returns", ["tensor", "dict"])
def test_terms_are_added_to_the_returned_loss(returns: str, tiny_teacher_dir: Path):
    answer = None if returns == "tensor" else lambda loss: {"loss": loss, "more": torch.tensor(7.0)}
    module, returned = Foreign(tiny_teacher_dir, answer), Returned()
    callback = DistillationLoss(tiny_teacher_dir, objectives=[SoftTargets(weight=3.0)], task_weight=0.5)
    trainer = train(module, callback, returned)
    output = returned.outputs[-1]
    expected = 0.5 * module.own[-1] + 3.0 * float(trainer.callback_metrics["distill/soft_targets"])
    assert float(output["loss"]) == pytest.approx(expected, rel=1e-5)
    if returns == "dict":
        assert float(output["more"]) == 7.0


def test_preset_brings_its_task_weight(tiny_teacher_dir: Path):
    assert DistillationLoss(tiny_teacher_dir, objectives="distilbert").distiller.task_weight == 2.0
    assert DistillationLoss(tiny_teacher_dir, objectives="distilbert", task_weight=1.0).distiller.task_weight == 1.0
    assert DistillationLoss(tiny_teacher_dir, objectives=SoftTargets()).distiller.task_weight == 1.0


@pytest.mark.filterwarnings("ignore:`training_step` returned `None`")  # Lightning says it once in a process
def test_step_that_skips_is_left_alone(tiny_teacher_dir: Path):
    module = Foreign(tiny_teacher_dir, lambda loss: None)
    before = module.model.classifier.weight.clone()
    train(module, DistillationLoss(tiny_teacher_dir))
    assert torch.equal(module.model.classifier.weight, before)


@pytest.mark.filterwarnings("ignore:`training_step` returned `None`")
@pytest.mark.parametrize(
    ("labelled", "ran", "returns", "learns"),
    [
        (False, True, "nothing", True),
        (False, True, "dict", True),
        (False, False, "nothing", False),  # the step skips this batch
        (True, True, "nothing", False),  # so it does here, where it could have had a loss
    ],
)
def test_batches_of_texts_alone_are_taught_by_the_teacher(
    labelled: bool, ran: bool, returns: str, learns: bool, tiny_teacher_dir: Path
):
    class Unlabelled(Foreign):
        def training_step(self, batch, batch_idx):
            loss = self.model(batch["input_ids"], batch["attention_mask"]).loss if ran else None
            return loss if returns == "nothing" else {"loss": loss}

    kept = ("input_ids", "attention_mask", *(["labels"] if labelled else []))
    rows = [{name: batch[name] for name in kept} for batch in batches()]
    module = Unlabelled(tiny_teacher_dir)
    before = module.model.classifier.weight.clone()
    train(module, DistillationLoss(tiny_teacher_dir), data=DataLoader(rows, batch_size=None))
    assert torch.equal(module.model.classifier.weight, before) != learns


@pytest.mark.parametrize(("answer", "match"), [(lambda loss: 3.0, "float"), (lambda loss: {"loss": 1}, "dict")])
def test_step_that_returns_no_tensor_is_refused(answer: Any, match: str, tiny_teacher_dir: Path):
    module = Foreign(tiny_teacher_dir, answer)
    with pytest.raises(DistillationError, match=f"training_step returned {match} with no loss tensor"):
        train(module, DistillationLoss(tiny_teacher_dir))


def test_manual_optimization_is_refused(tiny_teacher_dir: Path):
    module = Foreign(tiny_teacher_dir)
    module.automatic_optimization = False
    with pytest.raises(DistillationError, match="Foreign optimizes manually"):
        train(module, DistillationLoss(tiny_teacher_dir))


def test_module_and_callback_together_are_refused(tiny_teacher_dir: Path):
    task, student = TextClassification(num_labels=2), Student(layers=1)
    module = DistillationModule(task, teacher=tiny_teacher_dir, student=student)
    with pytest.raises(DistillationError, match="the terms would count twice"):
        train(module, DistillationLoss(tiny_teacher_dir), val=batches())
    # a module without a teacher is a foreign one like others
    alone = DistillationModule(task, student=str(tiny_teacher_dir))
    trainer = train(alone, DistillationLoss(tiny_teacher_dir), val=batches())
    assert "distill/soft_targets" in trainer.callback_metrics


@pytest.mark.parametrize(
    ("task", "head"),
    [
        (MaskedLM(), "BertForMaskedLM"),
        (MaskedLM(positions="all"), "BertForMaskedLM"),
        (TokenClassification(labels=["O", "B-x", "I-x"]), "BertForTokenClassification"),
    ],
)
def test_module_without_a_teacher_learns_what_it_learns_with_one(task: Task, head: str):
    sizes = {"vocab_size": 60, "hidden_size": 16, "num_attention_heads": 2, "intermediate_size": 16}
    config = BertConfig(**sizes, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0, num_labels=3)
    config.num_hidden_layers = 1
    teacher, student = (getattr(transformers, head)(config) for _ in range(2))
    labels = torch.full((2, 8), -100)
    labels[0, 2], labels[1, 3] = 1, 2  # few of all tokens
    data = DataLoader([{**next(iter(batches())), "labels": labels}] * 2, batch_size=None)
    objectives, losses = [SoftTargets(weight=3.0), HiddenStates(metric="mse")], []
    for callbacks, kept in (
        ([], {"teacher": teacher, "objectives": objectives}),
        ([DistillationLoss(teacher, objectives=copy.deepcopy(objectives))], {}),
    ):
        module = DistillationModule(task, student=copy.deepcopy(student), learning_rate=1e-2, **kept)
        train(module, *callbacks, returned := Returned(), data=data, val=data)
        losses.append([float(output["loss"]) for output in returned.outputs])
    assert losses[0] == pytest.approx(losses[1], rel=1e-6)
    assert losses[0][0] != losses[0][1]


def test_validation_that_calls_the_training_step_sees_the_modules_own_loss(tiny_teacher_dir: Path):
    class Validating(Foreign):
        def validation_step(self, batch, batch_idx):
            loss = self.training_step(batch, batch_idx)
            self.log("own", loss)
            validated.append((float(loss), self.own[-1]))

    validated: list[tuple[float, float]] = []
    callback = DistillationLoss(tiny_teacher_dir, objectives=[SoftTargets(weight=50.0)])
    train(Validating(tiny_teacher_dir), callback, val=batches())
    assert len(validated) == 2
    assert all(seen == own for seen, own in validated)


def test_nothing_happens_outside_of_a_fit(tiny_teacher_dir: Path):
    class Tested(Foreign):
        def test_step(self, batch, batch_idx):
            wrapped.append("training_step" in vars(self))

    wrapped: list[bool] = []
    callback = DistillationLoss(tiny_teacher_dir)
    trainer = Trainer(
        callbacks=[callback], accelerator="cpu", devices=1, logger=False, enable_checkpointing=False,
        enable_progress_bar=False,
    )  # fmt: skip
    trainer.test(Tested(tiny_teacher_dir), batches(), verbose=False)
    assert wrapped == [False, False]
    assert callback.distiller.teacher._model is None  # not even loaded


def test_module_is_given_back_as_it_was(tiny_teacher_dir: Path):
    module = Foreign(tiny_teacher_dir)
    own = vars(module)["training_step"] = module.training_step  # as torch.compile leaves it
    names = [name for name, _ in module.named_parameters()]
    objectives = [HiddenStates(projection="always", metric="mse")]
    callback = DistillationLoss(tiny_teacher_dir, objectives=objectives)
    inside = []

    class Look(Callback):
        def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
            inside.append((vars(pl_module)["training_step"] is own, hasattr(pl_module, PROJECTIONS)))

    for _ in range(2):  # a second fit with the same callback works too
        train(module, callback, Look())
        assert vars(module)["training_step"] is own
        assert [name for name, _ in module.named_parameters()] == names
    assert set(inside) == {(False, True)}


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
def test_module_is_given_back_after_an_error(error: type[BaseException], tiny_teacher_dir: Path):
    class Failing(Callback):
        def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
            raise error("stop")

    module = Foreign(tiny_teacher_dir)
    objectives = [HiddenStates(projection="always", metric="mse")]
    with pytest.raises((RuntimeError, SystemExit, KeyboardInterrupt)):
        train(module, DistillationLoss(tiny_teacher_dir, objectives=objectives), Failing())
    assert "training_step" not in vars(module)
    assert not hasattr(module, PROJECTIONS)
    module.load_state_dict(module.state_dict())
    assert not any(hooks for hooks in (module._load_state_dict_post_hooks, module._state_dict_hooks))


def test_state_is_tensors_and_plain_values(tiny_teacher_dir: Path):
    callback = DistillationLoss(tiny_teacher_dir, objectives=[HiddenStates(projection="always", metric="mse")])
    train(Foreign(tiny_teacher_dir), callback)
    state = callback.state_dict()
    assert state["objectives"]
    for value in state["objectives"].values():
        assert type(value) is Tensor
        assert value.device.type == "cpu"
        assert not value.requires_grad


def test_projections_of_other_objectives_are_refused(tiny_teacher_dir: Path, tmp_path: Path):
    plain = DistillationLoss(tiny_teacher_dir, objectives=[HiddenStates(metric="mse")])
    projected = DistillationLoss(tiny_teacher_dir, objectives=[HiddenStates(projection="always", metric="mse")])
    trainer = train(Foreign(tiny_teacher_dir), plain)
    trainer.save_checkpoint(tmp_path / "plain.ckpt")
    with pytest.raises(DistillationError, match="The checkpoint was made with other objectives, whose projections"):
        resume(Foreign(tiny_teacher_dir), projected, tmp_path / "plain.ckpt")


def test_a_run_without_the_callback_is_not_resumed_with_projections(tiny_teacher_dir: Path, tmp_path: Path):
    train(Foreign(tiny_teacher_dir)).save_checkpoint(tmp_path / "alone.ckpt")
    projected = DistillationLoss(tiny_teacher_dir, objectives=[HiddenStates(projection="always", metric="mse")])
    with pytest.raises(
        DistillationError, match="is one of a run without DistillationLoss: its optimizer knows nothing"
    ):
        resume(Foreign(tiny_teacher_dir), projected, tmp_path / "alone.ckpt")
    # without projections the optimizer is the same
    resume(Foreign(tiny_teacher_dir), DistillationLoss(tiny_teacher_dir), tmp_path / "alone.ckpt")


def test_projections_of_an_evaluated_checkpoint_wait_for_a_fit(tiny_teacher_dir: Path, tmp_path: Path):
    class Evaluated(Foreign):
        def test_step(self, batch, batch_idx):
            pass

        def predict_step(self, batch, batch_idx):
            return batch_idx

    def callback(**options: Any) -> DistillationLoss:
        objective = HiddenStates(projection="always", metric="mse", **options)
        return DistillationLoss(tiny_teacher_dir, objectives=[objective])

    first, path = callback(), tmp_path / "projected.ckpt"
    train(Evaluated(tiny_teacher_dir), first).save_checkpoint(path)
    trained = first.state_dict()["objectives"]
    for stage in ("test", "predict"):
        later = callback()
        trainer = Trainer(callbacks=[later], accelerator="cpu", logger=False, enable_progress_bar=False)
        getattr(trainer, stage)(Evaluated(tiny_teacher_dir), batches(), ckpt_path=path)
        assert later.distiller.teacher._model is None
        assert later.state_dict()["objectives"].keys() == trained.keys()  # what is saved now still has them
    train(Evaluated(tiny_teacher_dir), later, max_steps=0)
    assert all(torch.equal(value, trained[name]) for name, value in later.state_dict()["objectives"].items())
    # of no use to another objective: the same number of weights, under other names
    other = callback(layers=[(0, 0), (1, 4)])
    other.load_state_dict({"objectives": {"1.projections.0.weight": torch.zeros(2, 2)}})
    with pytest.warns(UserWarning, match="1 projections that do not fit these objectives, .* begin anew"):
        train(Evaluated(tiny_teacher_dir), other, max_steps=0)


def test_buffers_of_an_objective_go_where_the_module_goes(tiny_teacher_dir: Path):
    class Scaled(SoftTargets):
        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("scale", torch.ones(1))

        def forward(self, student, teacher):
            seen.append(self.scale.dtype)
            return super().forward(student, teacher) * self.scale.sum()

    seen: list[torch.dtype] = []
    module = Foreign(tiny_teacher_dir)
    train(module, DistillationLoss(tiny_teacher_dir, objectives=[Scaled()]), precision="64-true")
    assert set(seen) == {torch.float64}  # as on another device
    assert not hasattr(module, PROJECTIONS)


def test_student_is_found_or_asked_for(tiny_teacher_dir: Path):
    module = Foreign(tiny_teacher_dir)
    callback = DistillationLoss(tiny_teacher_dir)
    train(module, callback)
    assert callback.distiller.student == "model"
    module.second = build_student(tiny_teacher_dir, 1, auto_class="AutoModelForSequenceClassification")
    with pytest.raises(DistillationError, match=r"2 transformers models, at \['model', 'second'\]"):
        train(module, DistillationLoss(tiny_teacher_dir))
    with pytest.raises(DistillationError, match="no module at the path 'third'"):
        train(module, DistillationLoss(tiny_teacher_dir, student="third"))
    with pytest.raises(DistillationError, match="'second' was not run in this training step"):
        train(module, DistillationLoss(tiny_teacher_dir, student="second"))


def test_sleeping_student_is_woken_and_a_half_asleep_one_is_not(tiny_teacher_dir: Path):
    module = Foreign(tiny_teacher_dir)
    module.model.eval()
    train(module, DistillationLoss(tiny_teacher_dir))
    assert all(part.training for part in module.model.modules())
    module.model.distilbert.embeddings.eval()
    with pytest.warns(UserWarning, match="in eval mode at the start"):
        train(module, DistillationLoss(tiny_teacher_dir))
    assert not module.model.distilbert.embeddings.training


def test_optimizer_without_the_projections_is_refused(tiny_teacher_dir: Path):
    class ByHand(Foreign):
        def configure_optimizers(self):
            return torch.optim.SGD(self.model.parameters(), lr=1e-3)

    objectives = [HiddenStates(projection="always", metric="mse")]
    with pytest.raises(DistillationError, match="are in no optimizer"):
        train(ByHand(tiny_teacher_dir), DistillationLoss(tiny_teacher_dir, objectives=objectives))
    train(ByHand(tiny_teacher_dir), DistillationLoss(tiny_teacher_dir, objectives=[SoftTargets()]))


def test_weights_follow_training(tiny_teacher_dir: Path):
    weights = []

    class Watch(Callback):
        def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
            weights.append(callback.distiller.parts[0].current_weight())

    callback = DistillationLoss(tiny_teacher_dir, objectives=[SoftTargets(weight=Linear(4.0, 0.0))])
    train(Foreign(tiny_teacher_dir), callback, Watch(), max_epochs=2)
    assert weights == pytest.approx([4.0, 3.0, 2.0, 1.0])


def test_shared_teacher_is_refused(tiny_teacher_dir: Path):
    module = Foreign(tiny_teacher_dir)
    with pytest.raises(DistillationError, match="Teacher and student share parameters"):
        train(module, DistillationLoss(module.model))
    # what was refused is not frozen either
    assert all(parameter.requires_grad for parameter in module.parameters())
    assert module.model.training


def test_module_that_is_no_transformers_model(tiny_teacher_dir: Path):
    class Small(LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.net = nn.Sequential(nn.Linear(4, 2))

        def training_step(self, batch, batch_idx):
            return self.net(batch).pow(2).mean()

        def configure_optimizers(self):
            return torch.optim.SGD(self.parameters(), lr=0.1)

    callback = DistillationLoss(
        nn.Linear(4, 2), student="net", objectives=[SoftTargets(activation="softmax")], task_weight=0.0
    )
    trainer = Trainer(
        max_epochs=30, callbacks=[callback], accelerator="cpu", devices=1, logger=False, enable_checkpointing=False,
        enable_progress_bar=False, enable_model_summary=False,
    )  # fmt: skip
    first = []

    class First(Callback):
        def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
            first.append(float(outputs["loss"]))

    trainer.callbacks.append(First())
    trainer.fit(Small(), DataLoader([torch.randn(8, 4)] * 2, batch_size=None))
    assert first[-1] < 0.7 * first[0]
