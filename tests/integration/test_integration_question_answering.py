"""Question answering from files to a saved student, and what must not reach its losses."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from pytorch_lightning import Callback, LightningModule, Trainer
from torch.utils.data import DataLoader
from transformers import (
    AutoModelForQuestionAnswering,
    BertConfig,
    BertForQuestionAnswering,
    DistilBertConfig,
    DistilBertForQuestionAnswering,
    RobertaConfig,
    RobertaForQuestionAnswering,
)

from lightning_distilbert import (
    DistillationError,
    DistillationLoss,
    DistillationModule,
    HiddenStates,
    QuestionAnswering,
    QuestionAnsweringData,
    SentenceEmbedding,
    SoftTargets,
    Student,
    load,
)
from lightning_distilbert.data.encoding import Padding
from lightning_distilbert.data.windows import encode_windows, pad_windows
from tests.tokenizers_of_kinds import make_tokenizers

pytestmark = pytest.mark.filterwarnings("ignore:You defined a `validation_step` but have no")

TOKENIZERS = make_tokenizers()
TOKENIZER = TOKENIZERS["bert-uncased"]
SIZES = {"hidden_size": 32, "num_attention_heads": 2, "intermediate_size": 64, "max_position_embeddings": 80}
STILL = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
WORDS = ["tower", "city", "answer", "resume", "at", "by", "built", "when"]


def make_bert(layers=3, seed=0, spread=0.3):
    torch.manual_seed(seed)
    config = BertConfig(vocab_size=len(TOKENIZER), num_hidden_layers=layers, initializer_range=spread, **SIZES, **STILL)
    return BertForQuestionAnswering(config)


def make_distilbert(seed=1):
    torch.manual_seed(seed)
    sizes = {"dim": 32, "hidden_dim": 64, "n_heads": 2, "n_layers": 2, "max_position_embeddings": 80}
    still = {"dropout": 0.0, "attention_dropout": 0.0, "qa_dropout": 0.0}
    config = DistilBertConfig(vocab_size=len(TOKENIZER), initializer_range=0.3, **sizes, **still)
    return DistilBertForQuestionAnswering(config)


def row(question="who", context="the tower was built in the city", text="tower"):
    return {"question": question, "context": context, "answers": [{"text": text, "answer_start": context.index(text)}]}


ROWS = [
    row(), row("where", text="the city"), row("what", "the answer is in the city " * 20, "answer"),
    row("when") | {"answers": None}, row("who is") | {"answers": []},
]  # fmt: skip


def make_trainer(**options: Any) -> Trainer:
    quiet = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False}
    return Trainer(accelerator="cpu", devices=1, enable_model_summary=False, **{"max_epochs": 1, **quiet, **options})


# -- what reaches a loss --


def make_batch(extra=0, seed=0):
    """Windows of several lengths with labels; more padding holds garbage."""
    contexts = ["the tower was built in the city", "the answer is in the city " * 8, "city", "the city"]
    windows = encode_windows(TOKENIZER, ["who is at the tower", "what", "where is it", "when"], contexts, 40, 8)
    windows.offsets = None
    batch = pad_windows(windows[list(range(len(windows)))], Padding.of(TOKENIZER))
    rows = len(batch["input_ids"])
    generator = torch.Generator().manual_seed(seed)
    garbage = torch.randint(5, 40, (rows, extra), generator=generator)
    fill = {"input_ids": garbage, "token_type_ids": garbage % 2}
    for name in ("input_ids", "attention_mask", "token_type_ids", "span_mask"):
        more = fill.get(name, torch.zeros(rows, extra)).to(batch[name].dtype)
        batch[name] = torch.cat([batch[name], more], dim=1)
    starts = batch["span_mask"].int().cumsum(1).argmax(1)  # the last token of the context
    batch["start_positions"], batch["end_positions"] = starts.clone(), starts.clone()
    batch["start_positions"][0] = batch["end_positions"][0] = 0
    batch["start_positions"][-1] = batch["end_positions"][-1] = -100
    return batch


class Foreign(LightningModule):
    """A module of somebody else's, with the loss of transformers."""

    def __init__(self, model):
        super().__init__()
        self.model = model

    def training_step(self, batch, batch_idx):
        output = self.model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"])
        rows = torch.arange(len(batch["start_positions"]))[batch["start_positions"] >= 0]
        mask = batch["span_mask"]
        logs = [
            logits.masked_fill(~mask, -torch.inf).log_softmax(1)[rows, batch[f"{side}_positions"][rows]]
            for side, logits in (("start", output.start_logits), ("end", output.end_logits))
        ]
        return -(logs[0] + logs[1]).mean() / 2

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.0)


def one_step(mount, batch, garbage=None, objective=None, mark=True):
    """Return the loss, the term and the gradients of one step.

    Args:
        mount: ``"module"`` or ``"callback"``.
        batch: The batch.
        garbage: What both heads say of question, separators and padding, instead of what they would.
        objective: The objective.
        mark: Whether the data say where answers may stand.
    """
    student, teacher = make_distilbert(), make_bert()
    outside = ~batch["span_mask"]
    if not mark:
        outside = outside & ((batch["token_type_ids"] == 0) | ~batch["attention_mask"].bool())

    def disturb(module, args, output):
        return output if garbage is None else output.masked_fill(outside.unsqueeze(-1), garbage)

    for model in (student, teacher):
        model.qa_outputs.register_forward_hook(disturb)
    objective = objective or SoftTargets(temperature=2.0)
    if mount == "module":
        module = DistillationModule(QuestionAnswering(), teacher, student, [objective], learning_rate=0.0)
        callbacks = []
    else:
        module, callbacks = Foreign(student), [DistillationLoss(teacher, objectives=[objective])]
    seen: dict[str, Any] = {}

    class Watch(Callback):
        def on_before_optimizer_step(self, trainer, pl_module, optimizer):
            seen.update({name: part.grad.clone() for name, part in student.named_parameters()})

        def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
            seen["loss"] = outputs["loss"].clone()
            seen["term"] = trainer.callback_metrics["distill/soft_targets"].clone()

    batch = batch if mark else {name: value for name, value in batch.items() if name != "span_mask"}
    trainer = make_trainer(max_steps=1, max_epochs=-1, callbacks=[*callbacks, Watch()])
    trainer.fit(module, DataLoader([batch], batch_size=None))
    return seen


def assert_same(one, other):
    assert one.keys() == other.keys()
    for name, value in one.items():
        torch.testing.assert_close(
            other[name], value, rtol=1e-4, atol=2e-6, msg=lambda text, name=name: f"{name}: {text}"
        )


@pytest.mark.parametrize("mount", ["module", "callback"])
def test_what_heads_say_of_question_and_padding_reaches_neither_loss_nor_gradient(mount):
    plain = one_step(mount, make_batch())
    assert plain["term"] > 1e-3
    assert plain["qa_outputs.weight"].abs().sum() > 0
    for garbage in (30.0, float("nan")):
        assert_same(plain, one_step(mount, make_batch(), garbage))


@pytest.mark.parametrize("mount", ["module", "callback"])
@pytest.mark.parametrize("objective", [
    lambda: SoftTargets(temperature=8.0), lambda: SoftTargets(divergence="reverse"), lambda: SoftTargets(top_k=3),
])  # fmt: skip
def test_more_padding_changes_neither_loss_nor_gradient(mount, objective):
    assert_same(one_step(mount, make_batch(), None, objective()), one_step(mount, make_batch(9), None, objective()))


def test_the_term_is_that_of_a_loop_over_the_context():
    batch = make_batch()
    student, teacher = make_distilbert(), make_bert().eval()
    both = []
    with torch.no_grad():
        for model in (student, teacher):
            names = ["input_ids", "attention_mask", *(["token_type_ids"] if model is teacher else [])]
            output = model(**{name: batch[name] for name in names})
            both.append((output.start_logits.double(), output.end_logits.double()))
    costs = []
    for side in (0, 1):
        for place, allowed in enumerate(batch["span_mask"]):
            q, p = (logits[side][place][allowed].div(2.0).log_softmax(0) for logits in both)
            costs.append(float((p.exp() * (p - q)).sum()))
    assert one_step("module", batch)["term"].item() == pytest.approx(4 * sum(costs) / len(costs), rel=1e-4)


def test_a_foreign_batch_is_masked_by_its_token_types():
    def step(garbage):
        student, teacher = make_distilbert(), make_bert()
        batch = make_batch()
        outside = (batch["token_type_ids"] == 0) | ~batch["attention_mask"].bool()
        outside[:, 0] = False
        for model in (student, teacher):
            model.qa_outputs.register_forward_hook(
                lambda _, args, output: output.masked_fill(outside.unsqueeze(-1), garbage)
            )

        class Plain(Foreign):
            def training_step(self, batch, batch_idx):
                self.model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"])
                return self.model.qa_outputs.bias.sum() * 0.0

        del batch["span_mask"]
        trainer = make_trainer(max_steps=1, max_epochs=-1, callbacks=[DistillationLoss(teacher, objectives="logits")])
        trainer.fit(Plain(student), DataLoader([batch], batch_size=None))
        return trainer.callback_metrics["distill/soft_targets"]

    assert step(0.0) > 1e-3
    torch.testing.assert_close(step(50.0), step(0.0))


# -- from files to a saved student --


@pytest.fixture
def teacher_dir(tmp_path: Path) -> Path:
    make_bert().save_pretrained(tmp_path / "teacher")
    TOKENIZER.save_pretrained(tmp_path / "teacher")
    return tmp_path / "teacher"


@pytest.fixture
def squad_dir(tmp_path: Path) -> Path:
    (tmp_path / "squad").mkdir()
    for name in ("train-v2.0.json", "dev-v2.0.json"):
        paragraphs = [{"context": r["context"], "qas": [{**r, "id": str(i)}]} for i, r in enumerate(ROWS)]
        (tmp_path / "squad" / name).write_text(json.dumps({"data": [{"paragraphs": paragraphs}]}))
    return tmp_path / "squad"


def make_data(source: Any, **options: Any) -> QuestionAnsweringData:
    return QuestionAnsweringData(source, **{"batch_size": 4, "max_length": 64, **options})


@pytest.mark.filterwarnings("ignore:.* have no label")
@pytest.mark.parametrize("no_answer", [False, True])
def test_files_fit_save_load_and_predict(teacher_dir, squad_dir, tmp_path, no_answer):
    task = QuestionAnswering(no_answer=no_answer, doc_stride=8)
    module = DistillationModule(task, teacher=str(teacher_dir), student=Student(layers=2))
    trainer, data = make_trainer(), make_data(squad_dir)
    if no_answer:
        trainer.fit(module, data)
    else:
        with pytest.warns(UserWarning, match="1 of 5 questions have no answer"):
            trainer.fit(module, data)
    logged = trainer.callback_metrics
    assert {"val/em", "val/f1", "val/loss", "distill/soft_targets", "distill/hidden_states"} <= set(logged)
    assert task.monitor in logged
    assert ("no_answer" in module.thresholds) == no_answer == ("val/no_answer_f1" in logged)
    pairs = [(r["question"], r["context"]) for r in ROWS]
    expected = module.predict(pairs)
    assert [type(answer) for answer in expected] == [dict] * 5
    loaded = load(module.save_student(tmp_path / "student"))
    assert (loaded.task.to_config(), loaded.thresholds) == (task.to_config(), module.thresholds)
    for one, other in zip(loaded.predict(pairs), expected, strict=True):
        assert {**one, "score": 0} == {**other, "score": 0}
        assert one["score"] == pytest.approx(other["score"], rel=1e-4)
    plain = AutoModelForQuestionAnswering.from_pretrained(tmp_path / "student")
    assert (plain.config.model_type, plain.config.num_hidden_layers) == ("distilbert", 2)
    batches = make_trainer().predict(module, make_data({"predict": squad_dir / "dev-v2.0.json"}, eval_batch_size=2))
    assert [answer["answer"] for batch in batches for answer in batch] == [answer["answer"] for answer in expected]


def test_the_test_split_is_scored_at_the_threshold_of_validation(teacher_dir):
    module = DistillationModule(QuestionAnswering(no_answer=True, doc_stride=8), student=str(teacher_dir))
    rows = [ROWS[0], ROWS[4], ROWS[1]]
    data = make_data({"dev": rows, "test": rows})
    trainer = make_trainer()
    (scores,) = trainer.validate(module, data, verbose=False)
    chosen = dict(module.thresholds)
    (tested,) = trainer.test(module, data, verbose=False)
    assert tested["test/f1"] == pytest.approx(scores["val/best_f1"])
    module.thresholds = {"no_answer": -1e9}
    (tested,) = trainer.test(module, data, verbose=False)
    assert tested["test/f1"] == pytest.approx(1 / 3)  # all left out, and one is right so
    assert module.thresholds != chosen


def test_a_student_learns_to_answer_and_to_leave_unanswered():
    contexts = [" ".join([*["the city of the"] * 9, word, *["was in the city"] * (3 * i % 7)]) for i, word in
                enumerate(WORDS)]  # fmt: skip
    rows = [row("what", context, word) for context, word in zip(contexts, WORDS, strict=True)]
    rows += [row("what", f"the city of the {'city ' * i}", "city") | {"answers": []} for i in range(4)]
    module = DistillationModule(
        QuestionAnswering(no_answer=True, doc_stride=8), student=make_bert(2, spread=0.05), learning_rate=3e-3
    )
    module._tokenizer = TOKENIZER
    data = make_data({"train": rows, "dev": rows}, max_length=32, batch_size=8)
    trainer = make_trainer(max_epochs=25, limit_val_batches=0)
    trainer.fit(module, data)
    (scores,) = make_trainer().validate(module, data, verbose=False)
    assert scores["val/best_em"] == 1.0
    answers = module.predict([(r["question"], r["context"]) for r in rows], max_length=32)
    assert [answer["answer"] for answer in answers] == [*WORDS, "", "", "", ""]
    for answer, context in zip(answers[: len(WORDS)], contexts, strict=True):
        assert context[answer["start"] : answer["end"]] == answer["answer"]


def test_questions_without_labels_are_taught_by_the_teacher_alone(teacher_dir):
    module = DistillationModule(
        QuestionAnswering(doc_stride=8), teacher=str(teacher_dir), student=make_distilbert(), learning_rate=1e-2,
        objectives=[SoftTargets(temperature=2.0)],
    )  # fmt: skip
    data = make_data({"train": [{"question": q, "context": ROWS[2]["context"]} for q in ("who", "what")]}, answers=None)
    terms = []

    class Watch(Callback):
        def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
            assert "train/task_loss" not in trainer.callback_metrics
            terms.append(float(trainer.callback_metrics["distill/soft_targets"]))

    make_trainer(max_epochs=8, callbacks=[Watch()]).fit(module, data)
    assert terms[-1] < 0.5 * terms[0]


@pytest.mark.parametrize("objectives", [[SoftTargets()], [HiddenStates()], [SentenceEmbedding()]])
def test_a_teacher_of_another_tokenizer_is_refused(tmp_path, teacher_dir, objectives):
    torch.manual_seed(0)
    config = RobertaConfig(vocab_size=len(TOKENIZERS["roberta"]), num_hidden_layers=1, **SIZES)
    RobertaForQuestionAnswering(config).save_pretrained(tmp_path / "other")
    TOKENIZERS["roberta"].save_pretrained(tmp_path / "other")
    module = DistillationModule(
        QuestionAnswering(doc_stride=8), teacher=str(tmp_path / "other"), student=str(teacher_dir),
        objectives=[type(objective)() for objective in objectives],
    )  # fmt: skip
    with pytest.raises(DistillationError, match="share one"):
        make_trainer().fit(module, make_data({"train": ROWS[:2]}))
    # also where the user brings the batches
    batch = make_batch()
    if not isinstance(objectives[0], SentenceEmbedding):
        with pytest.raises(DistillationError, match="share one tokenizer"):
            make_trainer().fit(module, DataLoader([batch], batch_size=None))


def test_the_callback_refuses_another_tokenizer_s_tokens_for_spans():
    batch = make_batch()
    batch |= {f"teacher_{name}": batch[name] for name in ("input_ids", "attention_mask")}
    trainer = make_trainer(callbacks=[DistillationLoss(make_bert(), objectives="logits")])
    with pytest.raises(DistillationError, match="SoftTargets on a token-level head"):
        trainer.fit(Foreign(make_distilbert()), DataLoader([batch], batch_size=None))
