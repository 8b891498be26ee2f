"""Padding reaches no loss and no gradient, for every objective and task, by both ways of mounting them."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F
from torch.utils.data import DataLoader
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    BertModel,
    DistilBertConfig,
    DistilBertForSequenceClassification,
    DistilBertModel,
)

from lightning_distilbert import DistillationLoss, DistillationModule, Reranking, Retrieval, TextClassification
from lightning_distilbert._compat import CallbackBase, LightningModule, Trainer
from lightning_distilbert.functional import in_batch_contrastive
from lightning_distilbert.objectives import HiddenStates, SentenceEmbedding, Similarity, SoftTargets

pytestmark = pytest.mark.filterwarnings("ignore:You defined a `validation_step` but have no")

TASKS = {
    "single": lambda: TextClassification(num_labels=3),
    "multi": lambda: TextClassification(num_labels=3, problem_type="multi_label_classification"),
    "regression": lambda: TextClassification(problem_type="regression"),
    "retrieval-mean": lambda: Retrieval(),
    "retrieval-cls": lambda: Retrieval(pooling="cls"),
    "reranking": lambda: Reranking(),
    "reranking-binary": lambda: Reranking(criterion="binary"),
}
OBJECTIVES = {
    "soft_targets": lambda: SoftTargets(),
    "hidden_last": lambda: HiddenStates(),
    "hidden_uniform_mse": lambda: HiddenStates(layers="uniform", metric="mse"),
    "sentence_embedding": lambda: SentenceEmbedding(),
    "sentence_embedding_mse": lambda: SentenceEmbedding(metric="mse"),
    "similarity": lambda: Similarity(),
    "similarity_within": lambda: Similarity(pairs="within"),
}
# an encoder for retrieval has no logits
CASES = [
    (task, objective)
    for task in TASKS
    for objective in OBJECTIVES
    if not (task.startswith("retrieval") and objective == "soft_targets")
]
BERT = {
    "vocab_size": 50,
    "hidden_size": 32,
    "num_hidden_layers": 4,
    "num_attention_heads": 2,
    "intermediate_size": 48,
    "max_position_embeddings": 32,
    "hidden_dropout_prob": 0.0,
    "attention_probs_dropout_prob": 0.0,
    "initializer_range": 0.1,
}
DISTILBERT = {
    "vocab_size": 50,
    "dim": 16,
    "hidden_dim": 32,
    "n_layers": 2,
    "n_heads": 2,
    "max_position_embeddings": 32,
    "dropout": 0.0,
    "attention_dropout": 0.0,
    "seq_classif_dropout": 0.0,
    "initializer_range": 0.1,
}


def make_models(task):
    torch.manual_seed(0)
    if isinstance(task, Retrieval):
        return DistilBertModel(DistilBertConfig(**DISTILBERT)), BertModel(BertConfig(**BERT), add_pooling_layer=False)
    if isinstance(task, Reranking):
        head = task.model_config()
    else:
        head = {"num_labels": task.num_labels, "problem_type": task.problem_type}
    return (
        DistilBertForSequenceClassification(DistilBertConfig(**DISTILBERT, **head)),
        BertForSequenceClassification(BertConfig(**BERT, **head)),
    )


def make_texts(seed, extra, side="right"):
    """Five texts of 3 to 7 tokens; the ids, types and even the positions of the extra padding are garbage."""
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(5, 50, (5, 7), generator=generator)
    mask = (torch.arange(7) < torch.tensor([7, 3, 5, 4, 6])[:, None]).long()
    types = torch.randint(0, 2, (5, 7), generator=generator)
    fill = torch.randint(5, 50, (5, extra), generator=torch.Generator().manual_seed(extra))
    return {
        "input_ids": torch.cat([ids, fill], dim=1),
        "attention_mask": torch.cat([mask, torch.zeros_like(fill)], dim=1),
        "token_type_ids": torch.cat([types, fill % 2], dim=1),
    }


def make_batch(task, extra):
    if isinstance(task, Retrieval):
        # queries and documents are padded apart
        return {
            "query": make_texts(1, extra),
            "document": make_texts(2, 2 * extra),
            "document_index": torch.tensor([0, 1, 2, 0, 4]),
        }
    if isinstance(task, Reranking):
        labels, queries = torch.tensor([1.0, 0.0, float("nan"), 0.0, 2.0]), torch.tensor([3, 3, 3, 8, 8])
        return {**make_texts(1, extra), "labels": labels, "query_index": queries}
    labels = {
        "single_label_classification": torch.tensor([0, 2, 1, -100, 2]),
        "multi_label_classification": torch.tensor([[1.0, 0.0, 1.0]] * 4 + [[float("nan"), 1.0, 0.0]]),
        "regression": torch.tensor([0.5, -1.0, float("nan"), 2.0, 0.0]),
    }
    return {**make_texts(1, extra), "labels": labels[task.problem_type]}


def without_tokens(batch):
    return {
        name: without_tokens(value) if isinstance(value, dict) else value * 0 if name == "attention_mask" else value
        for name, value in batch.items()
    }


class Foreign(LightningModule):
    """A module that computes its loss in its own way."""

    def __init__(self, model, task):
        super().__init__()
        self.model, self.kind = model, "retrieval" if isinstance(task, Retrieval) else getattr(task, "problem_type", "")

    def training_step(self, batch, batch_idx):
        if self.kind == "retrieval":
            vectors = []
            for side in ("query", "document"):
                inputs = {name: batch[side][name] for name in ("input_ids", "attention_mask")}
                vectors.append(self.model(**inputs).last_hidden_state[:, 0])
            return in_batch_contrastive(*vectors)
        logits = self.model(batch["input_ids"], attention_mask=batch["attention_mask"]).logits
        if self.kind == "single_label_classification":
            return F.cross_entropy(logits, batch["labels"])
        return (logits.reshape(batch["labels"].shape) - batch["labels"].nan_to_num()).square().mean()

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.0)


def run(mount, task, objective, batch, task_weight=0.5):
    """Return the loss of one step and the gradient of every parameter, projections with them."""
    student, teacher = make_models(task)
    torch.manual_seed(3)
    seen = {}
    if mount == "module":
        module = DistillationModule(task, teacher, student, objective, task_weight, learning_rate=0.0)
        callbacks, projections = [], module.distiller.objectives
    else:
        module = Foreign(student, task)
        callbacks = [DistillationLoss(teacher, objectives=objective, task_weight=task_weight, pooling=task.pooling)]
        projections = callbacks[0].distiller.objectives

    class Watch(CallbackBase):
        def on_before_optimizer_step(self, trainer, pl_module, optimizer):
            for owner, part in (("student", student), ("objectives", projections)):
                for name, parameter in part.named_parameters():
                    seen[f"{owner}.{name}"] = None if parameter.grad is None else parameter.grad.clone()

        def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
            seen["loss"] = outputs["loss"].clone()
            name = projections[0].name
            seen["term"] = trainer.callback_metrics[f"distill/{name}"].clone()

    Trainer(
        accelerator="cpu",
        max_steps=1,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        callbacks=[*callbacks, Watch()],
    ).fit(module, DataLoader([batch], batch_size=None))
    return seen


@pytest.mark.parametrize(("task", "objective"), CASES)
@pytest.mark.parametrize("mount", ["module", "callback"])
def test_more_padding_changes_neither_loss_nor_gradient(mount, task, objective):
    task = TASKS[task]()
    short, long = (run(mount, task, OBJECTIVES[objective](), make_batch(task, extra)) for extra in (0, 6))
    assert short["term"] > 1e-4
    assert short["loss"].isfinite()
    positions = next(name for name in short if "position_embeddings" in name)
    # positions that only padding has do get a gradient of zero, from either length
    assert short[positions][7:].abs().sum() == 0
    assert long[positions][7:].abs().sum() == 0
    assert short.keys() == long.keys()
    reached = 0
    for name, value in short.items():
        if value is None:  # a head has no part in an objective on the encoder if the task is weighted 0
            assert long[name] is None
            continue
        torch.testing.assert_close(
            long[name], value, rtol=1e-4, atol=2e-6, msg=lambda text, name=name: f"{name}: {text}"
        )
        reached += bool(value.abs().sum() > 0)
    assert reached > len(short) // 2


@pytest.mark.parametrize(("task", "objective"), CASES)
def test_a_batch_without_a_token_gives_a_zero_loss_with_a_graph(task, objective):
    task = TASKS[task]()
    seen = run("module", task, OBJECTIVES[objective](), without_tokens(make_batch(task, 0)))
    assert seen.pop("loss") == 0
    assert seen.pop("term") == 0
    used = {name: gradient for name, gradient in seen.items() if gradient is not None}
    assert any(name.startswith("student.") for name in used)
    # a None among the projections would make DDP wait for ever
    assert all(gradient is not None for name, gradient in seen.items() if name.startswith("objectives."))
    assert all(gradient.abs().sum() == 0 for gradient in used.values())


@pytest.mark.parametrize("objective", list(OBJECTIVES))
def test_a_batch_without_a_token_leaves_a_foreign_loss_as_it_is(objective):
    task = TASKS["single"]()
    batch = without_tokens(make_batch(task, 0))
    batch["labels"] = batch["labels"].clamp(min=0)
    seen = run("callback", task, OBJECTIVES[objective](), batch)
    student, _ = make_models(task)
    logits = student(batch["input_ids"], attention_mask=batch["attention_mask"]).logits
    assert seen["term"] == 0
    torch.testing.assert_close(seen["loss"], 0.5 * F.cross_entropy(logits, batch["labels"]).detach())
    gradients = [value for name, value in seen.items() if name not in ("loss", "term")]
    assert all(gradient is not None and gradient.isfinite().all() for gradient in gradients)


@pytest.mark.parametrize("task", list(TASKS))
def test_one_text_without_a_token_counts_for_nothing(task):
    task = TASKS[task]()
    objective = SentenceEmbedding(metric="mse") if isinstance(task, Retrieval) else SoftTargets()
    losses = []
    for keep in (slice(0, 4), slice(0, 5)):
        batch = make_batch(task, 0)
        parts = [batch["query"], batch["document"]] if isinstance(task, Retrieval) else [batch]
        for part in parts:
            part["attention_mask"][4] = 0
            part.update({name: value[keep] for name, value in part.items()})
        if isinstance(task, Retrieval):
            batch["document_index"] = batch["document_index"][keep]
        losses.append(run("module", task, objective, batch)["loss"])
    torch.testing.assert_close(*losses)
