"""The base of all tasks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, Literal

from torch import Tensor, nn
from torchmetrics import Metric

from lightning_distilbert import taps
from lightning_distilbert.architectures import accepted_inputs
from lightning_distilbert.errors import DistillationError
from lightning_distilbert.prediction import answer_texts
from lightning_distilbert.spec import Spec

Batch = Mapping[str, Any]
Outputs = dict[str, Tensor]


class Task(Spec):
    """What a student learns: its head, loss, metrics, and how raw outputs read as answers.

    A task knows nothing of teachers and objectives. It holds options only and no tensors, so that one object serves any
    number of models.

    Attributes:
        auto_class: The transformers auto class that gives the student its head.
        default_objectives: The name of the preset that distils this task if the user names none.
        pooling: How the student's sentence embedding is pooled.
        labels: The names of the labels in the order of the head's outputs, or None.
        monitor: The validation metric that tells which checkpoint is best.
        mode: Whether ``"max"`` or ``"min"`` of it is best.
        fields: The columns that the command line predicts from where the user names none.
        data: The data modules of this package whose batches it learns from; others of this package are refused before
            they are read. Empty takes any, and what a user made is never refused.
    """

    auto_class: ClassVar[str] = "AutoModel"
    default_objectives: ClassVar[str] = "distilbert"
    fields: ClassVar[tuple[str, ...]] = ("text",)
    data: ClassVar[tuple[str, ...]] = ()
    pooling: Literal["mean", "cls"] = "mean"
    labels: tuple[str, ...] | None = None
    monitor: str = "val/loss"
    mode: str = "min"

    def model_config(self) -> dict[str, Any]:
        """Return the config values that give the student this task's head."""
        return {}

    def prepare_model(self, model: nn.Module) -> None:
        """Adapt a student before training, such as by freezing a part that this task does not use."""

    def setup(self, module: Any, stage: str) -> None:
        """Meet the models and the data before a stage of the Trainer, once both are there.

        Args:
            module: The `DistillationModule` of this task.
            stage: ``"fit"``, ``"validate"``, ``"test"`` or ``"predict"``.

        Raises:
            DistillationError: If they do not fit this task, such as a teacher that speaks another language.
        """

    def rates(self, module: Any) -> dict[str, float]:
        """Return what the learning rate is multiplied by for some parts of the module, by their paths.

        Args:
            module: The `DistillationModule` of this task.
        """
        return {}

    def state(self, module: Any) -> dict[str, Any]:
        """Return what a checkpoint keeps for this task beside the weights: plain values by name.

        Args:
            module: The `DistillationModule` of this task.
        """
        return {}

    def load_state(self, module: Any, kept: Mapping[str, Any]) -> None:
        """Give a module what `state` returned.

        Args:
            module: The `DistillationModule` of this task.
            kept: All that the checkpoint keeps; one from before may lack it.
        """

    def write_files(self, module: Any, folder: Path) -> None:
        """Write what a saved student needs beside its model and tokenizer.

        Args:
            module: The `DistillationModule` of this task.
            folder: Where to write.
        """

    def read_files(self, module: Any, folder: Path) -> None:
        """Give a module what `write_files` wrote.

        Args:
            module: The `DistillationModule` of this task.
            folder: The folder of the saved student.
        """

    def positions(self, batch: Batch) -> Tensor | None:
        """Return where a token-level head is evaluated, for student and teacher alike; None stands for everywhere.

        Args:
            batch: Tensors under transformers' names.

        Returns:
            Boolean, of shape ``(batch, sequence)``, or None. The logits that meet the objectives then have the shape
            ``(positions, num_labels)``. `run` saves their computation with
            ``with logits_at(model, self.positions(batch)): ...``.
        """
        return None

    def unread(self, batch: Batch) -> Batch:
        """Return a training batch as the student reads it where neither the task's loss nor an objective sees its head.

        Args:
            batch: Tensors under transformers' names.

        Returns:
            The batch, or one of which an expensive head computes nothing.
        """
        return batch

    def run(self, model: nn.Module, batch: Batch) -> Outputs:
        """Run the student on a batch.

        Args:
            model: The student.
            batch: Tensors under transformers' names.

        Returns:
            The outputs that the other methods need, by name.
        """
        raise NotImplementedError

    def loss(self, outputs: Outputs, batch: Batch) -> Tensor | None:
        """Return the task's own loss, or None if this batch has no labels.

        Args:
            outputs: What `run` returned.
            batch: The same batch.
        """
        raise NotImplementedError

    def new_metrics(self) -> Metric | nn.Module:
        """Return fresh metrics for one split; their ``compute()`` gives a dict of scalars."""
        raise NotImplementedError

    def name_labels(self, metrics: Any, labels: Sequence[str] | None) -> None:
        """Tell metrics the names of the labels, for a task that may not know them and whose metrics need them.

        Args:
            metrics: What `new_metrics` returned.
            labels: The names that the models or the data bring, or None.
        """

    def update_metrics(self, metrics: Any, outputs: Outputs, batch: Batch) -> None:
        """Count one batch in."""
        raise NotImplementedError

    def predict(self, module: Any, batch: Batch) -> list[Any]:
        """Run a module's student on a batch and return one plain answer per row.

        Args:
            module: The `DistillationModule` of this task, for a task that needs its tokenizer.
            batch: Tensors under transformers' names.
        """
        return self.decode(module(batch), module.labels)

    def answer(
        self, module: Any, texts: Sequence[Any], batch_size: int = 32, max_length: int | None = None
    ) -> list[Any]:
        """Answer texts as they come from a user: what `DistillationModule.predict` does.

        Args:
            module: The `DistillationModule` of this task.
            texts: The texts, or pairs of texts as tuples.
            batch_size: Texts in a batch; texts of similar length go together.
            max_length: Tokens kept of a text at most; None is what tokenizer and student allow.

        Returns:
            One plain answer per text, in the order of the texts.

        Raises:
            DistillationError: If something in it is no text, or texts and pairs are mixed.
        """
        return answer_texts(module, texts, batch_size, max_length)

    def decode(self, outputs: Outputs, labels: Sequence[str] | None = None) -> list[Any]:
        """Return one plain answer per row of a batch.

        Args:
            outputs: What `run` returned.
            labels: The names of the labels, for a task that names none.
        """
        raise NotImplementedError


def call_model(model: nn.Module, batch: Batch) -> Any:
    """Call a model with those tensors of a batch that its architecture takes.

    Args:
        model: A transformers model.
        batch: Tensors by name; labels and what else it does not take stay behind.

    Returns:
        The model's output.

    Raises:
        DistillationError: If the batch holds none of them.
    """
    accepted = accepted_inputs(model)
    given = batch if isinstance(batch, Mapping) else {}
    inputs = {name: value for name, value in given.items() if name in accepted}
    if not inputs:
        held = f"holds {sorted(map(str, given))}" if given else f"is a {type(batch).__name__}"
        raise DistillationError(
            f"{type(model).__name__} takes {', '.join(sorted(accepted))}, and the batch {held}. A batch is a dict of "
            "tensors under these names: does the data module belong to this task?"
        )
    return model(**inputs)


def watched(model: nn.Module, signal: str | None = None) -> bool:
    """Tell whether taps look at what parts of a model compute; anybody else's hooks do not count.

    Args:
        model: The model.
        signal: The signal that they look for, as ``"logits"``; None is any.

    Example:
        >>> model = nn.Linear(1, 1)
        >>> with taps.Taps(model, "", {"logits"}):
        ...     watched(model)
        True
        >>> watched(model)
        False
    """
    hooks = (hook for part in model.modules() for hook in part._forward_hooks.values())
    owners = (getattr(hook, "__self__", None) for hook in hooks)
    return any(isinstance(owner, taps.Taps) and (signal is None or signal in owner.requires) for owner in owners)


def check_number_of_labels(num_labels: int | None, labels: Sequence[str] | None) -> None:
    """Refuse a number of labels that is not that of their names.

    Args:
        num_labels: The number, or None.
        labels: The names, or None.

    Raises:
        DistillationError: If both are given and differ.

    Example:
        >>> check_number_of_labels(2, ["no", "yes"])
    """
    if labels and num_labels not in (None, len(labels)):
        raise DistillationError(
            f"num_labels={num_labels}, but {len(labels)} labels are named: {list(labels)}. Set num_labels to "
            f"{len(labels)}, or to null (None in Python)."
        )
