"""Thresholds and scores: chosen on validation data, used on test data, kept in checkpoints and folders."""

from __future__ import annotations

import json
import math
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from pytorch_lightning import Trainer
from pytorch_lightning.callbacks import ModelCheckpoint
from torchmetrics import Metric
from torchmetrics.classification import BinaryAUROC

from lightning_distilbert import DistillationError, DistillationModule, Student, TextClassification
from lightning_distilbert.data import TextClassificationData
from lightning_distilbert.evaluation import conclude, findings, restore
from lightning_distilbert.saved import load

ROWS = [{"text": f"the {'great' if i % 2 else 'dull'} movie number {i}", "label": i % 2} for i in range(12)]


class Doubt(Metric):
    """Counts rows, and chooses the mean probability of the last label as the threshold above which it is given."""

    def __init__(self) -> None:
        super().__init__()
        self.thresholds: dict[str, float] = {}
        self.add_state("total", torch.zeros(()), dist_reduce_fx="sum")
        self.add_state("above", torch.zeros(()), dist_reduce_fx="sum")
        self.add_state("rows", torch.zeros((), dtype=torch.long), dist_reduce_fx="sum")

    def update(self, probabilities: torch.Tensor) -> None:
        self.total = self.total + probabilities.sum()
        self.above = self.above + (probabilities > self.thresholds.get("last", 0.0)).sum()
        self.rows = self.rows + len(probabilities)

    def compute(self) -> dict[str, Any]:
        # what it was told, so that a test can see it
        told = self.thresholds.get("last", -1.0)
        return {"rows": self.rows, "told": told, "threshold/last": self.total / self.rows}


class WithThreshold(TextClassification):
    """Gives the last label above a threshold that validation data chose."""

    def new_metrics(self) -> Any:
        # the parent asks for the names of its own while it is built
        return Doubt() if "monitor" in vars(self) else super().new_metrics()

    def update_metrics(self, metrics: Any, outputs: Any, batch: Any) -> None:
        metrics.update(outputs["logits"].softmax(dim=-1)[:, -1])

    def predict(self, module: Any, batch: Any) -> list[Any]:
        return [p > module.thresholds["last"] for p in module(batch)["logits"].softmax(dim=-1)[:, -1].tolist()]


@pytest.fixture
def module(tiny_teacher_dir: Path) -> DistillationModule:
    return DistillationModule(
        WithThreshold(num_labels=2), student=Student(source=str(tiny_teacher_dir)), learning_rate=1e-3
    )


def trainer(tmp_path: Path, **arguments: Any) -> Trainer:
    quiet = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False, "accelerator": "cpu"}
    return Trainer(default_root_dir=tmp_path, devices=1, **({"max_epochs": 1} | quiet | arguments))


def data() -> TextClassificationData:
    return TextClassificationData({"train": ROWS, "validation": ROWS[:6], "test": ROWS[6:]}, batch_size=4)


def mean_probability(module: DistillationModule, rows: Any) -> float:
    """Return what `Doubt` computes, row by row and by other means."""
    module.eval()
    total = 0.0
    for row in rows:
        with torch.no_grad():
            total += module.student(**module.tokenizer(row["text"], return_tensors="pt")).logits.softmax(-1)[0, -1]
    return float(total / len(rows))


def test_validation_chooses_a_threshold_that_is_no_score_and_test_keeps_it(module, tmp_path: Path):
    run = trainer(tmp_path, num_sanity_val_steps=2, enable_checkpointing=False)
    run.fit(module, data())
    chosen = module.thresholds["last"]
    assert chosen == pytest.approx(mean_probability(module, ROWS[:6]), abs=1e-6)
    assert module.scores == {"val/rows": 6.0, "val/told": -1.0}
    assert not [name for name in run.callback_metrics if "threshold" in name]

    run.test(module, data(), verbose=False)
    assert module.thresholds == {"last": chosen}
    assert mean_probability(module, ROWS[6:]) != pytest.approx(chosen, abs=1e-6)
    # the test split is told the threshold, and what it would have chosen itself counts nowhere
    assert module.scores == {"val/rows": 6.0, "val/told": -1.0, "test/rows": 6.0, "test/told": pytest.approx(chosen)}
    answers = module.predict([row["text"] for row in ROWS])
    assert set(answers) == {True, False}
    module.thresholds["last"] = 1.0
    assert set(module.predict([row["text"] for row in ROWS])) == {False}


def test_sanity_check_of_a_few_rows_chooses_nothing(module, tmp_path: Path):
    run = trainer(tmp_path, num_sanity_val_steps=1, limit_train_batches=1, check_val_every_n_epoch=5, max_epochs=1)
    run.fit(module, data())
    assert (module.thresholds, module.scores) == ({}, {})


def test_training_on_leaves_no_scores_of_other_weights(module, tmp_path: Path):
    module.thresholds, module.scores = {"last": 0.25}, {"val/rows": 1.0, "test/rows": 2.0}
    trainer(tmp_path, num_sanity_val_steps=0, check_val_every_n_epoch=5, enable_checkpointing=False).fit(module, data())
    assert module.scores == {}
    assert module.thresholds == {"last": 0.25}  # nothing better is known
    run = trainer(tmp_path, max_epochs=2, enable_checkpointing=False)
    run.fit(module, data())
    assert set(module.scores) == {"val/rows", "val/told"}


def test_checkpoint_and_folder_keep_both(module, tmp_path: Path):
    saver = ModelCheckpoint(dirpath=tmp_path / "kept", save_top_k=-1, filename="{epoch}")
    run = trainer(tmp_path, max_epochs=2, callbacks=[saver])
    run.fit(module, data())
    run.test(module, data(), verbose=False)
    stored = torch.load(tmp_path / "kept" / "epoch=0.ckpt", weights_only=True)["lightning_distilbert"]
    assert stored["metrics"] == {"val/rows": 6.0, "val/told": -1.0}
    assert stored["thresholds"] != module.thresholds  # the first epoch's own

    last = DistillationModule.load_from_checkpoint(tmp_path / "kept" / "epoch=1.ckpt")
    assert last.thresholds == module.thresholds
    assert last.scores == {"val/rows": 6.0, "val/told": -1.0}
    # evaluating a checkpoint takes its thresholds
    run.test(module, data(), ckpt_path=str(tmp_path / "kept" / "epoch=0.ckpt"), verbose=False)
    assert module.thresholds == stored["thresholds"]
    assert module.scores["test/told"] == pytest.approx(stored["thresholds"]["last"])

    folder = module.save_student(tmp_path / "student")
    told = json.loads((folder / "config.json").read_text())["lightning_distilbert"]
    assert told["thresholds"] == module.thresholds
    assert told["metrics"] == module.scores
    assert told["task"]["class_path"].endswith("WithThreshold")
    again = load(folder, task=WithThreshold)
    assert (again.thresholds, again.scores) == (module.thresholds, module.scores)
    texts = [row["text"] for row in ROWS]
    assert again.predict(texts) == module.predict(texts)


def test_resuming_keeps_the_scores_until_the_next_validation(module, tiny_teacher_dir: Path, tmp_path: Path):
    run = trainer(tmp_path, max_epochs=1)
    run.fit(module, data())
    run.save_checkpoint(tmp_path / "one.ckpt")
    other = DistillationModule(WithThreshold(num_labels=2), student=Student(source=str(tiny_teacher_dir)))
    # nothing is left to train
    trainer(tmp_path, max_epochs=1).fit(other, data(), ckpt_path=str(tmp_path / "one.ckpt"))
    assert other.scores == module.scores
    assert other.thresholds == module.thresholds


def test_checkpoint_from_before_has_neither(module):
    restore(module, {"tokenizer": None})
    assert (module.thresholds, module.scores) == ({}, {})


class Fixed(Metric):
    """Answers what it was given."""

    def __init__(self, found: dict[str, Any]) -> None:
        super().__init__()
        self.found = found

    def update(self) -> None:
        """See nothing."""

    def compute(self) -> dict[str, Any]:
        return self.found


def holder(metric: Any, fn: str = "validate", **facts: Any) -> SimpleNamespace:
    state = SimpleNamespace(sanity_checking=False, state=SimpleNamespace(fn=fn))
    own = {"trainer": state, "device": torch.device("cpu"), "thresholds": {}, "scores": {}, "fits": []}
    return SimpleNamespace(metrics={"val": metric, "test": metric}, **(own | facts))


@pytest.mark.filterwarnings("ignore:The ``compute`` method of metric:UserWarning")
def test_undefined_threshold_leaves_the_one_before_and_undefined_scores_are_none_in_json():
    nan = torch.tensor(float("nan"))
    held = holder(Fixed({"f1": nan, "threshold/x": nan, "threshold/y": torch.inf}), thresholds={"x": 0.5})
    scores = conclude(held, "val")
    assert list(scores) == ["val/f1"]
    assert held.thresholds == {"x": 0.5, "y": math.inf}
    # what is not chosen again belonged to other weights
    again = holder(Fixed({"f1": nan, "threshold/x": torch.tensor(0.7)}), thresholds={"x": 0.5, "z": 0.1})
    conclude(again, "val")
    assert again.thresholds == {"x": pytest.approx(0.7)}
    none = holder(Fixed({"f1": nan}), thresholds={"knowledge": 0.5})
    conclude(none, "val")
    assert none.thresholds == {"knowledge": 0.5}
    kept = findings(held)
    assert json.loads(json.dumps(kept, allow_nan=False)) == kept
    assert kept["metrics"] == {"val/f1": None}
    assert 1e38 < kept["thresholds"]["y"] < math.inf
    back = SimpleNamespace()
    restore(back, kept)
    assert math.isnan(back.scores["val/f1"])
    assert findings(back) == kept


@pytest.mark.filterwarnings("ignore:The ``compute`` method of metric:UserWarning")
@pytest.mark.parametrize(("fn", "left"), [("validate", {"test/f1", "val/f1"}), ("fit", {"val/f1"})])
def test_scores_of_the_other_split_stay_while_the_weights_do(fn: str, left: set[str]):
    held = holder(Fixed({"f1": 1}), fn, scores={"test/f1": 0.5, "val/old": 0.5})
    assert conclude(held, "val")["val/f1"].dtype == torch.float32
    assert set(held.scores) == left
    assert held.scores["val/f1"] == 1.0


def test_tensor_that_torchmetrics_calls_thresholds_stays():
    metric = BinaryAUROC(thresholds=5)
    metric.update(torch.tensor([0.1, 0.9]), torch.tensor([0, 1]))
    compute = metric.compute
    metric.compute = lambda: {"auroc": compute()}  # type: ignore[method-assign]
    held = holder(metric)
    conclude(held, "test")
    assert held.scores == {"test/auroc": 1.0}
    assert isinstance(metric.thresholds, torch.Tensor)


@pytest.mark.parametrize(
    ("kept", "message"),
    [
        ({"thresholds": [0.5]}, r"saved thresholds are \[0\.5\]"),
        ({"thresholds": {"x": "high"}}, "saved thresholds hold 'high' as 'x'"),
        ({"thresholds": {"x": None}}, "saved thresholds hold None as 'x'"),
        ({"thresholds": {"x": True}}, "saved thresholds hold True as 'x'"),
        ({"metrics": {"val/f1": [1]}}, r"saved metrics hold \[1\] as 'val/f1'"),
    ],
)
def test_what_is_no_number_by_name_is_refused(kept: Any, message: str):
    with pytest.raises(DistillationError, match=message):
        restore(SimpleNamespace(), kept)
