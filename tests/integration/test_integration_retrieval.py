"""Retrieval with a teacher: hard negatives, saved scores, a cross-encoder, other tokenizers and widths, reranking."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from pytorch_lightning import Callback, LightningModule, Trainer
from torch import Tensor
from torch.nn import functional as F
from transformers import (
    AutoModel,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    MPNetConfig,
    MPNetForSequenceClassification,
    MPNetModel,
    MPNetTokenizer,
)

from lightning_distilbert import (
    DistillationError,
    DistillationLoss,
    DistillationModule,
    MarginMSE,
    RankingKL,
    Reranking,
    RerankingData,
    Retrieval,
    RetrievalData,
    SentenceEmbedding,
    Similarity,
    Student,
    Teacher,
)
from lightning_distilbert.functional import pool
from tests.conftest import save_tiny_bert, tiny_vocabulary

pytestmark = pytest.mark.filterwarnings("ignore:You passed in a `val_dataloader` but have no")

ROWS = [
    {"query": "who sleeps", "document": "the cat", "negatives": ["a dog", "the man and the child"]},
    {"query": "who works", "document": "the woman", "negatives": ["the cat"]},
    {"query": "who reads the story", "document": "the child", "negatives": ["the old man", "a house"]},
]
SCORED = [
    row | {"scores": [9.0 - place, 3.0, 1.0 + place][: 1 + len(row["negatives"])]} for place, row in enumerate(ROWS)
]


class Steps(Callback):
    """Keeps what each step logged, and its batch."""

    def __init__(self) -> None:
        self.seen: list[tuple[dict[str, float], Any]] = []

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        self.seen.append(({name: float(value) for name, value in trainer.callback_metrics.items()}, batch))


def fit(module: Any, data: Any, *callbacks: Any, epochs: int = 1, **options: Any) -> list[tuple[dict[str, float], Any]]:
    steps = Steps()
    trainer = Trainer(
        **options, max_epochs=epochs, accelerator="cpu", devices=1, logger=False, callbacks=[steps, *callbacks],
        enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False,
    )  # fmt: skip
    trainer.fit(module, data)
    return steps.seen


def still(module: Any) -> Any:
    for part in module.modules():
        if isinstance(part, torch.nn.Dropout):
            part.p = 0.0
    return module


def bi_encoder(teacher: Any, objectives: Any, source: Path, **options: Any) -> DistillationModule:
    torch.manual_seed(0)
    student = Student(layers=2, source=str(source))
    task = Retrieval(**options)
    return still(DistillationModule(task, teacher, student, objectives, learning_rate=0.0))


class Foreign(LightningModule):
    """A retrieval model that knows nothing of this package."""

    def __init__(self, source: Path) -> None:
        super().__init__()
        self.encoder = Student(layers=2, source=str(source)).build()

    def training_step(self, batch, batch_idx):
        sides = [
            self.encoder(batch[name]["input_ids"], attention_mask=batch[name]["attention_mask"]).last_hidden_state
            for name in ("query", "document")
        ]
        return sum(side[:, 0].sum() for side in sides)

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.0)


def calls_of(model: torch.nn.Module) -> list[Any]:
    calls: list[Any] = []
    model.register_forward_hook(lambda module, args, kwargs, output: calls.append(kwargs), with_kwargs=True)
    return calls


@torch.no_grad()
def vectors(model: Any, batch: Any, pooling: str = "mean", prefix: str = "") -> Tensor:
    """Normalised vectors of a model in eval mode."""
    names = ["input_ids", "attention_mask"]
    names += ["token_type_ids"] if "token_type_ids" in batch and model.config.model_type == "bert" else []
    inputs = {name: batch[prefix + name] for name in names}
    was = model.training
    hidden = model.eval()(**inputs).last_hidden_state
    model.train(was)
    return F.normalize(pool(hidden, inputs["attention_mask"].bool(), pooling), dim=-1)


@pytest.fixture(scope="module")
def cross_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A cross-encoder with the vocabulary of the tiny models, whose scores differ as those of a trained one do."""
    folder = save_tiny_bert(tmp_path_factory.mktemp("cross") / "bert", num_labels=1, seed=5)
    model = AutoModelForSequenceClassification.from_pretrained(folder)
    model.classifier.weight.data *= 200
    model.save_pretrained(folder)
    return folder


MPNET = {
    "hidden_size": 48, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32,
    "max_position_embeddings": 70, "initializer_range": 0.2,
}  # fmt: skip


def save_mpnet(folder: Path, kind: Any, **options: Any) -> Path:
    """Another tokenizer and another width, as all-mpnet-base-v2 against a MiniLM."""
    entries = ["<s>", "<pad>", "</s>", "<unk>", "[UNK]", *tiny_vocabulary()[5:][::-1], "<mask>"]
    tokenizer = MPNetTokenizer(vocab={entry: place for place, entry in enumerate(entries)}, model_max_length=64)
    tokenizer.save_pretrained(folder)
    torch.manual_seed(2)
    kind(MPNetConfig(vocab_size=len(entries), pad_token_id=1, **MPNET, **options)).save_pretrained(folder)
    return folder


def texts_of(tokenizer: Any, batch: Any, prefix: str = "") -> list[str]:
    return tokenizer.batch_decode(batch[f"{prefix}input_ids"], skip_special_tokens=True)


@torch.no_grad()
def cross_scores(folder: Path, queries: list[str], documents: list[str]) -> Tensor:
    """The scores of each query with all documents, pair by pair as the tokenizer itself encodes them."""
    model, tokenizer = (
        AutoModelForSequenceClassification.from_pretrained(folder).eval(),
        AutoTokenizer.from_pretrained(folder),
    )
    return torch.stack(
        [
            torch.stack([model(**tokenizer(query, text, return_tensors="pt")).logits.squeeze() for text in documents])
            for query in queries
        ]
    )


def own_scores(module: Any, batch: Any) -> tuple[Tensor, Tensor]:
    """The student's scores of each query's own documents, and which are there."""
    queries, documents = (vectors(module.student, batch[name]) for name in ("query", "document"))
    scores = torch.einsum("iw,kiw->ik", queries, documents.unflatten(0, (-1, len(queries))))
    return scores, batch["document"]["attention_mask"].any(dim=1).view(-1, len(queries)).T


def margins(ours: Tensor, theirs: Tensor, real: Tensor) -> float:
    errors = [
        ((ours[i, 0] - ours[i, j]) - (theirs[i, 0] - theirs[i, j])) ** 2
        for i in range(len(ours))
        for j in range(1, ours.shape[1])
        if real[i, j]
    ]
    return float(torch.stack(errors).mean())


def rankings(ours: Tensor, theirs: Tensor, real: Tensor, temperature: float) -> float:
    losses = []
    for row in range(len(ours)):
        q, p = (ours[row][real[row]] / temperature).softmax(0), theirs[row][real[row]].softmax(0)
        losses.append((p * (p / q).log()).sum())
    return float(torch.stack(losses).mean())


def test_saved_scores_stand_in_for_a_teacher_that_need_not_run(tiny_bert_dir: Path):
    module = bi_encoder(tiny_bert_dir, [MarginMSE(scale=4.0), RankingKL(temperature=0.1)], tiny_bert_dir)
    calls = calls_of(module.distiller.teacher.model)
    ((logged, batch),) = fit(module, RetrievalData({"train": SCORED}, num_negatives=2))
    assert calls == []
    ours, real = own_scores(module, batch)
    assert real.sum() == 8
    assert (real == batch["scores"].isfinite()).all()
    assert logged["distill/margin_mse"] == pytest.approx(margins(4 * ours, batch["scores"], real), rel=1e-4)
    assert logged["distill/ranking_kl"] == pytest.approx(rankings(ours, batch["scores"], real, 0.1), rel=1e-4)
    ((plain, _),) = fit(module, RetrievalData({"train": ROWS}, num_negatives=2))
    assert len(calls) == 2
    for name in ("distill/margin_mse", "distill/ranking_kl"):
        assert plain[name] != pytest.approx(logged[name], rel=1e-2)


def test_the_teacher_runs_for_what_saved_scores_do_not_tell(tiny_bert_dir: Path):
    module = bi_encoder(tiny_bert_dir, [MarginMSE(scale=4.0), Similarity()], tiny_bert_dir)
    calls = calls_of(module.distiller.teacher.model)
    ((logged, batch),) = fit(module, RetrievalData({"train": SCORED}, num_negatives=2))
    assert len(calls) == 2
    ours, real = own_scores(module, batch)
    assert logged["distill/margin_mse"] == pytest.approx(margins(4 * ours, batch["scores"], real), rel=1e-4)
    # hard negatives are among what is ranked
    sides = [
        (vectors(m, batch["query"]), vectors(m, batch["document"]))
        for m in (module.student, module.distiller.teacher.model)
    ]
    there = batch["document"]["attention_mask"].any(dim=1)
    student, teacher = (left @ right[there].T / 0.05 for left, right in sides)
    expected = F.kl_div(student.log_softmax(-1), teacher.softmax(-1), reduction="batchmean")
    assert logged["distill/similarity"] == pytest.approx(expected.item(), rel=1e-3)


@pytest.mark.parametrize("mount", ["module", "callback"])
def test_a_cross_encoder_scores_the_pairs_of_the_batch(tiny_bert_dir: Path, cross_folder: Path, mount: str):
    objectives = [MarginMSE(scale=4.0), RankingKL(temperature=0.1)]
    data = RetrievalData({"train": ROWS}, num_negatives=2, tokenizer=str(tiny_bert_dir))
    if mount == "module":
        module = bi_encoder(cross_folder, objectives, tiny_bert_dir)
        ((logged, batch),) = fit(module, data)
    else:
        module = still(Foreign(tiny_bert_dir))
        module.student = module.encoder
        callback = DistillationLoss(teacher=cross_folder, student="encoder", objectives=objectives)
        ((logged, batch),) = fit(module, data, callback)
    tokenizer = AutoTokenizer.from_pretrained(tiny_bert_dir)
    queries, documents = (texts_of(tokenizer, batch[name]) for name in ("query", "document"))
    scores = cross_scores(cross_folder, queries, documents)
    theirs = torch.stack([scores[i, i::3] for i in range(3)])
    ours, real = own_scores(module, batch)
    assert theirs[real].std() > 0.3
    assert logged["distill/margin_mse"] == pytest.approx(margins(4 * ours, theirs, real), rel=1e-3)
    assert logged["distill/ranking_kl"] == pytest.approx(rankings(ours, theirs, real, 0.1), rel=1e-3)


@pytest.mark.parametrize("precision", ["bf16-mixed", "bf16-true"])
def test_a_cross_encoder_scores_pairs_in_any_precision(tiny_bert_dir: Path, cross_folder: Path, precision: str):
    data = RetrievalData({"train": ROWS}, num_negatives=2)
    found = [
        fit(bi_encoder(cross_folder, [RankingKL()], tiny_bert_dir), data, precision=name)[0][0]["distill/ranking_kl"]
        for name in ("32-true", precision)
    ]
    assert found[1] == pytest.approx(found[0], rel=0.2)


def test_a_cross_encoder_scores_all_documents_where_they_are_candidates(tiny_bert_dir: Path, cross_folder: Path):
    module = bi_encoder(cross_folder, [RankingKL(candidates="batch", temperature=0.1)], tiny_bert_dir)
    ((logged, batch),) = fit(module, RetrievalData({"train": SCORED}, num_negatives=1))
    tokenizer = AutoTokenizer.from_pretrained(tiny_bert_dir)
    queries, documents = (texts_of(tokenizer, batch[name]) for name in ("query", "document"))
    theirs = cross_scores(cross_folder, queries, documents)
    ours = vectors(module.student, batch["query"]) @ vectors(module.student, batch["document"]).T
    assert logged["distill/ranking_kl"] == pytest.approx(rankings(ours, theirs, torch.ones(3, 6).bool(), 0.1), rel=1e-3)


def test_saved_scores_spare_the_cross_encoder(tiny_bert_dir: Path, cross_folder: Path):
    module = bi_encoder(cross_folder, [MarginMSE(scale=4.0)], tiny_bert_dir)
    calls = calls_of(module.distiller.teacher.model)
    ((logged, batch),) = fit(module, RetrievalData({"train": SCORED}, num_negatives=2))
    ours, real = own_scores(module, batch)
    assert calls == []
    assert logged["distill/margin_mse"] == pytest.approx(margins(4 * ours, batch["scores"], real), rel=1e-4)


def test_a_cross_encoder_with_another_tokenizer(tiny_bert_dir: Path, tmp_path: Path):
    folder = save_mpnet(tmp_path / "cross", MPNetForSequenceClassification, num_labels=1)
    module = bi_encoder(folder, [RankingKL(temperature=0.1)], tiny_bert_dir)
    ((logged, batch),) = fit(module, RetrievalData({"train": ROWS}, num_negatives=2))
    tokenizer = AutoTokenizer.from_pretrained(tiny_bert_dir)
    queries, documents = (texts_of(tokenizer, batch[name]) for name in ("query", "document"))
    scores = cross_scores(folder, queries, documents)
    theirs = torch.stack([scores[i, i::3] for i in range(3)])
    ours, real = own_scores(module, batch)
    assert theirs[real].std() > 0.05
    assert logged["distill/ranking_kl"] == pytest.approx(rankings(ours, theirs, real, 0.1), rel=1e-3)


def test_what_a_cross_encoder_cannot_teach_is_refused_before_training(tiny_bert_dir: Path, cross_folder: Path):
    module = bi_encoder(cross_folder, [MarginMSE(), Similarity()], tiny_bert_dir)
    with pytest.raises(DistillationError, match="is a cross-encoder, which reads query and document together"):
        fit(module, RetrievalData({"train": ROWS}))


def test_wrong_scores_in_a_batch_are_refused(tiny_bert_dir: Path):
    class Wrong(RetrievalData):
        def _collate(self, train=False):
            inner = super()._collate(train)
            return lambda rows: inner(rows) | {"scores": torch.zeros(3, 7)}

    module = bi_encoder(tiny_bert_dir, [MarginMSE()], tiny_bert_dir)
    with pytest.raises(DistillationError, match=r"scores of shape \(3, 7\) for 3 queries and 6 documents"):
        fit(module, Wrong({"train": ROWS}))


@pytest.mark.parametrize("pooling", ["mean", "cls"])
def test_a_teacher_of_another_tokenizer_and_width_teaches_sentence_embeddings(
    tiny_bert_dir: Path, tmp_path: Path, pooling: str
):
    folder = save_mpnet(tmp_path / "mpnet", MPNetModel)
    other = "cls" if pooling == "mean" else "mean"
    module = bi_encoder(
        Teacher(folder, pooling=other), [SentenceEmbedding(), Similarity()], tiny_bert_dir, pooling=pooling
    )
    ((logged, batch),) = fit(module, RetrievalData({"train": ROWS}, num_negatives=2, batch_size=3))
    own = AutoTokenizer.from_pretrained(tiny_bert_dir)
    (layer,) = module.objectives[0].projections
    assert layer.weight.shape == (48, 32)
    theirs = AutoModel.from_pretrained(folder, add_pooling_layer=False)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    terms, sides = [], []
    for name in ("query", "document"):
        texts = [text for text in texts_of(own, batch[name]) if text]
        there = batch[name]["attention_mask"].any(dim=1)
        encoded = tokenizer(texts, padding=True, return_tensors="pt")
        inputs = {key: batch[name][key] for key in ("input_ids", "attention_mask")}
        with torch.no_grad():
            hidden = module.student.eval()(**inputs).last_hidden_state
            ours = pool(hidden, inputs["attention_mask"].bool(), pooling)[there]
            target = pool(theirs(**encoded).last_hidden_state, encoded["attention_mask"].bool(), other)
            terms.append(1 - F.cosine_similarity(layer(ours), target, dim=-1).mean())
        sides.append((F.normalize(ours, dim=-1), F.normalize(target, dim=-1)))
    assert logged["distill/sentence_embedding"] == pytest.approx(float(sum(terms) / 2), rel=1e-3)
    student, teacher = (left @ right.T / 0.05 for left, right in zip(*sides, strict=True))
    expected = F.kl_div(student.log_softmax(-1), teacher.softmax(-1), reduction="batchmean")
    assert logged["distill/similarity"] == pytest.approx(expected.item(), rel=1e-3)


def test_hard_negatives_train_without_a_teacher(tiny_bert_dir: Path):
    torch.manual_seed(0)
    module = still(
        DistillationModule(Retrieval(), student=Student(layers=2, source=str(tiny_bert_dir)), learning_rate=1e-3)
    )
    data = RetrievalData({"train": ROWS, "dev": ROWS}, num_negatives=2)
    losses = [logged["train/loss"] for logged, _ in fit(module, data, epochs=12)]
    assert losses[-1] < 0.5 * losses[0]


def test_a_cross_encoder_is_trained_saved_and_distilled(tiny_bert_dir: Path, tmp_path: Path):
    torch.manual_seed(0)
    rows = [
        {"query": f"movie {i}", "document": f"the story of {i}", "negatives": ["a dog in the house", "a tree"]}
        for i in range(8)
    ]
    data = {"train": rows, "dev": rows}
    module = still(DistillationModule(Reranking(), student=str(tiny_bert_dir), learning_rate=1e-3))
    steps = fit(module, RerankingData(data, num_negatives=2, batch_size=8), epochs=25)
    assert steps[-1][0]["train/loss"] < 0.5 * steps[0][0]["train/loss"]
    assert module.trainer.callback_metrics["val/ndcg@10"] > 0.8
    folder = module.save_student(tmp_path / "cross")
    answers = module.predict([("movie 1", "the story of 1"), ("movie 1", "a tree")])
    assert answers[0]["score"] > answers[1]["score"]
    scores = cross_scores(folder, ["movie 1"], ["the story of 1", "a tree"])
    assert [answer["score"] for answer in answers] == pytest.approx(scores[0].tolist(), rel=1e-4)
    # and in turn it teaches a smaller one by its scores
    module = still(DistillationModule(Reranking(), folder, Student(layers=2), learning_rate=0.0))
    ((logged, batch),) = fit(module, RerankingData(data, num_negatives=2, batch_size=8))
    with torch.no_grad():
        inputs = {name: batch[name] for name in ("input_ids", "attention_mask", "token_type_ids")}
        teacher = AutoModelForSequenceClassification.from_pretrained(folder).eval()(**inputs).logits
        student = module.student.eval()(inputs["input_ids"], inputs["attention_mask"]).logits
    assert logged["distill/soft_targets"] == pytest.approx(F.mse_loss(student, teacher).item(), rel=1e-3)


def test_reranking_has_unlabelled_pairs_and_a_teacher_with_another_tokenizer(tiny_bert_dir: Path, tmp_path: Path):
    folder = save_mpnet(tmp_path / "cross", MPNetForSequenceClassification, num_labels=1)
    torch.manual_seed(0)
    student = Student(layers=2, source=str(tiny_bert_dir))
    module = still(DistillationModule(Reranking(), folder, student, "logits", learning_rate=0.0))
    more = [{"query": "who runs", "document": "a dog"}]
    ((logged, batch),) = fit(module, RerankingData({"train": ROWS}, unlabelled=more, num_negatives=2))
    assert batch["labels"].isnan().sum() == 1
    inputs = {name: batch[f"teacher_{name}"] for name in ("input_ids", "attention_mask")}
    with torch.no_grad():
        teacher = AutoModelForSequenceClassification.from_pretrained(folder).eval()(**inputs).logits
        student = module.student.eval()(batch["input_ids"], batch["attention_mask"]).logits
    assert logged["distill/soft_targets"] == pytest.approx(F.mse_loss(student, teacher).item(), rel=1e-3)
    assert logged["train/task_loss"] == pytest.approx(module.task.loss({"logits": student}, batch).item(), rel=1e-3)


def test_sentence_transformers_reads_a_saved_cross_encoder(tiny_bert_dir: Path, tmp_path: Path):
    library = pytest.importorskip("sentence_transformers")
    module = DistillationModule(Reranking(), student=str(tiny_bert_dir))
    folder = module.save_student(tmp_path / "cross")
    pairs = [("who sleeps", "the cat"), ("who sleeps", "the old man and the child")]
    found = library.CrossEncoder(str(folder), activation_fn=torch.nn.Identity(), device="cpu").predict(pairs)
    assert found.tolist() == pytest.approx([answer["score"] for answer in module.predict(pairs)], rel=1e-4)


class Stop(Callback):
    """Saves after some steps, in the middle of an epoch."""

    def __init__(self, path: Path, step: int) -> None:
        self.path, self.step = path, step

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        if trainer.global_step == self.step:
            trainer.save_checkpoint(self.path)


def test_resuming_in_the_middle_of_an_epoch_draws_the_same_negatives(tiny_bert_dir: Path, tmp_path: Path):
    rows = [
        {"query": f"movie {i}", "document": f"the story of {i}", "negatives": [f"a dog {i} {j}" for j in range(5)]}
        for i in range(12)
    ]

    def run(path: Path | None, *callbacks: Any) -> tuple[dict[str, Tensor], list[Tensor]]:
        torch.manual_seed(0)
        module = DistillationModule(
            Retrieval(), student=Student(layers=2, source=str(tiny_bert_dir)), learning_rate=1e-3
        )
        steps = Steps()
        trainer = Trainer(
            max_epochs=2, accelerator="cpu", devices=1, logger=False, callbacks=[steps, *callbacks],
            enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False,
        )  # fmt: skip
        trainer.fit(module, RetrievalData({"train": rows}, batch_size=4, num_negatives=2), ckpt_path=path)
        return module.student.state_dict(), [batch["document_index"] for _, batch in steps.seen]

    whole, seen = run(None, Stop(tmp_path / "half.ckpt", 2))
    resumed, rest = run(tmp_path / "half.ckpt")
    assert len(seen) == 6
    assert len(rest) == 4
    assert all(torch.equal(ours, theirs) for ours, theirs in zip(seen[2:], rest, strict=True))
    assert all(torch.equal(value, resumed[name]) for name, value in whole.items())
    first, second = (sorted(torch.cat(seen[part]).tolist()) for part in (slice(3), slice(3, 6)))
    assert first != second
