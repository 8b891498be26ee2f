"""A cached teacher says what a live one says, reads each text once, and a folder that does not fit is refused."""

from __future__ import annotations

import json
import pickle

import pytest
import torch
from pytorch_lightning import LightningModule, Trainer
from pytorch_lightning.plugins.precision import HalfPrecision
from torch import nn
from transformers import AutoModelForMaskedLM, AutoModelForSequenceClassification, AutoModelForTokenClassification

from lightning_distilbert import (
    Attention,
    DistillationLoss,
    DistillationModule,
    HiddenStates,
    SoftTargets,
    Student,
    Teacher,
    TextClassification,
    TextClassificationData,
)
from lightning_distilbert.errors import DistillationError
from lightning_distilbert.teacher_cache import META, TeacherCache, fingerprint, kept_tokens, row_keys
from tests.conftest import save_tiny_bert
from tests.encoders import model_of

IDS = torch.tensor([[2, 7, 8, 9, 3], [2, 10, 3, 0, 0], [2, 11, 12, 3, 0]])
INPUTS = {"input_ids": IDS, "attention_mask": (IDS != 0).long(), "token_type_ids": torch.zeros_like(IDS)}
ROWS = [{"text": text, "label": i % 2} for i, text in enumerate(["a good film", "bad", "the long dull story", "fine"])]


def some(rows, width=None, inputs=INPUTS):
    """The inputs of some rows, cut or padded to another width."""
    width = width or IDS.shape[1]
    return {name: nn.functional.pad(value[rows], (0, 4))[:, :width] for name, value in inputs.items()}


class Reads:
    """Count the rows that a model reads."""

    def __init__(self, model):
        self.rows = []
        model.register_forward_pre_hook(lambda module, args, kwargs: self.note(kwargs), with_kwargs=True)

    def note(self, kwargs):
        self.rows.append(len(kwargs["input_ids"]))


def assert_same(found, expected, mask, half=False):
    assert found.logits is None if expected.logits is None else torch.equal(found.logits, expected.logits)
    for name in ("embedding", "classes", "mask", "positions"):
        ours, theirs = getattr(found, name), getattr(expected, name)
        assert ours is None if theirs is None else torch.equal(ours, theirs), name
    if expected.hidden_states is not None:
        assert len(found.hidden_states) == len(expected.hidden_states)
        for ours, theirs in zip(found.hidden_states, expected.hidden_states, strict=True):
            torch.testing.assert_close(ours[mask], theirs[mask].half().float(), atol=0, rtol=0)


# -- what it gives back ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("requires", [{"logits"}, {"hidden_states"}, {"embedding"}, {"logits", "hidden_states"}])
def test_a_cached_teacher_says_what_a_live_one_says(requires, tiny_teacher_dir, tmp_path):
    live, cached = Teacher(tiny_teacher_dir), Teacher(tiny_teacher_dir, cache=tmp_path / "cache")
    expected = live(INPUTS, requires)
    reads = Reads(cached.model if "logits" in requires else cached.model.base_model)
    for _ in range(2):
        assert_same(cached(INPUTS, requires), expected, expected.mask)
    assert reads.rows == [3]
    again = Teacher(tiny_teacher_dir, cache=tmp_path / "cache")  # another process, or another fit
    reads = Reads(again.model)
    assert_same(again(INPUTS, requires), expected, expected.mask)
    assert reads.rows == []
    assert (again.cache.read, again.cache.written) == (3, 0)


def test_rows_are_found_in_any_order_and_padding_and_only_new_ones_are_read(tiny_teacher_dir, tmp_path):
    requires = {"logits", "hidden_states"}
    live, cached = Teacher(tiny_teacher_dir), Teacher(tiny_teacher_dir, cache=tmp_path)
    reads = Reads(cached.model)
    cached(some([1]), requires)
    cached(some([2, 1], 7), requires)
    batch = some([0, 2, 1], 8)
    found, expected = cached(batch, requires), live(batch, requires)
    assert reads.rows == [1, 1, 1]
    torch.testing.assert_close(found.logits, expected.logits, atol=1e-6, rtol=1e-5)
    for ours, theirs in zip(found.hidden_states, expected.hidden_states, strict=True):
        assert ours.shape == theirs.shape
        torch.testing.assert_close(ours[found.mask], theirs[found.mask], atol=2e-3, rtol=2e-3)
    assert not found.hidden_states[1][~found.mask].any()


def test_spans_and_heads_at_positions(tmp_path):
    reader = save_tiny_bert(tmp_path / "reader", spans=True)
    live, cached = Teacher(reader), Teacher(reader, cache=tmp_path / "a")
    types = {**INPUTS, "token_type_ids": torch.tensor([[0, 0, 1, 1, 1], [0, 1, 1, 0, 0], [0, 1, 1, 1, 0]])}
    for _ in range(2):
        expected = live(types, {"logits"})
        found = cached(types, {"logits"})
        assert torch.equal(found.classes, expected.classes)
        assert found.logits.shape == (6, 5)
        assert torch.equal(found.logits[found.classes], expected.logits[found.classes])
    model = model_of("bert", AutoModelForTokenClassification, num_labels=3)
    live, cached = Teacher(model), Teacher(model, cache=tmp_path / "b")
    positions = torch.tensor([[0, 1, 0, 1, 0], [0, 1, 0, 0, 0], [0, 1, 1, 0, 0]]).bool()
    for _ in range(2):
        found = cached(INPUTS, {"logits"}, positions=positions)
        assert found.logits.shape == (5, 3)
        assert torch.equal(found.logits, live(INPUTS, {"logits"}, positions=positions).logits)
    moved = cached(INPUTS, {"logits"}, positions=positions.roll(1, 1) & (IDS != 0))
    assert moved.logits.shape != found.logits.shape or not torch.equal(moved.logits, found.logits)
    assert cached.cache.written > 3


def test_a_finished_module_without_tokens(tmp_path):
    torch.manual_seed(0)
    model, x = nn.Linear(4, 2), torch.randn(3, 4)
    cached = Teacher(model, cache=tmp_path)
    assert torch.equal(cached({"input": x}, {"logits"}).logits, model(x))
    assert torch.equal(cached({"input": x.flip(0)}, {"logits"}).logits, model(x).flip(0))
    assert (cached.cache.read, cached.cache.written) == (3, 3)


def test_keys_tell_apart_what_the_teacher_tells_apart():
    def key(**changes):
        inputs = {**some([1]), **changes}
        return row_keys(inputs, kept_tokens(inputs), None)[0]

    others = [
        key(input_ids=torch.tensor([[2, 11, 3, 0, 0]])),
        key(token_type_ids=torch.tensor([[0, 1, 1, 0, 0]])),
        key(input_ids=torch.tensor([[0, 0, 2, 10, 3]]), attention_mask=torch.tensor([[0, 0, 1, 1, 1]])),
        key(flag=True),
    ]
    assert len({key(), *others}) == 5
    assert (
        key()
        == key(input_ids=torch.tensor([[2, 10, 3, 5, 5]]))
        == key(attention_mask=torch.tensor([[1, 1, 1, 0, 0]]) > 0)
    )


# -- in a fit ----------------------------------------------------------------------------------------------------------


def fit(teacher, tmp_path, epochs=2, **arguments):
    torch.manual_seed(0)
    module = DistillationModule(
        TextClassification(num_labels=2), teacher=teacher, student=Student(layers=2, dropout=0.0),
        **{"objectives": [SoftTargets(), HiddenStates(layers="initialised", metric="mse")], **arguments},
    )  # fmt: skip
    trainer = Trainer(
        max_epochs=epochs, accelerator="cpu", logger=False, enable_progress_bar=False, enable_model_summary=False,
        default_root_dir=tmp_path,
    )  # fmt: skip
    trainer.fit(module, TextClassificationData({"train": ROWS}, batch_size=2))
    return module, trainer


def test_a_fit_with_a_cache_ends_where_one_without_does(tiny_teacher_dir, tmp_path):
    teacher = Teacher(tiny_teacher_dir, cache=tmp_path / "cache")
    reads = Reads(teacher.model)
    (ours, trainer), (theirs, _) = fit(teacher, tmp_path), fit(str(tiny_teacher_dir), tmp_path)
    assert sum(reads.rows) == len(ROWS)
    for one, other in zip(ours.student.parameters(), theirs.student.parameters(), strict=True):
        torch.testing.assert_close(one, other, atol=1e-4, rtol=1e-3)
    trainer.save_checkpoint(tmp_path / "last.ckpt")
    loaded = DistillationModule.load_from_checkpoint(tmp_path / "last.ckpt")
    assert loaded.distiller.teacher.cache.folder == tmp_path / "cache"
    # only the states that are compared are kept: those of the layers 1 and 4 of 4, and not the embeddings
    assert json.loads((tmp_path / "cache" / META).read_text())["layers"] == [1, 4]
    fit(teacher, tmp_path, epochs=1, objectives=[SoftTargets()])  # needs less than there is
    assert sum(reads.rows) == len(ROWS)


def test_the_callback_uses_it_as_well(tiny_teacher_dir, tmp_path):
    class Mine(LightningModule):
        def __init__(self):
            super().__init__()
            self.model = AutoModelForSequenceClassification.from_pretrained(tiny_teacher_dir, num_hidden_layers=2)

        def training_step(self, batch, batch_idx):
            return self.model(**batch).loss

        def validation_step(self, batch, batch_idx):
            self.log("val/loss", self.model(**batch).loss)

        def configure_optimizers(self):
            return torch.optim.SGD(self.parameters(), lr=1e-3)

    teacher = Teacher(tiny_teacher_dir, cache=tmp_path / "cache")
    reads = Reads(teacher.model)
    callback = DistillationLoss(teacher=teacher, student="model", objectives=[SoftTargets()])
    trainer = Trainer(
        max_epochs=3, accelerator="cpu", logger=False, enable_progress_bar=False, enable_checkpointing=False,
        enable_model_summary=False, callbacks=[callback],
    )  # fmt: skip
    data = TextClassificationData({"train": ROWS, "dev": ROWS}, batch_size=2, tokenizer=str(tiny_teacher_dir))
    trainer.fit(Mine(), data)
    assert sum(reads.rows) == len(ROWS)


def test_two_processes_share_what_they_write(tiny_teacher_dir, tmp_path):
    first, second = (Teacher(tiny_teacher_dir, cache=tmp_path) for _ in range(2))
    for teacher in (first, second):
        teacher.open_cache({"logits"})  # both before either has written
    reads = [Reads(first.model), Reads(second.model)]
    first(some([0, 1]), {"logits"})
    second(some([1, 2]), {"logits"})
    first(some([2, 0]), {"logits"})
    assert [reader.rows for reader in reads] == [[2], [1]]
    moved = pickle.loads(pickle.dumps(second))
    assert torch.equal(moved(INPUTS, {"logits"}).logits, first(INPUTS, {"logits"}).logits)


# -- what is refused ---------------------------------------------------------------------------------------------------


def test_another_teacher_is_refused_before_training(tiny_teacher_dir, tmp_path):
    Teacher(tiny_teacher_dir, cache=tmp_path / "cache")(INPUTS, {"logits"})
    other = save_tiny_bert(tmp_path / "other", num_labels=2, seed=5)
    with pytest.raises(DistillationError, match=r"was made by another teacher: its teacher is .* Name another folder"):
        fit(Teacher(other, cache=tmp_path / "cache"), tmp_path, objectives=[SoftTargets()])


def test_what_it_lacks_is_named(tiny_teacher_dir, tmp_path):
    cache = tmp_path / "cache"
    Teacher(tiny_teacher_dir, cache=cache)(INPUTS, {"logits"})
    with pytest.raises(DistillationError, match="lacks hidden_states, which the objectives of this fit compare"):
        fit(Teacher(tiny_teacher_dir, cache=cache), tmp_path)
    fit(Teacher(tiny_teacher_dir, cache=tmp_path / "more"), tmp_path)
    with pytest.raises(DistillationError, match="lacks hidden state 0, hidden state 2"):
        fit(Teacher(tiny_teacher_dir, cache=tmp_path / "more"), tmp_path, objectives=[HiddenStates([(0, 0), (1, 2)])])
    pooled = tmp_path / "pooled"
    Teacher(tiny_teacher_dir, cache=pooled)(INPUTS, {"embedding"})
    with pytest.raises(DistillationError, match="its pooling is 'mean', and that of this one 'cls'"):
        Teacher(tiny_teacher_dir, pooling="cls", cache=pooled)(INPUTS, {"embedding"})


def test_another_head_or_type_is_another_teacher(tmp_path):
    class Two(nn.Module):
        def __init__(self):
            super().__init__()
            self.one, self.two = nn.Linear(4, 2), nn.Linear(4, 2)

        def forward(self, x):
            return {"logits": self.one(x) + self.two(x)}

    model, inputs = Two(), {"x": torch.randn(3, 4)}
    Teacher(model, paths="one", cache=tmp_path)(inputs, {"logits"})
    with pytest.raises(DistillationError, match=r"its path is 'one', and that of this one \{'logits': 'two'\}"):
        Teacher(model, paths={"logits": "two"}, cache=tmp_path).open_cache({"logits"})
    with pytest.raises(DistillationError, match="its dtype is 'its own', and that of this one 'bfloat16'"):
        Teacher(model, paths="one", dtype="bfloat16", cache=tmp_path).open_cache({"logits"})
    named = Teacher(model, paths={"logits": "two"}, cache=tmp_path / "two")
    expected = named(inputs, {"logits"}).logits
    again = Teacher(model, paths={"logits": "two"}, cache=tmp_path / "two")
    assert torch.equal(again(inputs, {"logits"}).logits, expected)
    assert again.cache.read == 3


@pytest.mark.parametrize("dtype", [None, "bfloat16"])
def test_a_module_that_was_trained_further_is_another_teacher(dtype, tmp_path):
    model = nn.Linear(4, 2)
    teacher = Teacher(model, dtype=dtype, cache=tmp_path)
    teacher.open_cache({"logits"})
    teacher({"input": torch.randn(3, 4).to(teacher.model.weight.dtype)}, {"logits"})
    teacher.open_cache({"logits"})  # as a second fit does
    with torch.no_grad():
        model.weight.add_(1.0)
    with pytest.raises(DistillationError, match="was made by another teacher: its teacher is"):
        teacher.open_cache({"logits"})


def test_a_fit_in_half_precision_keeps_the_cache_of_a_module(tiny_teacher_dir, tmp_path):
    teacher = Teacher(AutoModelForSequenceClassification.from_pretrained(tiny_teacher_dir), cache=tmp_path)
    for _ in range(2):
        teacher.open_cache({"logits"})
        teacher.prepare(torch.device("cpu"), HalfPrecision("bf16-true"))
        teacher(INPUTS, {"logits"})
    assert (teacher.cache.read, teacher.cache.written) == (3, 3)


def test_rows_that_nobody_owns_or_of_another_version_are_refused(tiny_teacher_dir, tmp_path):
    Teacher(tiny_teacher_dir, cache=tmp_path)(INPUTS, {"logits"})
    meta = json.loads((tmp_path / META).read_text())
    (tmp_path / META).write_text(json.dumps({**meta, "format": 1}))
    with pytest.raises(
        DistillationError, match="by another version of this package: its format is 1, and this version"
    ):
        Teacher(tiny_teacher_dir, cache=tmp_path).open_cache({"logits"})
    (tmp_path / META).unlink()
    with pytest.raises(DistillationError, match=r"holds rows, and no signals\.json that says which teacher"):
        Teacher(tiny_teacher_dir, cache=tmp_path).open_cache({"logits"})


def test_signals_that_are_not_kept_are_refused_before_training(tiny_teacher_dir, tmp_path):
    with pytest.raises(DistillationError, match="an objective needs attention_scores, which take far more room"):
        fit(Teacher(tiny_teacher_dir, cache=tmp_path / "cache"), tmp_path, objectives=[Attention()])
    assert not (tmp_path / "cache").exists()


def test_a_vocabulary_is_refused_where_possible_before_training(tmp_path):
    many, refusal = {"vocab_size": 1200}, "logits are over 1200 classes, and those of at most 1000 are cached"
    with pytest.raises(DistillationError, match=refusal):
        Teacher(model_of("bert", AutoModelForMaskedLM, **many), cache=tmp_path / "a").open_cache({"logits"})
    with pytest.raises(DistillationError, match=refusal):
        Teacher(nn.Linear(4, 1200), cache=tmp_path / "b")({"input": torch.zeros(2, 4)}, {"logits"})
    Teacher(model_of("bert", AutoModelForMaskedLM, **many), cache=tmp_path / "a").open_cache({"hidden_states"})


@pytest.mark.parametrize("inputs", [{"x": torch.zeros(()), "y": torch.zeros(2, 3)}, {"x": torch.zeros(2, 4), "y": [1]}])
def test_inputs_without_rows_are_refused(inputs, tmp_path):
    with pytest.raises(DistillationError, match="it needs tensors with the texts first, and plain values"):
        row_keys(inputs, None, None)


def test_states_that_float16_does_not_hold_are_refused(tmp_path):
    model = model_of("bert")
    with torch.no_grad():
        model.encoder.layer[1].output.LayerNorm.bias.fill_(1e5)
    with pytest.raises(DistillationError, match="hidden_states reach 100"):
        Teacher(model, cache=tmp_path)(INPUTS, {"hidden_states"})
    assert not list(tmp_path.glob("*.rows"))


def test_a_folder_that_cannot_be_written_or_read_is_refused(tiny_teacher_dir, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(DistillationError, match=r"is no folder that you may write to\. Choose another cache"):
        fit(Teacher(tiny_teacher_dir, cache=tmp_path / "file" / "cache"), tmp_path)
    (tmp_path / META).write_text("{")
    with pytest.raises(DistillationError, match=r"signals\.json cannot be read .* Delete the folder"):
        TeacherCache(tmp_path).open(nn.Linear(1, 1), None, {"logits"}, None)


def test_a_fingerprint_is_of_what_the_config_computes():
    def changed(**values):
        torch.manual_seed(0)
        model = model_of("bert", AutoModelForSequenceClassification, **values)
        return fingerprint(model), fingerprint(nn.ModuleDict({"inside": model}))

    first, inside = changed()
    assert changed() == (first, inside)
    for values in ({"num_attention_heads": 1}, {"hidden_act": "relu"}, {"layer_norm_eps": 1e-3}):
        assert changed(**values)[0] != first
        assert changed(**values)[1] != inside
    for values in ({"id2label": {0: "no", 1: "yes"}}, {"problem_type": "regression"}, {"name_or_path": "elsewhere"}):
        assert changed(**values) == (first, inside)


def test_a_fingerprint_is_of_class_and_weights():
    torch.manual_seed(0)
    first = nn.Linear(2, 2)
    second = nn.Linear(2, 2)
    assert fingerprint(first) != fingerprint(second)
    second.load_state_dict(first.state_dict())
    assert fingerprint(first) == fingerprint(second) != fingerprint(nn.Sequential(first))
