from __future__ import annotations

import copy
import functools
import math

import pytest
import torch
from pytorch_lightning import Trainer
from torch.nn import functional as F
from transformers import AutoTokenizer, BertConfig, BertForMaskedLM, DistilBertConfig, DistilBertForMaskedLM

from lightning_distilbert import DistillationError, DistillationModule, MaskedLM, Student
from lightning_distilbert.objectives.presets import resolve_objectives
from lightning_distilbert.schedules import Linear
from lightning_distilbert.taps import Taps
from lightning_distilbert.tasks.masked_lm import MaskedLMScores

VOCABULARY = 120


@pytest.fixture(scope="module")
def model() -> BertForMaskedLM:
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=VOCABULARY,
        hidden_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=32,
        max_position_embeddings=32,
        initializer_range=0.3,
    )
    return BertForMaskedLM(config).eval()


def batch(rows: int = 3, length: int = 9, seed: int = 0) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(5, VOCABULARY, (rows, length), generator=generator)
    mask = torch.ones_like(ids)
    mask[0, length // 2 :] = 0
    chosen = (torch.rand(ids.shape, generator=generator) < 0.3) & mask.bool()
    chosen[1, 2] = True
    return {"input_ids": ids, "attention_mask": mask, "labels": torch.where(chosen, ids.flip(0), -100)}


@pytest.mark.parametrize("positions", ["masked", "all"])
def test_loss_and_gradient_are_the_model_s_own(model: BertForMaskedLM, positions: str):
    one, other = copy.deepcopy(model), copy.deepcopy(model)
    task, data = MaskedLM(positions=positions), batch()
    loss = task.loss(task.run(one, data), data)
    expected = other(**data).loss  # transformers': cross-entropy at labels that are not -100
    torch.testing.assert_close(loss, expected)
    loss.backward()
    expected.backward()
    for (name, ours), theirs in zip(one.named_parameters(), other.parameters(), strict=True):
        torch.testing.assert_close(ours.grad, theirs.grad, msg=name)


def test_logits_are_computed_where_they_are_wanted_alone(model: BertForMaskedLM):
    data, seen = batch(), []
    hook = model.cls.predictions.decoder.register_forward_hook(lambda module, args, output: seen.append(output.shape))
    with torch.no_grad():
        masked = MaskedLM().run(model, data)["logits"]
        with Taps(model, "", {"logits"}):
            everywhere = MaskedLM(positions="all").run(model, data)["logits"]
        unseen = MaskedLM(positions="all").run(model, data)["logits"]  # but for this hook
        full = MaskedLM().run(model, {name: value for name, value in data.items() if name != "labels"})["logits"]
    hook.remove()
    number = int((data["labels"] != -100).sum())
    real = int(data["attention_mask"].sum())
    assert seen == [(rows, VOCABULARY) for rows in (number, real, number)] + [(3, 9, VOCABULARY)]
    torch.testing.assert_close(masked, full[data["labels"] != -100])
    torch.testing.assert_close(everywhere, masked)
    assert torch.equal(unseen, masked)


def test_positions_of_a_batch():
    data = batch()
    assert torch.equal(MaskedLM().positions(data), data["labels"] != -100)
    assert torch.equal(MaskedLM(positions="all").positions(data), data["attention_mask"].bool())
    bare = {"labels": data["labels"]}
    assert MaskedLM(positions="all").positions(bare).all()
    assert MaskedLM().positions({"input_ids": data["input_ids"]}) is None


def test_a_model_of_another_kind_is_narrowed_afterwards(model: BertForMaskedLM):
    class Wrapper(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = model

        def forward(self, input_ids, attention_mask):
            return self.inner(input_ids=input_ids, attention_mask=attention_mask)

    data = batch()
    with torch.no_grad():
        for at in ("masked", "all"):
            task = MaskedLM(positions=at)
            torch.testing.assert_close(task.run(Wrapper(), data)["logits"], task.run(model, data)["logits"])


def test_no_labels_give_no_loss_and_no_masked_token_gives_zero_with_a_graph(model: BertForMaskedLM):
    data = batch()
    assert MaskedLM().loss({"logits": torch.zeros(3, 9, VOCABULARY)}, {"input_ids": data["input_ids"]}) is None
    data["labels"] = torch.full_like(data["labels"], -100)
    outputs = MaskedLM().run(model, data)
    loss = MaskedLM().loss(outputs, data)
    assert loss.item() == 0.0
    loss.backward()
    model.zero_grad()
    metrics = MaskedLM().new_metrics()
    MaskedLM().update_metrics(metrics, outputs, data)
    assert metrics.tokens == 0


def test_metrics_are_those_of_all_tokens_together():
    torch.manual_seed(1)
    task = MaskedLM()
    metrics = task.new_metrics()
    logits, targets = torch.randn(60, 7) * 2, torch.randint(0, 7, (60,))
    for start, end in ((0, 5), (5, 6), (6, 60)):
        labels = torch.full((1, 80), -100)
        labels[0, : end - start] = targets[start:end]
        task.update_metrics(metrics, {"logits": logits[start:end]}, {"labels": labels})
    task.update_metrics(metrics, {"logits": logits}, {})  # without labels there is nothing to count
    scores = {name: value.item() for name, value in metrics.compute().items()}
    expected = F.cross_entropy(logits.double(), targets).exp().item()
    assert scores["perplexity"] == pytest.approx(expected, rel=1e-6)
    assert scores["accuracy"] == pytest.approx((logits.argmax(-1) == targets).double().mean().item())
    assert {"val/loss", task.mode} == {task.monitor, "min"}


def test_the_sum_over_many_tokens_loses_no_digits():
    metrics = MaskedLMScores()
    logits, targets = torch.tensor([[0.0, 0.1, 0.3]]).expand(4, 3), torch.tensor([0, 1, 2, 0])
    metrics.cross_entropy += 2.0**25  # from here on the next number in single precision is 4 away
    metrics.tokens += 100
    for _ in range(1000):
        metrics.update(logits, targets)
    added = 1000 * F.cross_entropy(logits.double(), targets, reduction="sum").item()
    total = (metrics.cross_entropy.double() - metrics.lost.double()).item()
    assert total - 2.0**25 == pytest.approx(added, rel=1e-3)


def test_decode_gives_the_likeliest_tokens():
    logits = torch.log(torch.tensor([[0.1, 0.6, 0.3], [0.5, 0.2, 0.3]]))
    two = MaskedLM(top_k=2).decode({"logits": logits}, ["a", "b", "c"])
    assert [[filling["token"] for filling in place] for place in two] == [["b", "c"], ["a", "c"]]
    assert two[0][0]["score"] == pytest.approx(0.6)
    assert [len(place) for place in MaskedLM(top_k=5).decode({"logits": logits})] == [3, 3]
    assert MaskedLM(top_k=1).decode({"logits": logits[None]})[0][1] == [{"token": 0, "score": pytest.approx(0.5)}]


@pytest.fixture
def module(tokenizer_dir) -> DistillationModule:
    tokenizer = AutoTokenizer.from_pretrained(tokenizer_dir)
    config = DistilBertConfig(
        vocab_size=len(tokenizer), n_layers=1, n_heads=2, dim=16, hidden_dim=32, initializer_range=0.5
    )
    return DistillationModule(MaskedLM(top_k=3), student=DistilBertForMaskedLM(config), tokenizer=tokenizer_dir)


def test_predict_fills_mask_tokens_as_transformers_does(module: DistillationModule):
    texts = ["the [MASK] is good", "and [MASK]", "[MASK] and [MASK]"]
    one, _, two = module.predict(texts, batch_size=2)
    assert [len(fillings) for fillings in (one, two, *two)] == [3, 2, 3, 3]
    tokenizer, student = module.tokenizer, module.student.eval()
    ids = tokenizer(texts[0], return_tensors="pt")["input_ids"]
    place = (ids[0] == tokenizer.mask_token_id).nonzero().item()
    with torch.no_grad():
        scores, tokens = student(input_ids=ids).logits[0, place].softmax(-1).topk(3)
    assert [filling["token"] for filling in one] == [tokenizer.decode([token]) for token in tokens.tolist()]
    assert [filling["score"] for filling in one] == pytest.approx(scores.tolist(), rel=1e-4)


def test_predict_refuses_a_text_without_a_mask_before_any_is_answered(module: DistillationModule):
    module.student.forward = None  # nothing may be computed
    with pytest.raises(DistillationError, match=r"Entry 1 has no \[MASK\], .* nothing to fill in: 'no mask here'"):
        module.predict(["the [MASK] is good", "no mask here"])
    with pytest.raises(DistillationError, match=r"Entry 0 has no \[MASK\]"):
        module.predict([("one", "pair")])
    with pytest.raises(DistillationError, match="Entry 1 is 3: it has to be a string"):  # no text at all
        module.predict(["the [MASK] is good", 3])


def test_a_mask_that_is_cut_off_is_refused_too(module: DistillationModule):
    assert module.predict(iter(["the [MASK]"])) == module.predict(["the [MASK]"])
    assert len(module.predict(["the the [MASK]", ("the", "[MASK]")][:1], max_length=8)[0]) == 3
    with pytest.raises(DistillationError, match=r"The text 'the the' has no \[MASK\] among the 4 tokens"):
        module.predict(["the the [MASK]"], max_length=4)


def test_logits_at_all_tokens_are_computed_only_where_an_objective_looks(tiny_mlm_dir):
    """In validation, and without a teacher, the head sees the masked tokens alone."""
    rows: list[int] = []

    def counted(objectives: str | None) -> DistillationModule:
        module = DistillationModule(
            MaskedLM(positions="all"),
            teacher=tiny_mlm_dir if objectives else None,
            student=Student(source=str(tiny_mlm_dir), layers=1),
            objectives=objectives or "default",
        )
        head = module.student.vocab_projector
        forward = head.forward
        head.forward = lambda hidden: rows.append(hidden.shape[0]) or forward(hidden)
        return module

    data = batch()
    masked, real = int((data["labels"] != -100).sum()), int(data["attention_mask"].sum())
    assert masked < real
    loader = torch.utils.data.DataLoader([data], batch_size=None)
    for objectives, trained in (("distilbert", real), (None, masked)):
        module = counted(objectives)
        trainer = Trainer(fast_dev_run=True, accelerator="cpu", enable_progress_bar=False, enable_model_summary=False)
        rows.clear()
        trainer.fit(module, loader, loader)
        assert rows == [trained, masked]
    module = counted("logits")
    module.distiller.build(module.student)
    rows.clear()
    # a validation that distils is watched, with gradients or without
    with torch.no_grad(), module.distiller.watch(module.student, data, module.task.positions(data)) as taps:
        outputs = module(data)
    assert rows == [real]
    assert taps.records[0].signals.logits.shape[0] == real
    assert outputs["logits"].shape[0] == masked


@pytest.mark.parametrize("positions", ["masked", "all"])
@pytest.mark.parametrize(
    ("objectives", "task_weight", "expected"),
    [
        ("minilm", 0.0, "none"),
        ("tinybert", 0.0, "none"),
        ("minilm", 0.5, "masked"),
        ("minilm", Linear(1.0, 0.0), "masked"),
        ("logits", 0.0, "positions"),
        (["logits", "minilm"], 0.0, "positions"),
    ],
)
def test_a_head_that_nothing_looks_at_computes_no_logits(tiny_mlm_dir, positions, objectives, task_weight, expected):
    """Neither the student's nor the teacher's: a loss of weight 0 would have it computed for the log alone."""
    data = batch()
    masked, real = int((data["labels"] != -100).sum()), int(data["attention_mask"].sum())
    rows: list[tuple[str, int]] = []
    chosen = objectives
    if isinstance(objectives, list):
        chosen = [one for name in objectives for one in resolve_objectives(name).objectives]
    student = Student(source=str(tiny_mlm_dir), layers=1, architecture="same")
    module = DistillationModule(
        MaskedLM(positions=positions), tiny_mlm_dir, student, chosen, task_weight=task_weight, weight_decay=0.0
    )
    before = copy.deepcopy(module.student.get_output_embeddings().bias)
    for model in (module.student, module.distiller.teacher.model):
        head = model.get_output_embeddings()
        head.forward = functools.partial(counted, rows, model is module.student, head.forward)
    loader = torch.utils.data.DataLoader([data], batch_size=None)
    trainer = Trainer(
        limit_val_batches=0,
        max_epochs=1,
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(module, loader, loader)
    where = {"none": 0, "masked": masked, "positions": masked if positions == "masked" else real}[expected]
    assert [number for ours, number in rows if ours] == [where]
    assert sum(number for ours, number in rows if not ours) == (where if expected == "positions" else 0)
    # no loss is told that was not computed
    assert ("train/task_loss" in trainer.callback_metrics) == (expected != "none")
    assert torch.equal(module.student.get_output_embeddings().bias, before) == (expected == "none")
    # DDP waits for the gradient of each parameter, if only zeros
    assert all(parameter.grad is not None for parameter in module.student.parameters())


def counted(rows, ours, forward, hidden):
    rows.append((ours, hidden.shape[0]))
    return forward(hidden)


@pytest.mark.parametrize("labels", [torch.tensor([0, 1, 0]), torch.zeros(3, 9, 2, dtype=torch.long)])
def test_labels_of_another_task_are_refused(model: BertForMaskedLM, labels: torch.Tensor):
    data = batch() | {"labels": labels}
    with pytest.raises(DistillationError, match=r"The labels have the shape \(3.*one for each token"):
        MaskedLM().run(model, data)


@pytest.mark.parametrize(
    ("arguments", "match"),
    [
        ({"positions": "some"}, r"MaskedLM\(positions=\.\.\.\) was given 'some'"),
        ({"top_k": 0}, "top_k=0: it has to be 1 or more"),
    ],
)
def test_options_out_of_range_are_refused(arguments, match: str):
    with pytest.raises(DistillationError, match=match):
        MaskedLM(**arguments)


def test_a_uniform_model_has_the_perplexity_of_the_vocabulary():
    metrics = MaskedLM().new_metrics()
    metrics.update(torch.zeros(4, 50), torch.arange(4))
    assert metrics.compute()["perplexity"].item() == pytest.approx(50.0, rel=1e-5)
    nothing = MaskedLM().new_metrics()
    nothing.update(torch.zeros(0, 50), torch.zeros(0, dtype=torch.long))
    assert all(math.isnan(value.item()) for value in nothing.compute().values())
