"""The gradient of task and distillation together equals one computed by hand, however the Trainer is set up.

This file is also the script that Lightning's DDP launcher runs in two processes: see `main`.
"""

from __future__ import annotations

import copy
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    DistilBertConfig,
    DistilBertForSequenceClassification,
)

from lightning_distilbert import DistillationLoss, DistillationModule, TextClassification
from lightning_distilbert._compat import CallbackBase, LightningModule, Trainer, lightning_package
from lightning_distilbert.errors import DistillationError
from lightning_distilbert.functional import embedding_distance, hidden_state_distance, pool, soft_targets
from lightning_distilbert.objectives import HiddenStates, SentenceEmbedding, SoftTargets
from lightning_distilbert.precision import FLOAT32_ATTENTION
from lightning_distilbert.schedules import Linear

TASK_WEIGHT, SOFT, HIDDEN, EMBEDDING, TEMPERATURE = 0.6, 0.7, 3.0, 0.4, 2.0
PAIRS = [(1, 2), (2, 4)]
MOUNTS = ("module", "callback-tensor", "callback-dict")

pytestmark = pytest.mark.filterwarnings("ignore:You defined a `validation_step` but have no")


# -- what is trained ---------------------------------------------------------------------------------------------------


def make_models():
    """A BERT teacher and a narrower DistilBERT student, so that there are projections; no dropout anywhere."""
    torch.manual_seed(0)
    teacher = BertForSequenceClassification(
        BertConfig(
            vocab_size=50,
            hidden_size=32,
            num_hidden_layers=4,
            num_attention_heads=2,
            intermediate_size=48,
            max_position_embeddings=32,
            hidden_dropout_prob=0.0,
            attention_probs_dropout_prob=0.0,
            num_labels=3,
            initializer_range=0.1,
        )
    )
    student = DistilBertForSequenceClassification(
        DistilBertConfig(
            vocab_size=50,
            dim=16,
            hidden_dim=32,
            n_layers=2,
            n_heads=2,
            max_position_embeddings=32,
            dropout=0.0,
            attention_dropout=0.0,
            seq_classif_dropout=0.0,
            num_labels=3,
            initializer_range=0.1,
        )
    )
    return student, teacher.eval()


def make_objectives(hidden_weight=HIDDEN):
    return [
        SoftTargets(temperature=TEMPERATURE, weight=SOFT),
        HiddenStates(layers=PAIRS, metric="mse", weight=hidden_weight),
        SentenceEmbedding(metric="cosine", weight=EMBEDDING),
    ]


def make_batches(count=8):
    generator = torch.Generator().manual_seed(1)
    batches = []
    for index in range(count):
        length = 6 + index % 3
        lengths = torch.randint(3, length + 1, (4, 1), generator=generator)
        positions = torch.arange(length)
        batches.append(
            {
                "input_ids": torch.randint(5, 50, (4, length), generator=generator),
                "attention_mask": (positions < lengths).long(),
                "token_type_ids": (positions >= lengths // 2).long(),
                "labels": torch.randint(0, 3, (4,), generator=generator),
            }
        )
    return batches


class Foreign(LightningModule):
    """A module that knows nothing of distillation."""

    def __init__(self, model, returns="tensor", lr=0.0, unused=False):
        super().__init__()
        self.model, self.returns, self.lr = model, returns, lr
        if unused:
            self.unused = nn.Linear(2, 2)

    def training_step(self, batch, batch_idx):
        logits = self.model(batch["input_ids"], attention_mask=batch["attention_mask"]).logits
        loss = F.cross_entropy(logits.float(), batch["labels"])
        return {"loss": loss, "logits": logits.detach()} if self.returns == "dict" else loss

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=self.lr)


class Recorder(CallbackBase):
    """Keeps the gradients that each optimizer step sees."""

    def __init__(self, student, objectives):
        self.watched = {"student": student, "objectives": objectives}
        self.steps = []

    def on_before_optimizer_step(self, trainer, pl_module, optimizer):
        self.steps.append(
            {
                f"{owner}.{name}": None if parameter.grad is None else parameter.grad.detach().clone()
                for owner, module in self.watched.items()
                for name, parameter in module.named_parameters()
            }
        )


def make_run(mount, objectives=None, lr=0.0, unused=False):
    """Return the LightningModule, its callbacks (a `Recorder` last), the student, the teacher and the distiller."""
    student, teacher = make_models()
    torch.manual_seed(7)
    objectives = make_objectives() if objectives is None else objectives
    if mount == "module":
        module = DistillationModule(
            TextClassification(num_labels=3), teacher, student, objectives, TASK_WEIGHT, learning_rate=lr
        )
        callbacks, distiller = [], module.distiller
    else:
        module = Foreign(student, mount.removeprefix("callback-"), lr, unused)
        callbacks = [DistillationLoss(teacher, objectives=objectives, task_weight=TASK_WEIGHT)]
        distiller = callbacks[0].distiller
    return module, [*callbacks, Recorder(student, distiller.objectives)], student, teacher, distiller


def make_trainer(callbacks, accumulate=1, steps=1, **options):
    return Trainer(
        accelerator="cpu",
        max_epochs=1,
        limit_train_batches=accumulate * steps,
        accumulate_grad_batches=accumulate,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        callbacks=callbacks,
        **options,
    )


# -- by hand -----------------------------------------------------------------------------------------------------------


def gradient_by_hand(
    student, teacher, objectives, batches, precision="32-true", divisor=None, distil=True, mount="callback"
):
    """Sum the gradients of all these batches, divided by their number, in a plain loop."""
    student, objectives = copy.deepcopy(student).train(), copy.deepcopy(objectives)
    if mount == "module" and precision == "bf16-mixed":  # which chooses how its student attends
        student.set_attn_implementation(FLOAT32_ATTENTION)
    student.zero_grad()
    objectives.zero_grad()
    _, hidden, embedding = objectives
    for batch in batches:
        inputs = {"input_ids": batch["input_ids"], "attention_mask": batch["attention_mask"]}
        mask = batch["attention_mask"].bool()
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=precision == "bf16-mixed"):
            ours = student(**inputs, output_hidden_states=True)
            with torch.no_grad():
                theirs = teacher(**inputs, token_type_ids=batch["token_type_ids"], output_hidden_states=True)
        loss = TASK_WEIGHT * F.cross_entropy(ours.logits.float(), batch["labels"])
        if distil:
            loss = loss + SOFT * soft_targets(ours.logits, theirs.logits, temperature=TEMPERATURE)
            for projection, (i, j) in zip(hidden.projections, PAIRS, strict=True):
                projected = projection(ours.hidden_states[i].float())
                term = hidden_state_distance(projected, theirs.hidden_states[j], mask, metric="mse")
                loss = loss + HIDDEN / len(PAIRS) * term
            vectors = [pool(output.hidden_states[-1], mask) for output in (ours, theirs)]
            loss = loss + EMBEDDING * embedding_distance(embedding.projections[0](vectors[0]), vectors[1])
        (loss / (divisor or len(batches))).backward()
    owners = {"student": student, "objectives": objectives}
    return {f"{owner}.{name}": p.grad for owner, module in owners.items() for name, p in module.named_parameters()}


def assert_same_gradient(found, expected, rtol=1e-4, atol=1e-6):
    assert found.keys() == expected.keys()
    for name, gradient in expected.items():
        assert found[name] is not None, name
        torch.testing.assert_close(
            found[name], gradient, rtol=rtol, atol=atol, msg=lambda text, name=name: f"{name}: {text}"
        )


# -- one process -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("accumulate", [1, 4])
@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed"])
@pytest.mark.parametrize("mount", MOUNTS)
def test_gradient_equals_the_one_by_hand(mount, precision, accumulate):
    module, callbacks, student, teacher, distiller = make_run(mount)
    trainer = make_trainer(callbacks, accumulate, precision=precision)
    batches = make_batches(accumulate)
    trainer.fit(module, DataLoader(batches, batch_size=None))
    (found,) = callbacks[-1].steps
    expected = gradient_by_hand(student, teacher, distiller.objectives, batches, precision, mount=mount)
    if precision == "32-true":
        assert_same_gradient(found, expected)
    else:
        # the same bfloat16 products in the same order; only sums over the batch may be split otherwise
        assert_same_gradient(found, expected, rtol=1e-2, atol=1e-4)
    undistilled = gradient_by_hand(student, teacher, distiller.objectives, batches, precision, distil=False)
    name = "student.distilbert.transformer.layer.0.ffn.lin1.weight"
    assert not torch.allclose(undistilled[name], expected[name], rtol=0.1)


def test_bf16_mixed_really_computes_in_bfloat16():
    gradients = []
    for precision in ("32-true", "bf16-mixed"):
        module, callbacks, *_ = make_run("callback-tensor")
        make_trainer(callbacks, precision=precision).fit(module, DataLoader(make_batches(1), batch_size=None))
        gradients.append(callbacks[-1].steps[0]["student.classifier.weight"])
    assert not torch.allclose(*gradients, rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(*gradients, rtol=0.1, atol=0.05)


@pytest.mark.parametrize("mount", MOUNTS)
def test_the_returned_and_logged_loss_is_the_whole_one(mount):
    module, callbacks, *_ = make_run(mount)
    seen = []

    class Watch(CallbackBase):
        def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
            seen.append((outputs["loss"].item(), {k: v.item() for k, v in trainer.callback_metrics.items()}))

    make_trainer([*callbacks, Watch()]).fit(module, DataLoader(make_batches(1), batch_size=None))
    ((loss, logged),) = seen
    terms = SOFT * logged["distill/soft_targets"] + HIDDEN * logged["distill/hidden_states"]
    terms += EMBEDDING * logged["distill/sentence_embedding"]
    batch = make_batches(1)[0]
    student, _ = make_models()
    logits = student(batch["input_ids"], attention_mask=batch["attention_mask"]).logits
    assert loss == pytest.approx(terms + TASK_WEIGHT * F.cross_entropy(logits, batch["labels"]).item(), rel=1e-5)


@pytest.mark.parametrize("mount", MOUNTS)
def test_a_weight_that_has_fallen_to_zero_leaves_zero_gradients_and_not_none(mount):
    weight = Linear(1.0, 0.0, until=0.5)
    module, callbacks, *_ = make_run(mount, make_objectives(weight), lr=0.01)
    make_trainer(callbacks, steps=4).fit(module, DataLoader(make_batches(4), batch_size=None))
    norms = [step["objectives.1.projections.0.weight"].norm().item() for step in callbacks[-1].steps]
    assert norms[0] > norms[1] > 0
    assert norms[2:] == [0.0, 0.0]


def test_manual_optimization_of_a_foreign_module_is_refused():
    module, callbacks, *_ = make_run("callback-tensor")
    module.automatic_optimization = False
    with pytest.raises(DistillationError, match="Foreign optimizes manually"):
        make_trainer(callbacks).fit(module, DataLoader(make_batches(1), batch_size=None))
    assert "training_step" not in vars(module)


def test_manual_optimization_of_the_plain_module_is_refused():
    module, callbacks, *_ = make_run("module")
    module.automatic_optimization = False
    with pytest.raises(DistillationError, match="automatic_optimization"):
        make_trainer(callbacks).fit(module, DataLoader(make_batches(1), batch_size=None))


# -- two processes -----------------------------------------------------------------------------------------------------

GRADIENTS = [
    ("module", False, 1, "32-true"),
    ("module", True, 4, "32-true"),
    ("module", False, 4, "bf16-mixed"),
    ("callback-tensor", False, 4, "32-true"),
    ("callback-tensor", True, 1, "32-true"),
    ("callback-dict", True, 4, "bf16-mixed"),
    ("callback-dict", False, 1, "32-true"),
]


def batches_of_rank(rank):
    return make_batches(8)[rank::2]


def without_tokens(batch):
    return {**batch, "attention_mask": batch["attention_mask"] * 0, "labels": torch.full_like(batch["labels"], -100)}


def run_distributed(callbacks, module, batches, find_unused, accumulate=1, steps=1, precision="32-true"):
    strategies = sys.modules[f"{lightning_package.__name__}.strategies"]
    strategy = strategies.DDPStrategy(find_unused_parameters=find_unused, process_group_backend="gloo")
    trainer = make_trainer(
        callbacks, accumulate, steps, devices=2, strategy=strategy, use_distributed_sampler=False, precision=precision
    )
    trainer.fit(module, DataLoader(batches, batch_size=None))
    return {id(parameter) for parameter in trainer.strategy.model.parameters()}


def main(folder):
    """Run all distributed cases in this process, one of two; the first of them writes what it saw."""
    torch.set_num_threads(1)
    rank = int(os.environ.get("LOCAL_RANK", "0"))
    results = {}
    for case in GRADIENTS:
        mount, find_unused, accumulate, precision = case
        module, callbacks, _, teacher, distiller = make_run(mount, unused=find_unused)
        held = run_distributed(callbacks, module, batches_of_rank(rank), find_unused, accumulate, 1, precision)
        results["-".join(map(str, case))] = {
            "gradients": callbacks[-1].steps,
            "objectives": distiller.objectives.state_dict(),
            "teacher_in_ddp": bool(held & {id(parameter) for parameter in teacher.parameters()}),
        }
    for mount in ("module", "callback-tensor"):
        for find_unused in (False, True):
            objectives = make_objectives(Linear(1.0, 0.0, until=0.5))
            module, callbacks, *_ = make_run(mount, objectives, lr=0.01)
            run_distributed(callbacks, module, batches_of_rank(rank), find_unused, steps=4)
            results[f"off-{mount}-{find_unused}"] = {"gradients": callbacks[-1].steps}
    module, callbacks, _, _, distiller = make_run("module")
    batch = batches_of_rank(rank)[0]
    run_distributed(callbacks, module, [without_tokens(batch) if rank else batch], find_unused=False)
    results["masked"] = {"gradients": callbacks[-1].steps, "objectives": distiller.objectives.state_dict()}
    torch.save(results, Path(folder) / f"rank{rank}.pt")


@pytest.fixture(scope="module")
def distributed(tmp_path_factory):
    """What both processes saw, from one launch: starting them costs more than all the cases."""
    folder = tmp_path_factory.mktemp("ddp")
    root = str(Path(__file__).resolve().parents[2])
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([root, *sys.path]), "CUDA_VISIBLE_DEVICES": ""}
    run = subprocess.run(
        [sys.executable, str(Path(__file__).resolve()), str(folder)],
        env=environment,
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )
    assert run.returncode == 0, run.stderr[-4000:]
    return [torch.load(folder / f"rank{rank}.pt", weights_only=True) for rank in (0, 1)]


@pytest.mark.parametrize("case", GRADIENTS, ids=lambda case: "-".join(map(str, case)))
def test_gradient_over_two_processes_is_the_mean_by_hand(distributed, case):
    mount, _, accumulate, precision = case
    _, _, student, teacher, distiller = make_run(mount)
    distiller.build(student)
    batches = [batch for rank in (0, 1) for batch in batches_of_rank(rank)[:accumulate]]
    first, second = (results["-".join(map(str, case))]["gradients"] for results in distributed)
    assert len(first) == len(second) == 1
    # projections are random: those that the run had are compared, and DDP gave both processes the same
    distiller.objectives.load_state_dict(distributed[0]["-".join(map(str, case))]["objectives"])
    assert_same_gradient(first[0], second[0], rtol=0, atol=0)
    expected = gradient_by_hand(student, teacher, distiller.objectives, batches, precision, mount=mount)
    tolerance = {"rtol": 1e-4, "atol": 1e-6} if precision == "32-true" else {"rtol": 1e-2, "atol": 1e-4}
    assert_same_gradient(first[0], expected, **tolerance)


def test_the_teacher_is_in_no_ddp_module(distributed):
    found = [results["-".join(map(str, case))]["teacher_in_ddp"] for results in distributed for case in GRADIENTS]
    assert found == [False] * (2 * len(GRADIENTS))


@pytest.mark.parametrize("find_unused", [False, True])
@pytest.mark.parametrize("mount", ["module", "callback-tensor"])
def test_a_weight_of_zero_does_not_break_ddp(distributed, mount, find_unused):
    for results in distributed:
        steps = results[f"off-{mount}-{find_unused}"]["gradients"]
        norms = [step["objectives.1.projections.1.weight"].norm().item() for step in steps]
        assert norms[0] > 0
        assert norms[2:] == [0.0, 0.0]


def test_a_process_whose_batch_holds_no_token_adds_nothing_and_does_not_hang(distributed):
    _, _, student, teacher, distiller = make_run("module")
    distiller.build(student)
    distiller.objectives.load_state_dict(distributed[0]["masked"]["objectives"])
    expected = gradient_by_hand(student, teacher, distiller.objectives, batches_of_rank(0)[:1], divisor=2)
    for results in distributed:
        assert_same_gradient(results["masked"]["gradients"][0], expected)


if __name__ == "__main__":
    main(sys.argv[1])
