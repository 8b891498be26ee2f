"""Attention signals, logits at positions and teachers with another tokenizer, in whole fits."""

from __future__ import annotations

import shutil

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader
from transformers import (
    AutoTokenizer,
    BertConfig,
    BertForMaskedLM,
    BertForSequenceClassification,
    BertTokenizer,
)

from lightning_distilbert import DistillationLoss, DistillationModule, Student, TextClassification
from lightning_distilbert._compat import CallbackBase, LightningModule, Trainer
from lightning_distilbert.architectures import logits_at
from lightning_distilbert.errors import DistillationError
from lightning_distilbert.objectives import (
    Attention,
    HiddenStates,
    Objective,
    Relations,
    SentenceEmbedding,
    SoftTargets,
)
from lightning_distilbert.tasks.base import Task, call_model

pytestmark = [
    pytest.mark.filterwarnings("ignore:You defined a `validation_step` but have no"),
    pytest.mark.filterwarnings("ignore:`gradient_checkpointing_enable` is deprecated:FutureWarning"),
]
both_mounts = pytest.mark.parametrize("mount", ["module", "callback"])


class Foreign(LightningModule):
    """A module that computes its loss in its own way."""

    def __init__(self, model, tokenizer=None):
        super().__init__()
        self.model, self.tokenizer = model, tokenizer

    def training_step(self, batch, batch_idx):
        logits = self.model(batch["input_ids"], attention_mask=batch["attention_mask"]).logits
        return F.cross_entropy(logits.float(), batch["labels"])

    def configure_optimizers(self):
        return torch.optim.SGD(self.model.parameters(), lr=1e-2)


def fit(module, batches, *callbacks):
    trainer = Trainer(
        callbacks=list(callbacks), accelerator="cpu", devices=1, max_epochs=1, logger=False,
        enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False,
    )  # fmt: skip
    trainer.fit(module, DataLoader(batches, batch_size=None))
    return trainer


def bert(kind=BertForSequenceClassification, seed=0, **changes):
    torch.manual_seed(seed)
    values = {
        "vocab_size": 50, "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 24,
        "max_position_embeddings": 32, "initializer_range": 0.2, "hidden_dropout_prob": 0.0,
        "attention_probs_dropout_prob": 0.0,
    }  # fmt: skip
    return kind(BertConfig(**values | changes))


def make_batch(**more):
    ids = torch.randint(5, 50, (3, 6), generator=torch.Generator().manual_seed(0))
    mask = (torch.arange(6) < torch.tensor([6, 4, 5])[:, None]).long()
    return {"input_ids": ids, "attention_mask": mask, "labels": torch.tensor([0, 1, 0]), **more}


# -- a teacher with another tokenizer ----------------------------------------------------------------------------------


@pytest.fixture
def own_words(tiny_teacher_dir, tmp_path, vocabulary):
    """The tiny teacher with the entries of its vocabulary in another order."""
    folder = shutil.copytree(tiny_teacher_dir, tmp_path / "own")
    entries = vocabulary[:5] + vocabulary[:4:-1]
    BertTokenizer(vocab={word: i for i, word in enumerate(entries)}, model_max_length=64).save_pretrained(folder)
    return folder


TEXTS = ["a great movie", "the dull story of a movie", "good"]


def encode(folder, prefix=""):
    batch = AutoTokenizer.from_pretrained(folder)(TEXTS, padding=True, return_tensors="pt")
    return {f"{prefix}{name}": value for name, value in batch.items()}


def mounted(mount, student_dir, teacher_dir, objectives):
    """Return a LightningModule whose student reads with one tokenizer and its teacher with another."""
    if mount == "module":
        task, student = TextClassification(num_labels=2), Student(source=str(student_dir))
        module = DistillationModule(task, teacher_dir, student, objectives, task_weight=0.0, warmup=0.0)
        return module, module.student, module.distiller, []
    model = BertForSequenceClassification.from_pretrained(student_dir)
    callback = DistillationLoss(teacher_dir, objectives=objectives, task_weight=0.0)
    module = Foreign(model, AutoTokenizer.from_pretrained(student_dir))
    return module, model, callback.distiller, [callback]


@both_mounts
def test_a_teacher_reads_its_own_encoding(mount, tiny_teacher_dir, own_words):
    labels = {"labels": torch.tensor([0, 1, 0])}
    batch = {**encode(tiny_teacher_dir), **encode(own_words, "teacher_"), **labels}
    assert not torch.equal(batch["input_ids"], batch["teacher_input_ids"])
    objectives = [SoftTargets(temperature=1.0), SentenceEmbedding(metric="mse")]
    module, _, distiller, callbacks = mounted(mount, tiny_teacher_dir, own_words, objectives)
    given = []

    class Look(CallbackBase):
        def on_train_start(self, trainer, pl_module):
            def note(model, args, kwargs, output):
                given.append((kwargs["input_ids"], output.logits))

            distiller.teacher.model.register_forward_hook(note, with_kwargs=True)

    trainer = fit(module, [batch], *callbacks, Look())
    ((ids, logits),) = given
    assert torch.equal(ids, batch["teacher_input_ids"])
    expected = BertForSequenceClassification.from_pretrained(own_words)
    own = {name.removeprefix("teacher_"): value for name, value in batch.items() if name.startswith("teacher_")}
    torch.testing.assert_close(logits, expected(**own).logits.detach())
    assert trainer.callback_metrics["distill/soft_targets"] > 0
    assert trainer.callback_metrics["distill/sentence_embedding"] > 0


@both_mounts
def test_a_batch_without_its_encoding_stops_before_the_first_optimizer_step(mount, tiny_teacher_dir, own_words):
    module, student, _, callbacks = mounted(mount, tiny_teacher_dir, own_words, [SoftTargets()])
    before = {name: value.clone() for name, value in student.state_dict().items()}
    batch = {**encode(tiny_teacher_dir), "labels": torch.tensor([0, 1, 0])}
    with pytest.raises(DistillationError, match=r"no teacher_input_ids, .* tokens have another id"):
        fit(module, [batch], *callbacks)
    assert all(torch.equal(value, before[name]) for name, value in student.state_dict().items())


@both_mounts
def test_token_level_objectives_are_refused_before_training(mount, tiny_teacher_dir, own_words):
    objectives = [SoftTargets(), HiddenStates()]
    module, _, _, callbacks = mounted(mount, tiny_teacher_dir, own_words, objectives)
    with pytest.raises(DistillationError, match=r"token by token, as in HiddenStates\. .* tokens have another id"):
        fit(module, [], *callbacks)


def test_data_learns_of_the_teachers_tokenizer_from_the_module(tiny_teacher_dir, own_words):
    task, student = TextClassification(num_labels=2), Student(source=str(tiny_teacher_dir))
    own = DistillationModule(task, own_words, student).teacher_tokenizer
    assert own.get_vocab() == AutoTokenizer.from_pretrained(own_words).get_vocab()
    assert DistillationModule(task, tiny_teacher_dir, student).teacher_tokenizer is None
    assert DistillationModule(task, own_words, Student(layers=1)).teacher_tokenizer is None  # the student's too
    assert DistillationModule(task, None, student).teacher_tokenizer is None
    assert DistillationModule(task, bert(), student).teacher_tokenizer is None


def test_a_fit_with_another_pair_forgets_that_the_vocabularies_differed(tiny_teacher_dir, own_words):
    module = DistillationModule(
        TextClassification(num_labels=2), own_words, Student(source=str(tiny_teacher_dir)), [SoftTargets()]
    )
    module.setup("fit")
    assert module.distiller.mismatch is not None
    module._tokenizer = AutoTokenizer.from_pretrained(own_words)
    module.setup("fit")
    assert module.distiller.mismatch is None


# -- logits at positions -----------------------------------------------------------------------------------------------


class Masked(Task):
    """A masked language model that computes its logits where there are labels."""

    auto_class = "AutoModelForMaskedLM"

    def __init__(self, narrow=True):
        self.narrow = narrow

    def positions(self, batch):
        return batch["labels"] != -100

    def run(self, model, batch):
        with logits_at(model, self.positions(batch) if self.narrow else None):
            logits = call_model(model, batch).logits
        return {"logits": logits if self.narrow else logits[self.positions(batch)]}

    def loss(self, outputs, batch):
        return F.cross_entropy(outputs["logits"], batch["labels"][self.positions(batch)])

    def new_metrics(self):
        return nn.ModuleDict()


@pytest.mark.parametrize("narrow", [False, True])
def test_student_and_teacher_compute_their_logits_at_the_tasks_positions(narrow):
    student, teacher = bert(BertForMaskedLM, 1), bert(BertForMaskedLM, 2)
    shapes = {"student": [], "teacher": []}
    for name, model in (("student", student), ("teacher", teacher)):
        model.cls.predictions.decoder.register_forward_hook(lambda *call, name=name: shapes[name].append(call[2].shape))
    batch = make_batch()
    batch["labels"] = torch.full_like(batch["input_ids"], -100)
    batch["labels"][0, 1], batch["labels"][2, 3] = 7, 9
    where = batch["labels"] != -100
    with torch.no_grad():
        ours, theirs = (
            model(batch["input_ids"], batch["attention_mask"]).logits[where] for model in (student, teacher.eval())
        )
    module = DistillationModule(Masked(narrow), teacher, student, [SoftTargets(temperature=1.0)])
    trainer = fit(module, [batch])
    everywhere = torch.Size([3, 6, 50])
    assert shapes["teacher"] == [everywhere, (2, 50)]
    assert shapes["student"] == [everywhere, (2, 50) if narrow else everywhere]
    expected = F.kl_div(ours.log_softmax(-1), theirs.softmax(-1), reduction="batchmean")
    torch.testing.assert_close(trainer.callback_metrics["distill/soft_targets"], expected, rtol=1e-4, atol=1e-6)
    task_loss = F.cross_entropy(ours, batch["labels"][where])
    torch.testing.assert_close(trainer.callback_metrics["train/task_loss"], task_loss, rtol=1e-4, atol=1e-6)


# -- what attention computes -------------------------------------------------------------------------------------------


class Everything(Objective):
    """Compares all that attention computes."""

    requires = frozenset({"queries", "keys", "values", "attention_scores"})
    token_level = True
    name = "everything"

    def forward(self, student, teacher):
        pairs = [
            (ours, theirs)
            for name in sorted(self.requires)
            for ours, theirs in zip(getattr(student, name), getattr(teacher, name), strict=True)
        ]
        return torch.stack([F.mse_loss(ours.float(), theirs.float()) for ours, theirs in pairs]).mean()


def gradients_of(mount, student, teacher, objective=None):
    gradients, objectives = {}, [objective or Everything()]

    class Watch(CallbackBase):
        def on_before_optimizer_step(self, trainer, pl_module, optimizer):
            gradients.update({name: p.grad.clone() for name, p in student.named_parameters() if p.grad is not None})

    if mount == "module":
        module = DistillationModule(TextClassification(num_labels=2), teacher, student, objectives)
        fit(module, [make_batch()], Watch())
    else:
        fit(Foreign(student), [make_batch()], DistillationLoss(teacher, objectives=objectives), Watch())
    return gradients


@pytest.mark.parametrize("objective", [Everything, Attention, lambda: Relations(heads=4)])
@both_mounts
def test_eager_and_sdpa_attention_and_checkpointing_give_the_same_gradients(mount, objective):
    gradients = []
    for attention, checkpointing in (("eager", False), ("sdpa", False), ("sdpa", True)):
        student, teacher = bert(seed=1), bert(seed=2)
        for model in (student, teacher):
            model.set_attn_implementation(attention)
        if checkpointing:
            student.gradient_checkpointing_enable({"use_reentrant": False})
        gradients.append(gradients_of(mount, student, teacher, objective()))
    assert gradients[0]["bert.encoder.layer.1.attention.self.query.weight"].abs().sum() > 0
    for others in gradients[1:]:
        assert others.keys() == gradients[0].keys()
        for name, gradient in gradients[0].items():
            torch.testing.assert_close(others[name], gradient, rtol=1e-4, atol=1e-6)


@both_mounts
def test_reentrant_checkpointing_would_cut_the_graph_and_is_refused(mount):
    student = bert(seed=1)
    student.gradient_checkpointing_enable({"use_reentrant": True})
    with pytest.raises(DistillationError, match=r"of the student have no graph.*'use_reentrant': False"):
        gradients_of(mount, student, bert(seed=2))
