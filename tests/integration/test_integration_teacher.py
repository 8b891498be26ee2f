"""The contract of the teacher and of the hooks, by both ways of mounting the engine on a Trainer."""

from __future__ import annotations

import copy
import sys
import warnings

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader
from transformers import (
    AutoModelForSequenceClassification,
    BertConfig,
    BertForSequenceClassification,
    BertModel,
    DistilBertConfig,
    DistilBertForSequenceClassification,
    DistilBertModel,
)

from lightning_distilbert import DistillationLoss, DistillationModule, Retrieval, Student, Teacher, TextClassification
from lightning_distilbert._compat import CallbackBase, LightningModule, Trainer, lightning_package
from lightning_distilbert.errors import DistillationError
from lightning_distilbert.functional import embedding_distance, pool, soft_targets
from lightning_distilbert.objectives import HiddenStates, SentenceEmbedding, Similarity, SoftTargets

WeightAveraging = sys.modules[f"{lightning_package.__name__}.callbacks"].WeightAveraging
MOUNTS = ("module", "callback")

pytestmark = pytest.mark.filterwarnings("ignore:You defined a `validation_step` but have no")
both_mounts = pytest.mark.parametrize("mount", MOUNTS)


def bert_config(**changes):
    values = {
        "vocab_size": 50,
        "hidden_size": 32,
        "num_hidden_layers": 4,
        "num_attention_heads": 2,
        "intermediate_size": 48,
        "max_position_embeddings": 32,
        "initializer_range": 0.1,
    }
    return BertConfig(**values | changes)


def distilbert_config(**changes):
    values = {
        "vocab_size": 50,
        "dim": 16,
        "hidden_dim": 32,
        "n_layers": 2,
        "n_heads": 2,
        "max_position_embeddings": 32,
        "initializer_range": 0.1,
    }
    return DistilBertConfig(**values | changes)


# without dropout, for results that must be equal
STILL_BERT = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
STILL_DISTILBERT = {"dropout": 0.0, "attention_dropout": 0.0, "seq_classif_dropout": 0.0}


def make_teacher(**changes):
    torch.manual_seed(0)
    # in train mode, as a user may well hand it over
    return BertForSequenceClassification(bert_config(num_labels=2, **changes)).train()


def make_student(**changes):
    torch.manual_seed(1)
    return DistilBertForSequenceClassification(distilbert_config(num_labels=2, **changes))


def make_texts(seed=0, rows=4, length=8):
    generator = torch.Generator().manual_seed(seed)
    lengths = torch.randint(4, length + 1, (rows, 1), generator=generator)
    positions = torch.arange(length)
    return {
        "input_ids": torch.randint(5, 50, (rows, length), generator=generator),
        "attention_mask": (positions < lengths).long(),
        "token_type_ids": (positions >= lengths // 2).long(),
    }


def make_batches(count=2):
    return [{**make_texts(seed), "labels": torch.tensor([0, 1, 1, 0])} for seed in range(count)]


class Foreign(LightningModule):
    def __init__(self, model, lr=0.05, fail=False):
        super().__init__()
        self.model, self.lr, self.fail = model, lr, fail

    def training_step(self, batch, batch_idx):
        logits = self.model(batch["input_ids"], attention_mask=batch["attention_mask"]).logits
        if self.fail:
            raise KeyError("a bug of the user")
        return F.cross_entropy(logits.float(), batch["labels"])

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=self.lr)


def make_trainer(callbacks=(), **options):
    settings = {
        "accelerator": "cpu",
        "max_epochs": 1,
        "logger": False,
        "enable_checkpointing": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
    }
    return Trainer(callbacks=list(callbacks), **settings | options)


def make_run(mount, teacher, student, objectives=None, **options):
    """Return a LightningModule, its callbacks and the distiller."""
    objectives = [SoftTargets(), HiddenStates(layers="uniform")] if objectives is None else objectives
    if mount == "module":
        module = DistillationModule(TextClassification(num_labels=2), teacher, student, objectives, learning_rate=1e-3)
        return module, [], module.distiller
    callback = DistillationLoss(teacher, objectives=objectives)
    return Foreign(student, **options), [callback], callback.distiller


def fit(module, callbacks=(), batches=None, **options):
    trainer = make_trainer(callbacks, **options)
    trainer.fit(module, DataLoader(make_batches() if batches is None else batches, batch_size=None))
    return trainer


def ids(parameters):
    return {id(parameter) for parameter in parameters}


def hooks_of(module):
    return sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in module.modules())


class CallLog:
    """Keeps each call of a model: its keyword arguments, what it returned, and which parts were in train mode."""

    def __init__(self, model):
        self.calls = []
        model.register_forward_hook(self._note, with_kwargs=True)

    def _note(self, module, args, kwargs, output):
        training = [name for name, part in module.named_modules() if part.training]
        self.calls.append({"kwargs": kwargs, "output": output, "training": training, "grad": torch.is_grad_enabled()})

    def __deepcopy__(self, memo):
        return self  # a teacher that a fit casts is a copy


# -- the teacher stays outside -----------------------------------------------------------------------------------------


@both_mounts
def test_teacher_is_frozen_and_its_weights_do_not_change(mount):
    model = make_teacher()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    student = make_student()
    untrained = student.classifier.weight.detach().clone()
    module, callbacks, _ = make_run(mount, model, student)
    fit(module, callbacks)
    assert not any(parameter.requires_grad or parameter.grad is not None for parameter in model.parameters())
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert not torch.equal(untrained, student.classifier.weight)


@both_mounts
def test_teacher_is_in_eval_at_every_forward_while_the_student_trains(mount):
    model, student = make_teacher(), make_student()
    teacher_log, student_log = CallLog(model), CallLog(student)

    class Meddle(CallbackBase):
        def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
            pl_module.train()
            model.train()

    module, callbacks, _ = make_run(mount, model, student)
    module.train()
    fit(module, [*callbacks, Meddle()])
    assert [call["training"] for call in teacher_log.calls] == [[], []]
    assert not any(call["grad"] for call in teacher_log.calls)
    assert all("distilbert.embeddings.dropout" in call["training"] for call in student_log.calls)


@both_mounts
def test_teacher_is_absent_from_state_dict_and_optimizer(mount):
    model, student = make_teacher(), make_student()
    module, callbacks, distiller = make_run(mount, model, student)
    seen = {}

    class Watch(CallbackBase):
        def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
            seen["state"] = {value.data_ptr() for value in pl_module.state_dict().values()}
            seen["module"] = ids(pl_module.parameters())
            seen["optimizer"] = ids(p for o in trainer.optimizers for g in o.param_groups for p in g["params"])

    fit(module, [*callbacks, Watch()])
    assert not seen["state"] & {value.data_ptr() for value in model.state_dict().values()}
    assert not seen["module"] & ids(model.parameters())
    assert seen["optimizer"] == ids(student.parameters()) | ids(distiller.objectives.parameters())


@both_mounts
def test_teacher_is_absent_from_the_checkpoint_file(mount, tmp_path):
    model = make_teacher(vocab_size=50, intermediate_size=47)
    module, callbacks, _ = make_run(mount, model, make_student(), [SoftTargets()])
    fit(module, callbacks, max_steps=1).save_checkpoint(tmp_path / "last.ckpt")
    checkpoint = torch.load(tmp_path / "last.ckpt", weights_only=True)
    shapes = [tuple(value.shape) for value in tensors_in(checkpoint)]
    assert (32, 16) in shapes
    assert not [shape for shape in shapes if 47 in shape]  # only the teacher has this width


def tensors_in(value):
    if isinstance(value, torch.Tensor):
        return [value]
    items = value.values() if isinstance(value, dict) else value if isinstance(value, (list, tuple)) else []
    return [tensor for item in items for tensor in tensors_in(item)]


def test_a_deep_copy_of_the_module_shares_the_teacher_and_nothing_else():
    module, *_ = make_run("module", make_teacher(), make_student())
    module.setup("fit")
    twin = copy.deepcopy(module)
    assert twin.distiller.teacher is module.distiller.teacher
    assert twin.objectives is twin.distiller.objectives
    assert list(module.parameters())
    assert not ids(twin.parameters()) & ids(module.parameters())


@both_mounts
def test_weight_averaging_averages_student_and_projections_and_not_the_teacher(mount):
    torch.manual_seed(3)
    model, student = make_teacher(), make_student()
    module, callbacks, distiller = make_run(mount, model, student)
    if mount == "module":
        module.setup("fit")  # the projections exist before the weights are first copied
    path, averaged = [], []

    class Watch(WeightAveraging):
        def on_train_batch_end(self, trainer, pl_module, *args):
            super().on_train_batch_end(trainer, pl_module, *args)
            path.append([p.detach().clone() for p in pl_module.parameters()])
            averaged.append(ids(self._average_model.parameters()))

    with warnings.catch_warnings():
        warnings.simplefilter("error")
        warnings.filterwarnings("ignore", "You defined|The '?train_dataloader|The number of training|GPU|.*LeafSpec")
        fit(module, [*callbacks, Watch()], make_batches(3))
    assert not averaged[0] & ids(model.parameters())
    names = [*student.parameters(), *distiller.objectives.parameters()]
    assert len(averaged[0]) == len(path[0]) == len(names)
    for index, parameter in enumerate(module.parameters()):
        expected = torch.stack([step[index] for step in path]).mean(dim=0)
        torch.testing.assert_close(parameter.detach(), expected, rtol=1e-4, atol=1e-5)


def test_weight_averaging_before_the_callback_is_refused():
    module, callbacks, _ = make_run("callback", make_teacher(), make_student())
    with pytest.raises(DistillationError, match="put DistillationLoss first"):
        fit(module, [WeightAveraging(), *callbacks])
    assert "training_step" not in vars(module)
    assert not any("projections" in name for name in module.state_dict())


def test_weight_averaging_may_stand_anywhere_where_there_are_no_projections():
    module, callbacks, _ = make_run("callback", make_teacher(), make_student(), [SoftTargets()])
    assert fit(module, [WeightAveraging(), *callbacks]).callback_metrics["distill/soft_targets"] > 0
    module, *_ = make_run("module", make_teacher(), make_student(), [SoftTargets()])
    assert fit(module, [WeightAveraging()]).callback_metrics["distill/soft_targets"] > 0


def test_weight_averaging_before_the_module_has_projections_is_refused():
    module, *_ = make_run("module", make_teacher(), make_student())
    with pytest.raises(DistillationError, match=r"module\.setup\('fit'\)"):
        fit(module, [WeightAveraging()])


def test_a_checkpoint_of_averaged_weights_loads_without_the_callback(tmp_path):
    module, callbacks, _ = make_run("callback", make_teacher(), make_student())
    trainer = make_trainer([*callbacks, WeightAveraging()])

    class Save(CallbackBase):
        def on_train_epoch_end(self, trainer, pl_module):
            trainer.save_checkpoint(tmp_path / "averaged.ckpt")

    trainer.callbacks.append(Save())
    trainer.fit(module, DataLoader(make_batches(), batch_size=None))
    checkpoint = torch.load(tmp_path / "averaged.ckpt", weights_only=True)
    plain = Foreign(make_student())
    plain.load_state_dict(checkpoint["state_dict"])
    plain.load_state_dict(checkpoint["current_model_state"])


def test_a_checkpoint_of_weights_alone_loads_without_the_callback(tmp_path):
    module, callbacks, _ = make_run("callback", make_teacher(), make_student())

    class Save(CallbackBase):
        def on_train_epoch_end(self, trainer, pl_module):
            trainer.save_checkpoint(tmp_path / "weights.ckpt", weights_only=True)

    fit(module, [*callbacks, Save()])
    Foreign(make_student()).load_state_dict(torch.load(tmp_path / "weights.ckpt", weights_only=True)["state_dict"])


def test_training_of_averaged_weights_resumes(tmp_path):
    weights = []
    for resume in (None, tmp_path / "averaged.ckpt"):
        module, callbacks, _ = make_run("callback", make_teacher(), make_student())
        trainer = make_trainer([*callbacks, WeightAveraging()], max_epochs=1 if resume is None else 2)
        if resume is None:

            class Save(CallbackBase):
                def on_train_epoch_end(self, trainer, pl_module):
                    trainer.save_checkpoint(tmp_path / "averaged.ckpt")
                    weights.append(copy.deepcopy(trainer.callbacks[0].distiller.objectives.state_dict()))

            trainer.callbacks.append(Save())
        else:

            class Look(CallbackBase):
                def on_train_start(self, trainer, pl_module):
                    weights.append(copy.deepcopy(trainer.callbacks[0].distiller.objectives.state_dict()))

            trainer.callbacks.append(Look())
        trainer.fit(module, DataLoader(make_batches(), batch_size=None), ckpt_path=resume, weights_only=True)
    saved, resumed = weights
    assert saved.keys() == resumed.keys()
    assert all(torch.equal(value, resumed[name]) for name, value in saved.items())


# -- device and precision ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("precision", "dtype", "weights", "outputs"),
    [
        ("32-true", None, torch.float32, torch.float32),
        ("bf16-true", None, torch.bfloat16, torch.bfloat16),
        ("bf16-mixed", None, torch.float32, torch.bfloat16),
        ("32-true", "bfloat16", torch.bfloat16, torch.bfloat16),
        ("bf16-mixed", "bfloat16", torch.bfloat16, torch.bfloat16),
        ("bf16-true", "float32", torch.float32, torch.float32),
    ],
)
@both_mounts
def test_teacher_runs_in_the_precision_of_the_trainer_or_its_own(mount, precision, dtype, weights, outputs):
    model = make_teacher()
    log = CallLog(model)
    teacher = Teacher(model, dtype=dtype)
    module, callbacks, _ = make_run(mount, teacher, make_student())
    trainer = fit(module, callbacks, precision=precision)
    assert {parameter.dtype for parameter in teacher.model.parameters()} == {weights}
    assert dtype or {parameter.dtype for parameter in model.parameters()} == {torch.float32}
    assert {call["output"].logits.dtype for call in log.calls} == {outputs}
    assert trainer.callback_metrics["distill/soft_targets"].isfinite()


def test_teacher_moves_to_the_device_of_the_student():
    teacher = Teacher(make_teacher())
    teacher.prepare(torch.device("meta"))
    assert {parameter.device.type for parameter in teacher.model.parameters()} == {"meta"}


# -- the student's mode ------------------------------------------------------------------------------------------------


@both_mounts
def test_a_student_from_pretrained_is_put_into_train_mode(mount, tiny_teacher_dir):
    student = AutoModelForSequenceClassification.from_pretrained(tiny_teacher_dir)
    assert not student.training
    log = CallLog(student)
    module, callbacks, _ = make_run(mount, make_teacher(vocab_size=student.config.vocab_size), student, [SoftTargets()])
    fit(module, callbacks)
    parts = [name for name, _ in student.named_modules()]
    assert [call["training"] for call in log.calls] == [parts, parts]


@pytest.mark.filterwarnings("ignore:Found .* in eval mode at the start of training")
def test_a_student_partly_in_eval_mode_is_left_alone_by_the_callback():
    student = make_student()
    student.train()
    student.distilbert.eval()
    log = CallLog(student)
    module, callbacks, _ = make_run("callback", make_teacher(), student)
    fit(module, callbacks)
    assert [sorted(call["training"]) for call in log.calls] == [["", "classifier", "dropout", "pre_classifier"]] * 2


@both_mounts
@pytest.mark.parametrize("part", ["all", "embeddings"])
def test_a_teacher_that_shares_parameters_with_the_student_is_refused(mount, part):
    teacher, student = make_teacher(), make_teacher()
    if part == "all":
        student = teacher
    else:
        student.bert.embeddings = teacher.bert.embeddings
    module, callbacks, _ = make_run(mount, teacher, student)
    with pytest.raises(DistillationError, match="share parameters"):
        fit(module, callbacks)


def test_both_mounts_together_are_refused():
    module, *_ = make_run("module", make_teacher(), make_student())
    with pytest.raises(DistillationError, match="count twice"):
        fit(module, [DistillationLoss(make_teacher())])


def test_the_callback_serves_a_module_that_has_no_teacher_itself():
    module = DistillationModule(TextClassification(num_labels=2), None, make_student())
    trainer = fit(module, [DistillationLoss(make_teacher())])
    assert trainer.callback_metrics["distill/soft_targets"] > 0


# -- what the teacher is given -----------------------------------------------------------------------------------------


@both_mounts
def test_on_sentence_pairs_the_teacher_gets_the_token_types_that_the_student_cannot_take(mount):
    model, student = make_teacher(**STILL_BERT), make_student(**STILL_DISTILBERT)
    teacher_log, student_log = CallLog(model), CallLog(student)
    (batch,) = make_batches(1)
    module, callbacks, _ = make_run(mount, model, student, [SoftTargets(temperature=2.0)])
    trainer = fit(module, callbacks, [batch], max_steps=1)
    (call,) = teacher_log.calls
    assert "token_type_ids" not in student_log.calls[0]["kwargs"]
    assert torch.equal(call["kwargs"]["token_type_ids"], batch["token_type_ids"])
    inputs = {name: batch[name] for name in ("input_ids", "attention_mask", "token_type_ids")}
    alone = model(**inputs).logits
    assert torch.equal(call["output"].logits, alone)
    assert not torch.allclose(alone, model(batch["input_ids"], batch["attention_mask"]).logits, atol=1e-3)
    expected = soft_targets(student_log.calls[0]["output"].logits, alone, temperature=2.0)
    torch.testing.assert_close(trainer.callback_metrics["distill/soft_targets"], expected.detach())


def make_retrieval_batch():
    return {"query": make_texts(5, length=6), "document": make_texts(6, length=9), "document_index": torch.arange(4)}


class ForeignRetrieval(LightningModule):
    def __init__(self, encoder):
        super().__init__()
        self.encoder = encoder

    def embed(self, texts):
        hidden = self.encoder(texts["input_ids"], attention_mask=texts["attention_mask"]).last_hidden_state
        return F.normalize(pool(hidden, texts["attention_mask"]), dim=-1)

    def training_step(self, batch, batch_idx):
        scores = self.embed(batch["query"]) @ self.embed(batch["document"]).T
        return F.cross_entropy(scores / 0.05, torch.arange(len(scores)))

    def configure_optimizers(self):
        return torch.optim.SGD([p for p in self.parameters() if p.requires_grad], lr=0.0)


@both_mounts
def test_two_student_forwards_are_matched_with_two_teacher_calls_in_order(mount):
    torch.manual_seed(0)
    model = BertModel(bert_config(**STILL_BERT), add_pooling_layer=False)
    student = DistilBertModel(distilbert_config(**STILL_DISTILBERT, dim=32))
    teacher_log, student_log = CallLog(model), CallLog(student)
    objectives = [SentenceEmbedding(metric="mse"), Similarity(temperature=0.1)]
    if mount == "module":
        module = DistillationModule(Retrieval(), model, student, objectives)
        callbacks = []
    else:
        module, callbacks = ForeignRetrieval(student), [DistillationLoss(model, objectives=objectives)]
    batch = make_retrieval_batch()
    trainer = fit(module, callbacks, [batch], max_steps=1)
    sides = [batch["query"], batch["document"]]
    for log in (teacher_log, student_log):
        assert len(log.calls) == 2
    for call, texts in zip(teacher_log.calls, sides, strict=True):
        assert torch.equal(call["kwargs"]["input_ids"], texts["input_ids"])
        assert torch.equal(call["kwargs"]["token_type_ids"], texts["token_type_ids"])
    vectors = [
        [
            pool(call["output"].last_hidden_state, texts["attention_mask"])
            for call, texts in zip(log.calls, sides, strict=True)
        ]
        for log in (student_log, teacher_log)
    ]
    expected = sum(embedding_distance(ours, theirs, metric="mse") for ours, theirs in zip(*vectors, strict=True)) / 2
    torch.testing.assert_close(trainer.callback_metrics["distill/sentence_embedding"], expected.detach())
    ours, theirs = (F.normalize(left, dim=-1) @ F.normalize(right, dim=-1).T / 0.1 for left, right in vectors)
    expected = F.kl_div(ours.log_softmax(-1), theirs.softmax(-1), reduction="batchmean").detach()
    torch.testing.assert_close(trainer.callback_metrics["distill/similarity"], expected, rtol=1e-4, atol=1e-6)


class Apart(LightningModule):
    """Encoder and head as separate modules; with ``pairs`` both texts are encoded before the head sees either."""

    def __init__(self, pairs=False):
        super().__init__()
        torch.manual_seed(1)
        self.encoder = DistilBertModel(distilbert_config(**STILL_DISTILBERT))
        self.head = nn.Linear(16, 2)
        self.pairs = pairs

    def vectors(self, batch):
        return self.encoder(batch["input_ids"], attention_mask=batch["attention_mask"]).last_hidden_state[:, 0]

    def training_step(self, batch, batch_idx):
        if not self.pairs:
            return F.cross_entropy(self.head(self.vectors(batch)), batch["labels"])
        first, second = self.vectors(batch["query"]), self.vectors(batch["document"])
        return self.head(first).square().mean() + self.head(second).square().mean()

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.0)


@pytest.mark.parametrize("pairs", [False, True])
def test_a_foreign_module_whose_encoder_and_head_are_apart_works(pairs):
    model = make_teacher(**STILL_BERT)
    module = Apart(pairs)
    paths = {"hidden_states": "encoder", "logits": "head", "embedding": "encoder"}
    objectives = [SoftTargets(temperature=1.0), HiddenStates(), SentenceEmbedding()]
    callback = DistillationLoss(model, student=paths, objectives=objectives)
    (batch,) = [make_retrieval_batch()] if pairs else make_batches(1)
    trainer = fit(module, [callback], [batch], max_steps=1)
    terms = []
    for texts in [batch["query"], batch["document"]] if pairs else [batch]:
        inputs = {name: texts[name] for name in ("input_ids", "attention_mask", "token_type_ids")}
        terms.append(soft_targets(module.head(module.vectors(texts)), model(**inputs).logits))
    torch.testing.assert_close(trainer.callback_metrics["distill/soft_targets"], torch.stack(terms).mean().detach())
    assert trainer.callback_metrics["distill/hidden_states"] > 0


def test_the_path_of_an_ambiguous_student_is_asked_for():
    module = Apart()
    module.second = DistilBertModel(distilbert_config())
    with pytest.raises(DistillationError, match=r"holds 2 transformers models, at \['encoder', 'second'\]"):
        fit(module, [DistillationLoss(make_teacher(), objectives=[HiddenStates()])])


def test_a_student_that_is_not_run_in_the_step_is_reported():
    module = Apart()
    module.second = DistilBertModel(distilbert_config())
    with pytest.raises(DistillationError, match="'second' was not run"):
        fit(module, [DistillationLoss(make_teacher(), student="second", objectives=[HiddenStates()])])


@pytest.mark.filterwarnings("ignore:`gradient_checkpointing_enable` is deprecated:FutureWarning")
@pytest.mark.parametrize("reentrant", [False, True])
@both_mounts
def test_gradient_checkpointing_changes_no_gradient_and_no_number_of_records(mount, reentrant):
    gradients, calls = [], []
    for checkpointing in (False, True):
        torch.manual_seed(5)
        student = BertForSequenceClassification(bert_config(**STILL_BERT, num_hidden_layers=2, num_labels=2))
        model = make_teacher(**STILL_BERT)
        if checkpointing:
            student.gradient_checkpointing_enable({"use_reentrant": reentrant})
        log = CallLog(model)
        objectives = [SoftTargets(), HiddenStates(layers=[(0, 0), (1, 2), (2, 4)], metric="mse"), SentenceEmbedding()]
        module, callbacks, _ = make_run(mount, model, student, objectives)

        class Watch(CallbackBase):
            def on_before_optimizer_step(self, trainer, pl_module, optimizer, student=student):
                gradients.append({name: p.grad.clone() for name, p in student.named_parameters()})

        fit(module, [*callbacks, Watch()], make_batches(1), max_steps=1)
        calls.append(len(log.calls))
    assert calls == [1, 1]
    for name, gradient in gradients[0].items():
        torch.testing.assert_close(gradients[1][name], gradient, msg=lambda text, name=name: f"{name}: {text}")


# -- nothing is left behind --------------------------------------------------------------------------------------------


@both_mounts
def test_hooks_exist_only_within_a_step(mount):
    model, student = make_teacher(), make_student()
    module, callbacks, _ = make_run(mount, model, student)
    counts = {"between": [], "within": []}
    student.classifier.register_forward_hook(lambda *_: counts["within"].append(hooks_of(student)))

    class Watch(CallbackBase):
        def on_train_batch_end(self, *args, **kwargs):
            counts["between"].append(hooks_of(student) + hooks_of(model))

    fit(module, [*callbacks, Watch()])
    assert counts["between"] == [1, 1]
    assert min(counts["within"]) > 1
    assert hooks_of(student) + hooks_of(model) == 1


def test_a_foreign_module_is_as_it_was_after_a_fit():
    student = make_student()
    module, (callback,), distiller = make_run("callback", make_teacher(), student)
    keys, attributes = list(module.state_dict()), set(vars(module))
    during = []

    class Watch(CallbackBase):
        def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
            during.append(
                "training_step" in vars(pl_module)
                and ids(distiller.objectives.parameters()) <= ids(pl_module.parameters())
            )

    fit(module, [callback, Watch()])
    assert during == [True, True]
    assert list(module.state_dict()) == keys
    assert set(vars(module)) - attributes <= {"_hparams"}  # which Lightning makes when it is first read
    assert "training_step" not in vars(module)
    assert module.training_step.__func__ is Foreign.training_step
    assert not module._load_state_dict_post_hooks
    assert not module._state_dict_hooks


def test_a_foreign_module_is_as_it_was_after_an_exception_and_can_be_fitted_again():
    student = make_student()
    module, (callback,), _ = make_run("callback", make_teacher(), student, fail=True)
    keys = list(module.state_dict())
    with pytest.raises(KeyError, match="a bug of the user"):
        fit(module, [callback])
    assert "training_step" not in vars(module)
    assert list(module.state_dict()) == keys
    assert hooks_of(student) == 0
    module.fail = False
    trainer = fit(module, [callback])
    assert trainer.callback_metrics["distill/soft_targets"] > 0
    assert "training_step" not in vars(module)


def test_hooks_of_the_module_are_gone_after_an_exception():
    class Failing(DistillationModule):
        def training_step(self, batch, batch_idx):
            with self.watch(batch):
                self(batch)
                raise KeyError("a bug of the user")

    student = make_student()
    module = Failing(TextClassification(num_labels=2), make_teacher(), student, [HiddenStates()])
    with pytest.raises(KeyError, match="a bug of the user"):
        fit(module)
    assert hooks_of(student) == 0


def test_what_stood_on_the_instance_before_is_put_back():
    module, (callback,), _ = make_run("callback", make_teacher(), make_student())
    original = module.training_step

    def own_step(batch, batch_idx):
        return 2 * original(batch, batch_idx)

    module.training_step = own_step
    fit(module, [callback])
    assert vars(module)["training_step"] is own_step


def test_one_callback_serves_several_fits():
    module, (callback,), _ = make_run("callback", make_teacher(), make_student())
    for _ in range(2):
        assert fit(module, [callback]).callback_metrics["distill/hidden_states"] > 0


@pytest.mark.filterwarnings("ignore:`training_step` returned `None`")
def test_a_step_that_returns_nothing_or_no_tensor():
    class Skips(Foreign):
        def training_step(self, batch, batch_idx):
            loss = super().training_step(batch, batch_idx)
            return None if batch_idx == 0 else {"loss": loss.item()}

    module = Skips(make_student())
    with pytest.raises(DistillationError, match="dict with no loss tensor"):
        fit(module, [DistillationLoss(make_teacher())])


def test_projections_that_no_optimizer_holds_are_refused():
    class ByHand(Foreign):
        def configure_optimizers(self):
            return torch.optim.SGD(self.model.parameters(), lr=0.1)

    module = ByHand(make_student())
    with pytest.raises(DistillationError, match="in no optimizer"):
        fit(module, [DistillationLoss(make_teacher(), objectives=[HiddenStates()])])


def test_a_student_cut_out_of_the_teacher_trains(tiny_teacher_dir):
    module = DistillationModule(
        TextClassification(num_labels=2), tiny_teacher_dir, Student(layers=2), [HiddenStates(layers="initialised")]
    )
    trainer = fit(module)
    assert trainer.callback_metrics["distill/hidden_states"] > 0
